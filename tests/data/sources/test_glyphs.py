from __future__ import annotations

import subprocess
import sys
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from dmlscale.data.errors import DataError
from dmlscale.data.glyphs.faces import FACES
from dmlscale.data.sources import SOURCES, Source, SourceItem
from dmlscale.data.sources.glyphs import Glyphs


@pytest.fixture(scope="module")
def items(small_source: Glyphs) -> list[SourceItem]:
    return list(small_source.items())


def test_registry_finds_the_source() -> None:
    assert SOURCES["glyphs"] is Glyphs
    assert isinstance(Glyphs(), Source)


def test_limit_gives_that_many_classes_per_split(items: list[SourceItem]) -> None:
    classes = {split: {i.class_name for i in items if i.split == split} for split in ("train", "test")}
    assert {split: len(names) for split, names in classes.items()} == {"train": 12, "test": 12}
    assert not classes["train"] & classes["test"]


def test_one_picture_per_character_and_face(items: list[SourceItem]) -> None:
    assert len({item.key for item in items}) == len(items)
    per_class = Counter(item.class_name for item in items)
    assert all(8 <= count <= len(FACES) for count in per_class.values())


def test_pictures_are_small_grey_and_not_blank(items: list[SourceItem]) -> None:
    for item in items[::7]:
        image = Image.open(BytesIO(item.data))
        assert (image.mode, image.size, item.extension) == ("L", (32, 32), "png")
        assert np.asarray(image).std() > 5


def test_items_depend_on_the_seed_alone(items: list[SourceItem]) -> None:
    assert list(Glyphs(limit_classes=12, num_processes=1).items()) == items
    other = list(Glyphs(limit_classes=12, num_processes=1, seed=1).items())
    assert [item.key for item in other] == [item.key for item in items]
    assert all(a.data != b.data for a, b in zip(other, items, strict=True))


def test_processes_do_not_change_the_items() -> None:
    one, two = (list(Glyphs(limit_classes=3, num_processes=n).items()) for n in (1, 2))
    assert one == two


def test_rendering_processes_need_not_import_torch() -> None:
    code = "import sys, dmlscale.data.sources.glyphs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_number_of_processes_is_no_option_of_the_data() -> None:
    assert Glyphs(num_processes=1) == Glyphs(num_processes=2)
    assert Glyphs(faces=list(FACES)) == Glyphs()  # type: ignore[arg-type]


def test_all_characters_give_a_thousand_classes_on_both_sides(small_source: Glyphs) -> None:
    classes = Glyphs(num_processes=1).classes()
    counts = Counter(c.split for c in classes)
    assert counts["train"] >= 1000
    assert counts["test"] >= 1000
    assert len({c.code_point for c in classes}) == len(classes)
    # Latin A stays, the Greek and Cyrillic ones that look like it do not.
    code_points = {c.code_point for c in classes}
    assert 0x41 in code_points
    assert not {0x391, 0x410} & code_points
    # A limit only cuts the list short.
    limited = small_source.classes()
    for split in ("train", "test"):
        whole = [c for c in classes if c.split == split]
        assert [c for c in limited if c.split == split] == whole[:12]


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
