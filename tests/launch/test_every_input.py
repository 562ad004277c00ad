"""Each kind of input from its files to embeddings, by nothing but a config."""

from __future__ import annotations

from io import BytesIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from dmlscale.config.load import load_config
from dmlscale.data.decoding.check import check_bytes
from dmlscale.data.transforms import apply
from dmlscale.launch.build import build_decoder, build_embedder

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
RNG = np.random.default_rng(0)


def picture() -> bytes:
    buffer = BytesIO()
    Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def array(*shape: int) -> bytes:
    buffer = BytesIO()
    np.save(buffer, RNG.normal(size=shape))
    return buffer.getvalue()


def recording() -> bytes:
    buffer = BytesIO()
    wavfile.write(buffer, 22_050, RNG.normal(0, 0.1, 20_000).astype(np.float32))
    return buffer.getvalue()


NETWORK = "model.options={channels: [8, 8, 16, 16], stem_width: 8}"
CHECKED: Any = SimpleNamespace(description={"packing": {"check": True}})  # what a decoder asks an index
PAPERS = [
    "data.transform={name: resize_crop_flip, resize: 36, size: 32, normalize: caffe_bgr}",
    "data.eval_transform={name: papers_eval, resize: 36, size: 32, normalize: caffe_bgr}",
]
CASES = {
    "image": ([picture()], ["data.input=image", NETWORK, *PAPERS], (3, 32, 32)),
    "views": (
        [picture(), picture()],
        ["data.input=views", NETWORK, "model.view_pooling=mean", *PAPERS],
        (2, 3, 32, 32),
    ),
    "maps": (
        [array(5, 20, 24)],
        ["data.input=array", "data.channels=5", NETWORK, "data.transform=as_is", "data.eval_transform=standardize"],
        (5, 20, 24),
    ),
    "vectors": (
        [array(12)],
        [
            "data.input=array",
            "data.transform=as_is",
            "data.eval_transform=as_is",
            "model.backbone=mlp",
            "model.options={in_features: 12, hidden: [16]}",
        ],
        (12,),
    ),
    "audio": (
        [recording()],
        [
            "data.input=audio",
            "data.channels=1",
            "data.audio.mels=64",
            NETWORK,
            "data.transform={name: spectrogram_train, time_mask: 20, band_mask: 8}",
            "data.eval_transform=standardize",
        ],
        (1, 64, 98),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_from_files_to_embeddings(case: str) -> None:
    parts, overrides, shape = CASES[case]
    config = load_config(
        "configs/quickstart.yaml", ["data.channels=3", "model.backbone=resnet10t", "model.embedding_dim=5", *overrides]
    )
    assert check_bytes(config.data.input, parts) is None
    decoder, embedder = build_decoder(config, CHECKED), build_embedder(config)
    samples = [decoder(parts)] * 4
    for setting in (config.data.transform, config.data.eval_transform):
        images = apply(setting.build(), samples, np.arange(4), seed=0, epoch=0)
        assert images.shape == (4, *shape)
        embeddings = embedder(images)
        assert embeddings.shape == (4, 5)
        embeddings.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in embedder.parameters() if p.grad is not None)
    assert embedder.head.weight.grad is not None
