"""The losses under test, each with its oracle, the measure it is over, and a hyper-parameter to vary."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import metricjax as mj
from tests.helpers import oracle, oracle_classes, oracle_pairs, oracle_ranking, oracle_views


def _array(a):
    return None if a is None else np.asarray(a)


class PairCase(NamedTuple):
    """One loss over pairs with some of its hyper-parameters fixed.

    around: what the oracle gets besides scores and lists, made of the batch (see the functions below).
    lacks: options that the loss refuses.
    held: some of its weights carry no gradient.
    strangers: a single negative pair is worth something.
    same: the relation between labels that the loss imposes.
    """

    loss: Callable
    oracle: Callable
    measure: str
    varied: str
    values: tuple[float, ...] = (0.1, 0.3, 1.0)
    fixed: Mapping = MappingProxyType({})
    oracle_fixed: Mapping = MappingProxyType({})
    around: Callable | None = None
    lacks: tuple[str, ...] = ()
    held: bool = False
    strangers: bool = False
    same: Callable | None = None

    def __call__(self, z, y, **options):
        fixed = {name: jnp.asarray(a) if isinstance(a, np.ndarray) else a for name, a in self.fixed.items()}
        value = self.loss(z, y, **fixed, **options)
        return value[0] if self.loss is mj.losses.dynamic_soft_margin else value

    def expected(
        self, z, y, w=None, references=None, reference_labels=None, reference_where=None, same=None, mined=None, **hyper
    ):
        """The oracle's value; `mined(distance)` says which negatives are kept."""
        same = self.same or same
        related = {} if same is None else {"same": same}
        z, y, others, other_labels = (_array(a) for a in (z, y, references, reference_labels))
        columns = (z, y, w) if references is None else (others, other_labels, _array(reference_where))
        positives, negatives = oracle.neighbours(y, w, other_labels, _array(reference_where), **related)
        scores = oracle.matrix(self.measure, z, columns[0])
        if mined is not None:
            distances = 1 - scores if self.measure in ("cosine_similarity", "dot") else scores
            negatives = [[n for n in ns if mined(distances[i, n])] for i, ns in enumerate(negatives)]
        around = {} if self.around is None else self.around(self, y, columns, negatives, related)
        return self.oracle(scores, positives, negatives, **{**self.fixed, **self.oracle_fixed, **around, **hyper})


def _columns(case, y, columns, negatives, related):
    x, labels, where = columns
    own = negatives if len(labels) == len(y) else oracle.neighbours(labels, where, **related)[1]
    return {"columns": oracle.matrix(case.measure, x, x), "column_negatives": own}


def _only_columns(*arguments):
    return {"columns": _columns(*arguments)["columns"]}


def _row_labels(case, y, columns, negatives, related):
    return {"row_labels": y}


def _rows(case, y, columns, negatives, related):
    return {"z": columns[0], "y": y, "where": columns[2]}


def _label_distances(case, y, columns, negatives, related):
    flat = lambda labels: np.asarray(labels, np.float64).reshape(len(labels), -1)
    return {"label_distances": oracle.matrix("squared_euclidean", flat(y), flat(columns[1]))}


def _log_ratio(d, positives, negatives, label_distances, epsilon=1e-6):
    return oracle_pairs.log_ratio(d, label_distances, negatives, epsilon)


def _centroid_triplet(d, positives, negatives, z, y, where, **hyper):
    keep = np.ones(len(y), bool) if where is None else where
    return oracle_pairs.centroid_triplet(z[keep], y[keep], **hyper)


def _dynamic_soft_margin(d, positives, negatives, state, momentum=0.01):
    gaps = []
    for row, ps, ns in zip(d, positives, negatives, strict=True):
        gaps += [row[p] - row[n] for p, n in (oracle.batch_hard(row, ps, ns) if ps and ns else [])]
    return oracle_pairs.dynamic_soft_margin(gaps, np.asarray(state), momentum)[0]


def _pair(name: str, measure: str, varied: str = "", **settings) -> PairCase:
    base, module = name.split("-")[0], settings.pop("oracle", oracle_pairs)
    return PairCase(getattr(mj.losses, base), getattr(module, base), measure, varied, **settings)


def _triplet(select: str, **fixed) -> PairCase:
    chosen = {"triplets": getattr(mj.mining, select), **fixed}
    case = PairCase(mj.losses.triplet, oracle.triplet, "squared_chord", "margin", (0.1, 0.3, 1.0), chosen)
    return case._replace(oracle_fixed={"triplets": getattr(oracle, select)})


def _swapped(select: str, **fixed) -> PairCase:
    case = _triplet(select, **fixed)._replace(around=_only_columns)
    return case._replace(
        loss=mj.losses.triplet,
        fixed={**case.fixed, "swap": True},
        oracle=lambda *lists, swap, **hyper: oracle_pairs.triplet_swap(*lists, **hyper),
    )


BETAS = (1.0, 1.125, 0.875, 1.25, 1.5)
STATE = np.array([0.125, 0.0, 0.25, 0.25, 0.125, 0.25, 0.0], np.float32)
_margin = _pair("margin", "chord", "beta", values=(0.9, 1.2), strangers=True)
_unweighted = {"positive_weight": lambda s, m: 1.0, "negative_weight": lambda s, m: 1.0}
_unified = {"positive_margin": 0.7, "negative_margin": 0.2}


def _rising(scores, margin):
    return scores * scores + margin


PAIRS = {
    "contrastive": _pair("contrastive", "chord", "margin", oracle=oracle, strangers=True),
    "contrastive-linear": _pair(
        "contrastive", "chord", "positive_margin", oracle=oracle, strangers=True,
        fixed={"squared": False, "average": "valid"},
    ),
    "triplet": _triplet("batch_hard"),
    "triplet-soft": _triplet("batch_hard", margin=None)._replace(varied=""),
    "triplet-easy-positive": _triplet("easy_positive_hard_negative", average="valid"),
    "triplet-semi-hard": _triplet("semi_hard"),
    "triplet-all": _triplet("all_triplets"),
    "triplet-all-valid": _triplet("all_triplets", average="valid"),
    "triplet-all-soft": _triplet("all_triplets", margin=None)._replace(varied=""),
    "triplet-swap": _swapped("batch_hard"),
    "triplet-swap-semi-hard": _swapped("semi_hard"),
    "triplet-swap-all": _swapped("all_triplets"),
    "margin": _margin,
    "margin-by-class": _margin._replace(
        varied="nu", values=(0.0, 0.1), around=_row_labels,
        fixed={"beta": np.array(BETAS, np.float32), "average": "valid"}, oracle_fixed={"beta": BETAS}, lacks=("same",),
    ),
    "signal_to_noise": _pair("signal_to_noise", "snr", "margin", strangers=True),
    "threshold_consistent_margin": _pair(
        "threshold_consistent_margin", "cosine_similarity", "negative_margin", strangers=True
    ),
    "ranked_list": _pair("ranked_list", "chord", "temperature", values=(1.0, 10.0), held=True, strangers=True),
    "log_ratio": PairCase(
        mj.losses.log_ratio, _log_ratio, "squared_euclidean", "epsilon", (1e-6, 0.1), around=_label_distances,
        lacks=("same",), same=lambda a, b: False,
    ),
    "nt_xent": _pair("nt_xent", "cosine_similarity", "temperature", oracle=oracle),
    "n_pairs": _pair("n_pairs", "dot"),
    "supcon": _pair("supcon", "cosine_similarity", "temperature"),
    "supcon-in": _pair("supcon", "cosine_similarity", "temperature", fixed={"variant": "in"}),
    "decoupled_contrastive": _pair("decoupled_contrastive", "cosine_similarity", "temperature"),
    "decoupled_contrastive-weighted": _pair(
        "decoupled_contrastive", "cosine_similarity", "temperature", fixed={"sigma": 0.5}, held=True
    ),
    "nca": _pair("nca", "squared_euclidean", "temperature"),
    "multi_similarity": _pair(
        "multi_similarity", "cosine_similarity", "beta", oracle=oracle, values=(10.0, 40.0), strangers=True
    ),
    "circle": _pair("circle", "cosine_similarity", "scale", oracle=oracle, values=(10.0, 80.0), held=True),
    "unified_pair": _pair(
        "unified_pair", "cosine_similarity", "scale", values=(10.0, 80.0), fixed=_unified,
        oracle_fixed={"scale": 80.0, **_unweighted},
    ),
    "unified_pair-weighted": _pair(
        "unified_pair", "cosine_similarity", "scale", values=(10.0, 80.0), held=True, oracle_fixed={"scale": 80.0},
        fixed={**_unified, "positive_weight": _rising, "negative_weight": _rising},
    ),
    "tuplet_margin": _pair("tuplet_margin", "cosine_similarity", "margin", values=(0.0, 0.1)),
    "lifted_structure": _pair("lifted_structure", "euclidean", "margin", around=_columns),
    "generalized_lifted_structure": _pair("generalized_lifted_structure", "euclidean", "margin"),
    "angular": _pair("angular", "cosine_similarity", "angle", values=(0.6, 0.9), around=_only_columns),
    "quadruplet": _pair("quadruplet", "squared_chord", "second_margin", around=_columns),
    "quadruplet-valid": _pair(
        "quadruplet", "squared_chord", "margin", around=_columns, fixed={"average": "valid"}
    ),
    "intra_pair_variance": _pair("intra_pair_variance", "cosine_similarity", "positive_epsilon", strangers=True),
    "histogram": _pair("histogram", "cosine_similarity", fixed={"bins": 20}),
    "dynamic_soft_margin": PairCase(
        mj.losses.dynamic_soft_margin, _dynamic_soft_margin, "chord", "momentum", (0.01, 0.5), {"state": STATE},
        held=True,
    ),
    "centroid_triplet": PairCase(
        mj.losses.centroid_triplet, _centroid_triplet, "squared_euclidean", "margin", around=_rows,
        lacks=("same", "references", "miner"),
    ),
    "centroid_triplet-hardest": PairCase(
        mj.losses.centroid_triplet, _centroid_triplet, "squared_euclidean", "margin", around=_rows,
        lacks=("same", "references", "miner"), fixed={"hardest": True, "average": "valid"},
    ),
    "fast_ap": _pair("fast_ap", "squared_chord", oracle=oracle_ranking),
    "smooth_ap": _pair("smooth_ap", "cosine_similarity", "temperature", oracle=oracle_ranking),
    "recall_at_k": _pair(
        "recall_at_k", "cosine_similarity", "k_temperature", values=(0.5, 1.0, 4.0), oracle=oracle_ranking
    ),
    "roadmap": _pair("roadmap", "cosine_similarity", "calibration", oracle=oracle_ranking, strangers=True),
    "roadmap-valid": _pair(
        "roadmap", "cosine_similarity", "slope", values=(1.0, 10.0), fixed={"average": "valid"},
        oracle=oracle_ranking, strangers=True,
    ),
    "pnp": _pair("pnp", "cosine_similarity", "alpha", values=(1.0, 2.0, 4.0), oracle=oracle_ranking),
}  # fmt: skip

# One for each way through the driver, for tests of the driver that no row function can fail.
PATHS = (
    "contrastive", "triplet", "triplet-semi-hard", "triplet-all", "triplet-all-soft", "triplet-swap-all",
    "margin-by-class", "log_ratio", "supcon", "decoupled_contrastive-weighted", "circle", "angular", "lifted_structure",
    "histogram", "dynamic_soft_margin", "centroid_triplet", "fast_ap", "smooth_ap",
)  # fmt: skip


class ClassCase(NamedTuple):
    """One loss over prototypes with some of its hyper-parameters fixed.

    several: it has several prototypes of each class.
    extra: the positional argument after the prototypes, a state or "key".
    lacks: options that it refuses; "weights" too where weighing rows is not like leaving them out.
    held: some of its weights carry no gradient, or under the settings `still` none does.
    """

    loss: Callable
    oracle: Callable
    varied: str = ""
    values: tuple[float, ...] = (0.1, 0.3, 0.5)
    fixed: Mapping = MappingProxyType({})
    several: bool = False
    extra: Any = None
    lacks: tuple[str, ...] = ()
    held: bool = False
    still: Mapping = MappingProxyType({})

    def __call__(self, z, y, prototypes, **options):
        value = self.loss(z, y, prototypes, *self._extra(), **{**self.fixed, **options})
        return value[0] if isinstance(value, tuple) and self.extra is not None else value

    def _extra(self):
        if self.extra is None:
            return ()
        return (jax.random.key(0),) if isinstance(self.extra, str) else (jnp.asarray(self.extra),)

    def expected(self, z, y, prototypes, w=None, **hyper):
        keep = np.ones(len(y), bool) if w is None else np.asarray(w)
        settings = {**self.fixed, **hyper}
        if self.loss is mj.losses.elasticface:
            one = lambda i: jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (), z.dtype)
            drawn = np.array([float(one(i)) for i in range(len(y))])[keep]
            given = (settings.pop("margin") + settings.pop("deviation") * drawn,)
        else:
            given = () if self.extra is None else tuple(np.float64(self.extra).ravel())
        losses = self.oracle(np.asarray(z)[keep], np.asarray(y)[keep], np.asarray(prototypes), *given, **settings)
        losses = losses[0] if isinstance(losses, tuple) else losses
        return float(np.mean(losses)) if np.size(losses) else 0.0


def _class(name: str, varied: str = "", *values: float, **settings) -> ClassCase:
    base, module = name.split("-")[0], settings.pop("oracle", oracle_classes)
    case = ClassCase(getattr(mj.losses, base), getattr(module, base), varied, **settings)
    return case._replace(values=values) if values else case


_row_statistics = {"held": True, "lacks": ("weights",)}
CLASSES = {
    "softmax": _class("softmax", oracle=oracle),
    "normalized_softmax": _class("normalized_softmax", "temperature", oracle=oracle),
    "large_margin_softmax": _class("large_margin_softmax", "annealing", 0.5, 5.0),
    "sphereface": _class("sphereface", "annealing", 0.5, 5.0),
    "sphereface-3": _class("sphereface", "margin", 2.0, 3.0, fixed={"annealing": 1.0}),
    "sphereface_r": _class("sphereface_r", "margin", 1.2, 2.0),
    "sphereface_r-v2": _class("sphereface_r", "margin", 1.2, 2.0, fixed={"variant": "v2"}),
    "sphereface2": _class("sphereface2", "power", 2.0, 3.5),
    "cosface": _class("cosface", "margin", oracle=oracle),
    "arcface": _class("arcface", "margin"),
    "arcface-easy": _class("arcface", "scale", 8.0, 16.0, fixed={"easy_margin": True}),
    "combined_margin": _class("combined_margin", "scale", 8.0, 16.0, fixed={"margins": (0.9, 0.4, 0.15)}),
    "sub_center_arcface": _class("sub_center_arcface", "margin", several=True),
    "circle_class": _class("circle_class", "margin", oracle=oracle, held=True),
    "curricularface": _class(
        "curricularface", "margin", extra=np.float32(0.25), still={"momentum": 0.0}, **_row_statistics
    ),
    "adaface": _class(
        "adaface", "margin", extra=np.float32([2.5, 0.5]), still={"concentration": 0.0}, **_row_statistics
    ),
    "magface": _class("magface", "scale", 8.0, 16.0, fixed={"norms": (2.0, 4.0), "regularizer": 3.0}),
    "elasticface": _class("elasticface", "scale", 8.0, 16.0, fixed={"margin": 0.5, "deviation": 0.25}, extra="key"),
    "elasticface-plus": _class(
        "elasticface", "scale", 8.0, 16.0, extra="key", lacks=("weights",),
        fixed={"margin": 0.35, "deviation": 0.25, "variant": "cos", "plus": True},
    ),
    "adacos": _class("adacos", extra=np.float32(3.0), **_row_statistics),
    "proxy_nca": _class("proxy_nca"),
    "proxy_nca_pp": _class("proxy_nca_pp", "temperature"),
    "proxy_anchor": _class("proxy_anchor", "margin", lacks=("weights", "ignore_above")),
    "soft_triple": _class("soft_triple", "gamma", several=True),
    "p2s_grad": _class("p2s_grad"),
    "uniface": _class("uniface", "balance", fixed={"scale": 8.0}),
    "center": _class("center", oracle=oracle),
}  # fmt: skip

# One for each way through the driver.
CLASS_PATHS = (
    "softmax", "cosface", "large_margin_softmax", "sphereface", "sphereface2", "sub_center_arcface", "curricularface",
    "adaface", "magface", "elasticface-plus", "adacos", "proxy_nca", "proxy_anchor", "center",
)  # fmt: skip


class ViewCase(NamedTuple):
    """A loss of two views, or a regulariser. takes: its arrays. varied: hyper-parameters and values of them."""

    loss: Callable
    oracle: Callable
    takes: tuple[str, ...]
    varied: Mapping[str, tuple[float, ...]] = MappingProxyType({})
    weighted: bool = True
    panels: bool = True

    def __call__(self, *arrays, **options):
        return self.loss(*arrays, **options)

    def expected(self, *arrays, where=None, weights=None, **hyper):
        keep = np.ones(len(arrays[0]), bool) if where is None else np.asarray(where)
        weighted = {} if weights is None else {"weights": np.asarray(weights)[keep]}
        return self.oracle(*(np.asarray(a)[keep] for a in arrays), **weighted, **hyper)


def _view(name: str, *takes: str, weighted=True, panels=True, module=oracle_views, **varied) -> ViewCase:
    return ViewCase(getattr(mj.losses, name), getattr(module, name), takes, varied, weighted, panels)


VIEWS = {
    "info_nce": _view("info_nce", "x", "y", temperature=(0.05, 1.0)),
    "clip": _view("clip", "x", "y", scale=(1.0, 30.0)),
    "siglip": _view("siglip", "x", "y", scale=(1.0, 5.0), bias=(-3.0, 1.0)),
    "alignment_uniformity": _view(
        "alignment_uniformity", "x", "y", alpha=(1.0, 3.0), t=(0.5, 5.0), uniformity=(0.3, 2.0)
    ),
    "vicreg": _view(
        "vicreg", "x", "y", weighted=False, panels=False,
        invariance=(0.0, 1.0), variance=(0.0, 9.0), covariance=(0.0, 3.0), epsilon=(0.01, 0.3),
    ),
    "barlow_twins": _view(
        "barlow_twins", "x", "y", weighted=False, panels=False, redundancy=(0.0, 0.5), epsilon=(0.0, 0.3)
    ),
    "embedding_norm": _view("embedding_norm", "x", panels=False, target=(0.5, 10.0)),
    "zero_mean": _view("zero_mean", "x", panels=False),
    "koleo": _view("koleo", "x", epsilon=(0.01, 0.3)),
    "spread_out": _view("spread_out", "x", "labels"),
    "hyperspherical_energy": _view("hyperspherical_energy", "x", power=(1.0, 2.0), module=oracle_classes),
    "regular_face": _view("regular_face", "x", module=oracle_classes),
}  # fmt: skip
NOT_LOSSES = {
    "update_centers", "sphereface_annealing", "sphereface2_bias", "sub_center_outliers", "adacos_scale",
    "merged_centers",
}  # fmt: skip
