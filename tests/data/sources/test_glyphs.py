from __future__ import annotations

import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmlscale.data.errors import DataError
from dmlscale.data.glyphs.faces import FACES
from dmlscale.data.sources import SOURCES, Item, Source
from dmlscale.data.sources.glyphs import Glyphs, OpenGlyphs
from tests.data.sources.round_trip import assert_round_trip


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenGlyphs:
    return Glyphs(limit_classes=12, num_processes=1).open(tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def items(opened: OpenGlyphs) -> list[Item]:
    return list(opened.items())


def test_registry_finds_the_source() -> None:
    assert SOURCES["glyphs"] is Glyphs
    assert isinstance(Glyphs(), Source)


def test_limit_gives_that_many_classes_per_split(items: list[Item]) -> None:
    classes = {split: {i.class_name for i in items if i.split == split} for split in ("train", "test")}
    assert {split: len(names) for split, names in classes.items()} == {"train": 12, "test": 12}
    assert not classes["train"] & classes["test"]


def test_one_picture_per_character_and_face(items: list[Item]) -> None:
    assert len({item.key for item in items}) == len(items)
    assert len({item.ref for item in items}) == len(items)
    per_class = Counter(item.class_name for item in items)
    assert all(8 <= count <= len(FACES) for count in per_class.values())


def test_pictures_are_small_grey_and_not_blank(opened: OpenGlyphs, items: list[Item]) -> None:
    for item in items[::7]:
        (data,) = opened.load(item.ref)
        image = Image.open(BytesIO(data))
        assert (image.format, image.mode, image.size, item.extension) == ("PNG", "L", (32, 32), "png")
        assert np.asarray(image).std() > 5


def test_the_seed_changes_pixels_but_not_the_list(opened: OpenGlyphs, items: list[Item], tmp_path: Path) -> None:
    same, other = (Glyphs(limit_classes=12, num_processes=1, seed=seed).open(tmp_path) for seed in (0, 1))
    assert list(same.items()) == list(other.items()) == items
    for item in items[::7]:
        assert same.load(item.ref) == opened.load(item.ref)
        assert other.load(item.ref) != opened.load(item.ref)


def test_processes_do_not_change_the_list(tmp_path: Path) -> None:
    one, two = (list(Glyphs(limit_classes=3, num_processes=n).open(tmp_path / str(n)).items()) for n in (1, 2))
    assert one == two


def test_a_second_opening_uses_what_the_first_has_drawn(items: list[Item], tmp_path: Path) -> None:
    source = Glyphs(limit_classes=12, num_processes=1)
    assert list(source.open(tmp_path).items()) == items
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == len(FACES)
    assert list(source.open(tmp_path).items()) == items
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_packed_samples_are_what_the_source_lists(tmp_path: Path) -> None:
    assert assert_round_trip(Glyphs(limit_classes=3, num_processes=1), tmp_path).num_classes == 3


def test_rendering_processes_need_not_import_torch() -> None:
    code = "import sys, dmlscale.data.sources.glyphs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_number_of_processes_is_no_option_of_the_data() -> None:
    assert Glyphs(num_processes=1) == Glyphs(num_processes=2)
    assert Glyphs(faces=list(FACES)) == Glyphs()  # type: ignore[arg-type]


def test_all_characters_give_a_thousand_classes_on_both_sides(items: list[Item], tmp_path: Path) -> None:
    listed = list(Glyphs(num_processes=1).open(tmp_path).items())
    classes = {split: {i.class_name for i in listed if i.split == split} for split in ("train", "test")}
    assert len(classes["train"]) >= 1000
    assert len(classes["test"]) >= 1000
    assert not classes["train"] & classes["test"]
    # Latin A stays, the Greek and Cyrillic ones that look like it do not.
    assert "U+0041" in classes["train"] | classes["test"]
    assert not {"U+0391", "U+0410"} & (classes["train"] | classes["test"])
    # A limit only cuts the list short.
    for split in ("train", "test"):
        limited = [i for i in items if i.split == split]
        assert [i for i in listed if i.split == split][: len(limited)] == limited


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_faces": 17}, "min_faces=17, must be 1 to 16"),
        ({"limit_classes": 0}, "limit_classes=0"),
        ({"num_processes": 0}, "num_processes=0"),
        ({"faces": ("Comic",), "min_faces": 1}, r"Comic\.ttf is missing"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Glyphs(**options)
