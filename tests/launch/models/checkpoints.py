"""Checkpoints of networks that nobody trained, and datasets for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dmlscale.config.load import load_config
from dmlscale.data.inputs import InputKind
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.distributed.world import World
from dmlscale.launch.build import build_embedder
from dmlscale.training import checkpoint
from dmlscale.training.state import Record
from tests.data.listed import Listed, item
from tests.launch.test_every_input import CASES

WORLD = World()


def write_checkpoint(
    run: Path, case: str, *overrides: str, step: int = 7, tracked: dict[str, str | None] | None = None
) -> Path:
    """A checkpoint of random weights, other ones at each step, in the run's folder.

    Args:
        run: the run's folder.
        case: of `CASES`, which says the input and the network.
        overrides: of the config.
        step: of the checkpoint.
        tracked: the record's word on tracking.
    """
    small = ["model.backbone=resnet10t", "model.embedding_dim=5", "data.channels=3", *CASES[case][1]]
    config = load_config(
        "configs/quickstart.yaml", [*small, f"run.name={run.name}", f"run.folder={run.parent}", *overrides]
    )
    embedder = build_embedder(config)
    generator = torch.Generator().manual_seed(step)
    for tensor in embedder.state_dict().values():
        if tensor.is_floating_point():  # also the statistics of batch normalisation, which are positive
            tensor.mul_(torch.rand(tensor.shape, generator=generator) + 0.5)
    weights = {f"model.{name}": tensor for name, tensor in embedder.state_dict().items()}
    tracking: dict[str, str | None] = tracked or {"uri": "", "run": None}
    record = Record(step, {"epoch": 0, "step": step}, 1, config.model_dump(mode="json"), tracking)
    return checkpoint.save(run / "checkpoints", weights, record, WORLD, keep=9)


def pack_samples(folder: Path, kind: InputKind, samples: Sequence[Sequence[bytes]]) -> None:
    """Packs samples as the split "test", each of a class of its own."""
    extension = {"image": "png", "views": "png", "array": "npy", "audio": "wav"}[kind]
    listed = tuple(item(f"s{n}", f"c{n}", "test", parts=parts, extension=extension) for n, parts in enumerate(samples))
    pack(Listed(listed, kind), folder, PackOptions(num_processes=1))
