from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlscale.distributed.world import World
from dmlscale.training import checkpoint
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.retention import METRICS_FILE, Retention, Scores
from dmlscale.training.checkpoint.saver import Saver
from dmlscale.training.checkpoint.store import LocalStore
from tests.training.checkpoint.savers import record_of, tensors_of


def name(step: int) -> str:
    return f"step_{step:08d}"


STEPS = st.lists(st.integers(1, 10**9), unique=True, max_size=12).map(sorted)


@given(steps=STEPS, values=st.lists(st.integers(0, 3), min_size=12, max_size=12), newest=st.integers(1, 4),
       best=st.integers(0, 4), unknown=st.sets(st.integers(0, 11)))  # fmt: skip
def test_what_stays_is_the_newest_and_the_best(
    steps: list[int], values: list[int], newest: int, best: int, unknown: set[int]
) -> None:
    names = [name(step) for step in steps]
    scores = {n: float(values[i]) for i, n in enumerate(names) if i not in unknown}
    retention = Retention(newest, best, "recall_at_1")
    removed = set(retention.to_remove(names, scores))
    for i, one in enumerate(names):
        is_new = i >= len(names) - newest
        # In other words: fewer than `best` others come before it.
        place = (-scores.get(one, 0.0), i)
        ahead = [n for k, n in enumerate(names) if n in scores and (-scores[n], k) < place]
        is_good = one in scores and len(ahead) < best
        assert (one in removed) == (not is_new and not is_good)


def save(saver: Saver, step: int) -> None:
    saver.save(tensors_of(step), record_of(step, World()))
    assert saver.settle() is None


def test_the_best_outlives_newer_ones_and_a_restart(tmp_path: Path) -> None:
    retention = Retention(1, 1, "recall_at_1")
    for start, evaluations in enumerate([{10: 0.3, 20: 0.9}, {30: 0.5, 40: 0.9, 50: 0.2}]):
        store = LocalStore(tmp_path)
        scores = Scores(store, retention)  # knows nothing but what lies there
        saver = Saver(store, scores, World(), attempt=start + 1)
        for step, value in evaluations.items():
            save(saver, step)
            scores.note(name(step), {"recall_at_1": value, "nmi": 1.0})
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == [name(20), name(50)]
    assert Scores(LocalStore(tmp_path), retention).best() == (name(20), 0.9)  # of equal ones the older
    assert checkpoint.verify(tmp_path / name(20)) == []


def test_later_ones_of_others_drive_out_no_good_one(tmp_path: Path) -> None:
    """Workers that were cut off may have committed one just before they were ended."""
    store, retention = LocalStore(tmp_path), Retention(2)
    for step in (80, 90):
        checkpoint.save(tmp_path, tensors_of(step), record_of(step, World()), World(), keep=2)
    saver = Saver(store, Scores(store, retention), World(), attempt=1)
    for step in (10, 20, 30):
        save(saver, step)
    assert store.complete() == [name(20), name(30), name(80), name(90)]


def test_metrics_that_cannot_be_read_count_as_none(tmp_path: Path) -> None:
    store, retention = LocalStore(tmp_path), Retention(1, 2, "recall_at_1")
    scores = Scores(store, retention)
    saver = Saver(store, scores, World(), attempt=1)
    huge, deep, endless = '{"recall_at_1": 1' + "0" * 400 + "}", "[" * 100_000, '{"recall_at_1": Infinity}'
    texts = ["{", '{"nmi": 1}', '{"recall_at_1": NaN}', huge, deep, endless, '{"recall_at_1": 0.1}']
    keeps_all = Saver(store, Scores(store, Retention(100)), World(), attempt=1)
    for step, text in zip([10, 20, 30, 31, 32, 33, 40], texts, strict=True):
        save(keeps_all, step)
        (tmp_path / name(step) / METRICS_FILE).write_text(text)
    save(saver, 50)
    found = Scores(store, retention)
    found.apply()
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == [name(40), name(50)]
    assert found.best() == (name(40), 0.1)


def test_an_unknown_metric_is_answered_with_those_there_are() -> None:
    metrics = {"recall_at_1": 0.5, "nmi": 0.1, "num_queries": 7.0}
    with pytest.raises(CheckpointError, match=r"best_metric=recall_at_7 is no metric .*: there are nmi, recall_at_1$"):
        Retention(1, 1, "recall_at_7").check(metrics)
    Retention(1, 0, "recall_at_7").check(metrics)  # nothing asks for it
    Retention(1, 1, "nmi").check(metrics)
