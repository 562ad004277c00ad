"""The commands as a user runs them, without Ray: their output and exit code.

What a process of its own says more about (a kill, a signal, a store that is not there yet) has one; the others, whose
imports would take longer than their work, run in this one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from dmlscale.cli import main
from dmlscale.data.errors import DataError
from tests.integration.runs import batches, curve

COMMAND = [sys.executable, "-m", "dmlscale.cli"]
EXIT_RESUME_ME = 75
# The command, killed as soon as its first checkpoint is complete.
DIES_AFTER_A_CHECKPOINT = """
import os, signal, sys
from dmlscale.cli import main
from dmlscale.training.checkpoint import saver

commit = saver.commit

def commit_and_die(*arguments, **options):
    commit(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)

saver.commit = commit_and_die
sys.exit(main(sys.argv[1:]))
"""


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=200)
    if done.returncode != 0:
        raise AssertionError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition: object, process: subprocess.Popen[str], seconds: float = 120) -> None:
    assert callable(condition)
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0])
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def test_train_and_evaluate(config_file: Path, tmp_path: Path) -> None:
    """All of a run: figures, files, the MLflow run, and the same figures from its checkpoint."""
    figures = tmp_path / "figures.json"
    (tmp_path / "mlflow.db").unlink()  # nobody has one before the first run
    done = run("train", config_file, "evaluation.report=true", "--local", "--json", figures)
    for text in ("step", "samples/s", "ETA", "recall_at_1", "95 % interval", "raw pixels", "mlflow ui", "checkpoint"):
        assert text in done.stdout
    result = json.loads(figures.read_text())
    assert {"recall_at_1", "recall_at_8", "precision_at_1", "r_precision", "map_at_r", "nmi"} <= set(result["metrics"])
    check_tracking(result, tmp_path)

    again = tmp_path / "again.json"
    assert main(["evaluate", result["folder"], "--local", "--json", str(again)]) == 0
    assert json.loads(again.read_text())["metrics"] == result["metrics"]
    assert main(["evaluate", result["checkpoint"], "data.eval_split=train", "--local", "--json", str(again)]) == 0
    assert json.loads(again.read_text())["metrics"]["num_classes"] == 24


def check_tracking(result: dict[str, str], tmp_path: Path) -> None:
    client = MlflowClient(result["tracking_uri"])
    tracked = client.get_run(result["tracking_run"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["data.classes_per_batch"] == "12"
    assert tracked.data.params["loss.0.name"] == "triplet"
    names = set(tracked.data.metrics)
    assert {
        "train/loss",
        "throughput/samples_per_s",
        "eval/test/recall_at_1",
        "eval/test/raw_pixels/recall_at_1",
    } <= names
    assert any(name.startswith("system/") for name in names)
    assert len(client.get_metric_history(result["tracking_run"], "train/loss")) == 20
    assert {"mlflow.source.git.commit", "dmlscale.checkpoint"} <= set(tracked.data.tags)
    assert {entry.dataset.name for entry in tracked.inputs.dataset_inputs} == {"glyphs/train", "glyphs/test"}
    files = [f.path for folder in ("", "figures") for f in client.list_artifacts(result["tracking_run"], folder)]
    assert "figures/retrieval_gallery.png" in files
    assert "config.yaml" in files


def test_killed_after_a_checkpoint_it_continues_as_if_nothing_was(
    capsys: pytest.CaptureFixture[str], config_file: Path, tmp_path: Path
) -> None:
    quiet = ("--local", "evaluation.raw_pixels=false", "train.steps=40", "train.checkpoint_every=5")
    assert main(["train", str(config_file), "run.name=whole", *quiet]) == 0
    folder = tmp_path / "runs" / "killed"
    command = [sys.executable, "-c", DIES_AFTER_A_CHECKPOINT, "train", str(config_file), "run.name=killed", *quiet]
    killed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert list(folder.glob("checkpoints/step_*/record.json"))
    capsys.readouterr()
    refused = refuse(capsys, "train", config_file, "run.name=killed", *quiet, "optim.head_lr=1e-3")
    assert "of other settings (optim.head_lr=0.002 there, 0.001 here): add --resume" in refused
    assert main(["train", str(config_file), "run.name=killed", *quiet]) == 0
    said = capsys.readouterr().out
    assert "(it was not finished)" in said
    assert "continuing at step" in said
    finished = refuse(capsys, "train", config_file, "run.name=killed", *quiet)
    assert "finished at step 40: choose another run.name" in finished
    whole = tmp_path / "runs" / "whole"
    assert batches(folder) == batches(whole)
    assert curve(folder) == pytest.approx(curve(whole), rel=1e-6)


def test_sigterm_saves_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], config_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "stopped"
    arguments = ("train", config_file, "run.name=stopped", "--local", "train.steps=400", "train.checkpoint_every=1000")
    process = start(*arguments)
    wait_for(lambda: (folder / "progress.jsonl").exists() and len(batches(folder)) > 2, process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == EXIT_RESUME_ME
    assert "to go on, the same command with\n    run.name=stopped\n" in output
    assert len(list(folder.glob("checkpoints/step_*"))) == 1
    last = max(batches(folder))
    assert main([*map(str, arguments), f"train.steps={last + 2}", "--resume"]) == 0
    assert f"continuing at step {last}" in capsys.readouterr().out


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Runs a command that must be refused, in this process, and returns what it says."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert code == 2
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    assert "step " not in said.out
    return said.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.backbone_l=1"], "did you mean 'backbone_lr'"),
        (["data.path=nowhere"], "no dataset at"),
        (["data.classes_per_batch=64"], "64"),
        (["data.samples_per_class=500"], "samples_per_class"),
        (["data.eval_split=tset"], "no split 'tset'"),
        (["data.transform=standardise"], "standardize"),
        (["model.backbone=resnet10tt"], "did you mean 'resnet10t'"),
        (["run.folder=/proc/none"], "run.folder"),
        (["tracking.uri=http://127.0.0.1:9"], "127.0.0.1:9"),
    ],
)
def test_bad_input_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], config_file: Path, overrides: list[str], message: str
) -> None:
    assert message in refuse(capsys, "train", config_file, *overrides, "--local")


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_a_damaged_shard_is_named_before_training(
    capsys: pytest.CaptureFixture[str], config_file: Path, glyphs: Path, tmp_path: Path, damage: str
) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(glyphs, copy)
    shard = next(copy.glob("train-*.tar"))
    if damage == "missing":
        shard.unlink()
    else:
        os.truncate(shard, 0 if damage == "empty" else shard.stat().st_size // 2)
    assert shard.name in refuse(capsys, "train", config_file, f"data.path={copy}", "--local")


def test_more_workers_than_cores_are_refused_before_ray_starts(
    capsys: pytest.CaptureFixture[str], config_file: Path
) -> None:
    said = refuse(capsys, "train", config_file, "resources.workers=4", "resources.cpus_per_worker=64")
    assert "resources.workers=4" in said
    assert "resources.cpus_per_worker=" in said


def test_an_error_of_ours_keeps_its_traceback_when_asked(config_file: Path) -> None:
    with pytest.raises(DataError):
        main(["train", str(config_file), "data.path=nowhere", "--local", "--traceback"])


def test_evaluate_needs_a_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "neither a checkpoint nor a run" in refuse(capsys, "evaluate", tmp_path, "--local")


def test_a_refused_command_does_not_take_the_name(
    capsys: pytest.CaptureFixture[str], config_file: Path, tmp_path: Path
) -> None:
    refuse(capsys, "train", config_file, "run.name=again", "data.path=nowhere", "--local")
    assert "no dataset" in refuse(capsys, "train", config_file, "run.name=again", "data.path=nowhere", "--local")


def test_a_diverged_run_leaves_no_checkpoint(
    capsys: pytest.CaptureFixture[str], config_file: Path, tmp_path: Path
) -> None:
    rates = ("optim.backbone_lr=1e30", "optim.head_lr=1e30", "optim.clip_norm=null")
    code = main(["train", str(config_file), "run.name=nan", *rates, "train.checkpoint_every=5", "--local"])
    assert code == 1
    assert "lower the learning rates" in capsys.readouterr().err
    assert not list((tmp_path / "runs" / "nan" / "checkpoints").glob("step_*"))


def test_resume_needs_a_name(capsys: pytest.CaptureFixture[str], config_file: Path) -> None:
    assert "run.name" in refuse(capsys, "train", config_file, "run.name=null", "--local", "--resume")


def test_a_damaged_checkpoint_is_named(capsys: pytest.CaptureFixture[str], config_file: Path, tmp_path: Path) -> None:
    assert main(["train", str(config_file), "train.steps=2", "evaluation.raw_pixels=false", "--local"]) == 0
    folder = next((tmp_path / "runs" / "small" / "checkpoints").glob("step_*"))
    capsys.readouterr()
    os.truncate(next(folder.glob("*.safetensors")), 10)
    assert "damaged" in refuse(capsys, "evaluate", folder, "--local")
