from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.sources.inshop import InShop
from tests.data.sources import official
from tests.data.sources.round_trip import assert_round_trip, listed

TREE = official.inshop()
IMAGES, LIST = official.below(TREE, "img"), TREE["list_eval_partition.txt"]
BENCHMARK = "In-shop Clothes Retrieval Benchmark"


def test_round_trip(tmp_path: Path) -> None:
    official.write_folder({f"{BENCHMARK}/Eval/list_eval_partition.txt": LIST}, tmp_path)
    official.write_zip(IMAGES, tmp_path / BENCHMARK / "Img" / "img.zip")
    assert_round_trip(InShop(str(tmp_path)), tmp_path)


def test_classes_and_splits(tmp_path: Path) -> None:
    official.write_folder(TREE, tmp_path)
    items = [item for item, _ in listed(InShop(str(tmp_path)), tmp_path).values()]
    # The item that is listed under two kinds of clothes has the first one.
    assert Counter((item.split, item.class_name, item.super_class) for item in items) == {
        ("train", "id_00000001", "WOMEN/Blouses_Shirts"): 3,
        ("train", "id_00000080", "MEN/Denim"): 2,
        ("query", "id_00000002", "WOMEN/Dresses"): 1,
        ("gallery", "id_00000002", "WOMEN/Dresses"): 1,
        ("gallery", "id_00000003", "MEN/Pants"): 1,
        ("query", "id_00000003", "MEN/Pants"): 1,
    }
    assert items[0].key == "img/WOMEN/Blouses_Shirts/id_00000001/02_1_front"


def test_every_layout_lists_the_same(tmp_path: Path) -> None:
    expected = listed(InShop(str(official.write_folder(TREE, tmp_path / "flat"))), tmp_path)
    assert len(expected) == 9
    eval_list = {"Eval/list_eval_partition.txt": LIST}
    official.write_folder(
        {**eval_list, **{f"Img/{name}": data for name, data in IMAGES.items()}}, tmp_path / "unpacked"
    )
    official.write_folder({"list_eval_partition.txt": LIST}, tmp_path / "beside")
    official.write_zip(IMAGES, tmp_path / "beside" / "img.zip")
    everything = {f"{BENCHMARK}/Eval/list_eval_partition.txt": LIST} | {
        f"{BENCHMARK}/Img/{name}": data for name, data in IMAGES.items()
    }
    whole = official.write_zip(everything, tmp_path / "whole" / "inshop.zip")
    for path in (tmp_path / "unpacked", tmp_path / "beside", tmp_path / "beside" / "img.zip", whole):
        assert listed(InShop(str(path)), tmp_path / "scratch") == expected


def test_a_missing_picture_is_rejected(tmp_path: Path) -> None:
    official.write_folder(official.without(TREE, "img/MEN/Denim/id_00000080/01_1_front.jpg"), tmp_path)
    assert_round_trip(InShop(str(tmp_path)), tmp_path, unreadable={"img/MEN/Denim/id_00000080/01_1_front"})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"gallery", b"galery", "into 'galery', must be one of train, query, gallery"),
        (b" id_00000080 train", b"", "line 6 is 'img/MEN/Denim/id_00000080/01_1_front.jpg'"),
        (b"9\n", b"52712\n", "has 9 rows, its first line tells 52712: restore it from https://"),
    ],
)
def test_a_damaged_list(old: bytes, new: bytes, message: str, tmp_path: Path) -> None:
    official.write_folder({**TREE, "list_eval_partition.txt": LIST.replace(old, new, 1)}, tmp_path)
    with pytest.raises(DataError, match=message):
        list(InShop(str(tmp_path)).open(tmp_path).items())


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    official.write_folder(IMAGES, tmp_path / "a")
    with pytest.raises(DataError, match=r"inshop: found no list_eval_partition\.txt in .*https://mmlab"):
        InShop(str(tmp_path / "a")).open(tmp_path)
    official.write_folder({"list_eval_partition.txt": LIST}, tmp_path / "b")
    with pytest.raises(DataError, match=r"inshop: found no img/WOMEN/ or img\.zip in "):
        InShop(str(tmp_path / "b")).open(tmp_path)
