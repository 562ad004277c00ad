"""Banks that are brought together, and a report in which something goes wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dmlscale.config.load import load_config
from dmlscale.config.schema import Config
from dmlscale.data.index import Index
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.distributed.world import World
from dmlscale.evaluation.figures import roc
from dmlscale.launch.build import build_embedder, build_objective
from dmlscale.launch.display import left_out_lines, metrics_table
from dmlscale.launch.evaluation.bank_sample import BankSample, gather_banks, load_banks, trained_labels
from dmlscale.launch.evaluation.evaluator import Evaluator
from dmlscale.launch.evaluation.report import REPORT_FILE, draw_report
from dmlscale.launch.ranks import OverRanks
from dmlscale.training import checkpoint
from dmlscale.training.state import Record, tensors
from tests.data.listed import Listed, item
from tests.distributed.pool import GlooPool
from tests.integration.runs import CPU, write_config
from tests.launch.vectors.embedded import draw

LOSSES = [{"name": "soft_triple", "options": {"centers_per_class": 2}}, {"name": "triplet"}, {"name": "proxy_nca"}]
NUM_CLASSES = 30


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty classes to train on and ten others, three pictures each, in mixed order of labels."""
    splits = ["test" if number % 3 == 1 else "train" for number in range(NUM_CLASSES)]
    items = tuple(
        item(f"s{number}-{n}", f"c{number:02d}", split, parts=(draw(10 * number + n),), extension="png")
        for number, split in enumerate(splits)
        for n in range(3)
    )
    folder = tmp_path_factory.mktemp("data") / "few"
    pack(Listed(items, "image"), folder, PackOptions(num_processes=1))
    return folder


@pytest.fixture
def config(packed: Path, tmp_path: Path) -> Config:
    return load_config(write_config(tmp_path / "few.yaml", packed, tmp_path, losses=LOSSES), ["data.channels=3"])


def banks_on_rank(world: World, config: Config, trained: np.ndarray, most: int) -> list[BankSample]:
    objective = build_objective(config, NUM_CLASSES, world)
    return gather_banks(objective, trained, OverRanks(world, CPU), most_numbers=most)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("most", [10_000, 3 * 2 * 16])
def test_trained_rows_of_all_ranks(
    gloo_pool: GlooPool, config: Config, packed: Path, num_ranks: int, most: int
) -> None:
    trained = trained_labels(config, Index.load(packed))
    assert trained.tolist() == sorted(set(Index.load(packed).split("train").labels.tolist()))
    whole = [bank.weight.detach().numpy() for bank in build_objective(config, NUM_CLASSES, World()).banks()]
    results = gloo_pool.run(num_ranks, banks_on_rank, config, trained, most)
    for found in results:
        assert [bank.name for bank in found] == ["soft_triple", "proxy_nca"]
        for bank, weights in zip(found, whole, strict=True):
            np.testing.assert_array_equal(bank.weights, weights[bank.labels])
            assert np.isin(bank.labels, trained).all()
            assert (np.diff(bank.labels) > 0).all()
    assert [len(bank.labels) for bank in results[0]] == ([20, 20] if most == 10_000 else [3, 6])


def save_on_rank(world: World, config: Config, folder: Path) -> str:
    objective = build_objective(config, NUM_CLASSES, world)
    stored = tensors(build_embedder(config), objective, None, world)
    record = Record(3, {"epoch": 0, "step": 3}, world.num_ranks, config.model_dump(mode="json"), {})
    return str(checkpoint.save(folder, stored, record, world, keep=1))


def test_banks_of_a_checkpoint_of_several_ranks(gloo_pool: GlooPool, config: Config, tmp_path: Path) -> None:
    path = Path(gloo_pool.run(3, save_on_rank, config, tmp_path / "checkpoints")[0])
    trained = np.array([0, 5, 10])
    whole = [bank.weight.detach().numpy() for bank in build_objective(config, NUM_CLASSES, World()).banks()]
    found, left_out = load_banks(path, config, NUM_CLASSES, trained)
    assert left_out == {}
    assert [bank.name for bank in found] == ["soft_triple", "proxy_nca"]
    for bank, weights in zip(found, whole, strict=True):
        np.testing.assert_array_equal(bank.weights, weights[trained])
    nothing, why = load_banks(path, config, NUM_CLASSES + 1, trained)
    assert nothing == []
    assert set(why) == {"bank of soft_triple", "bank of proxy_nca"}
    assert "number of classes has changed" in why["bank of proxy_nca"]
    nothing, why = load_banks(path, config, 2_000_000, trained)
    assert nothing == []
    assert why["bank of soft_triple"] == "(2000000, 2, 16) is too large to be loaded for a picture"


@pytest.fixture
def evaluator(config: Config, packed: Path) -> Evaluator:
    return Evaluator(config, Index.load(packed), World(), CPU)


def test_a_figure_that_fails_is_named_and_the_others_are_there(
    config: Config, packed: Path, tmp_path: Path, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "report"
    final = evaluator.finish(build_embedder(config), everything=True)
    diverged = BankSample("soft_triple", np.arange(3), np.full((3, 2, 16), np.nan, np.float32))
    given = (evaluator, final, [diverged], folder, config, Index.load(packed), World())
    (folder / "roc.png").mkdir(parents=True)  # where a file should be
    written = draw_report(*given, step=1)
    assert set(written.left_out) == {"report"}
    (folder / "roc.png").rmdir()

    (folder / "centers_used.png").write_bytes(b"of an earlier report")
    monkeypatch.setattr(roc, "roc_curve", lambda *_, **__: 1 / 0)
    written = draw_report(*given, step=1)
    assert set(written.left_out) == {"figure roc", "figure centers_used", "figure bank_neighbours"}
    assert written.left_out["figure roc"].startswith("ZeroDivisionError")
    assert "diverged" in written.left_out["figure centers_used"]
    assert {file.name for file in written.files} == {file.name for file in folder.iterdir()}
    assert {"per_class.png", "embedding_map.png", REPORT_FILE} <= {file.name for file in folder.iterdir()}


def test_a_folder_that_cannot_be_written_ends_nothing(
    config: Config, packed: Path, tmp_path: Path, evaluator: Evaluator
) -> None:
    final = evaluator.finish(build_embedder(config), everything=True)
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "report"
    written = draw_report(evaluator, final, [], folder, config, Index.load(packed), World(), step=1)
    assert written.files == []
    assert "NotADirectoryError" in written.left_out["report"]


def test_what_the_curve_needs_is_not_reported(config: Config, packed: Path, evaluator: Evaluator) -> None:
    net = build_embedder(config)
    final = evaluator.finish(net, everything=True)
    result = final.result()
    recalls = {name for name in result["metrics"] if name.startswith("recall")}
    assert recalls == {f"recall_at_{k}" for k in config.evaluation.ks}
    assert recalls < {name for name in result["raw_pixels"]}
    assert not {name for part in ("raw_pixels", "intervals") for name in result[part] if "at_100" in name}
    cheap, _ = evaluator.model(net)
    assert {name: result["metrics"][name] for name in cheap} == cheap
    assert not {"auc", "mean_average_precision", "open_set_auroc"} & set(cheap)
    names = list(result["metrics"])
    assert names == sorted(names, key=lambda name: name.startswith("num_"))
    logged = final.logged("test")
    assert logged["interval/test/recall_at_1_low"] <= result["metrics"]["recall_at_1"]
    assert logged["eval/test/raw_pixels/map_at_r"] == result["raw_pixels"]["map_at_r"]


def test_the_table_and_its_lines() -> None:
    table = metrics_table("title", {"a": 0.5, "num_b": 1234.0}, {"a": 0.25}, {"a": (0.4, 0.6)})
    assert [list(column.cells) for column in table.columns] == [
        ["a", "num_b"],
        ["0.5000", "1,234"],
        ["0.4000 \N{EN DASH} 0.6000", ""],
        ["0.2500", ""],
    ]
    assert len(metrics_table("title", {"a": 0.5}, {}).columns) == 2
    assert left_out_lines({"a": "too few", "b": "gone", "c": "too few"}) == [
        "left out      a, c: too few",
        "left out      b: gone",
    ]


def test_all_ranks_show_the_same(gloo_pool: GlooPool, config: Config, packed: Path) -> None:
    expected = shown_on_rank(World(), config, packed)
    assert expected[0]
    for num_ranks in (2, 4):
        for found in gloo_pool.run(num_ranks, shown_on_rank, config, packed):
            assert found == expected


def shown_on_rank(world: World, config: Config, packed: Path) -> tuple[list, list[int]]:
    torch.manual_seed(0)
    evaluator = Evaluator(config, Index.load(packed), world, CPU)
    _, local = evaluator.model(build_embedder(config))
    rows = [(row.id, row.kind, [neighbor.id for neighbor in row.neighbors]) for row in evaluator.shown(local)]
    return rows, evaluator.sample(local, 6).ids.tolist()
