"""Train face embeddings on every device there is, and evaluate them on people that training never saw.

metricjax train                                   # the ORL faces, on a laptop
metricjax train --loss triplet --set margin=0.3
metricjax train --dataset FOLDER_OF_PEOPLE
metricjax train --dataset lfw_folder --pairs pairs.txt --test-folds 1,2
metricjax train --dataset ms1mv3 --test lfw.bin --test agedb_30.bin --validation cfp_fp.bin \\
    --encoder iresnet50 --embedding-size 512 --image-size 112 112 --pixels centred --precision bfloat16 \\
    --loss arcface --set scale=64 --set margin=0.5 --mirror random --batch 1024 --steps 200000

Other tasks: metricjax train --task retrieval --help, metricjax train --task pairs --help.
"""

import argparse
import pathlib
from collections.abc import Callable

from metricjax import encoders
from metricjax.commands import command_line
from metricjax.commands.fitting import LOSS
from metricjax.trained.design import PIXELS
from metricjax.training import loggers, losses_by_name

__all__ = ["add_data", "add_encoder", "add_hosts", "add_training", "arguments", "check", "check_run", "check_training"]

FITS = "default: what fits the data"
STEPS = 500  # of runs of older versions, which do not say


def arguments(argv=None) -> argparse.Namespace:
    parser = command_line.parser("train", __doc__)
    add_data(parser.add_argument_group("data").add_argument)
    add_encoder(parser.add_argument_group("encoder").add_argument)
    add_training(parser.add_argument_group("training").add_argument)
    add_hosts(parser.add_argument_group("several hosts (found out on TPU pods)").add_argument)
    args = parser.parse_args(argv)
    check(parser, args)
    args.out_is_given = args.out is not None
    args.out = args.out or command_line.dated_folder()
    try:
        args.losses = losses_by_name.chosen_losses(args.loss or LOSS, args.set)
        loggers.check(args.log)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    return args


def add_data(add: Callable) -> None:
    what = "orl (default), lfw or tfds:NAME (downloads), a folder with a sub-folder per person, or one with train.rec"
    add("--dataset", default="orl", help=what)
    add("--landmarks", type=pathlib.Path, help="five points for each photograph of a folder, to align it by")
    add("--test-people", type=int, help="people kept for testing; default half of them, 500 at most")
    add("--test", action="append", default=[], type=pathlib.Path, metavar="SET.bin", help="pairs to test on")
    pairs = "LFW's pairs.txt, to run its protocol, or a list without folds; --dataset is then the folder of its people"
    add("--pairs", type=pathlib.Path, help=pairs)
    folds = "folds of --pairs to test on, where it has any; their people are not trained on"
    add("--test-folds", default="1,2", help=folds)
    best = "verification set, or a number of people to keep for it: the checkpoint of least equal error rate is used"
    add("--validation", metavar="SET.bin | PEOPLE", help=best)
    batch = "people and images of each, or one number: images drawn evenly; of all devices together"
    add("--batch", type=int, nargs="+", metavar=("P", "K"), help=f"{batch}; {FITS}")
    add("--workers", type=int, default=0, help="processes that read and decode, besides threads")
    how = "people: a mirrored face is another person; random: each image or not, by chance; none"
    add("--mirror", choices=("people", "random", "none"), help=f"{how}; {FITS}")
    amount = "how much images are turned, zoomed, shifted and hidden: 1 for a lot, 0 for not at all"
    add("--augment", type=float, metavar="AMOUNT", help=f"{amount}; {FITS}")


def add_encoder(add: Callable) -> None:
    add("--encoder", choices=encoders.NAMED, metavar="NAME", help=f"one of {', '.join(encoders.NAMED)}; {FITS}")
    add("--embedding-size", type=int, default=128)
    add("--image-size", type=int, nargs=2, metavar=("H", "W"), help=f"what the encoder sees; {FITS}")
    each = "each image standardised, from −1 to 1, or as published weights of ResNet and DINOv2, or of CLIP, want them"
    add("--pixels", choices=tuple(PIXELS), default="standardised", help=each)
    file = "to begin with: published weights (.safetensors, .pth), a run, or an .npz file of an encoder"
    add("--weights", type=pathlib.Path, metavar="FILE", help=file)
    inside = "of the encoder but its weights, statistics and last layer; losses and evaluation take float32"
    add("--precision", choices=("float32", "bfloat16"), default="float32", help=inside)
    again = "compute blocks again going backwards: a third more time, less memory (but not on a CPU)"
    add("--remat", action="store_true", help=again)
    add("--chunk", type=int, help="images encoded at a time: batches of any size in their memory; slow on a CPU")


def add_training(add: Callable) -> None:
    add("--loss", help=f"a loss of metricjax.losses, or several joined by +; {FITS}, now {LOSS}")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter of the loss")
    where = "of prototypes to the sphere: in the forward pass, after each update, or on the gradient too"
    add("--constraint", choices=losses_by_name.CONSTRAINTS, default="update", help=where)
    share = "of classes that a step looks at and changes, those of the batch among them (Partial FC); default all"
    add("--sampled-classes", type=float, metavar="SHARE", help=share)
    length = f"of the whole run ({FITS}, or as before); --resume with more of them trains on, and from there"
    add("--steps", type=int, help=f"{length} the learning rate follows the cosine of a run of the new length")
    add("--learning-rate", type=float, help=FITS)
    add("--seed", type=int, default=0)
    add("--out", type=pathlib.Path, help="folder of results; default runs/DATE-TIME")
    where = "report there too, in --out (several: --log csv --log wandb); steps are those of metrics.json, which grows"
    add("--log", action="append", default=[], choices=loggers.NAMED, help=where)
    add("--checkpoint-every", type=int, default=200, metavar="STEPS")
    add("--resume", action="store_true", help="go on from the latest whole checkpoint in --out")


def add_hosts(add: Callable) -> None:
    add("--coordinator", metavar="HOST:PORT", help="address of process 0")
    add("--processes", type=int, help="the number of processes")
    add("--process-id", type=int, help="the number of this process, from 0")


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with an error where arguments are out of range or do not go together."""
    check_training(parser, args)
    command_line.check_least(parser, args, {"test_people": 0})
    if args.batch is not None and len(args.batch) > 2:
        parser.error(f"--batch is {args.batch}; wanted people and images of each, or one number of images")
    if len({path.stem for path in args.test}) < len(args.test):
        parser.error(f"--test: two of {', '.join(map(str, args.test))} have one name; wanted different ones")


def check_training(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """`check`, of what `add_encoder` and `add_training` add."""
    check_run(parser, args)
    least = dict.fromkeys(("steps", "checkpoint_every", "embedding_size", "image_size", "batch", "chunk"), 1)
    command_line.check_least(parser, args, {**least, "seed": 0, "workers": 0})
    if args.sampled_classes is not None and not 0 < args.sampled_classes <= 1:
        parser.error(f"--sampled-classes is {args.sampled_classes}; wanted more than 0, up to 1")


def check_run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """`check`, of what all tasks have."""
    if args.resume and args.out is None:
        parser.error("--resume needs --out, the folder of the run to go on with")
    if args.augment is not None and not 0 <= args.augment <= 2:
        parser.error(f"--augment is {args.augment}; wanted 0 to 2")
    if not args.coordinator and (args.processes is not None or args.process_id is not None):
        parser.error("--processes and --process-id need --coordinator")
