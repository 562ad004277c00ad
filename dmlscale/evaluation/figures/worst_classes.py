"""Which classes are found least, and what they are taken for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class WorstClass:
    """A class whose samples are often taken for another's."""

    name: str
    recall: float  # Recall@1 of its queries
    count: int  # its queries
    confused_with: list[tuple[str, float]]  # class of the nearest neighbour, share of all queries; most frequent first


def worst_classes(
    labels: NDArray[Any],
    counts: NDArray[Any],
    recall_sums: NDArray[Any],
    confusions: NDArray[Any],
    num_classes: int = 12,
    *,
    num_confused: int = 2,
    class_name: Callable[[int], str] = str,
) -> list[WorstClass]:
    """The classes with the lowest Recall@1, worst first; of equal ones those with more queries, then lower labels.

    Args:
        labels: (C,) distinct classes.
        counts: (C,) queries of each that can be answered; classes without any are left out.
        recall_sums: (C,) how many of these have a nearest neighbour of their class.
        confusions: (m, 2) class of a query and class of its nearest neighbour, where these differ: all, or a random
            part of them, from which the shares are then estimated.
        num_classes: at most so many; classes without an error are never among them.
        num_confused: other classes to name for each.
        class_name: label -> its name.

    Raises:
        ValueError: shapes that do not fit.
    """
    labels, counts, recall_sums = (np.asarray(values) for values in (labels, counts, recall_sums))
    confusions = np.asarray(confusions).reshape(-1, 2)
    if not labels.shape == counts.shape == recall_sums.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape}, counts {counts.shape}, sums {recall_sums.shape}: must all be (C,)")
    recalls = recall_sums / np.maximum(counts, 1)
    faulty = np.flatnonzero((counts > 0) & (recalls < 1))
    order = faulty[np.lexsort((labels[faulty], -counts[faulty], recalls[faulty]))]
    worst = []
    for place in order[:num_classes]:
        others, times = np.unique(confusions[confusions[:, 0] == labels[place], 1], return_counts=True)
        often = np.lexsort((others, -times))[:num_confused]
        shares = (1 - recalls[place]) * times / max(1, times.sum())
        confused = [(class_name(int(others[other])), float(shares[other])) for other in often]
        worst.append(WorstClass(class_name(int(labels[place])), float(recalls[place]), int(counts[place]), confused))
    return worst
