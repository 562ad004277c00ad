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
