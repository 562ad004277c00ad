"""The settings in a checkpoint may be a stranger's: they make no file be read and no code be run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmlscale.launch.models.model_folder import load_checkpoint, load_model
from dmlscale.training.checkpoint import CheckpointError
from tests.launch.models.checkpoints import write_checkpoint
from tests.launch.test_every_input import CASES
from tests.training.checkpoint.made import forge


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._trace),)


def with_option(path: Path, name: str, value: object) -> None:
    forge(path, lambda body: body["record"]["config"]["model"]["options"].update({name: value}))


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"])
def test_options_that_would_read_files_are_left_out(tmp_path: Path, option: str) -> None:
    path, trace = write_checkpoint(tmp_path / "run", "image"), tmp_path / "payload-was-run"
    expected = load_checkpoint(path).embed_parts([CASES["image"][0]])
    torch.save(Payload(trace), tmp_path / "weights.pth")
    file = str(tmp_path / "weights.pth")
    with_option(path, option, file if option in ("checkpoint_path", "cache_dir") else {"file": file, "url": file})
    forge(path, lambda body: body["record"]["config"]["model"].update(pretrained=True))
    np.testing.assert_array_equal(load_checkpoint(path).embed_parts([CASES["image"][0]]), expected)
    assert not trace.exists()


def test_a_hostile_checkpoint_is_one_clear_error_of_a_model(tmp_path: Path) -> None:
    path, trace = write_checkpoint(tmp_path / "run", "image"), tmp_path / "payload-was-run"
    (file,) = path.glob("*.safetensors")
    file.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(CheckpointError, match=rf"is damaged \({file.name}: "):
        load_model(str(path))
    (path / "record.json").write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(CheckpointError, match=r"record\.json"):
        load_model(str(path))
    assert not trace.exists()
