"""Compare one shard with the index, from its first byte to its last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from tarfile import TarInfo
from typing import BinaryIO

import numpy as np

from dmlscale.data.errors import DataError
from dmlscale.data.fingerprint import content_hash
from dmlscale.data.index import Index
from dmlscale.data.inspection.problems import Problem
from dmlscale.data.inspection.tar_members import DamagedTarError, TarMembers
from dmlscale.data.tar import split_parts


def check_shard(index: Index, number: int) -> list[Problem]:
    """What is wrong with a shard; read once, in the memory of a piece of a file.

    Args:
        index: of the whole dataset.
        number: of the shard.

    Returns:
        In the order of the shard. Where the archive is damaged one entry says so, and the samples behind are compared
        by their places alone.
    """
    problems: list[Problem] = []
    try:
        with index.open_shard(number) as file:
            for problem in _Walk(index, number, file).problems():
                problems.append(problem)
    except (DataError, OSError) as error:
        problems.append(Problem(index.shards.names[number], "", str(error)))
    return problems


class _Walk:
    """One pass through a shard: the members of the archive beside the rows of the index."""

    def __init__(self, index: Index, number: int, file: BinaryIO) -> None:
        self._index, self._columns = index, index.columns
        self._name, self._expected_bytes = index.shards.names[number], int(index.shards.sizes[number])
        self._file, self._members = file, TarMembers(file)
        # One that lies elsewhere was made by others: it may hold more than the index lists, and labels of other kinds.
        self._is_foreign = "/" in self._name
        first, stop = index.shards.first_rows[number : number + 2].tolist()
        self._rows = first + np.argsort(self._columns.offsets[first:stop], kind="stable")
        self._next = 0  # place in _rows of the sample that comes next
        self._unlabelled: int | None = None  # row of the sample before, whose label comes next

    def problems(self) -> Iterator[Problem]:
        num_bytes = self._members.num_bytes
        if num_bytes != self._expected_bytes:
            yield self._of_shard(f"has {num_bytes:,} bytes, the index says {self._expected_bytes:,}")
        if not num_bytes:
            yield self._of_shard(f"is empty: its {len(self._rows):,} samples are lost")
            return
        try:
            for member in self._members:
                yield from self._member(member)
            yield from self._without_label()
            if not self._is_foreign or self._next < len(self._rows):
                self._members.check_end()
        except DamagedTarError as damage:
            yield self._of_shard(str(damage))
            yield from self._behind_damage()
            return
        yield from map(self._nothing_there, self._rows[self._next :].tolist())

    def _member(self, member: TarInfo) -> Iterator[Problem]:
        while (row := self._row) is not None and self._columns.offsets[row] < self._start(row, member):
            yield self._nothing_there(row)
            self._next += 1
        if row is None or self._columns.offsets[row] != self._start(row, member):
            yield from self._beside(member)
            return
        yield from self._without_label()
        parts = [member, *islice(self._members, self._num_parts(row) - 1)]
        yield from self._sample(row, parts)
        self._next += 1
        self._unlabelled = None if self._is_foreign else row

    @property
    def _row(self) -> int | None:
        """Of the sample that comes next."""
        return int(self._rows[self._next]) if self._next < len(self._rows) else None

    def _num_parts(self, row: int) -> int:
        return int(self._columns.num_parts[row])

    def _start(self, row: int, member: TarInfo) -> int:
        """Where ``member`` begins, counted as the index does for the sample in ``row``."""
        return member.offset if self._num_parts(row) > 1 else member.offset_data

    def _sample(self, row: int, parts: Sequence[TarInfo]) -> Iterator[Problem]:
        yield from self._names(row, parts)
        if len(parts) != self._num_parts(row):
            yield self._of(row, f"has {len(parts)} parts, the index says {self._num_parts(row)}")
            return
        size = parts[-1].offset_data + parts[-1].size - int(self._columns.offsets[row])
        expected = int(self._columns.sizes[row])
        if size != expected:
            yield self._of(row, f"has {size:,} bytes, the index says {expected:,}")
        else:
            yield from self._content(row, (piece for part in parts for piece in self._members.content(part)))

    def _names(self, row: int, parts: Sequence[TarInfo]) -> Iterator[Problem]:
        key, names = self._index.key(row), [part.name for part in parts]
        if self._is_foreign:
            # As for WebDataset, the key ends at the first dot of the base name.
            # Where another split has the key too, that of the index begins with the split.
            split = self._index.splits[self._columns.splits[row]]
            keys = {_key(name) for name in names} - {key, key.removeprefix(f"{split}/")}
            wrong = [name for name in names if _key(name) in keys]
        else:
            extension = self._index.extensions[self._columns.extensions[row]]
            wanted = _member_names(key, extension, self._num_parts(row))
            wrong = [name for name, right in zip(names, wanted, strict=False) if name != right]
        if wrong:
            yield self._of(row, f"its member in the shard has the name {wrong[0]!r}")

    def _content(self, row: int, pieces: Iterable[bytes]) -> Iterator[Problem]:
        if content_hash(pieces) != int(self._columns.hashes[row]):
            yield self._of(row, "its bytes have changed since it was packed")

    def _beside(self, member: TarInfo) -> Iterator[Problem]:
        """A member that is no sample: the label of the sample before, or one too many."""
        row = self._unlabelled
        if self._is_foreign:
            return
        if row is None or member.name != f"{self._index.key(row)}.cls":
            yield self._of_shard(f"holds {member.name!r}, which the index does not list")
            return
        self._unlabelled = None
        found, label = b"".join(self._members.content(member)), int(self._columns.labels[row])
        if found != str(label).encode():
            yield self._of(row, f"its .cls says {found[:20].decode(errors='replace')!r}, the index says label {label}")

    def _without_label(self) -> Iterator[Problem]:
        row, self._unlabelled = self._unlabelled, None
        if row is not None:
            yield self._of(row, f"has no member '{self._index.key(row)}.cls'")

    def _behind_damage(self) -> Iterator[Problem]:
        """The samples that are left, compared by place: a damaged header need not hurt the bytes of samples."""
        cut_off = []
        for row in self._rows[self._next :].tolist():
            offset, size = int(self._columns.offsets[row]), int(self._columns.sizes[row])
            if offset < 0 or size < 0 or offset + size > self._members.num_bytes:
                cut_off.append(row)
                continue
            self._file.seek(offset)
            data = self._file.read(size)
            try:
                parts = split_parts(data, self._num_parts(row)) if self._num_parts(row) > 1 else [data]
            except DataError as error:
                yield self._of(row, str(error))
                continue
            yield from self._content(row, parts)
        if cut_off:
            more = f", and so are {len(cut_off) - 1:,} samples behind it" if len(cut_off) > 1 else ""
            yield self._of(cut_off[0], f"is cut off{more}")

    def _nothing_there(self, row: int) -> Problem:
        return self._of(row, f"no file begins at its offset {int(self._columns.offsets[row]):,}")

    def _of(self, row: int, what: str) -> Problem:
        return Problem(self._name, self._index.key(row), what)

    def _of_shard(self, what: str) -> Problem:
        return Problem(self._name, "", what)


def _key(name: str) -> str:
    """The key of a member in a shard of others."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def _member_names(key: str, extension: str, num_parts: int) -> list[str]:
    """Of a sample that was packed, without its label."""
    if num_parts <= 1:
        return [f"{key}.{extension}"]
    width = max(2, len(str(num_parts - 1)))
    return [f"{key}.{number:0{width}d}.{extension}" for number in range(num_parts)]
