"""Recognise people by the encoder of a run of `metricjax train`: anybody can be added later, and strangers are refused.

metricjax recognize enrol --checkpoint RUN --gallery staff.npz STAFF      # a sub-folder for each person
metricjax recognize calibrate --checkpoint RUN --gallery staff.npz --fpir 0.01 OTHER_PEOPLE
metricjax recognize identify --checkpoint RUN --gallery staff.npz door.jpg    # name and score, or "unknown"
metricjax recognize enrol --checkpoint RUN --gallery staff.npz new.jpg --name "Ada Lovelace"
metricjax recognize verify --checkpoint RUN --gallery staff.npz a.jpg b.jpg
metricjax recognize list --gallery staff.npz                                  # and: remove --name NAME
metricjax recognize serve --checkpoint RUN --gallery staff.npz                # all of it but calibration, in a browser
metricjax recognize trial --checkpoint RUN                                    # all of it on ORL, many times

Each photograph shows one face, cut out like those that the encoder was trained on, and is fitted to its size likewise.
A person's template is the mean of all photographs enrolled, those of later calls too: enrol each of them once.

There are two ways to calibrate, on people whom the encoder never saw. --far counts pairs, which is what `verify`
judges: the share of pairs of different people that pass. A stranger who is searched among N people has N such chances;
if these were independent, the share 1 − (1 − FAR)^N of searches would pass. --fpir therefore searches strangers in the
gallery as it is, and counts the searches that find anybody: use it for `identify`, and again when the gallery has
grown. A gallery has one threshold: the later calibration replaces the earlier one.

Several may change one gallery at once. The encoders run side by side; then each waits for the one before, a minute at
most, and adds to what is there by then. A gallery is replaced whole, so that a search needs no lock.
"""

import argparse
import dataclasses
import itertools
import pathlib
import sys

import jax.numpy as jnp
import numpy as np

import metricjax as mj
from metricjax.commands import command_line, recognition_trial
from metricjax.recognition import gallery_file
from metricjax.recognition.gallery_file import UNKNOWN, name_of
from metricjax.recognition.recognizer import Recognizer, check_encoder

__all__ = [
    "arguments",
    "at_far",
    "at_fpir",
    "calibrate",
    "check_anybody",
    "embedded",
    "encoder_for",
    "enrol",
    "identify",
    "main",
    "of_people",
    "photographs",
    "remove",
    "reported",
    "say",
    "serve",
    "show",
    "threshold_of",
    "trial",
    "verify",
]

MOST_PAIRED = 3000  # photographs, for a bootstrap over all their pairs that takes about a minute


def encoder_for(args, people: gallery_file.People | None) -> mj.Encoder:
    encoder = mj.load(args.checkpoint)
    if people is not None:
        check_encoder(args.gallery, people, encoder, args.checkpoint)
    return encoder


def say(*columns: object) -> None:
    """Print a line of columns, with escapes for characters that would end one or cannot be shown."""
    encoding = sys.stdout.encoding or "utf-8"
    line = "\t".join(mj.data.printable(str(column)) for column in columns)
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)  # whoever waits for a line gets it


# --- photographs ----------------------------------------------------------------------------------------------------


def photographs(paths: list[pathlib.Path]) -> list[pathlib.Path]:
    """The files that are given, and the images in folders that are."""
    inside = (reported(mj.data.photographs_in(path)) if path.is_dir() else [path] for path in paths)
    return list(dict.fromkeys(itertools.chain.from_iterable(inside)))


def of_people(folder: pathlib.Path) -> tuple[list[str], list[pathlib.Path]]:
    """Names and files of a folder with a sub-folder for each person."""
    files = reported(mj.data.photographs_of_people(folder))
    return [name_of(file.parent.name) for file in files], files


def reported(listing: mj.data.Listing) -> list[pathlib.Path]:
    """The files of a listing; those that are passed over are reported."""
    if report := listing.report():
        print(f"metricjax recognize: {report}", file=sys.stderr)
    return listing.files


def embedded(encoder: mj.Encoder, files: list[pathlib.Path]) -> tuple[np.ndarray, list[int]]:
    """Embeddings of the photographs that can be read, and the indices of these files; a warning names each other."""
    embeddings = encoder(files)
    readable = np.flatnonzero(np.isfinite(embeddings[:, 0]))
    if not len(readable):
        first = mj.data.printable(str(files[0]))
        raise ValueError(f"none of the photographs can be read ({first}{', …' if len(files) > 1 else ''})")
    return embeddings[readable], readable.tolist()


# --- commands -------------------------------------------------------------------------------------------------------


def enrol(args) -> None:
    people = gallery_file.read(args.gallery) if args.gallery.exists() else None
    if args.name is not None:
        files = photographs(args.images)
        names = [name_of(args.name)] * len(files)
    else:
        folders = [of_people(folder) for folder in args.images]
        names = [name for folder in folders for name in folder[0]]
        files = [file for folder in folders for file in folder[1]]
    encoder = encoder_for(args, people)
    embeddings, readable = embedded(encoder, files)
    enrolled = [names[i] for i in readable]
    recognizer = Recognizer(encoder, args.gallery, args.checkpoint)
    before, people = recognizer.enrol(enrolled, embeddings)  # as it is now; it may have changed meanwhile
    for name in sorted(set(names) - set(enrolled)):
        print(f"metricjax recognize: no photograph of {name} can be read, and none is enrolled", file=sys.stderr)
    new = len(people.enrolled) - len(before.enrolled)
    say(f"{len(enrolled)} photographs of {len(set(enrolled))} people enrolled, {new} of them new")
    say(f"{args.gallery} holds {len(people.enrolled)} people")


def remove(args) -> None:
    name = name_of(args.name)
    gallery_file.change(args.gallery, lambda people: people.remove(name))
    say(f"{args.name} is removed from {args.gallery}")


def show(args) -> None:
    people = gallery_file.read(args.gallery)
    counts = dict(zip(people.names, people.photographs, strict=True))
    for name in people.enrolled:
        say(name, "1 photograph" if counts[name] == 1 else f"{counts[name]} photographs")
    threshold = f"{people.threshold:.4f}, {people.calibrated}" if people.calibrated else "not calibrated"
    say(f"{len(people.enrolled)} people; threshold: {threshold}")


def check_anybody(args, people: gallery_file.People) -> None:
    if not people.enrolled:
        raise ValueError(f"{args.gallery} holds nobody; `enrol` somebody first")


def threshold_of(args, people: gallery_file.People) -> float:
    if args.threshold is not None:
        return args.threshold
    if not people.calibrated:
        raise ValueError(f"{args.gallery} has no threshold yet; run `calibrate` on other people, or give --threshold")
    print(f"metricjax recognize: threshold {people.threshold:.4f}, {people.calibrated}", file=sys.stderr)
    return people.threshold


def identify(args) -> None:
    people, files = gallery_file.read(args.gallery), photographs(args.images)
    check_anybody(args, people)
    threshold = threshold_of(args, people)
    embeddings, readable = embedded(encoder_for(args, people), files)
    found = people.gallery.identify(jnp.asarray(embeddings), threshold)
    for index, who, score in zip(readable, found.ids[:, 0].tolist(), found.scores[:, 0].tolist(), strict=True):
        say(files[index], people.names[who] if who >= 0 else UNKNOWN, f"{score:.4f}")


def verify(args) -> None:
    people = None if args.gallery is None else gallery_file.read(args.gallery)
    threshold = args.threshold if people is None else threshold_of(args, people)
    embeddings, readable = embedded(encoder_for(args, people), args.images)
    if len(readable) < 2:
        raise ValueError("two photographs are needed")
    score = float(embeddings[0] @ embeddings[1])
    if threshold is None:
        told = "to tell whether that is the same person, give --threshold or --gallery"
        print(f"metricjax recognize: {told}", file=sys.stderr)
        print(f"{score:.4f}")
    else:
        print(f"{score:.4f}", "same" if score >= threshold else "different", sep="\t")


def calibrate(args) -> None:
    people = gallery_file.read(args.gallery)
    check_anybody(args, people)
    of, files = of_people(args.folder)
    if args.far is not None and len(files) > MOST_PAIRED:
        raise ValueError(
            f"{args.folder} holds {len(files)} photographs; --far takes {MOST_PAIRED} at most, for it compares all"
        )
    encoder = encoder_for(args, people)
    embeddings, readable = embedded(encoder, files)
    names = np.array(of)[readable]
    threshold, text = (at_far if args.far is not None else at_fpir)(args, people, embeddings, names)

    def calibrated(now: gallery_file.People) -> gallery_file.People:
        check_encoder(args.gallery, now, encoder, args.checkpoint)
        return dataclasses.replace(now, threshold=threshold, calibrated=text)

    gallery_file.change(args.gallery, calibrated)  # people may have come or gone since the threshold was found
    say(f"threshold {threshold:.4f}, {text}, is stored in {args.gallery}")


def at_far(args, people: gallery_file.People, embeddings: np.ndarray, names: np.ndarray) -> tuple[float, str]:
    labels = np.unique(names, return_inverse=True)[1]
    i, j = np.triu_indices(len(labels), 1)
    scores, same = (embeddings @ embeddings.T)[i, j], labels[i] == labels[j]
    if same.all() or not same.any():
        raise ValueError(f"{args.folder} holds no two people, or nobody twice; wanted pairs of both kinds")
    found = mj.metrics.calibrated_threshold(scores, np.stack([labels[i], labels[j]], axis=1), args.far)
    rates = mj.metrics.error_rates(scores, same, found.threshold)
    print(f"FAR {found.far:.3g} of {rates.impostors:,} impostor pairs of {labels.max() + 1} people")
    print(f"FRR {rates.frr:.3g} of {rates.genuine:,} genuine pairs")
    print("with 95 % confidence over people: threshold {:.4f} to {:.4f}".format(*found.threshold_interval), end="")
    print(", FAR of the one chosen {:.3g} to {:.3g}".format(*found.far_interval))
    passing = 1 - (1 - found.far) ** len(people.enrolled)
    print(f"of strangers searched among the {len(people.enrolled)} people enrolled, about {passing:.2%} will pass")
    return found.threshold, f"for a FAR of {args.far:g}"


def at_fpir(args, people: gallery_file.People, embeddings: np.ndarray, names: np.ndarray) -> tuple[float, str]:
    found = people.gallery.identify(jnp.asarray(embeddings))
    best = np.asarray(found.scores[:, 0])
    nobody = lambda rows: mj.metrics.Searches(np.zeros(len(rows), int), np.full(len(rows), -np.inf), best[rows])
    stranger = ~np.isin(names, people.enrolled)
    threshold = nobody(np.flatnonzero(stranger)).threshold_at_fpir(args.fpir)
    rows_of = [np.flatnonzero(names == name) for name in np.unique(names[stranger])]
    rng, drawn = np.random.default_rng(0), []
    for _ in range(1000):  # bootstrap over strangers
        rows = np.concatenate([rows_of[i] for i in rng.integers(len(rows_of), size=len(rows_of))])
        drawn.append(nobody(rows).threshold_at_fpir(max(args.fpir, 1 / len(rows))))
    low, high = np.quantile(drawn, (0.025, 0.975), method="inverted_cdf")
    passed = np.sum(best[stranger] >= threshold)
    print(f"{passed} of {stranger.sum()} photographs of {len(rows_of)} strangers pass")
    print(f"with 95 % confidence over strangers: threshold {low:.4f} to {high:.4f}")
    if not stranger.all():
        who = np.array(people.names)[found.ids[:, 0]]
        missed = np.sum(((who != names) | (best < threshold))[~stranger])
        print(f"{missed} of {np.sum(~stranger)} photographs of people enrolled are not found")
    return threshold, f"for an FPIR of {args.fpir:g} with {len(people.enrolled)} people enrolled"


def serve(args) -> None:
    from metricjax.recognition import server  # of an extra of its own

    with server.bound(args.host, args.port) as at:  # before anything that takes long
        gallery_file.check_folder(args.gallery)
        people = gallery_file.read(args.gallery) if args.gallery.exists() else None
        recognizer = Recognizer(encoder_for(args, people), args.gallery, args.checkpoint, args.threshold)
        recognizer.ready()
        if not server.is_loopback(at):
            told = "there is no login and no encryption: whoever reaches this address may ask, enrol and remove"
            print(f"metricjax recognize: {told}", file=sys.stderr)
        server.run(recognizer, at, args.host, lambda address: say(f"{address} answers; Ctrl-C ends it"))


def trial(args) -> None:
    settings = (args.people, args.photographs, args.draws, args.seed)
    recognition_trial.run(encoder_for(args, None), args.checkpoint, args.dataset, *settings)


def arguments(argv=None) -> argparse.Namespace:
    parser = command_line.parser("recognize", __doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run, what: str, needs: str, name: str | None = None):
        added = commands.add_parser(name or run.__name__, help=what, description=what)
        added.set_defaults(run=run)
        encoder = "folder of a run of `metricjax train`, or a file of an encoder"
        for option, text in (("checkpoint", encoder), ("gallery", "file of people")):
            if option[0] in needs.lower():
                added.add_argument(f"--{option}", type=pathlib.Path, required=option[0] in needs, help=text)
        return added

    images: dict = {"nargs": "+", "type": pathlib.Path, "metavar": "IMAGE | FOLDER"}
    threshold: dict = {"type": float, "help": "the least score of one and the same person; default: the calibrated one"}
    add = command(enrol, "add people, or photographs of them; no training", "cg").add_argument
    add("images", **images, help="photographs of --name; or, without it, folders with a sub-folder for each person")
    add("--name", help="whose photographs they are")
    add = command(identify, "say who is in each photograph, or unknown", "cg").add_argument
    add("images", **images)
    add("--threshold", **threshold)
    add = command(verify, "say whether two photographs are of the same person", "cG").add_argument
    add("images", nargs=2, type=pathlib.Path, metavar="IMAGE")
    add("--threshold", **threshold)
    added = command(calibrate, "find the threshold for a rate of false alarms, and store it in the gallery", "cg")
    added.add_argument("folder", type=pathlib.Path, help="a sub-folder for each person, all new to the encoder")
    rate = added.add_mutually_exclusive_group(required=True).add_argument
    rate("--far", type=float, help="share of pairs of different people that may pass")
    rate("--fpir", type=float, help="share of searches of strangers that may find anybody")
    command(remove, "forget a person", "g").add_argument("--name", required=True)
    command(show, "say who is enrolled", "g", "list")
    add = command(serve, "answer in a browser: who that is, enrol, remove", "cg").add_argument
    add("--threshold", **threshold)
    add("--host", default="127.0.0.1", help="address to listen at; default: %(default)s, for this machine alone")
    add("--port", type=int, default=8000, help="default: %(default)s; 0: any that is free")
    add = command(trial, recognition_trial.__doc__.partition("\n")[0], "c").add_argument
    add("dataset", nargs="?", default="orl", help="orl (default), or a folder with a sub-folder for each person")
    add("--people", type=int, nargs="+", default=(5, 10), help="numbers of people to enrol")
    add("--photographs", type=int, nargs="+", default=(1, 3), help="numbers of photographs of each to enrol")
    add("--draws", type=int, default=200)
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = arguments(argv)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError) as error:  # the last says which extra to install
        sys.exit(f"metricjax recognize: {error}")
