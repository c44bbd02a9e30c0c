"""The encoder that a training left in its folder, read with Orbax."""

import dataclasses
import json
import pathlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metricjax.ground import json_files
from metricjax.ground.extras import extra
from metricjax.trained import checkpoint_digests, people_of_run
from metricjax.trained import mesh as meshes
from metricjax.trained.design import design_of, split
from metricjax.trained.encoder import NetworkEncoder

with extra("faces"):
    import orbax.checkpoint as ocp

__all__ = ["FILE", "besides_arrays", "load", "not_finite", "options", "restored", "step_to_use"]

FILE = "encoder.json"


def load(run: str | pathlib.Path, mesh: Mesh | None = None) -> NetworkEncoder:
    """The encoder that a training left in its folder: of the best checkpoint where it was validated, else the last.

    Only whole checkpoints count; damaged ones are named, and passed over.
    """
    run = pathlib.Path(run)
    if not (run / FILE).is_file():
        raise ValueError(f"{run} holds no {FILE}; wanted the folder of a run of `metricjax train`")
    written = json_files.read(run / FILE)
    mirrored = written.pop("mirrored", True) is not False
    design = design_of(written, run / FILE)
    step = step_to_use(run)
    made = besides_arrays(run, step)["identity"]
    for name, value in json.loads(json.dumps(dataclasses.asdict(design))).items():
        if made.get(name) != value:
            raise ValueError(f"{run / FILE} is damaged: {name!r} is {value}; the checkpoint has {made.get(name)}")
    mesh = mesh or meshes.data_mesh()
    structure, params, rest = split(nnx.eval_shape(design.network))
    placed = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, PartitionSpec()))
    like = jax.tree.map(placed, {"params": params, "rest": rest})
    weights = restored(run, step, encoder=ocp.args.StandardRestore(like))["encoder"]
    if broken := not_finite(weights, mesh):
        raise ValueError(f"{run}: the encoder of checkpoint {step} is not finite ({broken[0]})")
    return NetworkEncoder(design, structure, weights, people_of_run.read(run), mesh, mirrored)


def step_to_use(run: pathlib.Path) -> int:
    """Of the whole checkpoints the one with the least error on what was held back, of equal ones the latest."""
    whole, _ = checkpoint_digests.checked(run)
    if not whole:
        raise ValueError(f"{run} holds no checkpoint yet")
    return min(whole, key=lambda step: _error_of(run, step))


def restored(run: pathlib.Path, step: int, **items):
    """Items of a checkpoint."""
    folder = run / checkpoint_digests.CHECKPOINTS
    try:
        with ocp.CheckpointManager(folder.absolute(), options=options(create=False)) as manager:
            return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax raises nearly every kind over a damaged file
        raise ValueError(f"{folder / str(step)} cannot be read ({_in_short(error)})") from None


def besides_arrays(run: pathlib.Path, step: int) -> dict[str, Any]:
    """What a checkpoint holds of its run: identity, history, and position of the input."""
    item = (run / checkpoint_digests.CHECKPOINTS / str(step) / "run").absolute()
    try:
        found = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(item)
        if not isinstance(found["identity"], dict) or not isinstance(found["history"], dict) or "position" not in found:
            raise ValueError("it is not what `metricjax train` writes")
    except Exception as error:  # Orbax raises nearly every kind over a damaged file
        raise ValueError(f"{item} cannot be read ({_in_short(error)})") from None
    return found


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]


def _error_of(run: pathlib.Path, step: int) -> float:
    """The error by which a checkpoint is chosen; infinity where it was not measured."""
    path = run / checkpoint_digests.CHECKPOINTS / str(step) / "metrics" / "metrics"
    error = _error(json_files.read(path)) if path.is_file() else None
    return float(error) if isinstance(error, float | int) else np.inf


def _error(metrics: dict) -> Any:
    return metrics.get("error", metrics.get("EER"))  # as older versions have it


def not_finite(tree, mesh: Mesh) -> list[str]:
    """Names of the arrays that hold NaN or infinity."""
    arrays = [(path, leaf) for path, leaf in jax.tree.leaves_with_path(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    finite = np.asarray(_finite([leaf for _, leaf in arrays], mesh))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in arrays]
    return [name for name, whole in zip(names, finite, strict=True) if not whole]


@partial(jax.jit, static_argnums=1)
def _finite(arrays, mesh: Mesh):
    each = jnp.stack([jnp.all(jnp.isfinite(array)) for array in arrays])
    return jax.lax.with_sharding_constraint(each, NamedSharding(mesh, PartitionSpec()))


def options(chosen: bool = True, **others) -> ocp.CheckpointManagerOptions:
    """Keep the two latest checkpoints, to go on from, and, if one is `chosen` by its error, the best, to use."""
    policies = ocp.checkpoint_managers
    latest = policies.LatestN(2)
    if not chosen:
        return ocp.CheckpointManagerOptions(preservation_policy=latest, **others)
    best = policies.BestN(get_metric_fn=_error, reverse=True, n=1, keep_checkpoints_without_metrics=False)
    either = policies.AnyPreservationPolicy([latest, best])
    return ocp.CheckpointManagerOptions(preservation_policy=either, best_fn=_error, best_mode="min", **others)
