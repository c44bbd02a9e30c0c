"""Metrics of synthetic embeddings: what each function returns as classes grow into each other."""

import functools
from collections.abc import Callable, Iterable

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

import metricjax as mj

CLASSES, EACH, FEATURES, STRANGERS, SEEDS = 30, 6, 16, 100, 4
NOISES = np.linspace(0.1, 3, 12)
NOISE = "length of the noise added to centres of length 1"
THREE = (0.5, 0.75, 1.0)  # noises of which a picture shows curves
FARS = (0.1, 0.01, 0.001)


def metric(name: str) -> Figure:
    """What the function gives for embeddings whose classes are known to be near or far."""
    figure = Figure(figsize=(8.4, 2.7), layout="constrained")
    DRAWN[name](figure)
    for axes in figure.axes:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=6)
    return figure


# --- what is measured -------------------------------------------------------------------------------------------------


def made(noise, seed: int = 0, classes: int = CLASSES, each: int = EACH, features: int = FEATURES):
    """Rows of each class around a random centre of length 1, moved by noise, one or one for each row; and labels."""
    rng, labels = np.random.default_rng(seed), np.arange(classes).repeat(each)
    centres = rng.normal(size=(classes, features))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    moved = rng.normal(size=(len(labels), features)) / np.sqrt(features)
    return (centres[labels] + np.reshape(noise, (-1, 1)) * moved).astype(np.float32), labels


def listed(z, labels):
    """The scores of all pairs, whether they are of one class, and the numbers of their rows."""
    rows = np.stack(np.triu_indices(len(z), 1), axis=1)
    scores = np.array(mj.similarities.cosine(z, z))
    return scores[rows[:, 0], rows[:, 1]], labels[rows[:, 0]] == labels[rows[:, 1]], rows


def scores_of(noise, seed: int = 0):
    return listed(*made(noise, seed))[:2]


def curve(noise, seed: int = 0, **sizes) -> mj.metrics.Roc:
    return mj.metrics.pair_scores(*made(noise, seed, **sizes)).roc


def searched(noise, seed: int = 0, people: int = 40, enrolled: int = 1) -> mj.metrics.Searches:
    """The first rows of some people are a gallery; all other rows are queries, also those of strangers."""
    z, labels = made(noise, seed, classes=people + STRANGERS)
    first = np.arange(len(labels)) % EACH < enrolled
    return mj.metrics.identification(z[~first], labels[~first], *(a[first & (labels < people)] for a in (z, labels)))


@functools.cache
def clusters(noise: float, seed: int, count: int = CLASSES) -> np.ndarray:
    return np.array(mj.clusters.k_means(jax.random.key(seed), made(noise, seed)[0], count).labels)


# --- how it is drawn --------------------------------------------------------------------------------------------------


def plot(axes: Axes, xs: Iterable, found: Callable[..., dict], label: str = NOISE, **style) -> None:
    """The numbers of `found(x, seed)` over x: their means over seeds, in a band from the lowest to the highest."""
    xs = np.array(list(xs))
    rows = [[found(x, seed) for seed in range(SEEDS)] for x in xs]
    for name in rows[0][0]:
        values = np.array([[each[name] for each in row] for row in rows])
        (line,) = axes.plot(xs, values.mean(axis=1), label=name, **style)
        axes.fill_between(xs, values.min(axis=1), values.max(axis=1), color=line.get_color(), alpha=0.15, lw=0)
    axes.set(xlabel=label)


def logarithmic(axes: Axes, numbers: bool = False) -> None:
    axes.set_xscale("log")
    if numbers:
        axes.xaxis.set(major_formatter=ScalarFormatter(), minor_formatter=NullFormatter())


def histogram(axes: Axes, noise: float, **sizes) -> None:
    found = mj.metrics.pair_scores(*made(noise, **sizes))
    for kind in ("impostors", "genuine"):
        counts = getattr(found, kind)
        axes.stairs(counts / counts.sum(), found.edges, fill=True, alpha=0.5, label=kind)
    axes.set(title=f"noise {noise:g}", xlabel="cosine of a pair", yticks=[])


def of_threshold(axes: Axes, noise: float, found: Callable, **style) -> None:
    thresholds = np.linspace(-0.5, 1, 76)
    rates = [found(*scores_of(noise), threshold) for threshold in thresholds]
    for rate, colour in (("far", "tab:blue"), ("frr", "tab:orange")):
        label = f"{rate}, noise {noise:g}"
        axes.plot(thresholds, [getattr(each, rate) for each in rates], color=colour, label=label, **style)
    axes.set(xlabel="threshold")


# --- one function for each picture ------------------------------------------------------------------------------------


def retrieval(figure: Figure) -> None:
    left = ("recall@1", "recall@10", "mrr", "map", "r_precision", "map@r")
    right = ("ndcg@10", "recall_ir@10", "precision@1", "precision@10", "recall_ir@1")
    for axes, names in zip(figure.subplots(1, 2, sharey=True), (left, right), strict=True):

        def found(noise, seed, names=names):
            measures = mj.metrics.retrieval(*made(noise, seed), ks=(1, 10))
            return {name: measures[name] for name in names}

        plot(axes, NOISES, found)
        axes.set(title=f"{EACH - 1} matches of each query")


def both_ways(figure: Figure) -> None:
    """One picture, five captions."""
    left, right = figure.subplots(1, 2)

    def found(noise, seed):
        x, labels = made(0, seed, classes=100, each=1)
        y, y_labels = made(noise, seed, classes=100, each=5)
        return mj.metrics.both_ways(x, y, labels=labels, reference_labels=y_labels, ks=(1, 5))

    names = {"x to y": "picture to 5 captions", "y to x": "caption to picture"}
    part = lambda noise, seed, which: {f"{which} {name}": found(noise, seed)[way][which] for way, name in names.items()}
    for which in ("recall@1", "recall@5"):
        plot(left, NOISES, functools.partial(part, which=which))
    plot(right, NOISES, functools.partial(part, which="median_rank"))
    right.set_yscale("log")


def compact_retrieval(figure: Figure) -> None:
    rows = mj.metrics.compact_retrieval(*made(1.5, features=64, classes=60), prefixes=(16, 32, 64))
    for axes, key in zip(figure.subplots(1, 2, sharey=True), ("recall@1", "rescored recall@1"), strict=True):
        for precision in ("float32", "int8", "binary"):
            some = [row for row in rows if row["precision"] == precision]
            axes.plot([row["bytes"] for row in some], [row[key] for row in some], "o-", ms=3, label=precision)
            for row in some:
                axes.annotate(row["features"], (row["bytes"], row[key]), fontsize=6)
        logarithmic(axes, numbers=True)
        axes.set(xlabel="bytes of a reference (beside a point: features)", title=key)


def pair_scores(figure: Figure) -> None:
    *left, right = figure.subplots(1, 3)
    for axes, noise in zip(left, THREE[::2], strict=True):
        histogram(axes, noise)
        found = curve(noise)
        right.plot(found.far, found.tar, label=f"noise {noise:g}")
    right.set(xlabel="false accept rate", ylabel="true accept rate", title="roc of the same pairs")


def roc(figure: Figure) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    for noise in THREE:
        found = mj.metrics.roc(*scores_of(noise))
        for axes in (left, right):
            axes.plot(found.far, found.tar, label=f"noise {noise:g}, AUC {found.auc():.3f}")
    left.plot([0, 1], [0, 1], ":", color="gray")
    logarithmic(right)
    left.set(ylabel="true accept rate", xlabel="false accept rate")
    right.set(xlabel="the same, logarithmic", xlim=(1 / found.impostors, 1))


def roc_bands(figure: Figure) -> None:
    fars = np.geomspace(1e-3, 1, 40)
    for axes, classes in zip(figure.subplots(1, 2, sharey=True), (20, 80), strict=True):
        for noise in THREE[1:]:
            bands = mj.metrics.roc_bands(*made(noise, classes=classes), fars)
            found = curve(noise, classes=classes)
            (line,) = axes.plot(fars, [found.tar_at_far(far) for far in fars], label=f"noise {noise:g}")
            axes.fill_between(bands.fars, bands.lower, bands.upper, color=line.get_color(), alpha=0.2, lw=0)
        logarithmic(axes)
        axes.set(xlabel="false accept rate", title=f"{classes} people with {EACH} rows each")
    figure.axes[0].set(ylabel="true accept rate")


def tar_at_far(figure: Figure) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    found = lambda noise, seed, classes=CLASSES: {
        f"far {far:g}": mj.metrics.tar_at_far(*listed(*made(noise, seed, classes))[:2], far) for far in FARS
    }
    plot(left, NOISES, found)
    plot(right, (15, 20, 30, 40, 60, 80), lambda classes, seed: found(0.75, seed, classes), f"people, {EACH} rows each")
    right.set(title="noise 0.75")


def equal_error_rate(figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    for noise, style in zip(THREE[::2], ("-", "--"), strict=True):
        of_threshold(left, noise, mj.metrics.error_rates, ls=style)
        found = mj.metrics.roc(*scores_of(noise))
        left.plot(found.threshold_at_eer(), mj.metrics.equal_error_rate(*scores_of(noise)), "ko", ms=4)
    both = lambda noise, seed: {
        "equal error rate": mj.metrics.equal_error_rate(*scores_of(noise, seed)),
        "1 − AUC": 1 - mj.metrics.roc_auc(*scores_of(noise, seed)),
    }
    plot(right, NOISES, both)


def error_rates(figure: Figure) -> None:
    """A threshold of one set used on others."""
    left, right = figure.subplots(1, 2)
    of_threshold(left, 0.75, mj.metrics.error_rates)
    threshold = curve(0.75).threshold_at_eer()
    left.axvline(threshold, color="gray", ls=":", label="equal error rate")

    def found(noise, seed):
        test = scores_of(noise, seed + 1)
        rates = mj.metrics.error_rates(*test, threshold)
        own = mj.metrics.equal_error_rate(*test)
        half = mj.metrics.hter(*scores_of(0.75), *test)
        return {"far": rates.far, "frr": rates.frr, "hter": half, "equal error rate of the test set": own}

    plot(right, NOISES, found)
    right.set(title="test sets at that threshold")


def decidability(figure: Figure) -> None:
    first, second, right = figure.subplots(1, 3)
    for axes, noise in zip((first, second), THREE[::2], strict=True):
        histogram(axes, noise)
        axes.set(title=f"noise {noise:g}, d′ = {mj.metrics.decidability(*scores_of(noise)):.2f}")
    plot(right, NOISES, lambda noise, seed: {"d′": mj.metrics.decidability(*scores_of(noise, seed))})
    right.set_yscale("log")
    right.set(xlabel="length of the noise")


def k_fold_accuracy(figure: Figure) -> None:
    left, right = figure.subplots(1, 2)

    def pairs(noise, seed, each=300):
        """As many genuine pairs as impostors, in any order, as LFW has them."""
        rng, (scores, same) = np.random.default_rng(seed), scores_of(noise, seed)
        some = [rng.choice(np.flatnonzero(same == kind), each, replace=False) for kind in (True, False)]
        some = rng.permutation(np.concatenate(some))
        return scores[some], same[some]

    def found(noise, seed):
        tar, _, far = mj.metrics.k_fold_tar(*pairs(noise, seed), far=0.01)
        accuracy = mj.metrics.k_fold_accuracy(*pairs(noise, seed))[0]
        return {"accuracy": accuracy, "TAR at FAR 0.01": tar, "FAR that it has": far}

    plot(left, NOISES, found)
    sizes = (50, 100, 200, 400)
    means, deviations = np.transpose([mj.metrics.k_fold_accuracy(*pairs(0.75, 0, size)) for size in sizes])
    right.errorbar(2 * np.array(sizes), means, deviations, fmt="o-", ms=3, capsize=3)
    logarithmic(right, numbers=True)
    right.set(xlabel="pairs, half of them genuine", title="accuracy at noise 0.75: mean and deviation of ten folds")


def calibrated_threshold(figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    fars = np.geomspace(0.003, 0.3, 8)
    for classes in (20, 80):
        z, labels = made(0.75, classes=classes)
        found = [mj.metrics.calibrated_pair_threshold(z, labels, far, resamples=300) for far in fars]
        for axes, value in ((left, "threshold"), (right, "far")):
            (line,) = axes.plot(fars, [getattr(each, value) for each in found], label=f"{classes} people")
            lower, upper = np.transpose([getattr(each, f"{value}_interval") for each in found])
            axes.fill_between(fars, lower, upper, color=line.get_color(), alpha=0.2, lw=0)
    for axes in (left, right):
        logarithmic(axes)
        axes.set(xlabel="false accept rate wanted")
    left.set(title="threshold, and its interval")
    right.set(title="its rate, and where that may lie", yscale="log")


def error_versus_reject(figure: Figure) -> None:
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.3, 1.5, CLASSES * EACH)
    scores, same, rows = listed(*made(noise))
    lower = lambda quality: quality[rows].min(axis=1)
    qualities = {
        "quality: anything": lower(rng.random(len(noise))),
        "quality: less noise, with errors": lower(rng.normal(size=len(noise)) * 0.4 - noise),
        "quality: less noise": lower(-noise),
        "the score itself": scores,
    }
    for label, quality in qualities.items():
        found = mj.metrics.error_versus_reject(scores, same, quality, far=0.01)
        axes.step(found.rejected, found.fnmr, where="post", label=label)
    axes.set(xlabel="share of the genuine pairs that is rejected", ylabel="FNMR of the others", xlim=(0, 0.9))


def group_error_rates(figure: Figure) -> None:
    """Of one group people look alike."""
    left, right = figure.subplots(1, 2, sharey=True)
    z, labels = made(0.6, classes=60)
    groups = np.where(labels < 30, "apart", "alike")
    z[groups == "alike"] += 0.7 * np.eye(FEATURES, dtype=np.float32)[0]
    thresholds = np.linspace(-0.2, 1, 61)
    rates = [mj.metrics.group_pair_rates(z, labels, groups, threshold) for threshold in thresholds]
    for axes, rate in ((left, "far"), (right, "frr")):
        for group in ("apart", "alike"):
            axes.plot(thresholds, [getattr(each[group], rate) for each in rates], label=f"people {group}")
        axes.set(xlabel="threshold", title=rate, yscale="log", ylim=(1e-3, 1.1))


def identification(figure: Figure) -> None:
    left, right = figure.subplots(1, 2, sharey=True)

    def found(noise, seed, people=40):
        answers = searched(noise, seed, people)
        return {**answers.cmc((1, 5)), "fnir, fpir 0.1": answers.fnir_at_fpir(0.1)}

    numbers = lambda *all_of, **kwargs: {k: v for k, v in found(*all_of, **kwargs).items() if "mated" not in k}
    plot(left, NOISES, numbers)
    left.set(title="40 people in the gallery")
    plot(right, (5, 20, 80, 320), lambda people, seed: numbers(0.75, seed, people), "people in the gallery")
    logarithmic(right, numbers=True)
    right.set(title="noise 0.75")


def cmc(figure: Figure) -> None:
    left, right = figure.subplots(1, 2, sharey=True)

    def draw(axes, label, *how):
        found = searched(*how).cmc(range(1, 21))
        axes.plot(range(1, 21), [found[f"rank-{k}"] for k in range(1, 21)], ".-", label=label)

    for noise in THREE:
        draw(left, f"noise {noise:g}, 40 people", noise)
    for people in (20, 80, 320):
        draw(right, f"{people} people, noise 1", 1.0, 0, people)
    for axes in (left, right):
        axes.set(xlabel="rank", xticks=(1, 5, 10, 15, 20))


def fnir_at_fpir(figure: Figure) -> None:
    left, right = figure.subplots(1, 2, sharey=True)

    def draw(axes, label, *how):
        found = searched(*how)
        fpirs = np.arange(1, found.non_mated + 1) / found.non_mated
        axes.step(fpirs, [found.fnir_at_fpir(fpir) for fpir in fpirs], where="post", label=label)

    for noise in THREE:
        draw(left, f"noise {noise:g}, 1 row of each", noise)
    for rows in (1, 2, 4):
        draw(right, f"{rows} {'row' if rows == 1 else 'rows'} of each, noise 0.75", 0.75, 0, 40, rows)
    for axes in (left, right):
        logarithmic(axes)
        axes.set(xlabel="FPIR")
    left.set(ylabel="FNIR")


def templates(figure: Figure) -> None:
    """Two templates of each class: single images, and frames of a video that are all the same picture."""
    left, right = figure.subplots(1, 2, sharey=True)

    def found(seed, images, frames=0, pooled=True):
        picture = np.append(np.arange(images), np.full(frames, images))
        centres = made(0, seed, each=2)[0]
        noise = np.random.default_rng(seed).normal(size=(len(centres), images + 1, FEATURES)) * 1.2 / np.sqrt(FEATURES)
        z = (centres[:, None] + noise[:, picture]).reshape(-1, FEATURES)
        ids, media = np.arange(len(centres)), picture if pooled else np.arange(len(picture))
        made_of_them = mj.metrics.templates(z, ids.repeat(len(picture)), np.tile(media, len(centres)))
        pairs = np.stack(np.triu_indices(len(centres), 1), axis=1)
        scores = mj.metrics.pair_similarities(made_of_them, pairs)
        return mj.metrics.tar_at_far(scores, pairs[:, 0] // 2 == pairs[:, 1] // 2, 0.01)

    plot(left, (1, 2, 4, 8), lambda images, seed: {"TAR at FAR 0.01": found(seed, images)}, "images")
    left.set(title="templates of single images")
    ids = {"the frames are one medium": True, "each frame is a medium": False}
    both = lambda frames, seed: {label: found(seed, 3, frames, pooled) for label, pooled in ids.items()}
    plot(right, (1, 4, 16), both, "frames of the video")
    right.set(title="three images and a video")


def hardest_pairs(figure: Figure) -> None:
    z, labels = made(0.5)
    wrong = np.random.default_rng(1).choice(len(labels), 4, replace=False)
    given = labels.copy()
    given[wrong] = (labels[wrong] + 7) % CLASSES
    found = mj.metrics.hardest_pairs(z, given, count=40)
    for axes, kind, score in zip(
        figure.subplots(1, 2), ("strangers", "mates"), ("stranger_scores", "mate_scores"), strict=True
    ):
        scores, place = getattr(found, score), np.arange(1, 41)
        touched = np.isin(getattr(found, kind), wrong).any(axis=1)
        axes.plot(place[touched], scores[touched], "o", ms=4, color="tab:red", label="with a row whose label is wrong")
        axes.plot(place[~touched], scores[~touched], "o", ms=4, mfc="none", color="tab:blue", label="other pairs")
        axes.set(xlabel="place in the list", title=f"{kind}: 4 of {len(z)} labels are wrong")
    figure.axes[0].set(ylabel="cosine")


def embedding_health(figure: Figure) -> None:
    left, middle, right = figure.subplots(1, 3)
    z, labels = made(0.75)
    point = np.eye(FEATURES, dtype=np.float32)[0]
    shares = np.linspace(0, 1, 11)
    found = [mj.metrics.embedding_health((1 - share) * z + share * point, labels) for share in shares]
    for name in ("uniformity", "mean_cosine", "spread", "std", "alignment"):
        left.plot(shares, [each[name] for each in found], label=name)
    left.set(title="to one point", xlabel="how far moved to it")
    some = range(1, FEATURES + 1)
    flat = [np.where(np.arange(FEATURES) < features, z, 0) for features in some]
    ranks = [mj.metrics.embedding_health(rows)["effective_rank"] for rows in flat]
    middle.plot(some, ranks, label="effective_rank")
    middle.plot(some, some, ":", color="gray", label="features")
    middle.set(title="to fewer dimensions", xlabel=f"features of {FEATURES} that are not 0")
    sizes = (2, 8, 32, 128)
    found = [mj.metrics.embedding_health(made(3, classes=500, each=1, features=d)[0] + 0.2, k=3) for d in sizes]
    for name in ("hubness", "largest_hub", "anti_hubs"):
        right.plot(sizes, [each[name] for each in found], ".-", label=name)
    logarithmic(right, numbers=True)
    right.set(title="hubs of 500 random rows, k = 3", xlabel="features")


def clustering(measures: dict[str, Callable]) -> Callable[[Figure], None]:
    """For clusters by k-means, of rows with noise and in any number, and for clusters dealt at random."""

    def draw(figure: Figure) -> None:
        left, middle, right = figure.subplots(1, 3, sharey=True)
        labels = made(0)[1]
        values = lambda found: {name: measure(labels, found) for name, measure in measures.items()}
        dealt = lambda count, seed: np.random.default_rng(seed).integers(count, size=len(labels))
        plot(left, NOISES, lambda noise, seed: values(clusters(noise, seed)), "length of the noise")
        left.set(title=f"k-means, {CLASSES} clusters, {CLASSES} classes")
        counts = (2, 5, 10, 20, 30, 45, 90, 180)
        plot(middle, counts, lambda count, seed: values(clusters(0.5, seed, int(count))), "number of clusters")
        middle.set(title=f"k-means, noise 0.5, {len(labels)} rows")
        plot(right, counts, lambda count, seed: values(dealt(count, seed)), "number of clusters")
        right.set(title="dealt at random")

    return draw


MEANS = ("arithmetic", "geometric", "min", "max")
by_mean = lambda function: {name: functools.partial(function, average=name) for name in MEANS}
both_and_f1 = lambda found, f1: {
    "precision": lambda *groups: found(*groups).precision,
    "recall": lambda *groups: found(*groups).recall,
    "F1": f1,
}

ALONE = (retrieval, both_ways, compact_retrieval, pair_scores, roc, roc_bands, tar_at_far, equal_error_rate)
ALONE += (error_rates, decidability, k_fold_accuracy, calibrated_threshold, error_versus_reject, group_error_rates)
ALONE += (identification, cmc, fnir_at_fpir, templates, hardest_pairs, embedding_health)
DRAWN: dict[str, Callable[[Figure], None]] = {function.__name__: function for function in ALONE}
DRAWN |= {
    "nmi": clustering(by_mean(mj.metrics.nmi)),
    "ami": clustering({"ami": mj.metrics.ami, "nmi": mj.metrics.nmi}),
    "ari": clustering({"ari": mj.metrics.ari, "pairwise_f1": mj.metrics.pairwise_f1}),
    "v_measure": clustering({f"beta {b:g}": functools.partial(mj.metrics.v_measure, beta=b) for b in (0.5, 1, 2)}),
    "pairwise_f1": clustering(both_and_f1(mj.metrics.pairwise, mj.metrics.pairwise_f1)),
    "bcubed_f1": clustering(both_and_f1(mj.metrics.bcubed, mj.metrics.bcubed_f1)),
}
