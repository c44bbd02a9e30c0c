"""Indices of faiss and usearch with the rows of a search, for approximate search, disks and other languages."""

import dataclasses
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Array, Float

from metricjax.ground.checks import check_rows
from metricjax.ground.extras import extra
from metricjax.ground.numerics import finite_rows, normalize, widen
from metricjax.search.codes import Codes
from metricjax.search.compact_gallery import CompactGallery
from metricjax.search.gallery import Gallery

__all__ = ["to_faiss", "to_usearch"]

Searched: TypeAlias = Float[Array, "m d"] | Codes | Gallery | CompactGallery


def to_faiss(references: Searched) -> Any:
    """A flat index of faiss, an `IndexIDMap2`, that finds what `top_k` finds among these references.

    | references | index | as in `top_k` |
    |---|---|---|
    | embeddings, `Gallery` | `IndexFlatIP` of rows of length 1 | `similarities.cosine`, for queries of length 1 |
    | int8 `Codes` | `IndexScalarQuantizer`, 8 bits, with these very codes | `similarities.dot` |
    | binary `Codes` | `IndexBinaryFlat` | Hamming distance, to the `codes` of binary queries |

    Its keys are numbers of rows, or ids of people; what does not exist is not in it. Among equal scores faiss takes
    any. It needs the extra `faiss`.
    """
    with extra("faiss"):
        import faiss

    stored, keys = _existing(references)
    if not isinstance(stored, Codes):
        index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(stored.shape[1]))
        index.add_with_ids(stored, keys)
        return index
    codes = np.asarray(stored.codes)
    if stored.precision == "binary":
        index = faiss.IndexBinaryIDMap2(faiss.IndexBinaryFlat(8 * codes.shape[1]))
        index.add_with_ids(codes, keys)
        return index
    flat = faiss.IndexScalarQuantizer(codes.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    scale, offset = (np.asarray(a, np.float32) for a in (stored.scale, stored.offset))
    # There, a byte stands for the first of these numbers and (byte + 0.5) / 255 times the second.
    faiss.copy_array_to_vector(np.concatenate([offset - 128.5 * scale, 255 * scale], dtype=np.float32), flat.sq.trained)
    flat.is_trained = True
    index = faiss.IndexIDMap2(flat)
    index.add_sa_codes((codes.astype(np.int16) + 128).astype(np.uint8), keys)
    return index


def to_usearch(references: Searched, dtype: Literal["f32", "bf16", "f16", "i8"] = "f32", **options: Any) -> Any:
    """An index of usearch with these references: a graph, or `index.search(queries, k, exact=True)` for all scores.

    Of embeddings and of a `Gallery` its distance is 1 − cosine; `dtype` is how usearch stores them ("i8" has one scale
    for all features). Of binary `Codes` it is the Hamming distance to the `codes` of binary queries. Int8 codes, with a
    scale for each feature, are nothing that usearch has: give it the embeddings, and `dtype="i8"`.

    Its keys are numbers of rows, or ids of people; what does not exist is not in it. `options` are those of
    `usearch.index.Index`: `connectivity`, `expansion_add`, `expansion_search`. It needs the extra `usearch`.
    """
    with extra("usearch"):
        from usearch.index import Index

    stored, keys = _existing(references)
    if isinstance(stored, Codes):
        if stored.precision != "binary":
            raise TypeError(
                "references are int8 codes, which usearch does not have; wanted embeddings, with dtype='i8'"
            )
        rows = np.asarray(stored.codes)
        index = Index(ndim=8 * rows.shape[1], metric="hamming", dtype="b1", **options)
    else:
        rows = stored
        index = Index(ndim=rows.shape[1], metric="cos", dtype=dtype, **options)
    index.add(keys.astype(np.uint64), rows)
    return index


def _existing(references: Searched) -> tuple[np.ndarray | Codes, np.ndarray]:
    """The rows, of length 1, or codes that exist, and their keys."""
    if isinstance(references, Gallery | CompactGallery):
        stored = references.sums if isinstance(references, Gallery) else references.codes
        keys, exists = np.asarray(references.ids, np.int64), np.asarray(references.ids) >= 0
    else:
        stored, keys, exists = references, np.arange(len(references), dtype=np.int64), np.ones(len(references), bool)
    if isinstance(stored, Codes):
        exists = exists & np.asarray(stored.exists)
        return dataclasses.replace(stored, codes=stored.codes[exists], exists=stored.exists[exists]), keys[exists]
    check_rows("references", stored)
    exists = exists & np.asarray(finite_rows(stored))
    return np.asarray(normalize(widen(stored)), np.float32)[exists], keys[exists]
