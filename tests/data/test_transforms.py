from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dmlscale.data.draws import uniform_draws
from dmlscale.data.errors import DataError
from dmlscale.data.transforms import TRANSFORMS, find_transform


def pictures(count: int, channels: int = 3, height: int = 40, width: int = 50) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (channels, height, width), generator=generator, dtype=torch.uint8) for _ in range(count)
    ]


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_pixels_belong_to_the_sample_not_to_the_batch(name: str) -> None:
    images, ids = pictures(6), np.array([3, 1, 4, 15, 9, 2])
    transform = find_transform(name)
    together = transform(images, ids, seed=5, epoch=2)
    assert together.dtype == torch.float32
    assert len(together) == 6
    order = np.array([4, 0, 5])
    apart = transform([images[i] for i in order], ids[order], seed=5, epoch=2)
    assert torch.equal(apart, together[torch.from_numpy(order)])


@pytest.mark.parametrize(
    ("name", "is_random"),
    [("standardize", False), ("papers_eval", False), ("standardize_shift", True), ("papers_train", True)],
)
def test_only_training_recipes_vary_with_seed_and_epoch(name: str, is_random: bool) -> None:
    images, ids = pictures(8), np.arange(8)
    transform = find_transform(name)
    first = transform(images, ids, seed=0, epoch=0)
    for seed, epoch in ((1, 0), (0, 1)):
        assert torch.equal(first, transform(images, ids, seed=seed, epoch=epoch)) is not is_random


def test_global_random_state_is_neither_used_nor_changed() -> None:
    state = torch.get_rng_state()
    find_transform("papers_train")(pictures(2), np.arange(2), seed=0, epoch=0)
    assert torch.equal(state, torch.get_rng_state())


def test_standardize_gives_mean_zero_variance_one() -> None:
    images = [*pictures(3, channels=1), torch.full((1, 40, 50), 9, dtype=torch.uint8)]
    pixels = find_transform("standardize")(images, np.arange(4), seed=0, epoch=0)
    torch.testing.assert_close(pixels.mean(dim=(1, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(pixels[:3].std(dim=(1, 2, 3), correction=0), torch.ones(3))
    assert (pixels[3] == 0).all()


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


def test_papers_recipes_make_equal_sizes_of_any_picture() -> None:
    images = [*pictures(2), *pictures(2, height=300, width=200), *pictures(1, height=1, width=1)]
    for name in ("papers_train", "papers_eval"):
        assert find_transform(name)(images, np.arange(5), seed=0, epoch=0).shape == (5, 3, 224, 224)


def test_draws_are_uniform_and_independent() -> None:
    draws = uniform_draws(np.arange(50_000), 3, seed=1, epoch=1)
    assert 0 <= draws.min() < draws.max() < 1
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.02
    assert np.abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.02


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(DataError, match="did you mean 'standardize'"):
        find_transform("standardise")
    mixed = [*pictures(1), *pictures(1, height=20)]
    with pytest.raises(DataError, match="different sizes in one batch"):
        find_transform("standardize")(mixed, np.arange(2), seed=0, epoch=0)
    with pytest.raises(DataError, match="set channels=3"):
        find_transform("papers_eval")(pictures(1, channels=1), np.arange(1), seed=0, epoch=0)
