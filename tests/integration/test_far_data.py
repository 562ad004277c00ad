"""Trainings over data in a real S3 server and behind a real web server."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import yaml

from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.sources.glyphs import Glyphs
from tests.data.servers import HttpServer, S3Server
from tests.distributed.pool import GlooPool
from tests.integration.runs import batches, curve, steps_of, task_of, work_on_rank, write_config
from tests.integration.test_ray import start

WINDOWED = "data.window_shards=2"


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 classes in about ten shards of each split."""
    folder = tmp_path_factory.mktemp("far") / "glyphs"
    source = Glyphs(limit_classes=48, num_processes=1)
    pack(source, folder, PackOptions(shard_size_bytes=200_000, num_processes=1))
    return folder


@pytest.fixture
def config_file(many_shards: Path, tmp_path: Path) -> Path:
    path = write_config(tmp_path / "far.yaml", many_shards, tmp_path)
    values = yaml.safe_load(path.read_text())
    values["data"] |= {"cache_folder": str(tmp_path / "cache"), "retry_seconds": 60}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("windows", [WINDOWED, "data.window_shards=0"], ids=["windowed", "whole"])
def test_a_web_server_gives_the_same_run_as_the_disk(
    gloo_pool: GlooPool, many_shards: Path, config_file: Path, tmp_path: Path, windows: str
) -> None:
    near = task_of(config_file, "near", windows)
    gloo_pool.run(1, work_on_rank, near)
    with HttpServer(many_shards.parent, tmp_path / "state") as server:
        far = task_of(config_file, "far", windows, f"data.path={server.url}/glyphs")
        gloo_pool.run(2, work_on_rank, far)
        fetched = [server.requests(f"glyphs/{path.name}") for path in many_shards.glob("*.tar")]
    assert batches(far.folder) == batches(near.folder)
    assert curve(far.folder) == curve(near.folder)
    assert max(fetched) == 1  # one of the workers fetched it for both


def test_a_cache_that_is_too_small_is_refused_before_any_work(
    config_file: Path, many_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dmlscale.cli import main

    with HttpServer(many_shards.parent, tmp_path / "state") as server:
        arguments = ["train", str(config_file), "--local", f"data.path={server.url}/glyphs", "data.cache_gb=0.0015"]
        assert main(arguments) == 2
        assert "set data.window_shards" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_s3_server_that_is_killed_for_20_seconds_does_not_end_the_run(
    gloo_pool: GlooPool, many_shards: Path, config_file: Path, tmp_path: Path
) -> None:
    steps = "train.steps=120"
    near = task_of(config_file, "near", WINDOWED, steps)
    gloo_pool.run(1, work_on_rank, near)
    folder = tmp_path / "runs" / "far"
    with S3Server(many_shards) as server:
        # A cache that holds a few shards only: the run needs the server to its end.
        size = 7 * max(path.stat().st_size for path in many_shards.glob("*.tar"))
        options = f"data.storage_options={{endpoint_url: '{server.url}'}}"
        arguments = ("data.path=s3://bucket/glyphs", options, WINDOWED, steps, f"data.cache_gb={size / 1e9}")
        process = start(config_file, "run.name=far", "resources.workers=2", *arguments)
        deadline = time.monotonic() + 240
        while not (folder / "progress.jsonl").exists() or not steps_of(folder):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        server.kill()
        before = len(steps_of(folder))
        revive = threading.Timer(20.0, server.start)
        revive.start()
        output = process.communicate(timeout=200)[0]
        revive.join()
    assert process.returncode == 0, output
    assert before < 110, "the run was over before the server was killed"
    assert batches(folder) == batches(near.folder)
    assert curve(folder) == pytest.approx(curve(near.folder), rel=1e-4)
    assert "samples skipped" not in output
