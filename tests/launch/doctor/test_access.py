from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dmlscale.launch.doctor.access import (
    Credentials,
    Door,
    check_access,
    judge_credentials,
    judge_dashboard,
    look_for_credentials,
    try_door,
    why_unreachable,
)
from tests.launch.doctor.server import answering


@pytest.mark.parametrize(("status", "door"), [(200, "open"), (404, "open"), (401, "locked"), (403, "locked")])
def test_the_door_is_what_a_stranger_finds(status: int, door: str) -> None:
    with answering(lambda path, headers: (status, "{}")) as server:
        assert try_door(server) == door


def test_nobody_there_is_a_warning_since_only_sweeps_and_jobs_need_it() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = check_access(f"127.0.0.1:{free.getsockname()[1]}", Credentials("", ""))
    assert [(f.check, f.status) for f in found if f.check == "dashboard"] == [("dashboard", "warn")]
    assert check_access("", Credentials("", ""))[0].what == "the cluster has none"


def test_an_open_door_on_the_network_is_a_warning_and_on_loopback_is_none() -> None:
    assert judge_dashboard("10.0.0.1:8265", "open")[0].status == "warn"
    assert "RAY_AUTH_MODE=token" in judge_dashboard("10.0.0.1:8265", "open")[0].advice
    for dashboard in ("127.0.0.1:8265", "localhost:8265", "[::1]:8265"):
        assert judge_dashboard(dashboard, "open")[0].status == "ok"
    assert judge_dashboard("10.0.0.1:8265", "locked")[0].status == "ok"


@pytest.mark.parametrize(
    ("have", "door", "status"),
    [
        (Credentials("token", "in /home/a/.ray/auth_token"), "locked", "ok"),
        (Credentials("token", ""), "locked", "fail"),
        (Credentials("", ""), "locked", "fail"),
        # Ray finds it where the address is auto, and only there.
        (Credentials("", "in /home/a/.ray/auth_token"), "locked", "warn"),
        (Credentials("disabled", ""), "locked", "fail"),
        (Credentials("token", "in RAY_AUTH_TOKEN"), "open", "warn"),
        (Credentials("disabled", ""), "open", "ok"),
    ],
)
def test_the_head_and_this_side_must_agree(have: Credentials, door: Door, status: str) -> None:
    assert judge_credentials(have, door)[0].status == status


def test_a_token_is_found_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "Token")
    assert look_for_credentials() == Credentials("token", "")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("s3cret")
    assert look_for_credentials() == Credentials("token", f"in {tmp_path}/.ray/auth_token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
    assert look_for_credentials() == Credentials("token", "in RAY_AUTH_TOKEN")


def test_an_address_is_tried_before_ray_waits_for_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        address = f"127.0.0.1:{door.getsockname()[1]}"
        assert why_unreachable(address) == ""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert "refused" in why_unreachable(f"127.0.0.1:{closed.getsockname()[1]}")
    assert why_unreachable("auto") == ""
