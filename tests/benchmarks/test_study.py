from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.study import all_configs, open_runs, plan, read_results
from benchmarks.study_report import rows_of, table, write_report
from benchmarks.study_run import RAW_PIXELS, Outcome, Run, study_config
from dmlscale.losses import LOSSES


def test_every_loss_has_a_config() -> None:
    assert set(LOSSES) == {term.name for name in all_configs() for term in study_config(name).losses}
    assert set(LOSSES) <= set(all_configs())


@pytest.mark.parametrize("name", all_configs())
def test_all_configs_have_the_same_budget(name: str) -> None:
    config, first = study_config(name), study_config("norm_softmax")
    assert config.data.classes_per_batch * config.data.samples_per_class == 160
    assert (config.data.source, config.data.transform) == (first.data.source, first.data.transform)
    assert (config.model.backbone, config.model.options) == (first.model.backbone, first.model.options)
    assert config.model.embedding_dim == first.model.embedding_dim
    assert (config.optim.name, config.optim.schedule) == (first.optim.name, first.optim.schedule)


def outcome(config: str, seed: int, map_at_r: float) -> Outcome:
    return Outcome(Run(config, seed, 5), "ok", "", 0.5, map_at_r, 0.8, 12.0)


@pytest.fixture
def outcomes() -> list[Outcome]:
    return [
        Outcome(Run(RAW_PIXELS, 0, 0), "ok", "", 0.3, 0.1, 0.7, 0.0),
        outcome("triplet", 0, 0.05),
        outcome("circle", 0, 0.2),
        outcome("circle", 1, 0.4),
        Outcome(Run("center", 0, 5), "diverged", "the loss is nan at step 3"),
        Outcome(Run("softmax", 0, 5), "failed", "OSError: gone"),
    ]


def test_a_study_goes_on_with_what_is_open(tmp_path: Path, outcomes: list[Outcome]) -> None:
    results = tmp_path / "results.jsonl"
    runs = plan(["circle", "center", "softmax"], [0, 1], 5)
    assert open_runs(runs, results) == runs
    results.write_text("".join(json.dumps(outcome.as_json()) + "\n" for outcome in outcomes))
    assert read_results(results) == outcomes
    left = [(run.config, run.seed) for run in open_runs(runs, results)]
    assert left == [("untrained network", 0), ("softmax", 0), ("center", 1), ("softmax", 1)]


def test_report_is_sorted_and_tells_what_went_wrong(tmp_path: Path, outcomes: list[Outcome]) -> None:
    assert [row.name for row in rows_of(outcomes)][:3] == ["circle", RAW_PIXELS, "triplet"]
    text = table(rows_of(outcomes))
    assert "50.0 ± 0.0 | 30.0 ± 14.1 | 80.0 ± 0.0 | 12 |" in text
    assert "seed 0 diverged: the loss is nan at step 3" in text
    write_report(outcomes, tmp_path / "study.jsonl", 5)
    assert "n = 2" in (tmp_path / "study.md").read_text()
    assert (tmp_path / "study.png").stat().st_size > 10_000
