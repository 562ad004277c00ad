from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.planning.class_rows import ClassRows
from dmlscale.data.planning.mixing import Meetings, class_meetings, classes_in_a_window
from dmlscale.data.planning.plan import ListedPlan
from dmlscale.data.planning.planner import EpochPlanner
from dmlscale.data.planning.sampling import Sampling
from dmlscale.data.planning.windows import ShardRows

NUM_CLASSES, NUM_SHARDS = 300, 24


def labels_in_runs(seed: int) -> NDArray[np.int32]:
    """Twenty samples of each class, in runs of four at random places, as packed shards have them."""
    runs = np.random.default_rng(seed).permutation(np.repeat(np.arange(NUM_CLASSES), 5))
    return np.repeat(runs, 4).astype(np.int32)


def mixing(labels: NDArray[np.int32], sampling: Sampling, num_epochs: int) -> Meetings:
    shards = ShardRows(np.linspace(0, len(labels), NUM_SHARDS + 1).astype(np.int64), labels)
    planner = EpochPlanner(ClassRows.from_labels(labels), sampling, seed=1, shards=shards)
    return class_meetings(
        (planner.plan(epoch) for epoch in range(num_epochs)), labels, num_classes=NUM_CLASSES, samples_per_class=4
    )


def test_classes_mix_as_a_perfect_shuffle() -> None:
    for num_epochs in (1, 3, 6):
        found = mixing(labels_in_runs(0), Sampling(12, 4, 4), num_epochs)
        assert 0.1 < found.perfect_share < 0.9
        assert found.quality > 0.97


def test_windows_mix_nearly_as_well() -> None:
    for seed in range(3):
        found = mixing(labels_in_runs(seed), Sampling(12, 4, 4, window_shards=4), 4)
        assert found.perfect_share < 0.8
        assert found.quality > 0.9


def test_shards_sorted_by_class_mix_badly() -> None:
    """The measure tells: a window of two such shards has a twelfth of the classes."""
    found = mixing(np.sort(labels_in_runs(0)), Sampling(12, 4, 4, window_shards=2), 4)
    assert found.quality < 0.6


def test_meetings_of_a_written_plan() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    apart = ListedPlan(2, 1, np.array([0, 1, 2, 3, 4, 5, 6, 7]), np.array([0, 4, 8]))
    found = class_meetings([apart, apart], labels, num_classes=4, samples_per_class=2)
    assert found.share == 2 / 6
    together = ListedPlan(1, 1, np.arange(8), np.array([0, 8]))
    found = class_meetings([together], labels, num_classes=4, samples_per_class=2)
    assert (found.share, found.perfect_share, found.quality) == (1.0, 1.0, 1.0)


def test_shards_that_are_sorted_by_class_are_noticed() -> None:
    labels = np.repeat(np.arange(100), 40).astype(np.int32)
    starts = np.arange(0, len(labels) + 1, 200)
    runs = labels.reshape(-1, 4)[np.random.default_rng(0).permutation(len(labels) // 4)].ravel()
    counts = np.bincount(labels)
    found, expected = classes_in_a_window(ShardRows(starts, labels), counts, 2)
    assert found == 10
    assert expected > 60
    mixed, same = classes_in_a_window(ShardRows(starts, runs), counts, 2)
    assert same == expected
    assert mixed > 0.85 * expected
