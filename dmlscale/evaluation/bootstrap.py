"""Confidence intervals of metrics, by drawing classes anew."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dmlscale.evaluation.metrics import IntArray, PerClass

LEVEL = 0.95
"""Share of intervals that hold the true mean, about."""
REPLICATES = 1000
_DRAWS_AT_ONCE = 4_000_000  # 32 MB


def intervals(per_class: PerClass, *, replicates: int = REPLICATES, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % confidence interval of each metric's mean over queries.

    Classes are drawn with replacement, as many as there are, and with each all its queries: those of one class are not
    independent, so drawing single queries would promise too much. An interval is from the 2.5th to the 97.5th
    percentile of the replicates' means (sum of sums / sum of counts). It tells how the figure would vary with other
    classes of this kind, not with another seed of the training. With fewer than some twenty classes it is too narrow.

    Args:
        per_class: of all ranks.
        replicates: how often to draw.
        seed: of the draws; the same classes are drawn for all metrics.

    Returns:
        Metric -> (lower, upper); (NaN, NaN) where fewer than two classes have a query to count.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13 (percentile interval); Davison and
        Hinkley 1997, section 3.8 (clusters drawn as wholes).
    """
    used = np.flatnonzero(per_class.num_queries > 0)
    if not len(used):
        return dict.fromkeys(per_class.sums, (np.nan, np.nan))
    sums = {name: values[used] for name, values in per_class.sums.items()}
    counts = {name: per_class.counts[name][used] for name in sums}
    edges = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    found = {}
    for name, means in _replicated_means(sums, counts, replicates, seed).items():
        means = means[np.isfinite(means)]  # a replicate may have drawn no query that is in the sum
        is_enough = (counts[name] > 0).sum() > 1 and len(means)
        lower, upper = np.quantile(means, edges) if is_enough else (np.nan, np.nan)
        found[name] = (float(lower), float(upper))
    return found


def _replicated_means(
    sums: Mapping[str, NDArray[np.float64]], counts: Mapping[str, IntArray], replicates: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """(replicates,) means of each metric."""
    columns = np.column_stack([*sums.values(), *(counts[name] for name in sums)]).astype(np.float64)
    num_classes = len(columns)
    rng = np.random.default_rng(seed)
    chunk = max(1, _DRAWS_AT_ONCE // num_classes)
    totals = []
    for start in range(0, replicates, chunk):
        size = min(chunk, replicates - start)
        drawn = rng.integers(0, num_classes, (size, num_classes)) + num_classes * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * num_classes).reshape(size, num_classes)
        totals.append(times @ columns)
    summed, counted = np.split(np.concatenate(totals), 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = summed / counted
    return dict(zip(sums, means.T, strict=True))
