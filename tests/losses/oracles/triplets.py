"""Losses over (anchor, positive, negative): f(x (B, d), y (B,), **options) -> ()."""

from __future__ import annotations

from torch import Tensor

from tests.losses.oracles.measures import average_of, distance, negatives, positives, softplus, squared_distance, unit

Triplets = list[tuple[int, int, int]]


def triplet(
    x: Tensor,
    y: Tensor,
    mining: str = "semi_hard",
    margin: float = 0.2,
    soft_margin: bool = False,
    average: str = "all",
    normalize: bool | None = None,
    squared: bool | None = None,
) -> Tensor:
    """Schroff et al. 2015, section 3.1 (FaceNet); Hermans et al. 2017, eq. 5 (batch hard) and its soft margin."""
    if normalize is None:
        normalize = mining != "batch_hard"
    if squared is None:
        squared = mining != "batch_hard"
    x = unit(x) if normalize else x
    measure = squared_distance if squared else distance
    d = [[measure(x[i], x[j]) for j in range(len(x))] for i in range(len(x))]
    terms = []
    for a, p, n in MINING[mining](d, y, margin):
        u = d[a][p] - d[a][n]
        terms.append(softplus(u) if soft_margin else (u + margin).relu())
    if average == "active":
        terms = [term for term in terms if term > 0]
    return average_of(terms, x)


def _every(d: list[list[Tensor]], y: Tensor, margin: float) -> Triplets:
    return [(a, p, n) for a in range(len(y)) for p in positives(y, a) for n in negatives(y, a)]


def _all_semi_hard(d: list[list[Tensor]], y: Tensor, margin: float) -> Triplets:
    """Schroff et al. 2015, section 3.2, within the margin: D_ap < D_an < D_ap + margin."""
    return [(a, p, n) for a, p, n in _every(d, y, margin) if d[a][p] < d[a][n] < d[a][p] + margin]


def _semi_hard(d: list[list[Tensor]], y: Tensor, margin: float) -> Triplets:
    """For every positive pair the nearest negative farther than the positive, else (TensorFlow) the farthest one."""
    chosen = []
    for a in range(len(y)):
        others = negatives(y, a)
        if not others:
            continue
        for p in positives(y, a):
            farther = [n for n in others if d[a][n] > d[a][p]]
            n = min(farther, key=lambda n: d[a][n].item()) if farther else max(others, key=lambda n: d[a][n].item())
            chosen.append((a, p, n))
    return chosen


def _batch_hard(d: list[list[Tensor]], y: Tensor, margin: float) -> Triplets:
    """For every anchor the farthest positive and the nearest negative."""
    chosen = []
    for a in range(len(y)):
        alike, others = positives(y, a), negatives(y, a)
        if alike and others:
            farthest = max(alike, key=lambda p: d[a][p].item())
            nearest = min(others, key=lambda n: d[a][n].item())
            chosen.append((a, farthest, nearest))
    return chosen


def _all_positives_hardest_negative(d: list[list[Tensor]], y: Tensor, margin: float) -> Triplets:
    """Every positive pair with the negative nearest to its anchor."""
    chosen = []
    for a in range(len(y)):
        others = negatives(y, a)
        for p in positives(y, a):
            if others:
                chosen.append((a, p, min(others, key=lambda n: d[a][n].item())))
    return chosen


MINING = {
    "all": _every,
    "all_semi_hard": _all_semi_hard,
    "semi_hard": _semi_hard,
    "batch_hard": _batch_hard,
    "all_positives_hardest_negative": _all_positives_hardest_negative,
}


def triplet_semi_hard(
    x: Tensor, y: Tensor, margin: float = 0.2, normalize: bool = True, squared: bool = True
) -> Tensor:
    """Schroff et al. 2015, section 3.2, with TensorFlow's fallback to the farthest negative."""
    return triplet(x, y, "semi_hard", margin, normalize=normalize, squared=squared)


def triplet_batch_hard(
    x: Tensor, y: Tensor, margin: float = 0.2, normalize: bool = False, squared: bool = False
) -> Tensor:
    """Hermans et al. 2017, eq. 5."""
    return triplet(x, y, "batch_hard", margin, normalize=normalize, squared=squared)
