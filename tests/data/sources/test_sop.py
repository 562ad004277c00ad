from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.sources.sop import StanfordOnlineProducts
from tests.data.sources import official
from tests.data.sources.round_trip import assert_round_trip, listed

TREE = official.sop()
ZIP = "Stanford_Online_Products.zip"


def test_round_trip(tmp_path: Path) -> None:
    official.write_zip(TREE, tmp_path / ZIP)
    index = assert_round_trip(StanfordOnlineProducts(str(tmp_path)), tmp_path)
    codes, names = index.super_classes()
    assert sorted({names[code] for code in codes}) == ["bicycle", "coffee_maker", "table"]


def test_classes_and_splits(tmp_path: Path) -> None:
    official.write_folder(TREE, tmp_path)
    found = listed(StanfordOnlineProducts(str(tmp_path)), tmp_path)
    assert Counter((item.split, item.class_name, item.super_class) for item, _ in found.values()) == {
        ("train", "bicycle/00001", "bicycle"): 3,
        ("train", "bicycle/00002", "bicycle"): 3,
        ("train", "coffee_maker/00003", "coffee_maker"): 3,
        ("test", "bicycle/00004", "bicycle"): 3,
        ("test", "table/22634", "table"): 3,
    }
    assert found["bicycle_final/111085122872_0"][0].extension == "jpg"


def test_archive_and_folders_list_the_same(tmp_path: Path) -> None:
    folder = official.write_folder(TREE, tmp_path / "folder")
    paths = [
        folder / "Stanford_Online_Products",
        official.write_zip(TREE, tmp_path / "zip" / ZIP),
        tmp_path / "zip",
        official.write_zip(TREE, tmp_path / "renamed" / "products.zip"),
        official.write_tar(TREE, tmp_path / "tar" / "products.tar.gz"),
    ]
    expected = listed(StanfordOnlineProducts(str(folder)), tmp_path)
    assert len(expected) == 15
    for path in paths:
        assert listed(StanfordOnlineProducts(str(path)), tmp_path / "scratch") == expected


def test_missing_and_damaged_pictures_are_rejected(tmp_path: Path) -> None:
    missing = "bicycle_final/111085122872_0"
    empty = "table_final/111085145505_2"
    tree = official.without(TREE, f"Stanford_Online_Products/{missing}.JPG")
    official.write_zip({**tree, f"Stanford_Online_Products/{empty}.JPG": b"\xff\xd8 no jpeg"}, tmp_path / ZIP)
    assert_round_trip(StanfordOnlineProducts(str(tmp_path)), tmp_path, unreadable={missing, empty})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (b"image_id class_id super_class_id path\r\n1 1 bicycle_final/1.JPG\r\n", r"Ebay_train\.txt.*, line 2 is"),
        (b"id class super path\r\n1 1 1 bicycle_final/1.JPG\r\n", r"Ebay_train\.txt.*, line 1 is"),
        (b"image_id class_id super_class_id path\r\n", r"Ebay_train\.txt.* has 0 rows"),
        (b"", r"Ebay_train\.txt.* has 0 rows"),
    ],
)
def test_a_damaged_list(rows: bytes, message: str, tmp_path: Path) -> None:
    official.write_zip({**TREE, "Stanford_Online_Products/Ebay_train.txt": rows}, tmp_path / ZIP)
    with pytest.raises(DataError, match=message):
        list(StanfordOnlineProducts(str(tmp_path)).open(tmp_path).items())


def test_a_missing_list(tmp_path: Path) -> None:
    official.write_folder(official.without(TREE, "Stanford_Online_Products/Ebay_test.txt"), tmp_path / "a")
    with pytest.raises(DataError, match=r"cannot read .*Ebay_test\.txt.*https://cvgl"):
        list(StanfordOnlineProducts(str(tmp_path / "a")).open(tmp_path).items())
    official.write_folder(official.without(TREE, "Stanford_Online_Products/Ebay_train.txt"), tmp_path / "b")
    with pytest.raises(DataError, match=r"found no Ebay_train\.txt or Stanford_Online_Products\.zip"):
        StanfordOnlineProducts(str(tmp_path / "b")).open(tmp_path)
