"""Medoids of a batch by facility location with a clustering margin: the search behind the clustering loss.

Legend: B samples, C classes, S medoids so far, n candidates, E non-empty (medoid, class) cells.
All in float64 and without gradient; of equally good medoids the first counts, so that rounding decides nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Scores closer than this are equal: sums of up to thousands of distances below 2, in float64.
TIE = 1e-9


class Found(NamedTuple):
    """What the search found.

    Args:
        medoids: (S,) positions of samples, in the order they were found.
        nmi: () of their clusters and the labels.
        own_medoids: (C,) for each class, labels ascending, the sample nearest to all of its class in sum.
    """

    medoids: Tensor
    nmi: Tensor
    own_medoids: Tensor


def search_medoids(embeddings: Tensor, labels: Tensor, *, margin: float, refinements: int) -> Found:
    """As many medoids as there are classes, for a high ``F(S) + margin (1 - NMI(g(S), y))``.

    Args:
        embeddings: (B, d).
        labels: (B,).
        margin: weight of 1 - NMI.
        refinements: sweeps of local search over all medoids; it ends early when a sweep changes nothing.

    Source: Song et al. 2017, algorithm 1 (greedy) and algorithm 2 (local search; each swap is judged by the whole
    objective with all samples assigned anew).
    """
    if not len(labels):
        return Found(labels, embeddings.new_ones(()), labels)
    distances = _distances(embeddings)
    classes, y = labels.unique(return_inverse=True)
    search = _Search(distances, y, len(classes), margin)
    medoids: list[int] = []
    nearest = distances.new_full((len(y),), torch.inf)
    slots = torch.zeros_like(y)
    for slot in range(len(classes)):
        scores = search.scores(distances, nearest, slots, slot)
        scores[medoids] = -torch.inf
        chosen = _first_best(scores)
        medoids.append(chosen)
        closer = distances[chosen] < nearest
        nearest = torch.where(closer, distances[chosen], nearest)
        slots = torch.where(closer, slot, slots)
    for _ in range(refinements):
        if not _refine(search, medoids):
            break
    nmi = search.nmi_of(distances[medoids].argmin(0)).to(embeddings.dtype)
    return Found(torch.tensor(medoids, device=labels.device), nmi, _class_medoids(distances, y, len(classes)))


def _class_medoids(distances: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """The best medoid of each class (C,); overwrites the distances (B, B)."""
    within = distances.masked_fill_(y[:, None] != y[None, :], 0.0).sum(1)
    least = within.new_full((num_classes,), torch.inf).scatter_reduce_(0, y, within, "amin")
    place = torch.arange(len(y), device=y.device)
    candidate = torch.where(within <= least[y] + TIE, place, len(y))
    medoids = torch.full_like(y, len(y))[:num_classes].scatter_reduce_(0, y, candidate, "amin")
    return medoids.clamp_max(len(y) - 1)  # any sample where nan hides the best


def _distances(embeddings: Tensor) -> Tensor:
    x = embeddings.double()
    norms = x.square().sum(1)
    squared = (norms[:, None] + norms[None, :]).sub_(2 * (x @ x.T)).clamp_min_(0)
    squared.fill_diagonal_(0)
    return squared.sqrt_()


def _first_best(scores: Tensor) -> int:
    return int((scores >= scores.max() - TIE).int().argmax())  # the first of all where nan hides the best


def _refine(search: _Search, medoids: list[int]) -> bool:
    """One sweep: every medoid in turn may move to a member of its cluster. Changes ``medoids``; whether it did."""
    has_changed = False
    for slot in range(len(medoids)):
        to_medoids = search.distances[medoids]  # (S, B)
        slots = to_medoids.argmin(0)
        members = (slots == slot).nonzero()[:, 0]
        candidates = [j for j in members.tolist() if j not in medoids]
        if not candidates:
            continue
        candidates = [medoids[slot], *candidates]  # the medoid itself is the one to beat
        to_medoids[slot] = torch.inf
        nearest, others = to_medoids.min(0)
        scores = search.scores(search.distances[candidates], nearest, others, slot)
        best = _first_best(scores)
        if best:
            medoids[slot] = candidates[best]
            has_changed = True
    return has_changed


class _Search:
    """Scores of candidates for one more medoid.

    Args:
        distances: (B, B).
        y: (B,) class numbers below C.
        num_classes: C.
        margin: weight of 1 - NMI.
    """

    def __init__(self, distances: Tensor, y: Tensor, num_classes: int, margin: float) -> None:
        self.distances, self._y, self._num_classes, self._margin = distances, y, num_classes, margin
        self._one_hot = torch.nn.functional.one_hot(y, num_classes).double()
        self._class_entropy = self._entropy(self._one_hot.sum(0, keepdim=True))

    def scores(self, candidates: Tensor, nearest: Tensor, slots: Tensor, slot: int) -> Tensor:
        """F(S and j) + margin (1 - NMI) for each candidate -> (n,).

        Args:
            candidates: (n, B) distances from each candidate to all samples.
            nearest: (B,) distance to the nearest other medoid; infinite without one.
            slots: (B,) which one that is.
            slot: of the candidate: of equally near medoids the one in the earlier slot takes a sample.
        """
        takes = candidates < nearest
        takes |= (candidates == nearest) & (slots > slot)
        facility = -torch.minimum(candidates, nearest).sum(1)
        if self._margin == 0:
            return facility
        return facility + self._margin * (1 - self._nmi(takes.double(), slots))

    def nmi_of(self, slots: Tensor) -> Tensor:
        """NMI of one assignment -> ()."""
        nobody = self._one_hot.new_zeros((1, len(slots)))
        return self._nmi(nobody, slots)[0]

    def _nmi(self, takes: Tensor, slots: Tensor) -> Tensor:
        """``2 I / (H + H)`` of labels and slots, where a new slot takes some samples (n, B) away -> (n,)."""
        _, cell = (slots * self._num_classes + self._y).unique(return_inverse=True)
        stays = 1 - takes
        in_cells = stays @ torch.nn.functional.one_hot(cell).double()  # (n, E)
        in_slots = stays @ torch.nn.functional.one_hot(slots).double()  # (n, S)
        in_new = takes @ self._one_hot  # (n, C)
        joint = self._entropy(torch.cat([in_cells, in_new], 1))
        clusters = self._entropy(torch.cat([in_slots, in_new.sum(1, keepdim=True)], 1))
        both = clusters + self._class_entropy
        shared = 2 * (both - joint)
        return torch.where(both > 0, shared / torch.where(both > 0, both, 1.0), 1.0)

    def _entropy(self, counts: Tensor) -> Tensor:
        """Of each row's shares, in nats -> (n,)."""
        share = counts / len(self._y)
        return -torch.xlogy(share, share).sum(1)
