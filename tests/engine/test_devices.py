"""Losses of batches split over eight virtual devices, and over two processes, equal those of one device."""

import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import metricjax as mj
from tests.helpers import two_processes
from tests.helpers.batches import slow_unless
from tests.helpers.cases import CLASSES, OFTEN, PAIRS, PATHS
from tests.helpers.meshes import SPLIT, WHOLE, assert_same, axes, mesh_of, put

Z = jnp.asarray(np.random.default_rng(0).standard_normal((32, 4)), jnp.float32)
Y = jnp.asarray(np.random.default_rng(1).integers(0, 4, 32))
WHERE = jnp.arange(32) < 21  # some devices hold nothing that exists
WEIGHTS = jnp.linspace(0.5, 2, 32)


def check(case, axis, size, weighted, **options):
    """Value and gradient, the gradient taken outside `shard_map` and inside."""
    how = lambda where, weights: {"where": where, **({"weights": weights} if weighted else {}), **options}
    one = jax.jit(jax.value_and_grad(lambda z: case(z, Y, **how(WHERE, WEIGHTS))))(Z)
    mesh = mesh_of(axis)
    local = lambda z, y, *arrays: case(z, y, axis_name="data", block_size=size, **how(*arrays))
    over = lambda f, out: jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(SPLIT,) * 4, out_specs=out))
    arrays = put(mesh, Z, Y, WHERE, WEIGHTS)
    assert_same(jax.jit(jax.value_and_grad(over(local, WHOLE)))(*arrays), one)
    assert_same(over(jax.grad(local), SPLIT)(*arrays), one[1])


@pytest.mark.parametrize("name", slow_unless(OFTEN, PAIRS))
def test_eight_devices_equal_one(name):
    check(PAIRS[name], AxisType.Explicit, 3, weighted=name != "contrastive")


@pytest.mark.parametrize("name", slow_unless(["supcon", "triplet", "histogram"], PATHS))
def test_eight_devices_equal_one_in_dense_form(name):
    check(PAIRS[name], AxisType.Auto, None, weighted=name != "contrastive")


@pytest.mark.slow
@axes
@pytest.mark.parametrize("name", ["contrastive", "supcon"])
def test_eight_devices_equal_one_with_other_options(name, axis):
    check(PAIRS[name], axis, 3, weighted=name == "contrastive")
    check(PAIRS[name], axis, None, weighted=True)
    check(PAIRS[name], axis, 3, weighted=True, reduction=lambda mean: jnp.sum(jnp.square(mean.total)) / 7)


@axes
def test_over_mesh_equals_one_device(axis):
    """With a differentiated hyper-parameter, over one axis of a mesh or both, the batch split already or not."""
    mesh = mesh_of(axis, (4, 2), ("data", "model"))
    plain = lambda z, t: mj.losses.supcon(z, Y, where=WHERE, temperature=t)
    one = jax.jit(jax.value_and_grad(plain, (0, 1)))(Z, 0.1)
    for name in ("data", ("data", "model")):
        spread = mj.over_mesh(mj.losses.supcon, name, mesh)
        f = jax.jit(jax.value_and_grad(lambda z, y, t, f=spread: f(z, y, where=WHERE, temperature=t), (0, 2)))
        assert_same(f(*put(mesh, Z, Y), jnp.float32(0.1)), one)
        assert_same(f(Z, Y, jnp.float32(0.1)), one)
    with jax.set_mesh(mesh):
        assert_same(mj.over_mesh(mj.losses.nt_xent, "data")(Z, Y), mj.losses.nt_xent(Z, Y))


@pytest.mark.slow
@axes
@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("name", ["nt_xent", "contrastive", "triplet-semi-hard"])
def test_hyper_parameters_have_gradients_and_batches_of_values_over_a_mesh(name, size, axis):
    case = PAIRS[name]
    mesh = mesh_of(axis)
    spread = mj.over_mesh(case, "data", mesh)
    values = jnp.array([0.3, 0.9])
    over = lambda f, z, y: jax.vmap(jax.grad(lambda v: f(z, y, block_size=size, **{case.varied: v})))(values)
    expected = jax.jit(lambda z, y: over(case, z, y))(Z, Y)
    assert np.all(np.abs(expected) > 0)
    assert_same(jax.jit(lambda z, y: over(spread, z, y))(*put(mesh, Z, Y)), expected)


def test_over_mesh_refuses_what_does_not_fit():
    mesh = mesh_of(AxisType.Auto)
    with pytest.raises(ValueError, match="axis_name is 'batch'; wanted one of the mesh's axes"):
        mj.over_mesh(mj.losses.supcon, "batch", mesh)(Z, Y)
    with pytest.raises(ValueError, match="embeddings has 31 rows; wanted a multiple of the 8 devices"):
        mj.over_mesh(mj.losses.supcon, "data", mesh)(Z[:31], Y[:31])
    with pytest.raises(TypeError, match="axis_name is given to over_mesh already"):
        mj.over_mesh(mj.losses.supcon, "data", mesh)(Z, Y, axis_name="data")


def test_columns_are_gathered_once():
    """The embeddings travel once, and their gradient back once; labels and sums are all the rest."""
    mesh = mesh_of(AxisType.Auto)
    loss = mj.over_mesh(mj.losses.supcon, "data", mesh)
    text = jax.jit(jax.grad(lambda z, y: loss(z, y, block_size=3))).lower(*put(mesh, Z, Y)).compile().as_text()
    gathers = [line for line in text.splitlines() if " all-gather(" in line]
    assert len([line for line in gathers if "f32[32,4]" in line.split(" all-gather(")[0]]) == 1
    assert len(gathers) == 2
    back = [line for line in text.splitlines() if " reduce-scatter(" in line or " all-to-all(" in line]
    assert len(back) == 1


@pytest.mark.slow
def test_two_processes_equal_one():
    """Two real processes of two devices each, joined by `jax.distributed`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-m", "tests.helpers.two_processes", str(port)]
    started = [
        subprocess.Popen([*command, str(i)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    printed = [process.communicate(timeout=300) for process in started]
    z, y, where = map(jnp.asarray, two_processes.batch())
    w, count = jnp.asarray(two_processes.prototypes()), two_processes.COUNT
    for process, (out, error) in zip(started, printed, strict=True):
        assert process.returncode == 0, error
        names = (*two_processes.NAMES, *two_processes.OVER_CLASSES)
        words = [line.split(" ", 1) for line in out.splitlines()]
        lines = dict(line for line in words if line[0] in names)  # Gloo prints of its connections, line by line or not
        assert tuple(lines) == names
        for name in two_processes.NAMES:
            value, *gradient = map(float, lines[name].split())
            f = jax.value_and_grad(lambda z, case=PAIRS[name]: case(z, y, where=where))
            assert_same((value, np.reshape(gradient, z.shape)), f(z))
        for name in two_processes.OVER_CLASSES:
            value, *gradient = map(float, lines[name].split())
            f = jax.value_and_grad(
                lambda z, w, case=CLASSES[name]: case(z, y, w, where=where, num_classes=count), (0, 1)
            )
            gradients = np.reshape(gradient[: z.size], z.shape), np.reshape(gradient[z.size :], w.shape)
            assert_same((value, gradients), f(z, w))
