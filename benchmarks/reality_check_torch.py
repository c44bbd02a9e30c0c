"""PyTorch Metric Learning's half of benchmarks/reality_check.py: the same network, losses and optimiser in PyTorch."""

import math
from collections.abc import Callable

import numpy as np
import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from benchmarks.reality_check_ours import ADAM, EPSILON, FEATURES, MARGIN, RATES, SCALE, THREADS, Network

PACKAGES = ("torch", "pytorch-metric-learning")


def loss_of(name: str, prototypes: np.ndarray) -> tuple[Callable, list[torch.nn.Parameter]]:
    """A loss of features and labels by our name, with settings that make it ours, and the prototypes that it holds."""
    classes, over_all = len(prototypes), reducers.MeanReducer()
    if name == "contrastive":
        return losses.ContrastiveLoss(pos_margin=0, neg_margin=1, reducer=over_all), []
    if name == "triplet, batch-hard":
        triplet = losses.TripletMarginLoss(margin=0, smooth_loss=True, reducer=over_all)
        hardest = miners.BatchHardMiner()
        return lambda z, y: triplet(z, y, hardest(z, y)), []
    if name == "SupCon":
        return losses.SupConLoss(0.1), []
    if name == "multi-similarity, its miner":  # by default it divides by all rows, mined or not
        loss, mined = losses.MultiSimilarityLoss(reducer=reducers.AvgNonZeroReducer()), miners.MultiSimilarityMiner()
        return lambda z, y: loss(z, y, mined(z, y)), []
    if name == "ProxyAnchor":
        anchors = losses.ProxyAnchorLoss(classes, FEATURES)
        anchors.proxies.data = of(prototypes)
        return anchors, [anchors.proxies]
    if name == "ArcFace":  # its margin is in degrees, its prototypes are columns
        arcface = losses.ArcFaceLoss(classes, FEATURES, margin=math.degrees(MARGIN), scale=SCALE)
        arcface.W.data = of(prototypes.T)
        return arcface, [arcface.W]
    return lambda z, y: z.square().mean(), []  # the encoder alone


def network(ours: Network) -> torch.nn.Sequential:
    """The same for images [n, channels, height, width], whose positions are joined channel after channel."""
    modules: list[torch.nn.Module] = []
    for kernel, scale, bias in ours.convolutions:
        width, _, before, channels = kernel.shape
        conv = torch.nn.Conv2d(before, channels, width, stride=2, padding=width // 2, bias=False)
        norm = torch.nn.GroupNorm(1, channels, eps=EPSILON)
        conv.weight.data = of(kernel.transpose(3, 2, 0, 1))
        norm.weight.data, norm.bias.data = of(scale), of(bias)
        modules += [conv, norm, torch.nn.GELU(approximate="tanh")]
    side = math.isqrt(len(ours.kernel) // channels)
    by_channel = ours.kernel.reshape(side, side, channels, FEATURES).transpose(3, 2, 0, 1)
    linear = torch.nn.Linear(len(ours.kernel), FEATURES)
    linear.weight.data, linear.bias.data = of(by_channel.reshape(FEATURES, -1)), of(ours.bias)
    return torch.nn.Sequential(*modules, torch.nn.Flatten(), linear)


def of(array: np.ndarray) -> torch.Tensor:
    """A copy in the order of its own axes."""
    return torch.tensor(np.ascontiguousarray(array))


def channels_first(images: np.ndarray) -> torch.Tensor:
    return of(images.transpose(0, 3, 1, 2))


class Theirs:
    """A training by PyTorch: `step` with the indices of a batch gives the loss before the step."""

    def __init__(self, name: str, params: dict, images: np.ndarray, labels: np.ndarray):
        torch.set_num_threads(THREADS)
        self.network = network(params["network"])
        self.loss, prototypes = loss_of(name, params["prototypes"])
        adam = {"betas": (ADAM["b1"], ADAM["b2"]), "eps": ADAM["eps"]}
        groups = [{"params": self.network.parameters(), "lr": RATES["network"]}]
        if prototypes:
            groups.append({"params": prototypes, "lr": RATES["prototypes"]})
        self.optimizer = torch.optim.Adam(groups, **adam)
        self.images, self.labels = channels_first(images), torch.tensor(labels, dtype=torch.long)

    def step(self, chosen: np.ndarray) -> float:
        index = torch.from_numpy(chosen).long()
        loss = self.loss(self.network(self.images[index]), self.labels[index])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def embed(self, images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.network(channels_first(images)).numpy()


def their_loss(name: str, z: np.ndarray, y: np.ndarray, prototypes: np.ndarray) -> Callable:
    """Value and gradient of a loss alone, to be timed."""
    loss, held = loss_of(name, prototypes)
    embeddings, labels = torch.tensor(z, requires_grad=True), torch.tensor(y, dtype=torch.long)

    def run():
        value = loss(embeddings, labels)
        return value.item(), torch.autograd.grad(value, [embeddings, *held])

    return run


def by_calculator(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """recall@1 and MAP@R by their calculator."""
    names = {"precision_at_1": "recall@1", "mean_average_precision_at_r": "map@r"}
    nearest = CustomKNN(distances.CosineSimilarity())
    calculator = AccuracyCalculator(include=tuple(names), k="max_bin_count", knn_func=nearest)
    found = calculator.get_accuracy(torch.tensor(embeddings), torch.tensor(labels, dtype=torch.long))
    return {ours: float(found[theirs]) for theirs, ours in names.items()}
