"""What a config asks of its losses and of the data is refused before any work, with the key and the reason."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dmlscale.config.load import load_config
from dmlscale.config.schema import Config
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.storage.storage import Storage
from dmlscale.launch.build import is_reproducible
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.preflight import check_cheap, check_data
from tests.data.listed import Listed, item, mixed_items


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ("{name: triplet, memory_size: 64}", r"losses\.0\.memory_size: triplet cannot use .* mined\(\)"),
        ("[{name: softmax}, {name: n_pairs, memory_size: 64}]", r"losses\.1\.memory_size: n_pairs"),
        ("{name: norm_softmax, memory_size: 64}", "for pair losses"),
        ("{name: proxy_anchor, class_sampling: 0.1}", r"losses\.0\.class_sampling: proxy_anchor cannot sample"),
        ("{name: center, class_sampling: 0.1}", "center cannot sample"),
        ("{name: circle, class_sampling: 0.1}", "for class losses"),
        ("{name: circle, memory_size: 64, class_sampling: 0.1}", r"losses\.0\.class_sampling: circle"),
        ("{name: circle, memory_start: 64}", r"losses\.0\.memory_start=64 has no effect"),
        ("{name: circle, bank_lr: 1e-2}", "circle has no bank"),
        ("{name: cosface, class_sampling: 0.1, bank_weight_decay: 0.1}", "no weight decay"),
    ],
)
def test_losses_that_cannot_are_named(losses: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        check_cheap(load_config("configs/quickstart.yaml", [f"losses={losses}"]))


def test_statistics_over_ranks_are_not_reproducible() -> None:
    values = ["model.batch_norm=sync", "resources.device=gpu", "train.reproducible=true"]
    with pytest.raises(LaunchError, match=r"model\.batch_norm=sync exclude each other"):
        check_cheap(load_config("configs/quickstart.yaml", values))
    check_cheap(load_config("configs/quickstart.yaml", values[:-1]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.parallel=fsdp", "train.parallel=fsdp keeps a part"),
        ("train.compile=true", "exclude each other"),
    ],
)
def test_ways_of_training_that_are_not_reproducible_are_named(override: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        check_cheap(load_config("configs/quickstart.yaml", [override, "train.reproducible=true"]))
    config = load_config("configs/quickstart.yaml", [override])
    check_cheap(config)
    assert not is_reproducible(config, torch.device("cpu"))


@pytest.mark.parametrize(
    "losses",
    [
        "{name: triplet, mining: batch_hard, memory_size: 64, memory_start: 5}",
        "{name: cosface, class_sampling: 0.5, class_sampling_unbiased: false}",
        "[{name: softmax, bank_lr: 1e-2}, {name: center, weight: 0.003, bank_weight_decay: 0.1}]",
    ],
)
def test_those_that_can_pass(losses: str) -> None:
    check_cheap(load_config("configs/quickstart.yaml", [f"losses={losses}"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes to train on in eight shards, six to test."""
    path = tmp_path_factory.mktemp("preflight")
    pack(Listed(mixed_items()), path, PackOptions(shard_size_bytes=1, num_processes=1))
    return path


def config_of(folder: Path, *overrides: str) -> Config:
    small = ("data.classes_per_batch=8", "data.samples_per_class=2", "data.num_streams=4")
    return load_config("configs/quickstart.yaml", [f"data.path={folder}", *small, *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.classes_per_batch=16"], "classes_per_batch=16, but there are 12 classes"),
        (["data.samples_per_class=61"], "samples_per_class=61, but the largest class has 60 samples"),
        (["data.eval_split=val"], "no split 'val'"),
        (["data.sampling=hierarchical", "data.super_classes_per_batch=8"], "but there are 3 super-classes"),
        (["data.window_shards=2", "data.sampling=balanced"], "window_shards=2 goes with sampling=classes alone"),
        (["data.sampling=hard_triplets", "data.mine_candidates=900"], "mine_candidates=900, but the largest class"),
    ],
)
def test_data_that_cannot_be_batched_is_refused(folder: Path, overrides: list[str], message: str) -> None:
    index = Index.load(folder)
    check_data(config_of(folder), index)
    with pytest.raises(DataError, match=message):
        check_data(config_of(folder, *overrides), index)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.input=views"], "data.input='views', but .* was packed from 'image'"),
        (
            ["data.train_split=test", "data.eval_split=train", "losses={name: softmax}", "data.classes_per_batch=4"],
            "has labels up to 13, but class banks have a row for the 12 classes of the split 'train' only",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_data_is_refused(folder: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        check_data(config_of(folder, *overrides), Index.load(folder))


def test_nothing_to_retrieve_is_refused(folder: Path) -> None:
    index = Index.load(folder)
    first_of_each = np.unique(index.labels, return_index=True)[1]
    single = index.take(np.union1d(np.flatnonzero(index.columns.splits == 0), first_of_each))
    with pytest.raises(LaunchError, match=r"data\.eval_split='test': no class has two samples"):
        check_data(config_of(folder), single)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_shards_are_refused_or_told(folder: Path, tmp_path: Path, damage: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    if damage == "missing":
        (copy / "train-000003.tar").unlink()
    else:
        os.truncate(copy / "train-000003.tar", 600)
    said: list[str] = []
    with pytest.raises(LaunchError, match=r"32 of 240 samples of the split 'train' cannot be read: .*-000003\.tar"):
        check_data(config_of(copy), Index.load(copy), said.append)
    assert not said
    check_data(config_of(copy, "data.max_skipped=0.2"), Index.load(copy), said.append)
    assert len(said) == 1
    assert "32 of 240 samples of the split 'train' cannot be read" in said[0]


def test_shards_far_away_must_fit_into_the_cache(folder: Path) -> None:
    near = Index.load(folder)
    far = replace(near, storage=Storage.open("http://127.0.0.1:9/data"))
    train = near.split("train")
    whole_gb = near.shards.sizes[train.used_shards].sum() / 10**9
    check_data(config_of(folder, f"data.cache_gb={whole_gb}"), far)
    small = f"data.cache_gb={whole_gb * 0.9}"
    check_data(config_of(folder, small), near)
    with pytest.raises(LaunchError, match=r"the shards of 'train' take .* GB, but data.cache_gb=.*data.window_shards"):
        check_data(config_of(folder, small), far)
    check_data(config_of(folder, small, "data.window_shards=2"), far)
    with pytest.raises(LaunchError, match=r"two windows of shards take .* lower data\.window_shards"):
        check_data(config_of(folder, "data.cache_gb=1e-6", "data.window_shards=2"), far)


def test_windows_of_shards_that_are_sorted_by_class_are_told(tmp_path: Path) -> None:
    items = [item(f"{label}-{n}", f"class{label:02d}") for label in range(12) for n in range(32)]
    items += [item(f"test-{n}", "other", "test") for n in range(2)]
    # Runs as long as a class and shards as short as one: what a packer that walks over folders makes.
    pack(Listed(tuple(items)), tmp_path, PackOptions(shard_size_bytes=1, run_length=32, num_processes=1))
    said: list[str] = []
    check_data(config_of(tmp_path, "data.window_shards=2", "data.num_streams=2"), Index.load(tmp_path), said.append)
    assert len(said) == 1
    assert said[0].startswith("warning: 2 shards have 2 classes, where mixed ones would have 9")
