from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from dmlscale.data.packing.pack import ensure_packed
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.sources.glyphs import Glyphs
from tests.distributed.pool import GlooPool

# How long an example takes, or its data take to make, says more of the machine's other work than of the code;
# pytest-timeout finds hangs.
hypothesis.settings.register_profile(
    "no_deadline", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("no_deadline")


@pytest.fixture(scope="session")
def gloo_pool() -> Iterator[GlooPool]:
    """Four gloo processes, started once for the whole test session."""
    pool = GlooPool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small packed set: 24 classes to train on, 24 others to test; tests must not change it."""
    folder = tmp_path_factory.mktemp("data") / "glyphs"
    ensure_packed(Glyphs(limit_classes=24, num_processes=1), folder, PackOptions(num_processes=1))
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Ranks of a test share the cores: more threads would only wait for each other.

    Before each test, since trainings in this process take all cores.
    """
    torch.set_num_threads(1)
