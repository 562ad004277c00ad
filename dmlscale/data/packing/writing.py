"""Write the shards of a listed source, one after the other; what is finished survives a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.child_processes import process_pool
from dmlscale.data.errors import DataError
from dmlscale.data.layout import shard_name
from dmlscale.data.packing.fragments import Fragment, Reject, Worker, pack_in_process, start_process
from dmlscale.data.packing.item_table import ItemTable, ListedSample
from dmlscale.data.packing.work_folder import SCRATCH
from dmlscale.data.prefetch import Prefetcher
from dmlscale.data.sources import Source
from dmlscale.data.tar import ShardFile
from dmlscale.redaction import shown

REMEDY = "repair or remove it, or pack without strict to leave such samples out"
_FRAGMENT = 32  # samples that a process packs before it answers
_NUMBERS = ("positions", "offsets", "sizes", "num_parts", "content_hashes")

Progress = Callable[[int, int], None]  # samples done, of all


@dataclass(frozen=True)
class PackOptions:
    """How to pack.

    Args:
        shard_size_bytes: a shard is closed once it has this size.
        run_length: samples of one class that follow each other.
        seed: of the order.
        check: decode every sample, and reject those that do not.
        strict: a reject is an error.
        num_processes: that load and check; None takes one per available core.
    """

    shard_size_bytes: int = 256 * 2**20
    run_length: int = 4
    seed: int = 0
    check: bool = True
    strict: bool = field(default=False, compare=False)
    num_processes: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("shard_size_bytes", "run_length", "num_processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"{name}={value}, must be at least 1")


class ShardRecord(NamedTuple):
    """What a finished shard holds, kept beside it until the index is written."""

    name: str
    split: int  # position in the table's names
    end: int  # place in the order of the split after its last sample
    size_bytes: int
    numbers: dict[str, NDArray[np.int64]]  # by name in _NUMBERS: (m,) each; hashes as int64
    rejects: list[Reject]

    @classmethod
    def read(cls, path: Path) -> ShardRecord:
        """The record in a file."""
        with np.load(path) as stored:
            rest = json.loads(str(stored["rest"]))
            numbers = {name: stored[name] for name in _NUMBERS}
        rejects = [Reject(*entry) for entry in rest.pop("rejects")]
        return cls(**rest, numbers=numbers, rejects=rejects)

    def write(self, path: Path) -> None:
        """Into a file that appears when it is complete."""
        rest = {name: value for name, value in self._asdict().items() if name != "numbers"}
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            # mypy takes what is in `numbers` for savez's own allow_pickle.
            np.savez(file, rest=np.array(json.dumps(rest)), **self.numbers)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def pack_order(labels: NDArray[np.int32], run_length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Positions (n,) of samples in runs of one class; the runs in random order."""
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.unique(labels, return_counts=True)[1]
    rank_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    starts_run = rank_in_class % run_length == 0
    run_of_sample = np.cumsum(starts_run) - 1
    place_of_run = rng.permutation(np.count_nonzero(starts_run))
    return by_class[np.argsort(place_of_run[run_of_sample], kind="stable")]


def write_shards(
    source: Source, table: ItemTable, work: Path, options: PackOptions, progress: Progress | None
) -> Iterator[ShardRecord]:
    """Write every shard of every split into ``work``, and give its record; those that are there are not written again.

    Raises:
        DataError: a reject, if ``options.strict``; a file that cannot be read now; a process died.
    """
    num_distinct, done_before = len(table) - len(table.repeated), 0
    for code, split in enumerate(table.split_names):
        members = np.flatnonzero(table.splits == code)
        members = members[~np.isin(members, table.repeated)] if len(table.repeated) else members
        rng = np.random.default_rng((options.seed, code))
        order = members[pack_order(table.labels[members], options.run_length, rng)]
        start, number = 0, 0
        for record in _finished(work, split):
            if options.strict and record.rejects:
                refuse(table, record.rejects[0])
            yield record
            start, number = record.end, number + 1

        def tell(done: int, before: int = done_before) -> None:
            if progress is not None:
                progress(before + done, num_distinct)

        if start < len(order):
            yield from _write_split(source, table, order, start, number, work, code, options, tell)
        done_before += len(order)


def _finished(work: Path, split: str) -> Iterator[ShardRecord]:
    number = 0
    while (path := _record_path(work, split, number)).is_file():
        record = ShardRecord.read(path)
        # One of rejects alone was deleted when the tables were written.
        if not (work / record.name).is_file() and len(record.numbers["positions"]):
            return
        yield record
        number += 1


def _record_path(work: Path, split: str, number: int) -> Path:
    return work / f"{shard_name(split, number)}.npz"


def _write_split(
    source: Source,
    table: ItemTable,
    order: NDArray[np.int64],
    start: int,
    number: int,
    work: Path,
    code: int,
    options: PackOptions,
    tell: Callable[[int], None],
) -> Iterator[ShardRecord]:
    split = table.split_names[code]
    listed = (table.samples(order[at : at + _FRAGMENT]) for at in range(start, len(order), _FRAGMENT))
    with closing(_fragments(source, listed, work / SCRATCH, options)) as prefetcher:
        fragments = _alive(prefetcher)
        while start < len(order):
            with ShardFile(work / shard_name(split, number)) as shard:
                gathered = _Gathered()
                for fragment in fragments:
                    if options.strict and fragment.rejects:
                        refuse(table, fragment.rejects[0])
                    gathered.add(fragment, shard.size)
                    shard.append(fragment.blocks)
                    tell(start + gathered.num_listed)
                    if shard.size >= options.shard_size_bytes:
                        break
                start += gathered.num_listed
                record = ShardRecord(shard_name(split, number), code, start, shard.publish(), *gathered.columns())
            record.write(_record_path(work, split, number))
            yield record
            number += 1


def _fragments(
    source: Source, listed: Iterator[list[ListedSample]], scratch: Path, options: PackOptions
) -> Prefetcher[list[ListedSample], Fragment]:
    count = options.num_processes or len(os.sched_getaffinity(0))
    if count == 1:
        worker = Worker(source, scratch, check=options.check)
        return Prefetcher(worker.pack, listed, pool=ThreadPoolExecutor(1), depth=1)
    pool = process_pool(count, start_process, (source, scratch, options.check))
    return Prefetcher(pack_in_process, listed, pool=pool, depth=2 * count)


def _alive(fragments: Iterator[Fragment]) -> Iterator[Fragment]:
    try:
        yield from fragments
    except BrokenProcessPool:
        raise DataError(
            "a packing process died (out of memory, or started from a script without `if __name__ == '__main__':`): "
            "finished shards are kept; run the same again with num_processes=1"
        ) from None


@dataclass
class _Gathered:
    """What the fragments of a shard hold, their places counted from its beginning."""

    rows: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    num_listed: int = 0

    def add(self, fragment: Fragment, base: int) -> None:
        for position, (offset, size, num_parts), number in fragment.samples:
            # Arrow and numpy have no integers that hold both kinds: the hash travels as the int64 of the same bits.
            self.rows.append((position, base + offset, size, num_parts, number - (number >> 63 << 64)))
        self.rejects += fragment.rejects
        self.num_listed += fragment.num_listed

    def columns(self) -> tuple[dict[str, NDArray[np.int64]], list[Reject]]:
        numbers = np.array(self.rows, np.int64).reshape(-1, len(_NUMBERS))
        return dict(zip(_NUMBERS, numbers.T.copy(), strict=True)), self.rejects


def refuse(table: ItemTable, reject: Reject) -> NoReturn:
    """Name a sample that cannot be packed: an error where packing is strict."""
    (sample,) = table.samples(np.array([reject.position]))
    raise DataError(f"sample {sample.key!r} ({shown(sample.ref)}): {reject.reason}; {REMEDY}")
