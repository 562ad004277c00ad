"""Arrays of numbers: features, spectrograms, sensor data."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.inputs import InputKind
from dmlscale.data.originals.archives import open_files
from dmlscale.data.originals.array_rows import array_names, map_array
from dmlscale.data.originals.class_split import check_fraction, split_of_class
from dmlscale.data.originals.downloads import ListedFiles
from dmlscale.data.originals.extensions import ARRAY_EXTENSIONS, extension_of
from dmlscale.data.originals.files import Files
from dmlscale.data.originals.names import SampleKeys, readable
from dmlscale.data.sources import SOURCES, TRAIN_SPLIT, Item, OpenSource

_CHUNK = 2**16  # labels looked at together


@SOURCES.register("arrays")
@dataclass(frozen=True)
class Arrays:
    """Samples that are NumPy arrays: (d,), (h, w) or (c, h, w).

    Either a file each, <split>/<class>/<name>.npy in a folder or an archive; keys are the paths. Or the rows of one
    array, beside their labels, in an .npz file or a folder of .npy files; keys are the row numbers.

    Args:
        path: the folder, archive or .npz file.
        data: name of the array of samples, (n, ...); rows are looked for where it is there.
        labels: name of the array of labels, (n,): whole numbers or texts, which name the classes.
        split: name of the array of splits, (n,) texts; where there is none, classes are dealt by a hash of their names.
        train_fraction: share of the classes to train on, where rows have no split.
        seed: of the deal.
    """

    path: str
    data: str = "x"
    labels: str = "y"
    split: str = "split"
    train_fraction: float = 0.5
    seed: int = 0

    input: ClassVar[InputKind] = "array"

    def __post_init__(self) -> None:
        check_fraction("arrays", self.train_fraction)

    def open(self, scratch: Path) -> OpenSource:
        """See ``Source``; an .npz file is unpacked into ``scratch``."""
        place = Path(self.path).expanduser()
        if not place.exists():
            raise DataError(f"arrays: there is no {place}: set path to an .npz file or to a folder of .npy files")
        if place.suffix.lower() == ".npz" or (place / f"{self.data}.npy").is_file():
            return self._open_rows(place, scratch)
        files = open_files(place, scratch).find(f"{TRAIN_SPLIT}/")
        if files is None:
            raise DataError(
                f"arrays: {place} has neither {self.data}.npy nor a folder {TRAIN_SPLIT!r}: make it "
                "<split>/<class>/<name>.npy, or give the name of the array of samples as 'data'"
            )
        return ListedFiles(files, partial(self._items, files))

    def _items(self, files: Files) -> Iterator[Item]:
        keys, count = SampleKeys(), 0
        for name in files.names():
            split, *classes, _ = readable(name).split("/") if "/" in name else ("", "")
            if classes and extension_of(name) in ARRAY_EXTENSIONS:
                yield Item(keys.add(name), "/".join(classes), split, readable(name), extension_of(name))
                count += 1
        if not count:
            raise DataError(f"arrays: {self.path} has no file <split>/<class>/<name>.npy")

    def _open_rows(self, place: Path, scratch: Path) -> OpenSource:
        there = array_names(place)
        for name in (self.data, self.labels):
            if name not in there:
                raise DataError(f"arrays: {place} has no array {name!r} (it has: {', '.join(there)})")
        data, labels = (map_array(place, name, scratch) for name in (self.data, self.labels))
        splits = map_array(place, self.split, scratch) if self.split in there else None
        if data.ndim < 2:
            raise DataError(f"arrays: {self.data!r} of {place} has the shape {data.shape}, must have a row per sample")
        for name, array, kinds in ((self.labels, labels, "iubUS"), (self.split, splits, "US")):
            if array is None:
                continue
            if array.shape != data.shape[:1]:
                raise DataError(f"arrays: {name!r} of {place} has the shape {array.shape}, must be {data.shape[:1]}")
            if array.dtype.kind not in kinds:
                wanted = "texts" if kinds == "US" else "whole numbers or texts"
                raise DataError(f"arrays: {name!r} of {place} holds {array.dtype}, must hold {wanted}")
        return ArrayRows(self, data, labels, splits)


@dataclass(frozen=True, eq=False)
class ArrayRows:
    """The rows of one array, see ``OpenSource``."""

    source: Arrays
    data: NDArray  # (n, ...)
    labels: NDArray  # (n,)
    splits: NDArray | None  # (n,)

    def items(self) -> Iterator[Item]:
        """See ``OpenSource``."""
        split_of = partial(split_of_class, train_fraction=self.source.train_fraction, seed=self.source.seed)
        for start in range(0, len(self.labels), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            names = _texts(self.labels[chunk])
            splits = [split_of(name) for name in names] if self.splits is None else _texts(self.splits[chunk])
            for row, (name, split) in enumerate(zip(names, splits, strict=True), start):
                yield Item(f"{row:08d}", name, split, str(row), "npy", defect=self._defect(name, split))

    def load(self, ref: str) -> Sequence[bytes]:
        """See ``OpenSource``; the row as a .npy file."""
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(self.data[int(ref)]), allow_pickle=False)
        return (file.getvalue(),)

    def _defect(self, name: str, split: str) -> str:
        empty = next((key for key, text in ((self.source.labels, name), (self.source.split, split)) if not text), None)
        return "" if empty is None else f"its row has an empty {empty!r}"


def _texts(values: NDArray) -> list[str]:
    if values.dtype.kind == "S":
        return [value.decode("utf-8", "replace") for value in values.tolist()]
    return [str(value) for value in values.tolist()]
