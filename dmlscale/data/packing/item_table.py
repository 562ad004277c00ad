"""What a source lists, parked on disk: the order of packing needs all of it, and memory may not hold it."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.packing.numbered_keys import NumberedKeys, key_hash, number_keys, repeated_keys
from dmlscale.data.sources import TRAIN_SPLIT, Item
from dmlscale.redaction import shown

_CHUNK = 2**16  # items of a record batch
_SCHEMA = pa.schema([("key", pa.string()), ("ref", pa.string())])


class ListedSample(NamedTuple):
    """One item of the table, as the process that packs it needs it."""

    position: int  # in the table
    key: str
    ref: str
    extension: str
    label: int


@dataclass(frozen=True, eq=False)
class ItemTable:
    """The samples of a source by their position in its list.

    Memory is 6 bytes a sample and the names of the classes; keys and refs stay in a mapped file.
    """

    path: Path
    labels: NDArray[np.int32]  # (n,) classes of the train split first, each part by name
    splits: NDArray[np.int8]  # (n,) positions in split_names
    extensions: NDArray[np.int8]  # (n,) positions in extension_names
    split_names: tuple[str, ...]  # "train" first
    extension_names: tuple[str, ...]
    class_names: tuple[str, ...]  # by label
    super_classes: tuple[str, ...]  # by label; that of the first sample
    num_ambiguous_classes: int  # whose samples have different super-classes
    numbered: NumberedKeys  # keys that came before, where the source makes them
    repeated: NDArray[np.int64]  # positions of items whose key came before and has no number
    defective: Path  # CSV of items that are not in the table: key, split, class name, ref, reason
    digest: str  # of the whole list

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_train_classes(self) -> int:
        """Labels 0..this-1 are those of the train split."""
        code = self.split_names.index(TRAIN_SPLIT) if TRAIN_SPLIT in self.split_names else -1
        return int(self.labels[self.splits == code].max(initial=-1)) + 1

    def samples(self, positions: NDArray[np.int64]) -> list[ListedSample]:
        """The items at ``positions``."""
        listed = []
        for position in positions.tolist():
            keys, refs = self._batch(position // _CHUNK)
            row = position % _CHUNK
            extension = self.extension_names[self.extensions[position]]
            label = int(self.labels[position])
            key = self.numbered.key(position, keys[row].as_py())
            listed.append(ListedSample(position, key, refs[row].as_py(), extension, label))
        return listed

    def keys(self, positions: NDArray[np.int64]) -> list[str]:
        """Keys of the items at ``positions``."""
        return [
            self.numbered.key(position, self._batch(position // _CHUNK)[0][position % _CHUNK].as_py())
            for position in positions.tolist()
        ]

    def _batch(self, number: int) -> tuple[pa.Array, pa.Array]:
        return _read_batch(self.path, number)


@lru_cache(maxsize=1)
def _open(path: Path) -> pa.RecordBatchFileReader:
    return pa.ipc.open_file(pa.memory_map(str(path)))


@lru_cache(maxsize=4096)
def _read_batch(path: Path, number: int) -> tuple[pa.Array, pa.Array]:
    batch = _open(path).get_batch(number)
    return batch.column("key"), batch.column("ref")


def _key_and_ref(path: Path, position: int) -> tuple[str, str]:
    keys, refs = _read_batch(path, position // _CHUNK)
    return keys[position % _CHUNK].as_py(), refs[position % _CHUNK].as_py()


def write_items(
    items: Iterable[Item],
    path: Path,
    progress: Callable[[int], None] | None = None,
    *,
    makes_keys: bool = False,
) -> ItemTable:
    """Write what a source lists into a file, and number its classes.

    Args:
        items: as listed.
        path: of the file.
        progress: called with the number of items so far.
        makes_keys: the source has made the keys, so that one that comes again gets a number (see ``OpenSource``).

    Raises:
        DataError: an item cannot be packed: its key, class or split has a form that shards cannot hold.
    """
    codes: dict[str, dict[str, int]] = {"class": {}, "split": {}, "extension": {}}
    super_classes: list[str] = []
    columns: list[list[NDArray]] = []
    digest = hashlib.blake2b(digest_size=16)
    ambiguous: set[str] = set()
    count = 0
    _open.cache_clear()
    _read_batch.cache_clear()
    defective = path.with_suffix(".csv")
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, _SCHEMA) as writer,
        defective.open("w", newline="") as file,
    ):
        for chunk in _chunks(_without_defects(items, csv.writer(file), digest)):
            for item in chunk:
                _check(item)
                if codes["class"].setdefault(item.class_name, len(super_classes)) == len(super_classes):
                    super_classes.append(item.super_class)
                elif item.super_class != super_classes[codes["class"][item.class_name]]:
                    ambiguous.add(item.class_name)
            columns.append(
                [
                    np.array([codes["class"][item.class_name] for item in chunk], np.int32),
                    _code(codes["split"], [item.split for item in chunk]),
                    _code(codes["extension"], [item.extension for item in chunk]),
                    np.array([key_hash(item.key) for item in chunk], np.uint64),
                ]
            )
            texts = [pa.array([item.key for item in chunk]), pa.array([item.ref for item in chunk])]
            writer.write_batch(pa.RecordBatch.from_arrays(texts, schema=_SCHEMA))
            count += len(chunk)
            if progress is not None:
                progress(count)
    if not count:
        raise DataError("the source lists no sample" + _first_defect(defective))
    classes, splits, extensions, hashes = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    split_order = sorted(codes["split"], key=lambda name: (name != TRAIN_SPLIT, name))
    splits = _reordered(splits, codes["split"], split_order).astype(np.int8)
    class_order = _class_order(codes["class"], classes[splits == 0] if split_order[0] == TRAIN_SPLIT else classes[:0])
    by_name = dict(zip(codes["class"], super_classes, strict=True))
    if makes_keys:
        numbered, repeated = number_keys(hashes, partial(_key_and_ref, path))
    else:
        numbered, repeated = NumberedKeys.none(), repeated_keys(hashes)
    return ItemTable(
        path=path,
        labels=_reordered(classes, codes["class"], class_order).astype(np.int32),
        splits=splits,
        extensions=extensions,
        split_names=tuple(split_order),
        extension_names=tuple(codes["extension"]),
        class_names=tuple(class_order),
        super_classes=tuple(by_name[name] for name in class_order),
        num_ambiguous_classes=len(ambiguous),
        numbered=numbered,
        repeated=repeated,
        defective=defective,
        digest=digest.hexdigest(),
    )


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _without_defects(items: Iterable[Item], rejects: Any, digest: Any) -> Iterator[Item]:
    for item in items:
        digest.update("\0".join((*item, "")).encode())
        if item.defect:
            rejects.writerow((item.key, item.split, item.class_name, shown(item.ref), item.defect))
        else:
            yield item


_META = re.compile(r"__[^/]*__/")  # at the start of a key


def _check(item: Item) -> None:
    if not item.key or "." in item.key:
        raise DataError(f"key {item.key!r} is empty or has a dot, where WebDataset starts the extension: rename it")
    if "\0" in item.key or _META.match(item.key):
        raise DataError(
            f"key {item.key!r} has the character 0, or a first folder like __this__, which WebDataset takes for no "
            "sample: rename it"
        )
    if not item.extension.replace(".", "").isalnum() or item.extension == "cls":
        raise DataError(
            f"sample {item.key!r}: extension {item.extension!r} must be of letters, digits and dots, and not 'cls', "
            f"which is that of the label"
        )
    if not item.class_name:
        raise DataError(f"sample {item.key!r} has no class name")
    if not item.split or not item.split.replace("_", "").replace("-", "").isalnum():
        raise DataError(
            f"sample {item.key!r}: split {item.split!r} names files, so it may have letters, digits, - and _ only"
        )


def _first_defect(defective: Path) -> str:
    with defective.open(newline="") as file:
        row = next(csv.reader(file), None)
    return "" if row is None else f" that can be packed: the first one has {row[-1]!r}"


def _code(codes: dict[str, int], names: list[str]) -> NDArray[np.int8]:
    for name in dict.fromkeys(names):
        codes.setdefault(name, len(codes))
    if len(codes) > 127:
        raise DataError(
            f"more than 127 splits or file extensions, e.g. {', '.join(list(codes)[:5])}: that is no dataset"
        )
    return np.array([codes[name] for name in names], np.int8)


def _class_order(codes: dict[str, int], in_train: NDArray[np.int32]) -> list[str]:
    """Class names by label: those of the train split first, so that they are 0..C_train-1."""
    is_train = np.zeros(len(codes), bool)
    is_train[in_train] = True
    return sorted(codes, key=lambda name: (not is_train[codes[name]], name))


def _reordered(values: NDArray, codes: dict[str, int], order: list[str]) -> NDArray:
    """Codes by first appearance -> positions in ``order``."""
    new = np.empty(len(order), np.int64)
    new[[codes[name] for name in order]] = np.arange(len(order))
    return new[values]
