"""Miners: pure choices of columns for each row, without gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmlscale.losses.block import RowTile, Selection

# Above this many positives per anchor one sort per row is cheaper than a sweep per positive.
SWEEPS_AT_MOST = 48
# A row's minimum is found among minima of segments of this length: a vectorised min followed by a short argmin.
SEGMENT = 64
# Distances of unit vectors that distance-weighted sampling cuts off at (the official code's cutoff and
# nonzero_loss_cutoff).
NEAREST_WEIGHED, FARTHEST_WEIGHED = 0.5, 1.4


def semi_hard(tile: RowTile) -> Selection:
    """The FaceNet rule: for every (anchor, positive) the nearest negative farther than the positive.

    Where no negative is farther, the farthest negative of the row. Rows without a negative select nothing.

    Returns:
        Selection with roles (positive, negative), one entry per positive of the row.

    Source: Schroff et al. 2015, section 3.2; the fallback is that of TensorFlow's ``triplet_semihard_loss``.
    """
    distance = tile.squared_distance  # (r, c)
    positives, valid = tile.positive_columns, tile.positive_valid
    threshold = distance.gather(1, positives)  # (r, m)
    tile.fill_class(distance, -math.inf)
    farthest_value, farthest = _segmented_max(distance)
    tile.fill_class(distance, math.inf)
    if positives.shape[1] > SWEEPS_AT_MOST:
        negatives, found = _next_above_by_sort(distance, threshold)
    else:
        negatives, found = _next_above_by_sweep(distance, threshold)
    negatives = torch.where(found, negatives, farthest[:, None])
    has_negative = farthest_value > -math.inf
    return Selection((positives, negatives), valid & has_negative[:, None])


def distance_weighted(tile: RowTile) -> Selection:
    """For every (anchor, positive) one negative, drawn with a probability that evens out distances.

    On the sphere in d dimensions most points lie at a distance near sqrt(2). The weight of a negative is one over
    the density ``q(D) ~ D^(d-2) (1 - D^2/4)^((d-3)/2)`` at its distance, which is cut off below 0.5; negatives beyond
    1.4 have no weight. Where a row has none nearer, all its negatives weigh the same.

    Returns:
        Selection with roles (positive, negative), one entry per positive of the row.

    Source: Wu et al. 2017, "Sampling Matters in Deep Embedding Learning", section 4.1 and its official code.
    """
    squared = tile.squared_distance.clamp(NEAREST_WEIGHED**2, 4 - 1e-6)
    log_weight = (2.0 - tile.dim) / 2 * squared.log() - (tile.dim - 3.0) / 2 * (1 - squared / 4).log()
    log_weight.masked_fill_(tile.squared_distance > FARTHEST_WEIGHED**2, -math.inf)
    tile.fill_class(log_weight, -math.inf)
    highest = log_weight.amax(1, keepdim=True) if log_weight.shape[1] else log_weight.sum(1, keepdim=True)
    even = torch.zeros_like(log_weight)
    tile.fill_class(even, -math.inf)
    log_weight = torch.where(highest == -math.inf, even, log_weight - highest)
    return _drawn(tile, log_weight.exp_())


def random_negative(tile: RowTile) -> Selection:
    """For every (anchor, positive) one negative, each with the same probability.

    Returns:
        Selection with roles (positive, negative), one entry per positive of the row.
    """
    positives, valid = tile.positive_columns, tile.positive_valid
    negatives, has_negative = tile.negative_at(tile.draws())
    return Selection((positives, negatives), valid & has_negative)


def _drawn(tile: RowTile, weight: Tensor) -> Selection:
    """One column for each positive of a row, with probabilities in proportion to ``weight`` (r, c)."""
    positives, valid = tile.positive_columns, tile.positive_valid
    if not weight.shape[1]:
        return Selection((positives, positives), valid)
    heap = weight.double().cumsum(1)
    total = heap[:, -1:]
    # The first column whose heap is above the draw has a weight: `right` passes those without.
    negatives = torch.searchsorted(heap, (tile.draws() * total).contiguous(), right=True)
    return Selection((positives, negatives.clamp_max(weight.shape[1] - 1)), valid & (total > 0))


def _next_above_by_sort(values: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Column of the smallest entry of each row above each threshold, and whether there is one: (r, m) both."""
    ascending, order = values.sort(1)
    position = torch.searchsorted(ascending, threshold.contiguous(), right=True)
    position = position.clamp_max(values.shape[1] - 1)
    above = ascending.gather(1, position)
    return order.gather(1, position), (above > threshold) & (above < math.inf)


def _next_above_by_sweep(values: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """The same, with one sweep over the row per threshold.

    Comparisons and masks are slow on CPU, arithmetic is vectorised: 1 / (threshold - value) is the more
    negative the closer the value lies above the threshold, positive below it, +inf on it and -0 for +inf.
    """
    columns, found = [], []
    for j in range(threshold.shape[1]):
        closeness = torch.sub(threshold[:, j, None], values).reciprocal_()
        best, column = _segmented_max(closeness.neg_())
        columns.append(column)
        found.append(best > 0)
    if not columns:
        empty = values.new_zeros((values.shape[0], 0), dtype=torch.int64)
        return empty, empty.bool()
    return torch.stack(columns, 1), torch.stack(found, 1)


def _segmented_max(values: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum of each row and its column: (r,) both."""
    r, c = values.shape
    whole = c // SEGMENT * SEGMENT
    if c == 0:
        return values.new_full((r,), -math.inf), torch.zeros(r, dtype=torch.int64, device=values.device)
    if whole == 0:
        top, column = values.max(1)
        return top, column
    tops = values[:, :whole].unflatten(1, (-1, SEGMENT)).amax(2)  # (r, segments)
    top, segment = tops.max(1)
    inside = segment[:, None] * SEGMENT + torch.arange(SEGMENT, device=values.device)
    column = inside.gather(1, values.gather(1, inside).argmax(1, keepdim=True))[:, 0]
    if whole == c:
        return top, column
    rest_top, rest_column = values[:, whole:].max(1)
    return torch.maximum(top, rest_top), torch.where(rest_top > top, rest_column + whole, column)
