"""Optax transformations that keep parameters on the unit hypersphere."""

import jax

from metricjax.extras import extra
from metricjax.numerics import normalize, widen

with extra("optax"):
    import optax
    from optax._src.base import NO_PARAMS_MSG  # the message of every Optax transformation that needs params


def project_to_sphere() -> optax.GradientTransformationExtraArgs:
    """Make every row (last axis) of the parameters have length 1 after the update; put it last in a chain.

    The update u of a row p becomes (p + u) / ‖p + u‖ − p. A row that ends at zero stays there. Choose the leaves it
    acts on, prototypes for example, with `optax.masked` or `optax.partition`.

    >>> import jax.numpy as jnp
    >>> optimizer = optax.chain(optax.sgd(1.0), project_to_sphere())
    >>> p = jnp.array([[1.0, 0.0]])
    >>> update, _ = optimizer.update(jnp.array([[0.0, -1.0]]), optimizer.init(p), p)
    >>> optax.apply_updates(p, update).tolist()
    [[0.7071, 0.7071]]
    """

    def init(params):
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if leaf.ndim == 0:
                raise ValueError(f"project_to_sphere: parameter {jax.tree_util.keystr(path)} is a scalar, not rows")
        return optax.EmptyState()

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError(NO_PARAMS_MSG)
        moved = lambda u, p: (normalize(widen(p) + widen(u)) - widen(p)).astype(u.dtype)
        return jax.tree.map(moved, updates, params), state

    return optax.GradientTransformationExtraArgs(init, update)
