"""The command on this machine, without Ray."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from dmlscale.cli import main
from dmlscale.config.load import load_config
from dmlscale.launch.doctor import checkup
from dmlscale.launch.doctor.checkup import examine
from dmlscale.launch.doctor.finding import Finding
from dmlscale.launch.doctor.machines import ThisMachine
from tests.integration.runs import write_config


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text("{}")
    return write_config(tmp_path / "small.yaml", tmp_path / "data", tmp_path)


def test_this_machine_passes(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "findings.json"
    assert main(["doctor", str(config_file), "--json", str(file)]) == 0
    told = json.loads(file.read_text())
    assert told["passes"] is True
    checks = {finding["check"] for finding in told["findings"]}
    assert {"packages", "open files", "resources", "run.folder", "data.path", "mlflow", "host name"} <= checks
    assert "passes: 0 failed" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_fails_with_what_to_do(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    file = tmp_path / "findings.json"
    assert main(["doctor", str(config_file), f"run.folder={tmp_path}/file", "--json", str(file)]) == 1
    failed = [finding for finding in json.loads(file.read_text())["findings"] if finding["status"] == "fail"]
    assert [finding["check"] for finding in failed] == ["run.folder"]
    assert failed[0]["advice"]
    assert "does not pass: 1 failed" in capsys.readouterr().out


def test_without_a_config_what_only_a_config_knows_is_left_out() -> None:
    checks = {finding.check for finding in examine(None, None)}
    assert {"packages", "open files", "host name"} <= checks
    assert not checks & {"run.folder", "data.path", "mlflow", "resources"}


def test_a_check_that_breaks_hides_no_other(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> list[Finding]:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(checkup, "check_limits", broken)
    found = examine(load_config(config_file), None)
    assert [(f.check, f.what) for f in found if f.status == "fail"] == [
        ("limits", "could not be checked: ZeroDivisionError: oh")
    ]
    assert {"packages", "run.folder", "host name"} <= {f.check for f in found}


def test_a_cluster_that_is_not_there_is_one_finding_and_costs_no_minute(tmp_path: Path) -> None:
    started = time.monotonic()
    assert main(["doctor", "--address", "127.0.0.1:1", "--json", str(tmp_path / "a.json")]) == 1
    (finding,) = json.loads((tmp_path / "a.json").read_text())["findings"]
    assert finding["check"] == "cluster"
    assert "refused" in finding["what"]
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--address", "http://10.0.0.1:8265"], "--address 10.0.0.1:6379 or --address auto"),
        (["--address", "ray://10.0.0.1:10001"], "--address 10.0.0.1:6379 or --address auto"),
        (["run.folder=/x"], "dmlscale doctor configs/quickstart.yaml run.folder=/x"),
        (["--json", "/nowhere/at/all.json"], "/nowhere/at/all.json"),
    ],
)
def test_what_is_asked_wrongly_is_refused(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert word in capsys.readouterr().err


def test_the_variable_that_names_a_wrong_address_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")
    assert main(["doctor"]) == 2
    assert "RAY_ADDRESS http://10.0.0.1:8265" in capsys.readouterr().err


def test_of_a_sweep_it_looks_at_what_a_trial_needs(config_file: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        f"base: {config_file.name}\nset: {{resources.workers: 1}}\n"
        "space: {optim.backbone_lr: {log_uniform: [1e-4, 1e-2]}}\n"
    )
    file = tmp_path / "findings.json"
    assert main(["doctor", str(sweep), "base.resources.device=cpu", "--json", str(file)]) == 0
    told = {finding["check"]: finding["what"] for finding in json.loads(file.read_text())["findings"]}
    assert told["resources"] == "1 workers fit"
    assert "run.folder" in told


def test_what_is_wrong_with_a_store_is_no_fault_of_the_check(
    config_file: Path,
) -> None:
    config = load_config(config_file, ["tracking.uri=file:///mlruns"])
    (found,) = (finding for finding in examine(config, None) if finding.status == "fail")
    assert found.check == "mlflow"
    assert "write sqlite:///" in found.what
    assert "report it" not in found.advice


def test_a_look_that_hangs_is_given_up() -> None:
    answers = ThisMachine("here").ask(time.sleep, {"here": (60,)}, seconds=0.2)
    assert answers.silent == {"here": "no answer within 0.2 s"}
    (finding,) = answers.findings("clock")
    assert (finding.node, finding.status) == ("here", "fail")
