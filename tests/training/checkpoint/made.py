"""Checkpoints that tests damage or forge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmlscale.distributed.world import World
from dmlscale.training import checkpoint
from dmlscale.training.state import Record


def values(step: int) -> dict[str, Tensor]:
    """The tensors of a step: of two lengths, so that two ranks write one each."""
    return {"long": torch.arange(60.0).view(20, 3) + step, "short": torch.full((7,), float(step))}


def write(world: World, folder: Path, steps: list[int], attempt: int = 0) -> None:
    """A checkpoint of each step."""
    for step in steps:
        record = Record(step, {"epoch": 0, "step": step}, world.num_ranks, {"a": 1}, {})
        checkpoint.save(folder, values(step), record, world, keep=100, attempt=attempt)


def step_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def pieces_of(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


def read_values(path: Path, world: World | None = None, *, is_verified: bool = False) -> dict[str, Tensor]:
    found = {name: torch.full_like(tensor, -1.0) for name, tensor in values(0).items()}
    checkpoint.load(path, found, world or World(), is_verified=is_verified)
    return found


def forge(path: Path, change: Callable[[dict[str, Any]], Mapping[str, Any] | None]) -> None:
    """Edits a record as somebody would who knows how its digest is made."""
    body = json.loads((path / "record.json").read_text())
    body.pop("sha256")
    body = change(body) or body
    sha256 = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (path / "record.json").write_text(json.dumps({**body, "sha256": sha256}))


def forge_file(path: Path, content: bytes, number: int = 0) -> None:
    """Puts other bytes in place of a piece file, with the digest and size that they have."""
    file = pieces_of(path)[number]
    file.write_bytes(content)

    def change(body: dict[str, Any]) -> None:
        entry = next(entry for entry in body["files"] if entry["name"] == file.name)
        entry["size"], entry["sha256"] = len(content), hashlib.sha256(content).hexdigest()

    forge(path, change)
