from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.sources.cub200 import Cub200
from tests.data.sources import official
from tests.data.sources.round_trip import assert_round_trip, listed

TREE = official.cub200()


def test_round_trip(tmp_path: Path) -> None:
    official.write_tar(TREE, tmp_path / "CUB_200_2011.tgz")
    index = assert_round_trip(Cub200(str(tmp_path)), tmp_path, num_processes=2)
    assert index.class_names[0] == "001.Black_footed_Albatross"


def test_first_hundred_classes_are_train(tmp_path: Path) -> None:
    official.write_folder(TREE, tmp_path)
    items = [item for item, _ in listed(Cub200(str(tmp_path)), tmp_path / "scratch").values()]
    assert Counter((item.split, item.class_name) for item in items) == {
        ("train", "001.Black_footed_Albatross"): 3,
        ("train", "002.Laysan_Albatross"): 3,
        ("train", "100.Brown_Pelican"): 3,
        ("test", "101.White_Pelican"): 3,
        ("test", "200.Common_Yellowthroat"): 3,
    }
    assert items[0].key == "001_Black_footed_Albatross/Black_footed_Albatross_0001_11"


def test_archive_and_folders_list_the_same(tmp_path: Path) -> None:
    whole = official.write_folder(TREE, tmp_path / "folder")
    official.write_tar(TREE, tmp_path / "archive" / "CUB_200_2011.tgz")
    paths = [
        whole / "CUB_200_2011",
        tmp_path / "archive",
        tmp_path / "archive" / "CUB_200_2011.tgz",
        official.write_tar(TREE, tmp_path / "plain" / "birds.tar"),
        official.write_zip(TREE, tmp_path / "zip" / "birds.zip"),
        official.write_folder(TREE, tmp_path / "deeper" / "downloads"),
    ]
    expected = listed(Cub200(str(whole)), tmp_path / "scratch")
    assert len(expected) == 15
    for path in paths:
        assert listed(Cub200(str(path)), tmp_path / "scratch") == expected


def test_a_missing_picture_is_rejected(tmp_path: Path) -> None:
    path = "002.Laysan_Albatross/Laysan_Albatross_0002_22.jpg"
    key = "002_Laysan_Albatross/Laysan_Albatross_0002_22"
    official.write_folder(official.without(TREE, f"CUB_200_2011/images/{path}"), tmp_path)
    assert_round_trip(Cub200(str(tmp_path)), tmp_path, unreadable={key})


def test_a_path_with_spaces_and_a_repeated_one(tmp_path: Path) -> None:
    rows = b"1 001.A B/x  y.jpg\r\n2 001.A B/x.y.jpg\r\n"
    lists = {"images.txt": rows, "image_class_labels.txt": b"1 1\r\n2 1\r\n", "classes.txt": b"1 001.A B\r\n"}
    pictures = {"images/001.A B/x  y.jpg": official.picture(1), "images/001.A B/x.y.jpg": official.picture(2)}
    official.write_folder({**lists, **pictures}, tmp_path / "data")
    found = listed(Cub200(str(tmp_path / "data")), tmp_path)
    assert list(found) == ["001_A B/x  y", "001_A B/x_y"]
    assert {item.class_name for item, _ in found.values()} == {"001.A B"}


@pytest.mark.parametrize(
    ("changed", "content", "message"),
    [
        ("images.txt", b"1 a.jpg\n2\n", r"images\.txt, line 2 is '2', must have the columns image_id, path"),
        ("images.txt", b"<html>\nNot found\n", r"images\.txt, line 1"),
        ("images.txt", b"\n\n", r"images\.txt has 0 rows"),
        (
            "images.txt",
            b"16 101.White_Pelican/new.jpg\n",
            r"image_class_labels\.txt has no class 1\.\.200 for image 16",
        ),
        ("image_class_labels.txt", b"1 201\n", r"classes\.txt has no class 1\.\.200 for image 1 "),
        ("image_class_labels.txt", b"one 1\n", r"image_class_labels\.txt, line 1 is 'one 1'"),
        (
            "classes.txt",
            None,
            r"cannot read .*classes\.txt \(No such file or directory\): restore it from https://data",
        ),
    ],
)
def test_a_damaged_list(changed: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    tree = official.without(TREE, f"CUB_200_2011/{changed}")
    official.write_folder(tree if content is None else {**tree, f"CUB_200_2011/{changed}": content}, tmp_path)
    with pytest.raises(DataError, match=message):
        list(Cub200(str(tmp_path)).open(tmp_path / "scratch").items())


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cub200: there is no .*absent: set path to the download from https://"):
        Cub200(str(tmp_path / "absent")).open(tmp_path)
    with pytest.raises(DataError, match=r"cub200: found no images\.txt or CUB_200_2011\.tgz in "):
        Cub200(str(tmp_path)).open(tmp_path)
    (tmp_path / "CUB_200_2011.tgz").write_bytes(b"\x1f\x8bcut off")
    with pytest.raises(DataError, match=r"CUB_200_2011\.tgz is damaged"):
        Cub200(str(tmp_path)).open(tmp_path)


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official.write_folder(TREE, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(listed(Cub200("~/CUB_200_2011"), tmp_path / "scratch")) == 15
