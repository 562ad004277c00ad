"""Checkpoints under a URL: written, kept, removed and read as in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
import torch

from dmlscale.distributed.world import World
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.fetching import forget_others, load_newest
from dmlscale.training.checkpoint.remote_store import RemoteStore
from dmlscale.training.checkpoint.retention import Retention, Scores
from dmlscale.training.checkpoint.saver import Failed
from dmlscale.training.checkpoint.saving import tidy
from dmlscale.training.checkpoint.store import LocalStore, Store, open_store, record_in
from tests.data.servers import S3Server
from tests.distributed.pool import GlooPool
from tests.training.checkpoint.savers import record_of, saver_in, tensors_of

W1 = World()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        server.put("bucket", "other", b"makes the bucket")
        yield server


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(f"file://{tmp_path}/checkpoints", {})
    if request.param == "memory":
        return open_store(f"memory://{uuid4().hex}/checkpoints", {})
    server = request.getfixturevalue("s3")
    return open_store(f"s3://bucket/{uuid4().hex}/checkpoints", server.options)


def save(store: Store, world: World, *steps: int, keep: int = 2) -> list[Failed | None]:
    saver, found = saver_in(store, world, keep=keep), []
    for step in steps:
        saver.save(tensors_of(step), record_of(step, world))
        found.append(saver.settle())
    return found


def read_newest(store: Store, world: World = W1) -> tuple[str | None, list[str], dict[str, torch.Tensor]]:
    """The newest checkpoint's name, what is said of others, and its tensors."""
    faults: list[str] = []
    tensors = {name: torch.zeros_like(tensor) for name, tensor in tensors_of(0).items()}
    found = load_newest(store, tensors, world, lambda fault: faults.append(fault))
    return None if found is None else found[0], faults, tensors


def test_round_trip_and_retention(store: Store) -> None:
    assert store.complete() == []
    assert read_newest(store)[0] is None
    store.check_writable()
    assert save(store, W1, 10, 20, 30) == [None] * 3
    assert store.complete() == ["step_00000020", "step_00000030"]
    assert store.partial() == []
    assert record_in(store, "step_00000030") == record_of(30, W1)
    name, faults, tensors = read_newest(store)
    assert (name, faults) == ("step_00000030", [])
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in tensors_of(30).items())


def test_partial_ones_are_none_and_are_removed(store: Store) -> None:
    save(store, W1, 10)
    (store.stage("step_00000020") / "attempt-0001_x.safetensors").write_bytes(b"part")
    store.deliver("step_00000020", "attempt-0001_x.safetensors")
    assert store.complete() == ["step_00000010"]
    assert store.partial() == ["step_00000020"]
    assert read_newest(store)[0] == "step_00000010"
    forget_others(store, "step_00000010")
    assert store.partial() == []
    assert store.complete() == ["step_00000010"]


@pytest.mark.parametrize("damage", ["record", "tensors", "missing"])
def test_a_damaged_one_is_passed_over_told_and_removed(store: Store, damage: str) -> None:
    save(store, W1, 10, 20)
    (file,) = [file for file in store.files("step_00000020") if file.endswith(".safetensors")]
    if damage == "record":
        store.put("step_00000020", "record.json", "{")
    elif damage == "tensors":
        store.put("step_00000020", file, "damaged")
    else:
        store.remove_file("step_00000020", file)
    name, faults, tensors = read_newest(store)
    assert name == "step_00000010"
    assert "step_00000020 is damaged" in faults[0]
    assert "going back to step_00000010" in faults[0]
    assert torch.equal(tensors["short"], tensors_of(10)["short"])
    forget_others(store, name)
    assert store.complete() == ["step_00000010"]


def test_where_none_is_whole_nothing_begins_again(store: Store) -> None:
    save(store, W1, 10)
    store.put("step_00000010", "record.json", "{")
    with pytest.raises(CheckpointError, match=r"is whole: .* to begin again from step 0, move .* away"):
        read_newest(store)
    assert store.complete() == ["step_00000010"]


def test_a_record_that_is_no_text_is_damage(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    save(store, W1, 10)
    (tmp_path / "step_00000010" / "record.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(CheckpointError, match=r"record\.json: it is no JSON"):
        record_in(store, "step_00000010")


def test_a_file_that_is_being_put_is_not_tidied_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation may be noted in the moment in which the checkpoint becomes complete."""
    store = LocalStore(tmp_path)
    save(store, W1, 10)
    replace = os.replace

    def tidied_before(source: Path, target: Path) -> None:
        tidy(store, "step_00000010")
        replace(source, target)

    monkeypatch.setattr("os.replace", tidied_before)
    store.put("step_00000010", "metrics.json", "{}")
    assert "metrics.json" in store.files("step_00000010")


def test_the_best_are_kept(store: Store) -> None:
    scores = Scores(store, Retention(1, 1, "recall_at_1"))
    saver = saver_in(store)
    saver._scores = scores
    for step, value in ((10, 0.9), (20, 0.1), (30, 0.2)):
        saver.save(tensors_of(step), record_of(step, W1))
        assert saver.settle() is None
        scores.note(f"step_{step:08d}", {"recall_at_1": value})
    assert store.complete() == ["step_00000010", "step_00000030"]
    assert Scores(store, Retention(1, 1, "recall_at_1")).best() == ("step_00000010", 0.9)


def save_far(world: World, url: str, options: dict[str, Any]) -> list[Failed | None]:
    return save(open_store(url, options), world, 10, 20)


def read_far(world: World, url: str, options: dict[str, Any]) -> float:
    name, faults, tensors = read_newest(open_store(url, options), world)
    assert (name, faults) == ("step_00000020", [])
    return float(tensors["long"].sum())


def test_another_number_of_ranks_reads_from_far(gloo_pool: GlooPool, s3: S3Server) -> None:
    place = f"s3://bucket/{uuid4().hex}", {**s3.options, "key": "test", "secret": "test"}
    assert gloo_pool.run(3, save_far, *place) == [[None, None]] * 3
    assert gloo_pool.run(2, read_far, *place) == [float(tensors_of(20)["long"].sum())] * 2


def test_a_server_that_is_away_is_a_failure_and_one_that_is_back_is_used() -> None:
    with S3Server() as server:
        server.put("bucket", "other", b"")
        store = RemoteStore("s3://bucket/run", server.options, retry_seconds=1.0)
        server.kill()
        (failed,) = save(store, W1, 10)
        assert failed is not None
        assert failed.reason.startswith("s3://bucket/run cannot be written: ")
        with pytest.raises(CheckpointError, match="cannot be read"):
            store.complete()
        server.start()
        server.put("bucket", "other", b"")
        assert save(store, W1, 20) == [None]
        assert store.complete() == ["step_00000020"]


def test_nothing_stays_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = open_store(f"memory://{uuid4().hex}/checkpoints", {})
    save(store, W1, 10, 20)
    read_newest(store)
    assert [name for _, _, files in os.walk(tmp_path) for name in files if not name.endswith(".lock")] == []
    del store
    assert os.listdir(tmp_path) == []


def test_secrets_are_neither_kept_nor_told(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_SECRET", "a-very-hidden-value")
    options = {"endpoint_url": "http://127.0.0.1:9", "key": "someone", "secret": "env:STORE_SECRET"}
    store = RemoteStore("s3://bucket/run", options, retry_seconds=0.1)
    with pytest.raises(CheckpointError) as caught:
        store.check_writable()
    assert "a-very-hidden-value" not in str(caught.value)
    assert "a-very-hidden-value" not in repr(vars(store))
    monkeypatch.delenv("STORE_SECRET")
    with pytest.raises(CheckpointError, match=r"train\.checkpoint_storage_options\.secret .*STORE_SECRET"):
        RemoteStore("s3://bucket/run", options)


def test_what_no_package_knows_is_said_so() -> None:
    with pytest.raises(CheckpointError, match="nowhere://bucket"):
        open_store("nowhere://bucket/run", {})


def test_a_url_of_this_machine_is_a_folder(tmp_path: Path) -> None:
    for place in (str(tmp_path / "a"), f"file://{tmp_path}/a"):
        store = open_store(place, {})
        assert isinstance(store, LocalStore)
        assert store.folder == tmp_path / "a"
    assert fsspec.filesystem("file").isdir(str(tmp_path / "a"))
