from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.integration.runs import write_config

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs a GPU."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="torch sees no GPU"))


@pytest.fixture
def device() -> torch.device:
    """Of the tests."""
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def config_file(tmp_path: Path, glyphs: Path) -> Path:
    """A config that trains a small network on the GPU for 20 steps, and logs each."""
    return write_config(tmp_path / "small.yaml", glyphs, tmp_path, resources={"workers": 1, "device": "gpu"})
