"""More than 10,000 classes: fonts are fetched, packed, and trained on with a sharded bank on two Ray workers."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmlscale.data.glyphs.fetch import fetch
from dmlscale.data.index import Index
from dmlscale.data.packing.pack import pack
from dmlscale.data.sources.han import Han
from tests.integration.runs import BESIDE_OTHERS, steps_of, write_config

# Of those that draw most of the characters of Big5: seven pictures of most classes, so that packing is short.
DESIGNS = ("HanaMin", "BabelStoneHan", "WQY-ZenHei", "AR-UKai", "AR-UMing", "cwMing", "cwKai")
MODEL = {
    "backbone": "resnet10t",
    "options": {"channels": [16, 32, 48, 64], "stem_width": 16, "norm_layer": "groupnorm1"},
    "embedding_dim": 64,
}
# The run meets each class once: too few for its proxy, which therefore has little weight.
LOSSES: list[dict[str, Any]] = [
    {"name": "supervised_contrastive"},
    {"name": "norm_softmax", "weight": 0.01, "class_sampling": 0.2},
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("apt-get") is None:
        pytest.skip("fonts are fetched with apt-get")
    folder = tmp_path_factory.mktemp("han")
    failures = fetch(folder / "fonts")
    if not any((folder / "fonts").glob("fonts-*")):
        pytest.skip(f"no package can be downloaded: {next(iter(failures.values()))}")
    pack(Han(str(folder / "fonts"), DESIGNS, min_designs=5, limit_classes=12_000), folder / "packed")
    return folder / "packed"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_classes_train_on_two_ray_workers(packed: Path, tmp_path: Path) -> None:
    index = Index.load(packed)
    assert index.num_classes == 10_800
    assert len(set(index.split("test").labels.tolist())) == 1_200
    config = write_config(tmp_path / "han.yaml", packed, tmp_path, model=MODEL, losses=LOSSES)
    figures = tmp_path / "figures.json"
    options = [
        *("run.name=han", "resources.workers=2", "resources.cpus_per_worker=0.5", "train.bank_start=random"),
        *("data.classes_per_batch=40", "train.steps=250", "train.checkpoint_every=250"),
    ]
    command = [sys.executable, "-m", "dmlscale.cli", "train", str(config), *options, "--json", str(figures)]
    environment = os.environ | BESIDE_OTHERS
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    logged = {step: entry["metrics"] for step, entry in steps_of(tmp_path / "runs" / "han").items()}
    assert sorted(logged) == list(range(1, 251))
    for loss in LOSSES:
        assert all(math.isfinite(metrics[f"train/{loss['name']}"]) for metrics in logged.values())
    first, last = (
        np.mean([logged[step]["train/supervised_contrastive"] for step in steps])
        for steps in (range(1, 21), range(231, 251))
    )
    assert last < 0.7 * first
    # Characters that were never trained on are told apart better than by their pixels.
    measured = json.loads(figures.read_text())
    assert measured["metrics"]["recall_at_1"] > measured["raw_pixels"]["recall_at_1"] + 0.05
