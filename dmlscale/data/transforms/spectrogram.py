"""Log-mels moved in time and masked, as keyword spotting trains on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmlscale.data.draws import uniform_draws
from dmlscale.data.errors import DataError
from dmlscale.data.inputs import InputKind
from dmlscale.data.transforms import TRANSFORMS, require, stacked
from dmlscale.data.transforms.standardize import check_min_deviation, standardized


@TRANSFORMS.register("spectrogram_train")
@dataclass(frozen=True)
class SpectrogramTrain:
    """Time shift, masks of SpecAugment (Park et al. 2019), then each log-mel to mean 0 and variance 1.

    Frames that come in from outside have the sample's smallest value, which is its silence; masked ones have its mean.
    Evaluate with ``standardize``.

    Args:
        max_shift: up to so many frames earlier or later.
        num_masks: of time, and as many of bands.
        time_mask: longest mask in frames; lengths are uniform from 0.
        band_mask: broadest mask in mels; breadths are uniform from 0.
        min_deviation: see ``standardize``.
    """

    inputs: ClassVar[tuple[InputKind, ...]] = ("audio", "array")
    max_shift: int = 10
    num_masks: int = 1
    time_mask: int = 0
    band_mask: int = 0
    min_deviation: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_shift", "num_masks", "time_mask", "band_mask"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        check_min_deviation(self.min_deviation)

    def __call__(self, images: Sequence[Tensor], ids: NDArray[np.int64], *, seed: int, epoch: int) -> Tensor:
        """See ``Transform``."""
        samples = stacked(images)
        if samples.dim() != 4 or not samples.is_floating_point():
            raise DataError("spectrogram_train is for log-mels, which data.input=audio gives, or arrays of 2 or 3 axes")
        draws = torch.from_numpy(uniform_draws(ids, 1 + 4 * self.num_masks, seed=seed, epoch=epoch))
        samples = self._shifted(samples, draws[:, 0])
        masked = torch.zeros((len(samples), 1, *samples.shape[-2:]), dtype=torch.bool)
        for band, band_start, time, time_start in draws[:, 1:].T.reshape(self.num_masks, 4, len(samples)):
            masked |= _spans(band, band_start, self.band_mask, samples.shape[-2])[:, None, :, None]
            masked |= _spans(time, time_start, self.time_mask, samples.shape[-1])[:, None, None, :]
        mean = samples.mean(dim=(1, 2, 3), keepdim=True)
        return standardized(torch.where(masked, mean, samples), self.min_deviation)

    def _shifted(self, samples: Tensor, draws: Tensor) -> Tensor:
        num_frames = samples.shape[-1]
        shift = (draws * (2 * self.max_shift + 1)).long() - self.max_shift  # (b,) positive is later
        frames = torch.arange(num_frames) - shift[:, None]  # (b, frames) where each comes from
        inside = ((frames >= 0) & (frames < num_frames))[:, None, None, :]
        source = frames.clamp(0, num_frames - 1)[:, None, None, :].expand_as(samples)
        return torch.where(inside, samples.gather(3, source), samples.amin(dim=(1, 2, 3), keepdim=True))


def _spans(length: Tensor, start: Tensor, longest: int, size: int) -> Tensor:
    """Masks (b, size), one run each.

    Args:
        length: (b,) draws of its length, 0..longest.
        start: (b,) draws of its place, anywhere inside.
        longest: cut to ``size``.
        size: of what is masked.
    """
    lengths = (length * (min(longest, size) + 1)).long()
    starts = (start * (size - lengths + 1)).long()
    places = torch.arange(size)
    return (places >= starts[:, None]) & (places < (starts + lengths)[:, None])
