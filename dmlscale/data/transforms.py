"""From decoded pictures to the network's input: recipes by name.

A recipe takes the pictures of a batch at once, so that cheap ones run as a few array operations. What it
draws at random belongs to (seed, epoch, sample id): any number of ranks and loader threads gives the same
pixels.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as image_ops

from dmlscale.data.draws import uniform_draws
from dmlscale.data.errors import DataError

_IMAGENET_MEAN = [0.485, 0.456, 0.406]
_IMAGENET_STD = [0.229, 0.224, 0.225]


class Transform(Protocol):
    """A recipe."""

    def __call__(self, images: Sequence[Tensor], ids: NDArray[np.int64], *, seed: int, epoch: int) -> Tensor:
        """Make the input of the network.

        Args:
            images: b pictures, (channels, height, width) uint8.
            ids: (b,) sample ids.
            seed: of the run.
            epoch: 0, 1, ...

        Returns:
            (b, channels, height, width) float32.
        """


@dataclass(frozen=True)
class Standardize:
    """Each picture to mean 0 and variance 1, which takes brightness and contrast away.

    Args:
        max_shift: before that, move it by up to so many pixels each way, repeating its edge.
    """

    max_shift: int = 0

    def __call__(self, images: Sequence[Tensor], ids: NDArray[np.int64], *, seed: int, epoch: int) -> Tensor:
        """See ``Transform``."""
        pixels = _stack(images).float()
        if self.max_shift:
            pixels = self._shift(pixels, uniform_draws(ids, 2, seed=seed, epoch=epoch))
        variance, mean = torch.var_mean(pixels, dim=(1, 2, 3), keepdim=True, correction=0)
        # Below one grey level of contrast there is nothing but rounding to blow up.
        return (pixels - mean) / variance.sqrt().clamp(min=1.0)

    def _shift(self, pixels: Tensor, draws: NDArray[np.float64]) -> Tensor:
        height, width = pixels.shape[-2:]
        padded = F.pad(pixels, [self.max_shift] * 4, mode="replicate")
        shift = torch.from_numpy((draws * (2 * self.max_shift + 1)).astype(np.int64))  # (b, 2), 0..2 max_shift
        rows = shift[:, 0, None] + torch.arange(height)  # (b, height)
        columns = shift[:, 1, None] + torch.arange(width)  # (b, width)
        sample = torch.arange(len(pixels))[:, None, None]
        # Indexing brings the channels to the end.
        return padded[sample, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


@dataclass(frozen=True)
class PapersTrain:
    """RandomResizedCrop (area 8 to 100 %, aspect 3:4 to 4:3), flip, ImageNet normalisation."""

    size: int = 224
    min_area: float = 0.08
    max_aspect: float = 4 / 3

    def __call__(self, images: Sequence[Tensor], ids: NDArray[np.int64], *, seed: int, epoch: int) -> Tensor:
        """See ``Transform``."""
        draws = uniform_draws(ids, 5, seed=seed, epoch=epoch)
        crops = [self._crop(image, *row) for image, row in zip(images, draws.tolist(), strict=True)]
        return _imagenet_normalised(crops)

    def _crop(self, image: Tensor, area: float, aspect: float, top: float, left: float, flip: float) -> Tensor:
        height, width = image.shape[-2:]
        target = height * width * (self.min_area + (1 - self.min_area) * area)
        ratio = math.exp((2 * aspect - 1) * math.log(self.max_aspect))
        # torchvision draws again where the crop does not fit; cutting it to the picture takes a fixed number
        # of draws, which is what makes them countable.
        crop_height = min(max(round(math.sqrt(target / ratio)), 1), height)
        crop_width = min(max(round(math.sqrt(target * ratio)), 1), width)
        crop = image_ops.resized_crop(
            image,
            int(top * (height - crop_height + 1)),
            int(left * (width - crop_width + 1)),
            crop_height,
            crop_width,
            [self.size, self.size],
            InterpolationMode.BILINEAR,
        )
        return image_ops.horizontal_flip(crop) if flip < 0.5 else crop


@dataclass(frozen=True)
class PapersEval:
    """Shorter side to ``resize``, centre crop, ImageNet normalisation; nothing random."""

    resize: int = 256
    size: int = 224

    def __call__(self, images: Sequence[Tensor], ids: NDArray[np.int64], *, seed: int, epoch: int) -> Tensor:
        """See ``Transform``."""
        resized = (image_ops.resize(image, [self.resize], InterpolationMode.BILINEAR) for image in images)
        return _imagenet_normalised([image_ops.center_crop(image, [self.size, self.size]) for image in resized])


TRANSFORMS: Mapping[str, Transform] = MappingProxyType(
    {
        "standardize": Standardize(),
        "standardize_shift": Standardize(max_shift=2),
        "papers_train": PapersTrain(),
        "papers_eval": PapersEval(),
    }
)


def find_transform(name: str) -> Transform:
    """The recipe called ``name``.

    Raises:
        DataError: there is none; names the nearest.
    """
    if name in TRANSFORMS:
        return TRANSFORMS[name]
    near = difflib.get_close_matches(name, TRANSFORMS, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(f"unknown transform {name!r}{hint} (there are: {', '.join(TRANSFORMS)})")


def _stack(images: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        first, second = sorted(shapes)[:2]
        raise DataError(
            f"pictures of different sizes in one batch ({first} and {second}; channels, height, width): "
            f"use a transform that makes them equal, as 'papers_eval' does"
        )
    return torch.stack(list(images))


def _imagenet_normalised(images: Sequence[Tensor]) -> Tensor:
    pixels = _stack(images)
    if pixels.shape[1] != len(_IMAGENET_MEAN):
        raise DataError(
            f"this transform normalises RGB pictures, these have {pixels.shape[1]} channel(s): set channels=3"
        )
    return image_ops.normalize(image_ops.to_dtype(pixels, torch.float32, scale=True), _IMAGENET_MEAN, _IMAGENET_STD)
