"""What is known of each loss, as data: for those who loop over losses, and for tables, tests and command lines.

>>> from metricjax.losses.catalogue import CATALOGUE
>>> [name for name, entry in CATALOGUE.items() if "state" in entry.takes]
['dynamic_soft_margin', 'curricularface', 'adaface', 'adacos']
>>> CATALOGUE["adaface"].paper
'Kim et al. 2022, arXiv:2204.00964'
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array

from metricjax.losses.adaptive_margins import adacos_scale
from metricjax.losses.multiplied_margins import sphereface2_bias

__all__ = [
    "ARGUMENTS",
    "BESIDE",
    "CATALOGUE",
    "Argument",
    "Entry",
    "of_centers",
    "of_classes",
    "of_pairs",
    "of_prototypes",
    "of_rows",
    "of_views",
]


@dataclass(frozen=True)
class Entry:
    """What is known of one loss.

    kind: what it compares: "pairs" of a batch, two "views" of it, its rows with "classes"; or it is a regulariser that
        looks at "rows", or at "prototypes", alone.
    takes: its arguments before the hyper-parameters, in order.
    paper: its source, in the words of the docstring; "; " between several.
    note: what tables say beside the name.
    several: it takes several prototypes of each class, [c, k, d].
    lengths: the arrays whose lengths count: the loss changes where all of their rows are longer, or much shorter.
    refuses: options of its kind that it does not take.
    state: the state before the first step; a function makes it of the number of classes.
    bias: what a learnt bias begins at, likewise.
    added_to: the kind of losses, or the one loss, that it is only an addition to.
    weight: what its paper multiplies it by; 1 where the paper leaves that open.
    """

    kind: Literal["pairs", "views", "rows", "prototypes", "classes"]
    takes: tuple[str, ...]
    paper: str = ""
    note: str = ""
    several: bool = False
    lengths: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()
    state: float | tuple[float, ...] | Callable[..., Any] | None = None
    bias: Callable[..., Any] | None = None
    added_to: str = ""
    weight: float = 1.0

    def first(self, what: Literal["state", "bias"], classes: int, **hyper: Any) -> Array:
        """The state, or the bias, before the first step, for hyper-parameters if it depends on them."""
        value = getattr(self, what)
        if not callable(value):
            return jnp.array(value)
        takes = inspect.signature(value).parameters
        return value(classes, **{name: number for name, number in hyper.items() if name in takes})


def _of(kind, *arguments):
    """Entries of a kind, whose losses take `arguments`, and what else each `needs`."""
    return lambda paper="", note="", *, needs=(), **facts: Entry(kind, (*arguments, *needs), paper, note, **facts)


of_pairs = _of("pairs", "embeddings", "labels")
of_views = _of("views", "x", "y")
of_rows = _of("rows", "embeddings")
of_prototypes = _of("prototypes", "prototypes")
of_classes = _of("classes", "embeddings", "labels", "prototypes")
of_centers = _of("classes", "embeddings", "labels", "centers")
by_length = {"lengths": ("embeddings",)}  # the others normalise embeddings, or what they compute of them

_LOSSES: dict[str, Entry] = {
    # pairs: distances and triplets
    "contrastive": of_pairs('Hadsell, Chopra, LeCun 2006, "Dimensionality reduction by learning an invariant mapping"'),
    "triplet": of_pairs(
        "Schroff, Kalenichenko, Philbin 2015, arXiv:1503.03832; Hermans, Beyer, Leibe 2017, arXiv:1703.07737",
        "`margin=None`: soft",
    ),
    "margin": of_pairs(
        'Wu et al. 2017, "Sampling matters in deep embedding learning", arXiv:1706.07567',
        "`beta`: one, or one for each class, learned",
    ),
    "signal_to_noise": of_pairs(
        'Yuan et al. 2019, "Signal-to-noise ratio: a robust distance metric for deep metric learning", arXiv:1904.02616'
    ),
    "threshold_consistent_margin": of_pairs("Zhang et al. 2024, arXiv:2307.04047"),
    "ranked_list": of_pairs('Wang et al. 2019, "Ranked list loss for deep metric learning", arXiv:1903.03238'),
    "log_ratio": of_pairs(
        'Kim et al. 2019, "Deep metric learning beyond binary supervision", arXiv:1904.09626', "continuous labels",
        refuses=("same",), **by_length,
    ),
    "quadruplet": of_pairs("Chen et al. 2017, arXiv:1704.01719"),
    "centroid_triplet": of_pairs(
        "Wieczorek, Rychalska, Dąbrowski 2021, arXiv:2104.13643", refuses=("same", "references"), **by_length
    ),
    "dynamic_soft_margin": of_pairs(
        'Zhang & Rusinkiewicz 2019, "Learning local descriptors with a CDF-based dynamic soft margin"',
        needs=("state",), state=(0.0,) * 512,
    ),
    # pairs: softmax and its like
    "n_pairs": of_pairs(
        'Sohn 2016, "Improved deep metric learning with multi-class N-pair loss objective"', **by_length
    ),
    "nt_xent": of_pairs("Chen et al. 2020 (SimCLR), arXiv:2002.05709"),
    "supcon": of_pairs("Khosla et al. 2020, arXiv:2004.11362"),
    "decoupled_contrastive": of_pairs("Yeh et al. 2022, arXiv:2110.06848", "DCLW: `sigma=0.5`"),
    "nca": of_pairs(
        'Goldberger et al. 2004, "Neighbourhood components analysis"; Frosst, Papernot, Hinton 2019, "Analyzing and '
        'improving representations with the soft nearest neighbor loss", arXiv:1902.01889',
        "soft nearest neighbours", **by_length,
    ),
    "multi_similarity": of_pairs("Wang et al. 2019, arXiv:1904.06627"),
    "circle": of_pairs("Sun et al. 2020, arXiv:2002.10857"),
    "unified_pair": of_pairs("Sun et al. 2020, arXiv:2002.10857", "general form of `circle`"),
    "tuplet_margin": of_pairs('Yu & Tao 2019, "Deep metric learning with tuplet margin loss"'),
    "intra_pair_variance": of_pairs('Yu & Tao 2019, "Deep metric learning with tuplet margin loss"'),
    # pairs: the structure of a batch
    "angular": of_pairs("Wang et al. 2017, arXiv:1708.01682"),
    "lifted_structure": of_pairs("Song et al. 2016, arXiv:1511.06452", **by_length),
    "generalized_lifted_structure": of_pairs("Hermans, Beyer, Leibe 2017, arXiv:1703.07737", **by_length),
    "histogram": of_pairs("Ustinova & Lempitsky 2016, arXiv:1611.00822"),
    # pairs: ranking
    "fast_ap": of_pairs('Cakir, He, Xia, Kulis, Sclaroff 2019, "Deep Metric Learning to Rank"'),
    "smooth_ap": of_pairs("Brown, Xie, Kalogeiton, Zisserman 2020, arXiv:2007.12163"),
    "recall_at_k": of_pairs("Patel, Tolias, Matas 2022, arXiv:2108.11179"),
    "roadmap": of_pairs("Ramzi, Thome, Rambour, Audebert, Bitot 2021, arXiv:2110.01445"),
    "pnp": of_pairs("Li et al. 2021, arXiv:2102.04640"),
    # pairs: a regulariser
    "spread_out": of_pairs(
        "Zhang et al. 2017, arXiv:1708.06320", "a regulariser", refuses=("reduction",), added_to="pairs"
    ),
    # two views
    "info_nce": of_views("van den Oord et al. 2018, arXiv:1807.03748"),
    "clip": of_views("Radford et al. 2021, arXiv:2103.00020"),
    "siglip": of_views("Zhai et al. 2023, arXiv:2303.15343"),
    "alignment_uniformity": of_views("Wang & Isola 2020, arXiv:2005.10242", refuses=("groups", "miner", "reduction")),
    "vicreg": of_views("Bardes, Ponce, LeCun 2022, arXiv:2105.04906", lengths=("x", "y")),
    "barlow_twins": of_views("Zbontar et al. 2021, arXiv:2103.03230", lengths=("x", "y")),
    # regularisers of rows
    "embedding_norm": of_rows(
        'Sohn 2016, "Improved deep metric learning with multi-class N-pair loss objective"; '
        "Zheng, Pal, Savvides 2018, arXiv:1803.00130",
        "ring loss: `target=r`", added_to="pairs", **by_length,
    ),
    "zero_mean": of_rows("Yuan et al. 2019, arXiv:1904.02616", added_to="signal_to_noise", **by_length),
    "koleo": of_rows("Sablayrolles et al. 2019, arXiv:1806.03198", added_to="pairs", weight=0.1),
    # regularisers of prototypes
    "hyperspherical_energy": of_prototypes("Liu et al. 2018, arXiv:1805.09298", "MHE, SphereFace+", added_to="classes"),
    "regular_face": of_prototypes(
        'Zhao, Xu, Cheng 2019, "RegularFace: deep face recognition via exclusive regularization"', added_to="classes"
    ),
    "merged_centers": of_prototypes(
        "Qian et al. 2019, arXiv:1909.05235", several=True, added_to="soft_triple", weight=0.2
    ),
    # classes: softmax, and margins in it
    "softmax": of_classes(lengths=("embeddings", "prototypes"), bias=jnp.zeros),
    "normalized_softmax": of_classes("Wang et al. 2017 (NormFace), arXiv:1704.06369; Zhai & Wu 2018, arXiv:1811.12649"),
    "cosface": of_classes("Wang et al. 2018, arXiv:1801.09414"),
    "arcface": of_classes("Deng et al. 2019, arXiv:1801.07698"),
    "combined_margin": of_classes("Deng et al. 2019, arXiv:1801.07698"),
    "sub_center_arcface": of_classes(
        'Deng et al. 2020, "Sub-center ArcFace: boosting face recognition by large-scale noisy web faces"', several=True
    ),
    "large_margin_softmax": of_classes("Liu et al. 2016, arXiv:1612.02295", lengths=("embeddings", "prototypes")),
    "sphereface": of_classes("Liu et al. 2017, arXiv:1704.08063", **by_length),
    "sphereface_r": of_classes("Liu et al. 2021, arXiv:2109.05565"),
    "sphereface2": of_classes("Wen et al. 2022, arXiv:2108.01513", bias=sphereface2_bias),
    "curricularface": of_classes("Huang et al. 2020, arXiv:2004.00288", needs=("state",), state=0.0),
    "adaface": of_classes(
        "Kim et al. 2022, arXiv:2204.00964", needs=("state",), state=(20.0, 100.0), **by_length
    ),
    "magface": of_classes("Meng et al. 2021, arXiv:2103.06627", **by_length),
    "elasticface": of_classes(
        "Boutros et al. 2022, arXiv:2109.09416", "`margin`: 0.5, or 0.35 for \"cos\"", needs=("key",)
    ),
    "adacos": of_classes("Zhang et al. 2019, arXiv:1905.00292", needs=("state",), state=adacos_scale),
    "circle_class": of_classes("Sun et al. 2020, arXiv:2002.10857"),
    "uniface": of_classes(
        'Zhou et al. 2023, "UniFace: unified cross-entropy loss for deep face recognition"',
        bias=lambda classes: jnp.log(10.0 * classes),
    ),
    "p2s_grad": of_classes("Zhang et al. 2019, arXiv:1905.02479"),
    # classes: proxies and centres
    "proxy_nca": of_classes("Movshovitz-Attias et al. 2017, arXiv:1703.07464"),
    "proxy_nca_pp": of_classes("Teh, DeVries, Taylor 2020, arXiv:2004.01113"),
    "proxy_anchor": of_classes("Kim et al. 2020, arXiv:2003.13911", refuses=("weights", "ignore_above")),
    "soft_triple": of_classes("Qian et al. 2019, arXiv:1909.05235", several=True),
    "center": of_centers(
        'Wen et al. 2016, "A discriminative feature learning approach for deep face recognition"',
        lengths=("embeddings", "centers"), added_to="classes", weight=0.003,
    ),
}  # fmt: skip

CATALOGUE: Mapping[str, Entry] = MappingProxyType(_LOSSES)

# The public functions beside the losses, and the losses that they serve.
BESIDE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sub_center_outliers": ("sub_center_arcface",),
        "sphereface_annealing": ("sphereface", "large_margin_softmax"),
        "sphereface2_bias": ("sphereface2",),
        "adacos_scale": ("adacos",),
        "update_centers": ("center",),
    }
)


@dataclass(frozen=True)
class Argument:
    """What an array given to a loss has: an entry for each "row" of a batch or each "class", and features."""

    each: Literal["row", "class"]
    features: bool = False


# By name, in every loss: what `over_mesh` splits over devices (a bias only where it has an entry for each class), and
# whose features `matryoshka` cuts. Other arguments are numbers, functions, states and keys, which are left whole.
ARGUMENTS: Mapping[str, Argument] = MappingProxyType(
    {
        **dict.fromkeys(("embeddings", "x", "y", "references"), Argument("row", features=True)),
        **dict.fromkeys(("labels", "where", "weights", "groups"), Argument("row")),
        **dict.fromkeys(("reference_labels", "reference_where", "reference_ids"), Argument("row")),
        **dict.fromkeys(("prototypes", "centers"), Argument("class", features=True)),
        **dict.fromkeys(("classes", "bias"), Argument("class")),
    }
)
