"""The losses under test, each with its oracle, the measure it is over, and a hyper-parameter to vary."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

import metricjax as mj
from tests import oracle


def _array(a):
    return None if a is None else np.asarray(a)


class PairCase(NamedTuple):
    loss: Callable
    oracle: Callable
    measure: str
    varied: str
    values: tuple[float, ...] = (0.1, 0.3, 1.0)
    fixed: Mapping = MappingProxyType({})
    oracle_fixed: Mapping = MappingProxyType({})

    def __call__(self, z, y, **options):
        return self.loss(z, y, **self.fixed, **options)

    def expected(self, z, y, w=None, references=None, reference_labels=None, reference_where=None, same=None, **hyper):
        arguments = {} if same is None else {"same": same}
        z, y = np.asarray(z), np.asarray(y)
        lists = oracle.neighbours(y, w, *map(_array, (reference_labels, reference_where)), **arguments)
        scores = oracle.matrix(self.measure, z, z if references is None else np.asarray(references))
        return self.oracle(scores, *lists, **{**self.fixed, **self.oracle_fixed, **hyper})


def _triplet(select: str, **fixed) -> PairCase:
    chosen = {"triplets": getattr(mj.mining, select), **fixed}
    case = PairCase(mj.losses.triplet, oracle.triplet, "squared_chord", "margin", (0.1, 0.3, 1.0), chosen)
    return case._replace(oracle_fixed={"triplets": getattr(oracle, select)})


PAIRS = {
    "contrastive": PairCase(mj.losses.contrastive, oracle.contrastive, "chord", "margin"),
    "contrastive-linear": PairCase(
        mj.losses.contrastive, oracle.contrastive, "chord", "positive_margin",
        fixed={"squared": False, "average": "valid"},
    ),
    "triplet": _triplet("batch_hard"),
    "triplet-soft": _triplet("batch_hard", margin=None)._replace(varied=""),
    "triplet-easy-positive": _triplet("easy_positive_hard_negative", average="valid"),
    "triplet-semi-hard": _triplet("semi_hard"),
    "triplet-all": _triplet("all_triplets"),
    "triplet-all-valid": _triplet("all_triplets", average="valid"),
    "triplet-all-soft": _triplet("all_triplets", margin=None)._replace(varied=""),
    "nt_xent": PairCase(mj.losses.nt_xent, oracle.nt_xent, "cosine_similarity", "temperature"),
    "supcon": PairCase(mj.losses.supcon, oracle.supcon, "cosine_similarity", "temperature"),
    "multi_similarity": PairCase(
        mj.losses.multi_similarity, oracle.multi_similarity, "cosine_similarity", "beta", (10.0, 40.0)
    ),
    "circle": PairCase(mj.losses.circle, oracle.circle, "cosine_similarity", "scale", (10.0, 80.0)),
}  # fmt: skip


class ClassCase(NamedTuple):
    loss: Callable
    oracle: Callable
    varied: str
    values: tuple[float, ...] = (0.1, 0.3, 0.5)

    def __call__(self, z, y, prototypes, **options):
        return self.loss(z, y, prototypes, **options)

    def expected(self, z, y, prototypes, w=None, **hyper):
        keep = np.ones(len(y), bool) if w is None else w
        losses = self.oracle(np.asarray(z)[keep], np.asarray(y)[keep], np.asarray(prototypes), **hyper)
        return float(np.mean(losses)) if len(losses) else 0.0


CLASSES = {
    "softmax": ClassCase(mj.losses.softmax, oracle.softmax, ""),
    "normalized_softmax": ClassCase(mj.losses.normalized_softmax, oracle.normalized_softmax, "temperature"),
    "cosface": ClassCase(mj.losses.cosface, oracle.cosface, "margin"),
    "arcface": ClassCase(mj.losses.arcface, oracle.arcface, "margin"),
    "circle_class": ClassCase(mj.losses.circle_class, oracle.circle_class, "margin"),
    "center": ClassCase(mj.losses.center, oracle.center, ""),
}
NOT_LOSSES = {"update_centers"}
