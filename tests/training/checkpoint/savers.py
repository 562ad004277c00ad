"""Savers and what they save, for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dmlscale.distributed.world import World
from dmlscale.training.checkpoint.retention import Retention, Scores
from dmlscale.training.checkpoint.saver import Saved, Saver
from dmlscale.training.checkpoint.store import Store, open_store
from dmlscale.training.state import Record


def tensors_of(step: int, length: int = 60) -> dict[str, Tensor]:
    """The tensors of a step: of two lengths, so that two ranks write one each."""
    return {"long": torch.arange(float(3 * length)).view(length, 3) + step, "short": torch.full((7,), float(step))}


def record_of(step: int, world: World) -> Record:
    return Record(step, {"epoch": 0, "step": step}, world.num_ranks, {"a": 1}, {})


def saver_in(
    place: Path | Store,
    world: World | None = None,
    *,
    keep: int = 2,
    attempt: int = 1,
    is_current: Callable[[], bool] = lambda: True,
    in_background: bool = True,
    on_saved: Callable[[Saved], None] = lambda saved: None,
) -> Saver:
    store = open_store(str(place), {}) if isinstance(place, Path) else place
    return Saver(
        store,
        Scores(store, Retention(keep)),
        world or World(),
        attempt=attempt,
        is_current=is_current,
        in_background=in_background,
        on_saved=on_saved,
    )
