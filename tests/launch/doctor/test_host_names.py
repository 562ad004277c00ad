from __future__ import annotations

import socket
from typing import Any

import pytest

from dmlscale.launch.doctor.host_names import judge_host_name, look_up_host_name
from dmlscale.launch.doctor.machines import Machine

NODE = Machine("n1", "10.0.0.2")


def status(
    resolved: list[str], *, alone: bool = False, interfaces: dict[str, str] | None = None, **demanded: str
) -> tuple[str, str]:
    facts: dict[str, Any] = {
        "name": "n1",
        "resolved": resolved,
        "interfaces": interfaces or {"127.0.0.1": "lo", "10.0.0.2": "eth0"},
        "demanded": demanded,
    }
    finding = judge_host_name(NODE, facts, alone=alone)
    return finding.status, finding.what + finding.advice


def test_a_name_of_an_own_address_passes() -> None:
    assert status(["10.0.0.2"])[0] == "ok"


@pytest.mark.parametrize(
    ("resolved", "word"),
    [(["127.0.1.1"], "127.0.1.1"), (["127.0.0.1"], "listen"), ([], "does not resolve"), (["10.9.9.9"], "10.9.9.9")],
)
def test_a_name_that_others_cannot_use_fails_with_two_ways_out(resolved: list[str], word: str) -> None:
    interfaces = {"127.0.0.1": "lo", "127.0.1.1": "lo", "10.0.0.2": "eth7"}
    found, text = status(resolved, interfaces=interfaces)
    assert found == "fail"
    assert word in text
    assert "resolve to 10.0.0.2" in text
    assert "GLOO_SOCKET_IFNAME=eth7" in text


def test_a_machine_by_itself_may_talk_to_itself() -> None:
    assert status(["127.0.1.1"], alone=True)[0] == "ok"


def test_an_interface_that_is_set_is_honoured() -> None:
    assert status(["127.0.1.1"], GLOO_SOCKET_IFNAME="eth0")[0] == "ok"
    assert status(["127.0.1.1"], NCCL_SOCKET_IFNAME="eth")[0] == "fail"  # gloo does not look at it
    found, text = status(["10.0.0.2"], GLOO_SOCKET_IFNAME="ib0")
    assert found == "fail"
    assert "GLOO_SOCKET_IFNAME=ib0, but there are eth0, lo" in text


@pytest.mark.parametrize(
    ("value", "expected"), [("^docker,lo", "ok"), ("=eth0", "ok"), ("=eth", "fail"), ("ib", "fail")]
)
def test_the_ways_of_nccl_to_name_interfaces(value: str, expected: str) -> None:
    assert status(["10.0.0.2"], NCCL_SOCKET_IFNAME=value)[0] == expected


def test_this_machine_tells_its_name_and_interfaces() -> None:
    facts = look_up_host_name()
    assert facts["name"] == socket.gethostname()
    assert facts["interfaces"]["127.0.0.1"] == "lo"
