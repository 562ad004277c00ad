"""Whatever is changed in a checkpoint: it is read as it was, or refused with the one error that all callers know."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.distributed.world import World
from dmlscale.training import checkpoint
from tests.training.checkpoint.made import forge, pieces_of, read_values, step_path, values, write

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write(World(), folder, [100])
    return step_path(folder, 100)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the checkpoint is copied to, to be damaged."""
    return step_path(tmp_path_factory.mktemp("damaged"), 100)


def copied(whole: Path, path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    return Path(shutil.copytree(whole, path))


def places(node: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a tree of JSON."""
    yield way
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from places(child, (*way, key))


def is_as_it_was(path: Path) -> bool:
    return all(torch.equal(found, values(100)[name]) for name, found in read_values(path).items())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_byte_of_any_file(whole: Path, path: Path, data: st.DataObject) -> None:
    copied(whole, path)
    file = data.draw(st.sampled_from([path / "record.json", *pieces_of(path)]))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    damage = checkpoint.verify(path)
    if not damage:  # a space became a tab, or the like
        assert file.name == "record.json"
        assert json.loads(file.read_text()) == json.loads((whole / "record.json").read_text())
        assert is_as_it_was(path)
        return
    with pytest.raises(checkpoint.CheckpointError):
        read_values(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_value_of_the_record_with_a_digest_that_matches(whole: Path, path: Path, data: st.DataObject) -> None:
    copied(whole, path)
    body = json.loads((path / "record.json").read_text())
    body.pop("sha256")
    way = data.draw(st.sampled_from([way for way in places(body) if way]))
    value = data.draw(JSON)

    def change(body: Any) -> None:
        for key in way[:-1]:
            body = body[key]
        body[way[-1]] = value

    forge(path, change)
    try:
        assert is_as_it_was(path) or way[0] == "files"  # it may name one tensor as another of its shape
    except checkpoint.CheckpointError:
        return
    checkpoint.read_record(path)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200), number=st.integers(0, 1))
def test_a_file_of_anything(whole: Path, path: Path, content: bytes, number: int) -> None:
    copied(whole, path)
    [*pieces_of(path), path / "record.json"][number].write_bytes(content)
    assert checkpoint.verify(path)
    with pytest.raises(checkpoint.CheckpointError):
        read_values(path)
