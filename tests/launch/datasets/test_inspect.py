"""The commands ``inspect`` and ``verify`` as the command line calls them."""

from __future__ import annotations

import json
import shutil
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import wavfile

from dmlscale.cli import main
from dmlscale.data.index import Index
from dmlscale.data.inspection.histogram import log_histogram
from dmlscale.data.inspection.overview import look_at
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.evaluation.contact_sheet import ClassLine, contact_sheet
from tests.data.listed import MISSING, Item, Listed, item, picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes of 1, 2, 3, 8 to train, two others and one of them to test; one sample is missing, one comes again."""
    sizes = {"train": {"one": 1, "two": 2, "three": 3, "[red]eight": 8}, "test": {"three": 2, "new": 4}}
    listed = [
        item(f"{split}{name}{number}", name, split, super_class="odd" if name in ("one", "three") else "even")
        for split, classes in sizes.items()
        for name, count in classes.items()
        for number in range(count)
    ]
    listed.append(Item("gone", "two", "train", MISSING, "png"))
    listed.append(item("again", "new", "test", parts=[picture("trainone0")], super_class="even"))
    path = tmp_path_factory.mktemp("inspected") / "data"
    pack(Listed(tuple(listed)), path, PackOptions(num_processes=1))
    return path


def test_numbers(folder: Path) -> None:
    overview = look_at(Index.load(folder), num_listed=2)
    train, test = overview.splits["train"], overview.splits["test"]
    assert (overview.num_shards, overview.num_duplicates, overview.num_duplicates_across_splits) == (2, 1, 1)
    assert overview.num_rejects == 1
    assert overview.rejects == {"No such file or directory": 1}
    assert overview.overlaps == ((("train", "test"), 1),)
    assert train.numbers[:6] == (14, 4, 1, 2.5, 8, 1)
    assert train.largest == (("[red]eight", 8), ("three", 3))
    assert train.smallest == (("one", 1), ("two", 2))
    assert train.num_super_classes == 2
    assert train.group_choices == ((2, 3, 13), (4, 1, 8), (8, 1, 8))
    assert train.extensions == {"png": 14}
    assert test.numbers[:6] == (7, 2, 2, 3.5, 5, 0)
    sizes = [len(path.read_bytes()) for path in folder.glob("*.tar")]
    assert (overview.smallest_shard, overview.largest_shard, overview.num_bytes) == (min(sizes), max(sizes), sum(sizes))
    assert 0 < train.smallest_bytes <= train.median_bytes <= train.largest_bytes < 1000


def test_inspect_prints_and_writes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder), "--json", str(tmp_path / "numbers.json")]) == 0
    shown = capsys.readouterr().out
    for text in (
        "classes that train and test share: 1, so not zero-shot",
        "rejected: 1 (1 x No such file or directory), all in rejects.csv",
        "same content as an earlier sample: 1, 1 of them in another split, all in duplicates.csv",
        "train: 14 samples, 4 classes of 1 to 8 samples",
        "super-classes: 2",
        "[red]eight (8)",
        "\N{FULL BLOCK}",
    ):
        assert text in shown
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["splits"]["train"]["numbers"]["num_samples"] == 14
    assert numbers["splits"]["train"]["largest"][0] == {"name": "[red]eight", "num_samples": 8}
    assert numbers["overlaps"] == [{"splits": ["train", "test"], "num_shared": 1}]


def test_inspect_of_one_split(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder), "--split", "test"]) == 0
    shown = capsys.readouterr().out
    assert "\ntest: 7 samples" in shown
    assert "\ntrain: " not in shown


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_no_dataset_is_refused(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(tmp_path / "nothing")]) == 2
    assert "no dataset at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "valid"], "no split 'valid'"),
        (["--classes", "0"], "--classes 0"),
        (["--json", "/"], "cannot write /"),
    ],
)
def test_impossible_options_are_refused(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(folder), *options]) == 2
    assert message in capsys.readouterr().err


def _npy(number: int) -> bytes:
    file = BytesIO()
    np.save(file, np.random.default_rng(number).normal(size=(3, 10, 12)))
    return file.getvalue()


def _wav(number: int) -> bytes:
    file = BytesIO()
    wavfile.write(file, 16_000, np.random.default_rng(number).integers(-999, 999, 9_000).astype(np.int16))
    return file.getvalue()


KINDS = {
    "image": ("png", lambda number: [picture(f"{number}", 20)]),
    "views": ("png", lambda number: [picture(f"{number}{view}", 20) for view in range(3)]),
    "array": ("npy", lambda number: [_npy(number)]),
    "audio": ("wav", lambda number: [_wav(number)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_every_input(kind: str, tmp_path: Path) -> None:
    extension, files = KINDS[kind]
    listed = tuple(item(f"{n:02d}", f"c{n % 3}", parts=files(n), extension=extension) for n in range(12))
    pack(Listed(listed, input=kind), tmp_path / "data", PackOptions(num_processes=1))  # type: ignore[arg-type]
    sheets = []
    for number in range(2):
        file = tmp_path / f"{number}.png"
        assert main(["inspect", str(tmp_path / "data"), "--pictures", str(file), "--classes", "2"]) == 0
        sheets.append(file.read_bytes())
    assert sheets[0] == sheets[1]
    assert Image.open(BytesIO(sheets[0])).convert("L").resize((1, 1)).getpixel((0, 0)) != 255


def test_a_sample_that_cannot_be_read_leaves_a_gap(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "train-000000.tar").write_bytes(b"")
    assert main(["inspect", str(copy), "--pictures", str(tmp_path / "sheet.png")]) == 0
    figure = contact_sheet([ClassLine("a", "2 samples", [0, 1])], lambda row: None, title="x" * 99)
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["cannot\nbe read"] * 2
    assert figure.texts[0].get_text().startswith("\N{HORIZONTAL ELLIPSIS}x")
    with pytest.raises(ValueError, match="at least one sample"):
        contact_sheet([], lambda row: None, title="")


def test_verify_says_ok_and_what_is_wrong(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    size = sum(path.stat().st_size for path in copy.glob("*.tar"))
    assert main(["verify", str(copy), "--processes", "1"]) == 0
    assert capsys.readouterr().out == f"2 shards, 21 samples, {size:,} bytes: ok\n"
    assert main(["verify", str(copy), "--quick"]) == 0
    assert capsys.readouterr().out.endswith(": ok (tables and sizes only)\n")
    (copy / "test-000000.tar").unlink()
    assert main(["verify", str(copy), "--processes", "1"]) == 1
    line, summary = capsys.readouterr().out.splitlines()
    assert line.startswith("test-000000.tar: ")
    assert "missing" in line
    assert summary.endswith(": 1 problem")
    assert main(["verify", str(copy), "--processes", "0"]) == 2


def test_verify_counts_what_it_does_not_show(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmlscale.launch.datasets.verify.MOST_SHOWN", 3)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    index = Index.load(copy)
    shard = bytearray((copy / "train-000000.tar").read_bytes())
    for offset in index.split("train").columns.offsets[:14].tolist():
        shard[offset + 40] ^= 1
    (copy / "train-000000.tar").write_bytes(shard)
    assert main(["verify", str(copy), "--processes", "1"]) == 1
    *lines, more, summary = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert more == "and 11 other problems"
    assert summary.endswith(": 14 problems")


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=200))
def test_histograms_hold_every_count_in_its_bin(counts: list[int]) -> None:
    bins = log_histogram(np.array(counts))
    assert (bins[0].first, bins[-1].last) == (min(counts), max(counts))
    assert all(before.last + 1 == after.first for before, after in pairwise(bins))
    for entry in bins:
        assert entry.number == sum(entry.first <= count <= entry.last for count in counts)
    assert len(bins) <= 12
