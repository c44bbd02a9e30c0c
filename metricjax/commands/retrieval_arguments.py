"""Train embeddings for retrieval, and search among classes that training never saw.

metricjax train --task retrieval --dataset FOLDER     # FOLDER/CLASS/image, or FOLDER/SUPER-CLASS/CLASS/image
metricjax train --task retrieval --dataset FOLDER --loss multi_similarity --miner multi_similarity --bank 4096
metricjax train --task retrieval --dataset caltech_birds2011 --encoder resnet50 --weights resnet50.pth \\
    --pixels imagenet --image-size 224 224 --embedding-size 512 --loss proxy_anchor --batch 32 4 --seeds 5
metricjax train --task retrieval --dataset FOLDER --loss contrastive --reality-check --seeds 10

Classes are split in halves, as the field does it: the first classes train (100 of the birds, 98 of the cars, the
official 11,318 of the products, the background set of Omniglot), the others are searched. Of the training classes the
last fifth (--validation) is held back: after each epoch its images are searched, the checkpoint of most MAP@R is used,
and --patience ends a training that gets no better.

--reality-check is the protocol of Musgrave, Belongie and Lim 2020 (arXiv:2003.08505): four models, each of which trains
on three quarters of the training classes and is chosen by the fourth; the test classes are searched by each model
(their mean is "separated") and by the four embeddings in a row ("concatenated"). Batches are of 8 classes × 4,
embeddings of 128 numbers, and a model ends after 9 validations that are no better, unless other numbers are given. The
search over hyper-parameters that the paper makes for each loss is not part of it: give them by --set.
"""

import argparse
from collections.abc import Callable

from metricjax.commands import command_line, train_arguments
from metricjax.commands.fitting import LOSS
from metricjax.training import loggers, losses_by_name

__all__ = ["add_retrieval", "arguments", "check"]

FITS = train_arguments.FITS
PRODUCTS = "stanford_online_products"


def arguments(argv=None) -> argparse.Namespace:
    parser = command_line.parser("train --task retrieval", __doc__)
    add_retrieval(parser.add_argument_group("retrieval").add_argument)
    train_arguments.add_encoder(parser.add_argument_group("encoder").add_argument)
    train_arguments.add_training(parser.add_argument_group("training").add_argument)
    train_arguments.add_hosts(parser.add_argument_group("several hosts (found out on TPU pods)").add_argument)
    parser.set_defaults(checkpoint_every=None)
    args = parser.parse_args(argv)
    check(parser, args)
    args.out_is_given = args.out is not None
    args.out = args.out or command_line.dated_folder()
    args.ks = tuple(args.ks or ((1, 10, 100, 1000) if args.dataset.endswith(PRODUCTS) else (1, 2, 4, 8)))
    args.image_size = tuple(args.image_size or ((64, 64) if args.weights is None else (224, 224)))
    if args.reality_check:
        args.patience = 9 if args.patience is None else args.patience
        args.batch = args.batch or [8, 4]
    try:
        args.losses = losses_by_name.chosen_losses(args.loss or LOSS, args.set)
        if args.miner is not None:
            losses_by_name.miner_of(args.miner)
        loggers.check(args.log)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    return args


def add_retrieval(add: Callable) -> None:
    what = "a folder of classes, or of super-classes of classes; orl; omniglot, caltech_birds2011, cars196, "
    add("--dataset", required=True, help=f"{what}stanford_online_products or tfds:NAME (download)")
    add("--split-seed", type=int, metavar="SEED", help="draw the classes that train; default: the first ones")
    share = "of the training classes, the last ones, by whose MAP@R the checkpoint is chosen; 0 for the last checkpoint"
    add("--validation", type=float, default=0.2, metavar="SHARE", help=f"{share} (default 0.2)")
    add("--patience", type=int, metavar="EPOCHS", help="end after so many epochs that are no better")
    add("--ks", type=int, nargs="+", help="of recall@k; default 1 2 4 8, of products 1 10 100 1000")
    batch = (
        "classes and images of each; or one number: images drawn evenly; or super-classes, classes of each and images"
    )
    add("--batch", type=int, nargs="+", metavar="N", help=f"{batch}; of all devices together; {FITS}")
    power = "with classes and images of each: draw classes by their number of images to this power (1: as they are)"
    add("--class-power", type=float, metavar="POWER", help=power)
    add("--miner", metavar="NAME[:SETTING=VALUE,...]", help="of metricjax.mining, for losses that compare embeddings")
    add("--bank", type=int, default=0, metavar="ROWS", help="a memory bank for them, of this number of embeddings")
    add("--bank-from", type=int, default=0, metavar="STEP", help="the step from which the bank counts")
    add("--workers", type=int, default=0, help="processes that read and decode, besides threads")
    add("--mirror", choices=("random", "none"), help=f"mirror each image or not, by chance; {FITS}")
    amount = "how much images are turned, zoomed, shifted and hidden: 1 for a lot, 0 for not at all"
    add("--augment", type=float, metavar="AMOUNT", help=f"{amount}; {FITS}")
    add("--seeds", type=int, default=1, help="trainings, from --seed on; the table has means and 95 %% intervals")
    add("--reality-check", action="store_true", help="four models by cross-validation over classes: see above")


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with an error where arguments are out of range or do not go together."""
    train_arguments.check_training(parser, args)
    command_line.check_least(parser, args, {"seeds": 1, "patience": 1, "bank": 0, "bank_from": 0, "ks": 1})
    if args.batch is not None and len(args.batch) > 3:
        parser.error(f"--batch is {args.batch}; wanted three numbers at most")
    if args.class_power is not None and (args.class_power < 0 or (args.batch is not None and len(args.batch) != 2)):
        parser.error("--class-power wants a number from 0, and --batch with classes and images of each")
    if not 0 <= args.validation < 1:
        parser.error(f"--validation is {args.validation}; wanted a share, from 0 to less than 1")
    if args.patience is not None and not args.validation and not args.reality_check:
        parser.error("--patience needs --validation, by which epochs are judged")
    if args.resume and (args.reality_check or args.seeds > 1):
        parser.error(
            "--resume goes on with one training: give its own folder as --out, without --seeds and --reality-check"
        )
