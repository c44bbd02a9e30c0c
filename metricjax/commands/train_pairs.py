"""Train two towers on pairs of images that belong together, and see how well they find each other among new ones.

metricjax train --task pairs                                     # left halves of the ORL faces find the right halves
metricjax train --task pairs --dataset FOLDER_OF_PEOPLE          # of other faces, with people never seen
metricjax train --task pairs --dataset sketches --other-dataset photographs --other-encoder vit_small
metricjax train --task pairs --dataset pairs.csv --shared --loss siglip --batch 1024 --steps 20000

--dataset is "orl" or a folder with a sub-folder for each person, whose photographs are cut into halves; or, with
--other-dataset, a folder whose images have partners of the same names in another one (sub-folders are groups); or a
table of paths, .csv or .tsv: two columns, and perhaps a third of groups. Pairs of one group (photographs of one person,
of one product) are on one side of the split, and are no negatives of each other.

The table says, both ways, for how many of the pairs never seen the partner is among the first 1, 5 and 10, and its
median rank; where groups have several pairs, also for how many the first is of the same group. The encoders are in the
folder of results, x.npz and y.npz, for `metricjax.load`. Text, sound, graphs: `metricjax.training.TowerTrainer`.
"""

import argparse
import pathlib
import time
from typing import NamedTuple

import jax
import numpy as np

import metricjax as mj
from metricjax import encoders
from metricjax.commands import command_line, tables
from metricjax.commands.train_arguments import add_hosts, check_run
from metricjax.commands.train_data import in_memory
from metricjax.commands.train_run import curves, finished, in_folder, taken_up
from metricjax.data.two_views import FileViews, HalfViews, couples_of_folders, read_couples
from metricjax.ground import json_files
from metricjax.trained import people_of_run
from metricjax.trained.baseline import raw_pixels
from metricjax.trained.design import PIXELS, Design
from metricjax.training import loggers, loop
from metricjax.training.batches import Batches
from metricjax.training.checkpoints import Checkpoints, check_people
from metricjax.training.image_towers import ImageTowers
from metricjax.training.recipe import Recipe
from metricjax.training.towers import LOSSES, TowerRecipe

__all__ = [
    "Data",
    "PairBatches",
    "Pictures",
    "arguments",
    "both_ways",
    "check",
    "load",
    "main",
    "of_towers",
    "opened",
    "pictures_of",
    "towers_of",
    "trained_and_tested",
    "write",
]

MOST_TESTED, MOST_COMPARED = 1000, 5000  # groups, unless the command line says otherwise; pairs, by other ways too
KS = (1, 5, 10)
HALVES = {"orl": (112, 92)}  # height and width of photographs that are cut; (112, 112) elsewhere


def arguments(argv=None) -> argparse.Namespace:
    parser = command_line.parser("train --task pairs", __doc__)
    add = parser.add_argument_group("data").add_argument
    add("--dataset", default="orl", help="orl (default), a folder, or a table of paths: see above")
    add("--other-dataset", type=pathlib.Path, metavar="FOLDER", help="the partners of the images of a folder")
    add("--test-groups", type=int, help=f"groups (people, pairs) kept for testing; default half, {MOST_TESTED} at most")
    add("--validation", type=int, default=0, metavar="GROUPS", help="kept to choose the checkpoint by; default none")
    add("--patience", type=int, help="checkpoints without a better validation after which the training ends")
    add("--batch", type=int, help="pairs, of all devices together; default 128, or the power of two that there are")
    add("--workers", type=int, default=0, help="processes that read and decode, besides threads")
    amount = "how much images are turned, zoomed, shifted and hidden: 1 for a lot, 0 for not at all; default 0.3"
    add("--augment", type=float, default=0.3, metavar="AMOUNT", help=amount)
    add = parser.add_argument_group("towers").add_argument
    named = f"small_convnet (default), which is for a laptop, or another of {', '.join(encoders.NAMED)}"
    add("--encoder", choices=encoders.NAMED, default="small_convnet", metavar="NAME", help=named)
    add("--other-encoder", choices=encoders.NAMED, metavar="NAME", help="of the partners; default the same network")
    one = "one tower, with one set of weights, for both; default for halves, as few people are too few for two towers"
    add("--shared", action=argparse.BooleanOptionalAction, help=one)
    add("--embedding-size", type=int, default=128)
    add("--image-size", type=int, nargs=2, metavar=("H", "W"), help="what encoders see; default 64 64, of halves 48 24")
    add("--pixels", choices=tuple(PIXELS), default="standardised", help="see metricjax train --help")
    file = "to begin with: published weights (.safetensors, .pth), or an .npz file of an encoder"
    add("--weights", type=pathlib.Path, metavar="FILE", help=file)
    add("--other-weights", type=pathlib.Path, metavar="FILE", help="of the partners' tower")
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="of encoders; losses take float32")
    add("--remat", action="store_true", help="compute blocks again going backwards: less memory, a third more time")
    add = parser.add_argument_group("training").add_argument
    add("--loss", choices=LOSSES, default="clip", help=f"one of {', '.join(LOSSES)} (default clip)")
    begins = "what the learnt scale of the cosines begins at; default 14.3, of siglip 10"
    add("--scale", type=float, help=begins)
    add("--most-scale", type=float, default=100.0, help="what it is kept below (default 100)")
    add("--steps", type=int, help="of the whole run (default 500, or as before)")
    add("--learning-rate", type=float, default=2e-3)
    add("--seed", type=int, default=0)
    add("--out", type=pathlib.Path, help="folder of results; default runs/DATE-TIME")
    add("--log", action="append", default=[], choices=loggers.NAMED, help="report there too, in --out")
    add("--checkpoint-every", type=int, default=200, metavar="STEPS")
    add("--resume", action="store_true", help="go on from the latest whole checkpoint in --out")
    add_hosts(parser.add_argument_group("several hosts (found out on TPU pods)").add_argument)
    args = parser.parse_args(argv)
    check(parser, args)
    args.out_is_given = args.out is not None
    args.out = args.out or command_line.dated_folder()
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with an error where arguments are out of range or do not go together."""
    check_run(parser, args)
    least = dict.fromkeys(("steps", "checkpoint_every", "embedding_size", "image_size", "patience", "test_groups"), 1)
    command_line.check_least(parser, args, {**least, "batch": 2, "seed": 0, "workers": 0, "validation": 0})
    if args.other_encoder or args.other_weights:
        if args.shared:
            parser.error("--shared has one tower; leave out --other-encoder and --other-weights")
        args.shared = False
    if args.patience is not None and not args.validation:
        parser.error("--patience needs --validation, the groups to be patient with")
    try:
        loggers.check(args.log)
        TowerRecipe(args.loss, 1, scale=args.scale, most_scale=args.most_scale)
    except (ValueError, ImportError) as error:
        parser.error(str(error))


# --- pairs ------------------------------------------------------------------------------------------------------------


class Pictures(NamedTuple):
    """Pairs in memory: images x and y [n, h, w, c], and the number of the group of each pair [n]."""

    x: np.ndarray
    y: np.ndarray
    groups: np.ndarray


class Data(NamedTuple):
    """A source to train on, pairs to choose by, if any, and to test on, and the record of their groups."""

    train: mj.data.Source
    trained_on: list[str]
    validation: Pictures | None
    tested: Pictures
    tested_on: list[str]
    record: dict


def load(args) -> Data:
    """Read the pairs to test on; those to train on are read when they are needed."""
    source, halves = opened(args)
    args.shared = halves if args.shared is None else args.shared
    count = len(source.people)
    tested = min(count - count // 2, MOST_TESTED) if args.test_groups is None else args.test_groups
    if count - tested - args.validation < 2:
        raise ValueError(
            f"--dataset {args.dataset} has {count} groups; {tested} to test on and --validation {args.validation}"
            f" leave {count - tested - args.validation} to train on, wanted 2 at least"
        )
    part = np.searchsorted([count - tested - args.validation, count - tested], np.arange(count), side="right")
    train, held, test = (mj.data.of_people(source, part == number) for number in range(3))
    record = people_of_run.record(train, held if args.validation else None, test.people)
    if halves:  # a mirrored face is another person's, whose halves have changed sides
        train, held, test = HalfViews(mj.data.mirrored(train)), HalfViews(held), HalfViews(test)
    args.batch = args.batch or min(128, 2 ** int(np.log2(len(train))))
    if args.batch > len(train):
        raise ValueError(f"--batch is {args.batch}; there are {len(train)} pairs to train on, each once in a batch")
    pictures = pictures_of(test)
    if len(pictures.x) < 2:
        raise ValueError(f"--test-groups {tested} has one pair; wanted 2 at least, to tell apart")
    validation = pictures_of(held) if args.validation else None
    return Data(train, [*record["trained on"]], validation, pictures, test.people, record)


def opened(args) -> tuple[mj.data.Source, bool]:
    """All pairs of --dataset, or photographs to cut into halves; the image size where the command line has none."""
    path, of_files = pathlib.Path(args.dataset), args.other_dataset is not None
    if of_files or path.suffix.lower() in (".csv", ".tsv"):
        args.image_size = args.image_size or (64, 64)
        couples = couples_of_folders(path, args.other_dataset) if of_files else read_couples(path)
        return FileViews(couples, tuple(args.image_size)), False
    args.image_size = args.image_size or (48, 24)
    photograph = HALVES.get(args.dataset, (112, 112))
    if args.dataset == "orl":
        return mj.data.ArraySource(mj.data.orl(photograph)), True
    return mj.data.FolderSource(path, photograph, at_least=1), True


def pictures_of(source: mj.data.Source) -> Pictures:
    found = in_memory(source)
    x, y = np.moveaxis(found.images, 1, 0)
    return Pictures(x, y, found.labels)


class PairBatches:
    """Batches for towers, from any position on."""

    def __init__(self, args, recipe: TowerRecipe, source: mj.data.Source, position: dict[str, int] | None):
        drawn = Recipe(losses={}, steps=recipe.steps, batch=(recipe.batch,), seed=recipe.seed)
        self.batches = Batches(drawn, source, position, workers=args.workers)

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self.batches)
        return {"x": batch["images"][:, 0], "y": batch["images"][:, 1], "groups": batch["labels"]}

    def get_state(self) -> dict[str, int]:
        return self.batches.get_state()


def towers_of(args, data: Data) -> ImageTowers:
    height, width, channels = data.tested.x.shape[1:]
    made = lambda name: Design(
        name, args.embedding_size, (height, width), tuple(args.image_size), channels, args.pixels, args.precision
    )
    designs = {"x": made(args.encoder)} | ({} if args.shared else {"y": made(args.other_encoder or args.encoder)})
    given = {"x": args.weights, "y": args.other_weights}
    weights = {} if args.resume else {side: path for side, path in given.items() if path is not None}
    named = {name: getattr(args, name) for name in ("batch", "learning_rate", "scale", "most_scale", "seed")}
    recipe = TowerRecipe(args.loss, args.steps or 500, **named)
    return ImageTowers(recipe, designs, augment=args.augment, remat=args.remat, weights=weights)


# --- results ----------------------------------------------------------------------------------------------------------


def both_ways(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Recall and median rank of each way; of the group too, where one has several pairs."""
    found = mj.metrics.both_ways(x, y, ks=KS)
    named = {
        f"{way} {name}": one[name]
        for way, one in found.items()
        for name in (*(f"recall@{k}" for k in KS), "median_rank")
    }
    if len(np.unique(groups)) < len(groups):
        of_group = mj.metrics.both_ways(x, y, labels=groups, reference_labels=groups, ks=(1,))
        named |= {f"{way} recall@1 of the group": one["recall@1"] for way, one in of_group.items()}
    return named


def of_towers(trainer: ImageTowers, pictures: Pictures) -> dict[str, float]:
    return both_ways(trainer.embed_x(pictures.x), trainer.embed_y(pictures.y), pictures.groups)


def main(argv=None) -> dict:
    return in_folder(arguments(argv), trained_and_tested)


def trained_and_tested(args, check_lock) -> dict:
    started = time.perf_counter()
    saved = taken_up(args) if args.resume else None
    data = load(args)
    if saved is not None:
        check_people(args.out, saved, data.record)
    trainer = towers_of(args, data)
    others = {}
    if len(data.tested.x) <= MOST_COMPARED:
        x, y = raw_pixels(data.tested.x), raw_pixels(data.tested.y)
        others = {"untrained": of_towers(trainer, data.tested), "raw pixels": both_ways(x, y, data.tested.groups)}

    def validate() -> loop.Validated:
        assert data.validation is not None
        found = of_towers(trainer, data.validation)
        mean = (found["x to y recall@1"] + found["y to x recall@1"]) / 2
        return loop.Validated(1 - mean, {"recall@1": mean})

    with finished(Checkpoints(args.out, trainer, data.validation is not None, data.record)) as kept:
        history = loop.run_steps(
            kept,
            lambda position: PairBatches(args, trainer.recipe, data.train, position),
            checkpoint_every=args.checkpoint_every,
            resume=args.resume,
            validate=None if data.validation is None else validate,
            patience=args.patience,
            log=args.log,
            check_lock=check_lock,
        )
    kept.use_best()
    results = {"towers": of_towers(trainer, data.tested), **others}
    seconds = time.perf_counter() - started
    groups = {"trained on": data.trained_on, "tested on": data.tested_on}
    run = {"task": "pairs", "dataset": args.dataset, "other_dataset": str(args.other_dataset), **kept.identity()}
    report = {"results": results, "seconds": seconds, "run": run, "groups": groups, "history": history}
    if jax.process_index() == 0:
        write(args.out, report, trainer, data.record)
        table = tables.of_ways("pairs never seen in training", results)
        print(f"\n{table}\n\n{seconds:.0f} s; encoders, checkpoint, metrics.json and plots are in {args.out}")
    return report


def write(out: pathlib.Path, report: dict, trainer: ImageTowers, record: dict) -> None:
    json_files.write(out / "metrics.json", report)
    for side, encoder in trainer.encoders(record).items():
        encoder.save(out / f"{side}.npz")
    for name, figure in curves(report["history"]).items():
        figure.savefig(out / f"{name}.png", dpi=120)
