from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.launch.doctor import shared_folder
from dmlscale.launch.doctor.finding import Finding
from dmlscale.launch.doctor.machines import ThisMachine
from dmlscale.launch.doctor.shared_folder import Seen, check_shared_folder, judge_sharing
from tests.launch.doctor.machines import RoomsOfOne

PLACE = "/mnt/runs"


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """How full and how busy this machine is does not count."""
    monkeypatch.setattr(shared_folder, "_LITTLE_BYTES", 0)
    monkeypatch.setattr(shared_folder, "_SLOW_SECONDS", 60.0)


def failed(found: list[Finding]) -> set[str]:
    return {finding.node for finding in found if finding.status == "fail"}


def mounted(storages: dict[str, Path]) -> RoomsOfOne:
    return RoomsOfOne(list(storages), {name: {PLACE: str(path)} for name, path in storages.items()})


@pytest.mark.usefixtures("room")
def test_shared_storage_is_written_and_read_by_all_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    machines = mounted(dict.fromkeys(("n0", "n1", "n2"), tmp_path))
    found = check_shared_folder(machines, "run.folder", PLACE, wait_seconds=0.3)
    assert [(f.node, f.status) for f in found] == [("n0", "ok"), ("n1", "ok"), ("n2", "ok")]
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.usefixtures("room")
def test_a_folder_that_is_not_there_yet_is_made_and_taken_away(tmp_path: Path) -> None:
    found = check_shared_folder(ThisMachine("here"), "run.folder", str(tmp_path / "a" / "b"))
    assert [f.status for f in found] == ["ok"]
    assert list(tmp_path.iterdir()) == []


def test_the_node_with_a_disk_of_its_own_is_named(tmp_path: Path) -> None:
    common, own = tmp_path / "common", tmp_path / "own"
    found = check_shared_folder(mounted({"n0": common, "n1": own, "n2": common}), "run.folder", PLACE, wait_seconds=0.3)
    assert failed(found) == {"n1"}
    (fault,) = (f for f in found if f.status == "fail")
    assert fault.what == f"{PLACE} is not shared: files that n0, n2 wrote are not there"
    assert list(tmp_path.iterdir()) == []


def test_it_may_be_the_head(tmp_path: Path) -> None:
    common, own = tmp_path / "common", tmp_path / "own"
    assert failed(
        check_shared_folder(mounted({"n0": own, "n1": common, "n2": common}), "x", PLACE, wait_seconds=0.3)
    ) == {"n0"}


@settings(max_examples=10)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=5))
def test_all_but_the_most_frequent_storage_fail(disks: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storages = {f"n{number}": Path(folder) / str(disk) for number, disk in enumerate(disks)}
        usual = max(disks, key=disks.count)
        found = check_shared_folder(mounted(storages), "x", PLACE, wait_seconds=0.1)
        assert failed(found) == {f"n{number}" for number, disk in enumerate(disks) if disk != usual}


def test_what_cannot_be_written_is_told_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = check_shared_folder(
        mounted({"n0": tmp_path, "n1": tmp_path / "file"}), "run.folder", PLACE, wait_seconds=0.3
    )
    assert failed(found) == {"n1"}
    assert any("Not a directory" in f.what for f in found)


@pytest.mark.usefixtures("room")
def test_a_node_that_does_not_answer_hides_no_other(tmp_path: Path) -> None:
    machines = mounted(dict.fromkeys(("n0", "n1", "n2"), tmp_path))
    machines.silent = ["n1"]
    found = check_shared_folder(machines, "run.folder", PLACE, wait_seconds=0.3)
    assert [(f.node, f.status) for f in found] == [("n1", "fail"), ("n0", "ok"), ("n2", "ok")]


def test_a_full_disk_fails_and_late_files_warn() -> None:
    def status(free_bytes: int, lag: float) -> str:
        seen = {node: Seen({"n0": lag, "n1": lag}, free_bytes) for node in ("n0", "n1")}
        (one,) = {f.status for f in judge_sharing("x", PLACE, seen, ["n0", "n1"])}
        return one

    assert status(10**12, 0.1) == "ok"
    assert status(10**12, 5.0) == "warn"
    assert status(10**9, 0.1) == "warn"
    assert status(10**6, 0.1) == "fail"
