"""What a training leaves to look at: metrics with intervals, figures and a page, the same at any number of workers."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from dmlscale.cli import main
from dmlscale.data.packing.pack import ensure_packed
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.sources.folder import Folder
from tests.distributed.pool import GlooPool
from tests.integration.runs import task_of, work_on_rank, write_config

REPORT = "evaluation.report=true"
LOSSES = [{"name": "soft_triple", "options": {"centers_per_class": 3}}, {"name": "proxy_anchor", "weight": 0.1}]
FIGURES = {
    "retrieval_gallery",
    "recall_curve",
    "per_class",
    "distances",
    "roc",
    "embedding_map",
    "centers_used_soft_triple",
    "bank_neighbours_soft_triple",
    "bank_neighbours_proxy_anchor",
}


def figures_in(folder: Path) -> set[str]:
    for file in folder.glob("*.png"):
        assert np.ptp(np.asarray(Image.open(file))) > 100  # something is drawn
    return {file.stem for file in folder.glob("*.png")}


@pytest.fixture
def config_file(tmp_path: Path, glyphs: Path) -> Path:
    return write_config(tmp_path / "banks.yaml", glyphs, tmp_path, losses=LOSSES)


def test_the_same_metrics_and_files_at_any_number_of_workers(gloo_pool: GlooPool, config_file: Path) -> None:
    found: dict[int, dict[str, Any]] = {}
    for num_ranks in (1, 3):
        task = task_of(config_file, f"on{num_ranks}", REPORT, "train.steps=2")
        results = gloo_pool.run(num_ranks, work_on_rank, task)
        assert all(result == results[0] for result in results)
        assert figures_in(Path(results[0]["report"])) == FIGURES
        found[num_ranks] = results[0]
    assert {name.split("_1e")[0] for name in found[1]["metrics"]} >= {
        "recall_at_1", "mean_average_precision", "nmi", "ami", "f1", "auc", "eer", "tar_at_far", "open_set_auroc",
    }  # fmt: skip
    assert set(found[1]["left_out"]) == {"tar_at_far_1e-4"}
    for part in ("metrics", "raw_pixels"):
        assert found[3][part] == pytest.approx(found[1][part], abs=1e-9)
    for name, ends in found[1]["intervals"].items():
        assert found[3]["intervals"][name] == pytest.approx(ends, abs=1e-9)


def test_tracked_shown_and_evaluated_again(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    figures, again, page_folder = tmp_path / "figures.json", tmp_path / "again.json", tmp_path / "deep" / "page"
    assert main(["train", str(config_file), REPORT, "train.steps=2", "--local", "--json", str(figures)]) == 0
    said = capsys.readouterr().out
    result = json.loads(figures.read_text())
    assert "95 % interval" in said
    assert "left out      tar_at_far_1e-4: it takes 100000 pairs" in said
    assert f"report        {tmp_path}/runs/small/report/report.html" in said
    check_run(result)

    given = ["evaluate", result["folder"], "--local", "--json", str(again), "--report", str(page_folder)]
    assert main(given) == 0
    evaluated = json.loads(again.read_text())
    for part in ("metrics", "intervals", "raw_pixels", "left_out"):
        assert evaluated[part] == result[part]
    assert figures_in(page_folder) == FIGURES  # banks come from the checkpoint
    pages = [Path(folder, "report.html").read_text() for folder in (result["report"], evaluated["report"])]
    assert pages[0] == pages[1]
    assert len(re.findall("<img ", pages[0])) == len(FIGURES)
    words = unescape(pages[0])
    for fact in ("soft_triple + proxy_anchor", "glyphs", "test", "recall_at_1", "open_set_auroc"):
        assert fact in words


def check_run(result: dict[str, Any]) -> None:
    client = MlflowClient(result["tracking_uri"])
    metrics = client.get_run(result["tracking_run"]).data.metrics
    for name, value in result["metrics"].items():
        if not name.startswith("num_"):
            assert metrics[f"eval/test/{name}"] == pytest.approx(value)
    for name, ends in result["intervals"].items():
        assert [metrics[f"interval/test/{name}_{end}"] for end in ("low", "high")] == pytest.approx(ends)
    assert {name for name in metrics if name.startswith("eval/test/raw_pixels/")}
    assert client.get_metric_history(result["tracking_run"], "eval/test/auc")[0].step == 2
    files = {file.path for folder in ("", "figures") for file in client.list_artifacts(result["tracking_run"], folder)}
    assert {f"figures/{name}.png" for name in FIGURES} | {"report.html"} <= files


def test_another_dataset_has_no_banks_in_the_report(config_file: Path, glyphs: Path, tmp_path: Path) -> None:
    result, page = tmp_path / "result.json", tmp_path / "page"
    quick = ["train.steps=1", "evaluation.raw_pixels=false", "--local"]
    assert main(["train", str(config_file), *quick]) == 0
    assert not (tmp_path / "runs" / "small" / "report").exists()  # report=false
    other = pictures(tmp_path, {"train": [4, 4, 4], "test": [3, 3, 1]})
    options = [f"data.path={other}", "evaluation.raw_pixels=false", "--local", "--json", str(result)]
    assert main(["evaluate", str(tmp_path / "runs" / "small"), *options, "--report", str(page)]) == 0
    assert "not the dataset" in json.loads(result.read_text())["left_out"]["class banks"]
    assert figures_in(page) == {name for name in FIGURES if "_soft" not in name and "_proxy" not in name}


@pytest.mark.parametrize(
    ("sizes", "missing", "figures"),
    [
        ([4, 1], {"open_set_auroc": "it takes two classes with two samples each"}, {"roc", "distances"}),
        (
            [5],
            {"auc": "all samples that are compared are of one class", "intervals": "1 classes are too few"},
            {"distances"},
        ),
        ([3, 3], {"tar_at_far_1e-1": "it takes 100 pairs", "open_set_dir_at_far_1": "it takes 100 queries"}, {"roc"}),
    ],
    ids=["one of one sample", "one class", "two classes"],
)
def test_what_cannot_be_measured_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture, sizes: list[int], missing: dict[str, str], figures: set[str]
) -> None:
    packed = pictures(tmp_path, {"train": [4] * 12, "test": sizes})
    config_file = write_config(tmp_path / "few.yaml", packed, tmp_path, losses=[{"name": "soft_triple"}])
    result_file = tmp_path / "result.json"
    assert main(["train", str(config_file), REPORT, "train.steps=1", "--local", "--json", str(result_file)]) == 0
    result, said = json.loads(result_file.read_text()), capsys.readouterr().out
    for name, reason in missing.items():
        assert result["left_out"][name].startswith(reason)
        assert name not in result["metrics"]
        assert re.search(rf"left out .*\b{re.escape(name)}\b.*: {reason}", said)
    assert not [name for name in result["left_out"] if name.startswith(("figure", "report"))]
    assert figures <= figures_in(Path(result["report"]))


def pictures(tmp_path: Path, sizes: dict[str, list[int]]) -> Path:
    """A packed set of grey pictures, with as many in each class of each split as said."""
    rng = np.random.default_rng(0)
    for split, counts in sizes.items():
        for number, count in enumerate(counts):
            folder = tmp_path / "pictures" / split / f"{split} <b>{number}</b>"
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = np.clip(rng.normal(15 * number, 20, (24, 24)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{n}.png")
    packed = tmp_path / "packed"
    ensure_packed(Folder(path=str(tmp_path / "pictures")), packed, PackOptions(num_processes=1))
    return packed
