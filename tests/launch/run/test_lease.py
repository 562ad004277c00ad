"""One driver at a time on a run's folder, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dmlscale.launch.errors import LaunchError
from dmlscale.launch.run import lease
from dmlscale.launch.run.lease import LEASE_FILE, Holder, held, is_driven, read_holder, this_process

HOLD = """
import sys, time
from pathlib import Path
from dmlscale.launch.run.lease import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that holds the lease."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_is_refused_until_the_first_is_dead(other: subprocess.Popen[str], tmp_path: Path) -> None:
    words = rf"{tmp_path.name} is being trained by process {other.pid} on \S+ \(last heard of \d+ s ago\)"
    with pytest.raises(LaunchError, match=words), held(tmp_path):
        pass
    assert is_driven(tmp_path)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert not is_driven(tmp_path)
    said: list[str] = []
    started = time.monotonic()
    with held(tmp_path, said.append) as ours:
        ours.check()
        assert read_holder(tmp_path) == this_process()
    assert time.monotonic() - started < 3  # nobody was waited for
    assert said == []
    assert not (tmp_path / LEASE_FILE).exists()


def test_a_killed_driver_whose_parent_has_not_waited_for_it_is_dead(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    other.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{other.pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
    with held(tmp_path):
        pass
    other.wait()


def test_another_process_of_the_same_pid_is_not_the_driver(tmp_path: Path) -> None:
    before = replace(this_process(), started=1)
    (tmp_path / LEASE_FILE).write_text(json.dumps(asdict(before)))
    with held(tmp_path):
        pass


def of_elsewhere(folder: Path, *, silent_s: float) -> None:
    holder = replace(this_process(), host="n7", pid=12)
    (folder / LEASE_FILE).write_text(json.dumps(asdict(holder)))
    then = time.time() - silent_s
    os.utime(folder / LEASE_FILE, (then, then))


def test_a_driver_elsewhere_that_speaks_is_left_alone(tmp_path: Path) -> None:
    of_elsewhere(tmp_path, silent_s=2)
    assert is_driven(tmp_path)
    said: list[str] = []

    def waits(line: str) -> None:
        said.append(line)
        (tmp_path / LEASE_FILE).touch()  # it speaks

    words = r"by process 12 on n7 \(last heard of just now\)"
    with pytest.raises(LaunchError, match=words), held(tmp_path, waits):
        pass
    assert len(said) == 1
    assert "process 12 on n7 was training" in said[0]
    holder = read_holder(tmp_path)
    assert holder is not None
    assert holder.host == "n7"


def test_a_driver_elsewhere_that_is_silent_for_long_is_dead(tmp_path: Path) -> None:
    of_elsewhere(tmp_path, silent_s=1)
    said: list[str] = []

    def waits(line: str) -> None:
        said.append(line)
        of_elsewhere(tmp_path, silent_s=lease.SILENT_S - 2)  # so much time passes

    started = time.monotonic()
    with held(tmp_path, waits):
        assert 1.5 < time.monotonic() - started < 6
    assert len(said) == 1
    of_elsewhere(tmp_path, silent_s=100)
    assert not is_driven(tmp_path)
    with held(tmp_path, said.append):
        pass
    assert len(said) == 1


def test_a_driver_learns_that_it_was_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = 0

    def read(folder: Path) -> Holder | None:
        nonlocal beats
        beats += threading.current_thread().name == "lease"
        return read_holder(folder)

    def two_beats_begin() -> None:  # so the first of them has ended
        until, deadline = beats + 2, time.monotonic() + 60
        while beats < until:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    monkeypatch.setattr(lease, "read_holder", read)
    with held(tmp_path) as ours:
        first = (tmp_path / LEASE_FILE).stat().st_mtime_ns
        two_beats_begin()
        assert (tmp_path / LEASE_FILE).stat().st_mtime_ns != first
        of_elsewhere(tmp_path, silent_s=0)
        with pytest.raises(LaunchError, match="taken over by process 12 on n7"):
            ours.check()
        two_beats_begin()  # one that found the lease its own may still have been on its way
        beaten = (tmp_path / LEASE_FILE).stat().st_mtime_ns
        two_beats_begin()
        assert (tmp_path / LEASE_FILE).stat().st_mtime_ns == beaten
    assert (tmp_path / LEASE_FILE).exists()  # of the other


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "n1"}'])
def test_a_damaged_note_holds_nobody_up(tmp_path: Path, text: str) -> None:
    (tmp_path / LEASE_FILE).write_text(text)
    assert not is_driven(tmp_path)
    with held(tmp_path):
        pass
