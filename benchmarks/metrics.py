"""What does evaluation cost, next to scikit-learn and PyTorch Metric Learning where they can do it?

    python -m benchmarks.metrics [retrieval:10000x128 pair_scores:45000x128 nmi:10000 ...] [--rounds 5]

A name of `mj.metrics` and a size each; without any, those of `SIZES`. Sizes are

- rows x features of embeddings, five rows of each person; `both_ways` takes four of them as captions of the fifth;
- queries x gallery x features for `identification`: half of the queries have a mate in the gallery, all other rows of
  it are distractors; queries x gallery for what takes a table of their scores;
- the number of scores of pairs, of which one in a hundred is genuine, or of labels that are compared with clusters.

Where a peer gives the same number, it has to agree before anything is timed. A peer that is not installed, or would
have to be waited for (`PATIENCE`), is left out. "MiB" is the most of the machine's memory that a run holds beyond what
it found, its result included. Of what compares rows, "product" is the time of the bare `x @ y.T`, in panels of 128
queries within one program, and "ratio" how many times that ours takes.
"""

import argparse
import importlib.util
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import metricjax as mj
from benchmarks.report import bars, fastest, peak, save

EACH = 5
FARS = np.geomspace(1e-3, 1, 13)
PML, SKLEARN = "pytorch-metric-learning", "scikit-learn"
PATIENCE = {PML: 20_000, SKLEARN: 5_000}  # rows of embeddings that a peer is given at most
SIZES = {
    "retrieval": ("2000x128", "10000x128", "60000x128"),
    "both_ways": ("10000x128",),
    "compact_retrieval": ("10000x128",),
    "pair_scores": ("5000x128", "10000x128", "20000x128", "45000x128"),
    "roc_bands": ("5000x128",),
    "calibrated_pair_threshold": ("5000x128",),
    "group_pair_rates": ("10000x128",),
    "hardest_pairs": ("10000x128",),
    "embedding_health": ("10000x128",),
    "health": ("512x128",),
    "templates": ("50000x128",),
    "identification": ("1000x100000x128",),
    **dict.fromkeys(("cmc", "fnir_at_fpir"), ("1000x10000",)),
    **dict.fromkeys(("roc", "tar_at_far", "equal_error_rate", "error_rates", "hter", "decidability"), ("1000000",)),
    **dict.fromkeys(("k_fold_accuracy", "k_fold_tar", "error_versus_reject", "group_error_rates"), ("1000000",)),
    "calibrated_threshold": ("10000",),
    **dict.fromkeys(("nmi", "ami", "ari", "v_measure", "pairwise_f1", "bcubed_f1"), ("10000",)),
}


class Case(NamedTuple):
    """What is timed, how many things it counts, those of its numbers that a peer gives too, the peer, the product."""

    ours: Callable
    count: int
    numbers: Callable = np.atleast_1d
    package: str | None = None
    peer: Callable | None = None
    product: Callable | None = None

    def beside(self, package: str, peer: Callable, rows: int = 0) -> "Case":
        there = importlib.util.find_spec({PML: "pytorch_metric_learning", SKLEARN: "sklearn"}[package])
        return self._replace(package=package, peer=peer) if there and rows <= PATIENCE[package] else self


# --- of embeddings ----------------------------------------------------------------------------------------------------


def people(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) // EACH)
    centres = rng.standard_normal((n // EACH + 1, d), np.float32)
    return centres[labels] + rng.standard_normal((n, d), np.float32), labels


def captions(z: np.ndarray, y: np.ndarray) -> Callable:
    first = np.zeros(len(y), bool)
    first[np.unique(y, return_index=True)[1]] = True
    return partial(mj.metrics.both_ways, z[first], z[~first], labels=y[first], reference_labels=y[~first])


OF_EMBEDDINGS = {  # what is timed, of embeddings and labels
    "retrieval": lambda *of: partial(mj.metrics.retrieval, *of, ks=(1,)),
    "both_ways": captions,
    "compact_retrieval": lambda *of: partial(mj.metrics.compact_retrieval, *of),
    "pair_scores": lambda *of: partial(mj.metrics.pair_scores, *of),
    "roc_bands": lambda z, y: partial(mj.metrics.roc_bands, z, y, FARS[len(y) * (len(y) - 1) // 2 * FARS >= 100]),
    "calibrated_pair_threshold": lambda *of: partial(mj.metrics.calibrated_pair_threshold, *of, 0.001),
    "group_pair_rates": lambda z, y: partial(mj.metrics.group_pair_rates, z, y, y % 2, 0.5),
    "hardest_pairs": lambda *of: partial(mj.metrics.hardest_pairs, *of),
    "embedding_health": lambda *of: partial(mj.metrics.embedding_health, *of),
    "health": lambda *of: partial(jax.jit(mj.metrics.health), *of),
    "templates": lambda z, y: partial(mj.metrics.templates, z, y, np.arange(len(y))),
}
OF_ROWS = ("health", "templates")  # the others of them compare rows with all rows


def of_embeddings(name: str, n: int, d: int) -> Case:
    z, y = people(n, d)
    case = Case(OF_EMBEDDINGS[name](z, y), n)
    if name not in OF_ROWS:
        case = case._replace(product=product(z, z))
    if name == "retrieval":
        numbers = lambda found: [found["recall@1"], found["r_precision"], found["map@r"]]
        return case._replace(numbers=numbers).beside(PML, partial(calculated, z, y), n)
    if name == "pair_scores":
        case = case._replace(numbers=lambda found: [found.roc.auc()], count=n * (n - 1) // 2)
        return case.beside(SKLEARN, partial(all_listed, z, y), n)
    return case


def product(queries: np.ndarray, rows: np.ndarray) -> Callable:
    """The product of all queries with all rows, panel by panel; one number of each panel is kept."""
    height = 128 if len(queries) >= 128 else len(queries)
    panels = jnp.asarray(np.resize(queries, (-(-len(queries) // height), height, queries.shape[1])))
    last = lambda panel, rows: lax.optimization_barrier(panel @ rows.T)[0, 0]
    run = jax.jit(lambda panels, rows: lax.scan(lambda best, x: (jnp.maximum(best, last(x, rows)), None), 0.0, panels))
    return partial(run, panels, jnp.asarray(rows))


def calculated(z: np.ndarray, y: np.ndarray) -> list[float]:
    """What PyTorch Metric Learning finds, with nearest neighbours by PyTorch."""
    import torch
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    measures = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    knn = CustomKNN(CosineSimilarity(), batch_size=1024)
    calculator = AccuracyCalculator(measures, k="max_bin_count", device=torch.device("cpu"), knn_func=knn)
    found = calculator.get_accuracy(torch.tensor(z), torch.tensor(y))
    return [found[measure] for measure in measures]


def all_listed(z: np.ndarray, y: np.ndarray) -> list[float]:
    """The AUC by scikit-learn, from a list of the scores of all pairs."""
    from sklearn.metrics import roc_auc_score, roc_curve

    first, second = np.triu_indices(len(z), 1)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    same, scores = y[first] == y[second], (unit @ unit.T)[first, second]
    roc_curve(same, scores)
    return [roc_auc_score(same, scores)]


# --- of queries and a gallery -----------------------------------------------------------------------------------------


def identification(q: int, g: int, d: int) -> Case:
    """Everybody's first row is a query; half have their second in the gallery."""
    z, y = people(q * EACH, d)
    rows = np.argsort(y, kind="stable").reshape(q, EACH)
    mates = rows[: q // 2, 1]
    gallery = np.concatenate([z[mates], np.random.default_rng(1).standard_normal((g - len(mates), d), np.float32)])
    names = np.concatenate([y[mates], q + np.arange(g - len(mates))])
    run = partial(mj.metrics.identification, z[rows[:, 0]], y[rows[:, 0]], gallery, names)
    return Case(run, q * g, product=product(z[rows[:, 0]], gallery))


OF_SEARCHES = {"cmc": mj.metrics.cmc, "fnir_at_fpir": partial(mj.metrics.fnir_at_fpir, fpir=0.1)}


def of_searches(name: str, q: int, g: int) -> Case:
    scores = np.random.default_rng(0).standard_normal((q, g), np.float32)
    return Case(partial(OF_SEARCHES[name], scores, np.arange(q), np.arange(g) + q // 2), q * g)


# --- of scores of pairs, and of clusters ------------------------------------------------------------------------------

OF_SCORES = {  # what is timed, of scores and whether pairs are genuine
    "roc": lambda *of: lambda: mj.metrics.roc(*of).auc(),
    "tar_at_far": lambda *of: partial(mj.metrics.tar_at_far, *of, 0.01),
    "equal_error_rate": lambda *of: partial(mj.metrics.equal_error_rate, *of),
    "error_rates": lambda *of: partial(mj.metrics.error_rates, *of, 1.0),
    "hter": lambda scores, same: partial(mj.metrics.hter, scores, same, scores[::-1], same[::-1]),
    "decidability": lambda *of: partial(mj.metrics.decidability, *of),
    "k_fold_accuracy": lambda *of: partial(mj.metrics.k_fold_accuracy, *of),
    "k_fold_tar": lambda *of: partial(mj.metrics.k_fold_tar, *of, 0.01),
    "error_versus_reject": lambda scores, same: partial(mj.metrics.error_versus_reject, scores, same, -scores, 0.01),
    "group_error_rates": lambda *of: partial(mj.metrics.group_error_rates, *of, np.arange(len(of[0])) % 10, 1),
    "calibrated_threshold": lambda scores, _: partial(
        mj.metrics.calibrated_threshold, scores, pairs_of(len(scores)), 0.1
    ),
}


def pairs_of(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(n // EACH, size=(n, 2))


def of_scores(name: str, n: int) -> Case:
    same = np.arange(n) % 100 == 0
    scores = np.random.default_rng(0).standard_normal(n, np.float32) + 3 * same
    case = Case(OF_SCORES[name](scores, same), n)
    return case.beside(SKLEARN, partial(curve_of, same, scores)) if name == "roc" else case


def curve_of(same: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import auc, roc_curve

    return auc(*roc_curve(same, scores)[:2])


OF_CLUSTERS = {  # and what they are called in scikit-learn
    "nmi": "normalized_mutual_info_score",
    "ami": "adjusted_mutual_info_score",
    "ari": "adjusted_rand_score",
    "v_measure": "v_measure_score",
    "pairwise_f1": None,
    "bcubed_f1": None,
}


def of_clusters(name: str, n: int) -> Case:
    rng = np.random.default_rng(0)
    true = np.arange(n) // EACH
    found = np.where(rng.random(n) < 0.8, true, rng.integers(0, n // EACH + 1, n))
    case = Case(partial(getattr(mj.metrics, name), true, found), n)
    theirs = lambda: getattr(importlib.import_module("sklearn.metrics"), OF_CLUSTERS[name])(true, found)
    return case.beside(SKLEARN, theirs) if OF_CLUSTERS[name] else case


MADE = {
    "identification": identification,
    **{name: partial(of_embeddings, name) for name in OF_EMBEDDINGS},
    **{name: partial(of_searches, name) for name in OF_SEARCHES},
    **{name: partial(of_scores, name) for name in OF_SCORES},
    **{name: partial(of_clusters, name) for name in OF_CLUSTERS},
}


def asked(text: str) -> tuple[str, str]:
    """NAME:SIZE."""
    name, _, size = text.partition(":")
    if name not in SIZES:
        raise argparse.ArgumentTypeError(f"no such metric: {name!r}; there are {', '.join(SIZES)}")
    if not re.fullmatch(re.sub(r"\d+", r"\\d+", SIZES[name][0]), size):
        raise argparse.ArgumentTypeError(f"the size of {name} is {size!r}; wanted one such as {SIZES[name][0]}")
    return name, size


# --- measuring --------------------------------------------------------------------------------------------------------


def measured(case: Case, rounds: int) -> dict:
    runs, row = {"ours": case.ours}, {"peer": case.package, "count": case.count}
    if case.peer:
        mine, theirs = case.numbers(case.ours()), case.peer()
        np.testing.assert_allclose(mine, theirs, rtol=1e-3)  # rounding orders scores that are all but equal
        row["differ"] = float(np.max(np.abs(np.subtract(mine, theirs))))
        runs["peer"] = case.peer
    if case.product:
        runs["product"] = case.product
    seconds = fastest(runs, rounds)
    row |= {f"{name}_ms": 1e3 * time for name, time in seconds.items()} | {"MiB": peak(case.ours)}
    if case.product:
        row["ratio"] = seconds["ours"] / seconds["product"]
    return row | {"per_second": case.count / seconds["ours"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [(name, size) for name, sizes in SIZES.items() for size in sizes]
    parser.add_argument("cases", nargs="*", type=asked, metavar="NAME:SIZE", default=every)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = []
    print(f"{'':36}{'ours':>14}{'MiB':>8}{'product':>14}{'ratio':>7}{'peer':>14}{'differ':>9}{'a second':>11}")
    for name, size in args.cases:
        case = MADE[name](*map(int, size.split("x")))
        rows.append(row := {"name": f"{name} {size}", **measured(case, args.rounds)})
        peer = f"{row['peer_ms']:11.1f} ms{row['differ']:9.0e}" if case.peer else f"{'–':>14}{'':9}"
        bare = f"{row['product_ms']:11.1f} ms{row['ratio']:7.2f}" if case.product else f"{'–':>14}{'':7}"
        memory = f"{row['MiB']:8.0f}" if row["MiB"] is not None else f"{'–':>8}"
        timed = f"{row['ours_ms']:11.1f} ms{memory}{bare}{peer}{row['per_second']:11.1e}"
        print(f"{row['name']:36}{timed}  {case.package or ''}", flush=True)
    legend = {"ours_ms": "ours", "product_ms": "the bare product", "peer_ms": "peer"}
    figure = bars(rows, "name", legend, "milliseconds", log=True)
    save("metrics", rows, figure, sorted({row["peer"] for row in rows} - {None}))


if __name__ == "__main__":
    main()
