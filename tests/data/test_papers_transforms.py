"""The recipes of the papers against torchvision's own operations and against what was there before."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from dmlscale.data.draws import uniform_draws
from dmlscale.data.transforms import find_transform
from tests.data.samples import pictures

IMAGENET = v2.Compose(
    [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
)


@pytest.mark.parametrize("keep_aspect", [True, False])
@pytest.mark.parametrize(("height", "width"), [(40, 50), (300, 200), (1, 1), (256, 256)])
def test_evaluation_is_torchvisions(height: int, width: int, keep_aspect: bool) -> None:
    (image,) = pictures(1, height=height, width=width)
    steps = v2.Compose([v2.Resize(256 if keep_aspect else (256, 256)), v2.CenterCrop(224), IMAGENET])
    found = find_transform("papers_eval", keep_aspect=keep_aspect)([image], np.arange(1), seed=0, epoch=0)
    assert torch.equal(found[0], steps(image))


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_resize_crop_flip_is_a_flipped_crop_of_the_resized_picture(keep_aspect: bool) -> None:
    images, ids = [*pictures(6), *pictures(6, height=80, width=30)], np.arange(12)
    found = find_transform("resize_crop_flip", resize=36, size=32, keep_aspect=keep_aspect)(
        images, ids, seed=1, epoch=2
    )
    flips = set()
    for pixels, image, draws in zip(found, images, uniform_draws(ids, 3, seed=1, epoch=2), strict=True):
        resized = v2.Resize(36 if keep_aspect else (36, 36))(image)
        top, left = int(draws[0] * (resized.shape[1] - 31)), int(draws[1] * (resized.shape[2] - 31))
        crop = IMAGENET(resized[:, top : top + 32, left : left + 32])
        flips.add(bool(draws[2] < 0.5))
        assert torch.equal(pixels, crop.flip(2) if draws[2] < 0.5 else crop)
    assert flips == {True, False}


def test_crops_reach_every_place() -> None:
    image = torch.arange(36, dtype=torch.uint8).expand(3, 36, 36)
    found = find_transform("resize_crop_flip", resize=36, size=32, normalize="none")(
        [image] * 300, np.arange(300), seed=0, epoch=0
    )
    left = (found[:, 0, 0, [0, -1]].amin(dim=1) * 255).round()
    assert left.unique().tolist() == [0, 1, 2, 3, 4]


def test_random_resized_crop_is_torchvisions_resize_of_a_part() -> None:
    images, ids = pictures(20, height=60, width=90), np.arange(20)
    found = find_transform("papers_train", size=48)(images, ids, seed=4, epoch=1)
    for pixels, image, draws in zip(found, images, uniform_draws(ids, 5, seed=4, epoch=1).tolist(), strict=True):
        area, ratio = 60 * 90 * (0.08 + 0.92 * draws[0]), (4 / 3) ** (2 * draws[1] - 1)
        height, width = min(round(math.sqrt(area / ratio)), 60), min(round(math.sqrt(area * ratio)), 90)
        top, left = int(draws[2] * (61 - height)), int(draws[3] * (91 - width))
        part = IMAGENET(v2.Resize((48, 48))(image[:, top : top + height, left : left + width]))
        torch.testing.assert_close(pixels, part.flip(2) if draws[4] < 0.5 else part)


def test_options_of_the_crop_do_what_they_say() -> None:
    (image,) = pictures(1, height=64, width=64)
    whole = find_transform("papers_train", size=64, min_area=1, max_aspect=1, normalize="none")
    found = whole([image] * 8, np.arange(8), seed=0, epoch=0)
    plain = image.float() / 255
    assert all(torch.allclose(pixels, plain) or torch.allclose(pixels, plain.flip(2)) for pixels in found)
    assert not torch.equal(found[0], found[1]) or not torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", ["papers_train", "papers_eval", "resize_crop_flip"])
def test_normalisations_are_of_the_same_pixels(name: str) -> None:
    images, ids = pictures(4), np.arange(4)

    def made(normalize: str) -> Tensor:
        return find_transform(name, normalize=normalize)(images, ids, seed=0, epoch=0)

    plain = made("none")
    assert 0 <= plain.min() < 0.05
    assert 0.95 < plain.max() <= 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(made("imagenet"), (plain - mean[:, None, None]) / std[:, None, None])
    blue_first = plain[:, [2, 1, 0]] * 255 - torch.tensor([104.0, 117.0, 128.0])[:, None, None]
    torch.testing.assert_close(made("caffe_bgr"), blue_first, atol=1e-4, rtol=0)


def test_they_make_equal_sizes_of_any_picture() -> None:
    images = [*pictures(2), *pictures(2, height=300, width=200), *pictures(1, height=1, width=1)]
    for name in ("papers_train", "papers_eval", "resize_crop_flip"):
        assert find_transform(name)(images, np.arange(5), seed=0, epoch=0).shape == (5, 3, 224, 224)
