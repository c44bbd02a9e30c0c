"""What compact embeddings cost: retrieval by prefix and by precision, in one table."""

from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from metricjax import similarities
from metricjax.metrics.retrieval import retrieval
from metricjax.metrics.sets import check_set, positive_ints
from metricjax.search.codes import Codes, compact
from metricjax.search.neighbours import top_k

__all__ = ["Rows", "compact_retrieval"]

PRECISIONS = ("float32", "int8", "binary", "hamming")


class Rows(list):
    """Dictionaries with the same keys, which print as a table; `pandas.DataFrame(rows)` takes them."""

    def __repr__(self) -> str:
        names = list(self[0]) if self else []
        cells = [names, *([_shown(row[name]) for name in names] for row in self)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        line = lambda row: "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        return "\n".join(map(line, cells))


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def compact_retrieval(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    prefixes: Sequence[int] | None = None,
    precisions: Sequence[Literal["float32", "int8", "binary", "hamming"]] = ("float32", "int8", "binary"),
    ks: Sequence[int] = (1,),
    rescore_multiplier: int = 4,
    ranges: ArrayLike | None = None,
    references: ArrayLike | None = None,
    reference_labels: ArrayLike | None = None,
) -> Rows:
    """Which prefix and which precision are good enough: measures of `retrieval` for each, with bytes of a reference.

    Every row is a query, by its cosines with all other rows, or with `references`. Queries stay floats; references are
    what `search.compact` makes of their first features. For each prefix and precision there is a dictionary:

    - `features`, `precision`, and `bytes` of a reference;
    - `recall@k`, `r_precision` and `map@r`, as `retrieval` defines them, of the ranking by these references alone;
    - `rescored recall@k`: the same of the neighbours that `search.top_k(coarse=…)` finds, where they only choose
      candidates, which get the score of whole embeddings. Binary codes choose them by the Hamming distance.

    Args:
      prefixes: numbers of first features, as of a training by `mj.matryoshka`; default all features.
      precisions: "float32", "int8", "binary" (float queries with signs) or "hamming" (signs of both).
      rescore_multiplier: candidates for each neighbour.
      ranges: of the int8 codes, as `search.ranges` gives them; default those of the references.

    >>> import numpy as np
    >>> z = np.array([[0.9, -0.2, 0.3], [0.8, 0.1, -0.4], [-0.1, 0.9, 0.3], [0.2, 0.8, -0.1]], np.float32)
    >>> labels = np.array([0, 0, 1, 1])
    >>> compact_retrieval(z, labels, precisions=["int8"], references=z[1:3], reference_labels=labels[1:3])
    features  precision  bytes  recall@1  r_precision   map@r  rescored recall@1
           3       int8      3    1.0000       1.0000  1.0000             1.0000
    """
    x, labels = check_set(embeddings, labels)
    ks, d = positive_ints("ks", ks), x.shape[1]
    prefixes = (d,) if prefixes is None else positive_ints("prefixes", prefixes)
    if max(prefixes) > d:
        raise ValueError(f"prefixes are {prefixes}; wanted numbers from 1 to the {d} features")
    if not precisions or not set(precisions) <= set(PRECISIONS):
        raise ValueError(f"precisions are {tuple(precisions)}; wanted some of {', '.join(PRECISIONS)}")
    if (references is None) != (reference_labels is None):
        raise TypeError("one came of references and reference_labels; wanted both or neither")
    alone = references is None
    y, y_labels = (x, labels) if alone else check_set(references, reference_labels, "references", "reference_labels")
    ranges = None if ranges is None else jnp.asarray(ranges)
    rows = Rows()
    for features in prefixes:
        for precision in precisions:
            codes = _stored(y[:, :features], precision, None if ranges is None else ranges[:, :features])
            stored = codes.decoded if isinstance(codes, Codes) else codes
            queries, similarity = x[:, :features], similarities.cosine
            if precision == "hamming":  # whose scores are whole numbers, and so are ties exact
                queries, similarity = compact(queries, "binary").decoded, similarities.dot
            found = _retrieved(queries, labels, stored, y_labels, alone, ks, similarity)
            size = codes.bytes_per_row if isinstance(codes, Codes) else 4 * features
            row = {"features": features, "precision": precision, "bytes": size, **found}
            coarse = codes if isinstance(codes, Codes) else features
            for k, recall in _rescored(x, labels, y, y_labels, alone, ks, coarse, rescore_multiplier).items():
                row[f"rescored recall@{k}"] = recall
            rows.append(row)
    return rows


def _stored(y, precision: str, ranges):
    if precision == "float32":
        return y
    return compact(y, ranges=ranges) if precision == "int8" else compact(y, "binary")


def _retrieved(queries, labels, stored, stored_labels, alone: bool, ks, similarity) -> dict[str, float]:
    """Of the ranking of what is stored; a query is not among its own references, though these are other numbers."""
    if alone:
        numbers = np.unique(labels, return_inverse=True)[1]
        labels = stored_labels = np.stack([numbers, np.arange(len(numbers))], axis=1)
    how = {"same": _other_row if alone else None, "similarity": similarity, "ks": ks}
    found = retrieval(queries, labels, references=stored, reference_labels=stored_labels, **how)
    return {name: found[name] for name in (*(f"recall@{k}" for k in ks), "r_precision", "map@r")}


def _other_row(a, b):
    """Of (label, row): the same label, and not the same row, which is neither a match nor anything else."""
    match = a[0] == b[0]
    return match & (a[1] != b[1]), ~match


def _rescored(x, labels, y, y_labels, alone: bool, ks, coarse, multiplier: int) -> dict[int, float]:
    most = min(max(ks), len(y) - alone)
    found = top_k(x, y, most, exclude_self=alone, coarse=coarse, rescore_multiplier=multiplier)
    hits = np.asarray(found.indices >= 0) & (y_labels[np.asarray(found.indices)] == labels[:, None])
    classes, counts = np.unique(y_labels, return_counts=True)
    of_label = dict(zip(classes.tolist(), counts.tolist(), strict=True))
    counted = np.array([of_label.get(label, 0) > alone for label in labels.tolist()])
    return {k: float(np.mean(np.any(hits[counted, :k], axis=1))) for k in ks}
