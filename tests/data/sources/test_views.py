from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.sources import SOURCES
from dmlscale.data.sources.views import Views
from tests.data.sources import official
from tests.data.sources.round_trip import assert_round_trip, listed

OBJECTS = [("train", "car", "c.1"), ("train", "car", "c2"), ("train", "mug", "m1"), ("test", "mug", "m1")]
FORMS = {
    "<split>/<class>/<object>/<view>": "{split}/{class}/{object}/{view:03d}.png",
    "<class>/<split>/<object>_<view>": "{class}/{split}/{object}_{view:03d}.jpg",
    "<class>/<split>/<object>.obj.shaded_v<view>": "{class}/{split}/{object}.obj.shaded_v{view:03d}.png",
}


def tree(form: str, num_views: int = 3) -> dict[str, bytes]:
    return official.pictures(
        [
            form.format(**{"split": split, "class": name, "object": instance, "view": view})
            for split, name, instance in OBJECTS
            for view in range(1, num_views + 1)
        ]
    )


def test_registry_finds_it() -> None:
    assert SOURCES["views"] is Views


@pytest.mark.parametrize("pattern", FORMS)
def test_round_trip_of_every_layout(tmp_path: Path, pattern: str) -> None:
    files = tree(FORMS[pattern])
    official.write_folder(files, tmp_path / "data")
    source = Views(str(tmp_path / "data"), pattern, num_views=3)
    found = listed(source, tmp_path)
    assert {(item.split, item.class_name) for item, _ in found.values()} == {row[:2] for row in OBJECTS}
    assert set(found) == {"train/car/c_1", "train/car/c2", "train/mug/m1", "test/mug/m1"}
    first = FORMS[pattern].format(**{"split": "train", "class": "car", "object": "c.1", "view": 1})
    place = list(files).index(first)
    assert found["train/car/c_1"][1] == tuple(files.values())[place : place + 3]
    assert_round_trip(source, tmp_path)


def test_archives_and_folders_around_list_the_same(tmp_path: Path) -> None:
    pattern, form = list(FORMS.items())[2]
    files = tree(form)
    plain = listed(Views(str(official.write_folder(files, tmp_path / "data")), pattern), tmp_path)
    around = {f"modelnet40_images_new_12x/{name}": data for name, data in files.items()}
    for archive in (official.write_tar(around, tmp_path / "a.tar.gz"), official.write_zip(files, tmp_path / "a.zip")):
        found = listed(Views(str(archive), pattern), tmp_path / "scratch")
        assert {key: parts for key, (_, parts) in found.items()} == {key: parts for key, (_, parts) in plain.items()}


def test_views_come_by_name_also_where_names_of_objects_begin_alike(tmp_path: Path) -> None:
    files = official.pictures([f"car/a{extra}_{view}.png" for view in ("1", "2", "0") for extra in ("", "_0", "_1")])
    source = Views(str(official.write_folder(files, tmp_path / "data")), "<class>/<object>_<view>", train_fraction=0)
    found = listed(source, tmp_path)
    assert {item.split for item, _ in found.values()} == {"test"}
    expected = {
        f"car/a{extra}": tuple(files[f"car/a{extra}_{view}.png"] for view in "012") for extra in ("", "_0", "_1")
    }
    assert {key: parts for key, (_, parts) in found.items()} == expected


def test_objects_with_another_number_of_views_are_rejected(tmp_path: Path) -> None:
    files = tree(FORMS["<split>/<class>/<object>/<view>"])
    del files["train/car/c2/002.png"]
    official.write_folder(files, tmp_path / "data")
    source = Views(str(tmp_path / "data"), num_views=3)
    opened = source.open(tmp_path / "scratch")
    [short] = [item for item in opened.items() if item.key == "train/car/c2"]
    with pytest.raises(ValueError, match="has 2 views, num_views=3"):
        opened.load(short.ref)
    assert_round_trip(source, tmp_path, unreadable=["train/car/c2"])
    assert len(listed(Views(str(tmp_path / "data")), tmp_path)["train/car/c2"][1]) == 2


def test_a_view_that_cannot_be_read_fails_when_it_is_loaded(tmp_path: Path) -> None:
    official.write_folder(tree(FORMS["<split>/<class>/<object>/<view>"]), tmp_path / "data")
    opened = Views(str(tmp_path / "data")).open(tmp_path)
    first, *_ = opened.items()
    (tmp_path / "data" / first.ref.split("\n")[1]).unlink()
    with pytest.raises(FileNotFoundError):
        opened.load(first.ref)


def test_pictures_that_do_not_fit_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = tree(FORMS["<split>/<class>/<object>/<view>"])
    official.write_folder({**files, "cover.png": b"", "train/read.txt": b""}, tmp_path / "data")
    with caplog.at_level(logging.WARNING):
        assert len(listed(Views(str(tmp_path / "data")), tmp_path)) == len(OBJECTS)
    assert "passed over 1 pictures that do not fit" in caplog.text
    assert "cover.png" in caplog.text
    with pytest.raises(DataError, match=r"no picture that fits pattern='<class>/x<object>_<view>', but 13 others"):
        listed(Views(str(tmp_path / "data"), "<class>/x<object>_<view>"), tmp_path)


@pytest.mark.parametrize(
    "pattern", ["<class>/<object>", "<class>/<object>/<view>/<view>", "<class><x><object><view>", ""]
)
def test_bad_patterns_are_named(pattern: str) -> None:
    with pytest.raises(DataError, match="must have <class>, <object> and <view> once each"):
        Views("x", pattern)


def test_other_bad_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="num_views=0, must be at least 1"):
        Views("x", num_views=0)
    with pytest.raises(DataError, match=r"there is no .*nowhere"):
        Views(str(tmp_path / "nowhere")).open(tmp_path)
