"""The batches of one rank: an endless training stream that can be continued, and one pass for evaluation."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmlscale.data.decoding.decode import Decoder
from dmlscale.data.errors import DataError
from dmlscale.data.fetch_ahead import FetchAhead
from dmlscale.data.index import Index
from dmlscale.data.planning.mined_rounds import MinedRounds
from dmlscale.data.planning.plan import streams_of_rank
from dmlscale.data.planning.planner import EpochPlanner
from dmlscale.data.prefetch import Prefetcher
from dmlscale.data.reader import LostSampleError, Reader
from dmlscale.data.skipped import Skipped
from dmlscale.data.transforms import Transform, apply
from dmlscale.data.types import Batch

_CACHE_BYTES = 256 * 2**20  # per rank
_TRIED = 64  # samples, where the form of a batch must be found out
_DEPTH = 2  # batches ready beyond those that the threads work on


class Position(NamedTuple):
    """A place in the data: the batch to read next. The same on all ranks, for any number of them."""

    epoch: int  # or round, with offline mining
    step: int  # in the epoch


@dataclass(frozen=True)
class Recipe:
    """How samples become the network's input."""

    decoder: Decoder
    transform: Transform


class TrainStream:
    """This rank's part of every global batch, epoch after epoch, without end.

    Iterating gives ``(position, batch)``: the position after the batch, from which another stream continues
    as if it were this one, and the samples of the streams this rank serves, streams ascending. A batch has
    about ``classes_per_batch * samples_per_class / num_ranks`` samples, not always the same number. Samples that cannot
    be had are left out and counted.

    Owns threads and open files: close it, or use it in a ``with`` block.

    Args:
        index: the split to train on.
        plans: what each batch is; with offline mining, asking for the first batch of a round mines it, so all ranks
            must ask for it.
        recipe: decoder and transform.
        seed: of augmentation.
        rank: this rank.
        num_ranks: number of ranks.
        num_workers: threads that make batches; 0 is one as well.
        start: epoch and step of the first batch.
        cache_bytes: memory for decoded samples.
        max_skipped: samples that may be left out on this rank.

    Raises:
        DataError: there are more ranks than streams, or no such start.
    """

    def __init__(
        self,
        index: Index,
        plans: EpochPlanner | MinedRounds,
        recipe: Recipe,
        *,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        num_workers: int = 0,
        start: tuple[int, int] = (0, 0),
        cache_bytes: int = _CACHE_BYTES,
        max_skipped: int = 0,
    ) -> None:
        self._index, self._plans, self._recipe, self._seed = index, plans, recipe, seed
        self._rounds = plans if isinstance(plans, MinedRounds) else None
        self._streams = streams_of_rank(rank, num_ranks, plans.num_streams)
        self._num_threads = max(1, num_workers)
        self._reader = Reader(index, recipe.decoder, cache_bytes=cache_bytes)
        self._fetch_ahead = FetchAhead(index, rank, num_ranks, self._reader.keep_only)
        self._no_images: Tensor | None = None  # (0, ...) of the form of a batch
        self._prefetcher: Prefetcher[Position, Batch] | None = None
        self.skipped = Skipped(max_skipped)
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
        else:
            self._fetch_shards()
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
        self._fetch_ahead.close()
        self._reader.close()

    def global_ids(self, position: Position) -> NDArray[np.int64]:
        """(B,) row ids of the whole global batch at a position, those included that cannot be had."""
        return self._plans.plan(position.epoch).batch(position.step)

    def _start(self) -> Prefetcher[Position, Batch]:
        if self._rounds is not None:
            self._rounds.prepare(self._position.epoch, is_new=self._position.step == 0)
        self._fetch_shards()
        pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="dmlscale-data")
        positions = self._positions_from(self._position)
        return Prefetcher(self._make_batch, positions, pool=pool, depth=self._num_threads + _DEPTH)

    def _fetch_shards(self) -> None:
        # By the batches that were taken, not by those in the making: a thread may be late with the end of a window.
        self._fetch_ahead.at(self._plans.plan(self._position.epoch), self._position.epoch, self._position.step)

    def _stop(self) -> None:
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None

    def _checked(self, epoch: int, step: int) -> Position:
        num_steps = self._num_steps(epoch) if epoch >= 0 else 0
        if not 0 <= step < num_steps:
            raise DataError(
                f"cannot start at epoch {epoch}, step {step}: with this data and batch size an epoch has "
                f"{num_steps} steps; continue with the options that the run was started with"
            )
        return Position(epoch, step)

    def _num_steps(self, epoch: int) -> int:
        return self._plans.num_steps(epoch)

    def _after(self, position: Position) -> Position:
        if position.step + 1 < self._num_steps(position.epoch):
            return Position(position.epoch, position.step + 1)
        return Position(position.epoch + 1, 0)

    def _positions_from(self, position: Position) -> Iterator[Position]:
        """Without end; with offline mining, to the end of the round: the next is mined with a later model."""
        first = position
        while self._rounds is None or position.epoch == first.epoch:
            yield position
            position = self._after(position)

    def _make_batch(self, position: Position) -> Batch:
        plan = self._plans.plan(position.epoch)
        parts = dict(zip(self._streams, plan.sub_batches(self._streams, position.step), strict=True))
        # A round may show a sample many times: its pixels must not be the same each time.
        epoch = position.epoch
        if self._rounds is not None:
            epoch = position.epoch * self._num_steps(epoch) + position.step
        batch = _load(self._reader, self._index, self._recipe, parts, self.skipped, seed=self._seed, epoch=epoch)
        return self._empty() if batch is None else batch

    def _empty(self) -> Batch:
        """A batch of no sample, in the form of the others: other ranks may have their parts of the global one.

        Raises:
            DataError: no sample can be had that would tell the form.
        """
        if self._no_images is None:
            positions = np.unique(np.linspace(0, len(self._index) - 1, _TRIED).astype(np.int64)).tolist()
            rows = np.concatenate([self._index.row_ids_between(at, at + 1) for at in positions])
            tried = _load(self._reader, self._index, self._recipe, {0: rows}, self.skipped, seed=self._seed, epoch=0)
            if tried is None:
                raise DataError(
                    f"none of {len(rows)} samples tried can be read, the last one {self._index.where(int(rows[-1]))}: "
                    f"repair the shards or pack the dataset again"
                )
            self._no_images = tried.images[:0]
        none = torch.empty(0, dtype=torch.int64)
        return Batch(self._no_images, none, none, {self._streams[0]: 0})


def eval_batches(
    index: Index,
    recipe: Recipe,
    *,
    batch_size: int,
    rank: int = 0,
    num_ranks: int = 1,
    num_workers: int = 0,
    max_skipped: int = 0,
) -> Generator[Batch]:
    """One pass over this rank's share of a split, in the order of the rows.

    The split is cut into batches first, and ranks take whole batches: a batch is the same for any number of
    ranks, so its embeddings are, to the last bit. With more ranks than batches some have none.

    Args:
        index: the split.
        recipe: decoder and transform; what that draws at random is the same in every pass.
        batch_size: samples per batch; the last may have fewer, as may those of samples that cannot be had.
        rank: this rank.
        num_ranks: number of ranks.
        num_workers: threads that make batches; 0 is one as well.
        max_skipped: samples that may be left out on this rank.
    """
    if batch_size < 1:
        raise DataError(f"batch_size={batch_size}, must be at least 1")
    num_batches = -(-len(index) // batch_size)
    mine = range(num_batches * rank // num_ranks, num_batches * (rank + 1) // num_ranks)
    chunks = (index.row_ids_between(n * batch_size, (n + 1) * batch_size) for n in mine)
    num_threads = max(1, num_workers)
    skipped = Skipped(max_skipped)
    reader = Reader(index, recipe.decoder)
    ahead = FetchAhead(index, rank, num_ranks, reader.keep_only)

    def load(row_ids: NDArray[np.int64]) -> Batch | None:
        ahead.at_rows(row_ids)
        return _load(reader, index, recipe, {rank: row_ids}, skipped, seed=0, epoch=0)

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="dmlscale-data")
    with (
        closing(reader),
        closing(ahead),
        closing(Prefetcher(load, chunks, pool=pool, depth=num_threads + _DEPTH)) as made,
    ):
        yield from (batch for batch in made if batch is not None)


def _load(
    reader: Reader,
    index: Index,
    recipe: Recipe,
    parts: Mapping[int, NDArray[np.int64]],
    skipped: Skipped,
    *,
    seed: int,
    epoch: int,
) -> Batch | None:
    """The batch of the rows of some streams; None if none of them can be had."""
    samples: list[Tensor] = []
    rows: list[int] = []
    sizes: dict[int, int] = {}
    for stream, row_ids in parts.items():
        before = len(rows)
        for row_id in row_ids.tolist():
            try:
                samples.append(reader.decoded(row_id))
            except LostSampleError as error:
                skipped.add(row_id, error)
                continue
            rows.append(row_id)
        sizes[stream] = len(rows) - before
    if not rows:
        return None
    ids = np.array(rows, np.int64)
    images = apply(recipe.transform, samples, ids, seed=seed, epoch=epoch)
    labels = torch.from_numpy(index.columns.labels[ids].astype(np.int64))
    return Batch(images, labels, torch.from_numpy(ids), {stream: size for stream, size in sizes.items() if size})
