"""Pack a source: WebDataset shards, a Parquet index over them, and a description."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.layout import (
    DESCRIPTION_FILE,
    FORMAT_VERSION,
    INDEX_FILE,
    INDEX_SCHEMA,
    is_complete,
    read_description,
    source_options,
    write_description,
)
from dmlscale.data.sources import SOURCES, TRAIN_SPLIT, Source
from dmlscale.data.spool import Spool
from dmlscale.data.tar import ShardWriter

DEFAULT_SHARD_SIZE_BYTES = 256 * 2**20
_WORK_PREFIX = ".packing-"
_SPOOL_FILE = "spool"


@dataclass(frozen=True)
class PackSummary:
    """What a packed dataset holds."""

    path: Path
    num_samples: dict[str, int]  # by split
    num_classes: dict[str, int]  # by split; a class may be in several
    num_shards: int
    is_reused: bool  # it was there already

    def __str__(self) -> str:
        parts = [
            f"{split}: {count} samples, {self.num_classes[split]} classes" for split, count in self.num_samples.items()
        ]
        verb = "found" if self.is_reused else "packed"
        return f"{verb} {self.path} ({'; '.join(parts)}; {self.num_shards} shards)"


def ensure_packed(source: Source, out_dir: str | Path, **options: Any) -> PackSummary:
    """The dataset in ``out_dir``; packed now unless it is there, from the same source and options.

    Args:
        source: what to pack.
        out_dir: folder of the dataset.
        **options: see ``pack``.

    Raises:
        DataError: ``out_dir`` holds a dataset of another source or of other options.
    """
    folder = Path(out_dir)
    progress = options.pop("progress", None)
    wanted = _request(source, **options)
    description = read_description(folder) if is_complete(folder) else None
    if description is None:
        return pack(source, folder, progress=progress, **options)
    packed = {name: description.get(name) for name in wanted}
    if packed != wanted:
        name, old, new = _first_difference(packed, wanted)
        raise DataError(
            f"{folder} was packed with {name}={old!r}, now asked for {new!r}: choose another folder or delete this one"
        )
    return _summary(folder, description, is_reused=True)


def pack(
    source: Source,
    out_dir: str | Path,
    *,
    shard_size_bytes: int = DEFAULT_SHARD_SIZE_BYTES,
    run_length: int = 4,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> PackSummary:
    """Write every item of ``source`` into shards under ``out_dir``.

    A shard holds short runs of one class, in random class order: whoever reads it from front to back meets
    many classes, several samples of each. Labels are 0..C-1, the classes of "train" first, by name. The same
    source and options give the same bytes. A dataset appears under ``out_dir`` only when it is complete.

    Args:
        source: what to pack.
        out_dir: folder of the dataset; made if missing.
        shard_size_bytes: a shard is closed once it has this size.
        run_length: samples of one class that follow each other.
        seed: of the order.
        progress: called with the number of items read so far.

    Raises:
        DataError: the folder cannot be written or holds a dataset; the source is empty or has a key twice.
    """
    folder = Path(out_dir)
    request = _request(source, shard_size_bytes=shard_size_bytes, run_length=run_length, seed=seed)
    _require_free(folder)
    work = _work_folder(folder)
    try:
        with Spool.create(work / _SPOOL_FILE) as spool:
            for count, item in enumerate(source.items(), start=1):
                spool.append(item)
                if progress is not None:
                    progress(count)
            if not len(spool):
                raise DataError(f"source {request['source']!r} yields nothing with options {request['options']}")
            class_names = _ordered_classes(spool)
            table = _write_shards(spool, class_names, work, shard_size_bytes, run_length, seed)
            pq.write_table(table, work / INDEX_FILE)
            description = _describe(request, table, class_names)
            write_description(work, description)
            _publish(work, folder, description["shards"])
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return _summary(folder, description, is_reused=False)


def _request(
    source: Source,
    shard_size_bytes: int = DEFAULT_SHARD_SIZE_BYTES,
    run_length: int = 4,
    seed: int = 0,
) -> dict[str, Any]:
    """What decides the bytes of a dataset; part of its description."""
    for name, value in (("shard_size_bytes", shard_size_bytes), ("run_length", run_length)):
        if value < 1:
            raise DataError(f"{name}={value}, must be at least 1")
    return {
        "source": next((name for name, cls in SOURCES.items() if cls is type(source)), type(source).__name__),
        "options": source_options(source),
        "packing": {"shard_size_bytes": shard_size_bytes, "run_length": run_length, "seed": seed},
    }


def _first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any]:
    """Dotted name and both values of the first entry in which two descriptions differ."""
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            return _first_difference(before, after, f"{prefix}{name}.")
        return f"{prefix}{name}", before, after
    raise AssertionError("called with equal descriptions")


def _require_free(folder: Path) -> None:
    if is_complete(folder):
        raise DataError(f"{folder} holds a dataset already: choose another folder or delete it")


def _work_folder(folder: Path) -> Path:
    """A new folder inside ``folder``: on the same file system, and shows early that it is writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.glob(f"{_WORK_PREFIX}*"):
            if Spool.is_abandoned(other / _SPOOL_FILE):
                shutil.rmtree(other, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=folder))
    except OSError as error:
        raise DataError(f"cannot write to {folder} ({error.strerror}): choose another folder") from None


def _ordered_classes(spool: Spool) -> list[str]:
    """Class names by label: those of the train split first, so that they are 0..C_train-1."""
    in_train = {name for name, split in zip(spool.class_names, spool.splits, strict=True) if split == TRAIN_SPLIT}
    return sorted(in_train) + sorted(set(spool.class_names) - in_train)


def _pack_order(labels: NDArray[np.int64], run_length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Positions (n,) of samples in runs of one class; the runs in random order."""
    by_class = np.lexsort((rng.random(len(labels)), labels))
    sizes = np.unique(labels, return_counts=True)[1]
    rank_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    starts_run = rank_in_class % run_length == 0
    run_of_sample = np.cumsum(starts_run) - 1
    place_of_run = rng.permutation(np.count_nonzero(starts_run))
    return by_class[np.argsort(place_of_run[run_of_sample], kind="stable")]


def _write_shards(
    spool: Spool, class_names: list[str], work: Path, shard_size_bytes: int, run_length: int, seed: int
) -> pa.Table:
    """Write the shards of every split; the rows of the index, in the order of writing."""
    label_of_class = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of_class[name] for name in spool.class_names], np.int64)
    splits = np.array(spool.splits)
    rows: dict[str, list] = {name: [] for name in INDEX_SCHEMA.names}
    for number, split in enumerate(sorted(set(spool.splits), key=lambda name: (name != TRAIN_SPLIT, name))):
        members = np.flatnonzero(splits == split)
        rng = np.random.default_rng((seed, number))
        with ShardWriter(work, split, shard_size_bytes) as writer:
            for position in members[_pack_order(labels[members], run_length, rng)].tolist():
                key, label = spool.keys[position], int(labels[position])
                data = spool.read(position)
                shard, offset = writer.write(key, spool.extensions[position], data, label)
                values = (key, shard, offset, len(data), label, class_names[label], split)
                for name, value in zip(INDEX_SCHEMA.names, values, strict=True):
                    rows[name].append(value)
    return pa.table(rows).cast(INDEX_SCHEMA)


def _describe(request: dict[str, Any], table: pa.Table, class_names: list[str]) -> dict[str, Any]:
    splits, labels = table["split"].to_numpy(), table["label"].to_numpy()
    names = list(dict.fromkeys(splits))
    return {
        "format_version": FORMAT_VERSION,
        **request,
        "num_samples": {name: int((splits == name).sum()) for name in names},
        "num_classes": {name: len(np.unique(labels[splits == name])) for name in names},
        "num_classes_total": len(class_names),
        "shards": list(dict.fromkeys(table["shard"].to_numpy())),
    }


def _publish(work: Path, folder: Path, shards: list[str]) -> None:
    """Move a finished dataset into place, the index last: with it the dataset counts as complete."""
    if is_complete(folder):  # another process packed the same meanwhile, and may be reading already
        return
    leftover = read_description(folder) or {}
    for name in leftover.get("shards", ()):
        (folder / name).unlink(missing_ok=True)  # of a packing that was cut off while moving
    for name in (DESCRIPTION_FILE, *shards, INDEX_FILE):
        (work / name).replace(folder / name)


def _summary(folder: Path, description: dict[str, Any], is_reused: bool) -> PackSummary:
    return PackSummary(
        path=folder,
        num_samples=description["num_samples"],
        num_classes=description["num_classes"],
        num_shards=len(description["shards"]),
        is_reused=is_reused,
    )
