"""Enrol a few of the people whom the encoder never saw, many times, and search everybody else's photographs.

Each draw takes some people and some photographs of each at random. Their other photographs have somebody to find; those
of all other people are of strangers. Searches of all draws are put together: there is one threshold for all draws, and
every search counts the same. Draws share photographs, so that the worth of the numbers depends on the number of
people, not of draws.
"""

import pathlib
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import metricjax as mj
from metricjax.commands import tables
from metricjax.ground import json_files
from metricjax.trained import people_of_run
from metricjax.trained.baseline import raw_pixels

__all__ = ["draws", "figure", "fnir", "never_seen", "run", "searched", "table"]

FPIRS = (0.01, 0.1)


def never_seen(encoder: mj.Encoder, run: pathlib.Path, dataset: str) -> tuple[mj.data.Faces, str]:
    """The people of the dataset on whom the run was tested; if it knows none of them, all on whom it was not trained.

    And a sentence on what is known of whom the encoder saw.
    """
    known, size = encoder.record, encoder.photograph
    if known is None:
        raise ValueError(f"{run} does not say whom its encoder was trained on; wanted a run, or a file saved of one")
    faces = mj.data.orl(size) if dataset == "orl" else mj.data.folder(dataset, size, at_least=1)
    new, sentence = people_of_run.new_to(known, run, faces)
    tested = new & people_of_run.among(faces.people, known["tested on"])
    return faces.of_people(tested if tested.any() else new), sentence


def draws(labels: np.ndarray, people: int, photographs: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """`count` times the photographs [people · photographs] that are enrolled, the same ones for the same seed."""
    rng, of = np.random.default_rng(seed), [np.flatnonzero(labels == k) for k in range(labels.max() + 1)]
    eligible = [k for k, rows in enumerate(of) if len(rows) > photographs]
    if len(eligible) < people or len(of) == people:
        raise ValueError(
            f"of {len(of)} people never seen, {len(eligible)} have more than {photographs} photographs; "
            f"wanted {people} of these, and one stranger at least"
        )
    for _ in range(count):
        chosen = rng.choice(eligible, people, replace=False)
        yield np.concatenate([rng.choice(of[k], photographs, replace=False) for k in chosen])


def searched(embeddings: np.ndarray, labels: np.ndarray, enrolled: np.ndarray, people: int) -> mj.metrics.Searches:
    """All photographs but those enrolled, searched in the gallery of these."""
    gallery = mj.search.Gallery.empty(people, embeddings.shape[1])
    gallery = gallery.enrol(jnp.asarray(embeddings[enrolled]), jnp.asarray(labels[enrolled]))
    scores = embeddings @ np.asarray(gallery.templates).T
    queries = np.delete(np.arange(len(labels)), enrolled)
    return mj.metrics.searches(scores[queries], labels[queries], np.asarray(gallery.ids))


def fnir(found: mj.metrics.Searches, fpir: float) -> float | None:
    """None where there are too few strangers to tell."""
    return found.fnir_at_fpir(fpir) if fpir * found.non_mated >= 1 else None


def run(
    encoder: mj.Encoder,
    checkpoint: pathlib.Path,
    dataset: str,
    people: Sequence[int],
    photographs: Sequence[int],
    count: int,
    seed: int,
) -> dict:
    """Print the table; leave recognition.json and recognition.png in the folder of the run, or beside the file."""
    faces, sentence = never_seen(encoder, checkpoint, dataset)
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    print(sentence)
    embeddings = {"embeddings": encoder(faces.images), "raw pixels": raw_pixels(faces.images)}
    settings = [(size, each, way) for size in people for each in photographs for way in embeddings]
    results, curves = [], {}
    with tqdm(total=len(settings) * count, desc="trial", unit=" draws") as bar:
        for size, each, way in settings:
            drawn = []
            for enrolled in draws(faces.labels, size, each, count, seed):
                drawn.append(searched(embeddings[way], faces.labels, enrolled, size))
                bar.update()
            found = mj.metrics.Searches(*(np.concatenate(part) for part in zip(*drawn, strict=True)))
            results.append(
                {"people enrolled": size, "photographs of each": each, "compared by": way}
                | {"rank-1": found.cmc((1,))["rank-1"]}
                | {f"FNIR at FPIR {fpir:g}": fnir(found, fpir) for fpir in FPIRS}
                | {"mated": found.mated, "non-mated": found.non_mated}
            )
            fpirs = np.geomspace(1 / min(found.non_mated, 1000), 1, 60)
            curves[f"{size} people, {each} photographs, {way}"] = fpirs, [fnir(found, fpir) for fpir in fpirs]
    report = {"dataset": dataset, "people": faces.people, "draws": count, "seed": seed, "results": results}
    json_files.write(folder / "recognition.json", {**report, "trained on": sentence})
    figure(curves).savefig(folder / "recognition.png", dpi=120)
    never = "" if sentence.startswith(people_of_run.NOT_KNOWN) else " never seen"
    print(f"{len(faces.people)} people{never}, {len(faces.labels)} photographs, {count} draws\n\n{table(results)}")
    print(f"\nrecognition.json and recognition.png are in {folder}")
    return report


def table(results: list[dict]) -> str:
    rows = [list(results[0]), ["---"] * len(results[0]), *(list(map(tables.shown, row.values())) for row in results)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def figure(curves: dict) -> Figure:
    """FNIR at rank 1 against FPIR, a colour for each setting; of raw pixels dashed."""
    drawn = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = drawn.subplots()
    for i, (name, (fpirs, fnirs)) in enumerate(curves.items()):
        axes.plot(fpirs, fnirs, f"C{i // 2}" + ("--" if "raw pixels" in name else "-"), label=name)
    axes.set(xscale="log", ylim=(0, 1), xlabel="FPIR: strangers who are taken for somebody")
    axes.set(ylabel="FNIR: people enrolled who are not found")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7)
    return drawn
