"""dmlscale plan: from the command line to figures, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmlscale.cli import main
from dmlscale.config.load import load_config
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.launch.plan.given import find_given
from tests.data.listed import Listed, mixed_items

PROXIES = "configs/glyphs/proxy_anchor.yaml"


def test_figures_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    arguments = ["plan", PROXIES, "data.num_streams=8", "--workers", "8", "--device", "h100"]
    assert main([*arguments, "--classes", "1000000", "--shape", "1,32,32", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    bank = 1_000_000 // 8 * 128 * 4
    assert figures["memory"]["held"]["class banks"] == bank
    assert figures["memory"]["held"]["optimizer of the banks"] == 2 * bank
    assert figures["largest"]["classes"] > 1_000_000
    embeddings = next(c for c in figures["sent"]["every_step"] if c["what"] == "embeddings")
    assert embeddings["payload"] == 160 * 128 * 4
    assert embeddings["wire"] == embeddings["payload"] * 7 / 8
    printed = capsys.readouterr().out
    assert "fits" in printed
    assert figures["seconds"]["bound_by"] in printed


def test_a_run_that_does_not_fit_ends_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", PROXIES, "--workers", "1", "--device", "a100", "--shape", "1,32,32"]
    assert main([*arguments, "--classes", str(10**9)]) == 1
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--workers", "2", "--device", "b200", "--classes", "9", "--shape", "1,32,32"],
            "--device b200: known are h100",
        ),
        (["--workers", "5", "--device", "cpu"], "num_streams"),
        (["--workers", "2", "--device", "cpu", "--shape", "1,a"], "--shape 1,a"),
        (["--workers", "2", "--device", "cpu", "--classes", "0", "--shape", "1,9,9"], "--classes must be at least 1"),
        (["--workers", "2", "--device", "cpu", "--shape", "1,32,32", "data.path=/nothing/here"], "give --classes N"),
        (["--workers", "2", "--device", "cpu", "data.path=/nothing/here"], "give --shape"),
        (["--workers", "2", "--device", "cpu", "--per-node", "0"], "--per-node"),
    ],
)
def test_what_is_not_known_is_asked_for(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", PROXIES, *more]) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_that_makes_one_size_needs_no_shape(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "configs/quickstart.yaml", "data.path=/nothing/here", "--workers", "2", "--device", "h200"]
    assert main([*arguments, "data.transform={name: papers_train, size: 32, normalize: none}"]) == 0
    assert "160 samples" in capsys.readouterr().out


def test_the_dataset_tells_classes_and_shape(tmp_path: Path) -> None:
    pack(Listed(mixed_items()), tmp_path / "data", PackOptions(num_processes=1))
    overrides = [f"data.path={tmp_path / 'data'}", "data.channels=1"]
    found = find_given(load_config(PROXIES, overrides), None, None)
    assert found == ((1, 8, 8), 12)
    assert find_given(load_config(PROXIES, overrides), (1, 9, 9), None) == ((1, 9, 9), 12)
