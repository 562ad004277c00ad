from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import torch

from tests.distributed.pool import GlooPool

# How long an example takes says more of the machine's other work than of the code; pytest-timeout finds hangs.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")


@pytest.fixture(scope="session")
def gloo_pool() -> Iterator[GlooPool]:
    """Four gloo processes, started once for the whole test session."""
    pool = GlooPool()
    yield pool
    pool.close()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Ranks of a test share the cores: more threads would only wait for each other."""
    torch.set_num_threads(1)
