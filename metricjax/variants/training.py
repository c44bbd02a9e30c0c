"""Train many variants of one training at once: losses × hyper-parameters × seeds, in one compiled program.

A `Task` says how one variant is trained; a `Variant` is its loss, its seed, and its numbers, which are traced: margins,
learning rates and the like do not compile anything anew. `train` stacks parameters, optimiser states and numbers.
"""

import collections
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from metricjax.ground.extras import extra
from metricjax.ground.one_line import one_line

with extra("optax"):
    import optax

__all__ = ["Numbers", "Task", "Trained", "Variant", "product", "train"]

Numbers = Mapping[str, Any]


class Variant(NamedTuple):
    """One training: its loss by name, its seed, and its numbers, which are floats; a number only others have is 0."""

    loss: str
    seed: int
    numbers: dict[str, float]


@dataclass(frozen=True, eq=False)
class Task:
    """How a variant is trained. Its functions are traced: `seed`, `step` and `numbers` are arrays.

    init: `(key) -> params`, any pytree.
    embed: `(params, batch) -> embeddings`.
    losses: by name, `(params, embeddings, batch, numbers) -> scalar`.
    batch: `(seed, step) -> batch`, any pytree. Variants of one seed see the same batches; all do if it ignores seed.
    optimizer: `(numbers) -> optax.GradientTransformation`, as in `lambda n: optax.adam(n["learning_rate"])`.
    watch: `(embeddings, batch) -> {name: scalar}`, called for each report, `metrics.health` for example.
    """

    init: Callable[[Array], Any]
    embed: Callable[[Any, Any], Array]
    losses: Mapping[str, Callable[[Any, Array, Any, Numbers], Array]]
    batch: Callable[[Array, Array], Any]
    optimizer: Callable[[Numbers], optax.GradientTransformation]
    watch: Callable[[Array, Any], dict[str, Array]] = lambda embeddings, batch: {}


class Trained(NamedTuple):
    """What came of K variants, in the order they were given.

    params: of all variants, with a leading axis K.
    steps: [r], the number of steps done at each report.
    history: {name: [r, K]}. `loss` and `gradient norm` are means over the steps since the last report; what `watch`
        returned is of the last batch.
    at_once: how many variants were trained under one `vmap`.
    seconds: {"measuring", "compiling", "training"}.
    """

    params: Any
    steps: np.ndarray
    history: dict[str, np.ndarray]
    at_once: int
    seconds: dict[str, float]

    def __repr__(self) -> str:
        return one_line(self)


def product(losses: Iterable[str], seeds: Iterable[int], **numbers: Iterable[float]) -> list[Variant]:
    """All combinations of losses, seeds and numbers.

    >>> [v.numbers["margin"] for v in product(["triplet"], [0], margin=[0.1, 0.2])]
    [0.1, 0.2]
    """
    each = (dict(zip(numbers, values, strict=True)) for values in itertools.product(*numbers.values()))
    return [Variant(loss, seed, n) for n, loss, seed in itertools.product(each, losses, seeds)]


def train(
    task: Task,
    variants: Sequence[Variant],
    steps: int,
    *,
    every: int | None = None,
    at_once: int | Literal["auto"] = "auto",
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[range], Any] = iter,
) -> Trained:
    """Train all variants for `steps` steps; one compilation, whatever their number.

    With `at_once=1` a device trains one variant after the other (`lax.map`, with the loss chosen by `lax.switch`). With
    a larger number it trains that many variants of one loss under one `vmap`, and one such chunk after the other where
    there are more. "auto" measures a few steps of 1, 8 and all, and takes the fastest: as a rule 1 on a CPU and all on
    an accelerator. Results differ by rounding only. Variants are split over `devices`, default the first. On a CPU
    avoid `lax.conv` in `embed`, which is slow in loops: see `encoders.conv_by_products`.

    Every `every` steps (default: ten times in all) losses, gradient norms and what `task.watch` sees are reported, and
    `progress`, `tqdm` for example, moves on: it wraps the range of first steps of the intervals.

    >>> import jax.numpy as jnp
    >>> task = Task(
    ...     init=lambda key: jnp.ones(()), embed=lambda params, batch: params, batch=lambda seed, step: (),
    ...     losses={"square": lambda params, z, batch, n: (z - n["aim"]) ** 2}, optimizer=lambda n: optax.sgd(0.5),
    ... )
    >>> train(task, product(["square"], [0], aim=[3.0, 5.0]), steps=1, at_once=1).params.tolist()
    [3.0, 5.0]
    """
    _check(task, variants, steps, every, at_once)
    every = every or -(-steps // 10)
    devices = list(devices or jax.devices()[:1])
    clock = [time.perf_counter()]
    size = _fastest(task, variants, devices) if at_once == "auto" else at_once
    clock.append(time.perf_counter())
    places, state, program = _compiled(task, variants, devices, size)
    clock.append(time.perf_counter())
    reports = []
    for start in progress(range(0, steps, every)):
        state, seen = program(state, start, min(every, steps - start))
        reports.append(jax.device_get(seen))
    clock.append(time.perf_counter())
    history = {name: np.stack([report[name][places] for report in reports]) for name in reports[0]}
    done = np.minimum(np.arange(0, steps, every) + every, steps)
    seconds = dict(zip(("measuring", "compiling", "training"), np.diff(clock).tolist(), strict=True))
    return Trained(jax.tree.map(lambda a: a[places], state[0]), done, history, size, seconds)


def _check(task: Task, variants: Sequence[Variant], steps: int, every: int | None, at_once: int | str) -> None:
    if not variants:
        raise ValueError("variants is empty; wanted at least one Variant")
    if unknown := sorted({v.loss for v in variants} - task.losses.keys()):
        raise ValueError(f"variants name the losses {unknown}; wanted some of {sorted(task.losses)}")
    for v in variants:
        if not isinstance(v.seed, Integral) or not -(2**31) <= v.seed < 2**31:
            raise ValueError(f"a variant of {v.loss!r} has the seed {v.seed!r}; wanted an int of 32 bits")
        for name, value in v.numbers.items():
            if np.ndim(value) or not np.issubdtype(np.asarray(value).dtype, np.number):
                raise ValueError(f"a variant of {v.loss!r} has {name} = {value!r}; wanted a number")
    if not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"steps is {steps!r}; wanted an int, at least 1")
    if every is not None and not (isinstance(every, Integral) and every >= 1):
        raise ValueError(f"every is {every!r}; wanted None or an int, at least 1")
    if at_once != "auto" and not (isinstance(at_once, Integral) and at_once >= 1):
        raise ValueError(f"at_once is {at_once!r}; wanted 'auto' or a positive int")


# --- one variant ----------------------------------------------------------------------------------------------------


def _initial(task: Task, seeds, numbers):
    """Parameters and optimiser states of all variants."""

    def one(arguments):
        seed, numbers = arguments
        params = task.init(jax.random.key(seed))
        return params, task.optimizer(numbers).init(params)

    return lax.map(one, (seeds, numbers))


def _as_scalar(name, loss, *given):
    """The value of a loss in the dtype of all, as a `switch` and the sums need it."""
    value = jnp.asarray(loss(*given))
    if value.shape != ():
        raise ValueError(f"the loss {name!r} returned shape {value.shape}; wanted a scalar")
    return value.astype(float)


def _interval(task: Task, names, which, state, seed, numbers, start, count):
    """`count` steps of one variant from step `start` on, and what was seen; `which` of losses is an int, or traced."""
    losses = [partial(_as_scalar, name, task.losses[name]) for name in names]

    def step(i, carry):
        (params, optimizer_state), loss_sum, norm_sum = carry
        batch = task.batch(seed, start + i)

        def objective(params):
            given = params, task.embed(params, batch), batch, numbers
            return losses[which](*given) if isinstance(which, int) else lax.switch(which, losses, *given)

        loss, gradient = jax.value_and_grad(objective)(params)
        updates, optimizer_state = task.optimizer(numbers).update(gradient, optimizer_state, params)
        state = optax.apply_updates(params, updates), optimizer_state
        return state, loss_sum + loss, norm_sum + optax.tree.norm(gradient).astype(float)

    state, loss, norm = lax.fori_loop(0, count, step, (state, jnp.zeros(()), jnp.zeros(())))
    batch = task.batch(seed, start + count - 1)
    seen = task.watch(task.embed(state[0], batch), batch)
    return state, {"loss": loss / count, "gradient norm": norm / count, **seen}


# --- all of them ----------------------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """Where variants stand in the stacked arrays: on each device the same number of each group, group after group.

    order: the variant at each place; some come twice, so that all devices have as many.
    places: where each variant stands.
    counts: how many of each group a device has.
    """

    order: list[int]
    places: np.ndarray
    counts: list[int]


def _planned(groups: Sequence[list[int]], devices: int) -> _Plan:
    counts = [-(-len(some) // devices) for some in groups]
    share = lambda some, k, device: (some * devices)[device * k : device * k + k]
    order = [i for d in range(devices) for some, k in zip(groups, counts, strict=True) for i in share(some, k, d)]
    return _Plan(order, np.array([order.index(i) for i in range(sum(map(len, groups)))]), counts)


def _stacked(losses: Sequence[str], variants: Sequence[Variant]) -> tuple:
    """The number of each one's loss, seeds, and numbers."""
    names = sorted({name for v in variants for name in v.numbers})
    numbers = {name: np.asarray(jnp.array([v.numbers.get(name, 0) for v in variants], float)) for name in names}
    which, seeds = ([losses.index(v.loss) for v in variants], [v.seed for v in variants])
    return np.array(which, np.int32), np.array(seeds, np.int32), numbers


def _compiled(task: Task, variants: Sequence[Variant], devices: Sequence[jax.Device], size: int) -> tuple:
    """Where variants stand, their first states, and the program `(state, start, count) -> (state, seen)`."""
    losses = [name for name in task.losses if any(v.loss == name for v in variants)]
    of_loss = [[i for i, v in enumerate(variants) if v.loss == name] for name in losses]
    groups = of_loss if size > 1 else [list(range(len(variants)))]  # one after the other, losses may mix
    order, places, counts = _planned(groups, len(devices))

    def here(state, which, seeds, numbers, start, count):
        one = lambda which, state, seed, numbers: _interval(task, losses, which, state, seed, numbers, start, count)
        if size == 1:
            return lax.map(lambda a: one(*a), (which, state, seeds, numbers))
        parts = []
        for loss, (end, k) in enumerate(zip(np.cumsum(counts), counts, strict=True)):
            some = jax.tree.map(lambda a, end=end, k=k: a[end - k : end], (state, seeds, numbers))
            if k:
                parts.append(lax.map(lambda a, loss=loss: one(loss, *a), some, batch_size=min(size, k)))
        return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)

    mesh = jax.make_mesh((len(devices),), ("variants",), (AxisType.Auto,), devices=devices)
    each, same = PartitionSpec("variants"), PartitionSpec()
    arguments = jax.device_put(_stacked(losses, [variants[i] for i in order]), NamedSharding(mesh, each))
    over = partial(jax.shard_map, mesh=mesh, out_specs=each, check_vma=False)
    state = jax.jit(over(partial(_initial, task), in_specs=each))(*arguments[1:])
    program = jax.jit(over(here, in_specs=(each,) * 4 + (same,) * 2), donate_argnums=0)
    ready = program.lower(state, *arguments, 0, 0).compile()
    return places, state, lambda state, start, count: ready(state, *arguments, start, count)


def _fastest(task: Task, variants: Sequence[Variant], devices: Sequence[jax.Device], steps: int = 2) -> int:
    """How many variants at once take the least time each, by a few steps of the loss that most of them have.

    A larger number has to be faster by a tenth, more than noise is.
    """
    (loss, number), *_ = collections.Counter(v.loss for v in variants).most_common(1)
    best, answer = float("inf"), 1
    for size in sorted({size for size in (1, 8, number) if size <= number}):
        some = [v for v in variants if v.loss == loss][:size]
        _, state, program = _compiled(task, some, devices[:1], size)
        seconds = []
        for _ in range(4):  # the first run warms up
            started = time.perf_counter()
            state, _ = jax.block_until_ready(program(state, 0, steps))
            seconds.append((time.perf_counter() - started) / size)
        each = min(seconds[1:])
        if each > 0.9 * best:
            break
        best, answer = each, size
    return answer
