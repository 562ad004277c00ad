"""Why a checkpoint could not be written, in one line that every rank has."""

from __future__ import annotations

import re

from dmlscale.distributed.world import World
from dmlscale.training.checkpoint.agreement import gather_texts
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.store import Store

# What safetensors says of an error of the operating system.
_SYSTEM = re.compile(r"([^:]+) \(os error \d+\)")


def reason_of(error: Exception, store: Store, world: World) -> str:
    """What went wrong on this rank, and where."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {store.place}"
    elif isinstance(error, CheckpointError):
        text = str(error)
    elif found := _SYSTEM.search(str(error)):
        text = f"{found[1].strip()}: {store.place}"
    else:
        text = f"{type(error).__name__}: {error}: {store.place}"
    text = " ".join(text.split())
    return text if world.num_ranks == 1 else f"{text}, rank {world.rank}"


def reason_of_any(reason: str, world: World) -> str:
    """The first rank's that has one, on every rank; empty if none has. All ranks call this."""
    if world.num_ranks == 1:
        return reason
    return next(filter(None, gather_texts(reason, world)), "")
