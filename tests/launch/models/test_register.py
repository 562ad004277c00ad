"""``export --register`` and what a finished training leaves: nothing is lost, and nothing is registered twice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from dmlscale.cli import main
from dmlscale.launch.models.export import export_of_run
from dmlscale.launch.models.model_folder import load_model
from dmlscale.tracking.mlflow import start_or_continue
from tests.launch.models.checkpoints import pack_samples, write_checkpoint
from tests.launch.test_every_input import CASES


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def run(uri: str, tmp_path: Path) -> Path:
    """A tracked run with a checkpoint and its dataset."""
    pack_samples(tmp_path / "data", "array", [CASES["vectors"][0]] * 6)
    write_tracked(tmp_path / "run", uri)
    return tmp_path / "run"


def write_tracked(run: Path, uri: str, step: int = 7) -> str:
    tracked: dict[str, str | None] = {"uri": uri, "run": start_or_continue(uri, "tests", "run", key=str(run))}
    data = f"data.path={run.parent / 'data'}"
    return str(write_checkpoint(run, "vectors", data, step=step, tracked=tracked))


def versions_of(uri: str, name: str) -> list[str]:
    return sorted(str(version.version) for version in MlflowClient(uri).search_model_versions(f"name = '{name}'"))


def test_a_name_that_is_refused_writes_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), str(tmp_path / "out"), "--register", "bad/name:x"]) == 2
    assert "bad/name:x" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["data", "run"]


def test_an_export_that_is_there_is_registered_once(
    run: Path, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, name = str(tmp_path / "out"), "once"
    assert main(["export", str(run), out]) == 0
    before = os.stat(tmp_path / "out" / "model.safetensors")
    for remark in ("models:/once/1 ", "models:/once/1, with the same weights, was there"):
        assert main(["export", str(run), out, "--register", name]) == 0
        shown = capsys.readouterr().out
        assert f"{out} holds run at step 7 already" in shown
        assert remark in shown
    assert versions_of(uri, name) == ["1"]
    assert os.stat(tmp_path / "out" / "model.safetensors") == before
    # Without its ONNX file it is not what is asked for, and neither is another model.
    assert main(["export", str(run), out, "--register", name, "--onnx"]) == 2
    write_tracked(run, uri, step=8)
    assert main(["export", str(run), out, "--register", name]) == 2
    assert capsys.readouterr().err.count("is there already and is no empty folder") == 2
    assert main(["export", str(run), str(tmp_path / "other"), "--register", name]) == 0
    assert versions_of(uri, name) == ["1", "2"]


def test_a_training_registers_a_checkpoint_once(run: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        export_of_run(str(run), run, "trained")
        assert "warning" not in capsys.readouterr().out
    assert versions_of(uri, "trained") == ["1"]
    export_of_run(write_tracked(run, uri, step=8), run, "trained")
    assert versions_of(uri, "trained") == ["1", "2"]
    assert load_model(str(run / "model")).name == "run at step 8"
    assert sorted(os.listdir(run)) == ["checkpoints", "model"]


def test_what_cannot_be_registered_is_exported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tmp_path / "data")
    untracked = write_checkpoint(tmp_path / "other", "vectors")
    for checkpoint, folder, reason in ((run, run, "data"), (untracked, tmp_path / "other", "not tracked")):
        export_of_run(str(checkpoint), folder, "name")
        shown = capsys.readouterr().out
        assert "warning: the model was not registered: " in shown
        assert reason in shown
        assert f"dmlscale export {folder} {folder / 'model'} --register name" in shown
        assert load_model(str(folder / "model")).name == f"{folder.name} at step 7"


def test_an_earlier_model_stays_where_no_other_can_be_made(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_of_run(str(run), run, None)
    shutil.rmtree(run / "checkpoints")
    export_of_run(str(run), run, None)
    assert "warning: the model was not exported: " in capsys.readouterr().out
    assert load_model(str(run / "model")).name == "run at step 7"
    assert os.listdir(run) == ["model"]
