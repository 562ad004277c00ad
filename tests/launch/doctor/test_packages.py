from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from dmlscale.launch.doctor.machines import ThisMachine
from dmlscale.launch.doctor.packages import check_packages, judge_packages, look_at_packages

GOOD = {
    "python": "3.11",
    "dmlscale": "0.1.0",
    "torch": "2.15.0",
    "ray": "2.60.0",
    "mlflow": "3.17.2",
    "pyarrow": "25.0.1",
    "faiss-cpu": "1.15.1",
    "faiss-gpu": None,
    "faiss-gpu-cu12": None,
    "faiss-gpu-cu11": None,
}


def failures(versions: dict[str, dict[str, str | None]]) -> list[tuple[str, str]]:
    return [(f.node, f.what) for f in judge_packages(versions, list(versions)) if f.status == "fail"]


def test_the_packages_of_this_machine_fit() -> None:
    found = check_packages(ThisMachine("here"))
    assert [f.status for f in found] == ["ok"]
    assert f"torch {torch.__version__.partition('+')[0]}" in found[0].what


def test_equal_nodes_pass() -> None:
    found = judge_packages({"n0": GOOD, "n1": GOOD}, ["n0", "n1"])
    assert [(f.node, f.status) for f in found] == [("n0", "ok"), ("n1", "ok")]


def test_the_node_that_differs_from_most_is_named_even_if_it_is_the_head() -> None:
    old = GOOD | {"dmlscale": "0.0.9"}
    assert failures({"n0": GOOD, "n1": old, "n2": GOOD}) == [("n1", "dmlscale 0.0.9 here, 0.1.0 on n0, n2")]
    assert failures({"n0": old, "n1": GOOD, "n2": GOOD}) == [("n0", "dmlscale 0.0.9 here, 0.1.0 on n1, n2")]
    assert failures({"n0": GOOD, "n1": old}) == [("n1", "dmlscale 0.0.9 here, 0.1.0 on n0")]


def test_each_package_that_differs_is_told() -> None:
    other = GOOD | {"torch": "2.14.0", "python": "3.12"}
    assert failures({"n0": GOOD, "n1": other}) == [
        ("n1", "python 3.12 here, 3.11 on n0"),
        ("n1", "torch 2.14.0 here, 2.15.0 on n0"),
    ]


def test_a_missing_package_comes_with_the_command_that_installs_it() -> None:
    found = judge_packages({"n0": GOOD, "n1": GOOD | {"mlflow": None}}, ["n0", "n1"])
    (missing,) = (f for f in found if f.status == "fail")
    assert (missing.node, missing.what) == ("n1", "mlflow is not installed")
    assert "pip install mlflow==3.17.2" in missing.advice


def test_both_wheels_of_faiss_are_a_fault_and_none_is_one_too() -> None:
    both = GOOD | {"faiss-gpu": "1.15.1"}
    assert failures({"n0": both}) == [("n0", "faiss-cpu and faiss-gpu are installed, two of one module")]
    assert failures({"n0": GOOD | {"faiss-cpu": None}}) == [
        ("n0", "no faiss is installed, which evaluation needs"),
    ]


def test_a_head_without_gpu_may_have_the_other_wheel() -> None:
    gpu = GOOD | {"faiss-cpu": None, "faiss-gpu": "1.15.1"}
    assert [f.status for f in judge_packages({"n0": GOOD, "n1": gpu}, ["n0", "n1"])] == ["ok", "ok"]


def test_versions_are_those_that_python_would_import_from(tmp_path: Path) -> None:
    """What stands first on the path wins, as for the import itself."""
    info = tmp_path / "torch-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    script = "from dmlscale.launch.doctor.packages import look_at_packages as l; print(l()['torch'])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.stdout.strip() == "1.0"
    assert look_at_packages()["torch"] != "1.0"
