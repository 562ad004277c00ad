from __future__ import annotations

from pathlib import Path

from dmlscale.launch.doctor.dataset import check_dataset
from tests.launch.doctor.machines import RoomsOfOne
from tests.launch.doctor.server import answering


def dataset(folder: Path, text: str = "{}") -> str:
    folder.mkdir()
    (folder / "dataset.json").write_text(text)
    return str(folder)


def test_one_dataset_for_all_passes(tmp_path: Path) -> None:
    found = check_dataset(RoomsOfOne(["n0", "n1"]), dataset(tmp_path / "a"), {}, "dataset.json")
    assert [(f.node, f.status) for f in found] == [("n0", "ok"), ("n1", "ok")]


def test_a_node_without_it_or_with_another_is_named(tmp_path: Path) -> None:
    good, other = dataset(tmp_path / "good"), dataset(tmp_path / "other", "{1}")
    mounts = {name: {"/data": good} for name in ("n0", "n3")} | {"n1": {"/data": other}, "n2": {"/data": "/nowhere"}}
    found = check_dataset(RoomsOfOne(["n0", "n1", "n2", "n3"], mounts), "/data", {}, "dataset.json")
    assert {f.node: f.status for f in found} == {"n0": "ok", "n1": "fail", "n2": "fail", "n3": "ok"}
    assert "another dataset" in found[1].what
    assert "cannot be read" in found[2].what


def test_one_behind_a_web_server_is_fetched() -> None:
    def answer(path: str, headers: object) -> tuple[int, str]:
        return (200, "{}") if path == "/set/dataset.json" else (404, "")

    with answering(answer) as server:
        there = check_dataset(RoomsOfOne(["n0"]), f"http://{server}/set", {}, "dataset.json")
        missing = check_dataset(RoomsOfOne(["n0"]), f"http://{server}/none", {}, "dataset.json")
    assert [f.status for f in there] == ["ok"]
    assert [f.status for f in missing] == ["fail"]
