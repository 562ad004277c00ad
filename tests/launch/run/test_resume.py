"""The same command again goes on with a run that is not finished, and with no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dmlscale.config.load import load_config
from dmlscale.config.schema import Config
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.run import run_folder
from dmlscale.launch.run.continuation import continues, unfinished_twin
from dmlscale.launch.run.lease import held
from dmlscale.launch.run.run_state import STATE_FILE, newest_step, read_state, state_on_error, write_state


def config_of(folder: Path, *overrides: str, name: str = "mine") -> Config:
    values = [f"run.folder={folder}", f"run.name={name}", *overrides]
    return run_folder.resolve(load_config("configs/quickstart.yaml", values), "quickstart")


def begun(folder: Path, *overrides: str, name: str = "mine", step: int = 30) -> Path:
    """A run with a checkpoint of a step, whose driver was killed."""
    config = config_of(folder, *overrides, name=name)
    run = run_folder.make_folder(config)
    (run / run_folder.CONFIG_FILE).write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (run / "progress.jsonl").write_text(json.dumps({"step": step, "checkpoint": f"step_{step:08d}"}) + "\n")
    write_state(run, "training")
    return run


def test_the_same_command_goes_on(tmp_path: Path) -> None:
    assert not continues(config_of(tmp_path), tmp_path / "mine")
    run = begun(tmp_path)
    assert continues(config_of(tmp_path), run)
    assert newest_step(run) == 30
    for name in ("starting", "restarting", "waiting", "stopping", "stopped", "failed"):
        write_state(run, name)
        assert continues(config_of(tmp_path), run)


@pytest.mark.parametrize(
    "override",
    [
        "resources.workers=2",
        "resources.max_failures=9",
        "tracking.uri=sqlite:////elsewhere.db",
        "train.log_every=1",
        "train.checkpoint_every=7",
        "train.keep_checkpoints=5",
        "data.loader_threads=3",
        "evaluation.batch_size=8",
    ],
)
def test_what_does_not_change_the_results_may_change(tmp_path: Path, override: str) -> None:
    run = begun(tmp_path)
    assert continues(config_of(tmp_path, override), run)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.steps=7", r"train\.steps=\d+ there, 7 here"),
        ("run.seed=5", "run.seed=0 there, 5 here"),
        ("losses={name: circle}", r"losses\.0\.name="),
        ("optim.backbone_lr=0.5", r"optim\.backbone_lr=.* there, 0\.5 here"),
        ("train.checkpoint_folder=/elsewhere", "train.checkpoint_folder=None there"),
        ("model.options={norm_layer: groupnorm}", r"model\.options"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, override: str, told: str) -> None:
    run = begun(tmp_path)
    with pytest.raises(LaunchError, match=rf"of other settings \(.*{told}.*add --resume"):
        continues(config_of(tmp_path, override), run)


def test_a_finished_run_is_refused(tmp_path: Path) -> None:
    run = begun(tmp_path, step=40)
    write_state(run, "finished")
    with pytest.raises(LaunchError, match=r"finished at step 40: choose another run\.name"):
        continues(config_of(tmp_path), run)


def test_a_run_of_which_nothing_is_known_is_refused(tmp_path: Path) -> None:
    run = begun(tmp_path)
    for text in ("", "[]", '{"name": "sleeping", "step": 1, "time": ""}'):
        (run / STATE_FILE).write_text(text)
        assert read_state(run) is None
    (run / STATE_FILE).unlink()
    with pytest.raises(LaunchError, match="holds a run already: add --resume"):
        continues(config_of(tmp_path), run)


def test_a_config_that_can_no_longer_be_read_is_refused(tmp_path: Path) -> None:
    run = begun(tmp_path)
    (run / run_folder.CONFIG_FILE).write_text("model: {backbon: x}")
    with pytest.raises(LaunchError, match=r"config\.yaml cannot be read: .*add --resume"):
        continues(config_of(tmp_path), run)


def test_a_command_without_a_name_tells_of_an_unfinished_run(tmp_path: Path) -> None:
    new = config_of(tmp_path, name="quickstart-20261126-120000")
    assert unfinished_twin(new, "quickstart") is None
    begun(tmp_path, "train.steps=7", name="quickstart-20261125-100001")
    assert unfinished_twin(new, "quickstart") is None
    begun(tmp_path, name="other-20261125-100000")
    finished = begun(tmp_path, name="quickstart-20261125-100002")
    write_state(finished, "finished")
    run = begun(tmp_path, name="quickstart-20261125-100000")
    line = unfinished_twin(new, "quickstart")
    assert line == (
        f"{run} is an unfinished run of these settings, at step 30: run.name=quickstart-20261125-100000 continues it"
    )
    with held(run):
        assert unfinished_twin(new, "quickstart") is None


def test_how_a_run_ends_is_noted(tmp_path: Path) -> None:
    run = begun(tmp_path)
    with pytest.raises(KeyboardInterrupt), state_on_error(run):
        raise KeyboardInterrupt
    state = read_state(run)
    assert state is not None
    assert (state.name, state.step, state.reason) == ("stopped", 30, "interrupted")
    with pytest.raises(ZeroDivisionError), state_on_error(run):
        1 / 0  # noqa: B018 - for its error
    state = read_state(run)
    assert state is not None
    assert (state.name, state.reason) == ("failed", "ZeroDivisionError: division by zero")
    with state_on_error(run):
        write_state(run, "finished")
    state = read_state(run)
    assert state is not None
    assert state.is_finished


def test_a_step_is_that_of_the_last_checkpoint_even_if_lines_are_cut_off(tmp_path: Path) -> None:
    run = begun(tmp_path, step=30)
    with (run / "progress.jsonl").open("a") as file:
        file.write(json.dumps({"step": 41, "metrics": {}}) + "\n")
        file.write('{"step": 45, "checkpo\n{"step": 50, "checkpoint": "step_0\n')
    assert newest_step(run) == 30
