"""The same command again goes on with a run that is not finished, and with no other."""

from __future__ import annotations

import json
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml

from dmlscale.config.load import load_config
from dmlscale.config.schema import Config
from dmlscale.distributed.world import World
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.run import run_folder
from dmlscale.launch.run.continuation import continues, unfinished_twin
from dmlscale.launch.run.lease import LEASE_FILE, held, this_process
from dmlscale.launch.run.run_state import STATE_FILE, newest_step, read_state, state_on_error, write_state
from dmlscale.launch.run.whole_file import write_whole
from dmlscale.training import checkpoint
from dmlscale.training.state import Record


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


def test_no_state_hides_why_a_run_ends(tmp_path: Path) -> None:
    """It is not for the note of the state to complain of a damaged checkpoint, or of a folder that is gone."""
    run = begun(tmp_path)
    damaged = run / "checkpoints" / "step_00000040"
    damaged.mkdir()
    (damaged / "record.json").write_text("{")
    assert newest_step(run) == 30
    with pytest.raises(ZeroDivisionError), state_on_error(run):
        1 / 0  # noqa: B018 - for its error
    state = read_state(run)
    assert state is not None
    assert (state.name, state.step) == ("failed", 30)
    with pytest.raises(ZeroDivisionError), state_on_error(run / "gone"):
        1 / 0  # noqa: B018 - for its error


def test_a_run_that_another_driver_goes_on_with_has_not_failed(tmp_path: Path) -> None:
    run = begun(tmp_path)
    other = replace(this_process(), host="n7", pid=12)
    (run / LEASE_FILE).write_text(json.dumps(asdict(other)))
    with pytest.raises(LaunchError), state_on_error(run):
        raise LaunchError("taken over")
    state = read_state(run)
    assert state is not None
    assert state.name == "training"


def test_a_command_takes_back_what_was_asked_of_an_earlier_one(tmp_path: Path) -> None:
    run = begun(tmp_path)
    requests = [run / "stop-requested", run / "hand-over-requested"]
    for request in requests:
        request.touch()
    run_folder.open_folder(config_of(tmp_path), resume=True)
    assert not any(request.exists() for request in requests)


def test_a_folder_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: run_folder.make_folder(config), range(400)))
    assert set(made) == {tmp_path / "mine"}


def test_a_file_is_written_whole_or_is_as_before(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    write_whole(file, "before")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_whole(file, "afterwards")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_the_folder_of_a_checkpoint_that_is_not_in_its_run(tmp_path: Path) -> None:
    run = begun(tmp_path)
    inside = run / "checkpoints" / "step_00000030"
    assert run_folder.folder_of(str(inside), inside) == run
    elsewhere = tmp_path / "far" / "mine" / "step_00000030"
    assert run_folder.folder_of(str(run), elsewhere) == run
    assert run_folder.folder_of("s3://bucket/mine", elsewhere) == elsewhere.parent


def test_checkpoints_of_a_folder_that_was_deleted_are_not_taken_unasked(tmp_path: Path) -> None:
    config = config_of(tmp_path / "runs", f"train.checkpoint_folder={tmp_path / 'kept'}")
    record = Record(30, {}, 1, config.model_dump(mode="json"), {})
    checkpoint.save(tmp_path / "kept" / "mine", {"a": torch.zeros(1)}, record, World(), keep=1)
    with pytest.raises(LaunchError, match=r"the run mine has a checkpoint of step 30, .* add --resume"):
        run_folder.open_folder(config, resume=False)
    assert run_folder.open_folder(config, resume=True).is_dir()
