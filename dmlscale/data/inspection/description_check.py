"""Whether dataset.json tells what the tables hold, and whether the files beside them are those that it tells of."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.inspection.problems import Problem
from dmlscale.data.layout import CLASSES_FILE, DESCRIPTION_FILE, DUPLICATES_FILE, REJECTS_FILE
from dmlscale.data.sources import TRAIN_SPLIT
from dmlscale.data.statistics import as_json, class_counts, duplicates, split_statistics
from dmlscale.data.version import content_digest, dataset_version


def check_description(index: Index) -> Iterator[Problem]:
    """Where dataset.json differs from the tables of a whole dataset."""
    columns, told = index.columns, index.description
    counts = class_counts(columns.splits, columns.labels, len(index.splits), len(index.classes))
    for name, value in _found(index, counts).items():
        if told.get(name) != value:
            yield _of_description(f"{name} is {told.get(name)!r}, the tables say {value!r}")
    yield from _check_train_classes(index, counts)
    digests = {"content_hash": content_digest(columns.hashes)}
    if index.storage.is_local:  # else it was compared when the tables were fetched
        folder = index.storage.local_path("")
        digests["version"] = dataset_version(folder, columns.hashes, columns.splits, columns.labels)
    for name, value in digests.items():
        if told.get(name) != value:
            yield _of_description(f"{name} is {told.get(name)!r}, but {value!r} of the tables: they were changed")


def check_files(index: Index) -> Iterator[Problem]:
    """What is wrong with the files beside the tables: lists that are not as long as told, shards that nothing lists."""
    for file, name in ((REJECTS_FILE, "num_rejects"), (DUPLICATES_FILE, "num_duplicates")):
        told = index.description.get(name)
        try:
            with index.cache.open(index.storage, file) as binary, io.TextIOWrapper(binary, newline="") as text:
                count = sum(1 for _ in csv.reader(text)) - 1
        except (DataError, OSError, ValueError, csv.Error) as error:
            yield Problem(file, "", f"cannot be read: {error}")
            continue
        if count != told:
            yield Problem(file, "", f"has {count:,} rows, {name} of {DESCRIPTION_FILE} is {told!r}")
    if index.storage.is_local:
        # Those of an index over shards of others may lie here too: they have their whole paths as names.
        folder = index.storage.local_path("")
        listed = {
            str(index.storage.local_path(name)) for name in index.shards.names if index.storage.holds_locally(name)
        }
        for path in sorted(folder.glob("*.tar")):
            if str(path) not in listed:
                yield Problem(path.name, "", "lies beside the dataset, and the index does not list it")


def _found(index: Index, counts: NDArray[np.int64]) -> Mapping[str, Any]:
    columns, num_classes = index.columns, len(index.classes)
    statistics = split_statistics(columns.splits, columns.labels, columns.sizes, index.splits, num_classes)
    later, first = duplicates(columns.hashes)
    return {
        "splits": as_json(statistics),
        "num_classes": num_classes,
        "num_empty_classes": int((counts.sum(axis=0) == 0).sum()),
        "num_shards": len(index.shards.names),
        "num_duplicates": len(later),
        "num_duplicates_across_splits": int((columns.splits[later] != columns.splits[first]).sum()),
    }


def _check_train_classes(index: Index, counts: NDArray[np.int64]) -> Iterator[Problem]:
    """Whether the labels of 'train' are those below num_train_classes, as far as the tables can tell.

    Where samples were rejected, a class of 'train' may have none left there.
    """
    told, num_classes = index.description.get("num_train_classes"), len(index.classes)
    code = index.splits.index(TRAIN_SPLIT) if TRAIN_SPLIT in index.splits else None
    in_train = counts[code] > 0 if code is not None else np.zeros(num_classes, bool)
    last = int(np.flatnonzero(in_train).max(initial=-1))
    if not isinstance(told, int) or not 0 <= told <= num_classes:
        yield _of_description(f"num_train_classes is {told!r}, must be 0 to {num_classes}")
    elif last >= told:
        yield _of_description(f"num_train_classes is {told}, but {TRAIN_SPLIT!r} has samples of label {last}")
    elif not index.description.get("num_rejects") and not in_train[:told].all():
        label = int(np.argmin(in_train[:told]))
        yield _of_description(f"num_train_classes is {told}, but {TRAIN_SPLIT!r} has no sample of label {label}")
    else:
        for part in (slice(0, told), slice(told, None)):
            names = index.class_names[part]
            if names != sorted(names):
                yield Problem(CLASSES_FILE, "", "the names are not sorted, those of the classes to train on first")


def _of_description(what: str) -> Problem:
    return Problem(DESCRIPTION_FILE, "", what)
