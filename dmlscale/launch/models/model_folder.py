"""Trained models, wherever they are kept: in an exported folder, a checkpoint, or a run with checkpoints."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch

from dmlscale.config.load import check_config
from dmlscale.distributed.world import World
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.models.embedding_model import EmbeddingModel, Origin, hash_of_weights
from dmlscale.launch.models.exported_folder import MODEL_FILE, assemble, load_exported, untrained
from dmlscale.launch.run.checkpoint_places import find_checkpoint
from dmlscale.training import checkpoint

_PACKAGES = ("dmlscale", "torch", "torchvision", "timm")


def load_model(path: str, *, device: torch.device | None = None) -> EmbeddingModel:
    """A trained model from wherever it is kept.

    Args:
        path: an exported folder, a checkpoint, or a run's folder, of which the newest checkpoint is taken. They hold
            numbers and settings alone: nothing in them is run, whoever made them.
        device: of the network; None is the CPU.

    Raises:
        LaunchError: there is no model, or it is damaged or of an unknown format.
        CheckpointError: the checkpoint is damaged.
    """
    if (Path(path) / MODEL_FILE).is_file():
        return load_exported(path, device=device)
    try:
        found = find_checkpoint(path)
    except LaunchError:
        raise LaunchError(f"{path} holds no model: it is neither an exported folder nor a checkpoint or run") from None
    return load_checkpoint(found, device=device)


def load_checkpoint(path: Path, *, device: torch.device | None = None) -> EmbeddingModel:
    """The model of a checkpoint, as the run's evaluation had it.

    Raises:
        CheckpointError: it is damaged.
    """
    record = checkpoint.read_record(path)
    config = check_config(record.config, str(path / "record.json"))
    embedder = untrained(config)
    stored = {f"model.{name}": tensor for name, tensor in embedder.state_dict().items()}
    checkpoint.load(path, stored, World())
    origin = Origin(
        run=config.run.name or path.parent.parent.name,
        step=record.step,
        dataset=Path(config.data.path).name,
        losses=" + ".join(term.name for term in config.losses),
        versions={package: version(package) for package in _PACKAGES},
    )
    return assemble(embedder, config, origin, hash_of_weights(embedder.state_dict()), device)
