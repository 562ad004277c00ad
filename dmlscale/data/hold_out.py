"""Validation classes: some of the training classes are set apart, to choose by what the test split must not decide."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.packing.index_writer import sort_by_class

VALIDATION_SPLIT = "validation"


def hold_out_classes(index: Index, share: float, *, train_split: str = "train") -> Index:
    """The dataset with a further split, "validation", of classes that training does not see.

    Classes are chosen by a hash of their names, so the choice depends on nothing else and grows with the share. Those
    that another split has too are never chosen: validation classes are disjoint from training *and* test.
    Labels change: training classes are 0..num_classes-1 as ever, those held out come right after them. Takes 13 bytes
    of memory a sample in every process, where an index as it is is mapped from its file.

    Args:
        index: of the whole dataset.
        share: of the training classes to hold out, above 0 and below 1.
        train_split: whose classes they are.

    Raises:
        DataError: the dataset has such a split already, or too few classes to hold out.
    """
    if VALIDATION_SPLIT in index.splits:
        raise DataError(
            f"{index.storage} has a split {VALIDATION_SPLIT!r} of its own: set data.validation_classes=0 and use it"
        )
    old_labels, old_splits = index.columns.labels, index.columns.splits
    is_train = old_splits == _position(index, train_split)
    held_out = _choose(index, share, old_labels[is_train], old_labels[~is_train])
    new_label, order = _relabel(held_out, index.num_classes, len(index.classes))
    splits = old_splits.copy()
    splits[is_train & held_out[old_labels]] = len(index.splits)
    labels = new_label[old_labels]
    by_class = np.empty(len(labels), np.int64)
    sort_by_class(splits, labels, len(index.splits) + 1, len(order), out=by_class)
    return replace(
        index,
        columns=index.columns._replace(labels=labels, splits=splits, by_class=by_class),
        classes=index.classes.take(pa.array(order)),
        splits=(*index.splits, VALIDATION_SPLIT),
        num_classes=index.num_classes - int(held_out[: index.num_classes].sum()),
    )


def _position(index: Index, split: str) -> int:
    if split not in index.splits:
        raise DataError(f"no split {split!r} in {index.storage} (there are: {', '.join(index.splits)})")
    return index.splits.index(split)


def _choose(
    index: Index, share: float, train_labels: NDArray[np.int32], other_labels: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """(C,) whether a class is held out."""
    num_labels = len(index.classes)
    in_train = np.bincount(train_labels, minlength=num_labels) > 0
    in_others = np.bincount(other_labels, minlength=num_labels) > 0
    free = np.flatnonzero(in_train & ~in_others)
    wanted = round(share * int(in_train.sum()))
    if wanted < 2 or wanted > len(free) or wanted >= int(in_train.sum()):
        raise DataError(
            f"data.validation_classes={share:g} of {int(in_train.sum()):,} training classes is {wanted:,}: it must be "
            f"2 or more, leave some for training, and at most the {len(free):,} that no other split has"
        )
    order = sorted(free.tolist(), key=lambda label: _draw(index.class_names[label]))
    held_out = np.zeros(num_labels, np.bool_)
    held_out[order[:wanted]] = True
    return held_out


def _draw(class_name: str) -> bytes:
    return blake2b(f"validation/{class_name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _relabel(
    held_out: NDArray[np.bool_], num_train: int, num_labels: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(C,) the new label of each old one, and the old label of each new one."""
    train = np.arange(num_train)
    is_out = held_out[:num_train]
    order = np.concatenate([train[~is_out], train[is_out], np.arange(num_train, num_labels)])
    new_label = np.empty(num_labels, np.int32)
    new_label[order] = np.arange(num_labels, dtype=np.int32)
    return new_label, order
