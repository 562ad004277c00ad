from __future__ import annotations

from pathlib import Path

import pytest

from dmlscale.data.packing.pack import ensure_packed
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.sources.glyphs import Glyphs
from dmlscale.launch.run import lease
from tests.integration.runs import write_config


@pytest.fixture(scope="session")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small packed set: 24 classes to train on, 24 others to test."""
    folder = tmp_path_factory.mktemp("data") / "glyphs"
    ensure_packed(Glyphs(limit_classes=24, num_processes=1), folder, PackOptions(num_processes=1))
    return folder


@pytest.fixture(autouse=True)
def one_driver_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run waits half a second for another driver that came at the same time; here, in this process, there is none."""
    monkeypatch.setattr(lease, "_LOOK_EVERY_S", 0.01)


@pytest.fixture
def config_file(tmp_path: Path, glyphs: Path) -> Path:
    """A config that trains a small network for 20 steps, and logs each."""
    return write_config(tmp_path / "small.yaml", glyphs, tmp_path)
