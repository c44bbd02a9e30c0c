"""What trainings of many small face encoders in one program have in common: `metricjax compare`, and benchmarks."""

import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

import metricjax as mj

__all__ = ["COLLAPSED", "batches", "measured", "with_mirror_images"]

COLLAPSED = 0.05  # embeddings of less spread have fallen to one point; those that lie evenly have a spread of 1


def with_mirror_images(faces: mj.data.Faces) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of twice the people: a mirrored face counts as somebody else's."""
    source = mj.data.mirrored(mj.data.ArraySource(faces))
    return np.stack([source[i] for i in range(len(source))]), source.labels


def batches(labels: np.ndarray, people: int, each: int, seeds: Iterable[int], steps: int) -> jax.Array:
    """Indices [seed, step, image] of P × K batches, epoch after epoch."""

    def of(seed: int) -> list[np.ndarray]:
        epochs = (mj.samplers.pk_batches(labels, people, each, seed=seed, epoch=n) for n in itertools.count())
        return list(itertools.islice(itertools.chain.from_iterable(epochs), steps))

    return jnp.asarray(np.array([of(seed) for seed in seeds]))


def measured(embeddings: np.ndarray, labels: np.ndarray, far: float = 0.01) -> dict[str, float]:
    """Verification and retrieval; no rate at a FAR that there are too few pairs for."""
    curve = mj.metrics.pair_scores(embeddings, labels).roc
    found = {"EER": curve.equal_error_rate()}
    if far * curve.impostors >= 1:
        found[f"TAR@FAR={far:g}"] = curve.tar_at_far(far)
    retrieval = mj.metrics.retrieval(embeddings, labels, ks=(1,))
    return found | {"recall@1": retrieval["recall@1"], "MAP@R": retrieval["map@r"]}
