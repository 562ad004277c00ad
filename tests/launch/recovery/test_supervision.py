"""When workers are started again, from where, and what is said and kept of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from dmlscale.config.load import load_config
from dmlscale.data.errors import DataError
from dmlscale.launch.errors import GaveUpError, WorkersFailedError
from dmlscale.launch.recovery import supervision
from dmlscale.launch.recovery.roster import write_place
from dmlscale.launch.recovery.supervision import AttemptFailedError, Supervisor
from dmlscale.launch.recovery.watch_notes import read_notes
from dmlscale.launch.run import run_folder
from dmlscale.launch.run.run_state import read_state
from dmlscale.launch.task import Task

Step = Callable[[Path], dict[str, Any]]
LOST = ConnectionError("Connection closed by peer [127.0.0.1]:4")


@pytest.fixture
def task(tmp_path: Path) -> Task:
    config = run_folder.resolve(load_config("configs/quickstart.yaml", [f"run.folder={tmp_path}", "run.name=x"]), "x")
    return Task("train", config.model_dump(mode="json"), str(run_folder.make_folder(config)))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_PAUSES_S", (0.0, 0.01))


class Workers:
    """Starts that go as planned: each a step, at which a checkpoint is told, and an error or a result."""

    def __init__(self, task: Task, *plan: tuple[int, BaseException | dict[str, Any]]) -> None:
        self.plan, self._task = list(plan), task
        self.said: list[str] = []
        self.folders: list[str] = []

    def __call__(self, logs: Path) -> dict[str, Any]:
        self.folders.append(logs.name)
        write_place(logs, 0, "127.0.0.1")
        step, end = self.plan.pop(0)
        if step:
            with self._task.progress.open("a") as file:
                file.write(json.dumps({"step": step, "checkpoint": f"step_{step:08d}"}) + "\n")
        if isinstance(end, dict):
            return end
        raise end

    def supervised(self, max_failures: int = 3, lacking: Callable[[], str | None] = lambda: None) -> dict[str, Any]:
        resources = self._task.settings.resources.model_copy(update={"max_failures": max_failures})
        return Supervisor(self._task, resources, self, lacking, self.said.append).run()


def lost(rank: int = 0) -> AttemptFailedError:
    return AttemptFailedError({rank: LOST})


def test_lost_workers_start_again_from_the_last_checkpoint(task: Task) -> None:
    workers = Workers(task, (50, lost(1)), (0, {"stopped": False, "step": 60}))
    assert workers.supervised() == {"stopped": False, "step": 60}
    (line,) = workers.said
    assert line.startswith("fault: rank 1 lost the connection")
    assert line.endswith("at step 50: starting again from step 50 (failure 1 of 3)")
    assert workers.folders == ["attempt-000", "attempt-001"]
    (entry,) = [json.loads(text) for text in (Path(task.folder) / "faults.jsonl").read_text().splitlines()]
    assert entry["kind"] == "lost"
    assert f"fault: {entry['message']}" == line


def test_too_many_without_a_new_checkpoint_end_the_run(task: Task) -> None:
    workers = Workers(task, (10, lost()), (0, lost(1)), (0, lost(2)))
    with pytest.raises(
        GaveUpError, match=r"(?s)lost 3 times in a row .* 1\. rank 0 .* 2\. rank 1 .* 3\. rank 2 .*logs:"
    ):
        workers.supervised(max_failures=2)
    assert len(workers.said) == 2
    assert "from step 10 in 0 s (failure 2 of 2)" in workers.said[1]


def test_progress_between_failures_resets_the_count(task: Task) -> None:
    plan = [(step, lost()) for step in (10, 20, 30, 40)]
    workers = Workers(task, *plan, (0, {"stopped": False}))
    workers.supervised(max_failures=1)
    assert all("(failure 1 of 1)" in line for line in workers.said)
    with pytest.raises(GaveUpError, match="were lost once"):
        Workers(task, (0, lost())).supervised(max_failures=0)


def test_an_error_that_a_new_start_cannot_mend_ends_the_run(task: Task) -> None:
    workers = Workers(task, (10, AttemptFailedError({0: LOST, 1: DataError("x.tar is damaged")})))
    with pytest.raises(WorkersFailedError, match=r"^rank 1: DataError: x.tar is damaged\n\(logs: .*attempt-000\)$"):
        workers.supervised()
    assert workers.said == []
    assert "x.tar is damaged" in (Path(task.folder) / "faults.jsonl").read_text()


def test_too_little_memory_gets_advice_for_this_config(task: Task) -> None:
    workers = Workers(task, (10, AttemptFailedError({0: MemoryError()})))
    with pytest.raises(
        WorkersFailedError, match=r"(?s)train\.micro_batch_size=.*activation_checkpointing.*dmlscale plan"
    ):
        workers.supervised()


def test_a_watch_tells_what_it_has_found(task: Task) -> None:
    message = "rank 1 (n1, pid 9) has not been heard from for 5 s, last at step 57 (step): it is taken for lost"
    note = {"rank": 0, "host": "n0", "kind": "lost", "message": message, "step": 57, "suspects": [1]}

    class Watched(Workers):
        def __call__(self, logs: Path) -> dict[str, Any]:
            number = len(self.folders) + 1
            (task.attempts / f"{number:06d}").write_text(json.dumps({"hosts": ["n0"]}))
            if number == 1:
                (task.attempts / f"{number:06d}.rank_0.json").write_text(json.dumps(note))
            if number == 2:  # by a worker of the first start, on a node that was cut off and is back
                late = note | {"kind": "superseded", "message": "a later start has begun"}
                (task.attempts / "000001.rank_2.json").write_text(json.dumps(late))
            return super().__call__(logs)

    task.attempts.mkdir()
    workers = Watched(task, (50, lost()), (0, lost()), (0, {"stopped": False}))
    workers.supervised()
    assert workers.said[0] == f"fault: {message}: starting again from step 50 (failure 1 of 3)"
    assert message not in workers.said[1]  # an old note is not told twice
    assert workers.said[1].endswith("(failure 2 of 3)")  # nor is one that comes late


CUT = (
    # Rank 0 of these is on the far side of a cut network, whose words reach the storage all the same.
    (0, "10.0.0.1", "rank 1 (n2, pid 8) has not been heard from for 5 s, last at step 57 (step): it is taken for lost"),
    (1, "10.0.0.2", "rank 0 (n1, pid 9) has not been heard from for 5 s: it is taken for lost, or the network"),
)


class CutOff(Workers):
    """A first start whose workers note what they found, seconds before its end is heard of."""

    def __call__(self, logs: Path) -> dict[str, Any]:
        number = len(self.folders) + 1
        (self._task.attempts / f"{number:06d}").write_text("")
        if number > 1:
            return super().__call__(logs)
        for rank, address, message in CUT:
            write_place(logs, rank, address)
            note = {"rank": rank, "kind": "lost", "message": message}
            (self._task.attempts / f"000001.rank_{rank}.json").write_text(json.dumps(note))
        self.folders.append(logs.name)
        deadline = time.monotonic() + 30
        while not self.said and time.monotonic() < deadline:
            time.sleep(0.01)
        self.told_before_the_end = list(self.said)
        end = self.plan.pop(0)[1]
        assert isinstance(end, BaseException)
        raise end

    def supervised(self, max_failures: int = 3, lacking: Callable[[], str | None] = lambda: None) -> dict[str, Any]:
        resources = self._task.settings.resources.model_copy(update={"max_failures": max_failures})
        self._task.attempts.mkdir(exist_ok=True)
        answers = "10.0.0.2".__eq__
        return Supervisor(self._task, resources, self, lacking, self.said.append, answers).run()


def test_what_a_worker_noted_is_told_once_and_before_ray_reports_its_end(task: Task) -> None:
    workers = CutOff(task, (0, lost(0)), (50, lost(1)), (0, {"stopped": False}))
    workers.supervised()
    first, second = workers.said
    assert workers.told_before_the_end == [first]
    assert first == f"fault: {CUT[1][2]}: starting again from the beginning (failure 1 of 3)"  # the near side's word
    assert second.endswith("starting again from step 50 (failure 1 of 3)")
    entries = [json.loads(text) for text in (Path(task.folder) / "faults.jsonl").read_text().splitlines()]
    assert [f"fault: {entry['message']}" for entry in entries] == [first, second]


def test_an_end_for_good_that_follows_an_early_notice_is_an_end(task: Task) -> None:
    workers = CutOff(task, (0, AttemptFailedError({0: LOST, 1: DataError("x.tar is damaged")})))
    with pytest.raises(WorkersFailedError, match=r"x\.tar is damaged"):
        workers.supervised()
    assert len(workers.said) == 1
    assert len(workers.folders) == 1


def test_storage_that_cannot_be_listed_has_no_notes(tmp_path: Path) -> None:
    assert read_notes(tmp_path / ("x" * 300), 0) == []


def test_workers_that_hand_over_are_followed_by_others(task: Task) -> None:
    hands_over = {"stopped": True, "hands_over": True}
    workers = Workers(task, (10, hands_over), (0, dict(hands_over)), (0, {"stopped": False, "hands_over": False}))
    answers = iter([None, "n1 is gone", None, "n1 is gone", None])
    assert workers.supervised(lacking=lambda: next(answers)) == {"stopped": False}
    assert workers.said == ["waiting for 2 workers: n1 is gone"] * 2


def test_a_cluster_without_room_is_waited_for(task: Task) -> None:
    words = "the cluster has room for 0 (n1 is gone)"
    answers = iter([None, words, words, None])
    workers = Workers(task, (10, lost()), (0, {"stopped": False}))
    seen = []

    def lacking() -> str | None:
        seen.append(read_state(Path(task.folder)))
        return next(answers)

    workers.supervised(lacking=lacking)
    assert workers.said[1:] == [f"waiting for 2 workers: {words}"]
    states = [state.name for state in seen if state is not None]
    assert states == ["restarting", "waiting", "waiting"]


def test_no_room_after_all_is_no_failure(task: Task) -> None:
    none = AttemptFailedError({-1: RuntimeError("startup")}, is_for_room=True)
    workers = Workers(task, (0, none), (0, none), (0, {"stopped": False}))
    workers.supervised(max_failures=0)
    assert len(workers.said) == 1
    assert "no room" in workers.said[0]


def test_workers_that_die_before_all_have_started_are_tried_for_a_while(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "_START_PAUSE_S", 0.0)
    monkeypatch.setattr(supervision, "_MOST_STARTS", 2)
    early = AttemptFailedError({-1: ConnectionError("the node is off")}, is_for_start=True)
    workers = Workers(task, (0, early), (0, early), (0, lost()), (0, early), (0, {"stopped": False}))
    workers.supervised(max_failures=1)
    assert [line.partition(":")[0] for line in workers.said] == [
        "waiting for 2 workers",
        "fault",
        "waiting for 2 workers",
    ]
    assert workers.said[0].endswith(": some died before all had started (the node is off)")
    with pytest.raises(GaveUpError):
        Workers(task, (0, early), (0, early), (0, early)).supervised(max_failures=0)


@pytest.mark.parametrize("where", ["waiting", "pausing", "starting"])
def test_a_stop_without_workers_ends_at_once(task: Task, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(supervision, "_PAUSES_S", (60.0,))

    stopped_at: list[float] = []

    def stop() -> None:
        stopped_at.append(time.monotonic())
        task.stop_file.touch()

    class Said(list[str]):
        """What is said where the workers are waited for, or pause: the stop is asked for soon after."""

        def append(self, line: str) -> None:
            super().append(line)
            Timer(0.3, stop).start()

    class Late(Workers):
        def __call__(self, logs: Path) -> dict[str, Any]:
            if where != "starting":
                return super().__call__(logs)
            Timer(0.3, stop).start()
            time.sleep(20)
            raise AssertionError

    workers = Late(task, (30, lost()), (0, {"stopped": False}))
    workers.said = Said()
    result = workers.supervised(lacking=lambda: "waiting for 1 worker" if where == "waiting" else None)
    assert time.monotonic() - stopped_at[0] < 5
    assert result["stopped"]
    assert result["without_workers"]
    assert result["step"] == (30 if where == "pausing" else 0)


def test_workers_that_die_while_they_stop_are_not_started_again(task: Task) -> None:
    class Stopping(Workers):
        def __call__(self, logs: Path) -> dict[str, Any]:
            write_place(logs, 0, "127.0.0.1")
            task.stop_file.touch()
            return super().__call__(logs)

    workers = Stopping(task, (30, lost()))
    result = workers.supervised()
    assert result["stopped"]
    assert result["step"] == 30
    assert workers.said[0].endswith("stopping at the last checkpoint")
    assert "stopping at the last checkpoint" in (Path(task.folder) / "faults.jsonl").read_text()


def test_an_evaluation_leaves_the_state_of_its_run_alone(task: Task) -> None:
    evaluation = replace(task, kind="evaluate")
    Workers(evaluation, (0, lost()), (0, {"metrics": {}})).supervised()
    assert read_state(Path(task.folder)) is None
