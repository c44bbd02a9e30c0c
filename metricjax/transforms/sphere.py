"""Optax transformations: parameters that stay on the unit hypersphere, and updates of a few rows of many.

`project_to_sphere` follows any optimiser; `riemannian_sgd` and `riemannian_adam` keep their moments in the tangent
space. A point is a row, the last axis of a parameter, of any length at the start and of length 1 from the first step
on (to 2e-7 in float32, and at first to the rounding of a long row). Arithmetic and moments are float32, or float64 for
float64 parameters.

Where the points of a parameter lie along another axis, nothing but `axis` can tell. The kernel of a Flax `Linear` is
[d, c], with the prototype of a class in each column, and wants `axis=0`; prototypes [c, d] want the default. Parameters
of both kinds get a transformation each, by `optax.partition` or `optax.masked`. Moments have the layout of parameters.

A bfloat16 parameter has rows of length 1 to 4e-3. It takes a step only where that exceeds half the distance to the next
bfloat16 number, 0.2 to 0.4 % of a coordinate; shorter ones are rounded away, with momentum or without. To take them,
keep the parameters in float32, and cast them where the loss is computed.
"""

import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from metricjax import sphere
from metricjax.ground.extras import extra
from metricjax.ground.numerics import normalize, safe_sqrt, widen

with extra("optax"):
    import optax

__all__ = [
    "Retraction",
    "RiemannianAdamState",
    "RiemannianSgdState",
    "project_to_sphere",
    "riemannian_adam",
    "riemannian_gradient",
    "riemannian_sgd",
]

Retraction = Literal["exponential", "projection"]


def project_to_sphere(axis: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Make every row of the parameters have length 1 after the update; put it last in a chain.

    The update u of a row p becomes (p + u) / ‖p + u‖ − p. A row that ends at zero stays there. Choose the leaves it
    acts on, prototypes for example, with `optax.masked` or `optax.partition`.

    Args:
      axis: along which the rows lie; None for the last, as in prototypes [c, d]; 0 for the kernel [d, c] of a Flax
        layer. `optax.inject_hyperparams` takes any int for a number to inject: give it `static_args="axis"`.

    >>> import jax.numpy as jnp
    >>> optimizer = optax.chain(optax.sgd(1.0), project_to_sphere())
    >>> p = jnp.array([[1.0, 0.0]])
    >>> update, _ = optimizer.update(jnp.array([[0.0, -1.0]]), optimizer.init(p), p)
    >>> optax.apply_updates(p, update).tolist()
    [[0.7071, 0.7071]]
    """
    return _stateless("project_to_sphere", axis, lambda u, p: _unit(p + u) - p)


def riemannian_gradient(axis: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Take the radial part out of the gradient of every row of the parameters; put it first in a chain.

    The gradient g of a row p becomes its part in the tangent space of the sphere, g − (g·p̂) p̂ with p̂ = p / ‖p‖, so
    that what only changes the length of p enters no moment and no norm. A row p = 0 keeps its gradient. There is no
    state. After `optax.sgd`, `project_to_sphere` then makes a step of Riemannian gradient descent. `axis` is that of
    `project_to_sphere`.

    >>> import jax.numpy as jnp
    >>> p = jnp.array([[0.6, 0.8]])
    >>> riemannian_gradient().update(jnp.array([[1.0, 0.0]]), optax.EmptyState(), p)[0].tolist()
    [[0.64, -0.48]]
    """
    return _stateless("riemannian_gradient", axis, lambda g, p: sphere.to_tangent(_unit(p), g))


class RiemannianSgdState(NamedTuple):
    """How many steps were taken, and the momentum of each row at its present point; None without momentum."""

    count: Array  # type: ignore[assignment]  # hides tuple.count
    trace: Any


def riemannian_sgd(
    learning_rate: ArrayLike | Callable[[Array], ArrayLike],
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    *,
    retraction: Retraction = "exponential",
    axis: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent along the sphere, with momentum in the tangent space; put it last in a chain.

    With the tangential gradient g of a row p (along `axis`) and the momentum m: m ← g + μ m, and p moves by −η m, or by
    −η (g + μ m) with `nesterov`. Then m is transported to the new point along the great circle between the two.
    A move v ends at cos‖v‖ p + sin‖v‖ v / ‖v‖ (`retraction="exponential"`), so that ‖v‖ is the angle between old and
    new point in radians, or at (p + v) / ‖p + v‖ (`"projection"`), less than a right angle away. The update is the new
    point minus p, in float32 where p is narrower. η is a number, a traced array or an Optax schedule.

    A row p = 0 moves to −g / ‖g‖, or stays where g = 0. The state is a `RiemannianSgdState`.

    Bonnabel 2013, "Stochastic gradient descent on Riemannian manifolds", arXiv:1111.5280. The momentum is that of
    `optax.sgd`.

    >>> import jax.numpy as jnp
    >>> optimizer, p = riemannian_sgd(jnp.pi / 6), jnp.array([[1.0, 0.0]])
    >>> update, _ = optimizer.update(jnp.array([[5.0, -1.0]]), optimizer.init(p), p)
    >>> optax.apply_updates(p, update).tolist()  # 30°
    [[0.8660, 0.5]]
    """
    retract = _retraction(retraction)

    def init(params):
        return RiemannianSgdState(jnp.zeros((), jnp.int32), None if momentum is None else _zeros(params))

    def update(updates, state, params):
        x, g = _points_and_gradients(updates, params)
        direction, trace = g, None
        if momentum is not None:
            add = lambda g, m: g + jnp.asarray(momentum, m.dtype) * m
            trace = jax.tree.map(add, g, state.trace)
            direction = jax.tree.map(add, g, trace) if nesterov else trace
        y, updates = _moved(retract, x, direction, learning_rate, state.count, params)
        trace = None if trace is None else jax.tree.map(sphere.transport, x, y, trace)
        return updates, RiemannianSgdState(optax.safe_increment(state.count), trace)

    return _checked("riemannian_sgd", axis, init, update)


class RiemannianAdamState(NamedTuple):
    """How many steps were taken; of each row the first moment, at its present point, and the second, one number."""

    count: Array  # type: ignore[assignment]  # hides tuple.count
    mu: Any
    nu: Any


def riemannian_adam(
    learning_rate: ArrayLike | Callable[[Array], ArrayLike],
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    retraction: Retraction = "exponential",
    axis: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam along the sphere, one manifold for each row (along `axis`) of the parameters; put it last in a chain.

    With the tangential gradient g of a row p: m ← β₁ m + (1 − β₁) g and v ← β₂ v + (1 − β₂) ‖g‖², one number for each
    row, and p moves by −η m̂ / (√v̂ + ε), with Adam's m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ). Then m is transported
    to the new point along the great circle between the two. η, the move and the update are as in `riemannian_sgd`.

    A √v̂ for each coordinate, as in `optax.adam`, would take the move out of the tangent space and make it depend on
    the axes. So the first step has length η, an angle in radians for the whole row, where `optax.adam` goes about η √d.

    A row p = 0 moves to −g / ‖g‖, or stays where g = 0. The state is a `RiemannianAdamState`, half the size of Adam's.

    Bécigneul & Ganea 2019, "Riemannian adaptive optimization methods", arXiv:1810.00760 (RADAM), for a product of
    spheres; corrections of the bias and defaults are those of Kingma & Ba 2015, arXiv:1412.6980.

    >>> import jax.numpy as jnp
    >>> optimizer, p = riemannian_adam(jnp.pi / 6), jnp.array([[1.0, 0.0]])
    >>> update, _ = optimizer.update(jnp.array([[5.0, -0.1]]), optimizer.init(p), p)
    >>> optax.apply_updates(p, update).tolist()  # 30°, however small the gradient
    [[0.8660, 0.5]]
    """
    retract = _retraction(retraction)

    def init(params):
        mu = _zeros(params)
        return RiemannianAdamState(jnp.zeros((), jnp.int32), mu, jax.tree.map(lambda m: m[..., :1], mu))

    def update(updates, state, params):
        x, g = _points_and_gradients(updates, params)
        count = optax.safe_increment(state.count)

        decay = lambda b, kept: jnp.asarray(b, kept.dtype)
        mean = lambda b, kept, new: decay(b, kept) * kept + (1 - decay(b, kept)) * new
        unbiased = lambda b, kept: kept / (1 - decay(b, kept) ** count.astype(kept.dtype))
        mu = jax.tree.map(lambda m, g: mean(b1, m, g), state.mu, g)
        square = lambda g: jnp.sum(jnp.square(g), axis=-1, keepdims=True)
        nu = jax.tree.map(lambda v, g: mean(b2, v, square(g)), state.nu, g)
        scaled = lambda m, v: unbiased(b1, m) / (safe_sqrt(unbiased(b2, v)) + jnp.asarray(eps, v.dtype))
        y, updates = _moved(retract, x, jax.tree.map(scaled, mu, nu), learning_rate, state.count, params)
        return updates, RiemannianAdamState(count, jax.tree.map(sphere.transport, x, y, mu), nu)

    return _checked("riemannian_adam", axis, init, update)


# --- trees ----------------------------------------------------------------------------------------------------------


def _checked(name: str, axis: int | None, init: Callable, update: Callable) -> optax.GradientTransformationExtraArgs:
    """`init` and `update` see rows along the last axis; parameters, updates and state have them along `axis`."""
    axis = -1 if axis is None else operator.index(axis)
    moved = lambda tree, here, there: jax.tree.map(lambda a: jnp.moveaxis(a, here, there) if jnp.ndim(a) else a, tree)
    to_rows, to_axis = lambda tree: moved(tree, axis, -1), lambda tree: moved(tree, -1, axis)

    def init_rows(params):
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            which = f"{name}: parameter {jax.tree_util.keystr(path)}"
            if leaf.ndim == 0:
                raise ValueError(f"{which} is a scalar; wanted rows")
            if not -leaf.ndim <= axis < leaf.ndim:
                raise ValueError(f"{which} has shape {leaf.shape}; wanted an axis {axis}, along which its rows lie")
        return to_axis(init(to_rows(params)))

    def update_rows(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError(f"{name} got no params; wanted update(updates, state, params)")
        return to_axis(update(to_rows(updates), to_rows(state), to_rows(params)))

    return optax.GradientTransformationExtraArgs(init_rows, update_rows)


def _stateless(
    name: str, axis: int | None, change: Callable[[Array, Array], Array]
) -> optax.GradientTransformationExtraArgs:
    """Changes each update, given its parameter, in the dtype it comes in."""
    changed = lambda u, p: change(widen(u), widen(p)).astype(u.dtype)
    update = lambda updates, state, params: (jax.tree.map(changed, updates, params), state)
    return _checked(name, axis, lambda params: optax.EmptyState(), update)


def _zeros(params: Any) -> Any:
    return jax.tree.map(lambda p: jnp.zeros_like(widen(p)), params)


def _points_and_gradients(updates: Any, params: Any) -> tuple[Any, Any]:
    """The points on the sphere, and the gradients in their tangent spaces."""
    points = jax.tree.map(lambda p: _unit(widen(p)), params)
    return points, jax.tree.map(lambda g, x: sphere.to_tangent(x, g.astype(x.dtype)), updates, points)


def _moved(retract, points: Any, directions: Any, learning_rate, count, params: Any) -> tuple[Any, Any]:
    """The new points, and their difference to the parameters."""
    rate = learning_rate(count) if callable(learning_rate) else learning_rate
    step = lambda x, d: _unit(retract(x, -jnp.asarray(rate, x.dtype) * d))
    moved = jax.tree.map(step, points, directions)
    return moved, jax.tree.map(lambda y, p: y - widen(p), moved, params)


# --- one sphere for each row; a row of zeros has no tangent space, and every vector will do -------------------------


def _retraction(name: Retraction) -> Callable[[Array, Array], Array]:
    if name not in ("exponential", "projection"):
        raise ValueError(f"retraction is {name!r}; wanted 'exponential' or 'projection'")
    return _exp if name == "exponential" else jnp.add


def _unit(x: Array) -> Array:
    """x / ‖x‖ to the last bit: the plain quotient is off by more, and where nothing moves it walks, bit after bit."""
    short = lambda x: 1 - jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    near = jnp.where(jnp.abs(short(x)) < float(jnp.finfo(x.dtype).eps) ** 0.5 / 4, x, normalize(x))
    return near + near * (short(near) / 2)  # a step of Newton's method


def _exp(x: Array, v: Array) -> Array:
    return jnp.where(jnp.any(x != 0, axis=-1, keepdims=True), sphere.exp(x, v), v)
