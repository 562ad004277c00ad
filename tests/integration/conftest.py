from __future__ import annotations

from pathlib import Path

import pytest

from dmlscale.launch.run import lease
from tests.integration.runs import write_config


@pytest.fixture(autouse=True)
def one_driver_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run waits half a second for another driver that came at the same time; here, in this process, there is none."""
    monkeypatch.setattr(lease, "_LOOK_EVERY_S", 0.01)


@pytest.fixture
def config_file(tmp_path: Path, glyphs: Path) -> Path:
    """A config that trains a small network for 20 steps, and logs each."""
    return write_config(tmp_path / "small.yaml", glyphs, tmp_path)
