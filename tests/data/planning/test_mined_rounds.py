"""A training stream whose batches are mined: when it mines, and that nothing else changes its batches."""

from __future__ import annotations

import threading
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmlscale.data.decoding.decode import find_decoder
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.loader import Position, Recipe, TrainStream
from dmlscale.data.planning.mined_plan import MinedOptions, NeighborTable
from dmlscale.data.planning.mined_rounds import MinedRounds
from dmlscale.data.planning.plan import EpochPlan
from dmlscale.data.transforms import find_transform
from tests.data.test_loader import Broken

STEPS = 5
OPTIONS = MinedOptions("hard_triplets", 24, 4, STEPS, 3, 1)
RECIPE = Recipe(find_decoder("image", channels=1), find_transform("standardize_shift"))


class Mine:
    """A table that depends on the round, and notes when it was asked for."""

    def __init__(self, labels: np.ndarray) -> None:
        self._labels = labels
        self.calls: list[tuple[int, bool]] = []
        self.threads: set[int] = set()

    def __call__(self, round_number: int, *, is_new: bool) -> NeighborTable:
        self.calls.append((round_number, is_new))
        self.threads.add(threading.get_ident())
        rng = np.random.default_rng(round_number)
        others = [rng.choice(np.flatnonzero(self._labels != label), 3, replace=False) for label in self._labels]
        own = [rng.choice(np.flatnonzero(self._labels == label)) for label in self._labels]
        return NeighborTable(np.stack(others), np.array(own))


class Rounds(MinedRounds):
    """Notes the last round that anyone asked for."""

    asked = -1

    def plan(self, round_number: int) -> EpochPlan:
        self.asked = max(round_number, self.asked)
        return super().plan(round_number)


def stream_of(index: Index, mine: Mine, recipe: Recipe = RECIPE, **options: Any) -> TrainStream:
    rounds = Rounds(index.labels, index.row_ids, OPTIONS, seed=11, mine=mine)
    return TrainStream(index, rounds, recipe, seed=11, **{"num_workers": 2, **options})


@pytest.fixture
def mine(train_index: Index) -> Mine:
    return Mine(train_index.labels)


def test_a_round_is_mined_when_its_first_batch_is_asked_for(train_index: Index, mine: Mine) -> None:
    with stream_of(train_index, mine) as stream:
        assert mine.calls == []
        for done in range(2 * STEPS + 1):
            position, batch = next(stream)
            assert position == Position((done + 1) // STEPS, (done + 1) % STEPS)
            assert mine.calls == [(number, True) for number in range(done // STEPS + 1)]
            assert isinstance(stream._rounds, Rounds)
            assert stream._rounds.asked == done // STEPS  # the threads do not read ahead into the next
            here = Position(done // STEPS, done % STEPS)
            assert np.array_equal(batch.ids.numpy(), stream.global_ids(here))
            plan = stream._rounds.plan(done // STEPS)
            assert batch.stream_sizes == {n: len(plan.sub_batch(n, here.step)) for n in range(4)}
    assert mine.threads == {threading.get_ident()}


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_ranks_share_the_same_batches_and_pixels(train_index: Index, mine: Mine, num_ranks: int) -> None:
    def take(**ranks: Any) -> list[Any]:
        with stream_of(train_index, mine, **ranks) as stream:
            return [batch for _, batch in islice(stream, STEPS + 2)]

    parts = [take(rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    for whole, *shares in zip(take(), *parts, strict=True):
        ids, images = (torch.cat([getattr(share, name) for share in shares]) for name in ("ids", "images"))
        assert torch.equal(ids.sort().values, whole.ids.sort().values)
        assert torch.equal(images[ids.argsort()], whole.images[whole.ids.argsort()])


@pytest.mark.parametrize("stop", [0, 3, STEPS, STEPS + 1])
def test_a_continued_stream_equals_the_uninterrupted_one(train_index: Index, mine: Mine, stop: int) -> None:
    with stream_of(train_index, mine) as stream:
        list(islice(stream, stop))
        state = stream.state_dict()
        after = list(islice(stream, STEPS))
    again = Mine(train_index.labels)
    with stream_of(train_index, again) as stream:
        stream.load_state_dict(state)
        for (place, batch), (other_place, other) in zip(after, islice(stream, STEPS), strict=True):
            assert place == other_place
            assert all(torch.equal(a, b) for a, b in zip(batch[:3], other[:3], strict=True))
            assert batch.stream_sizes == other.stream_sizes
    assert again.calls[0] == (stop // STEPS, stop % STEPS == 0)


def test_a_sample_shown_again_in_a_round_has_other_pixels(train_index: Index, mine: Mine) -> None:
    seen: dict[int, list[torch.Tensor]] = {}
    with stream_of(train_index, mine) as stream:
        for _, batch in islice(stream, STEPS):
            for row_id, image in zip(batch.ids.tolist(), batch.images, strict=True):
                seen.setdefault(row_id, []).append(image)
    repeated = [images for images in seen.values() if len(images) > 1]
    assert repeated
    assert np.mean([torch.equal(images[0], images[1]) for images in repeated]) < 0.5


def test_an_error_in_a_thread_does_not_mine_again(train_index: Index, mine: Mine) -> None:
    with stream_of(train_index, mine, Recipe(RECIPE.decoder, Broken())) as stream:
        for _ in range(2):
            with pytest.raises(DataError, match="broken"):
                next(stream)
    assert mine.calls == [(0, True)]


def test_what_is_not_mined_yet_cannot_be_asked_about(train_index: Index, mine: Mine) -> None:
    with stream_of(train_index, mine) as stream, pytest.raises(DataError, match="round 0 of mining is not at hand"):
        stream.global_ids(Position(0, 0))


def test_rows_of_a_part_of_the_dataset_keep_their_ids(packed: Path) -> None:
    """The table speaks of positions in the split; batches hold row ids of the dataset."""
    index = Index.load(packed).split("test")
    assert index.row_ids[0] > 0
    mine = Mine(index.labels)
    with stream_of(index, mine) as stream:
        _, batch = next(stream)
    assert np.isin(batch.ids.numpy(), index.row_ids).all()
    assert np.array_equal(batch.labels.numpy(), index.columns.labels[batch.ids.numpy()])
    table = mine(0, is_new=True)
    positions = batch.ids.numpy() - index.row_ids[0]
    hard = {*table.nearest_negatives[positions].ravel().tolist(), *table.farthest_positive[positions].tolist()}
    assert len(set(positions.tolist()) & hard) > len(positions) / 2
