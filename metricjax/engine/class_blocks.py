"""Blocks of classes: sums over the logits of all but each row's own class, and their gradient, block after block.

One pass takes the sums, with a number for each row that keeps its exponentials in range (an online log-sum-exp). The
backward pass computes each block again and finishes the gradient of its prototypes there: no other array is as large as
they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from metricjax.engine.devices import varying
from metricjax.engine.pairs import unwrapped
from metricjax.engine.sizes import Size, of_platform
from metricjax.engine.sweeps import of_finished
from metricjax.ground.numerics import logsumexp, widen
from metricjax.ground.pairwise import Pairwise

__all__ = ["OtherClasses", "Scores", "dense", "in_blocks", "number_of_classes", "take", "take_in_place"]


def number_of_classes(prototypes) -> int:
    return len(jax.tree.leaves(prototypes)[0])


def take(prototypes, index):
    """Some rows, and all, in at least float32."""
    wide = jax.tree.map(widen, prototypes)
    return jax.tree.map(lambda a: a[index], wide), wide


@jax.custom_vjp
def take_in_place(prototypes, index):
    """Some rows in at least float32, and all as they are.

    The gradient of some rows is added into that of all, without another array as large. Rows of one class are added up
    first, so that many of them do not vanish in a bfloat16 sum.
    """
    return jax.tree.map(lambda a: widen(a[index]), prototypes), prototypes


def _add_into(index, cotangents):
    order = jnp.sort(index)
    first = jnp.searchsorted(order, index)  # the first place of the row's class

    def add(some, every):
        sums = jnp.zeros_like(some).at[first].add(some)
        return every.at[order].add(sums.astype(every.dtype))

    return jax.tree.map(add, *cotangents), None


take_in_place.defvjp(lambda prototypes, index: (take_in_place(prototypes, index), index), _add_into)


@dataclass(frozen=True)
class Scores:
    """Scores of embedded rows against prototypes [c, d], or [c, k, d] with a pool, or (prototypes, biases [c]).

    With `reverse` they have reverse mode only, where that is faster.
    """

    similarity: Pairwise
    pool: Callable[..., Array] | None
    reverse: bool

    def __call__(self, x, w, hyper) -> Float[Array, "n c"]:
        wide = lambda w: jax.tree.map(lambda a: a.astype(x.dtype), w)
        scaled = self.similarity.scaled if self.reverse else None
        one = lambda w: (scaled or self._compare)(x, wide(w))
        return one(w) if self.pool is None else self.pool(jax.vmap(one, 1)(w), *hyper)

    def _compare(self, x, w):
        return self.similarity.compare(x, self.similarity.embed(w))


@dataclass(frozen=True)
class OtherClasses:
    """A pass over the other classes: blocks of `size` classes, and which sums of the logits are wanted.

    Sums are log Σ exp, if `exponential`, and Σ and their number, if `plain`; [n] each.
    """

    scores: Scores
    others: Callable[..., Array]
    size: Size | None
    exponential: bool
    plain: bool

    def logits(self, x, w, own, real, rows, hyper):
        """Logits [n, b] of some classes, and which of them count for which row."""
        return self.logits_of(self.compared(x, w, hyper), own, real, rows, hyper)

    def compared(self, x, w, hyper):
        """Scores [n, b] of some classes."""
        return self.scores(x, w, unwrapped(hyper)[2:])

    def logits_of(self, scores, own, real, rows, hyper):
        ignore_above, _, *own_hyper = unwrapped(hyper)
        # As floats, which a CPU compares faster beside floats; a position far outside the block may be rounded.
        counts = jnp.arange(scores.shape[1], dtype=scores.dtype)[None] != own.astype(scores.dtype)[:, None]
        counts = counts if real is None else counts & real[None]
        counts = counts if ignore_above is None else counts & (scores <= ignore_above)
        return self.others(scores, *(a[:, None] for a in rows), *own_hyper), counts

    def block(self, start, size, prototypes, own, real):
        """Prototypes, positions of targets and mask of `size` classes from `start` on."""
        part = lambda tree: jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size), tree)
        return part(prototypes), own - start, part(real)

    def fold(self, step, carry, classes: int):
        """`step(carry, start, size)` over blocks of classes, the last one smaller if need be."""
        assert self.size is not None

        def in_blocks_of(size: int):
            count, rest = divmod(classes, size)
            done = lax.fori_loop(0, count, lambda i, carry: step(carry, i * size, size), carry)
            return step(done, count * size, rest) if rest else done

        return of_platform(self.size, in_blocks_of)


def dense(others: OtherClasses, x, prototypes, own, real, rows, hyper):
    """The sums over all other classes at once."""
    z, counts = others.logits(x, prototypes, own, real, rows, hyper)
    return logsumexp(z, counts) if others.exponential else None, _plain(z, counts) if others.plain else (None, None)


def _plain(z, counts):
    return jnp.sum(jnp.where(counts, z, 0), axis=-1), jnp.sum(counts, axis=-1, dtype=z.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def in_blocks(others: OtherClasses, x, prototypes, own, real, rows, hyper):
    """`dense`, for a block of classes at a time."""
    nothing = jnp.zeros(len(x), x.dtype)
    info = jnp.finfo(x.dtype)

    def step(carry, start, size):
        base, exponential, plain = carry
        here = lambda: others.logits(x, *others.block(start, size, prototypes, own, real), rows, hyper)
        z, counts = here()
        if others.exponential:
            total = exponential + _sum_exp(z, counts, base)
            in_range = jnp.all((total > info.tiny**0.5) & (total < info.max**0.5))
            # The largest logit takes another pass: only where it is needed.
            largest = lambda: _rebased(base, exponential, *here())
            base, exponential = lax.cond(in_range, lambda: (base, total), largest)
        if others.plain:
            plain = jax.tree.map(jnp.add, plain, _plain(z, counts))
        return base, exponential, plain

    start = varying((nothing, nothing, (nothing, nothing)), x)
    base, exponential, plain = others.fold(step, start, number_of_classes(prototypes))
    some = exponential > 0
    log_total = jnp.where(some, base + jnp.log(jnp.where(some, exponential, 1)), -jnp.inf)
    return log_total if others.exponential else None, plain if others.plain else (None, None)


def _sum_exp(z, counts, base):
    return jnp.sum(jnp.exp(jnp.where(counts, z - base[:, None], -jnp.inf)), axis=-1)


def _rebased(base, exponential, z, counts):
    """The largest logit as the new base, and Σ exp with the logits `z` added."""
    before = jnp.where(exponential > 0, base, -jnp.inf)
    top = jnp.maximum(before, jnp.max(z, axis=-1, where=counts, initial=-jnp.inf))
    top = jnp.where(jnp.isfinite(top), top, 0)
    return top, exponential * jnp.exp(before - top) + _sum_exp(z, counts, top)


def _forward(others: OtherClasses, *arguments):
    totals = in_blocks(others, *arguments)
    return totals, (arguments, totals[0])


def _backward(others: OtherClasses, kept, cotangents):
    (x, prototypes, own, real, rows, hyper), log_total = kept
    to_log, to_plain = cotangents
    finite = None if log_total is None else jnp.where(jnp.isfinite(log_total), log_total, 0)[:, None]

    def step(carry, start, size):
        sums, whole = carry
        w, *here = others.block(start, size, prototypes, own, real)
        scores, of_ends = jax.vjp(others.compared, x, w, hyper)
        logits = lambda scores, rows, hyper: others.logits_of(scores, *here, rows, hyper)
        z, pull, counts = jax.vjp(logits, scores, rows, hyper, has_aux=True)
        dz = jnp.zeros_like(z)
        if others.exponential:
            dz += to_log[:, None] * jnp.exp(jnp.where(counts, z - finite, -jnp.inf))
        if others.plain:
            dz += jnp.where(counts, to_plain[0][:, None], 0)
        of_scores, drows, dhyper = pull(dz)
        dx, dw, of_pool = of_finished(of_ends, of_scores, start >= 0)
        sums = jax.tree.map(jnp.add, sums, (dx, drows, jax.tree.map(jnp.add, dhyper, of_pool)))
        put = lambda a, block: lax.dynamic_update_slice_in_dim(a, block, start, axis=0)
        return sums, jax.tree.map(put, whole, dw)

    zeros = varying(jax.tree.map(jnp.zeros_like, ((x, rows, hyper), prototypes)), x)
    (dx, drows, dhyper), dw = others.fold(step, zeros, number_of_classes(prototypes))
    return dx, dw, None, None, drows, dhyper


in_blocks.defvjp(_forward, _backward)
