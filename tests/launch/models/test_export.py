"""What the command writes: all files or none, and an ONNX file that gives the same embeddings."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from dmlscale.cli import main
from dmlscale.data.errors import DataError
from dmlscale.data.inputs import InputKind
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.models import onnx_export
from dmlscale.launch.models.export import export
from dmlscale.launch.models.model_folder import load_model
from dmlscale.launch.models.onnx_export import export_onnx
from dmlscale.models.embedder import Embedder
from tests.launch.models.checkpoints import pack_samples, write_checkpoint
from tests.launch.test_every_input import CASES

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
GROUP_NORM = "model.options={channels: [8, 8, 16, 16], stem_width: 8, norm_layer: groupnorm1}"
KINDS = {"image": "image", "views": "views", "vectors": "array"}


def write_run(folder: Path, case: str, *overrides: str) -> Path:
    """A run with a checkpoint and its dataset of six samples."""
    pack_samples(folder / "data", cast(InputKind, KINDS[case]), [CASES[case][0]] * 6)
    write_checkpoint(folder / "run", case, f"data.path={folder / 'data'}", *overrides)
    return folder / "run"


@pytest.mark.parametrize("case", ["image", "group norm", "frozen", "views", "vectors"])
def test_onnx_gives_the_same_embeddings_at_any_batch_size(case: str, tmp_path: Path) -> None:
    overrides = {"group norm": [GROUP_NORM], "frozen": ["model.batch_norm=frozen", "model.normalize=false"]}
    run = write_run(tmp_path, case if case in CASES else "image", *overrides.get(case, []))
    assert export(str(run), str(tmp_path / "out"), onnx=True, register=None) == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["model.json", "model.onnx", "model.safetensors"]
    model = load_model(str(tmp_path / "out"))
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert taken.name == "images"
    for size in (1, 3, 7):
        images = np.random.default_rng(size).normal(size=(size, *taken.shape[1:])).astype(np.float32)
        (found,) = session.run(["embeddings"], {"images": images})
        np.testing.assert_allclose(found, model.embed_images(torch.from_numpy(images)), atol=1e-4)


def test_it_says_little_and_writes_a_folder_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, "vectors")
    (tmp_path / "out").mkdir()  # empty: as good as none
    assert main(["export", str(run), str(tmp_path / "out"), "--onnx"]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert [line.split()[0] for line in printed.out.splitlines()] == ["model", "exported"]
    assert sorted(os.listdir(tmp_path)) == ["data", "out", "run"]


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    run = write_checkpoint(tmp_path / "run", "vectors")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    for target in (tmp_path / "out", tmp_path / "out" / "mine"):
        with pytest.raises(LaunchError, match="no empty folder"):
            export(str(run), str(target), onnx=False, register=None)
    with pytest.raises(LaunchError, match="cannot write"):
        export(str(run), str(tmp_path / "out" / "mine" / "below"), onnx=False, register=None)
    assert sorted(os.listdir(tmp_path)) == ["out", "run"]
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_without_onnx_the_dataset_is_not_needed(tmp_path: Path) -> None:
    run = write_checkpoint(tmp_path / "run", "vectors", f"data.path={tmp_path / 'gone'}")
    assert export(str(run), str(tmp_path / "out"), onnx=False, register=None) == 0
    with pytest.raises(DataError, match="gone"):
        export(str(run), str(tmp_path / "other"), onnx=True, register=None)
    assert not (tmp_path / "other").exists()


def test_a_run_that_is_not_tracked_cannot_be_registered(tmp_path: Path) -> None:
    run = write_checkpoint(tmp_path / "run", "vectors")
    with pytest.raises(LaunchError, match="not tracked"):
        export(str(run), str(tmp_path / "out"), onnx=False, register="name")
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "PACKAGES", ("onnx", "not_there"))
    run = write_checkpoint(tmp_path / "run", "vectors")
    with pytest.raises(LaunchError, match=r"--onnx needs not_there: pip install 'dmlscale\[onnx\]'"):
        export(str(run), str(tmp_path / "out"), onnx=True, register=None)


class Noisy(Embedder):
    """Never gives the same embedding twice."""

    def forward(self, images: Tensor) -> Tensor:
        found = super().forward(images)
        return found + 1e-2 * torch.rand_like(found)


class Branching(Embedder):
    """Asks the values what to do."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (2 if float(images.sum()) > 0 else 1)


@pytest.mark.parametrize(("kind", "message"), [(Noisy, "gives other embeddings"), (Branching, "cannot be written")])
def test_what_onnx_cannot_say_leaves_no_file(kind: type[Embedder], message: str, tmp_path: Path) -> None:
    model = load_model(str(write_checkpoint(tmp_path / "run", "vectors")))
    network = kind(model.embedder.backbone, 16, 5)
    with pytest.raises(LaunchError, match=message):
        export_onnx(replace(model, embedder=network), tmp_path / "model.onnx", torch.ones(5, 12))
    assert not (tmp_path / "model.onnx").exists()
