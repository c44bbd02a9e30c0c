"""What does evaluation cost, next to scikit-learn and PyTorch Metric Learning where they can do it?

    python -m benchmarks.metrics [--retrieval 10000x128 60000x128 ...] [--pairs 5000x128 ... 45000x128] [--listed 5000]
                                 [--bands 5000x128 ...] [--searches 1000x100000x128 ...] [--labels 10000 ...]
                                 [--rounds 5] [--peer-rows 20000]

- retrieval, rows x features: `mj.metrics.retrieval`, and `AccuracyCalculator` (precision at 1, R-precision, MAP@R) with
  its nearest neighbours by PyTorch;
- pairs, rows x features: `mj.metrics.pair_scores`, which sees n(n − 1)/2 pairs, 45000 rows a thousand million, and
  scikit-learn's `roc_curve` and `roc_auc_score` of the list of all scores, up to `--listed` rows;
- bands, rows x features: `mj.metrics.roc_bands` by 200 resamples of people;
- searches, queries x gallery x features: `mj.metrics.identification`, half of the queries with one mate in the gallery,
  all others in it distractors;
- clustering, labels: NMI, AMI and ARI, and scikit-learn's; BCubed.

Five rows of each person. Where a peer gives the same number, it has to agree before anything is timed. A peer that is
not installed, or is given too many rows to be waited for, is left out. Of what compares rows, "product" is the time of
the bare `x @ y.T`, in panels of 128 queries within one program, and "ratio" how many times that ours takes.
"""

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import metricjax as mj
from benchmarks.report import bars, fastest, save

EACH = 5
FARS = np.geomspace(1e-3, 1, 13)
PML, SKLEARN = "pytorch-metric-learning", "scikit-learn"


class Case(NamedTuple):
    """What is timed, how many things it counts, those of its numbers that a peer gives too, the peer, the product."""

    name: str
    count: int
    ours: Callable
    numbers: Callable = lambda found: [found]
    package: str | None = None
    peer: Callable | None = None
    product: Callable | None = None


def installed(package: str) -> bool:
    return importlib.util.find_spec({PML: "pytorch_metric_learning", SKLEARN: "sklearn"}[package]) is not None


def people(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) // EACH)
    centres = rng.standard_normal((n // EACH + 1, d), np.float32)
    return centres[labels] + rng.standard_normal((n, d), np.float32), labels


def product(queries: np.ndarray, rows: np.ndarray) -> Callable:
    """The product of all queries with all rows, panel by panel; one number of each panel is kept."""
    height = 128 if len(queries) >= 128 else len(queries)
    panels = jnp.asarray(np.resize(queries, (-(-len(queries) // height), height, queries.shape[1])))
    last = lambda panel, rows: lax.optimization_barrier(panel @ rows.T)[0, 0]
    run = jax.jit(lambda panels, rows: lax.scan(lambda best, x: (jnp.maximum(best, last(x, rows)), None), 0.0, panels))
    return partial(run, panels, jnp.asarray(rows))


def retrieval(n: int, d: int, most: int) -> Case:
    z, y = people(n, d)
    numbers = lambda found: [found["recall@1"], found["r_precision"], found["map@r"]]
    ours = partial(mj.metrics.retrieval, z, y, ks=(1,))
    case = Case(f"retrieval {n}x{d}", n, ours, numbers, product=product(z, z))
    if n > most or not installed(PML):
        return case
    import torch
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    measures = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    knn = CustomKNN(CosineSimilarity(), batch_size=1024)
    calculator = AccuracyCalculator(measures, k="max_bin_count", device=torch.device("cpu"), knn_func=knn)
    found = partial(calculator.get_accuracy, torch.tensor(z), torch.tensor(y))
    return case._replace(package=PML, peer=lambda: [found()[measure] for measure in measures])


def pairs(n: int, d: int, listed: int) -> Case:
    z, y = people(n, d)
    count, ours, numbers = n * (n - 1) // 2, lambda: mj.metrics.pair_scores(z, y), lambda p: [p.roc.auc()]
    case = Case(f"pair_scores {n}x{d}", count, ours, numbers, product=product(z, z))
    if n > listed or not installed(SKLEARN):
        return case
    from sklearn.metrics import roc_auc_score, roc_curve

    def all_listed():
        first, second = np.triu_indices(n, 1)
        unit = z / np.linalg.norm(z, axis=1, keepdims=True)
        same, scores = y[first] == y[second], (unit @ unit.T)[first, second]
        roc_curve(same, scores)
        return [roc_auc_score(same, scores)]

    return case._replace(package=SKLEARN, peer=all_listed)


def bands(n: int, d: int) -> Case:
    z, y = people(n, d)
    seen = n * (n - 1) // 2
    return Case(f"roc_bands {n}x{d}", 200 * seen, partial(mj.metrics.roc_bands, z, y, FARS[FARS * seen >= 100]))


def identification(q: int, g: int, d: int) -> Case:
    """Everybody's first row is a query; half have their second in the gallery."""
    z, y = people(q * EACH, d)
    rows = np.argsort(y, kind="stable").reshape(q, EACH)
    mates = rows[: q // 2, 1]
    gallery = np.concatenate([z[mates], np.random.default_rng(1).standard_normal((g - len(mates), d), np.float32)])
    names = np.concatenate([y[mates], q + np.arange(g - len(mates))])
    run = partial(mj.metrics.identification, z[rows[:, 0]], y[rows[:, 0]], gallery, names)
    return Case(f"identification {q}x{g}x{d}", q * g, run, product=product(z[rows[:, 0]], gallery))


def clustering(n: int) -> list[Case]:
    rng = np.random.default_rng(0)
    true = np.arange(n) // EACH
    found = np.where(rng.random(n) < 0.8, true, rng.integers(0, n // EACH + 1, n))
    names = {"nmi": "normalized_mutual_info", "ami": "adjusted_mutual_info", "ari": "adjusted_rand", "bcubed_f1": None}
    cases = []
    for name, theirs in names.items():
        case = Case(f"{name} {n}", n, partial(getattr(mj.metrics, name), true, found), np.atleast_1d)
        if theirs and installed(SKLEARN):
            from sklearn import metrics

            case = case._replace(package=SKLEARN, peer=partial(getattr(metrics, f"{theirs}_score"), true, found))
        cases.append(case)
    return cases


def measured(case: Case, rounds: int) -> dict:
    runs, row = {"ours": case.ours}, {"name": case.name, "peer": case.package, "count": case.count}
    if case.peer:
        mine, theirs = case.numbers(case.ours()), case.peer()
        np.testing.assert_allclose(mine, theirs, rtol=1e-3)  # rounding orders scores that are all but equal
        row["differ"] = float(np.max(np.abs(np.subtract(mine, theirs))))
        runs["peer"] = case.peer
    if case.product:
        runs["product"] = case.product
    seconds = fastest(runs, rounds)
    row |= {f"{name}_ms": 1e3 * time for name, time in seconds.items()}
    if case.product:
        row["ratio"] = seconds["ours"] / seconds["product"]
    return row | {"per_second": case.count / seconds["ours"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retrieval", nargs="*", default=["2000x128", "10000x128", "60000x128"])
    parser.add_argument("--pairs", nargs="*", default=["5000x128", "10000x128", "20000x128", "45000x128"])
    parser.add_argument("--listed", type=int, default=5000, help="rows of which scikit-learn gets a list of all pairs")
    parser.add_argument("--peer-rows", type=int, default=20000, help="rows that PyTorch Metric Learning is given")
    parser.add_argument("--bands", nargs="*", default=["5000x128"])
    parser.add_argument("--searches", nargs="*", default=["1000x100000x128"])
    parser.add_argument("--labels", nargs="*", type=int, default=[10000])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    numbers = lambda shape: map(int, shape.split("x"))
    # Made one at a time, so that no two sets are in memory.
    makers = [
        *(lambda s=s: [retrieval(*numbers(s), args.peer_rows)] for s in args.retrieval),
        *(lambda s=s: [pairs(*numbers(s), args.listed)] for s in args.pairs),
        *(lambda s=s: [bands(*numbers(s))] for s in args.bands),
        *(lambda s=s: [identification(*numbers(s))] for s in args.searches),
        *(partial(clustering, n) for n in args.labels),
    ]
    rows = []
    print(f"{'':32}{'ours':>14}{'product':>14}{'ratio':>7}{'peer':>14}{'differ':>9}{'a second':>11}")
    for case in (case for make in makers for case in make()):
        rows.append(row := measured(case, args.rounds))
        peer = f"{row['peer_ms']:11.1f} ms{row['differ']:9.0e}" if case.peer else f"{'–':>14}{'':9}"
        bare = f"{row['product_ms']:11.1f} ms{row['ratio']:7.2f}" if case.product else f"{'–':>14}{'':7}"
        timed = f"{row['ours_ms']:11.1f} ms{bare}{peer}{row['per_second']:11.1e}"
        print(f"{case.name:32}{timed}  {case.package or ''}", flush=True)
    legend = {"ours_ms": "ours", "product_ms": "the bare product", "peer_ms": "peer"}
    figure = bars(rows, "name", legend, "milliseconds", log=True)
    save("metrics", rows, figure, sorted({row["peer"] for row in rows} - {None}))


if __name__ == "__main__":
    main()
