"""Arrays, recordings and views of objects, from the user's files to figures, by the commands alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import wavfile

from dmlscale.cli import main
from tests.integration.runs import new_store

SMALL_NET = {"backbone": "resnet10t", "embedding_dim": 8, "options": {"channels": [8, 8, 16, 16], "stem_width": 8}}
CLASSES, SAMPLES = 6, 6  # of each split
RNG = np.random.default_rng(0)


def write_vectors(folder: Path) -> dict[str, Any]:
    labels = np.repeat(np.arange(2 * CLASSES), SAMPLES)
    centers = RNG.normal(size=(2 * CLASSES, 12))
    splits = np.where(labels < CLASSES, "train", "test")
    np.savez(folder / "all.npz", x=centers[labels] + 0.1 * RNG.normal(size=(len(labels), 12)), y=labels, split=splits)
    return {
        "data": {
            "source": {"name": "arrays", "path": str(folder / "all.npz")},
            "input": "array",
            "transform": "as_is",
            "eval_transform": "as_is",
        },
        "model": {"backbone": "mlp", "options": {"in_features": 12, "hidden": [16]}, "embedding_dim": 8},
    }


def write_recordings(folder: Path) -> dict[str, Any]:
    time = np.arange(8000) / 16_000
    for word in range(2 * CLASSES):
        (folder / f"word{word:02d}").mkdir()
        for take in range(SAMPLES):
            tone = np.sin(2 * np.pi * (300 + 150 * word) * time) + 0.1 * RNG.normal(size=len(time))
            wavfile.write(folder / f"word{word:02d}" / f"{take}.wav", 16_000, (8000 * tone).astype(np.int16))
    return {
        "data": {
            "source": {"name": "speech_commands", "path": str(folder), "protocol": "zero_shot"},
            "input": "audio",
            "channels": 1,
            "audio": {"seconds": 0.5},
            "transform": {"name": "spectrogram_train", "time_mask": 5},
            "eval_transform": "standardize",
            "classes_per_batch": 2,
            "num_streams": 2,
        },
        "model": SMALL_NET,
    }


def write_views(folder: Path) -> dict[str, Any]:
    for label in range(2 * CLASSES):
        split = "train" if label < CLASSES else "test"
        for thing in range(SAMPLES):
            path = folder / split / f"class{label:02d}" / f"thing{thing}"
            path.mkdir(parents=True)
            for view in range(3):
                pixels = np.clip(RNG.normal(20 * label, 10, (24, 24)) + 5 * view, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(path / f"{view}.png")
    return {
        "data": {
            "source": {"name": "views", "path": str(folder), "num_views": 3},
            "input": "views",
            "channels": 1,
            "transform": "standardize_shift",
            "eval_transform": "standardize",
        },
        "model": SMALL_NET | {"view_pooling": "max"},
    }


@pytest.mark.parametrize("write", [write_vectors, write_recordings, write_views])
def test_from_files_to_figures(write: Any, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    values = write(files)
    data = {"path": str(tmp_path / "packed"), "classes_per_batch": 4, "samples_per_class": 4, "num_streams": 2}
    config = {
        "run": {"folder": str(tmp_path / "runs"), "name": "small"},
        "data": data | values["data"],
        "model": values["model"],
        "losses": {"name": "supervised_contrastive"},
        "train": {"steps": 6, "log_every": 1},
        "evaluation": {"gallery_queries": 2},
        "resources": {"device": "cpu"},
        "tracking": {"uri": new_store(tmp_path)},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    figures = tmp_path / "figures.json"
    assert main(["train", str(tmp_path / "config.yaml"), "--local", "--json", str(figures), "--traceback"]) == 0
    result = json.loads(figures.read_text())
    assert result["step"] == 6
    assert not result["skipped"]
    assert result["metrics"]["num_queries"] > 0
    assert set(result["raw_pixels"]) <= set(result["metrics"])
    assert (tmp_path / "runs" / "small" / "report" / "retrieval_gallery.png").is_file()
    assert main(["verify", str(tmp_path / "packed")]) == 0
