"""Predicted memory is within 15 % of what real ranks hold."""

from __future__ import annotations

import pytest

from benchmarks.plan import CELLS, MOST_OFF, compare, predicted
from benchmarks.plan_cells import Cell, measure

FAST = {
    "a bank": (
        Cell(
            "configs/glyphs/norm_softmax.yaml",
            ("model.backbone=mlp", "model.options={in_features: 64, hidden: [64]}", "train.reproducible=false"),
            (64,),
            300_000,
        ),
        2,
    ),
    "a backbone": (
        Cell(
            "configs/glyphs/triplet.yaml",
            (
                "model.backbone=resnet18",
                "model.options={}",
                "data.channels=3",
                "data.classes_per_batch=16",
                "train.reproducible=false",
            ),
            (3, 64, 64),
            1,
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", FAST)
def test_memory_is_as_predicted(name: str) -> None:
    cell, num_ranks = FAST[name]
    real = measure(cell, num_ranks).peak
    assert predicted(cell, num_ranks)[1] == pytest.approx(real, rel=MOST_OFF)


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_every_run_of_the_benchmark(name: str) -> None:
    assert compare(name, 2)[1] == []
