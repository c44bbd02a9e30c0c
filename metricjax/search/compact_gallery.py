"""Galleries to identify people by only, with compact templates; and what identification returns."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from metricjax.ground.checks import check_rows
from metricjax.ground.one_line import one_line
from metricjax.search.codes import Codes
from metricjax.search.neighbours import top_k

__all__ = ["CompactGallery", "Matches", "identified"]


class Matches(NamedTuple):
    """Whom each query resembles most, best first: their ids, −1 for nobody, and the cosines with their templates."""

    ids: Int[Array, "q k"]
    scores: Float[Array, "q k"]

    def __repr__(self) -> str:
        return one_line(self)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CompactGallery:
    """The people of a `Gallery` as it was, with templates in a byte or a bit for each feature: `Gallery.compact`.

    Enrolment stays with the gallery, whose sums are exact; make this anew when people came or went.

    >>> import jax.numpy as jnp, metricjax as mj
    >>> images, ids = jnp.array([[0.9, -0.2, 0.1, -0.4], [-0.1, 0.8, 0.3, 0.1]]), jnp.array([30, 7])
    >>> people = mj.search.Gallery.empty(capacity=3, features=4).enrol(images, ids)
    >>> people.compact("int8").identify(images).ids[:, 0].tolist()
    [30, 7]
    """

    codes: Codes
    ids: Int[Array, " c"]

    def __repr__(self) -> str:
        return one_line(self)

    def identify(
        self,
        queries: Float[Array, "q d"],
        threshold: ArrayLike | None = None,
        *,
        k: int = 1,
        coarse: Codes | int | None = None,
        rescore_multiplier: int = 4,
    ) -> Matches:
        """As `Gallery.identify`, with cosines of the rows that the codes stand for.

        Those of int8 are close to the exact ones; those of signs are not, and want a threshold of their own.
        """
        return identified(queries, self.codes, self.ids, threshold, k, coarse, rescore_multiplier)


def identified(queries, templates, ids, threshold, k: int, coarse, rescore_multiplier: int) -> Matches:
    check_rows("queries", queries)
    if threshold is not None and jnp.ndim(threshold):
        raise ValueError(f"threshold has shape {jnp.shape(threshold)}; wanted one number")
    best = top_k(queries, templates, k, where=ids >= 0, coarse=coarse, rescore_multiplier=rescore_multiplier)
    found = best.indices >= 0
    if threshold is not None:
        found = found & (best.scores >= jnp.asarray(threshold, best.scores.dtype))
    return Matches(jnp.where(found, ids[best.indices], -1), best.scores)
