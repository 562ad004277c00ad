"""K centers per class, seen as one similarity per class (SoftTriple, eq. 8).

The raw similarities of a tile stand center by center, (r, K * c): sums over the K centers of a class are then sums of
long rows, which a processor does many at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# exp() of cosines over a temperature above this stays in the range of float32 without a maximum.
LOWEST_TEMPERATURE = 1 / 64


@dataclass(frozen=True)
class SoftAssignment:
    """``S = sum_k softmax_k(s_k / temperature) s_k`` over the K centers of each class.

    Args:
        centers_per_class: K.
        temperature: softness of the choice, in units of cosine.
    """

    centers_per_class: int
    temperature: float

    def _weights(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Similarities (r, K, c), weights in proportion to the softmax (r, K, c), and their sum (r, c)."""
        each = raw.unflatten(1, (self.centers_per_class, -1))
        weights = torch.mul(each, 1 / self.temperature)
        if self.temperature < LOWEST_TEMPERATURE:
            weights.sub_(weights.amax(1, keepdim=True))
        weights.exp_()
        return each, weights, weights.sum(1)

    def assign(self, raw: Tensor) -> Tensor:
        """(r, K * c) similarities to centers -> (r, c) similarities to classes."""
        each, weights, total = self._weights(raw)
        return weights.mul_(each).sum(1).div_(total)

    def pull_back(self, raw: Tensor, assigned: Tensor, gradient: Tensor) -> Tensor:
        """Gradient by the assigned (r, c) -> by the raw similarities (r, K * c)."""
        each, weights, total = self._weights(raw)
        # dS/ds_k = w_k (1 + (s_k - S) / temperature), w_k = weight_k / total
        slope = torch.sub(each, (assigned - self.temperature).unsqueeze(1))
        factor = gradient.div_(total * self.temperature)
        return weights.mul_(slope).mul_(factor.unsqueeze(1)).flatten(1)
