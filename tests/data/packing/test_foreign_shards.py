from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.data.errors import DataError
from dmlscale.data.fingerprint import content_hash
from dmlscale.data.packing.foreign_shards import Scan, ScannedSample, ScanReject, scan_shard

Member = tuple[str, bytes]
SAMPLE: list[Member] = [("a.jpg", b"picture"), ("a.cls", b"3")]


def tar(members: Sequence[Member], format: int = tarfile.GNU_FORMAT) -> bytes:
    blocks = io.BytesIO()
    with tarfile.open(fileobj=blocks, mode="w:", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return blocks.getvalue()


def scan(shard: bytes, options: Scan | None = None) -> tuple[list[ScannedSample], list[ScanReject]]:
    found = list(scan_shard(io.BytesIO(shard), options or Scan("image")))
    return [s for s in found if isinstance(s, ScannedSample)], [r for r in found if isinstance(r, ScanReject)]


def reasons(members: Sequence[Member], options: Scan | None = None) -> list[tuple[str, str]]:
    return [(reject.key, reject.reason) for reject in scan(tar(members), options)[1]]


FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_bytes_lie_where_the_scan_says_in_every_tar_format(format: int) -> None:
    long = "" if format == tarfile.USTAR_FORMAT else "long/" * 40
    members = [
        (f"{long}{number:03d}{ending}", data)
        for number in range(20)
        for ending, data in [(".json", b"{}"), (".JPG", bytes([number]) * (number * 97 + 1)), (".cls", b"%d" % number)]
    ]
    shard = tar(members, format)
    samples, rejects = scan(shard)
    assert not rejects
    assert [sample.key for sample in samples] == [f"{long}{number:03d}" for number in range(20)]
    for number, sample in enumerate(samples):
        data = bytes([number]) * (number * 97 + 1)
        assert shard[sample.offset : sample.offset + sample.size] == data
        assert sample[3:] == (1, "jpg", str(number), content_hash([data]))


def test_shards_of_webdatasets_own_writer(tmp_path: Path) -> None:
    written: list[dict[str, Any]] = [
        {"__key__": f"dir.v2/{n}", "png": b"%d" % n * 50, "json": {"label": n % 3}, "mask.png": b"m"} for n in range(9)
    ]
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as sink:
        for sample in written:
            sink.write(sample)
    shard = (tmp_path / "x.tar").read_bytes()
    samples, rejects = scan(shard, Scan("image", label="json:label"))
    assert not rejects
    assert [(s.key, shard[s.offset : s.offset + s.size], s.class_label) for s in samples] == [
        (sample["__key__"], sample["png"], str(sample["json"]["label"])) for sample in written
    ]


names = st.text("abc./_", min_size=1, max_size=6).filter(lambda name: not name.startswith("/") and "//" not in name)
endings = st.sampled_from(["jpg", "PNG", "cls", "json", "0.png", "txt"])


@settings(max_examples=150, deadline=None)
@given(
    members=st.lists(st.tuples(names, endings, st.binary(max_size=1100)), max_size=12),
    format=st.sampled_from(list(FORMATS.values())),
)
def test_any_order_of_members_gives_what_webdataset_reads(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, str, bytes]], format: int
) -> None:
    shard = tar([(f"{name}.{ending}", data) for name, ending, data in members], format)
    path = tmp_path_factory.mktemp("shard") / "x.tar"
    path.write_bytes(shard)
    # It complains about a repeated name, and goes on without.
    handler = webdataset.ignore_and_continue
    dataset = webdataset.WebDataset(str(path), shardshuffle=False, handler=handler, empty_check=False)
    by_webdataset = {sample["__key__"]: sample for sample in dataset}
    samples, rejects = scan(shard)
    assert len({sample.key for sample in samples}) == len(samples)
    for sample in samples:
        data = shard[sample.offset : sample.offset + sample.size]
        extension = sample.extension if sample.extension in by_webdataset[sample.key] else f"0.{sample.extension}"
        if not any(reject.key == sample.key for reject in rejects):
            assert by_webdataset[sample.key][extension] == data
            assert by_webdataset[sample.key]["cls"].decode("utf-8").strip() == sample.class_label
        assert sample.content_hash == content_hash([data])
    assert {s.key for s in samples} | {r.key for r in rejects if r.key} == set(by_webdataset)


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_views_span_from_the_first_header_to_the_last_byte(format: int) -> None:
    long = "" if format == tarfile.USTAR_FORMAT else "long/" * 40
    views = [b"%d" % view * 600 for view in range(3)]
    members = [("z.cls", b"0"), ("z.0.png", b"one"), (f"{long}a.cls", b"7")]
    shard = tar([*members, *((f"{long}a.{view}.png", data) for view, data in enumerate(views))], format)
    samples, rejects = scan(shard, Scan("views"))
    assert not rejects
    assert samples[0].num_parts == 1
    assert shard[samples[0].offset :][: samples[0].size] == b"one"
    assert samples[1].num_parts == 3
    assert samples[1].content_hash == content_hash(views)
    span = shard[samples[1].offset : samples[1].offset + samples[1].size]
    with tarfile.open(fileobj=io.BytesIO(span + bytes(2048)), mode="r:") as archive:
        files = [archive.extractfile(member) for member in archive]
        assert [file.read() for file in files if file is not None] == views


def test_views_apart_from_each_other_are_rejected() -> None:
    members = [("a.0.png", b"0"), ("a.cls", b"1"), ("a.1.png", b"1")]
    assert reasons(members, Scan("views")) == [("a", "its views (0.png, 1.png) do not follow each other in the shard")]


def test_other_inputs_and_chosen_members() -> None:
    members = [
        ("a.left.png", b"left"),
        ("a.right.png", b"right"),
        ("a.wav", b"w"),
        ("a.npy", b"n"),
        ("a.txt", b"cat\n"),
    ]
    shard = tar(members)
    for options, data in [
        (Scan("audio", "txt"), b"w"),
        (Scan("array", "txt"), b"n"),
        (Scan("image", "txt", member="Right.png"), b"right"),
    ]:
        [sample], _ = scan(shard, options)
        assert shard[sample.offset : sample.offset + sample.size] == data
        assert sample.class_label == "cat"
    assert "several files that may be the sample (left.png, right.png)" in reasons(members, Scan("image", "txt"))[0][1]


@pytest.mark.parametrize(
    ("label", "data", "expected"),
    [
        ("cls", b" 12\n", "12"),
        ("cls", "\u00e9t\u00e9".encode(), "\u00e9t\u00e9"),
        ("json:label", b'{"label": 0}', "0"),
        ("JSON:a.b", b'{"a": {"b": "bird"}}', "bird"),
    ],
)
def test_labels(label: str, data: bytes, expected: str) -> None:
    samples, _ = scan(tar([("a.jpg", b"x"), (f"a.{label.split(':')[0]}", data)]), Scan("image", label))
    assert [sample.class_label for sample in samples] == [expected]


BAD_VALUES: list[object] = [1.5, True, None, [1], {}, ""]


@pytest.mark.parametrize(
    ("label", "members", "reason"),
    [
        ("cls", [], "has no label: no member 'cls' (it has: jpg)"),
        ("cls", [("a.cls", b" \n")], "its label 'cls' is empty"),
        ("cls", [("a.cls", b"\xff")], "its label 'cls' is not UTF-8"),
        ("cls", [("a.cls", b"1\n2")], "its label 'cls' is not one line: '1\\n2'"),
        ("json:l", [("a.json", b"{")], "its label 'json:l' cannot be read"),
        ("json:l.m", [("a.json", b'{"l": 3}')], "no key 'm' (there is: no object but 3)"),
        ("json:l", [("a.json", b'{"k": 1}')], "has no label 'json:l': no key 'l' (there is: k)"),
        *(
            ("json:l", [("a.json", json.dumps({"l": value}).encode())], "must be a text or a whole number")
            for value in BAD_VALUES
        ),
    ],
)
def test_bad_labels_are_rejected_one_by_one(label: str, members: list[Member], reason: str) -> None:
    good = {"l": 2} if label == "json:l" else {"l": {"m": 2}}
    others = [("z.jpg", b"z"), ("z.cls", b"1"), ("z.json", json.dumps(good).encode())]
    samples, [reject] = scan(tar([("a.jpg", b"x"), *members, *others]), Scan("image", label))
    assert reject.key == "a"
    assert reason in reject.reason
    assert [sample.key for sample in samples] == ["z"]


@pytest.mark.parametrize(
    ("members", "reject"),
    [
        ([("a.cls", b"1"), ("a.txt", b"")], ("a", "has no file for the input 'image' (it has: cls, txt)")),
        ([("a.jpg", b""), ("a.cls", b"1")], ("a", "the file 'jpg' is empty")),
        ([("a.jpg", b"1"), ("a.JPG", b"2"), ("a.cls", b"1")], ("a", "has two members 'jpg'")),
        ([("a\udcff.jpg", b"1"), ("a\udcff.cls", b"1")], ("a?", "the name is not UTF-8: rename it")),
        (
            [*SAMPLE, ("b.jpg", b"b"), ("b.cls", b"1"), *SAMPLE],
            ("a", "the key comes twice in the shard (its members must follow each other)"),
        ),
        ([("README", b"no dot"), ("__meta__/a.jpg", b"{}")], ("", "the shard holds no samples")),
    ],
)
def test_other_rejects(members: list[Member], reject: tuple[str, str]) -> None:
    assert reasons(members) == [reject]


def test_a_check_decides_which_samples_are_listed() -> None:
    def check(parts: Sequence[bytes]) -> str | None:
        return "is bad" if parts == [b"bad"] else None

    members = [*SAMPLE, ("b.jpg", b"bad"), ("b.cls", b"1")]
    samples, rejects = scan(tar(members), Scan("image", check=check))
    assert [sample.key for sample in samples] == ["a"]
    assert rejects == [("b", "is bad")]


def test_every_truncation_lists_what_is_whole_and_one_reject() -> None:
    members = [(f"{name}.{ending}", data) for name in "abc" for ending, data in [("jpg", b"x" * 700), ("cls", b"1")]]
    shard = tar(members)
    whole, _ = scan(shard)
    last_data = whole[-1].offset + 1024 + 512 + 1  # of c.cls
    for length in range(1, last_data + 512, 100):
        samples, rejects = scan(shard[:length])
        assert samples == whole[: len(samples)]
        assert len(samples) == sum(s.offset + 1024 + 512 + 1 <= length for s in whole)
        assert len(rejects) == 1
        assert "truncated" in rejects[0].reason
        assert rejects[0].key in ("", "abc"[min(len(samples), 2)])


def test_damage_in_the_middle_loses_what_follows_and_says_so() -> None:
    shard = bytearray(tar([*SAMPLE, ("b.jpg", b"b"), ("b.cls", b"2")]))
    shard[2048:2060] = b"\1" * 12
    samples, [reject] = scan(bytes(shard))
    assert [sample.key for sample in samples] == ["a"]
    assert "damaged header at byte 2048" in reject.reason


def test_memory_is_that_of_a_sample(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(
        tar([(f"{number}.{ending}", bytes(100_000)) for number in range(200) for ending in ("jpg", "mp4")])
    )
    tracemalloc.start()
    try:
        with path.open("rb") as file:
            rejects = sum(1 for _ in scan_shard(file, Scan("image")))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rejects == 200
    assert peak < 2_000_000


def test_shards_that_are_none() -> None:
    assert scan(b"") == ([], [("", "the shard is empty (0 bytes)")])
    assert scan(bytes(10240)) == ([], [("", "the shard holds no samples")])
    [reject] = scan(b"<html>404</html>" * 99)[1]
    assert "truncated or damaged" in reject.reason


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_compressed_shards_are_an_error(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, f"w:{mode}") as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo("a.jpg"))
    with path.open("rb") as file, pytest.raises(DataError, match=r"x\.tar is compressed .*decompress"):
        list(scan_shard(file, Scan("image")))
