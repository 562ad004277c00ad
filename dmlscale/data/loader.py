"""The batches of one rank: an endless training stream that can be continued, and one pass for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.mined_rounds import MinedRounds
from dmlscale.data.plan import EpochPlan, check_plan, num_steps, plan_epoch, streams_of_rank
from dmlscale.data.prefetch import Prefetcher
from dmlscale.data.reader import Reader
from dmlscale.data.transforms import Transform
from dmlscale.data.types import Batch

_CACHE_BYTES = 256 * 2**20  # per rank
_DEPTH = 2  # batches ready beyond those that the threads work on


class Position(NamedTuple):
    """A place in the data: the batch to read next. The same on all ranks, for any number of them."""

    epoch: int  # or round, with offline mining
    step: int  # in the epoch


class TrainStream:
    """This rank's part of every global batch, epoch after epoch, without end.

    Iterating gives ``(position, batch)``: the position after the batch, from which another stream continues
    as if it were this one, and the samples of the streams this rank serves, streams ascending. A batch has
    about ``classes_per_batch * samples_per_class / num_ranks`` samples, not always the same number.

    Owns threads and open files: close it, or use it in a ``with`` block.

    Args:
        index: the split to train on.
        classes_per_batch: P, groups in a global batch.
        samples_per_class: K, samples in a group.
        num_streams: N, lanes that a global batch is dealt to; divides P; at least ``num_ranks``.
        seed: of order and augmentation.
        rank: this rank.
        num_ranks: number of ranks.
        transform: makes the pixels.
        channels: 1 for grey, 3 for RGB.
        num_workers: threads that make batches; 0 is one as well.
        start: epoch and step of the first batch.
        cache_bytes: memory for decoded pictures.
        rounds: offline mining, which then says what a batch is, instead of P and K; asking for the first batch of a
            round mines it, so all ranks must ask for it.

    Raises:
        DataError: the data cannot be batched so, there are more ranks than streams, or no such start.
    """

    def __init__(
        self,
        index: Index,
        *,
        classes_per_batch: int,
        samples_per_class: int,
        num_streams: int,
        seed: int,
        transform: Transform,
        channels: int,
        rank: int = 0,
        num_ranks: int = 1,
        num_workers: int = 0,
        start: tuple[int, int] = (0, 0),
        cache_bytes: int = _CACHE_BYTES,
        rounds: MinedRounds | None = None,
    ) -> None:
        self._sizes = {
            "classes_per_batch": classes_per_batch,
            "samples_per_class": samples_per_class,
            "num_streams": num_streams,
        }
        self._index, self._rounds = index, rounds
        if rounds is None:
            check_plan(index.labels, **self._sizes)
            # Two epochs: at a boundary, threads work on the end of one and the beginning of the next.
            self._plan: Callable[[int], EpochPlan] = lru_cache(maxsize=2)(self._make_plan)
            self.steps_per_epoch = num_steps(index.labels, **self._sizes)
        else:
            if rounds.num_streams != num_streams:
                raise DataError(f"the rounds are planned on {rounds.num_streams} streams, the batches on {num_streams}")
            self._plan, self.steps_per_epoch = rounds.plan, rounds.num_steps
        self._streams = streams_of_rank(rank, num_ranks, num_streams)
        self._seed = seed
        self._transform = transform
        self._num_threads = max(1, num_workers)
        self._reader = Reader(index, channels=channels, cache_bytes=cache_bytes)
        self._prefetcher: Prefetcher[Position, Batch] | None = None
        self._position = self._checked(*start)

    def __enter__(self) -> TrainStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[Position, Batch]]:
        return self

    def __next__(self) -> tuple[Position, Batch]:
        if self._prefetcher is None:
            self._prefetcher = self._start()
        try:
            batch = next(self._prefetcher)
        except BaseException:
            self._stop()  # so that a caller who goes on gets this batch again, not the end of the stream
            raise
        self._position = self._after(self._position)
        if self._rounds is not None and self._position.step == 0:
            self._stop()  # the next round is not mined yet
        return self._position, batch

    def state_dict(self) -> dict[str, int]:
        """The place after the last batch handed out; prefetched ones do not count."""
        return self._position._asdict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue at a place that any stream over the same data and options gave, of any number of ranks."""
        self._stop()
        self._position = self._checked(state["epoch"], state["step"])

    def close(self) -> None:
        """End the threads and close the shards; iterating again starts anew from the same place."""
        self._stop()
        self._reader.close()

    def global_ids(self, position: Position) -> NDArray[np.int64]:
        """(B,) row ids of the whole global batch at a position."""
        return self._index.row_ids[self._plan(position.epoch).batch(position.step)]

    def local_sizes(self, position: Position) -> dict[int, int]:
        """Samples of each stream this rank serves, in the order of the local batch at a position."""
        plan = self._plan(position.epoch)
        return {stream: len(plan.sub_batch(stream, position.step)) for stream in self._streams}

    def _start(self) -> Prefetcher[Position, Batch]:
        if self._rounds is not None:
            self._rounds.prepare(self._position.epoch, is_new=self._position.step == 0)
        positions = self._positions_from(self._position)
        depth = self._num_threads + _DEPTH
        return Prefetcher(self._make_batch, positions, num_threads=self._num_threads, depth=depth)

    def _stop(self) -> None:
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None

    def _checked(self, epoch: int, step: int) -> Position:
        if epoch < 0 or not 0 <= step < self.steps_per_epoch:
            raise DataError(
                f"cannot start at epoch {epoch}, step {step}: with this data and batch size an epoch has "
                f"{self.steps_per_epoch} steps; continue with the options that the run was started with"
            )
        return Position(epoch, step)

    def _after(self, position: Position) -> Position:
        if position.step + 1 < self.steps_per_epoch:
            return Position(position.epoch, position.step + 1)
        return Position(position.epoch + 1, 0)

    def _positions_from(self, position: Position) -> Iterator[Position]:
        """Without end; with offline mining, to the end of the round: the next is mined with a later model."""
        first = position
        while self._rounds is None or position.epoch == first.epoch:
            yield position
            position = self._after(position)

    def _make_plan(self, epoch: int) -> EpochPlan:
        return plan_epoch(self._index.labels, **self._sizes, seed=self._seed, epoch=epoch)

    def _make_batch(self, position: Position) -> Batch:
        plan = self._plan(position.epoch)
        positions = np.concatenate([plan.sub_batch(stream, position.step) for stream in self._streams])
        row_ids = self._index.row_ids[positions]
        # A round may show a sample many times: its pixels must not be the same each time.
        epoch = position.epoch if self._rounds is None else position.epoch * self.steps_per_epoch + position.step
        return _load(self._index, self._reader, self._transform, row_ids, seed=self._seed, epoch=epoch)


def eval_batches(
    index: Index,
    *,
    batch_size: int,
    transform: Transform,
    channels: int,
    rank: int = 0,
    num_ranks: int = 1,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """One pass over this rank's share of a split, in the order of the rows.

    The split is cut into batches first, and ranks take whole batches: a batch is the same for any number of
    ranks, so its embeddings are, to the last bit. With more ranks than batches some have none.

    Args:
        index: the split.
        batch_size: samples per batch; the last may have fewer.
        transform: makes the pixels; what it draws at random is the same in every pass.
        channels: 1 for grey, 3 for RGB.
        rank: this rank.
        num_ranks: number of ranks.
        num_workers: threads that make batches; 0 is one as well.
    """
    if batch_size < 1:
        raise DataError(f"batch_size={batch_size}, must be at least 1")
    num_batches = -(-len(index) // batch_size)
    mine = range(num_batches * rank // num_ranks, num_batches * (rank + 1) // num_ranks)
    chunks = (index.row_ids[n * batch_size : (n + 1) * batch_size] for n in mine)
    num_threads = max(1, num_workers)
    with closing(Reader(index, channels=channels)) as reader:

        def load(row_ids: NDArray[np.int64]) -> Batch:
            return _load(index, reader, transform, row_ids, seed=0, epoch=0)

        with closing(Prefetcher(load, chunks, num_threads=num_threads, depth=num_threads + _DEPTH)) as batches:
            yield from batches


def _load(
    index: Index, reader: Reader, transform: Transform, row_ids: NDArray[np.int64], *, seed: int, epoch: int
) -> Batch:
    images = transform([reader.image(row_id) for row_id in row_ids.tolist()], row_ids, seed=seed, epoch=epoch)
    labels = torch.from_numpy(index.columns.labels[row_ids])
    return Batch(images, labels, torch.from_numpy(row_ids.copy()))
