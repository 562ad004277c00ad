from __future__ import annotations

import base64
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from dmlscale.launch.doctor import shared_folder, tracking
from dmlscale.launch.doctor.finding import Finding
from dmlscale.launch.doctor.machines import ThisMachine
from dmlscale.launch.doctor.tracking import check_tracking, reach_server
from tests.launch.doctor.machines import RoomsOfOne
from tests.launch.doctor.server import answering

HERE = ThisMachine("here")


def only(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


def asked(status: int, text: str = "") -> Finding:
    with answering(lambda path, headers: (status, text)) as server:
        return only(check_tracking(HERE, f"http://{server}"))


def test_a_server_that_answers_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_SLOW_SECONDS", 60.0)  # how busy this machine is does not count
    assert asked(200, "{}").status == "ok"


def test_a_server_of_which_only_the_health_page_answers_fails() -> None:
    """As one that asks for a password, or that refuses the name it is called by."""

    def answer(path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        return (200, "OK") if path == "/health" else (403, "Invalid Host header")

    with answering(answer) as server:
        finding = only(check_tracking(HERE, f"http://{server}"))
    assert finding.status == "fail"
    assert "Invalid Host header" in finding.what
    assert "--allowed-hosts" in finding.advice


@pytest.mark.parametrize("status", [401, 404, 500])
def test_other_refusals_fail(status: int) -> None:
    finding = asked(status, "no")
    assert finding.status == "fail"
    assert str(status) in finding.what


def test_nobody_there_fails_and_says_so() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        finding = only(check_tracking(HERE, f"http://127.0.0.1:{free.getsockname()[1]}"))
    assert finding.status == "fail"
    assert "Connection refused" in finding.what


def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        answer = reach_server(f"http://127.0.0.1:{door.getsockname()[1]}", 0.3)
    assert answer["status"] == 0
    assert "timed out" in answer["error"]


def test_credentials_are_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def answer(path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        seen.append(headers.get("Authorization"))
        return 401, "wrong"

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    with answering(answer) as server:
        findings = [
            only(check_tracking(HERE, f"http://{server}")),
            only(check_tracking(HERE, "http://" + "bob:" + f"letmein@{server}")),
        ]
    assert seen == ["Basic " + base64.b64encode(text).decode() for text in (b"ann:hunter2", b"bob:letmein")]
    for secret in ("hunter2", "letmein"):
        assert secret not in str(findings)


def test_the_file_of_a_local_store_must_be_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_folder, "_LITTLE_BYTES", 0)  # how full and how busy this machine is does not count
    monkeypatch.setattr(shared_folder, "_SLOW_SECONDS", 60.0)
    common, own = tmp_path / "common", tmp_path / "own"
    mounts = {"n0": {"/mnt": str(common)}, "n1": {"/mnt": str(own)}, "n2": {"/mnt": str(common)}}
    found = check_tracking(RoomsOfOne(["n0", "n1", "n2"], mounts), "sqlite:////mnt/mlflow.db", wait_seconds=0.3)
    assert {f.node: f.status for f in found} == {"n0": "ok", "n1": "fail", "n2": "ok"}
    assert {f.check for f in found} == {"mlflow"}
