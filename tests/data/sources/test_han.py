from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmlscale.data.errors import DataError
from dmlscale.data.sources import SOURCES, Item, Source
from dmlscale.data.sources.han import Han, OpenHan
from tests.data.glyphs.fonts import FRAME, REFERENCE, bars_of, make_font, save_collection, save_design
from tests.data.sources.round_trip import assert_round_trip

CHARACTERS = range(0x4E00, 0x4E00 + 60)
DESIGNS = ("a.ttf", "b.ttf", "c.ttf", "d.ttf", "e.ttf")


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five designs of 60 characters; the first two lack the last 20."""
    folder = tmp_path_factory.mktemp("fonts")
    for number, name in enumerate(DESIGNS):
        save_design(folder / f"package-{number}" / "usr" / name, number, CHARACTERS[:40] if number < 2 else CHARACTERS)
    return folder


def open_han(fonts: Path, scratch: Path, **options: object) -> OpenHan:
    values = {"fonts": str(fonts), "designs": DESIGNS, "num_processes": 1} | options
    return Han(**values).open(scratch)  # type: ignore[arg-type]


def classes_of(items: list[Item]) -> set[str]:
    return {item.class_name for item in items}


def name(code_point: int) -> str:
    return f"U+{code_point:04X}"


def test_registry_finds_the_source() -> None:
    assert SOURCES["han"] is Han
    assert isinstance(Han(fonts="nowhere"), Source)
    assert Han(fonts="x", designs=["a.ttf"]) == Han(fonts="x", designs=("a.ttf",), num_processes=2)  # type: ignore[arg-type]


def test_a_class_is_a_character_that_enough_designs_draw(fonts: Path, tmp_path: Path) -> None:
    items = list(open_han(fonts, tmp_path).items())
    assert classes_of(items) == {name(c) for c in (*CHARACTERS[:40], REFERENCE)}
    assert Counter(Counter(item.class_name for item in items).values()) == {5: 41}
    assert len({item.key for item in items}) == len({item.ref for item in items}) == len(items)
    assert items == sorted(items, key=lambda item: int(item.class_name[2:], 16))
    more = list(open_han(fonts, tmp_path, min_designs=3).items())
    assert classes_of(more) == {name(c) for c in (*CHARACTERS, REFERENCE)}
    assert next(item.key for item in items) == "a_ttf_04e00"


def test_pictures_show_the_character_in_the_design(fonts: Path, tmp_path: Path) -> None:
    opened = open_han(fonts, tmp_path)
    pictures: dict[str, np.ndarray] = {}
    for ref in ("a_ttf/19968", "a_ttf/19969", "b_ttf/19968"):
        (data,) = opened.load(ref)
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.mode, image.size) == ("PNG", "L", (32, 32))
        pictures[ref] = np.asarray(image)
        assert pictures[ref].std() > 5
        assert open_han(fonts, tmp_path).load(ref) == (data,)
        assert open_han(fonts, tmp_path, seed=1).load(ref) != (data,)
    a, other, b = pictures.values()
    assert (a != other).any()
    assert (a != b).any()


def test_characters_are_as_high_as_the_reference_says(fonts: Path, tmp_path: Path) -> None:
    (data,) = open_han(fonts, tmp_path).load(f"a_ttf/{REFERENCE}")
    rows = np.flatnonzero((np.asarray(Image.open(io.BytesIO(data))) > 100).any(axis=1))
    assert 23 * 0.8 <= rows[-1] - rows[0] + 1 <= 32


def test_listed_but_not_drawn_does_not_count(tmp_path: Path) -> None:
    shapes = {c: bars_of(c) for c in CHARACTERS}
    blank, frame, alike = CHARACTERS[3], CHARACTERS[5], CHARACTERS[7]
    for number in range(4):
        shapes = {c: bars_of(c * 1000 + number) for c in CHARACTERS}
        shapes[alike] = shapes[CHARACTERS[6]]  # the same drawing under two numbers
        if number == 0:
            shapes |= {blank: (), frame: FRAME}
        make_font(shapes).save(tmp_path / f"{number}.ttf")
    designs = [f"{number}.ttf" for number in range(4)]
    items = list(open_han(tmp_path, tmp_path / "scratch", designs=designs).items())
    assert classes_of(items) == {name(c) for c in (*CHARACTERS, REFERENCE)} - {name(c) for c in (blank, frame, alike)}
    three = list(open_han(tmp_path, tmp_path / "scratch", designs=designs, min_designs=3).items())
    assert Counter(item.class_name for item in three)[name(blank)] == 3


def test_the_share_of_training_classes_is_as_asked_and_stable(fonts: Path, tmp_path: Path) -> None:
    half, most = (list(open_han(fonts, tmp_path, train_share=share).items()) for share in (0.5, 0.8))
    train = [classes_of([i for i in items if i.split == "train"]) for items in (half, most)]
    assert 10 <= len(train[0]) <= 31
    assert train[0] < train[1]  # a larger share only adds classes
    assert {i.split for i in open_han(fonts, tmp_path, train_share=1.0).items()} == {"train"}
    for items in (half, most):
        by_split = [classes_of([i for i in items if i.split == split]) for split in ("train", "test")]
        assert not by_split[0] & by_split[1]
    big = Han(fonts="nowhere")
    assert sum(big.split_of(c) == "train" for c in range(0x4E00, 0xA000)) / (0xA000 - 0x4E00) == pytest.approx(
        0.9, abs=0.01
    )


def test_a_limit_keeps_the_characters_of_most_designs(fonts: Path, tmp_path: Path) -> None:
    whole = list(open_han(fonts, tmp_path, min_designs=3, train_share=0.5).items())
    limited = list(open_han(fonts, tmp_path, min_designs=3, train_share=0.5, limit_classes=20).items())
    counts = {split: len(classes_of([i for i in limited if i.split == split])) for split in ("train", "test")}
    assert counts == {"train": 10, "test": 10}
    assert {item.ref for item in limited} < {item.ref for item in whole}
    assert set(Counter(item.class_name for item in limited).values()) == {5}


def test_a_second_listing_uses_what_the_first_has_drawn(fonts: Path, tmp_path: Path) -> None:
    first = list(open_han(fonts, tmp_path).items())
    (tmp_path / "half.123").write_bytes(b"of a listing that was cut off")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    assert len(before) == len(DESIGNS)
    assert list(open_han(fonts, tmp_path, num_processes=2).items()) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")} == before


def test_designs_of_the_table_are_found_by_their_files(tmp_path: Path) -> None:
    save_design(tmp_path / "HanaMinA.ttf", 0, CHARACTERS[:20])
    save_design(tmp_path / "HanaMinB.ttf", 0, CHARACTERS[10:40])
    save_design(tmp_path / "deep" / "down" / "ukai.ttc", 1, CHARACTERS)
    save_design(tmp_path / "mine.ttf", 2, CHARACTERS)
    items = list(open_han(tmp_path, tmp_path / "scratch", designs=None, min_designs=2).items())
    assert {item.key.rsplit("_", 1)[0] for item in items} == {"HanaMin", "AR-UKai"}
    assert classes_of(items) == {name(c) for c in (*CHARACTERS[:40], REFERENCE)}


def test_a_face_of_a_collection_is_a_design(tmp_path: Path) -> None:
    faces = [make_font({c: bars_of(c * 1000 + number) for c in CHARACTERS}) for number in range(2)]
    save_collection(tmp_path / "both.ttc", faces)
    opened = open_han(tmp_path, tmp_path / "scratch", designs=("both.ttc:0", "both.ttc:1"), min_designs=2)
    items = list(opened.items())
    assert len(items) == 2 * (len(CHARACTERS) + 1)
    assert opened.load("both_ttc_0/19968") != opened.load("both_ttc_1/19968")


def test_packed_samples_are_what_the_source_lists(fonts: Path, tmp_path: Path) -> None:
    source = Han(fonts=str(fonts), designs=DESIGNS, train_share=0.5, limit_classes=12, num_processes=1)
    index = assert_round_trip(source, tmp_path)
    assert len(index) == 5 * 12
    assert index.num_classes == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_designs": 0}, "min_designs=0"),
        ({"train_share": 0.0}, "train_share=0.0, must be above 0"),
        ({"train_share": 1.5}, "train_share=1.5, must be above 0"),
        ({"limit_classes": 0}, "limit_classes=0"),
        ({"num_processes": 0}, "num_processes=0"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Han(fonts="nowhere", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fonts": "nowhere"}, r"no folder nowhere: fetch fonts with `python -m dmlscale.data.glyphs.fetch nowhere`"),
        ({"designs": None}, r"holds 0 of the designs, fewer than min_designs=4: fetch"),
        ({"min_designs": 6}, r"holds 5 of the designs, fewer than min_designs=6"),
        ({"designs": ("HanaMin",)}, r"'HanaMin' needs HanaMinA.ttf \(Debian package fonts-hanazono\) or HanaMinB.ttf"),
        ({"designs": ("Hanamin",)}, r"'Hanamin' is neither a known design nor a font file in .*did you mean 'HanaMin'"),
        ({"designs": ("a.ttf:x",)}, r"'a.ttf:x' must be a file name, or a file name, a colon and"),
    ],
)
def test_what_is_not_there_is_named_with_the_way_to_get_it(
    fonts: Path, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_han(**({"fonts": fonts, "scratch": tmp_path} | options))
