"""What holds for every recipe, and the simple ones. Those of the papers: test_papers_transforms.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dmlscale.data.draws import uniform_draws
from dmlscale.data.errors import DataError
from dmlscale.data.transforms import TRANSFORMS, apply, find_transform
from tests.data.samples import floats, pictures

# Every recipe on each kind of sample that it is for, with options that make it draw.
CASES: dict[str, tuple[str, dict[str, Any], list[Tensor]]] = {
    "standardize": ("standardize", {}, pictures(6)),
    "standardize grey": ("standardize", {}, pictures(6, channels=1, height=32, width=32)),
    "standardize log-mel": ("standardize", {"min_deviation": 0.1}, floats(6, 1, 40, 98)),
    "standardize vector": ("standardize", {}, floats(6, 7)),
    "standardize long vector": ("standardize", {}, floats(6, 1003)),
    "standardize_shift": ("standardize_shift", {}, pictures(6)),
    "standardize_shift array": ("standardize_shift", {"max_shift": 3}, floats(6, 5, 11, 12)),
    "papers_train": ("papers_train", {"size": 30}, pictures(3) + pictures(3, height=33)),
    "papers_train bgr": ("papers_train", {"size": 30, "normalize": "caffe_bgr"}, pictures(6)),
    "papers_eval": ("papers_eval", {"size": 30, "resize": 34}, pictures(6)),
    "papers_eval grey": ("papers_eval", {"size": 30, "resize": 34, "normalize": "none"}, pictures(6, channels=1)),
    "resize_crop_flip": ("resize_crop_flip", {"size": 30, "resize": 34}, pictures(6)),
    "spectrogram_train": ("spectrogram_train", {}, floats(6, 1, 40, 98)),
    "spectrogram_train masks": (
        "spectrogram_train",
        {"num_masks": 2, "time_mask": 20, "band_mask": 8},
        floats(6, 1, 40, 98),
    ),
    "as_is": ("as_is", {}, floats(6, 7)),
    "as_is array": ("as_is", {}, floats(6, 2, 3, 4)),
}


def test_every_recipe_has_a_case() -> None:
    assert {name for name, _, _ in CASES.values()} == set(TRANSFORMS)


@pytest.mark.parametrize("case", CASES)
def test_pixels_belong_to_the_sample_not_to_the_batch(case: str) -> None:
    name, options, samples = CASES[case]
    ids, transform = np.array([3, 1, 4, 15, 9, 2]), find_transform(name, **options)
    copies = [sample.clone() for sample in samples]
    together = transform(samples, ids, seed=5, epoch=2)
    assert together.dtype == torch.float32
    assert len(together) == 6
    assert all(torch.equal(sample, copy) for sample, copy in zip(samples, copies, strict=True))
    for order in (np.array([4, 0, 5]), np.array([2])):
        apart = transform([samples[i] for i in order], ids[order], seed=5, epoch=2)
        assert torch.equal(apart, together[torch.from_numpy(order)])


@pytest.mark.parametrize("case", CASES)
def test_only_training_recipes_vary_with_seed_epoch_and_sample(case: str) -> None:
    name, options, samples = CASES[case]
    transform, ids = find_transform(name, **options), np.arange(6)
    is_random = name in ("standardize_shift", "papers_train", "resize_crop_flip", "spectrogram_train")
    first = transform(samples, ids, seed=0, epoch=0)
    for other, seed, epoch in ((ids, 1, 0), (ids, 0, 1), (ids + 100, 0, 0)):
        assert torch.equal(first, transform(samples, other, seed=seed, epoch=epoch)) is not is_random


def test_global_random_state_is_neither_used_nor_changed() -> None:
    state = torch.get_rng_state()
    for name, options, samples in CASES.values():
        find_transform(name, **options)(samples, np.arange(6), seed=0, epoch=0)
    assert torch.equal(state, torch.get_rng_state())


def test_standardize_gives_mean_zero_variance_one() -> None:
    images = [*pictures(3, channels=1), torch.full((1, 40, 50), 9, dtype=torch.uint8)]
    pixels = find_transform("standardize")(images, np.arange(4), seed=0, epoch=0)
    torch.testing.assert_close(pixels.mean(dim=(1, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(pixels[:3].std(dim=(1, 2, 3), correction=0), torch.ones(3))
    assert (pixels[3] == 0).all()


def test_faint_samples_are_not_blown_up() -> None:
    faint = [torch.tensor([[[0, 1], [0, 0]]], dtype=torch.uint8)]
    assert (
        find_transform("standardize")(faint, np.arange(1), seed=0, epoch=0).flatten().tolist()
        == [-0.25, 0.75] + [-0.25] * 2
    )
    small = [torch.tensor([0.0, 1e-3])]
    assert find_transform("standardize")(small, np.arange(1), seed=0, epoch=0).tolist() == [[-1, 1]]
    kept = find_transform("standardize", min_deviation=0.5)(small, np.arange(1), seed=0, epoch=0)
    torch.testing.assert_close(kept, torch.tensor([[-1e-3, 1e-3]]))


def test_shift_moves_by_at_most_two_and_reaches_all_places() -> None:
    dot = torch.zeros(1, 9, 9, dtype=torch.uint8)
    dot[0, 4, 4] = 255
    pixels = find_transform("standardize_shift")([dot] * 400, np.arange(400), seed=0, epoch=0)
    places = pixels.flatten(1).argmax(dim=1)
    rows, columns = places // 9, places % 9
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4, 5, 6}
    assert len(set(places.tolist())) == 25


def test_shift_keeps_channels_apart() -> None:
    image = torch.stack([torch.full((8, 8), value, dtype=torch.uint8) for value in (10, 20, 30)])
    pixels = find_transform("standardize_shift")([image], np.arange(1), seed=0, epoch=0)[0]
    assert pixels[0].unique().numel() == 1
    assert pixels[0, 0, 0] < pixels[1, 0, 0] < pixels[2, 0, 0]


@pytest.mark.parametrize("case", [case for case, (_, _, samples) in CASES.items() if samples[0].dim() == 3])
def test_views_are_pictures_with_draws_of_their_own(case: str) -> None:
    name, options, samples = CASES[case]
    transform, ids = find_transform(name, **options), np.array([7, 2])
    objects = [torch.stack(samples[:3]), torch.stack(samples[3:])]
    found = apply(transform, objects, ids, seed=1, epoch=3)
    assert found.shape[:2] == (2, 3)
    view_ids = np.array([21, 22, 23, 6, 7, 8])
    assert torch.equal(found.flatten(0, 1), transform(samples, view_ids, seed=1, epoch=3))
    alone = apply(transform, [sample[None] for sample in samples[:2]], ids, seed=1, epoch=3)
    assert torch.equal(alone[:, 0], apply(transform, samples[:2], ids, seed=1, epoch=3))


def test_draws_are_uniform_and_independent() -> None:
    draws = uniform_draws(np.arange(50_000), 3, seed=1, epoch=1)
    assert 0 <= draws.min() < draws.max() < 1
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.02
    assert np.abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.02


@given(
    max_shift=st.integers(0, 12), time_mask=st.integers(0, 12), band_mask=st.integers(0, 9), epoch=st.integers(0, 99)
)
def test_spectrograms_are_moved_and_masked_as_said(max_shift: int, time_mask: int, band_mask: int, epoch: int) -> None:
    sample = torch.arange(1.0, 61.0).reshape(1, 6, 10)
    transform = find_transform("spectrogram_train", max_shift=max_shift, time_mask=time_mask, band_mask=band_mask)
    (found,) = transform([sample], np.array([8]), seed=3, epoch=epoch)
    shift, band, band_start, time, time_start = uniform_draws(np.array([8]), 5, seed=3, epoch=epoch)[0]
    by = int(shift * (2 * max_shift + 1)) - max_shift
    expected = np.full((6, 10), 1.0)
    for frame in range(10):
        if 0 <= frame - by < 10:
            expected[:, frame] = sample[0, :, frame - by]
    mean = expected.mean()
    breadth, length = int(band * (min(band_mask, 6) + 1)), int(time * (min(time_mask, 10) + 1))
    first_band, first_frame = int(band_start * (7 - breadth)), int(time_start * (11 - length))
    expected[first_band : first_band + breadth] = mean
    expected[:, first_frame : first_frame + length] = mean
    expected = (expected - expected.mean()) / max(expected.std(), 1e-5)
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_spectrogram_without_masks_and_shift_is_standardized() -> None:
    samples = floats(3, 1, 40, 98)
    still = find_transform("spectrogram_train", max_shift=0, num_masks=0)(samples, np.arange(3), seed=0, epoch=0)
    assert torch.equal(still, find_transform("standardize")(samples, np.arange(3), seed=0, epoch=0))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("standardize", {"min_deviation": 0}, "min_deviation must be above 0, got 0"),
        ("standardize_shift", {"max_shift": -1}, "max_shift must not be negative, got -1"),
        ("papers_train", {"size": 0}, "size must be at least 1"),
        ("papers_train", {"min_area": 0}, "min_area must be above 0"),
        ("papers_train", {"max_aspect": 0.5}, "max_aspect must be at least 1"),
        ("papers_eval", {"resize": 200}, "resize=200 must be at least size=224"),
        ("resize_crop_flip", {"resize": 200}, "resize=200 must be at least size=224"),
        ("spectrogram_train", {"time_mask": -2}, "time_mask must not be negative, got -2"),
        ("standardise", {}, "unknown transform 'standardise'; did you mean 'standardize'"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_transform(name, **options)


@pytest.mark.parametrize(
    ("name", "samples", "message"),
    [
        ("standardize", [*pictures(1), *pictures(1, height=20)], "different sizes in one batch"),
        ("as_is", [*floats(1, 3), *floats(1, 4)], "arrays must be equal before packing"),
        ("papers_eval", pictures(1, channels=1), "set channels=3, which repeats grey, or normalize=none"),
        ("papers_train", floats(1, 3, 40, 40), r"papers_train is for pictures, these are torch\.float32 of 3 axes"),
        ("spectrogram_train", pictures(1, channels=1), "is for log-mels"),
        ("standardize_shift", floats(1, 7), "vectors are none"),
    ],
)
def test_samples_that_a_recipe_is_not_for_are_refused(name: str, samples: list[Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_transform(name)(samples, np.arange(len(samples)), seed=0, epoch=0)


def test_objects_need_one_number_of_views() -> None:
    objects = [torch.stack(pictures(2)), torch.stack(pictures(3))]
    with pytest.raises(DataError, match="with 2 and with 3 views"):
        apply(find_transform("standardize"), objects, np.arange(2), seed=0, epoch=0)
