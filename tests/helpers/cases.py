"""The losses under test, each with its oracle, the measure it is over, and a hyper-parameter to vary.

Every loss of the catalogue has a case that is made of its entry, its signature and the oracle of its name; what is
special about some, and cases of other settings, is written here.
"""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

import metricjax as mj
from metricjax.losses.catalogue import CATALOGUE, Entry
from tests.helpers import oracle, oracle_classes, oracle_pairs, oracle_ranking, oracle_views

ORACLES = (oracle_views, oracle_ranking, oracle_classes, oracle_pairs, oracle)


def oracle_of(name: str) -> Callable:
    return next(getattr(module, name) for module in ORACLES if hasattr(module, name))


def measure_of(loss: Callable) -> str:
    """What its similarity or distance is called in the oracles; cosines if it has no choice."""
    parameters = inspect.signature(loss).parameters
    chosen = [parameters[name].default.__name__ for name in ("similarity", "distance") if name in parameters]
    return {"cosine": "cosine_similarity"}.get(*chosen * 2) if chosen else "cosine_similarity"


def varied_of(loss: Callable) -> str:
    """Its margin, else its first hyper-parameter that is a number, if any."""
    numbers = [p.name for p in inspect.signature(loss).parameters.values() if type(p.default) is float]
    return "margin" if "margin" in numbers else numbers[0] if numbers else ""


def entries(*kinds: str) -> dict[str, Entry]:
    return {name: entry for name, entry in CATALOGUE.items() if entry.kind in kinds}


def _array(a):
    return None if a is None else np.asarray(a)


class PairCase(NamedTuple):
    """One loss over pairs with some of its hyper-parameters fixed.

    around: what the oracle gets besides scores and lists, made of the batch (see the functions below).
    lacks: options that the loss refuses, or its oracle.
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
        self, z, y, w=None, references=None, reference_labels=None, reference_where=None, reference_ids=None,
        same=None, mined=None, **hyper,
    ):  # fmt: skip
        """The oracle's value; `mined(distance)` says which negatives are kept."""
        same = self.same or same
        related = {} if same is None else {"same": same}
        ids = {} if reference_ids is None else {"reference_ids": _array(reference_ids)}
        z, y, others, other_labels = (_array(a) for a in (z, y, references, reference_labels))
        columns = (z, y, w) if references is None else (others, other_labels, _array(reference_where))
        positives, negatives = oracle.neighbours(y, w, other_labels, _array(reference_where), **related, **ids)
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


def pair_case(loss: Callable, expected: Callable, entry: Entry, **special) -> PairCase:
    """The case of a loss over pairs, but for what is special about it."""
    usual = {"measure": measure_of(loss), "varied": varied_of(loss), "lacks": entry.refuses}
    return PairCase(loss, expected, **{**usual, **special})


def _pair(name: str, **special) -> PairCase:
    base = name.partition("-")[0]
    expected = special.pop("oracle", None) or oracle_of(base)
    return pair_case(getattr(mj.losses, base), expected, CATALOGUE[base], **special)


def _triplet(select: str, **fixed) -> PairCase:
    chosen = {"triplets": getattr(mj.mining, select), **fixed}
    return _pair("triplet", fixed=chosen, oracle_fixed={"triplets": getattr(oracle, select)})


def _swapped(select: str, **fixed) -> PairCase:
    case = _triplet(select, **fixed)._replace(around=_only_columns)
    return case._replace(
        fixed={**case.fixed, "swap": True},
        oracle=lambda *lists, swap, **hyper: oracle_pairs.triplet_swap(*lists, **hyper),
    )


BETAS = (1.0, 1.125, 0.875, 1.25, 1.5)
STATE = np.array([0.125, 0.0, 0.25, 0.25, 0.125, 0.25, 0.0], np.float32)
_margin = {"varied": "beta", "values": (0.9, 1.2), "strangers": True}
_unweighted = {"positive_weight": lambda s, m: 1.0, "negative_weight": lambda s, m: 1.0}
_unified = {"positive_margin": 0.7, "negative_margin": 0.2}
_centroids = {"oracle": _centroid_triplet, "around": _rows, "lacks": ("same", "references", "miner")}


def _rising(scores, margin):
    return scores * scores + margin


SPECIAL = {  # of losses over pairs
    "contrastive": {"strangers": True},
    "contrastive-linear": {
        "varied": "positive_margin", "strangers": True, "fixed": {"squared": False, "average": "valid"}
    },
    "margin": _margin,
    "margin-by-class": {
        **_margin, "varied": "nu", "values": (0.0, 0.1), "around": _row_labels, "lacks": ("same",),
        "fixed": {"beta": np.array(BETAS, np.float32), "average": "valid"}, "oracle_fixed": {"beta": BETAS},
    },
    "signal_to_noise": {"measure": "snr", "strangers": True},
    "threshold_consistent_margin": {"varied": "negative_margin", "strangers": True},
    "ranked_list": {"varied": "temperature", "values": (1.0, 10.0), "held": True, "strangers": True},
    "log_ratio": {
        "oracle": _log_ratio, "values": (1e-6, 0.1), "around": _label_distances, "same": lambda a, b: False
    },
    "supcon-in": {"fixed": {"variant": "in"}},
    "decoupled_contrastive-weighted": {"fixed": {"sigma": 0.5}, "held": True},
    "multi_similarity": {"varied": "beta", "values": (10.0, 40.0), "strangers": True},
    "circle": {"varied": "scale", "values": (10.0, 80.0), "held": True},
    "unified_pair": {"values": (10.0, 80.0), "fixed": _unified, "oracle_fixed": {"scale": 80.0, **_unweighted}},
    "unified_pair-weighted": {
        "values": (10.0, 80.0), "held": True, "oracle_fixed": {"scale": 80.0},
        "fixed": {**_unified, "positive_weight": _rising, "negative_weight": _rising},
    },
    "tuplet_margin": {"values": (0.0, 0.1)},
    "lifted_structure": {"around": _columns},
    "angular": {"values": (0.6, 0.9), "around": _only_columns},
    "quadruplet": {"varied": "second_margin", "around": _columns},
    "quadruplet-valid": {"around": _columns, "fixed": {"average": "valid"}},
    "intra_pair_variance": {"strangers": True},
    "histogram": {"fixed": {"bins": 20}},
    "dynamic_soft_margin": {
        "oracle": _dynamic_soft_margin, "values": (0.01, 0.5), "fixed": {"state": STATE}, "held": True
    },
    "centroid_triplet": _centroids,
    "centroid_triplet-hardest": {**_centroids, "fixed": {"hardest": True, "average": "valid"}},
    "recall_at_k": {"varied": "k_temperature", "values": (0.5, 1.0, 4.0)},
    "roadmap": {"varied": "calibration", "strangers": True},
    "roadmap-valid": {
        "varied": "slope", "values": (1.0, 10.0), "fixed": {"average": "valid"}, "strangers": True
    },
    "pnp": {"varied": "alpha", "values": (1.0, 2.0, 4.0)},
}  # fmt: skip
TRIPLETS = {
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
}
OF_PAIRS = [name for name in entries("pairs") if name != "spread_out"]  # a regulariser is among VIEWS
PAIRS = {name: _pair(name, **SPECIAL.get(name, {})) for name in (*OF_PAIRS, *SPECIAL)} | TRIPLETS

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


def class_case(loss: Callable, expected: Callable, entry: Entry, **special) -> ClassCase:
    """The case of a loss over prototypes, but for what is special about it."""
    extra = "key" if "key" in entry.takes else None
    of_rows = {"held": True, "lacks": ("weights",)} if "state" in entry.takes else {"lacks": entry.refuses}
    usual = {"varied": varied_of(loss), "several": entry.several, "extra": extra, **of_rows}
    return ClassCase(loss, expected, **{**usual, **special})


def _class(name: str, **special) -> ClassCase:
    base = name.partition("-")[0]
    return class_case(getattr(mj.losses, base), oracle_of(base), CATALOGUE[base], **special)


_scales = {"varied": "scale", "values": (8.0, 16.0)}
SPECIAL_CLASSES = {
    "large_margin_softmax": {"varied": "annealing", "values": (0.5, 5.0)},
    "sphereface": {"varied": "annealing", "values": (0.5, 5.0)},
    "sphereface-3": {"values": (2.0, 3.0), "fixed": {"annealing": 1.0}},
    "sphereface_r": {"values": (1.2, 2.0)},
    "sphereface_r-v2": {"values": (1.2, 2.0), "fixed": {"variant": "v2"}},
    "sphereface2": {"varied": "power", "values": (2.0, 3.5)},
    "arcface-easy": {**_scales, "fixed": {"easy_margin": True}},
    "combined_margin": {**_scales, "fixed": {"margins": (0.9, 0.4, 0.15)}},
    "circle_class": {"held": True},
    "curricularface": {"extra": np.float32(0.25), "still": {"momentum": 0.0}},
    "adaface": {"extra": np.float32([2.5, 0.5]), "still": {"concentration": 0.0}},
    "magface": {**_scales, "fixed": {"norms": (2.0, 4.0), "regularizer": 3.0}},
    "elasticface": {**_scales, "fixed": {"margin": 0.5, "deviation": 0.25}},
    "elasticface-plus": {
        **_scales, "lacks": ("weights",), "fixed": {"margin": 0.35, "deviation": 0.25, "variant": "cos", "plus": True}
    },
    "adacos": {"extra": np.float32(3.0)},
    "soft_triple": {"varied": "gamma"},
    "uniface": {"varied": "balance", "fixed": {"scale": 8.0}},
}  # fmt: skip
CLASSES = {name: _class(name, **SPECIAL_CLASSES.get(name, {})) for name in (*entries("classes"), *SPECIAL_CLASSES)}

# One for each way through the driver.
CLASS_PATHS = (
    "softmax", "cosface", "large_margin_softmax", "sphereface", "sphereface2", "sub_center_arcface", "curricularface",
    "adaface", "magface", "elasticface-plus", "adacos", "proxy_nca", "proxy_anchor", "center",
)  # fmt: skip


# Of the ways, those that are gone on every run: the others are slow tests.
OFTEN = (
    "contrastive", "triplet", "triplet-swap-all", "margin-by-class", "supcon", "histogram",
    "softmax", "sub_center_arcface", "curricularface", "center",
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


def _view(name: str, **varied: tuple[float, ...]) -> ViewCase:
    loss, takes = getattr(mj.losses, name), CATALOGUE[name].takes
    shown = tuple({"embeddings": "x", "prototypes": "x"}.get(array, array) for array in takes)
    options = options_of(loss)
    varied = varied or dict.fromkeys(filter(None, [varied_of(loss)]), (0.1, 0.3))
    return ViewCase(loss, oracle_of(name), shown, varied, "weights" in options, "block_size" in options)


def options_of(loss: Callable) -> set[str]:
    """Names of all that it takes by keyword."""
    parameters = inspect.signature(loss).parameters
    listed = {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    shared = get_args(parameters["options"].annotation) if "options" in parameters else ()
    return listed.union(*(bundle.__annotations__ for bundle in shared))


VARIED = {  # of losses of views and regularisers
    "info_nce": {"temperature": (0.05, 1.0)},
    "clip": {"scale": (1.0, 30.0)},
    "siglip": {"scale": (1.0, 5.0), "bias": (-3.0, 1.0)},
    "alignment_uniformity": {"alpha": (1.0, 3.0), "t": (0.5, 5.0), "uniformity": (0.3, 2.0)},
    "vicreg": {"invariance": (0.0, 1.0), "variance": (0.0, 9.0), "covariance": (0.0, 3.0), "epsilon": (0.01, 0.3)},
    "barlow_twins": {"redundancy": (0.0, 0.5), "epsilon": (0.0, 0.3)},
    "embedding_norm": {"target": (0.5, 10.0)},
    "koleo": {"epsilon": (0.01, 0.3)},
    "hyperspherical_energy": {"power": (1.0, 2.0)},
}
ALONE = ("merged_centers",)  # several prototypes of each class, without rows: see test_class_losses.py
VIEWS = {
    name: _view(name, **VARIED.get(name, {}))
    for name in ("spread_out", *entries("views", "rows", "prototypes"))
    if name not in ALONE
}
# Losses that the lengths of what they are given change, at some scales at least.
SCALED = {name for name in (*PAIRS, *CLASSES, *VIEWS) if CATALOGUE[name.partition("-")[0]].lengths}
