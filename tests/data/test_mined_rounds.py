"""A training stream whose batches are mined: when it mines, and that nothing else changes its batches."""

from __future__ import annotations

import threading
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.loader import Position, TrainStream
from dmlscale.data.mined_plan import MinedOptions, NeighborTable
from dmlscale.data.mined_rounds import MinedRounds
from dmlscale.data.plan import EpochPlan
from dmlscale.data.transforms import find_transform

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

STEPS = 5
OPTIONS = MinedOptions("hard_triplets", 24, 4, STEPS, 3, 1)


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


def stream_of(index: Index, mine: Mine, **options: Any) -> TrainStream:
    defaults: dict[str, Any] = {
        "classes_per_batch": 8,
        "samples_per_class": 3,
        "num_streams": 4,
        "seed": 11,
        "transform": find_transform("standardize_shift"),
        "channels": 1,
        "num_workers": 2,
    }
    rounds = Rounds(index.labels, OPTIONS, seed=11, mine=mine)
    return TrainStream(index, **defaults | options, rounds=rounds)


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
            assert sum(stream.local_sizes(here).values()) == len(batch.ids)
    assert mine.threads == {threading.get_ident()}


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_ranks_share_the_same_batches_and_pixels(train_index: Index, mine: Mine, num_ranks: int) -> None:
    def take(**ranks: int) -> list[Any]:
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
            assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))
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
    def broken(*args: object, **kwargs: object) -> torch.Tensor:
        raise DataError("broken recipe")

    with stream_of(train_index, mine, transform=broken) as stream:
        for _ in range(2):
            with pytest.raises(DataError, match="broken"):
                next(stream)
    assert mine.calls == [(0, True)]


def test_what_is_not_mined_yet_cannot_be_asked_about(train_index: Index, mine: Mine) -> None:
    with stream_of(train_index, mine) as stream, pytest.raises(DataError, match="round 0 of mining is not at hand"):
        stream.global_ids(Position(0, 0))
    with pytest.raises(DataError, match="4 streams, the batches on 2"):
        stream_of(train_index, mine, num_streams=2)
