from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.sources.inaturalist2018 import INaturalist2018
from tests.data.sources import official
from tests.data.sources.round_trip import assert_round_trip, listed

TREE = official.inaturalist2018()
IMAGES, LISTS = official.below(TREE, "train_val2018"), official.below(TREE, "Inat_dataset_splits")


def test_round_trip(tmp_path: Path) -> None:
    official.write_tar(IMAGES, tmp_path / "train_val2018.tar.gz")
    official.write_zip(LISTS, tmp_path / "Inat_dataset_splits.zip")
    assert_round_trip(INaturalist2018(str(tmp_path)), tmp_path)


def test_the_lists_say_what_is_in_which_split(tmp_path: Path) -> None:
    official.write_folder(TREE, tmp_path)
    found = listed(INaturalist2018(str(tmp_path)), tmp_path)
    assert Counter((item.split, item.class_name, item.super_class) for item, _ in found.values()) == {
        ("train", "Plantae/7477", "Plantae"): 2,
        ("train", "Plantae/5988", "Plantae"): 2,
        ("train", "Aves/2761", "Aves"): 2,
        ("test", "Aves/3000", "Aves"): 3,
        ("test", "Fungi/1111", "Fungi"): 3,
    }
    assert next(iter(found)) == f"train_val2018/Plantae/7477/{1:032x}"


def test_every_layout_lists_the_same(tmp_path: Path) -> None:
    expected = listed(INaturalist2018(str(official.write_folder(TREE, tmp_path / "unpacked"))), tmp_path)
    beside = {name.split("/")[1]: data for name, data in LISTS.items()}
    official.write_folder({**beside, **IMAGES}, tmp_path / "flat")
    official.write_tar(IMAGES, official.write_folder(LISTS, tmp_path / "tar") / "train_val2018.tar")
    official.write_tar(IMAGES, official.write_folder(beside, tmp_path / "gz") / "train_val2018.tar.gz")
    for path in (tmp_path / "flat", tmp_path / "tar", tmp_path / "gz", tmp_path / "gz" / "train_val2018.tar.gz"):
        assert listed(INaturalist2018(str(path)), tmp_path / "scratch") == expected


def test_a_missing_picture_is_rejected(tmp_path: Path) -> None:
    key = f"train_val2018/Aves/2761/{2:032x}"
    official.write_folder(official.without(TREE, f"{key}.jpg"), tmp_path)
    assert_round_trip(INaturalist2018(str(tmp_path)), tmp_path, unreadable={key})


def test_a_damaged_list(tmp_path: Path) -> None:
    official.write_folder({**TREE, "Inat_dataset_splits/Inaturalist_test_set1.txt": b"7477/3b60.jpg\n"}, tmp_path)
    with pytest.raises(DataError, match=r"Inaturalist_test_set1\.txt lists '7477/3b60\.jpg', must be train_val2018/"):
        list(INaturalist2018(str(tmp_path)).open(tmp_path).items())


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    official.write_folder(IMAGES, tmp_path / "a")
    with pytest.raises(DataError, match=r"found no Inaturalist_train_set1\.txt or Inat_dataset_splits\.zip.*Smooth_AP"):
        INaturalist2018(str(tmp_path / "a")).open(tmp_path)
    official.write_folder(LISTS, tmp_path / "b")
    with pytest.raises(DataError, match=r"found no train_val2018/ or train_val2018\.tar\.gz .*visipedia"):
        INaturalist2018(str(tmp_path / "b")).open(tmp_path)
