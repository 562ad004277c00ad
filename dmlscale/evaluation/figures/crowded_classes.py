"""Which classes a class bank holds closest to others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlscale.evaluation.neighbors import IntArray, nearest

MOST_QUERIES, MOST_COSINES = 2000, 300_000_000  # the second keeps a bank of a million classes to some ten seconds


class BankRow(NamedTuple):
    """A class and those whose proxies or centers lie nearest to its own."""

    name: str
    neighbours: list[tuple[str, float]]  # class, cosine similarity; nearest first
    picture_ids: list[int | None]  # a sample of the class, then of each neighbour; None where there is none


def bank_rows(
    weights: NDArray[Any],
    *,
    class_name: Callable[[int], str] = str,
    sample_of: Callable[[int], int | None],
    num_rows: int = 8,
    num_neighbors: int = 6,
    seed: int = 0,
) -> list[BankRow]:
    """Neighbourhoods of the most crowded classes, most crowded first: their mean cosine to those near them is highest.

    They are the most crowded of at most 2,000 classes drawn at random, fewer in a bank so large that searching it
    for as many would take minutes. A class that an earlier row shows as a neighbour is passed over while there are
    others.

    Args:
        weights: (C, d), or (C, K, d) where a class has K centers, of which the closest ones count; C at least 2.
        class_name: label -> its name.
        sample_of: label -> id of a sample of it.
        num_rows: at most so many classes.
        num_neighbors: at most so many neighbours of each.
        seed: of the classes drawn.

    Raises:
        ValueError: fewer than two classes, or NaN or infinite weights.
    """
    if weights.ndim not in (2, 3) or len(weights) < 2:
        raise ValueError(f"weights {weights.shape} must be (C, d) or (C, K, d) with at least two classes")
    num_classes, per_class = len(weights), weights.shape[1] if weights.ndim == 3 else 1
    num_queries = min(num_classes, MOST_QUERIES, max(4 * num_rows, MOST_COSINES // (num_classes * per_class**2)))
    drawn = np.sort(np.random.default_rng(seed).choice(num_classes, num_queries, replace=False))
    found = _other_classes(weights.reshape(num_classes * per_class, -1), per_class, drawn, num_neighbors)
    crowded = np.argsort([-np.mean([cosine for _, cosine in others]) for others in found], kind="stable")
    rows = []
    for place in _fresh_first(crowded, drawn, found)[:num_rows]:
        label, others = int(drawn[place]), found[place]
        names = [(class_name(other), cosine) for other, cosine in others]
        ids = [sample_of(shown) for shown in (label, *(other for other, _ in others))]
        rows.append(BankRow(class_name(label), names, ids))
    return rows


def _other_classes(
    rows: NDArray[Any], per_class: int, drawn: IntArray, num_neighbors: int
) -> list[list[tuple[int, float]]]:
    """For each drawn class the nearest others, each once, with the cosine of the closest two of their rows."""
    queries = (drawn[:, None] * per_class + np.arange(per_class)).ravel()
    # A class has up to K rows among the nearest, and the query's own class K - 1.
    k = min(len(rows) - 1, per_class - 1 + num_neighbors * per_class)
    cosines, neighbors = nearest(rows[queries], rows, k, exclude=queries)
    found = []
    for place, label in enumerate(drawn):
        part = slice(place * per_class, (place + 1) * per_class)
        near, classes = cosines[part].ravel(), neighbors[part].ravel() // per_class
        order = np.lexsort((classes, -near))
        order = order[classes[order] != label]
        _, first = np.unique(classes[order], return_index=True)
        kept = order[np.sort(first)][:num_neighbors]
        found.append([(int(classes[row]), float(near[row])) for row in kept])
    return found


def _fresh_first(crowded: IntArray, drawn: IntArray, found: list[list[tuple[int, float]]]) -> list[int]:
    """The order of rows: those of classes that no earlier row shows, then the rest."""
    shown: set[int] = set()
    fresh: list[int] = []
    rest: list[int] = []
    for place in crowded.tolist():
        label = int(drawn[place])
        (rest if label in shown else fresh).append(place)
        if label not in shown:
            shown.update([label, *(other for other, _ in found[place])])
    return fresh + rest
