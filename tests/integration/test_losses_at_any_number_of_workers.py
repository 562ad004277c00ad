"""Losses with a memory, with sampled classes, with random miners and with banks that move by themselves: one curve at
any number of workers, also when a run is stopped and goes on at another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.pool import GlooPool
from tests.integration.runs import batches, curve, steps_of, task_of, work_on_rank

LOSSES = {
    "memory": "[{name: multi_similarity, memory_size: 100, memory_start: 3}, {name: triplet, mining: random}]",
    "sampled": "[{name: soft_triple, centers_per_class: 2, class_sampling: 0.4, bank_lr: 1e-2}]",
    "centers": "[{name: softmax}, {name: center, weight: 0.01, repulsion: 0.1, bank_lr: 1e-3}, "
    "{name: triplet_center, weight: 0.1}]",
    "weighted": "[{name: triplet, mining: distance_weighted, squared: false}]",
}
OPTIONS = {"centers": ("model.normalize=false",), "memory": ("train.micro_batch_size=5",)}


@pytest.mark.parametrize("kind", LOSSES)
def test_one_curve_at_any_number_of_workers_and_through_a_stop(
    gloo_pool: GlooPool, config_file: Path, kind: str
) -> None:
    overrides = (f"losses={LOSSES[kind]}", "train.steps=14", *OPTIONS.get(kind, ()))
    whole = task_of(config_file, "whole", *overrides)
    gloo_pool.run(1, work_on_rank, whole)
    reference = curve(whole.folder)

    split = task_of(config_file, "split", *overrides)
    gloo_pool.run(3, work_on_rank, split)
    assert batches(split.folder) == batches(whole.folder)
    assert curve(split.folder) == pytest.approx(reference, rel=1e-6)

    parts = task_of(config_file, "parts", *overrides)
    parts.stop_file.touch()
    assert gloo_pool.run(2, work_on_rank, parts)[0]["stopped"]
    parts.stop_file.unlink()
    gloo_pool.run(3, work_on_rank, parts)
    assert curve(parts.folder) == pytest.approx(reference, rel=1e-6)


def test_effective_centers_are_logged(gloo_pool: GlooPool, config_file: Path) -> None:
    task = task_of(config_file, "log", "losses={name: soft_triple, centers_per_class: 3}", "train.steps=2")
    gloo_pool.run(2, work_on_rank, task)
    metrics = steps_of(task.folder)[2]["metrics"]
    # Class means with a small offset each: the three centers start almost as one.
    assert metrics["train/soft_triple/effective_centers"] == pytest.approx(1.0, abs=0.1)
