"""Trainings over damaged data end with the count of what was skipped, or with a clear error."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmlscale.cli import main
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.sources.glyphs import Glyphs
from tests.distributed.pool import GlooPool
from tests.integration.runs import curve, steps_of, task_of, work_on_rank, write_config

ALLOW_MANY = "data.max_skipped=0.5"


@pytest.fixture
def copy(glyphs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(glyphs, tmp_path / "copy"))


def shard_of(folder: Path, split: str) -> Path:
    return next(folder.glob(f"{split}-*.tar"))


def flip_bytes(folder: Path) -> int:
    index = Index.load(folder)
    rows = index.split("train").row_ids[::10]
    with shard_of(folder, "train").open("r+b") as file:
        for row in rows.tolist():
            file.seek(int(index.columns.offsets[row] + index.columns.sizes[row] // 2))
            file.write(b"\xff\x00\xff")
    return len(rows)


def cut_in_half(folder: Path) -> int:
    shard = shard_of(folder, "train")
    os.truncate(shard, shard.stat().st_size * 3 // 4)
    index = Index.load(folder)
    train = index.split("train").row_ids
    ends = index.columns.offsets[train] + index.columns.sizes[train]
    return int((ends > shard.stat().st_size).sum())


@pytest.mark.parametrize(
    ("damage", "kind"), [(flip_bytes, "changed since packing"), (cut_in_half, "cut off")], ids=["flipped", "truncated"]
)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_what_cannot_be_read_is_skipped_and_counted(
    gloo_pool: GlooPool, copy: Path, tmp_path: Path, damage: Callable[[Path], int], kind: str, num_ranks: int
) -> None:
    num_lost = damage(copy)
    config = write_config(tmp_path / "damaged.yaml", copy, tmp_path)
    steps = len(Index.load(copy).split("train")) // 48 + 2  # more than an epoch, so each sample was asked for
    task = task_of(config, "damaged", ALLOW_MANY, f"train.steps={steps}", "train.bank_start=random")
    result = gloo_pool.run(num_ranks, work_on_rank, task)[0]
    assert result["skipped"] == {kind: num_lost}
    assert list(steps_of(task.folder).values())[-1]["metrics"]["data/skipped_samples"] == num_lost
    said = (Path(task.folder) / "progress.jsonl").read_text()
    assert f"{num_lost} x {kind}" in said


def test_more_than_the_limit_is_an_error_that_names_the_last(gloo_pool: GlooPool, copy: Path, tmp_path: Path) -> None:
    flip_bytes(copy)
    config = write_config(tmp_path / "damaged.yaml", copy, tmp_path)
    task = task_of(config, "damaged", "data.max_skipped=0.001", "train.bank_start=random")
    with pytest.raises(Exception, match=r"more than data\.max_skipped allows .* has changed since it was packed"):
        gloo_pool.run(1, work_on_rank, task)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [empty, delete])
@pytest.mark.parametrize("name", ["index.arrow", "classes.arrow", "shards.arrow", "dataset.json", "train-000000.tar"])
def test_a_missing_or_empty_file_is_one_clear_error(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None]
) -> None:
    damage(copy / name)
    config = write_config(tmp_path / "damaged.yaml", copy, tmp_path)
    (tmp_path / "mlflow.db").unlink()  # nobody has one before the first run
    assert main(["train", str(config), "--local"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) <= 3
    assert str(copy) in error
    assert not (tmp_path / "mlflow.db").exists()  # no work was spent


def rewrite(folder: Path, **columns: Any) -> None:
    """Write the index anew with other columns."""
    import pyarrow as pa

    from dmlscale.data.packing.index_writer import write_table

    batch = pa.ipc.open_file(pa.memory_map(str(folder / "index.arrow"))).get_batch(0)
    for name, change in columns.items():
        position = batch.schema.get_field_index(name)
        changed = pa.array(
            change(batch.column(name).to_numpy(zero_copy_only=False).copy()), batch.schema.field(name).type
        )
        batch = batch.set_column(position, batch.schema.field(name), changed)
    (folder / "index.arrow").unlink()
    write_table(folder / "index.arrow", batch)


def test_a_label_outside_the_classes_is_refused(copy: Path) -> None:
    def spoil(labels: np.ndarray) -> np.ndarray:
        labels[3] = 4711
        return labels

    rewrite(copy, label=spoil)
    with pytest.raises(DataError, match=r"label 4711 is outside 0\.\.47"):
        Index.load(copy)


def test_another_offset_never_gives_another_samples_picture(gloo_pool: GlooPool, copy: Path, tmp_path: Path) -> None:
    """The index points at the bytes of the neighbour: these decode, but are of another class."""
    index = Index.load(copy)
    train = index.split("train").row_ids

    def swap(values: np.ndarray) -> np.ndarray:
        values[[train[0], train[9]]] = values[[train[9], train[0]]]
        return values

    rewrite(copy, offset=swap, size=swap)
    config = write_config(tmp_path / "damaged.yaml", copy, tmp_path)
    steps = len(train) // 48 + 2
    task = task_of(config, "damaged", ALLOW_MANY, f"train.steps={steps}", "train.bank_start=random")
    assert gloo_pool.run(1, work_on_rank, task)[0]["skipped"] == {"changed since packing": 2}


def test_offline_mining_needs_every_sample(gloo_pool: GlooPool, copy: Path, tmp_path: Path) -> None:
    flip_bytes(copy)
    config = write_config(tmp_path / "damaged.yaml", copy, tmp_path)
    task = task_of(
        config, "damaged", ALLOW_MANY, "data.sampling=hard_triplets", "data.mine_every=4", "train.bank_start=random"
    )
    with pytest.raises(Exception, match="offline mining needs all of them"):
        gloo_pool.run(1, work_on_rank, task)


def test_an_error_in_the_middle_of_a_training_is_a_failure(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2 is for what is refused before any work; as on a cluster, this is 1."""
    flip_bytes(copy)
    config = write_config(tmp_path / "damaged.yaml", copy, tmp_path)
    quick = ("train.steps=40", "train.bank_start=random", "data.max_skipped=0", "run.name=broken")
    assert main(["train", str(config), "--local", *quick]) == 1
    said = capsys.readouterr().err
    assert "error: rank 0: " in said
    assert "pack the dataset again" in said
    assert json.loads((tmp_path / "runs" / "broken" / "state.json").read_text())["name"] == "failed"


def test_a_run_is_not_continued_on_another_dataset(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "small.yaml", copy, tmp_path)
    quick = ("--local", "train.steps=8", "train.bank_start=random", "evaluation.raw_pixels=false")
    assert main(["train", str(config), *quick]) == 0
    shutil.rmtree(copy)
    pack(Glyphs(limit_classes=24, num_processes=1, seed=5), copy, PackOptions(num_processes=1))
    capsys.readouterr()
    assert main(["train", str(config), *quick[:1], "train.steps=12", "--resume"]) == 2
    assert "is not the dataset that" in capsys.readouterr().err


def flip_most(folder: Path, split: str, share: float) -> int:
    index = Index.load(folder)
    rows = index.split(split).row_ids
    lost = rows[np.random.default_rng(0).random(len(rows)) < share]
    with shard_of(folder, split).open("r+b") as file:
        for row in lost.tolist():
            file.seek(int(index.columns.offsets[row] + index.columns.sizes[row] // 2))
            file.write(b"\xff\x00\xff")
    return len(lost)


@pytest.mark.parametrize("reproducible", ["true", "false"])
def test_a_rank_without_any_readable_sample_takes_part_in_the_step(
    gloo_pool: GlooPool, copy: Path, tmp_path: Path, reproducible: str
) -> None:
    flip_most(copy, "train", 0.6)
    config = write_config(tmp_path / "damaged.yaml", copy, tmp_path)
    small = ("data.classes_per_batch=4", "data.samples_per_class=2", "train.bank_start=random", "data.max_skipped=0.9")
    curves = []
    for num_ranks in (1, 4):  # a rank of four has one group of two samples
        options = (*small, f"train.reproducible={reproducible}", "evaluation.raw_pixels=false")
        task = task_of(config, f"on{num_ranks}", *options)
        gloo_pool.run(num_ranks, work_on_rank, task)
        curves.append(curve(task.folder))
    assert len(curves[0]) == 20
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_samples_lost_to_the_evaluation_are_counted(
    gloo_pool: GlooPool, copy: Path, tmp_path: Path, num_ranks: int
) -> None:
    num_lost = flip_most(copy, "test", 0.2)
    config = write_config(tmp_path / "damaged.yaml", copy, tmp_path)
    options = (ALLOW_MANY, "train.steps=2", "train.bank_start=random", "evaluation.report=true")
    task = task_of(config, "damaged", *options)
    metrics = gloo_pool.run(num_ranks, work_on_rank, task)[0]["metrics"]
    assert metrics["num_skipped"] == num_lost
    assert metrics["num_queries"] == len(Index.load(copy).split("test")) - num_lost
    said = (Path(task.folder) / "progress.jsonl").read_text()
    assert f"{num_lost} samples to evaluate could not be read" in said
    assert (Path(task.folder) / "report" / "retrieval_gallery.png").is_file()


def test_shards_that_offline_mining_needs_are_asked_for_before_the_start(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut_in_half(copy)
    config = write_config(tmp_path / "damaged.yaml", copy, tmp_path)
    assert main(["train", str(config), "--local", ALLOW_MANY, "data.sampling=hard_triplets", "data.mine_every=4"]) == 2
    assert "hard_triplets needs all of them" in capsys.readouterr().err
