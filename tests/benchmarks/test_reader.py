from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import reader
from benchmarks.reader import IN_ORDER, OURS, SHUFFLED, Result, Speed, Way, lines_of, measure, ways_to_read
from benchmarks.reader_pictures import PackedPictures, pack_large, pack_small
from benchmarks.reader_sides import Read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader")


@pytest.fixture(scope="module")
def small(folder: Path) -> PackedPictures:
    return pack_small(300, folder)


@pytest.fixture(scope="module")
def large(folder: Path) -> PackedPictures:
    return pack_large(64, folder)


def content_of(epoch: Read) -> Counter[tuple[bytes, int]]:
    found: Counter[tuple[bytes, int]] = Counter()
    for pictures, labels in epoch:
        images = pictures[None] if isinstance(labels, int) else pictures
        numbers = [labels] if isinstance(labels, int) else labels.tolist()
        found.update((image.numpy().tobytes(), label) for image, label in zip(images, numbers, strict=True))
    return found


def test_all_ways_read_the_same_samples_once_an_epoch(small: PackedPictures) -> None:
    ways = ways_to_read(small, [0, 2])
    expected = content_of(ways[Way(IN_ORDER, 0, IN_ORDER)]())
    assert expected.total() == 300
    for way, make in ways.items():
        for _ in range(2):
            assert content_of(make()) == expected, way


def test_pictures_have_the_stated_sizes(small: PackedPictures, large: PackedPictures) -> None:
    for pictures, shape, num_bytes in ((small, (1, 32, 32), 1_000), (large, (3, 375, 500), 60_000)):
        image, _ = next(iter(ways_to_read(pictures, [])[Way(IN_ORDER, 0, IN_ORDER)]()))
        assert (image.shape, image.dtype) == (shape, torch.uint8)
        assert pictures.index.columns.sizes.mean() == pytest.approx(num_bytes, rel=0.1)
        assert len(pictures.shards) >= 2  # as many as there are processes


def test_both_sides_have_full_batches(small: PackedPictures) -> None:
    ways = ways_to_read(small, [0])
    for name in (SHUFFLED, OURS):
        sizes = [len(pictures) for pictures, _ in ways[Way(name, 0, SHUFFLED)]()]
        assert (sum(sizes), len(sizes), max(sizes)) == (300, 3, pytest.approx(128, abs=28))


def test_a_measured_row_tells_speed_and_ratio(small: PackedPictures) -> None:
    result = measure(small, [0, 1], rounds=1)
    assert len(lines_of(result)) == len(result.speeds) == 7
    assert all(speed.wall > 0 for speed in result.speeds.values())
    assert math.isnan(result.speeds[Way(SHUFFLED, 1, SHUFFLED)].cpu)
    assert result.ratio(Way(SHUFFLED, 0, SHUFFLED)) == (1, 1)


def test_the_bound_is_on_one_row(small: PackedPictures) -> None:
    speeds = {Way(name, number, SHUFFLED): Speed(10, 10) for name in (SHUFFLED, OURS) for number in (0, 1)}
    slow = Result(replace(small, least_ratio=1.5), speeds)
    assert slow.failures() == ["small: our batches / webdataset, shuffled batches is 1.00, bound 1.5"]
    assert not Result(replace(small, least_ratio=0.95), speeds).failures()


@pytest.mark.usefixtures("small", "large")
def test_the_command_writes_a_table_and_fails_on_a_missed_bound(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reader, "pack_small", lambda *args: replace(pack_small(*args), least_ratio=1e9))
    monkeypatch.setattr(reader, "pack_large", lambda *args: replace(pack_large(*args), least_ratio=0.0))
    options = "reader --small 300 --large 64 --threads 0 --rounds 1 --folder . --markdown table.md"
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", options.split())
    assert reader.main() == 1
    printed = capsys.readouterr().out
    assert printed.count("BOUND") == 1
    assert printed.startswith((folder / "table.md").read_text())
    assert printed.count("\n| small |") == printed.count("\n| large |") == 5
