"""Compact embeddings: a byte or a bit for each feature, and the rows that these stand for."""

import functools
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int8, UInt8, UInt32

from metricjax.ground.checks import check_array, check_per_row, check_rows
from metricjax.ground.numerics import existing, finite_rows, widen
from metricjax.ground.one_line import one_line
from metricjax.ground.pairwise import Pairwise, pairwise

__all__ = ["Codes", "block", "compact", "cosine_of_signs", "ranges", "rows_at", "signs", "words"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Codes:
    """Embeddings in one byte or one bit for each feature, made by `compact`; `search.top_k` takes them for rows.

    codes: int8 [m, d], or of the signs eight a byte, uint8 [m, ⌈d / 8⌉] in the order of `numpy.packbits`.
    exists: which rows stand for an embedding; those of NaN, infinity or `where=False` do not, and are never found.
    scale, offset: of each feature; int8 codes stand for scale · code + offset. None for signs.
    clipped: how many values lay outside of the ranges, and became the closest value inside.
    features: d.

    As a pytree they may be saved like parameters. To split them over devices, split `codes` and `exists` by rows;
    the others are the same everywhere.
    """

    codes: Int8[Array, "m d"] | UInt8[Array, "m b"]
    exists: Bool[Array, " m"]
    scale: Float[Array, " d"] | None
    offset: Float[Array, " d"] | None
    clipped: Int[Array, ""]
    features: int = field(metadata={"static": True})

    def __repr__(self) -> str:
        return one_line(self)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def shape(self) -> tuple[Any, int]:
        """Of the embeddings: rows, whose number an export may leave open, and features."""
        return self.codes.shape[0], self.features

    @property
    def precision(self) -> Literal["int8", "binary"]:
        return "binary" if self.scale is None else "int8"

    @property
    def bytes_per_row(self) -> int:
        """Of the codes, without the byte of `exists`: d, or ⌈d / 8⌉."""
        return self.codes.shape[1]

    @property
    def decoded(self) -> Float[Array, "m d"]:
        """The rows that the codes stand for, of which each score is made: ±1 for signs; 0 where there is none."""
        return existing(_decoded(self, self.codes, self.features, jnp.float32), self.exists)


def ranges(sample: Float[Array, "n d"], quantile: float = 1.0) -> Float[Array, "2 d"]:
    """From which to which value each feature goes in a sample of embeddings: what `compact` spreads 256 codes over.

    With a `quantile` below 1 (0.99, say) that share of the values is inside, and as many are left out below as above:
    a few outliers then do not make all steps wide. Rows with NaN or infinity do not count; of no others all are 0.

    >>> import jax.numpy as jnp
    >>> ranges(jnp.array([[1.0, 5.0], [-2.0, 5.0], [0.0, jnp.nan]])).tolist()
    [[-2.0, 5.0], [1.0, 5.0]]
    """
    check_rows("sample", sample)
    if not isinstance(quantile, int | float) or not 0 < quantile <= 1:
        raise ValueError(f"quantile is {quantile!r}; wanted a share above 0, up to 1")
    if not len(sample):
        raise ValueError("sample has no rows; wanted at least one")
    return _ranges(sample, quantile)


@functools.partial(jax.jit, static_argnames="quantile")
def _ranges(sample, quantile: float):
    x, real = widen(sample), finite_rows(sample)[:, None]
    if quantile == 1:
        ends = jnp.stack(
            [jnp.min(x, axis=0, where=real, initial=jnp.inf), jnp.max(x, axis=0, where=real, initial=-jnp.inf)]
        )
    else:
        ends = jnp.nanquantile(
            jnp.where(real, x, jnp.nan), jnp.array([1 - quantile, 1 + quantile], x.dtype) / 2, axis=0
        )
    return jnp.where(jnp.isfinite(ends), ends, 0)


def compact(
    embeddings: Float[Array, "m d"],
    precision: Literal["int8", "binary"] = "int8",
    *,
    ranges: Float[Array, "2 d"] | None = None,
    where: Bool[Array, " m"] | None = None,
) -> Codes:
    """Embeddings in a quarter ("int8") or a thirty-second ("binary") of their memory, as references of `search.top_k`.

    As int8, the code of x in a feature that goes from a to b is round(255 (x − a) / (b − a)) − 128, so that none is off
    by more than half a step; a feature that does not vary keeps its value. As binary, it is whether x > 0.

    Codes mean what `quantize_embeddings` of sentence-transformers means by "int8" and "ubinary", but are rounded to the
    closest value instead of down.

    Args:
      ranges: lowest and highest value of each feature, see `search.ranges`; default those of these embeddings. Rows
        that come later, and are to be searched together with these, want the same. Values outside are clipped, and
        counted in `clipped`.
      where: which rows exist. Those with NaN or infinity do not.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[0.0, 1.0], [2.55, -1.0], [0.604, 0.5]])
    >>> codes = compact(z)
    >>> codes.codes.tolist(), [f"{x:.2f}" for x in codes.decoded[2].tolist()]
    ([[-128, 127], [127, -128], [-68, 63]], ['0.60', '0.50'])
    >>> compact(z, "binary").codes.tolist()  # 0b01000000, 0b10000000, 0b11000000
    [[64], [128], [192]]
    """
    check_rows("embeddings", embeddings)
    if where is not None:
        check_per_row("where", where, len(embeddings))
    if precision not in ("int8", "binary"):
        raise ValueError(f"precision is {precision!r}; wanted 'int8' or 'binary'")
    if precision == "binary" and ranges is not None:
        raise TypeError("ranges are given for precision 'binary', which keeps signs only; wanted none")
    if ranges is not None:
        _check_ranges(ranges, embeddings.shape[1])
    return _compact(embeddings, ranges, where, precision)


def _check_ranges(ranges, d: int) -> None:
    check_array("ranges", ranges, "an array [2, features]")
    if ranges.shape != (2, d) or not jnp.issubdtype(ranges.dtype, jnp.floating):
        raise ValueError(f"ranges is {ranges.dtype}{list(ranges.shape)}; wanted floats [2, {d}], lowest and highest")
    if not isinstance(ranges, jax.core.Tracer) and not bool(jnp.all(ranges[0] <= ranges[1])):
        raise ValueError("ranges has NaN, or a lowest value above the highest; wanted lowest and highest values")


@functools.partial(jax.jit, static_argnames="precision")
def _compact(embeddings, ranges, where, precision: str) -> Codes:
    exists = finite_rows(embeddings) if where is None else where & finite_rows(embeddings)
    x, d = existing(widen(embeddings), exists), embeddings.shape[1]
    if precision == "binary":
        return Codes(signs(x), exists, None, None, jnp.zeros((), jnp.int32), d)
    if ranges is None:
        ranges = (
            _ranges(jnp.where(exists[:, None], x, jnp.nan), 1) if embeddings.shape[0] else jnp.zeros((2, d), x.dtype)
        )
    lowest, highest = ranges.astype(x.dtype)[:, None]
    scale = (highest / 2 - lowest / 2) / 127.5  # the difference itself may be out of range
    offset = lowest / 2 + highest / 2 + scale / 2
    varies = scale >= jnp.finfo(x.dtype).tiny
    code = jnp.where(varies, (x - offset) / jnp.where(varies, scale, 1), 0)
    codes = jnp.clip(jnp.round(code), -128, 127).astype(jnp.int8)
    outside = exists[:, None] & ((x < lowest) | (x > highest))
    return Codes(codes, exists, scale[0], offset[0], jnp.sum(outside, dtype=jnp.int32), d)


def _decoded(of: Codes, codes, features: int, dtype) -> Float[Array, "..."]:
    """The first features of some rows, of which these are the codes."""
    if of.scale is None:
        return 2 * jnp.unpackbits(codes, axis=-1, count=features).astype(dtype) - 1
    of_feature = lambda a: a[:features].astype(dtype).reshape(*[1] * (codes.ndim - 1), -1)
    return codes.astype(dtype) * of_feature(of.scale) + of_feature(of.offset)


# --- what a search takes of references, rows of floats or codes -----------------------------------------------------


def block(references: Float[Array, "m d"] | Codes, start, size: int, features: int | None, dtype):
    """The first `features` of `size` rows from `start` on; None for signs, as packed words."""
    if not isinstance(references, Codes):
        return lax.dynamic_slice(references, (start, 0), (size, features)).astype(dtype)
    part = lambda width: lax.dynamic_slice(references.codes, (start, 0), (size, width))
    if features is None:
        return words(part(references.codes.shape[1]))
    return _decoded(
        references, part(features if references.precision == "int8" else -(-features // 8)), features, dtype
    )


def rows_at(references: Float[Array, "m d"] | Codes, indices: Int[Array, "n c"], dtype):
    """The rows of these numbers, and which of them exist; no number is below −1."""
    if not isinstance(references, Codes):
        rows = references[indices].astype(dtype)
        return rows, finite_rows(rows) & (indices >= 0)
    rows = _decoded(references, references.codes[indices], references.features, dtype)
    return rows, references.exists[indices] & (indices >= 0)


def signs(x: Float[Array, "n d"]) -> UInt8[Array, "n b"]:
    """Which numbers are positive, eight a byte."""
    return jnp.packbits(x > 0, axis=1)


def words(codes: UInt8[Array, "n b"]) -> UInt32[Array, "n w"]:
    """Four bytes in one word, filled up with zeros."""
    filled = jnp.pad(codes, [(0, 0), (0, -codes.shape[1] % 4)])
    n, width = filled.shape
    if isinstance(n, int):
        return lax.bitcast_convert_type(filled.reshape(n, width // 4, 4), jnp.uint32)
    parts = (
        filled[:, i::4].astype(jnp.uint32) << (8 * i) for i in range(4)
    )  # as an export has no bitcast of any number
    return functools.reduce(jnp.bitwise_or, parts)


@functools.cache
def cosine_of_signs(features: int) -> Pairwise:
    """The cosine of rows of ±1, whose bits come in words: 1 − 2 · Hamming distance / features."""

    @pairwise(kind="similarity")
    def cosine_of_signs(x: UInt32[Array, "n w"], y: UInt32[Array, "m w"]) -> Float[Array, "n m"]:
        differing = lax.population_count(x[:, None] ^ y[None])
        return 1 - jnp.sum(differing, axis=2, dtype=jnp.uint32).astype(jnp.float32) * (2 / features)

    return cosine_of_signs
