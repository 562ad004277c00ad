from __future__ import annotations

import numpy as np
import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.hold_out import VALIDATION_SPLIT, hold_out_classes
from dmlscale.data.index import Index
from dmlscale.data.packing.pack import ensure_packed
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.planning.class_rows import ClassRows
from dmlscale.data.sources.arrays import Arrays


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """40 classes, of which 30 are trained on; class 29 is in the test split too."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), rng.integers(2, 7, 40))
    splits = np.where(labels < 30, "train", "test")
    splits[np.flatnonzero(labels == 29)[0]] = "test"
    samples = rng.normal(size=(len(labels), 3)).astype(np.float32)
    np.savez(folder / "a.npz", x=samples, y=labels, split=splits)
    ensure_packed(Arrays(path=str(folder / "a.npz")), folder / "packed", PackOptions(num_processes=1))
    return Index.load(folder / "packed")


def names(view: Index) -> set[str]:
    return {view.class_names[label] for label in np.unique(view.labels).tolist()}


def test_held_out_classes_are_in_no_other_split_and_no_sample_is_lost(index: Index) -> None:
    held = hold_out_classes(index, 0.2)
    train, validation, test = (held.split(name) for name in ("train", VALIDATION_SPLIT, "test"))
    assert len(names(validation)) == 6
    assert not names(validation) & (names(train) | names(test))
    assert names(train) | names(validation) == names(index.split("train"))
    assert names(test) == names(index.split("test"))
    rows = np.concatenate([view.row_ids for view in (train, validation, test)])
    assert sorted(rows.tolist()) == list(range(len(index)))


def test_training_labels_are_without_gaps_and_each_row_keeps_its_class(index: Index) -> None:
    held = hold_out_classes(index, 0.2)
    assert held.num_classes == 24
    assert np.unique(held.split("train").labels).tolist() == list(range(24))
    for row in range(len(index)):
        before, after = int(index.columns.labels[row]), int(held.columns.labels[row])
        assert index.class_names[before] == held.class_names[after]


def test_class_rows_are_those_of_the_new_labels(index: Index) -> None:
    held = hold_out_classes(index, 0.2)
    for name in held.splits:
        view = held.split(name)
        expected = ClassRows.from_labels(view.labels, view.row_ids)
        found = view.class_rows
        assert found.rows.tolist() == expected.rows.tolist()
        assert found.counts[: len(expected.counts)].tolist() == expected.counts.tolist()


def test_a_larger_share_keeps_the_classes_of_a_smaller_one(index: Index) -> None:
    few, many = (names(hold_out_classes(index, share).split(VALIDATION_SPLIT)) for share in (0.1, 0.4))
    assert few < many


def test_what_cannot_be_held_out_is_refused(index: Index) -> None:
    with pytest.raises(DataError, match=r"data.validation_classes=0.01 of 30 training classes is 0"):
        hold_out_classes(index, 0.01)
    with pytest.raises(DataError, match="at most the 29 that no other split has"):
        hold_out_classes(index, 0.99)
    with pytest.raises(DataError, match="split 'validation' of its own"):
        hold_out_classes(hold_out_classes(index, 0.2), 0.2)
    with pytest.raises(DataError, match="no split 'training'"):
        hold_out_classes(index, 0.2, train_split="training")
