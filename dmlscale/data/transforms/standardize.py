"""Each sample to mean 0 and variance 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dmlscale.data.draws import uniform_draws
from dmlscale.data.errors import DataError
from dmlscale.data.inputs import InputKind
from dmlscale.data.transforms import TRANSFORMS, require, stacked


@TRANSFORMS.register("standardize")
@dataclass(frozen=True)
class Standardize:
    """Each picture, log-mel or array to mean 0 and variance 1, which takes brightness and contrast away.

    Args:
        min_deviation: smaller standard deviations count as this one: there is nothing but rounding to blow up. None
            takes one grey level for pictures and 1e-5 for floats.
    """

    inputs: ClassVar[tuple[InputKind, ...]] = ("image", "views", "array", "audio")
    min_deviation: float | None = None

    def __post_init__(self) -> None:
        check_min_deviation(self.min_deviation)

    def __call__(self, images: Sequence[Tensor], ids: NDArray[np.int64], *, seed: int, epoch: int) -> Tensor:
        """See ``Transform``."""
        return standardized(stacked(images), self.min_deviation)


@TRANSFORMS.register("standardize_shift")
@dataclass(frozen=True)
class StandardizeShift:
    """Pictures moved a little, then each to mean 0 and variance 1.

    Args:
        max_shift: up to so many pixels each way, repeating the edge.
        min_deviation: see ``Standardize``.
    """

    inputs: ClassVar[tuple[InputKind, ...]] = ("image", "views", "array")
    max_shift: int = 2
    min_deviation: float | None = None

    def __post_init__(self) -> None:
        require(self.max_shift >= 0, f"max_shift must not be negative, got {self.max_shift}")
        check_min_deviation(self.min_deviation)

    def __call__(self, images: Sequence[Tensor], ids: NDArray[np.int64], *, seed: int, epoch: int) -> Tensor:
        """See ``Transform``."""
        pixels = stacked(images)
        if pixels.dim() != 4:
            raise DataError("standardize_shift moves pictures, and vectors are none: use standardize or as_is")
        moved = self._shift(pixels.float(), uniform_draws(ids, 2, seed=seed, epoch=epoch))
        return standardized(moved, deviation_floor(pixels, self.min_deviation))

    def _shift(self, pixels: Tensor, draws: NDArray[np.float64]) -> Tensor:
        height, width = pixels.shape[-2:]
        padded = F.pad(pixels, [self.max_shift] * 4, mode="replicate")
        shift = torch.from_numpy((draws * (2 * self.max_shift + 1)).astype(np.int64))  # (b, 2), 0..2 max_shift
        rows = shift[:, 0, None] + torch.arange(height)  # (b, height)
        columns = shift[:, 1, None] + torch.arange(width)  # (b, width)
        sample = torch.arange(len(pixels))[:, None, None]
        # Indexing brings the channels to the end.
        return padded[sample, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def standardized(samples: Tensor, min_deviation: float | None) -> Tensor:
    """Each sample minus its mean, divided by its standard deviation or the smallest one that counts.

    Args:
        samples: (b, ...) of any type.
        min_deviation: see ``Standardize``.

    Returns:
        (b, ...) float32.
    """
    smallest = deviation_floor(samples, min_deviation)
    values = samples.float()
    axes = tuple(range(1, values.dim()))
    variance, mean = torch.var_mean(values, dim=axes, keepdim=True, correction=0)
    return (values - mean) / variance.sqrt().clamp(min=smallest)


def deviation_floor(samples: Tensor, min_deviation: float | None) -> float:
    """The smallest standard deviation that counts, for samples of this type."""
    if min_deviation is not None:
        return min_deviation
    return 1.0 if samples.dtype == torch.uint8 else 1e-5


def check_min_deviation(min_deviation: float | None) -> None:
    """Refuse one that is not above 0.

    Raises:
        DataError: it is not.
    """
    require(min_deviation is None or min_deviation > 0, f"min_deviation must be above 0, got {min_deviation}")
