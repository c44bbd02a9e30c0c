"""Against PyTorch Metric Learning 2.9.0: values and gradients in float64, wherever its formula is the one meant.

Skipped without it (`python -m pip install torch pytorch-metric-learning`). Settings that differ from the defaults of
either side are what has to be changed to get the other's result.
"""

import copy
import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_metric_learning")

import jax.numpy as jnp  # noqa: E402
from pytorch_metric_learning import distances, losses, miners, regularizers  # noqa: E402

import metricjax as mj  # noqa: E402
from metricjax import mining  # noqa: E402
from tests.helpers.pytorch_metric_learning import (  # noqa: E402
    ACTIVE,
    ALL,
    COSINE,
    EUCLIDEAN,
    MEAN,
    SNR,
    SQUARED_CHORD,
    SQUARED_EUCLIDEAN,
    HeldHistogram,
    L,
    M,
    N,
    agree,
    batch,
    first_step,
)

# --- losses over pairs ----------------------------------------------------------------------------------------------


class Same(NamedTuple):
    """Two losses that are one.

    miner: theirs; ours is a setting of the loss.
    references: both take them, and their result is right.
    alone: also with a row that is alone in its class.
    prepare: what their embeddings and references go through.
    """

    ours: Any
    theirs: Any
    miner: Any = None
    references: bool = True
    alone: bool = True
    prepare: Any = staticmethod(lambda z: z)
    rtol: float = 1e-11


def one_pair_of_each_class(z, y, **settings):
    """N-pairs as theirs: the first two rows of each class."""
    anchors, positives = np.array([np.flatnonzero(y == k)[:2] for k in np.unique(y) if np.sum(y == k) > 1]).T
    columns = {"references": z[positives], "reference_labels": jnp.asarray(y)[positives]}
    return mj.losses.n_pairs(z[anchors], jnp.asarray(y)[anchors], **columns, **settings)


def regularized_signal_to_noise(z, y, **options):
    return mj.losses.signal_to_noise(z, y, **options) + 0.1 * mj.losses.zero_mean(z)


HARD_SEMI_HARD = miners.BatchEasyHardMiner("hard", "semihard", distance=COSINE)
SAME = {
    "contrastive": Same(L("contrastive", squared=False), losses.ContrastiveLoss()),
    "contrastive, mean over all": Same(
        L("contrastive", squared=False, average="valid", margin=1.3, positive_margin=0.4),
        losses.ContrastiveLoss(0.4, 1.3, reducer=MEAN),
    ),
    "contrastive, cosine": Same(
        L("contrastive", squared=False, distance=mj.distances.cosine),
        losses.ContrastiveLoss(pos_margin=1, neg_margin=0, distance=COSINE),
    ),
    "signal_to_noise": Same(L("signal_to_noise"), losses.SignalToNoiseRatioContrastiveLoss(distance=SNR)),
    "signal_to_noise, zero_mean": Same(
        regularized_signal_to_noise,
        losses.SignalToNoiseRatioContrastiveLoss(
            distance=SNR, embedding_regularizer=regularizers.ZeroMeanRegularizer(), embedding_reg_weight=0.1
        ),
    ),
    "threshold_consistent_margin": Same(
        L("threshold_consistent_margin", positive_weight=0.5), losses.ThresholdConsistentMarginLoss(0.5),
        references=False,
    ),
    # Its weights have a gradient, and its denominators grow by 1e-5 for each column: see test_ranked_list_values.
    "ranked_list": Same(
        L("ranked_list", temperature=0.0, alpha=1.25, margin=0.5), losses.RankedListLoss(0.5, 0), references=False,
        rtol=2e-4,
    ),
    "margin": Same(L("margin", beta=1.25, **ALL), losses.MarginLoss(beta=1.25)),  # β is kept in float32: 1.2 is not 1.2
    "margin, learned": Same(
        L("margin", beta=1.125, margin=0.1, nu=0.25, **ALL), losses.MarginLoss(0.1, 0.25, 1.125, learn_beta=True)
    ),
    "triplet": Same(L("triplet", margin=0.05, **ALL), losses.TripletMarginLoss()),
    "triplet, mean over all": Same(
        L("triplet", average="valid", triplets=mining.all_triplets),
        losses.TripletMarginLoss(0.2, distance=SQUARED_CHORD, reducer=MEAN),
    ),
    "triplet, soft": Same(L("triplet", margin=None, **ALL), losses.TripletMarginLoss(0, smooth_loss=True)),
    "triplet, swap": Same(L("triplet", swap=True, **ALL), losses.TripletMarginLoss(0.2, swap=True), references=False),
    "n_pairs": Same(
        partial(one_pair_of_each_class, similarity=mj.similarities.cosine), losses.NPairsLoss(), references=False
    ),
    "n_pairs, not normalised": Same(
        one_pair_of_each_class, references=False,
        theirs=losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False)),
    ),
    "nt_xent": Same(L("nt_xent", temperature=0.07), losses.NTXentLoss()),
    "supcon": Same(L("supcon"), losses.SupConLoss()),
    "nca": Same(L("nca", temperature=0.5, distance=mj.distances.squared_chord), losses.NCALoss(softmax_scale=2)),
    "nca, not normalised": Same(L("nca"), losses.NCALoss(distance=SQUARED_EUCLIDEAN)),
    "multi_similarity": Same(L("multi_similarity"), losses.MultiSimilarityLoss()),
    "circle": Same(L("circle"), losses.CircleLoss(), rtol=1e-8),  # torch's softplus is linear above 20: e^-20 is 2e-9
    "tuplet_margin": Same(L("tuplet_margin", margin=math.radians(5.73)), losses.TupletMarginLoss()),
    "intra_pair_variance": Same(L("intra_pair_variance"), losses.IntraPairVarianceLoss()),
    "lifted_structure": Same(
        L("lifted_structure"), losses.LiftedStructureLoss(distance=EUCLIDEAN), references=False
    ),
    "lifted_structure, normalised": Same(
        L("lifted_structure", distance=mj.distances.chord), losses.LiftedStructureLoss(), references=False
    ),
    # An anchor without positives has a term of its negatives alone there, and none here.
    "generalized_lifted_structure": Same(
        L("generalized_lifted_structure", distance=mj.distances.chord), losses.GeneralizedLiftedStructureLoss(),
        alone=False,
    ),
    "angular": Same(  # it does not normalise the negatives itself
        L("angular", angle=math.radians(40)), losses.AngularLoss(), prepare=torch.nn.functional.normalize
    ),
    "histogram": Same(  # its nodes are rounded to float32
        L("histogram", bins=20), losses.HistogramLoss(20), references=False, rtol=1e-6
    ),
    "dynamic_soft_margin": Same(first_step, HeldHistogram()),
    # --- with a miner on both sides
    "contrastive, pair_margin": Same(
        L("contrastive", squared=False, miner=mining.pair_margin(0.9, 0.95)), losses.ContrastiveLoss(),
        miners.PairMarginMiner(0.9, 0.95),
    ),
    "contrastive, hard_fraction": Same(
        L("contrastive", squared=False, miner=mining.hard_fraction(0.25)), losses.ContrastiveLoss(),
        miners.HDCMiner(0.25),
    ),
    "triplet, batch_hard": Same(
        L("triplet", distance=mj.distances.chord), losses.TripletMarginLoss(0.2), miners.BatchHardMiner()
    ),
    "triplet, multi_similarity": Same(
        L("triplet", distance=mj.distances.cosine, triplets=mining.all_triplets, miner=mining.multi_similarity()),
        losses.TripletMarginLoss(0.2, distance=COSINE), miners.MultiSimilarityMiner(),
    ),
    "nt_xent, batch_easy_hard": Same(
        L("nt_xent", miner=mining.batch_easy_hard("hard", "semi_hard")), losses.NTXentLoss(0.1), HARD_SEMI_HARD
    ),
    "supcon, triplet_margin": Same(
        L("supcon", miner=mining.triplet_margin(0.2, "semi_hard")), losses.SupConLoss(),
        miners.TripletMarginMiner(0.2, "semihard", distance=COSINE),
    ),
    # By default it divides by all rows, and here by the anchors of which the miner keeps a pair.
    "multi_similarity, its miner": Same(
        L("multi_similarity", miner=mining.multi_similarity()), losses.MultiSimilarityLoss(reducer=ACTIVE),
        miners.MultiSimilarityMiner(),
    ),
    "circle, triplet_margin": Same(
        L("circle", miner=mining.triplet_margin(0.1)), losses.CircleLoss(),
        miners.TripletMarginMiner(0.1, distance=COSINE), rtol=1e-8,
    ),
    "lifted_structure, pair_margin": Same(
        L("lifted_structure", distance=mj.distances.chord, miner=mining.pair_margin(0.5, 1.3)),
        losses.LiftedStructureLoss(), miners.PairMarginMiner(0.5, 1.3), references=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name, with_references", [(n, r) for n in SAME for r in {False, SAME[n].references}])
def test_loss(name, with_references):
    case = SAME[name]
    z, y = batch(alone=case.alone)
    references, reference_labels = batch(1, n=M)
    loss, rows = copy.deepcopy(case.theirs), (z, references) if with_references else (z,)
    own, other = torch.tensor(y), torch.tensor(reference_labels)

    def theirs(z, *references):
        columns = tuple(case.prepare(r) for r in references) + (other,) * len(references)
        mined = None if case.miner is None else case.miner(z, own, *columns)
        return loss(case.prepare(z), own, mined, *columns)

    def ours(z, *references):
        if not references:
            return case.ours(z, jnp.asarray(y))
        return case.ours(z, jnp.asarray(y), references=references[0], reference_labels=jnp.asarray(reference_labels))

    agree(ours, theirs, *rows, rtol=case.rtol)


def test_ranked_list_values():
    """With temperatures, values only: its weights carry a gradient, which is that of another loss."""
    z, y = batch()
    theirs = losses.RankedListLoss(margin=0.4, Tn=5, Tp=3)(torch.tensor(z), torch.tensor(y))
    settings = {"temperature": 5.0, "positive_temperature": 3.0}
    ours = mj.losses.ranked_list(jnp.asarray(z), jnp.asarray(y), **settings)
    np.testing.assert_allclose(ours, theirs.item(), rtol=2e-4)  # 1e-5 for each column in the denominators


# --- two views, and regularisers ------------------------------------------------------------------------------------


def both_views(x, y):
    return mj.losses.nt_xent(jnp.concatenate([x, y]), jnp.tile(jnp.arange(N), 2), temperature=0.07)


ARRAYS = {
    "vicreg": (L("vicreg"), lambda x, y: losses.VICRegLoss()(x, ref_emb=y), 2),
    "vicreg, weighted": (
        L("vicreg", invariance=1.0, variance=3.0, covariance=2.0, epsilon=0.1),
        lambda x, y: losses.VICRegLoss(1, 3, 2, 0.1)(x, ref_emb=y), 2,
    ),
    "info_nce": (L("info_nce", temperature=0.07), losses.SelfSupervisedLoss(losses.NTXentLoss(), symmetric=False), 2),
    "nt_xent": (both_views, losses.SelfSupervisedLoss(losses.NTXentLoss()), 2),
    "zero_mean": (L("zero_mean"), regularizers.ZeroMeanRegularizer(), 1),
    "embedding_norm": (L("embedding_norm"), regularizers.LpRegularizer(power=2), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_loss_without_labels(name):
    ours, theirs, count = ARRAYS[name]
    agree(ours, theirs, *(0.6 * batch(seed)[0] for seed in range(count)))


# --- miners ---------------------------------------------------------------------------------------------------------


def easy_hard(positive, negative, **ranges):
    ours = mining.batch_easy_hard(positive, negative, *ranges.values())
    words = (word.replace("_", "") for word in (positive, negative))
    named = {f"allowed_{side}_range": limits for side, limits in ranges.items()}
    return ours, miners.BatchEasyHardMiner(*words, **named), "chord"


def triplet_margin(kind):
    return mining.triplet_margin(0.1, kind), miners.TripletMarginMiner(0.1, kind.replace("_", "")), "chord"


MINERS = {
    "multi_similarity": (mining.multi_similarity(), miners.MultiSimilarityMiner(), "cosine"),
    "multi_similarity, chord": (
        mining.multi_similarity(0.05), miners.MultiSimilarityMiner(0.05, distance=distances.LpDistance()), "chord"
    ),
    "pair_margin": (mining.pair_margin(0.9, 1.1), miners.PairMarginMiner(0.9, 1.1), "chord"),
    "pair_margin, cosine": (
        mining.pair_margin(0.5, 0.75), miners.PairMarginMiner(0.5, 0.25, distance=COSINE), "cosine"
    ),
    "easy, semi_hard": easy_hard("easy", "semi_hard"),
    "hard, hard": easy_hard("hard", "hard"),
    "semi_hard, hard": easy_hard("semi_hard", "hard"),
    "hard, easy": easy_hard("hard", "easy"),
    "all, hard": easy_hard("all", "hard"),
    "easy, all": easy_hard("easy", "all"),
    "easy, hard, in ranges": easy_hard("easy", "hard", pos=(0.5, 1.3), neg=(1.0, 1.5)),
    "hard_fraction": (mining.hard_fraction(0.25), miners.HDCMiner(0.25), "chord"),
    "all that violate": triplet_margin("all"),
    "hard": triplet_margin("hard"),
    "semi_hard": triplet_margin("semi_hard"),
    "easy": triplet_margin("easy"),
    "angular": (mining.angular(math.radians(35)), miners.AngularMiner(35), "euclidean"),  # it does not normalise
}  # fmt: skip


def mined(theirs, measure, with_references):
    """What ours gets, distances and masks, and what theirs finds."""
    (z, y), (columns, labels) = batch(), batch(1, n=M) if with_references else batch()
    references = (torch.tensor(columns), torch.tensor(labels)) if with_references else ()
    found = [index.tolist() for index in theirs(torch.tensor(z), torch.tensor(y), *references)]
    distance, columns = getattr(mj.distances, measure), jnp.asarray(columns)
    match = y[:, None] == labels[None]
    positives = jnp.asarray(match if with_references else match & ~np.eye(N, dtype=bool))
    return (distance(jnp.asarray(z), columns), positives, jnp.asarray(~match)), distance(columns, columns), found


@pytest.mark.parametrize("with_references", [False, True])
@pytest.mark.parametrize("name", MINERS)
def test_miner(name, with_references):
    ours, theirs, measure = MINERS[name]
    rows, among_columns, found = mined(theirs, measure, with_references)
    kept = ours(*rows, lambda index: among_columns[index]) if name == "angular" else ours(*rows)
    wanted = (found[:2], found[2:]) if len(found) == 4 else (found[:2], found[::2])
    for mask, pairs in zip(kept, wanted, strict=True):
        assert set(zip(*(index.tolist() for index in np.nonzero(mask)), strict=True)) == set(zip(*pairs, strict=True))
        assert np.any(mask)
    assert any(np.sum(mask) < np.sum(side) for mask, side in zip(kept, rows[1:], strict=True))


@pytest.mark.parametrize("with_references", [False, True])
def test_batch_hard(with_references):
    rows, _, found = mined(miners.BatchHardMiner(), "chord", with_references)
    chosen = mining.batch_hard(*rows)
    ours = [np.asarray(index)[np.asarray(chosen.valid)].tolist() for index in chosen[:3]]
    assert set(zip(*ours, strict=True)) == set(zip(*found, strict=True))
