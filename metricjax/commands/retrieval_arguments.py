"""Train embeddings for retrieval, and search among classes that training never saw.

metricjax train --task retrieval --dataset FOLDER     # FOLDER/CLASS/image, or FOLDER/SUPER-CLASS/CLASS/image
metricjax train --task retrieval --dataset FOLDER --loss multi_similarity --miner multi_similarity --bank 4096
metricjax train --task retrieval --dataset caltech_birds2011 --weights resnet50.pth --embedding-size 512 \\
    --loss proxy_anchor --batch 32 4 --seeds 5
metricjax train --task retrieval --dataset FOLDER --loss contrastive --reality-check --seeds 10

No class is both trained on and searched. Of the known sets it is the usual halves: the first 100 classes of the birds
(caltech_birds2011) and the first 98 of the cars (cars196) train, of the products (stanford_online_products) those of
the official list, of omniglot its background set. Of others a random half does; --split-seed draws another. Of the
training classes a fifth (--validation) is held back: after each epoch (of at least 25 steps) its images are searched,
the checkpoint of most MAP@R is used, and --patience ends a training that gets no better.

--reality-check is the protocol of Musgrave, Belongie and Lim 2020 (arXiv:2003.08505): four models, each of which trains
on three quarters of the training classes and is chosen by the fourth; the test classes are searched by each model
(their mean is "separated") and by the four embeddings in a row ("concatenated"). Batches are of 8 classes × 4,
embeddings of 128 numbers, and a training ends after 9 epochs that are no better, unless the command line has other
numbers. Network, optimiser and augmentation stay this command's; and the search over the hyper-parameters of each loss,
50 trials in the paper, is not part of it: give them by --set.
"""

import argparse
from collections.abc import Callable

from metricjax.commands import command_line, train_arguments
from metricjax.commands.fitting import LOSS
from metricjax.training import loggers, losses_by_name

__all__ = ["PRODUCTS", "SAMPLERS", "add_retrieval", "arguments", "check"]

FITS = train_arguments.FITS
PRODUCTS = "stanford_online_products"
SAMPLERS = {"pk": (16, 4), "uniform": (64,), "hierarchical": (2, 8, 4), "weighted": (16, 4)}  # and what fits as --batch
OF_LENGTH = {1: "uniform", 2: "pk", 3: "hierarchical"}
VALIDATION, POWER = 0.2, 0.5
REALITY_CHECK = {"batch": (8, 4), "patience": 9}  # the paper's


def arguments(argv=None) -> argparse.Namespace:
    parser = command_line.parser("train --task retrieval", __doc__)
    add_retrieval(parser.add_argument_group("retrieval").add_argument)
    train_arguments.add_encoder(parser.add_argument_group("encoder").add_argument)
    train_arguments.add_training(parser.add_argument_group("training").add_argument)
    train_arguments.add_hosts(parser.add_argument_group("several hosts (found out on TPU pods)").add_argument)
    parser.set_defaults(checkpoint_every=None, pixels=None)
    args = parser.parse_args(argv)
    check(parser, args)
    args.out_is_given = args.out is not None
    args.out = args.out or command_line.dated_folder()
    args.ks = tuple(args.ks or ((1, 10, 100, 1000) if args.dataset.endswith(PRODUCTS) else (1, 2, 4, 8)))
    args.validation = VALIDATION if args.validation is None else args.validation
    if args.reality_check:
        for name, value in REALITY_CHECK.items():
            setattr(args, name, getattr(args, name) or value)
    args.sampler = args.sampler or OF_LENGTH[len(args.batch or "PK")]
    if args.sampler == "weighted" and args.class_power is None:
        args.class_power = POWER
    try:
        args.losses = losses_by_name.chosen_losses(args.loss or LOSS, args.set)
        losses_by_name.check_of_pairs(args.losses, args.miner, args.bank)
        loggers.check(args.log)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    return args


def add_retrieval(add: Callable) -> None:
    what = "a folder of classes, or of super-classes of classes; orl; omniglot, caltech_birds2011, cars196, "
    add("--dataset", required=True, help=f"{what}stanford_online_products or tfds:NAME (download)")
    add("--split-seed", type=int, metavar="SEED", help="draw the classes that train at random; known sets do not")
    whole = "no super-class is both trained on and searched, either: half of the alphabets, of the kinds of products"
    add("--by-superclass", action="store_true", help=whole)
    share = "of the training classes, by whose MAP@R the checkpoint is chosen; 0: the last checkpoint is used"
    add("--validation", type=float, metavar="SHARE", help=f"{share} (default {VALIDATION})")
    add("--patience", type=int, metavar="EPOCHS", help="end after so many epochs that are no better")
    add("--ks", type=int, nargs="+", metavar="K", help="of recall@k; default 1 2 4 8, of products 1 10 100 1000")
    draws = "pk: some images of some classes; uniform: images as they come; hierarchical: classes of some super-classes"
    powered = "weighted: as pk, with classes drawn by their number of images to --class-power"
    add("--sampler", choices=SAMPLERS, help=f"{draws}; {powered}; default: by --batch, pk")
    batch = "P K: classes and images of each; one number for uniform; S P K, super-classes first, for hierarchical"
    add("--batch", type=int, nargs="+", metavar="N", help=f"{batch}; of all devices together; {FITS}")
    add("--class-power", type=float, metavar="POWER", help=f"1: as images are, 0: all alike (default {POWER})")
    mined = "of metricjax.mining, for losses that compare embeddings; selections of triplets: --set triplets=NAME"
    add("--miner", metavar="NAME[:SETTING=VALUE,...]", help=mined)
    add("--bank", type=int, default=0, metavar="ROWS", help="a memory bank for them, of so many embeddings")
    add("--bank-warm-up", type=int, default=0, metavar="STEPS", help="the first steps, in which it does not count")
    add("--workers", type=int, default=0, help="processes that read and decode, besides threads")
    add("--mirror", choices=("random", "none"), help=f"mirror each image or not, by chance; {FITS}")
    amount = "how much images are turned, zoomed, shifted and hidden: 1 for a lot, 0 for not at all"
    add("--augment", type=float, metavar="AMOUNT", help=f"{amount}; {FITS}")
    add("--seeds", type=int, default=1, help="trainings, from --seed on; the table has means and 95 %% intervals")
    add("--reality-check", action="store_true", help="four models by cross-validation over classes: see above")


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with an error where arguments are out of range or do not go together."""
    train_arguments.check_training(parser, args)
    least = {"seeds": 1, "patience": 1, "bank": 0, "bank_warm_up": 0, "ks": 1, "split_seed": 0}
    command_line.check_least(parser, args, least)
    if args.batch is not None:
        sampler = args.sampler or OF_LENGTH.get(len(args.batch), "pk")
        if len(args.batch) != len(SAMPLERS[sampler]):
            wanted = {"uniform": "one number", "hierarchical": "S P K"}.get(sampler, "P K")
            parser.error(f"--batch is {' '.join(map(str, args.batch))}; wanted {wanted}, for --sampler {sampler}")
    if args.class_power is not None and (args.class_power < 0 or args.sampler != "weighted"):
        parser.error(f"--class-power is {args.class_power:g}; wanted a number from 0, with --sampler weighted")
    if args.bank_warm_up and not args.bank:
        parser.error("--bank-warm-up needs --bank, the rows that wait")
    if args.validation is not None and not 0 <= args.validation < 1:
        parser.error(f"--validation is {args.validation:g}; wanted a share, from 0 to less than 1")
    if args.validation is not None and args.reality_check:
        parser.error("--reality-check holds back a quarter of the training classes in turn; leave out --validation")
    if args.patience is not None and args.validation == 0:
        parser.error("--patience needs --validation, by which epochs are judged")
