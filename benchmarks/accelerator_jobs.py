"""What `benchmarks.accelerator` measures. Jobs are made of shapes: every program lowers for any platform without it."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import metricjax as mj
from benchmarks import torch_peers
from benchmarks.losses import LOSSES, batch, three_products
from benchmarks.prototypes import three_products as products_with_prototypes

SEED = np.int32(0)
DEFAULT, DENSE = "default", "dense"  # forms of ours
ROWS_CHECKED = 64  # rows of a product that are compared with float64


@contextlib.contextmanager
def nothing_else(prepared, data, programs):
    yield {}


class Job(NamedTuple):
    """Forms of one computation: functions of the same arrays, compiled ahead and then measured side by side.

    make: `seed -> arrays`, traced.
    base: the form whose time is the unit of the others.
    amount: what that time grows with, and how much of it there is: where the base does not fit into memory, its time is
        taken from an earlier job of the same kind.
    fixed: forms with sizes set by hand, of which the best is told.
    work: what one call does, and what it is called.
    kept: what goes to the host of a form's first result, for `seen`.
    seen: `(data, kept) -> {form: numbers}`, to be told beside the times.
    prepare: what else is done ahead.
    others: `(prepared, data, programs) -> {form: (run, calls)}`, a context, with the runs that JAX does not compile.
    by_itself: `prepared -> {form: seconds}`, in place of all of these.
    timed: False where `seen` is all that is wanted.
    first_to_compile: whether compiling takes so long that it has to begin before that of all others.
    """

    name: str
    make: Callable = lambda seed: ()
    forms: Mapping[str, Callable] = {}
    base: str | None = None
    amount: tuple[str, float] = ("", 1.0)
    fixed: Sequence[str] = ()
    work: tuple[float, str] | None = None
    kept: Callable[[Any], Any] = lambda result: None
    seen: Callable[[Any, Mapping[str, Any]], Mapping[str, Mapping[str, float]]] = lambda data, kept: {}
    prepare: Callable[[], Any] = lambda: None
    others: Callable = nothing_else
    by_itself: Callable[[Any], dict[str, float]] | None = None
    timed: bool = True
    first_to_compile: bool = False


class Sizes(NamedTuple):
    """What is measured on one kind of machine."""

    product: tuple[int, int, int]
    flat_product: tuple[int, int, int]  # rows, columns, features of a batch
    copied: int  # numbers
    checked: tuple[int, int]
    pairs: Sequence[tuple[int, int]]
    blocks: Sequence[int]
    most_dense: int  # rows
    losses: Sequence[str]
    heads: Sequence[tuple[int, int, int]]
    block_of_classes: int
    searches: Sequence[tuple[int, int, int, int]]
    part: int  # scores in memory at a time, where ours is compared with all of them


LARGE = Sizes(
    product=(8192, 8192, 8192),
    flat_product=(4096, 65536, 128),
    copied=2**28,
    checked=(512, 128),
    pairs=((4096, 128), (16384, 128), (65536, 128), (16384, 512)),
    blocks=(256, 1024, 4096, 16384),
    most_dense=16384,
    losses=("supcon", "circle", "triplet, batch-hard", "triplet, all"),
    heads=((1024, 100_000, 512), (1024, 1_000_000, 512)),
    block_of_classes=2**17,
    searches=((4096, 10**6, 128, 10), (64, 10**6, 128, 10), (1024, 10**6, 128, 100)),
    part=2**30,
)
SMALL = Sizes(
    product=(512, 512, 512),
    flat_product=(256, 1024, 32),
    copied=2**20,
    checked=(64, 16),
    pairs=((512, 16),),
    blocks=(64,),
    most_dense=512,
    losses=("supcon", "triplet, batch-hard"),
    heads=((64, 4000, 32),),
    block_of_classes=1024,
    searches=((64, 20_000, 32, 10),),
    part=2**20,
)


# --- ceilings -------------------------------------------------------------------------------------------------------

PRECISIONS = {
    "float32, default": None,
    "float32, high": lax.Precision.HIGH,
    "float32, highest": lax.Precision.HIGHEST,
    "BF16_BF16_F32_X6": lax.DotAlgorithmPreset.BF16_BF16_F32_X6,
    "BF16_BF16_F32_X3": lax.DotAlgorithmPreset.BF16_BF16_F32_X3,
    "TF32_TF32_F32_X3": lax.DotAlgorithmPreset.TF32_TF32_F32_X3,
}


def product(n: int, m: int, d: int) -> Job:
    """The bare product at each precision: which algorithm really runs shows in speed and error together."""

    def make(seed):
        keys = jax.random.split(jax.random.key(seed))
        x, y = (mj.sphere.project(jax.random.normal(key, (rows, d))) for key, rows in zip(keys, (n, m), strict=True))
        return x, y, x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)

    def errors(data, kept):
        x, y = (np.asarray(a, np.float64) for a in (data[0][:ROWS_CHECKED], data[1]))
        return {form: {"error": np.max(np.abs(found - x @ y.T))} for form, found in kept.items()}

    forms = {"bfloat16": lambda x, y, a, b: jnp.matmul(a, b.T, preferred_element_type=jnp.float32)}
    for name, precision in PRECISIONS.items():
        forms[name] = lambda x, y, a, b, precision=precision: jnp.matmul(x, y.T, precision=precision)
    first_rows = lambda result: np.asarray(result[:ROWS_CHECKED], np.float64)
    work = 2 * n * m * d / 1e12, "TFLOP/s"
    return Job(f"product {n:,} × {m:,} × {d}", make, forms, work=work, kept=first_rows, seen=errors)


def copy(size: int) -> Job:
    make = lambda seed: (jnp.full(size, seed, jnp.float32),)
    return Job(f"copy {size * 4 / 2**20:,.0f} MiB", make, {"x + 1": lambda x: x + 1}, work=(8 * size / 1e9, "GB/s"))


# --- losses of pairs ------------------------------------------------------------------------------------------------

PRODUCTS = "three products"


@cache
def rows_and_labels(n: int, d: int) -> Callable:
    return lambda seed: batch(n, d, 4, seed)


def products_of_rows(z, y):
    return three_products(z)


def gradient(loss: Callable, size: int | str | None = "auto") -> Callable:
    return jax.value_and_grad(lambda z, y: loss(z, y, block_size=size))


def value(result) -> float | None:
    """The value of a loss; None of bare products."""
    return float(result[0]) if result[0].ndim == 0 else None


def differences(data, kept):
    """How far values are from that of the default, as a share of it: wrong ones are not worth their time."""
    own = kept.get(DEFAULT)
    others = {form: v for form, v in kept.items() if v is not None and form != DEFAULT}
    return {form: {"differs": abs(v - own) / abs(own)} for form, v in others.items()} if own else {}


DECLARED = ("supcon", "circle")  # of the losses here, those that can be swept
FUSED = (*DECLARED, "triplet, batch-hard")  # those that have a kernel


def kernels(name: str) -> dict[str, Callable]:
    """The fused kernel of a loss, at each precision that it has."""
    at = {"kernel": None, "kernel, bfloat16": "bfloat16", "kernel, exact": "exact"} if name in FUSED else {}
    swept = partial(LOSSES[name], implementation="kernel")
    return {form: gradient(partial(swept, precision=precision)) for form, precision in at.items()}


def pairs(name: str, n: int, d: int, sizes: Sizes) -> Job:
    """Value and gradient with the defaults, in panels of fixed heights, two sweeps, a kernel and dense, and torch's."""
    loss = LOSSES[name]
    fixed = {f"{size} rows": gradient(loss, size) for size in sizes.blocks if size <= n}
    if name in DECLARED:
        fixed["sweeps"] = gradient(partial(loss, implementation="sweeps"))
    if n <= sizes.most_dense:
        fixed[DENSE] = gradient(loss, None)
    forms = {PRODUCTS: products_of_rows, DEFAULT: gradient(loss), **fixed, **kernels(name)}
    job = Job(f"{name} {n:,} × {d}", rows_and_labels(n, d), forms)
    job = job._replace(base=PRODUCTS, amount=(f"{d} features", n * n), fixed=tuple(fixed), kept=value, seen=differences)
    if n > sizes.most_dense:
        return job
    return job._replace(prepare=partial(torch_peers.prepared, name, n, d), others=partial(torch_peers.pairs, name))


def errors(name: str, n: int, d: int) -> Job:
    """Value and gradient beside those of the dense form in float64, on a CPU."""
    loss = LOSSES[name]

    def seen(data, kept):
        z, y = (np.asarray(a) for a in data)
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            exact = jax.jit(gradient(loss, None))(jnp.asarray(z, jnp.float64), jnp.asarray(y))
            exact_value, exact_gradient = jax.device_get(exact)
        relative = lambda found, exact: np.max(np.abs(found - exact)) / np.max(np.abs(exact))
        of_both = lambda v, g: {"value": relative(v, exact_value), "gradient": relative(g, exact_gradient)}
        return {form: of_both(*found) for form, found in kept.items()}

    at = {f"precision {name}": gradient(partial(loss, precision=name)) for name in ("default", "high", "highest")}
    forms = {DEFAULT: gradient(loss), **at, **kernels(name)}
    to_host = lambda result: tuple(np.asarray(a, np.float64) for a in result)
    return Job(f"errors of {name} {n} × {d}", rows_and_labels(n, d), forms, kept=to_host, seen=seen, timed=False)


# --- heads and searches ---------------------------------------------------------------------------------------------


def head(n: int, c: int, d: int, sizes: Sizes) -> Job:
    """`arcface`: value, and gradients of embeddings and prototypes."""

    def make(seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        x, w = jax.random.normal(keys[0], (n, d)), jax.random.normal(keys[1], (c, d))
        return x, jax.random.randint(keys[2], (n,), 0, c), w

    def step(size="auto"):
        loss = lambda x, w, y: mj.losses.arcface(x, y, w, block_size=size)
        return lambda x, y, w: jax.value_and_grad(loss, (0, 1))(x, w, y)

    fixed = {f"{sizes.block_of_classes} classes": step(sizes.block_of_classes), DENSE: step(None)}
    products = lambda x, y, w: products_with_prototypes(x, w)
    job = Job(f"arcface {n} × {c:,} × {d}", make, {PRODUCTS: products, DEFAULT: step(), **fixed}, base=PRODUCTS)
    return job._replace(amount=(f"{n} × classes × {d}", c), fixed=tuple(fixed), kept=value, seen=differences)


PRODUCT_AND_MAXIMUM, EXACT = "product and maximum", "lax.top_k, highest"


def search(q: int, m: int, d: int, k: int, sizes: Sizes) -> Job:
    """The k nearest by inner product, beside the product with its maximum and `lax.top_k`, in parts that fit."""
    height = min(q, 2 ** (max(1, sizes.part // m).bit_length() - 1))

    def make(seed):
        keys = jax.random.split(jax.random.key(seed))
        return jax.random.normal(keys[0], (q, d)), jax.random.normal(keys[1], (m, d))

    def in_parts(f, precision=None):
        scores = lambda x, y: jnp.matmul(x, y.T, precision=precision)
        parts = lambda x, y: lax.map(lambda part: f(scores(part, y)), x.reshape(-1, height, d))
        return lambda x, y: jax.tree.map(lambda a: a.reshape(q, *a.shape[2:]), parts(x, y))

    def right(data, kept):
        """The share of the neighbours found among those that exact products find."""
        among = lambda found: np.mean([len(np.intersect1d(*rows)) / k for rows in zip(found, kept[EXACT], strict=True)])
        return {form: {"right": among(found)} for form, found in kept.items() if found is not None}

    job = Job(f"top_k {q} × {m:,} × {d}, k {k}", make)
    job = job._replace(
        forms={
            PRODUCT_AND_MAXIMUM: in_parts(lambda s: jnp.max(s, axis=1)),
            DEFAULT: lambda x, y: mj.search.top_k(x, y, k, similarity=mj.similarities.dot),
            "lax.top_k": in_parts(lambda s: lax.top_k(s, k)),
            EXACT: in_parts(lambda s: lax.top_k(s, k), lax.Precision.HIGHEST),
        },
        base=PRODUCT_AND_MAXIMUM,
        amount=(f"{m} × {d}", q),
        kept=lambda result: None if hasattr(result, "shape") else np.asarray(result[1]),
        seen=right,
    )
    return job._replace(others=partial(torch_peers.search, k=k, height=height))


def jobs(sizes: Sizes, training: Sequence[Job]) -> list[Job]:
    """In the order in which they are measured: cheap ones that tell most come first."""
    (first, *wide), (most_queries, *fewer) = sizes.pairs, sizes.searches
    heads = [head(*shape, sizes) for shape in sizes.heads]
    of_pairs = lambda shape, names=sizes.losses: [pairs(name, *shape, sizes) for name in names]
    return [
        *(errors(name, *sizes.checked) for name in sizes.losses),
        product(*sizes.product),
        copy(sizes.copied),
        *of_pairs(first),
        search(*most_queries, sizes),
        *heads[:1],
        *(job for shape in wide if shape[1] == first[1] for job in of_pairs(shape)),
        *(search(*shape, sizes) for shape in fewer),
        *training[:1],
        *heads[1:],
        product(*sizes.flat_product),
        *(job for shape in wide if shape[1] != first[1] for job in of_pairs(shape, ("supcon",))),
        *training[1:],
    ]
