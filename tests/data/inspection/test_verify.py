"""Every kind of damage to shards is found and named, and nothing is found where there is none."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.inspection.shard_check import check_shard
from dmlscale.data.inspection.verify import verify
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.sources.webdataset import WebDatasetShards
from tests.data.damage import change_table, flip, found, overwrite, place
from tests.data.listed import Listed, item, picture

CHANGED = "its bytes have changed since it was packed"


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def members(folder: Path, shard: str) -> list[tarfile.TarInfo]:
    with tarfile.open(folder / shard) as tar:
        return tar.getmembers()


@pytest.mark.parametrize("num_processes", [1, 2])
def test_nothing_is_found_in_a_whole_dataset(mixed: Path, num_processes: int) -> None:
    index, steps = Index.load(mixed), []
    assert list(verify(index, num_processes=num_processes, progress=lambda *step: steps.append(step))) == []
    assert len(steps) >= 8
    assert steps == [(rows, len(index)) for rows in index.shards.first_rows[1:].tolist()]


def test_nothing_is_found_in_a_quick_look_either(packed: Path, mixed: Path) -> None:
    assert found(packed) == found(packed, quick=True) == found(mixed, quick=True) == []


def test_a_flipped_byte_of_a_sample(copy: Path) -> None:
    index = Index.load(copy)
    places = [place(index, row) for row in (3, 200)]
    assert places[0][0] != places[1][0]
    for shard, _, offset in places:
        flip(copy, shard, offset + 20)
    expected = [(shard, key, CHANGED) for shard, key, _ in places]
    assert found(copy) == expected
    assert [tuple(problem) for problem in verify(index, num_processes=2)] == expected
    assert found(copy, quick=True) == []


def test_a_flipped_byte_of_a_header_does_not_hide_what_follows(copy: Path) -> None:
    index = Index.load(copy)
    (shard, _, offset), (other, key, far_offset) = place(index, 3), place(index, 40)
    assert shard == other
    flip(copy, shard, offset - 500)
    flip(copy, shard, far_offset)
    damage, changed = found(copy)
    assert damage == (shard, "", f"is damaged at byte {offset - 512:,}, where a tar header should be")
    assert changed == (shard, key, CHANGED)


def test_a_truncated_shard(copy: Path) -> None:
    index = Index.load(copy)
    shard, key, offset = place(index, 10)
    size, num_samples = int(index.shards.sizes[0]), int(index.shards.first_rows[1])
    with (copy / shard).open("r+b") as file:
        file.truncate(offset + 5)
    bytes_problem, damage, lost = found(copy)
    assert bytes_problem == (shard, "", f"has {offset + 5:,} bytes, the index says {size:,}")
    assert damage == (shard, "", f"is truncated at byte {offset + 5:,}")
    assert lost == (shard, key, f"is cut off, and so are {num_samples - 11:,} samples behind it")
    assert found(copy, quick=True) == [bytes_problem]


def test_empty_and_missing_shards(copy: Path) -> None:
    index = Index.load(copy)
    empty, missing = index.shards.names[:2]
    (copy / empty).write_bytes(b"")
    (copy / missing).unlink()
    size, lost = (f"{int(number):,}" for number in (index.shards.sizes[0], index.shards.first_rows[1]))
    expected = [
        (empty, "", f"has 0 bytes, the index says {size}"),
        (empty, "", f"is empty: its {lost} samples are lost"),
    ]
    *first, last = found(copy)
    assert first == expected
    assert last[:2] == (missing, "")
    assert "missing" in last[2]
    quick = found(copy, quick=True)
    assert quick[0] == expected[0]
    assert quick[1][:2] == (missing, "")


def test_a_changed_label_in_the_shard(copy: Path) -> None:
    index = Index.load(copy)
    label = next(member for member in members(copy, index.shards.names[0]) if member.name.endswith(".cls"))
    overwrite(copy, index.shards.names[0], label.offset_data, b"x")
    ((shard, key, what),) = found(copy)
    assert (shard, f"{key}.cls") == (index.shards.names[0], label.name)
    assert "its .cls says 'x" in what


def test_a_missing_label_and_a_member_too_many(copy: Path) -> None:
    shard = Index.load(copy).shards.names[0]
    label = next(member for member in members(copy, shard) if member.name.endswith(".cls"))
    key = label.name.removesuffix(".cls")
    label.name = f"{key}.txt"
    overwrite(copy, shard, label.offset, label.tobuf(tarfile.GNU_FORMAT))
    assert found(copy) == [
        (shard, "", f"holds '{key}.txt', which the index does not list"),
        (shard, key, f"has no member '{key}.cls'"),
    ]


def test_a_sample_too_many(copy: Path) -> None:
    shard = Index.load(copy).shards.names[-1]
    with tarfile.open(copy / shard, "a") as tar:
        for name, content in (("new.png", b"picture"), ("new.cls", b"0")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    problems = [problem for problem in found(copy) if "the index says" not in problem[2]]
    assert problems == [(shard, "", f"holds 'new.{end}', which the index does not list") for end in ("png", "cls")]


def test_its_processes_end_with_it(mixed: Path) -> None:
    script = (
        "import sys, time; from dmlscale.data.index import Index; from dmlscale.data.inspection.verify import verify; "
    )
    script += "list(verify(Index.load(sys.argv[1]), num_processes=2, "
    script += "progress=lambda *_: (print('begun', flush=True), time.sleep(60))))"
    process = subprocess.Popen([sys.executable, "-c", script, str(mixed)], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        helpers = psutil.Process(process.pid).children(recursive=True)
        assert len(helpers) >= 2
        process.kill()
    assert not psutil.wait_procs(helpers, timeout=60)[1]


def test_no_processes_are_refused(packed: Path) -> None:
    with pytest.raises(DataError, match="num_processes=0"):
        list(verify(Index.load(packed), num_processes=0))


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_tar_reader_sees_of_a_flipped_bit_is_found(mixed: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Bits that it does not see are those of padding and of the spaces in headers."""
    index = Index.load(mixed)
    number = data.draw(st.integers(0, len(index.shards.names) - 1))
    name = index.shards.names[number]
    offset = data.draw(st.integers(0, int(index.shards.sizes[number]) - 1))
    folder = tmp_path / f"{number}-{offset}"
    if not folder.exists():
        shutil.copytree(mixed, folder)
    flip(folder, name, offset, 1 << data.draw(st.integers(0, 7)))
    is_found = bool(check_shard(Index.load(folder), number))
    shutil.rmtree(folder)
    assert is_found or _is_unseen(mixed / name, offset)


def _is_unseen(shard: Path, offset: int) -> bool:
    with tarfile.open(shard) as tar:
        for member in tar:
            end = member.offset_data + member.size
            if end <= offset < end + -end % 512:
                return True  # padding
            if member.offset <= offset < member.offset_data:
                return 148 <= (offset - member.offset) % 512 < 156  # the checksum's own digits, with spaces around
    return False


VIEWS = [picture(f"view{number}") for number in range(3)]


@pytest.fixture
def views(tmp_path: Path) -> Path:
    long = "folder/" * 20
    listed = tuple(item(f"{long}{n:03d}", f"c{n % 3}", parts=VIEWS[: 2 + n % 2]) for n in range(12))
    pack(Listed(listed, input="views"), tmp_path / "views", PackOptions(num_processes=1))
    return tmp_path / "views"


def test_samples_of_several_files(views: Path) -> None:
    assert found(views) == []
    index = Index.load(views)
    shard, key, offset = place(index, 5)
    flip(views, shard, offset + int(index.columns.sizes[5]) - 1)
    assert found(views) == [(shard, key, CHANGED)]
    flip(
        views, shard, place(index, 8)[2] + 1
    )  # in the first header of a later one: what is behind is compared by place
    damage, *problems = found(views)[1:]
    assert damage[:2] == (shard, "")
    assert [problem[1] for problem in problems] == [index.key(8)]


def test_shards_of_others_may_hold_more(tmp_path: Path) -> None:
    long = "long/" * 40
    members = [
        (f"{long}{number}.{ending}", content)
        for number in range(4)
        for ending, content in (("json", b"{}"), ("JPG", b"%d" % number * 700), ("cls", b"%d" % (number % 2)))
    ]
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in (*members, ("no_label.jpg", b"1")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    folder = tmp_path / "index"
    pack(WebDatasetShards(str(tmp_path / "x.tar")), folder, PackOptions(num_processes=1, check=False))
    assert found(folder) == []
    index = Index.load(folder)
    shard, key, offset = place(index, 2)
    flip(folder, shard, offset + 600)
    assert found(folder) == [(shard, key, CHANGED)]
    change_table(folder, "index.arrow", {"key": [*index.columns.keys.to_pylist()[:3], "other"]})
    assert found(folder)[1] == (shard, "other", f"its member in the shard has the name '{long}3.JPG'")
