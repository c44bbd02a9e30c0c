"""Every miner once more, as loops written from the definition, for one anchor.

A mask miner gets the anchor's distances and the lists of its positives and of its negatives, and returns those it
keeps. A selection returns the chosen (positive, negative) pairs.
"""

import math

# --- from masks to masks --------------------------------------------------------------------------------------------


def multi_similarity(row, positives, negatives, epsilon=0.1):
    """In the paper's terms, with the similarity 1 − d."""
    s = [1 - float(d) for d in row]
    kept_positives = [p for p in positives if any(s[p] - epsilon < s[n] for n in negatives)]
    return kept_positives, [n for n in negatives if any(s[n] + epsilon > s[p] for p in positives)]


def pair_margin(row, positives, negatives, positive=0.2, negative=0.8):
    return [p for p in positives if row[p] > positive], [n for n in negatives if row[n] < negative]


def batch_easy_hard(
    row, positives, negatives, positive="easy", negative="semi_hard", positive_range=None, negative_range=None
):
    allowed = lambda js, limits: [j for j in js if limits is None or limits[0] <= row[j] <= limits[1]]
    positives, negatives = allowed(positives, positive_range), allowed(negatives, negative_range)
    at = lambda js, extreme: [j for j in js if row[j] == extreme(row[k] for k in js)]
    of_positives = {"easy": lambda js: at(js, min), "hard": lambda js: at(js, max), "all": list}
    of_negatives = {"easy": lambda js: at(js, max), "hard": lambda js: at(js, min), "all": list}
    if positive == "semi_hard":
        ns = of_negatives[negative](negatives)
        ps = at([p for p in positives if ns and row[p] < row[ns[0]]], max)
    elif negative == "semi_hard":
        ps = of_positives[positive](positives)
        ns = at([n for n in negatives if ps and row[n] > row[ps[0]]], min)
    else:
        ps, ns = of_positives[positive](positives), of_negatives[negative](negatives)
    return (ps, ns) if "all" in (positive, negative) or (ps and ns) else ([], [])


def rank_range(row, positives, negatives, of_negatives=None, of_positives=None):
    def ranked(js, limits, hardness):
        if limits is None:
            return js
        chosen = {hardness(j) for j in sorted(js, key=hardness, reverse=True)[limits[0] - 1 : limits[1]]}
        return [j for j in js if hardness(j) in chosen]

    return ranked(positives, of_positives, lambda j: row[j]), ranked(negatives, of_negatives, lambda j: -row[j])


def triplet_margin(row, positives, negatives, margin=0.2, kind="all"):
    counts = {
        "all": lambda t: t <= margin,
        "hard": lambda t: t <= 0,
        "semi_hard": lambda t: 0 < t <= margin,
        "easy": lambda t: t > margin,
    }[kind]
    pairs = [(p, n) for p in positives for n in negatives if counts(float(row[n]) - float(row[p]))]
    return [p for p in positives if any(p == a for a, _ in pairs)], [
        n for n in negatives if any(n == b for _, b in pairs)
    ]


# --- selections -----------------------------------------------------------------------------------------------------


def _closest(row, js):
    return min(js, key=lambda j: (row[j], j))


def semi_hard_of_hardest(row, positives, negatives):
    if not positives:
        return []
    p = min(positives, key=lambda j: (-row[j], j))
    farther = [n for n in negatives if row[n] > row[p]]
    return [(p, _closest(row, farther))] if farther else []


def semi_hard_within(row, positives, negatives, margin=0.2):
    chosen = []
    for p in positives:
        inside = [n for n in negatives if row[p] < row[n] < row[p] + margin]
        chosen += [(p, _closest(row, inside))] if inside else []
    return chosen


def distance_weights(row, negatives, dimension, cutoff=0.5, upper=1.4):
    """The probability of each negative that can be drawn."""
    log_inverse = {}
    for n in negatives:
        if row[n] < upper:
            d = max(float(row[n]), cutoff)
            log_inverse[n] = -(dimension - 2) * math.log(d) - (dimension - 3) / 2 * math.log(1 - d * d / 4)
    top = max(log_inverse.values(), default=0.0)
    total = sum(math.exp(v - top) for v in log_inverse.values())
    return {n: math.exp(v - top) / total for n, v in log_inverse.items()}


# --- of a corpus ----------------------------------------------------------------------------------------------------


def hard_negatives(
    scores,
    positives,
    p,
    num_negatives=3,
    range_min=0,
    range_max=None,
    min_score=None,
    max_score=None,
    absolute_margin=None,
    relative_margin=None,
    searched=None,
    same=None,
    rescored=None,
):
    """Of one query, in the steps of sentence-transformers: [(row, score)] that may be negatives, best first.

    `searched` are the rows that are searched at all, `same[j]` is the row that is searched in place of j, `rescored`
    are the scores that count after the search.
    """
    scores = [float(s) for s in scores]
    after = scores if rescored is None else [-math.inf if math.isnan(s) else float(s) for s in rescored]
    if range_max is None:
        limited = absolute_margin is not None or relative_margin is not None or max_score is not None
        range_max = range_min + num_negatives * (10 if limited else 1) + p
    rows = range(len(scores)) if searched is None else searched
    rows = [j for j in rows if scores[j] != -math.inf]
    candidates = sorted(rows, key=lambda j: (-scores[j], j))[: range_max + p]
    limit = min((after[j] for j in positives), default=-math.inf)
    forbidden = {j if same is None else same[j] for j in positives}
    left = []
    for j in candidates:
        s = after[j]
        if j in forbidden or s == -math.inf:
            continue
        if absolute_margin is not None and s + absolute_margin > limit:
            continue
        if relative_margin is not None and s > limit - (0 if limit == -math.inf else abs(limit) * relative_margin):
            continue
        if (max_score is not None and s > max_score) or (min_score is not None and s < min_score):
            continue
        left.append((j, s))
    left.sort(key=lambda pair: -pair[1])
    return left[range_min:range_max]
