"""Facility-location clustering, Song et al. 2017: f(x (B, d), y (B,), **options) -> ().

Sums of the search are rounded once (`math.fsum`), so that medoids that are equally good (the two samples of a cluster
of two) tie exactly, and a tie goes to the earliest sample.
"""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor

from tests.losses.oracles.measures import distance, unit


def clustering(x: Tensor, y: Tensor, margin: float = 1.0, refinements: int = 5) -> Tensor:
    """The structured hinge relu(max_S [F(S) + margin * (1 - NMI(g(S), y))] - F~(y)), S from algorithms 1 and 2."""
    if not len(x):
        return x.sum() * 0
    found = clustering_medoids(x, y, margin, refinements)
    return (clustering_score(x, y, found, margin) - _true_facility(x, y)).relu()


def clustering_score(x: Tensor, y: Tensor, medoids: list[int], margin: float = 1.0) -> Tensor:
    """F(S) + margin * (1 - NMI(g(S), y)) with F(S) = -sum_i min_{j in S} |x_i - x_j|."""
    x = unit(x)
    slots = _assigned(_table(x), medoids)
    travelled = [_travel(x, i, medoids[slots[i]]) for i in range(len(x))]
    return -torch.stack(travelled).sum() + margin * (1 - normalized_mutual_information(slots, y.tolist()))


def clustering_best(x: Tensor, y: Tensor, margin: float = 1.0) -> Tensor:
    """The greatest score of any set of medoids, one a class of the batch."""
    num_medoids = len(set(y.tolist()))
    return max(clustering_score(x, y, list(s), margin) for s in combinations(range(len(x)), num_medoids))


def clustering_medoids(x: Tensor, y: Tensor, margin: float = 1.0, refinements: int = 5) -> list[int]:
    """Algorithm 1 (greedy), then rounds of algorithm 2 (local search), each swap judged by the whole score."""
    d, labels = _table(unit(x)), y.tolist()
    medoids: list[int] = []
    while len(medoids) < len(set(labels)):
        scores = {j: _score(d, labels, [*medoids, j], margin) for j in range(len(d)) if j not in medoids}
        medoids.append(max(scores, key=lambda j: scores[j]))  # the first of equals
    for _ in range(refinements):
        for k in range(len(medoids)):
            slots = _assigned(d, medoids)
            best, best_score = medoids, _score(d, labels, medoids, margin)
            for j in range(len(d)):
                if slots[j] != k or j in medoids:
                    continue
                swapped = [*medoids[:k], j, *medoids[k + 1 :]]
                score = _score(d, labels, swapped, margin)
                if score > best_score:
                    best, best_score = swapped, score
            medoids = best
    return medoids


def normalized_mutual_information(a: list[int], b: list[int]) -> float:
    """2 I(a; b) / (H(a) + H(b)) in nats; 1 where both have one cluster."""
    n = len(a)
    shares_a = {k: a.count(k) / n for k in set(a)}
    shares_b = {c: b.count(c) / n for c in set(b)}
    joint = {(k, c): list(zip(a, b, strict=True)).count((k, c)) / n for k in shares_a for c in shares_b}
    entropies = [-share * math.log(share) for share in [*shares_a.values(), *shares_b.values()]]
    shared = [p * math.log(p / (shares_a[k] * shares_b[c])) for (k, c), p in joint.items() if p > 0]
    return 2 * math.fsum(shared) / math.fsum(entropies) if len(shares_a) > 1 or len(shares_b) > 1 else 1.0


def _true_facility(x: Tensor, y: Tensor) -> Tensor:
    """F~(y): every class with its own best medoid."""
    x = unit(x)
    facilities = []
    for c in sorted(set(y.tolist())):
        members = [i for i in range(len(x)) if y[i] == c]
        facilities.append(max(-torch.stack([_travel(x, i, j) for i in members]).sum() for j in members))
    return torch.stack(facilities).sum()


def _travel(x: Tensor, i: int, j: int) -> Tensor:
    """|x_i - x_j|; a medoid's distance to itself is the constant 0."""
    return distance(x[i], x[j]) if i != j else x.sum() * 0


def _table(x: Tensor) -> list[list[float]]:
    return [[_travel(x.detach(), i, j).item() for j in range(len(x))] for i in range(len(x))]


def _assigned(d: list[list[float]], medoids: list[int]) -> list[int]:
    """g(S): of every sample the place in `medoids` of its nearest one, the earlier of equals."""
    return [min(range(len(medoids)), key=lambda k: d[i][medoids[k]]) for i in range(len(d))]


def _score(d: list[list[float]], labels: list[int], medoids: list[int], margin: float) -> float:
    slots = _assigned(d, medoids)
    facility = -math.fsum(d[i][medoids[slots[i]]] for i in range(len(d)))
    return facility + margin * (1 - normalized_mutual_information(slots, labels))
