"""Side by side with PyTorch Metric Learning and Optax: the same inputs, values compared first, then times.

    python -m pip install torch pytorch-metric-learning
    python -m benchmarks.peers [--rounds 5]

Value and gradient with respect to the embeddings, in float32. A peer that is not installed is left out.
"""

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import metricjax as mj
from benchmarks.losses import batch
from benchmarks.report import bars, fastest, save

D, PER_CLASS = 128, 4
ALL = partial(mj.losses.triplet, triplets=mj.mining.all_triplets)


def of_pytorch_metric_learning() -> dict[str, Callable]:
    """Its losses of embeddings and labels, by our names, with settings that make both alike."""
    from pytorch_metric_learning import distances, losses, miners

    square = distances.LpDistance(power=2)
    plain, hardest = losses.TripletMarginLoss(margin=0.2, distance=square), miners.BatchHardMiner(distance=square)
    return {
        "supcon": losses.SupConLoss(0.1),
        "contrastive, not squared": losses.ContrastiveLoss(pos_margin=0, neg_margin=1),
        "multi_similarity": losses.MultiSimilarityLoss(2, 50, 0.5),
        "circle": losses.CircleLoss(m=0.4, gamma=80),
        "triplet, batch-hard": lambda z, y: plain(z, y, hardest(z, y)),
        "nt_xent": losses.NTXentLoss(0.1),
        "triplet, all": plain,
    }


OURS = {
    "supcon": (4096, mj.losses.supcon),
    "contrastive, not squared": (4096, partial(mj.losses.contrastive, squared=False)),
    "multi_similarity": (4096, mj.losses.multi_similarity),
    "circle": (4096, mj.losses.circle),
    "triplet, batch-hard": (4096, mj.losses.triplet),
    "nt_xent": (512, mj.losses.nt_xent),
    "triplet, all": (512, ALL),
}


def torch_contestants() -> dict[str, tuple[int, Callable, Callable]]:
    """Name, batch, our loss, and what makes the peer's step from embeddings and labels."""
    import torch

    def step(loss):
        def prepared(z, y):
            z, y = torch.tensor(np.asarray(z), requires_grad=True), torch.tensor(np.asarray(y))

            def run():
                value = loss(z, y)
                return value.item(), torch.autograd.grad(value, z)[0].numpy()

            return run

        return prepared

    theirs = of_pytorch_metric_learning()
    return {name: (n, ours, step(theirs[name])) for name, (n, ours) in OURS.items()}


def optax_contestants() -> dict[str, tuple[int, Callable, Callable]]:
    from optax.losses import ntxent

    def prepared(z, y):
        f = jax.jit(jax.value_and_grad(partial(ntxent, temperature=0.1)))
        return lambda: f(z, y)

    return {"nt_xent": (512, mj.losses.nt_xent, prepared)}


PEERS = {"pytorch-metric-learning": torch_contestants, "optax": optax_contestants}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows, installed = [], [name for name in PEERS if importlib.util.find_spec(name.replace("-", "_"))]
    for peer in installed:
        for name, (n, ours, theirs) in PEERS[peer]().items():
            rows.append({"peer": peer, "loss": name, "batch": n, **compared(n, ours, theirs, args.rounds)})
            rows[-1]["name"] = f"{name}, {n}, {peer}"
            print(
                "{peer:24} {loss:26} batch {batch:5}   values {ours:.6f} and {theirs:.6f}, gradients differ by "
                "{gradients_differ:.0e}   ours {ours_ms:7.1f} ms, theirs {theirs_ms:8.1f} ms: {times:5.1f} x".format(
                    **rows[-1]
                ),
                flush=True,
            )
    versions = [*installed, *(["torch"] if "pytorch-metric-learning" in installed else [])]
    save("peers", rows, bars(rows, "name", {"times": "times faster"}, "time of the peer / ours", log=True), versions)


def compared(n: int, ours: Callable, theirs: Callable, rounds: int) -> dict[str, float]:
    z, y = batch(n, D, PER_CLASS)
    step = jax.jit(jax.value_and_grad(lambda z: ours(z, y)))
    peer = theirs(z, y)
    (value, gradient), (peer_value, peer_gradient) = step(z), peer()
    seconds = fastest({"ours": lambda: step(z), "theirs": peer}, rounds)
    return {
        "ours": float(value),
        "theirs": float(peer_value),
        "gradients_differ": float(jnp.linalg.norm(gradient - peer_gradient) / jnp.linalg.norm(gradient)),
        "ours_ms": 1e3 * seconds["ours"],
        "theirs_ms": 1e3 * seconds["theirs"],
        "times": seconds["theirs"] / seconds["ours"],
    }


if __name__ == "__main__":
    main()
