"""A run whose evaluation looks the queries of one split up in another, as In-Shop has it."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from dmlscale.cli import main
from dmlscale.config.load import load_config
from dmlscale.data.index import Index
from dmlscale.data.inputs import InputKind
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.reader import Reader
from dmlscale.data.sources import Item, OpenSource
from dmlscale.distributed.world import World
from dmlscale.evaluation.embed import Embedded, raw_pixels
from dmlscale.evaluation.figures.retrieval_gallery import retrieval_gallery
from dmlscale.launch.build import build_decoder, build_embedder, build_eval_batches
from dmlscale.launch.evaluation.evaluator import Evaluator
from dmlscale.launch.evaluation.report import pictures_of
from tests.distributed.pool import GlooPool
from tests.evaluation.oracles import brute_force
from tests.integration.runs import CPU, task_of, work_on_rank, write_config

SIDE = 32
SPLITS = ("data.eval_split=query", "data.gallery_split=gallery")
REPORT = "evaluation.report=true"
MARKS = {"query": 0, "gallery": 255, "train": 128}  # first pixel: tells where a picture on the figure comes from
NUM_LONE, NUM_QUERIES, NUM_GALLERY = 2, 16, 28


@dataclass(frozen=True)
class Patterns:
    """Classes are grey patterns; "query" and "gallery" share eight, and each has one of its own."""

    input: ClassVar[InputKind] = "image"

    def open(self, scratch: Path) -> OpenSource:
        return self

    def items(self) -> Iterator[Item]:
        shared = [f"item{n}" for n in range(8)]
        for split, classes, count in (
            ("train", [f"train{n}" for n in range(16)], 6),
            ("query", [*shared, "without_match"], 2),
            ("gallery", [*shared, "distractor"], 3),
            ("gallery", ["distractor2"], 1),
        ):
            for name in classes:
                for n in range(count):
                    ref = f"{split}/{name}/{n}"
                    yield Item(ref, name, split, ref, "png")

    def load(self, ref: str) -> Sequence[bytes]:
        split, name, _ = ref.split("/")
        pattern = np.random.default_rng(zlib.crc32(name.encode())).integers(60, 196, (4, 4))
        noise = np.random.default_rng(zlib.crc32(ref.encode())).normal(0, 40, (SIDE, SIDE))
        picture = np.clip(np.kron(pattern, np.ones((8, 8))) + noise, 0, 255).astype(np.uint8)
        picture[0, 0] = MARKS[split]
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        return (file.getvalue(),)


@pytest.fixture(scope="module")
def patterns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "patterns"
    pack(Patterns(), folder, PackOptions(num_processes=1))
    return folder


@pytest.fixture
def config_file(tmp_path: Path, patterns: Path) -> Path:
    return write_config(tmp_path / "patterns.yaml", patterns, tmp_path)


def test_train_and_evaluate(
    capsys: pytest.CaptureFixture[str], config_file: Path, patterns: Path, tmp_path: Path
) -> None:
    figures, again = tmp_path / "figures.json", tmp_path / "again.json"
    command = ["train", str(config_file), *SPLITS, "train.steps=5", REPORT, "--local", "--json", str(figures)]
    assert main(command) == 0
    assert "query split of patterns" in capsys.readouterr().out
    result = json.loads(figures.read_text())
    metrics = result["metrics"]
    assert {"recall_at_1", "recall_at_8", "precision_at_1", "r_precision", "map_at_r", "nmi"} <= set(metrics)
    counts = {name: value for name, value in metrics.items() if name.startswith("num_")}
    parts = [counts.pop(f"num_open_set_{part}") for part in ("gallery", "known", "unknown")]
    assert min(parts) > 0
    assert sum(parts) == NUM_QUERIES + NUM_LONE + NUM_GALLERY  # queries and gallery together
    assert counts == {
        "num_queries": NUM_QUERIES,
        "num_lone_queries": NUM_LONE,
        "num_skipped": 0,
        "num_gallery": NUM_GALLERY,
        "num_classes": 11,
        "num_clustered": 46,
        "num_map_queries": NUM_QUERIES,
        "num_same_pairs": 8 * 10 + 1 + 3,  # of queries and gallery together
        "num_different_pairs": 46 * 45 // 2 - 84,
    }
    assert result["raw_pixels"] == pytest.approx(raw_pixels_by_brute_force(config_file), abs=1e-12)

    tracked = MlflowClient(result["tracking_uri"]).get_run(result["tracking_run"])
    assert tracked.data.params["data.gallery_split"] == "gallery"
    assert {"eval/query/recall_at_1", "eval/query/map_at_r", "eval/query/raw_pixels/recall_at_1"} <= set(
        tracked.data.metrics
    )
    assert (Path(result["folder"]) / "report" / "retrieval_gallery.png").stat().st_size > 0

    assert main(["evaluate", result["folder"], "--local", "--json", str(again)]) == 0
    assert json.loads(again.read_text())["metrics"] == metrics
    assert main(["evaluate", result["folder"], "data.gallery_split=null", "--local", "--json", str(again)]) == 0
    among_themselves = json.loads(again.read_text())["metrics"]
    assert among_themselves["num_queries"] == NUM_QUERIES + NUM_LONE  # the class that the gallery lacks has two queries
    assert "num_gallery" not in among_themselves


def raw_pixels_by_brute_force(config_file: Path) -> dict[str, float]:
    config = load_config(config_file, SPLITS)
    index = Index.load(config.data.path)
    queries, gallery = (raw_pixels(build_eval_batches(config, index, split, World())) for split in ("query", "gallery"))
    there = gallery.embeddings.numpy(), gallery.labels.numpy()
    return brute_force(queries.embeddings.numpy(), queries.labels.numpy(), config.evaluation.ks, there)


def test_the_same_figures_at_any_number_of_workers(gloo_pool: GlooPool, config_file: Path) -> None:
    """Batches of eight samples: three ranks take parts of either split, and some none of one."""
    figures = {}
    for num_ranks in (1, 2, 3):
        task = task_of(config_file, f"w{num_ranks}", *SPLITS, "train.steps=2", "evaluation.batch_size=8", REPORT)
        results = gloo_pool.run(num_ranks, work_on_rank, task)
        assert all(result["metrics"] == results[0]["metrics"] for result in results)
        assert (Path(task.folder) / "report" / "retrieval_gallery.png").is_file()
        figures[num_ranks] = results[0]
    for num_ranks in (2, 3):
        for part in ("metrics", "raw_pixels"):
            assert figures[num_ranks][part] == pytest.approx(figures[1][part], abs=1e-12)


def test_the_picture_shows_neighbours_from_the_gallery(config_file: Path) -> None:
    config = load_config(config_file, [*SPLITS, "evaluation.gallery_queries=5"])
    index = Index.load(config.data.path)
    evaluator = Evaluator(config, index, World(), CPU)
    _, local = evaluator.model(build_embedder(config))
    assert isinstance(local, Embedded)
    pictures = pictures_of(Reader(index, build_decoder(config, index)))
    figure = retrieval_gallery(evaluator.shown(local), pictures)
    drawn = [np.asarray(axes.images[0].get_array())[0, 0] for axes in figure.axes if axes.images]
    assert drawn.count(MARKS["query"]) == 5
    assert drawn.count(MARKS["gallery"]) == 5 * 7
    assert len(drawn) == 5 * 8


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["data.gallery_split=galery"], ["no split 'galery'", "there are:", "gallery", "query", "train"]),
        (["data.gallery_split=train"], ["'query'", "'train'", "no class in common", "data.gallery_split=null"]),
        (["data.gallery_split=query"], ["data.gallery_split", "eval_split itself"]),
        (["data.eval_split=tset"], ["no split 'tset'"]),
    ],
)
def test_splits_that_do_not_fit_are_refused_before_training(
    capsys: pytest.CaptureFixture[str], config_file: Path, overrides: list[str], messages: list[str]
) -> None:
    assert main(["train", str(config_file), *SPLITS, *overrides, "--local"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert "step " not in said.out
    for message in messages:
        assert message in said.err
