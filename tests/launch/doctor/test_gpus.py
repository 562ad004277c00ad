from __future__ import annotations

from typing import Any

import pytest

from dmlscale.launch.doctor.gpus import judge_gpus, judge_wish, look_at_gpus
from dmlscale.launch.doctor.machines import Machine

H100: dict[str, Any] = {
    "driver": "NVRM version: 580.1",
    "error": "",
    "torch_cuda": "13.2",
    "names": ["H100", "H100"],
    "capabilities": [[9, 0], [9, 0]],
    "missing": [],
    "bf16": True,
    "told": [],
}
NONE: dict[str, Any] = {"driver": "", "error": "", "torch_cuda": "13.2", "names": [], "missing": [], "told": []}


def judged(announced: int | None, **facts: Any) -> tuple[str, str]:
    resources = None if announced is None else {"GPU": float(announced)}
    finding = judge_gpus(Machine("n0", resources=resources), H100 | facts)
    return finding.status, finding.what


def test_gpus_that_torch_and_ray_agree_on_pass() -> None:
    assert judged(2) == ("ok", "2 x H100 (9.0), CUDA 13.2, bf16")
    assert judged(None)[0] == "ok"
    assert judge_gpus(Machine("n0", resources={}), NONE).status == "ok"


@pytest.mark.parametrize(
    ("announced", "facts", "word"),
    [
        (4, {}, "2 of the GPUs"),
        (2, {"names": [], "told": ["The NVIDIA driver on your system is too old"]}, "too old"),
        (2, {"names": [], "torch_cuda": None}, "for CPUs"),
        (2, {"names": [], "driver": ""}, "no NVIDIA driver"),
        (2, {"missing": ["GPU 1: no kernel image is available"]}, "no kernel image"),
        (2, {"error": "ImportError: libcudart"}, "cannot be imported"),
    ],
)
def test_gpus_that_cannot_be_used_fail_with_the_reason(announced: int, facts: dict[str, Any], word: str) -> None:
    status, what = judged(announced, **facts)
    assert status == "fail"
    assert word in what


def test_gpus_that_ray_does_not_hand_out_are_a_warning() -> None:
    assert judged(0) == ("warn", "torch can use 2 GPUs, Ray announces 0")


def test_asking_for_gpus_where_there_are_none_fails() -> None:
    assert [f.status for f in judge_wish("gpu", {"n0": NONE})] == ["fail"]
    assert judge_wish("auto", {"n0": NONE}) == []
    assert judge_wish("gpu", {"n0": NONE, "n1": H100}) == []


def test_kinds_of_gpus_that_are_mixed_are_a_warning() -> None:
    (finding,) = judge_wish("auto", {"n0": H100, "n1": H100 | {"names": ["A100"]}})
    assert finding.status == "warn"
    assert "A100; H100" in finding.what


def test_torch_is_asked_in_a_process_of_its_own() -> None:
    facts = look_at_gpus(True)
    assert facts["error"] == ""
    assert len(facts["names"]) == len(facts["capabilities"])
