"""What becomes of a run's checkpoints, in real small runs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dmlscale.cli import main
from dmlscale.distributed.world import World
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.preflight import check_cheap
from dmlscale.launch.recovery.attempt import begin_attempt
from dmlscale.launch.run.checkpoint_places import find_checkpoint, newest_record
from dmlscale.launch.run.progress import Progress
from dmlscale.launch.task import Task
from dmlscale.launch.worker import work
from dmlscale.training import checkpoint
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.state import Record
from tests.data.servers import S3Server
from tests.distributed.pool import GlooPool
from tests.integration.runs import CPU, curve, task_of, work_on_rank

QUICK = ("train.steps=12", "train.checkpoint_every=4", "train.bank_start=random")


def run(task: Task) -> dict[str, Any]:
    return work(task, World(), CPU)


def said(task: Task, kind: str) -> list[Any]:
    entries = map(json.loads, task.progress.read_text().splitlines())
    return [entry if kind == "checkpoint" else entry[kind] for entry in entries if kind in entry]


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoint.list_checkpoints(folder)]


def tensors_in(path: Path) -> dict[str, torch.Tensor]:
    """Of a checkpoint of one rank, by safetensors alone."""
    from safetensors.torch import load_file

    return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_way_of_writing_changes_no_bit(gloo_pool: GlooPool, config_file: Path, num_ranks: int) -> None:
    curves, kept = [], []
    for name in ("true", "false"):
        task = task_of(config_file, f"async-{name}", *QUICK, f"train.async_checkpoints={name}")
        result = gloo_pool.run(num_ranks, work_on_rank, task)[0]
        assert result["checkpoint"] == str(task.checkpoints / "step_00000012")
        assert names(task.checkpoints) == ["step_00000008", "step_00000012"]
        curves.append(curve(task.folder))
        kept.append(tensors_in(task.checkpoints / "step_00000008"))
        told = said(task, "checkpoint")
        assert [entry["step"] for entry in told] == [4, 8, 12]
        assert all(entry["mb"] > 0.1 and entry["held_up_s"] > 0 and entry["written_s"] > 0 for entry in told)
        costs = [entry["cost_s"] for entry in told]
        assert costs == sorted(costs)
        assert checkpoint.read_record(task.checkpoints / "step_00000012").cost_s == costs[-1]
    assert curves[0] == curves[1]
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in kept[0].items())
    assert len(kept[0]) > 20


def test_the_best_is_kept_told_and_found(config_file: Path) -> None:
    task = task_of(config_file, "best", *QUICK, "train.eval_every=3", "train.keep_checkpoints=1", "train.keep_best=1")
    result = run(task)
    evaluations = dict(zip([3, 6, 9, 12], said(task, "evaluation"), strict=True))
    best = max(evaluations, key=lambda step: (evaluations[step]["recall_at_1"], -step))
    path = task.checkpoints / f"step_{best:08d}"
    assert result["best"]["checkpoint"] == str(path)
    assert result["best"]["value"] == evaluations[best]["recall_at_1"]
    assert set(names(task.checkpoints)) == {path.name, "step_00000012"}
    (Path(task.folder) / "config.yaml").write_text(yaml.safe_dump(task.config))
    assert find_checkpoint(task.folder, best=True) == path
    assert find_checkpoint(task.folder) == task.checkpoints / "step_00000012"
    figures = Path(task.folder) / "figures.json"
    threads = torch.get_num_threads()
    assert main(["evaluate", task.folder, "--best", "--local", "--json", str(figures)]) == 0  # takes all cores
    torch.set_num_threads(threads)
    found = json.loads(figures.read_text())
    assert found["checkpoint"] == str(path)
    assert found["metrics"]["recall_at_1"] == pytest.approx(evaluations[best]["recall_at_1"])


def test_an_unknown_metric_ends_the_run_at_its_first_evaluation(config_file: Path) -> None:
    task = task_of(
        config_file, "unknown", *QUICK, "train.eval_every=3", "train.keep_best=1", "train.best_metric=recall"
    )
    with pytest.raises(CheckpointError, match=r"best_metric=recall is no metric.*recall_at_1") as raised:
        run(task)
    with pytest.raises(LaunchError, match=r"best_metric=recall .*recall_at_1"):
        check_cheap(task.settings)  # before that, where a driver starts it
    for name in str(raised.value).partition("there are ")[2].split(", "):
        train = task.config["train"] | {"best_metric": name}
        check_cheap(dataclasses.replace(task, config=task.config | {"train": train}).settings)


def test_minutes(config_file: Path) -> None:
    task = task_of(config_file, "minutes", "train.steps=12", "train.checkpoint_every=1000",
                   "train.checkpoint_every_minutes=0.0001")  # fmt: skip
    run(task)
    assert [entry["step"] for entry in said(task, "checkpoint")] == [5, 10, 12]  # where all ranks look at the clock


def test_without_a_checkpoint_that_can_be_written_nothing_begins(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match=rf"train\.checkpoint_folder: .*{tmp_path}/file"):
        task_of(config_file, "nowhere", *QUICK, f"train.checkpoint_folder={tmp_path}/file/checkpoints")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB; a checkpoint takes half of one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20M", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system takes rights that this user does not have")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_place_that_may_only_be_read_is_told_before_the_first_step(config_file: Path, small_disk: Path) -> None:
    task = task_of(config_file, "read-only", *QUICK, f"train.checkpoint_folder={small_disk}")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(CheckpointError, match=rf"cannot be written to {small_disk}/read-only .*Read-only file system"):
        run(task)
    assert not task.progress.exists() or not said(task, "metrics")


def fill(disk: Path) -> None:
    with (disk / "other").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**16))


def work_on_a_full_disk(world: World, task: Task, disk: Path, since: int, until: int | None) -> dict[str, Any]:
    """The disk is full from when the checkpoint of a step is told until it is told that that of another failed."""
    say = Progress.say

    def heard(progress: Progress, **entry: Any) -> None:
        say(progress, **entry)
        if world.rank == 0 and "checkpoint" in entry and entry["step"] == since:
            fill(disk)
        if world.rank == 0 and entry.get("fault", "").startswith(f"checkpoint of step {until} could not"):
            (disk / "other").unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "say", heard)
        return work(task, world, CPU)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_full_disk_is_told_and_the_run_goes_on(
    gloo_pool: GlooPool, config_file: Path, small_disk: Path, num_ranks: int
) -> None:
    quiet = task_of(config_file, "quiet", "train.steps=40", "train.checkpoint_every=10")
    gloo_pool.run(1, work_on_rank, quiet)
    task = task_of(config_file, "full", "train.steps=40", "train.checkpoint_every=10",
                   f"train.checkpoint_folder={small_disk}")  # fmt: skip
    folder = small_disk / "full"
    result = gloo_pool.run(num_ranks, work_on_a_full_disk, task, small_disk, 10, 30)[0]
    first, *_ = (text for text in said(task, "fault") if text.startswith("checkpoint"))
    assert first.startswith(f"checkpoint of step 20 could not be written (No space left on device: {folder}")
    assert first.endswith(
        "): the last good one is step_00000010; training goes on, the next try is at step 30 at the latest"
    )
    assert [entry["step"] for entry in said(task, "checkpoint")] == [10, 40]
    assert result["checkpoint"] == str(folder / "step_00000040")
    assert names(folder) == ["step_00000010", "step_00000040"]
    assert sorted(os.listdir(folder)) == names(folder)
    assert curve(task.folder) == curve(quiet.folder)


def test_a_full_disk_stops_the_run_where_that_is_asked_for(config_file: Path, small_disk: Path) -> None:
    task = task_of(config_file, "stops", "train.steps=40", "train.checkpoint_every=10",
                   f"train.checkpoint_folder={small_disk}", "train.on_checkpoint_error=stop")  # fmt: skip
    with pytest.raises(CheckpointError) as caught:
        work_on_a_full_disk(World(), task, small_disk, 10, None)
    text = str(caught.value)
    assert text.startswith(f"checkpoint of step 20 could not be written (No space left on device: {small_disk}/stops)")
    assert "MB, " in text
    assert "MB are free there" in text
    assert f"Last good one: {small_disk}/stops/step_00000010" in text
    assert text.endswith("the same command with run.name=stops goes on")
    assert names(small_disk / "stops") == ["step_00000010"]
    (small_disk / "other").unlink()
    assert run(task)["started_at_step"] == 10


def test_what_was_said_on_a_full_disk_is_there_later_whole_and_once(small_disk: Path) -> None:
    attempt = begin_attempt(small_disk / "attempts", World(), CPU)
    progress = Progress(small_disk / "progress.jsonl", attempt, speaks=True)
    progress.say(message="first")
    fill(small_disk)
    for number in range(100):
        progress.say(message=f"{number} " + "x" * 100)
    (small_disk / "other").unlink()
    progress.say(message="last")
    lines = [json.loads(line)["message"].split()[0] for line in progress._path.read_text().splitlines()]
    assert lines == ["first", *map(str, range(100)), "last"]


def test_far_checkpoints(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with S3Server() as server:
        server.put("bucket", "other", b"")
        options = [f"train.checkpoint_storage_options={{endpoint_url: {server.url}}}"]
        places = {"near": [], "far": ["train.checkpoint_folder=s3://bucket/runs", *options]}
        results = {}
        for name, more in places.items():
            task = task_of(config_file, name, *QUICK, *more)
            run(dataclasses.replace(task, config=shorter(task, 8)))
            results[name] = run(task)
            assert results[name]["started_at_step"] == 8
        assert curve(task.folder) == curve(Path(task.folder).parent / "near")
        assert results["far"]["checkpoint"] == "s3://bucket/runs/far/step_00000012"
        assert results["far"]["metrics"] == results["near"]["metrics"]
        record = newest_record(task.settings, Path(task.folder))
        assert record is not None
        assert record.step == 12
        (Path(task.folder) / "config.yaml").write_text(yaml.safe_dump(task.config))
        found = find_checkpoint(task.folder)
        assert checkpoint.verify(found) == []
        near = tensors_in(tmp_path / "runs" / "near" / "checkpoints" / "step_00000012")
        assert all(torch.equal(tensor, near[name]) for name, tensor in tensors_in(found).items())
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        for url in ("s3://bucket/runs/far", "s3://bucket/runs/far/step_00000008"):
            assert checkpoint.verify(find_checkpoint(url)) == []


def shorter(task: Task, steps: int) -> dict[str, Any]:
    return task.config | {"train": task.config["train"] | {"steps": steps}}


def test_a_place_that_has_changed_is_noticed(config_file: Path, tmp_path: Path) -> None:
    task = task_of(config_file, "moved", *QUICK)
    folder = Path(task.folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(task.config))
    record = Record(4, {"epoch": 0, "step": 4}, 1, task.config, {})
    checkpoint.save(folder / "checkpoints", {"a": torch.ones(3)}, record, World(), keep=1)
    with pytest.raises(LaunchError, match="copy step_00000004 there, or set it back"):
        task_of(config_file, "moved", *QUICK, f"train.checkpoint_folder={tmp_path}/elsewhere")


def test_a_new_run_does_not_go_on_from_the_checkpoints_of_another(config_file: Path, tmp_path: Path) -> None:
    """Of the same name in another folder, as the trials of two sweeps are."""
    kept = f"train.checkpoint_folder={tmp_path}/kept"
    task = task_of(config_file, "twin", *QUICK, kept)
    record = Record(4, {"epoch": 0, "step": 4}, 1, task.config, {})
    checkpoint.save(tmp_path / "kept" / "twin", {"a": torch.ones(3)}, record, World(), keep=1)
    assert task_of(config_file, "twin", *QUICK, kept).config == task.config
    with pytest.raises(LaunchError, match=rf"kept/twin holds checkpoints of a run of the same name in .*{tmp_path}/"):
        task_of(config_file, "twin", *QUICK, kept, f"run.folder={tmp_path}/other")
    moved = tmp_path / "moved" / "twin"  # with all that is in it
    moved.mkdir(parents=True)
    (moved / "config.yaml").write_text(yaml.safe_dump(task.config))
    task_of(config_file, "twin", *QUICK, kept, f"run.folder={tmp_path}/moved")


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="neither a checkpoint nor a run"):
        find_checkpoint(str(tmp_path))
    with pytest.raises(LaunchError, match=r"memory://nothing.* is neither a checkpoint nor a run"):
        find_checkpoint("memory://nothing")
    with pytest.raises(LaunchError, match=r"train\.keep_best"):
        find_checkpoint(str(tmp_path), best=True)
