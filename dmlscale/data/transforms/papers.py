"""Crops, flips and normalisation as the papers describe them; for pictures of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as image_ops

from dmlscale.data.draws import uniform_draws
from dmlscale.data.errors import DataError
from dmlscale.data.inputs import InputKind
from dmlscale.data.transforms import TRANSFORMS, require, stacked

# imagenet: 0..1, minus mean, divided by deviation of each colour, as torchvision's and timm's weights want it;
# caffe_bgr: blue first, 0..255 minus the mean (104, 117, 128), as BN-Inception's and GoogLeNet's do; none: 0..1.
Normalization = Literal["imagenet", "caffe_bgr", "none"]

_IMAGENET_MEAN = [0.485, 0.456, 0.406]
_IMAGENET_STD = [0.229, 0.224, 0.225]
_CAFFE_MEAN_BGR = [104.0, 117.0, 128.0]


@TRANSFORMS.register("papers_train")
@dataclass(frozen=True)
class PapersTrain:
    """RandomResizedCrop (area 8 to 100 %, aspect 3:4 to 4:3), flip, normalisation.

    Args:
        size: side of the square in pixels.
        min_area: smallest share of the picture that a crop has.
        max_aspect: largest ratio of the crop's sides, either way.
        normalize: "imagenet", "caffe_bgr" or "none".
    """

    inputs: ClassVar[tuple[InputKind, ...]] = ("image", "views")
    size: int = 224
    min_area: float = 0.08
    max_aspect: float = 4 / 3
    normalize: Normalization = "imagenet"

    def __post_init__(self) -> None:
        require(self.size >= 1, f"size must be at least 1, got {self.size}")
        require(0 < self.min_area <= 1, f"min_area must be above 0 and at most 1, got {self.min_area}")
        require(self.max_aspect >= 1, f"max_aspect must be at least 1, got {self.max_aspect}")

    def __call__(self, images: Sequence[Tensor], ids: NDArray[np.int64], *, seed: int, epoch: int) -> Tensor:
        """See ``Transform``."""
        require_pictures("papers_train", images, self.normalize)
        draws = uniform_draws(ids, 5, seed=seed, epoch=epoch)
        crops = [self._crop(image, *row) for image, row in zip(images, draws.tolist(), strict=True)]
        return normalized(stacked(crops), self.normalize)

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
class _ResizedThenCropped:
    """The options of recipes that resize to ``resize`` pixels and cut out a square of ``size``."""

    inputs: ClassVar[tuple[InputKind, ...]] = ("image", "views")
    resize: int = 256
    size: int = 224
    keep_aspect: bool = True
    normalize: Normalization = "imagenet"

    def __post_init__(self) -> None:
        _require_room(self.resize, self.size)


@TRANSFORMS.register("resize_crop_flip")
@dataclass(frozen=True)
class ResizeCropFlip(_ResizedThenCropped):
    """Resize, random crop, flip, normalisation: the recipe of lifted structure, N-pairs, Proxy-NCA and their time.

    Args:
        resize: the shorter side before the crop in pixels.
        size: side of the square crop in pixels.
        keep_aspect: False makes both sides ``resize``, as lifted structure and clustering do.
        normalize: "imagenet", "caffe_bgr" or "none".
    """

    def __call__(self, images: Sequence[Tensor], ids: NDArray[np.int64], *, seed: int, epoch: int) -> Tensor:
        """See ``Transform``."""
        require_pictures("resize_crop_flip", images, self.normalize)
        draws = uniform_draws(ids, 3, seed=seed, epoch=epoch)
        crops = [self._crop(image, *row) for image, row in zip(images, draws.tolist(), strict=True)]
        return normalized(stacked(crops), self.normalize)

    def _crop(self, image: Tensor, top: float, left: float, flip: float) -> Tensor:
        resized = _resized(image, self.resize, self.keep_aspect)
        height, width = resized.shape[-2:]
        row, column = int(top * (height - self.size + 1)), int(left * (width - self.size + 1))
        crop = image_ops.crop(resized, row, column, self.size, self.size)
        return image_ops.horizontal_flip(crop) if flip < 0.5 else crop


@TRANSFORMS.register("papers_eval")
@dataclass(frozen=True)
class PapersEval(_ResizedThenCropped):
    """Resize, centre crop, normalisation; nothing random.

    Args:
        resize: the shorter side before the crop in pixels.
        size: side of the square crop in pixels.
        keep_aspect: False makes both sides ``resize``; as in training.
        normalize: "imagenet", "caffe_bgr" or "none"; as in training.
    """

    def __call__(self, images: Sequence[Tensor], ids: NDArray[np.int64], *, seed: int, epoch: int) -> Tensor:
        """See ``Transform``."""
        require_pictures("papers_eval", images, self.normalize)
        resized = (_resized(image, self.resize, self.keep_aspect) for image in images)
        crops = [image_ops.center_crop(image, [self.size, self.size]) for image in resized]
        return normalized(stacked(crops), self.normalize)


def normalized(pixels: Tensor, how: Normalization) -> Tensor:
    """Pictures (b, channels, height, width) uint8 as the network's weights want them, float32."""
    if how == "caffe_bgr":
        return pixels.flip(1).float() - torch.tensor(_CAFFE_MEAN_BGR)[:, None, None]
    scaled = image_ops.to_dtype(pixels, torch.float32, scale=True)
    return scaled if how == "none" else image_ops.normalize(scaled, _IMAGENET_MEAN, _IMAGENET_STD)


def require_pictures(name: str, images: Sequence[Tensor], how: Normalization) -> None:
    """Refuse what is no picture, and grey ones where colours are normalised.

    Raises:
        DataError: says what to set.
    """
    for image in images:
        if image.dtype != torch.uint8 or image.dim() != 3:
            raise DataError(
                f"{name} is for pictures, these are {image.dtype} of {image.dim()} axes: "
                "use standardize, as_is or spectrogram_train"
            )
        if how != "none" and image.shape[0] != len(_IMAGENET_MEAN):
            raise DataError(
                f"{name} with normalize={how!r} is for RGB pictures, these have {image.shape[0]} channel(s): "
                "set channels=3, which repeats grey, or normalize=none"
            )


def _resized(image: Tensor, resize: int, keep_aspect: bool) -> Tensor:
    return image_ops.resize(image, [resize] if keep_aspect else [resize, resize], InterpolationMode.BILINEAR)


def _require_room(resize: int, size: int) -> None:
    require(size >= 1, f"size must be at least 1, got {size}")
    require(resize >= size, f"resize={resize} must be at least size={size}, which is cut out of it")
