from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dmlscale.config.load import ConfigError
from dmlscale.launch.errors import LaunchError
from dmlscale.tuning.config import Sweep, load_sweep
from dmlscale.tuning.plan import final_trials, search_trials
from dmlscale.tuning.selection import check_metric, check_selection, trial_values

BASE: dict[str, Any] = {
    "data": {"path": "data/glyphs", "channels": 1, "gallery_split": None},
    "losses": {"name": "triplet", "margin": 0.3},
    "train": {"steps": 100, "eval_every": 10},
    "resources": {"device": "cpu"},
}
SPACE = {"losses.margin": {"uniform": [0.1, 0.4]}, "optim.head_lr": {"log_uniform": [1e-4, 1e-2]}}


def write(folder: Path, **parts: Any) -> str:
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"base": "base.yaml", "space": SPACE} | parts))
    return str(path)


def load(folder: Path, *overrides: str, **parts: Any) -> Sweep:
    return load_sweep(write(folder, **parts), list(overrides))


def test_base_changes_and_overrides_come_in_this_order(tmp_path: Path) -> None:
    sweep = load(
        tmp_path,
        "base.train.steps=300",
        "sweep.trials=5",
        set={"train.steps": 200, "optim.bank_lr": 0.5},
        sweep={"seed": 3},
    )
    assert sweep.base_config.train.steps == 300
    assert sweep.base_config.optim.bank_lr == 0.5
    assert (sweep.settings.trials, sweep.settings.seed) == (5, 3)


def test_a_base_may_stand_in_the_file_itself(tmp_path: Path) -> None:
    assert load(tmp_path, base=BASE).base_config.losses[0].name == "triplet"


@pytest.mark.parametrize(
    ("overrides", "parts", "message"),
    [
        ((), {"sweep": {"trails": 3}}, r"sweep.trails: Extra inputs are not permitted"),
        ((), {"sweep": {"scheduler": "pbt"}}, "sweep.scheduler: population based training copies checkpoints"),
        ((), {"sweep": {"second_objective": "cost"}}, "needs searcher=optuna and scheduler=none"),
        ((), {"sweep": {"trials": 0, "repeats": -1}}, r"(?s)sweep.trials.*sweep.repeats"),
        ((), {"spaces": {}}, "unknown key 'spaces'"),
        ((), {"space": {}}, "needs base and space"),
        ((), {"base": "absent.yaml"}, "no config file .*absent.yaml"),
        ((), {"base": BASE | {"trains": {}}}, "base:\n  trains: unknown key; did you mean 'train'"),
        (("train.steps=3",), {}, "begin with sweep., .*or with base."),
        ((), {"set": ["train.steps"]}, "set must hold dotted keys"),
    ],
)
def test_what_is_wrong_is_told_before_any_work(
    tmp_path: Path, overrides: tuple[str, ...], parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, *overrides, **parts)


def test_choosing_on_the_reported_split_is_refused_unless_asked(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"sweep.select_on='test' is what the base config reports"):
        check_selection(load(tmp_path, sweep={"select_on": "test"}))
    check_selection(load(tmp_path, sweep={"select_on": "test", "allow_selection_on_test": True}))
    with pytest.raises(LaunchError, match=r"sweep\.validation_classes"):
        check_selection(load(tmp_path, "base.data.validation_classes=0.1"))


def test_a_metric_that_nothing_measures_is_told_before_any_work(tmp_path: Path) -> None:
    check_metric(load(tmp_path, sweep={"metric": "map_at_r"}))
    check_metric(load(tmp_path, "base.evaluation.ks=[3]", sweep={"metric": "recall_at_3"}))
    with pytest.raises(LaunchError, match=r"sweep.metric='recal_at_1' is not measured; did you mean 'recall_at_1'"):
        check_metric(load(tmp_path, sweep={"metric": "recal_at_1"}))


def test_trials_see_validation_classes_only_and_final_runs_the_test_split_once(tmp_path: Path) -> None:
    sweep = load(tmp_path, sweep={"searcher": "random", "trials": 3, "repeats": 2})
    trials = search_trials(sweep)
    assert trials is not None
    assert [trial["name"] for trial in trials] == ["trial-000", "trial-001", "trial-002"]
    for trial in trials:
        data, evaluation = trial["values"]["data"], trial["values"]["evaluation"]
        assert (data["eval_split"], data["validation_classes"]) == ("validation", 0.2)
        assert (evaluation["raw_pixels"], evaluation["gallery_queries"], evaluation["report"]) == (False, 0, False)
        assert trial["values"]["losses"]["margin"] == trial["drawn"]["losses.margin"]
    final = final_trials(sweep, trials[0]["values"])
    assert [trial["name"] for trial in final] == [
        "best-seed-0", "defaults-seed-0", "best-seed-1", "defaults-seed-1",
    ]  # fmt: skip
    for trial in final:
        assert trial["values"]["data"]["validation_classes"] == 0
        assert trial["values"]["train"]["eval_every"] == 0
    assert "validation_classes" not in sweep.base["data"]


def test_a_split_of_the_dataset_that_decides_takes_no_classes_away(tmp_path: Path) -> None:
    settings = load(tmp_path, sweep={"select_on": "val"}).settings
    values = trial_values(BASE, settings)
    assert values["data"]["eval_split"] == "val"
    assert "validation_classes" not in values["data"]


def test_a_space_that_leads_out_of_the_config_is_told_with_the_combination(tmp_path: Path) -> None:
    space = {"data.num_streams": {"choice": [8, 7]}}
    for searcher in ("random", "grid", "optuna"):
        sweep = load(tmp_path, space=space, sweep={"searcher": searcher, "trials": 20})
        with pytest.raises(LaunchError, match=r"(?s)combination data.num_streams=7 makes no config:.*must divide"):
            search_trials(sweep)
