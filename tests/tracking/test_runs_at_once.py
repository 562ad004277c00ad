"""Trials of a sweep start at the same moment."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from dmlscale.tracking.mlflow import DatasetNote, start_or_continue


def test_four_runs_that_bring_the_same_new_dataset_at_once(tmp_path: Path) -> None:
    """Each looks for it, finds none and makes it: the database takes the first and refuses the others."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    start_or_continue(uri, "at once", "parent", key="parent")
    for attempt in range(5):
        notes = [DatasetNote("glyphs/train", f"digest-{attempt}", "data/glyphs", {"n": 3})]
        start = partial(_start, uri, notes)
        with ThreadPoolExecutor(4) as pool:
            ids = list(pool.map(start, [f"{attempt}-{number}" for number in range(4)]))
        assert len(set(ids)) == 4


def _start(uri: str, notes: list[DatasetNote], key: str) -> str:
    return start_or_continue(uri, "at once", key, key=key, datasets=notes)
