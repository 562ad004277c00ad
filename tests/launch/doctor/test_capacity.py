from __future__ import annotations

import pytest

from dmlscale.config.schema import ResourcesConfig
from dmlscale.launch.doctor.capacity import judge_capacity
from dmlscale.launch.doctor.machines import Machine


def machines(*resources: dict[str, float]) -> list[Machine]:
    return [Machine(f"n{number}", resources=each) for number, each in enumerate(resources)]


@pytest.mark.parametrize(
    ("asked", "nodes", "status", "word"),
    [
        ({"workers": 3}, [{"CPU": 1.0}] * 3, "ok", "3 workers fit on 3 nodes, without GPUs"),
        ({"workers": 4}, [{"CPU": 1.0}] * 3, "fail", "needs 4 CPUs, the cluster has 3"),
        ({"workers": 3, "cpus_per_worker": 2}, [{"CPU": 3.0}] * 2, "fail", "room for 2"),
        ({"workers": 2, "cpus_per_worker": 0.1}, [{"CPU": 0.2}], "ok", "2 workers"),
        ({"workers": 2, "device": "gpu"}, [{"CPU": 4.0, "GPU": 1.0}], "fail", "needs as many GPUs, the cluster has 1"),
        ({"workers": 2, "device": "gpu"}, [{"CPU": 4.0, "GPU": 1.0}] * 2, "ok", "a GPU each"),
        ({"workers": 2}, [{"CPU": 1.0, "GPU": 2.0}, {"CPU": 1.0}], "fail", "room for 1"),
    ],
)
def test_workers_fit_or_it_is_told_why_not(
    asked: dict[str, object], nodes: list[dict[str, float]], status: str, word: str
) -> None:
    (finding,) = judge_capacity(ResourcesConfig.model_validate(asked), machines(*nodes))
    assert finding.status == status
    assert word in f"{finding.what}: {finding.advice}"


def test_without_ray_this_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert judge_capacity(ResourcesConfig(workers=1), [Machine("here")])[0].status == "ok"
    (finding,) = judge_capacity(ResourcesConfig(workers=10**6), [Machine("here")])
    assert finding.status == "fail"


def test_nothing_is_said_where_no_node_answers() -> None:
    assert judge_capacity(ResourcesConfig(address="10.0.0.1:6379"), []) == []
