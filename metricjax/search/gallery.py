"""Galleries: known people, one template each, in a fixed number of places."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, Integer

from metricjax.engine import sizes
from metricjax.engine.prototypes import known_labels
from metricjax.ground.checks import check_labels, check_per_row, check_rows
from metricjax.ground.files import read_arrays, write_arrays
from metricjax.ground.numerics import computing_dtype, existing, finite_rows, normalize, widen
from metricjax.ground.one_line import one_line
from metricjax.search.codes import Codes
from metricjax.search.codes import compact as compacted
from metricjax.search.compact_gallery import CompactGallery, Matches, identified

__all__ = ["ARRAYS", "Gallery", "Matches", "of_arrays"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gallery:
    """People to be found again, one template each: of the images of a person the weighted mean of x / ‖x‖, projected.

    Begin with `Gallery.empty`. Every method leaves its gallery as it is and returns a new one, eagerly or under `jit`
    (donate the old one there, and nothing is copied). Shapes depend on the capacity alone: people come and go without
    training and, as long as batches keep their size, without compiling. A batch is filled up with ids −1.

    sums: Σ w x / ‖x‖ over the images of the person in each place, in float32 (or float64), so that it does not matter
        how many of them come at a time.
    ids: who is in each place, 0 to 2³¹ − 2; −1 where it is free.
    overflow: how many people found no place, in all calls under `jit` together.

    As a pytree it may be saved like parameters, and grows by `metricjax.prototypes.add_classes(gallery,
    Gallery.empty(more, features))`. To search one that is split over devices by places, give `sums`, `where=ids >= 0`
    and `axis_name` to `top_k`.

    >>> import jax.numpy as jnp
    >>> gallery = Gallery.empty(capacity=4, features=2)
    >>> gallery = gallery.enrol(jnp.array([[1.0, 0.0], [0.0, 5.0], [0.0, 1.0]]), jnp.array([30, 30, 7]))
    >>> found = gallery.identify(jnp.array([[1.0, 1.0], [-1.0, 0.0]]), threshold=0.5)
    >>> found.ids.tolist(), found.scores.tolist()
    ([[30], [-1]], [[1.0], [0.0]])
    >>> gallery.verify(jnp.array([[1.0, 1.0], [1.0, 1.0]]), jnp.array([7, 8])).tolist()
    [0.7071, -inf]
    """

    sums: Float[Array, "c d"]
    ids: Int[Array, " c"]
    overflow: Int[Array, ""]

    def __repr__(self) -> str:
        return one_line(self)

    @classmethod
    def empty(cls, capacity: int, features: int, dtype: DTypeLike = jnp.float32) -> "Gallery":
        """Room for `capacity` people; sums are kept in float64 if that is the dtype, else in float32."""
        if not all(isinstance(size, int | np.integer) and size > 0 for size in (capacity, features)):
            raise ValueError(f"capacity is {capacity} and features {features}; wanted positive ints")
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"dtype is {dtype!r}; wanted a floating-point dtype")
        sums = jnp.zeros((capacity, features), computing_dtype(jnp.dtype(dtype)))
        return cls(sums, jnp.full(capacity, -1, jnp.int32), jnp.zeros((), jnp.int32))

    @property
    def templates(self) -> Float[Array, "c d"]:
        """The template in each place, of length 1; 0 in a free one and where the images of a person cancel."""
        return normalize(self.sums)

    def enrol(
        self,
        embeddings: Float[Array, "n d"],
        ids: Integer[Array, " n"],
        *,
        weights: Float[Array, " n"] | None = None,
    ) -> "Gallery":
        """With these images of the people `ids`: the known ones get better templates, new ones free places.

        Places are given in order of ids. ValueError if there are not enough; under `jit`, where that cannot be raised,
        the people of the highest ids go without, and are added to `overflow`.

        Args:
          weights: quality of each image, default 1. With ‖x‖ (as in MagFace and AdaFace) the template is the mean of x.
            Not enrolled are rows whose weight is not positive, or that hold NaN or infinity.
        """
        _check(self, "embeddings", embeddings, ids)
        check_per_row("weights", weights, len(embeddings), jnp.floating)
        enrolled = _enrolled(self, embeddings, ids, weights)
        if not isinstance(enrolled.overflow, jax.core.Tracer) and enrolled.overflow > self.overflow:
            without = int(enrolled.overflow - self.overflow)
            raise ValueError(f"ids has {without} new people too many for the {len(self.ids)} places of the gallery")
        return enrolled

    def remove(self, ids: Integer[Array, " n"]) -> "Gallery":
        """Without the people `ids`, whose places are free again; ids that are not enrolled change nothing."""
        _check_ids(ids, np.size(ids))
        return _removed(self, ids)

    def identify(
        self,
        queries: Float[Array, "q d"],
        threshold: ArrayLike | None = None,
        *,
        k: int = 1,
        coarse: Codes | int | None = None,
        rescore_multiplier: int = 4,
    ) -> Matches:
        """The `k` people whose templates are closest to each query; id −1 for those who score below `threshold`.

        Where fewer than k are enrolled, the rest has id −1 and score −∞, as all have for a query with NaN or infinity.
        Of equal scores the first place is first. Scores are exact to float32 on every platform, as those of `verify`
        are. Memory is linear in the queries, see `top_k`. The threshold may be that of
        `metrics.identification(...).threshold_at_fpir`. With `coarse`, as in `top_k`, only candidates of a first pass
        are scored: people closest by their first features, or by `compact("binary").codes`.
        """
        return identified(queries, self.sums, self.ids, threshold, k, coarse, rescore_multiplier)

    def compact(
        self, precision: Literal["int8", "binary"] = "int8", *, ranges: Float[Array, "2 d"] | None = None
    ) -> CompactGallery:
        """Its templates in a quarter or a thirty-second of the memory, to identify only; see `search.compact`."""
        return CompactGallery(compacted(self.templates, precision, ranges=ranges, where=self.ids >= 0), self.ids)

    def verify(self, queries: Float[Array, "q d"], ids: Integer[Array, " q"]) -> Float[Array, " q"]:
        """The cosine of each query with the template of the person it claims to be; −∞ for people who are not enrolled.

        A query with NaN or infinity scores −∞ too.
        """
        _check(self, "queries", queries, ids)
        return _verified(self, queries, ids)

    def save(self, path: str | PathLike) -> None:
        """To one file, in NumPy's npz format, under exactly this name: whole, or not at all.

        A file of that name is replaced when the new one is on the disk, and stays where that fails. ValueError, and no
        file, for what `load` would refuse.
        """
        arrays = {name: np.asarray(getattr(self, name)) for name in ARRAYS}
        of_arrays(arrays)
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: str | PathLike) -> "Gallery":
        """The gallery that `save` wrote, as a digest in the file proves (older files, without one, are read too).

        ValueError that names the file and what is wrong if it does not hold a gallery, or a damaged one.
        """
        arrays = read_arrays(path)
        try:
            return of_arrays(arrays)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from None


ARRAYS = ("sums", "ids", "overflow")


def of_arrays(arrays: Mapping[str, np.ndarray]) -> Gallery:
    """The gallery of these arrays; ValueError that says which of them cannot belong to one."""
    if sorted(arrays) != sorted(ARRAYS):
        raise ValueError(f"holds {sorted(arrays)}; wanted a gallery: ids, overflow and sums")
    sums, ids, overflow = (arrays[name] for name in ARRAYS)
    kinds = sums.dtype in (np.float32, np.float64) and ids.dtype == overflow.dtype == np.int32
    if sums.ndim != 2 or not sums.size or ids.shape != sums.shape[:1] or overflow.shape or not kinds:
        got = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in sorted(arrays.items()))
        raise ValueError(f"holds {got}; wanted ids int32[c], overflow int32[], sums of floats [c, d]")
    with np.errstate(over="ignore"):  # in JAX's 32 bits, what is finite in 64 may not be so
        gallery = Gallery(*map(jnp.asarray, (sums, ids, overflow)))
    people = ids[ids >= 0]
    sound = {
        "sums that are not finite": np.all(np.isfinite(gallery.sums)),
        "sums in free places": not np.any(sums[ids < 0]),
        "ids that nobody can have": np.all((ids >= -1) & (ids < np.iinfo(np.int32).max)),
        "one id twice": len(np.unique(people)) == len(people),
        "a negative overflow": overflow >= 0,
    }
    for problem, absent in sound.items():
        if not absent:
            raise ValueError(f"holds {problem}")
    return gallery


def _check(gallery: Gallery, name: str, rows: Any, ids: Any) -> None:
    check_rows(name, rows)
    if rows.shape[1] != gallery.sums.shape[1]:
        raise ValueError(f"{name} has {rows.shape[1]} features, the gallery {gallery.sums.shape[1]}; they must agree")
    _check_ids(ids, rows.shape[0])


def _check_ids(ids: Any, rows: Any) -> None:
    check_labels("ids", ids, rows)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"ids has dtype {ids.dtype}; wanted integers")
    if ids.ndim != 1:
        raise ValueError(f"ids has shape {ids.shape}; wanted one id for each of the {rows} rows")
    # JAX would silently cut these to 32 bits, and one person might become another.
    if isinstance(ids, np.ndarray) and ids.size and not -(2**31) <= ids.min() <= ids.max() < 2**31 - 1:
        raise ValueError(f"ids go from {ids.min()} to {ids.max()}; wanted at most 2³¹ − 2")


def _places(gallery: Gallery, ids: Int[Array, " n"]) -> Int[Array, " n"]:
    """Where the people `ids` are; the capacity for those who are not there, and for −1.

    The gallery is never sorted: a few ids, or an unknown number of them, are compared with all of it; more are sorted
    to look up everybody in them.
    """
    n, capacity = ids.shape[0], len(gallery.ids)
    numbers = jnp.arange(capacity, dtype=jnp.int32)
    if not isinstance(n, int) or n <= sizes.ids_to_compare():
        return lax.map(lambda i: jnp.min(jnp.where((gallery.ids == i) & (i >= 0), numbers, capacity)), ids)
    asked = jnp.sort(jnp.append(ids, jnp.iinfo(jnp.int32).max))  # which is nobody's id: no index is too large
    at = jnp.searchsorted(asked, gallery.ids)
    at = jnp.where((asked[at] == gallery.ids) & (gallery.ids >= 0), at, n + 1)
    places = jnp.full(n + 1, capacity, jnp.int32).at[at].min(numbers, mode="drop")
    return places[jnp.searchsorted(asked, ids)]


@jax.jit(inline=True)
def _enrolled(gallery: Gallery, embeddings, ids, weights) -> Gallery:
    x = widen(embeddings)
    weights = jnp.ones(len(x), x.dtype) if weights is None else weights.astype(x.dtype)
    counts = (weights > 0) & jnp.isfinite(weights) & finite_rows(x)
    images = normalize(existing(x, counts)) * jnp.where(counts, weights, 0)[:, None]
    ids = known_labels(ids, counts)

    places = _places(gallery, ids)
    nobody = jnp.iinfo(jnp.int32).max
    is_new = (places == len(gallery.ids)) & (ids >= 0)
    people = jnp.sort(jnp.where(is_new, ids, nobody))
    is_first = (people != nobody) & (people != jnp.roll(people, 1)).at[:1].set(True)
    rank = jnp.cumsum(is_first, dtype=jnp.int32)[jnp.searchsorted(people, ids)] - 1
    is_free = gallery.ids < 0
    free = jnp.nonzero(is_free, size=len(ids), fill_value=len(gallery.ids))[0].astype(jnp.int32)
    places = jnp.where(is_new, free[rank], places)

    without = jnp.sum(is_first, dtype=jnp.int32) - jnp.sum(is_free, dtype=jnp.int32)
    return Gallery(
        gallery.sums.at[places].add(images.astype(gallery.sums.dtype), mode="drop"),
        gallery.ids.at[places].set(ids, mode="drop"),
        gallery.overflow + jnp.maximum(without, 0),
    )


@jax.jit(inline=True)
def _removed(gallery: Gallery, ids) -> Gallery:
    places = _places(gallery, known_labels(ids))
    return Gallery(
        gallery.sums.at[places].set(0, mode="drop"), gallery.ids.at[places].set(-1, mode="drop"), gallery.overflow
    )


@jax.jit(inline=True)
def _verified(gallery: Gallery, queries, ids):
    places = _places(gallery, known_labels(ids))
    finite = finite_rows(queries)
    x = normalize(widen(existing(queries, finite)))
    templates = normalize(gallery.sums[jnp.minimum(places, len(gallery.ids) - 1)]).astype(x.dtype)
    return jnp.where(finite & (places < len(gallery.ids)), jnp.sum(x * templates, axis=1), -jnp.inf)
