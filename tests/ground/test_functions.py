"""Functions as arguments: made anew in each call, they neither compile anew nor fill the memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.ground import functions
from metricjax.ground.functions import by_content, jitted

Z, Y = jnp.asarray(np.random.default_rng(0).standard_normal((8, 8)), jnp.float32), jnp.arange(8) // 2
LIMIT = 1


def near(a, b):
    return abs(a - b) < LIMIT


def alike(f, g):
    return by_content(f) == by_content(g)


def test_functions_are_told_apart_by_code_and_values():
    below = lambda k: lambda a, b: abs(a - b) < k
    assert alike(below(2), below(2)) and alike(below((1, "a")), below((1, "a")))
    for k in (3, 2.0, True, np.int32(2), None):
        assert not alike(below(2), below(k))
    assert not alike(below(0.0), below(-0.0))
    assert alike(below(Y), below(Y)) and not alike(below(Y), below(Y + 0))
    assert alike(functools.partial(below(1), b=2), functools.partial(below(1), b=2))
    assert not alike(functools.partial(below(1), b=2), functools.partial(below(1), b=3))
    defaults = lambda k: lambda a, b, k=k: a == b + k
    assert alike(defaults(1), defaults(1)) and not alike(defaults(1), defaults(2))
    other = lambda: lambda a, b: a == b  # of other code, though it does the same
    assert alike(other(), other()) and not alike(other(), lambda a, b: a == b)


def test_what_may_change_unseen_is_never_taken_for_the_same(monkeypatch):
    through = lambda: lambda a, b: near(a, b)
    before = by_content(through())
    assert before == by_content(through())
    monkeypatch.setitem(globals(), "LIMIT", 2)
    assert before != by_content(through())
    made = lambda value: lambda a, b: (value, a == b)
    assert alike(made(1), made(1)) and alike(made(by_content), made(by_content))
    for value in (np.ones(3), [1], {"a": 1}, object(), type("Settings", (), {"limit": 1})):
        assert not alike(made(value), made(value))


def test_values_of_enclosing_variables_count_at_the_time_of_the_call():
    """Also where an equal function had another value at first, and is traced again for another shape."""
    limit = 1
    within = lambda a, b: abs(a - b) < limit
    loss = lambda n: float(mj.losses.supcon(Z[:n], Y[:n], same=within, temperature=1.0))
    fixed = lambda n, k: float(mj.losses.supcon(Z[:n], Y[:n], same=lambda a, b: abs(a - b) < k, temperature=1.0))
    one = loss(8)
    limit = 3
    assert loss(8) == fixed(8, 3) != one
    assert fixed(6, 1) != loss(6)
    limit = 1
    assert loss(6) == fixed(6, 1) and loss(8) == one


def programs():
    return len(jax.devices()[0].client.live_executables())


def calls():
    """Functions of one's own, made anew in each call."""
    z, y, w, cosine = Z, Y, Z[:4], mj.similarities.cosine
    mean = lambda s, p, n: mj.Mean(jnp.sum(s, axis=1), jnp.sum(p, axis=1))
    return {
        "same": lambda: mj.losses.nt_xent(z, y, same=lambda a, b: a == b),
        "miner": lambda: mj.losses.nt_xent(z, y, miner=lambda d, p, n: (p, n)),
        "reduction": lambda: mj.losses.nt_xent(z, y, reduction=lambda mean: jnp.sum(mean.total)),
        "similarity": lambda: mj.losses.nt_xent(z, y, similarity=lambda a, b: a @ b.T),
        "triplets": lambda: mj.losses.triplet(z, y, triplets=lambda d, p, n: mj.mining.batch_hard(d, p, n)),
        "rows": lambda: mj.over_anchors(lambda s, p, n: mean(s, p, n), z, y, similarity=cosine),
        "weight": lambda: mj.losses.unified_pair(z, y, positive_weight=lambda s, m: s),
        "of classes": lambda: mj.losses.cosface(z, y, w, reduction=lambda mean: jnp.sum(mean.total)),
        "of rows": lambda: mj.losses.zero_mean(z, reduction=lambda mean: jnp.sum(mean.total)),
        "search": lambda: mj.search.top_k(z, z, 2, similarity=lambda a, b: a @ b.T),
        "gradient": lambda: jax.grad(lambda z: mj.losses.nt_xent(z, y, block_size=4, same=lambda a, b: a == b))(z),
    }


@pytest.mark.parametrize("name", calls())
def test_a_function_made_anew_compiles_once(name, unchecked):
    call = calls()[name]
    for _ in range(2):
        call()
    before = programs()
    for _ in range(3):
        call()
    assert programs() == before


def test_programs_of_functions_that_differ_are_forgotten(unchecked, monkeypatch):
    """Of as many as are kept, the oldest goes: with it the program, once nobody else has it."""
    kept = 3
    monkeypatch.setattr(functions, "_KEPT", kept)

    @jitted
    def scaled(f, x):
        return f(x)

    scaled(lambda x: x * -1.0, Z)
    before = programs()
    for i in range(kept + 20):
        scaled(lambda x, i=i: x * i, Z)
    assert programs() <= before + kept


def test_distances_made_of_numbers_are_the_same_function():
    assert mj.distances.lp(2) is mj.distances.lp(2) and mj.distances.lp(2.0) is mj.distances.lp(np.float32(2))
    assert mj.distances.lp(jnp.array(3.0)) is mj.distances.lp(3.0)
    assert mj.distances.poincare() is mj.distances.poincare(1.0)
    assert mj.relations.ignoring(-1) is mj.relations.ignoring(-1)
    for i in range(600):  # more than are kept: no more than that stay
        mj.distances.lp(1 + i / 512)
    kept = mj.distances._lp.cache_info()
    assert kept.currsize <= kept.maxsize
    for make in (mj.distances.lp, mj.distances.poincare):
        with pytest.raises(TypeError, match="is traced; wanted a number"):
            jax.jit(lambda p, make=make: make(p)(Z, Z))(2.0)
    with pytest.raises(ValueError, match="p is nan"):
        mj.distances.lp(float("nan"))
