"""Checkpoints that somebody forged: nothing in them is run, nothing outside of them read, and each is one clear error.

Whoever forges one can make its digests right; so do these tests.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from dmlscale.distributed.world import World
from dmlscale.training import checkpoint
from tests.training.checkpoint.made import forge, forge_file, pieces_of, read_values, step_path, values, write


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._trace),)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(World(), tmp_path, [100])
    return step_path(tmp_path, 100)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Is there when a payload was run."""
    return tmp_path / "payload-was-run"


def refused(path: Path) -> str:
    """Everything that reads a checkpoint refuses this one, with the error of `load`."""
    assert checkpoint.verify(path)
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.newest_for_all(path.parent, World(), print)
    with pytest.raises(checkpoint.CheckpointError) as caught:
        read_values(path)
    with pytest.raises(checkpoint.CheckpointError):
        read_values(path, is_verified=True)
    return str(caught.value)


def of_first_file(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda body: change(body["files"][0])


def of_first_piece(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda body: change(body["files"][0]["pieces"][0])


@pytest.mark.parametrize(
    "name",
    [
        *("../../x.safetensors", "/etc/passwd", "/etc/x.safetensors", "..", "", "a/b.safetensors", "a\\b.safetensors"),
        *("record.json", "x.safetensors\n", "x.pt", "\u0000.safetensors", "x" * 300 + ".safetensors", 5, None, ["a"]),
        *("file:///etc/x.safetensors", "%2e%2e/x.safetensors", "\ud800.safetensors"),
    ],
)
def test_a_file_may_not_lie_elsewhere(path: Path, tmp_path: Path, name: object) -> None:
    shutil.copy(pieces_of(path)[0], tmp_path / "x.safetensors")
    shutil.copy(pieces_of(path)[0], tmp_path.parent / "x.safetensors")
    forge(path, of_first_file(lambda file: file.update(name=name)))
    assert "record.json" in refused(path)


def test_a_link_out_of_the_folder_is_not_followed(path: Path, tmp_path: Path) -> None:
    file = pieces_of(path)[0]
    shutil.move(file, tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert "it is a link or no file" in refused(path)


def test_a_record_that_is_a_link_or_a_pipe_is_not_opened(path: Path, tmp_path: Path) -> None:
    shutil.move(path / "record.json", tmp_path / "elsewhere.json")
    (path / "record.json").symlink_to(tmp_path / "elsewhere.json")
    assert "cannot read" in refused(path)
    (path / "record.json").unlink()
    os.mkfifo(path / "record.json")
    with pytest.raises(checkpoint.CheckpointError, match="it is no file"):
        checkpoint.read_record(path)


def pickled(trace: Path) -> dict[str, bytes]:
    torch_file = trace.with_name("torch-file")
    torch.save(Payload(trace), torch_file)
    with zipfile.ZipFile(torch_file) as archive:
        assert any(name.endswith("data.pkl") for name in archive.namelist())
    return {
        "pickle": pickle.dumps(Payload(trace)),
        "protocol 0": pickle.dumps(Payload(trace), protocol=0),
        "torch": torch_file.read_bytes(),
    }


@pytest.mark.parametrize("kind", ["pickle", "protocol 0", "torch"])
def test_a_pickle_is_not_unpickled(path: Path, trace: Path, kind: str) -> None:
    content = pickled(trace)[kind]
    forge_file(path, content + bytes(4096))
    assert "damaged" in refused_inside(path)
    (path / "record.json").write_bytes(content)
    refused(path)
    assert not trace.exists()


def refused_inside(path: Path) -> str:
    """Of a checkpoint whose digests are right: it is whole, and what is in it is refused when it is read."""
    assert checkpoint.verify(path) == []
    with pytest.raises(checkpoint.CheckpointError) as caught:
        read_values(path)
    return str(caught.value)


def with_header(header: object, length: int | None = None, body: bytes = bytes(4096)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS = {
    "a header of 2^60 bytes": with_header({}, 2**60),
    "a header of 2^64 - 1 bytes": with_header({}, 2**64 - 1),
    "a header longer than the file": with_header({}, 5000),
    "no header": b"",
    "a header that is cut off": b"\x01\x00",
    "a header that is no JSON": with_header(b"\x80\x04."),
    "a header nested deeply": with_header(b"[" * 100_000 + b"]" * 100_000),
    "overlapping tensors": with_header(
        {"long": entry(0, 240, [20, 3]), "short": entry(212, 240, [7])}, body=bytes(240)
    ),
    "values beyond the end": with_header({"long": entry(2**40, 2**40 + 240, [20, 3]), "short": entry(0, 28, [7])}),
    "a hole": with_header({"long": entry(100, 340, [20, 3]), "short": entry(0, 28, [7])}, body=bytes(340)),
    "sizes that overflow": with_header({"long": entry(0, 240, [2**62, 4]), "short": entry(240, 268, [7])}),
    "a negative size": with_header({"long": entry(0, 240, [-20, -3]), "short": entry(240, 268, [7])}),
    "a type that there is not": with_header({"long": entry(0, 240, [20, 3], "X9"), "short": entry(240, 268, [7])}),
    "another shape": save({"long": torch.zeros(1, 3), "short": torch.zeros(7), "more": torch.zeros(57)}),
    "another order of sizes": save({"long": torch.zeros(3, 20), "short": torch.zeros(7)}),
    "another type": save({"long": torch.zeros(20, 3, dtype=torch.int32), "short": torch.zeros(7)}),
    "a tensor less": save({"short": torch.zeros(7), "more": torch.zeros(60)}),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_file_that_holds_something_else(path: Path, kind: str) -> None:
    """With the digest of what it holds. Where it is too small for its pieces, the record itself tells."""
    forge_file(path, HEADERS[kind])
    begin = time.monotonic()
    with pytest.raises(checkpoint.CheckpointError) as caught:
        read_values(path)
    is_small = len(HEADERS[kind]) < 268
    assert re.search(
        r"record\.json: .* its pieces have more" if is_small else r"is damaged \(.*\.safetensors: ", str(caught.value)
    )
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("number", [-1, 2**63, 10**400, 1.5, float("nan"), float("inf"), "5", True, None, [], {}])
@pytest.mark.parametrize("key", ["step", "num_ranks", "size", "offsets", "sizes", "shape"])
def test_numbers_that_are_none(path: Path, key: str, number: Any) -> None:
    def change(body: dict[str, Any]) -> None:
        if key in ("step", "num_ranks"):
            body["record"][key] = number
        elif key == "size":
            body["files"][0]["size"] = number
        else:
            body["files"][0]["pieces"][0][key][0] = number

    if key == "num_ranks" and number in (2**63, 10**400) and not isinstance(number, bool):
        return  # of how many it was written is told to people and used for nothing
    forge(path, change)
    assert "record.json" in refused(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.pop("record"),
        lambda body: body.pop("files"),
        lambda body: body.pop("format"),
        lambda body: body.update(format=2),
        lambda body: body.update(format={}),
        lambda body: body.update(files={}),
        lambda body: body.update(record=[]),
        lambda body: body["record"].pop("position"),
        lambda body: body["record"].update(position={"epoch": "x"}),
        lambda body: body["record"].update(config=[]),
        lambda body: body["files"].append(body["files"][0]),
        of_first_file(lambda file: file["pieces"].append(file["pieces"][0])),
        of_first_file(lambda file: file.update(size=10)),
        of_first_piece(lambda piece: piece.update(dtype="object")),
        of_first_piece(lambda piece: piece.update(dtype="__class__")),
        of_first_piece(lambda piece: piece.update(shape=[2**40, 2**20])),
        of_first_piece(lambda piece: piece.update(offsets=[1, 0])),
    ],
)
def test_records_that_do_not_hang_together(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    forge(path, lambda body: (change(body), None)[1])
    message = refused(path)
    assert "record.json" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda body: body["files"].clear(), "no tensor 'long'"),
        (of_first_file(lambda file: file["pieces"].pop()), "no tensor"),
        (of_first_piece(lambda piece: piece.update(name="")), "no tensor"),
        (of_first_piece(lambda piece: piece.update(shape=[], offsets=[], sizes=[])), r"is \(\) float32 there"),
        (of_first_piece(lambda piece: piece.update(dtype="bfloat16")), "bfloat16 there"),
    ],
)
def test_records_of_something_else(path: Path, change: Callable[[dict[str, Any]], Any], what: str) -> None:
    forge(path, lambda body: (change(body), None)[1])
    with pytest.raises(checkpoint.CheckpointError, match=what):
        read_values(path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '{"format": 1, "format": 1}',
        '{"format": ' + "9" * 100_000 + "}",
        "[]",
        "null",
        "NaN",
        '"text"',
        "",
        "\ufeff{}",
    ],
    ids=["lists", "dicts", "repeated", "digits", "list", "null", "nan", "text", "empty", "mark"],
)
def test_texts_that_are_no_records(path: Path, text: str) -> None:
    (path / "record.json").write_text(text)
    message = refused(path)
    assert len(message) < 600
    with pytest.raises(checkpoint.CheckpointError, match=r"record\.json"):
        checkpoint.read_record(path)


def test_a_repeated_key_is_not_chosen_from(path: Path) -> None:
    """Two readers would take different ones."""
    text = (path / "record.json").read_text()
    (path / "record.json").write_text(text.replace('"step": 100', '"step": 5, "step": 100', 1))
    assert "a key comes twice" in refused(path)


def old_checkpoint(path: Path, trace: Path) -> None:
    """As versions before wrote it."""
    path.mkdir()
    (path / ".metadata").write_bytes(pickle.dumps(Payload(trace)))
    (path / "__0_0.distcp").write_bytes(pickle.dumps(Payload(trace)))
    record = {"step": 100, "position": {}, "num_ranks": 1, "config": {}, "tracking": {}}
    (path / "record.json").write_text(json.dumps(record))


def test_a_checkpoint_of_an_earlier_version_is_named_and_not_opened(tmp_path: Path, trace: Path) -> None:
    path = step_path(tmp_path, 100)
    old_checkpoint(path, trace)
    assert "written by an earlier version" in refused(path)
    with pytest.raises(checkpoint.CheckpointError, match="Export its model with that version, or train again"):
        checkpoint.latest(tmp_path)
    assert not trace.exists()


def test_pickles_beside_a_checkpoint_are_nothing_to_it(path: Path, trace: Path) -> None:
    for name in (".metadata", "__0_0.distcp", "data.pkl", "attempt-0009_rank-00000-of-00001.json"):
        (path / name).write_bytes(pickle.dumps(Payload(trace)))
    assert checkpoint.verify(path) == []
    assert all(torch.equal(found, values(100)[name]) for name, found in read_values(path).items())
    assert not trace.exists()
