"""Why a worker was killed, asked on its machine: what is said when that machine does not answer."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
from ray.core.generated.common_pb2 import ActorDiedErrorContext

from dmlscale.config.load import load_config
from dmlscale.launch.errors import GaveUpError
from dmlscale.launch.recovery.asked_nodes import ask_memory_kills
from dmlscale.launch.recovery.failures import hosts_of_killed
from dmlscale.launch.recovery.memory_kills import count_memory_kills
from dmlscale.launch.recovery.roster import Place, write_place
from dmlscale.launch.recovery.supervision import AttemptFailedError, Supervisor
from dmlscale.launch.task import Task

HERE = socket.gethostname()
KILLED = ray.exceptions.ActorDiedError(
    ActorDiedErrorContext(error_message="its worker process has died", actor_id=b"0" * 16, node_ip_address="10.0.0.9")
)


def test_this_machine_needs_no_cluster_and_others_without_one_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert ask_memory_kills([HERE]) == {HERE: count_memory_kills()}
    assert ask_memory_kills([]) == {}
    assert not caplog.records
    assert ask_memory_kills([HERE, "far"]) == {HERE: count_memory_kills()}
    assert "far cannot be asked" in caplog.text
    assert not ray.is_initialized()


def test_only_machines_of_workers_that_ended_without_a_word_are_asked() -> None:
    places = {rank: Place(rank, f"n{rank}", f"10.0.0.{rank}", rank, 0) for rank in range(5)}
    errors: dict[int, BaseException] = {
        0: ConnectionError("Connection closed by peer"),
        1: KILLED,
        2: ray.exceptions.NodeDiedError("n2"),
        3: ray.exceptions.OutOfMemoryError("low"),
        -1: KILLED,
    }
    assert hosts_of_killed(errors, places) == {"n1"}


@pytest.mark.parametrize("kills_since", [0, 1])
def test_the_fault_is_told_whether_its_machine_answers_or_not(tmp_path: Path, kills_since: int) -> None:
    """Rank 0 was on this machine, whose counter stands at ``kills_since`` more than it began with, rank 1 far away."""
    config = load_config("configs/quickstart.yaml", [f"run.folder={tmp_path}", "run.name=x"])
    task = Task("train", config.model_dump(mode="json"), str(tmp_path))
    said: list[str] = []

    def attempt(logs: Path) -> dict[str, Any]:
        write_place(logs, 0, "127.0.0.1")
        for rank, host, kills in ((0, HERE, count_memory_kills() - kills_since), (1, "far", 0)):
            place = {"rank": rank, "host": host, "address": "10.0.0.9", "pid": 7, "memory_kills": kills}
            (logs / f"rank_{rank}.json").write_text(json.dumps(place))
        raise AttemptFailedError({0: KILLED, 1: KILLED})

    resources = config.resources.model_copy(update={"max_failures": 1})
    began = time.monotonic()
    with pytest.raises(GaveUpError) as ended:
        Supervisor(task, resources, attempt, lambda: None, said.append).run()
    assert time.monotonic() - began < 30
    (line,) = said
    kernel = f"rank 0 on {HERE} was killed, probably by the kernel: there was too little memory on its machine"
    both = f"ranks 0, 1 on {', '.join(sorted((HERE, 'far')))} were killed (SIGKILL?)"
    parts = f"{kernel}; rank 1 on far was killed (SIGKILL?)" if kills_since else both
    assert line.startswith(f"fault: {parts} at step 0: starting again from the beginning")
    assert ("train.micro_batch_size=" in str(ended.value)) == bool(kills_since)
