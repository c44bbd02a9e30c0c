"""Memory banks: embeddings of earlier batches, to compare those of this one with."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from metricjax.engine.devices import row_ids
from metricjax.ground.checks import check_fits, check_labels, check_per_row, check_rows
from metricjax.ground.numerics import existing, finite_rows, widen
from metricjax.ground.one_line import one_line

__all__ = ["Bank"]


def __dir__() -> list[str]:
    return __all__


class Bank(NamedTuple):
    """Rows of earlier batches, in a fixed number of places: first in, first out.

    Begin with `Bank.empty`. `push` leaves its bank as it is and returns a new one (donate the old one under `jit`, and
    nothing is copied); `options` makes of it the options that any pair-based loss, with any miner, takes. Two forms are
    in use:

    - the batch and the bank, `loss(z, y, **bank.options(z, y))`, and then `bank.push(z, y)`: the loss over all rows of
      both, of which those of the batch are anchors and have a gradient;
    - the bank alone, `bank = bank.push(z, y)`, and then `loss(z, y, **bank.options())`: rows that are compared have
      no gradient, only anchors have. Cross-batch memory (Wang et al. 2020, arXiv:1912.06798) adds it to the loss of
      the batch, `loss(z, y)`; PyTorch Metric Learning's `CrossBatchMemory` is this alone.

    Either way a row is not compared with itself, nor with its copy in the bank, and free places do not count. Before
    the embeddings have settled a bank does harm: with `use=step > 1000` it waits. It may then be filled at once, by a
    pass over sampled images, `for images, y in batches: bank = bank.push(encode(images), y)`, or by `lax.scan`.

    Momentum contrast (He et al. 2020, arXiv:1911.05722) compares queries with keys, which another encoder makes, whose
    parameters are a running average (`optax.incremental_update`). The key of an image is its query's positive, and is
    compared: `loss(queries, y, **{**bank.options(keys, y), "reference_ids": None})`, and then `bank.push(keys, y)`,
    with `y` the number of each image.

    embeddings, labels: the rows, c places; 0 in a free one.
    age: how many pushes ago each row came, 0 for the latest; −1 where the place is free.
    row: which row of its push it was, counted over all devices.

    Each array has a row for each place, so that over devices all are split by `PartitionSpec(axis)`. Inside `shard_map`
    give `axis_name` to `push`, `options` and the loss: each device pushes its own rows into its own places, and the
    loss is that over all rows of all devices. Outside, for whole arrays that lie over the mesh, so is
    `mj.over_mesh(loss, axis)(z, y, **bank.options(z, y))`. As a pytree a bank is carried by `lax.scan`, mapped by
    `vmap`, and saved like parameters.

    Memory is linear in rows and places. Time is that of two products of batch and bank for the bank alone, and of three
    with the batch, for a bank without a gradient is still among columns that have one.

    >>> import jax.numpy as jnp, metricjax as mj
    >>> bank = mj.memory.Bank.empty(capacity=3, features=2)
    >>> z, y = jnp.eye(2), jnp.array([0, 1])
    >>> bank = bank.push(z, y).push(z, y)  # the first row of the first push made room
    >>> bank.labels.tolist(), bank.age.tolist()
    ([1, 1, 0], [0, 1, 0])
    >>> supcon = lambda bank: float(mj.losses.supcon(z, y, temperature=1.0, **bank.options(z, y)))
    >>> supcon(Bank.empty(3, 2)), supcon(bank)  # no positives in the batch, but in the bank
    (0.0, 0.875)
    """

    embeddings: Float[Array, "c d"]
    labels: Shaped[Array, "c ..."]
    age: Int[Array, " c"]
    row: Int[Array, " c"]

    def __repr__(self) -> str:
        return one_line(self)

    @classmethod
    def empty(
        cls,
        capacity: int,
        features: int,
        *,
        dtype: DTypeLike = jnp.float32,
        label_shape: tuple[int, ...] = (),
        label_dtype: DTypeLike = jnp.int32,
    ) -> "Bank":
        """Free places for `capacity` rows, whose labels have this shape and dtype: `(classes,)` and bool for multi-hot.

        The dtype is that in which embeddings are kept; losses compute in that of the batch.
        """
        if not all(isinstance(size, int | np.integer) and size > 0 for size in (capacity, features)):
            raise ValueError(f"capacity is {capacity} and features {features}; wanted positive ints")
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"dtype is {dtype!r}; wanted a floating-point dtype")
        labels = jnp.zeros((capacity, *label_shape), label_dtype)
        free = jnp.full(capacity, -1, jnp.int32)
        return cls(jnp.zeros((capacity, features), dtype), labels, free, jnp.zeros(capacity, jnp.int32))

    @property
    def filled(self) -> Int[Array, ""]:
        """How many places are not free."""
        return jnp.sum(self.age >= 0, dtype=jnp.int32)

    def staleness(self) -> Float[Array, ""]:
        """How many pushes ago the rows came, in the mean; 0 for an empty bank.

        A full bank of c places to which n rows are pushed at a time has (c / n − 1) / 2.
        """
        total = jnp.sum(jnp.where(self.age > 0, self.age, 0).astype(jnp.float32))
        return total / jnp.maximum(self.filled, 1).astype(jnp.float32)

    def push(
        self,
        embeddings: Float[Array, "n d"],
        labels: Shaped[Array, "n ..."],
        where: Bool[Array, " n"] | None = None,
        *,
        axis_name: str | tuple[str, ...] | None = None,
    ) -> "Bank":
        """With these rows in the places that are free, then in those of the oldest; of too many the last ones stay.

        Rows that `where` leaves out take no place, nor do those that hold NaN or infinity. No gradient goes through.
        """
        labels = _checked(self, embeddings, labels, where)
        return _split_as(self, partial(_pushed, axis_name), self, embeddings, labels, where)

    def options(
        self,
        embeddings: Float[Array, "n d"] | None = None,
        labels: Shaped[Array, "n ..."] | None = None,
        *,
        where: Bool[Array, " n"] | None = None,
        use: ArrayLike = True,
        axis_name: str | tuple[str, ...] | None = None,
    ) -> dict[str, Any]:
        """The options of a pair-based loss whose columns are this batch and the bank, or the bank alone.

        With the batch, which is not to be pushed yet: its rows come first, with their gradients, and `where` (the
        loss's own) says which of them exist. Without it, the anchors have to be the rows of the latest push.

        Where `use`, a boolean that may be traced, is False, the bank does not count: the loss is that of the batch.
        """
        there = (self.age >= 0) & jnp.asarray(use, bool)
        if embeddings is None or labels is None:
            if embeddings is not None or labels is not None or where is not None:
                raise TypeError("options got a part of a batch; wanted its embeddings and labels, or the bank alone")
            own = jnp.where(self.age == 0, self.row, -1)
            return _described(self.embeddings, self.labels, there, own)
        labels = _checked(self, embeddings, labels, where)
        alike = _described(self.embeddings, self.labels, self.age, self.row)
        return _split_as(alike, partial(_with_batch, axis_name), self, there, embeddings, labels, where)


def _described(references, labels, where, ids) -> dict[str, Any]:
    return {
        "references": references,
        "reference_labels": labels,
        "reference_where": where,
        "reference_ids": ids,
    }


def _with_batch(axis_name, bank: Bank, there, embeddings, labels, where) -> dict[str, Any]:
    n, x = len(embeddings), widen(embeddings)
    exist = jnp.ones(n, bool) if where is None else jnp.asarray(where)
    return _described(
        jnp.concatenate([x, bank.embeddings.astype(x.dtype)]),
        jnp.concatenate([labels, bank.labels]),
        jnp.concatenate([exist, there]),
        jnp.concatenate([row_ids(n, axis_name), jnp.full_like(bank.row, -1)]),
    )


def _split_as(arrays: Any, f: Any, *arguments: Any) -> Any:
    """`f(*arguments)`, whose results lie over explicit axes of a mesh as `arrays` do; `f` need not know of them."""
    lie = jax.tree.map(lambda a: jax.typeof(a).sharding, arrays)
    axes = sorted({axis for sharding in jax.tree.leaves(lie) for axis in sharding.mesh.explicit_axes})
    return jax.sharding.auto_axes(f, axes=tuple(axes), out_sharding=lie)(*arguments) if axes else f(*arguments)


def _checked(bank: Bank, embeddings: Any, labels: Any, where: Any) -> Array:
    """The labels as an array, once everything is known to fit into the bank."""
    check_rows("embeddings", embeddings, bank.embeddings.shape[1])
    check_labels("labels", labels, len(embeddings), any_kind=True)
    check_fits("labels", labels)
    check_per_row("where", where, len(embeddings))
    labels, kept = jnp.asarray(labels), bank.labels
    if (labels.shape[1:], labels.dtype) != (kept.shape[1:], kept.dtype):
        got, wanted = (f"{a.dtype}{['rows', *a.shape[1:]]}".replace("'", "") for a in (labels, kept))
        raise TypeError(f"labels is {got}; wanted {wanted}, as the bank has it: see label_dtype of Bank.empty")
    return labels


@partial(jax.jit, static_argnums=0, inline=True)
def _pushed(axis_name, bank: Bank, embeddings, labels, where) -> Bank:
    n, capacity = len(embeddings), len(bank.age)
    x = lax.stop_gradient(existing(embeddings, where)).astype(bank.embeddings.dtype)
    comes = finite_rows(x) if where is None else finite_rows(x) & where
    # The places in order: free ones, then by age, and of one push its first rows.
    age = jnp.where(bank.age < 0, jnp.iinfo(jnp.int32).max, bank.age)
    order = jnp.lexsort((bank.row, -age)).astype(jnp.int32)
    rank = jnp.cumsum(comes, dtype=jnp.int32) - 1
    rank -= jnp.maximum(jnp.sum(comes, dtype=jnp.int32) - capacity, 0)
    place = jnp.where(comes & (rank >= 0), order[jnp.clip(rank, 0, capacity - 1)], capacity)
    put = lambda kept, new: kept.at[place].set(new, mode="drop")
    return Bank(
        put(bank.embeddings, x),
        put(bank.labels, labels),
        put(jnp.where(bank.age < 0, -1, bank.age + 1), jnp.zeros(n, jnp.int32)),
        put(bank.row, row_ids(n, axis_name)),
    )
