"""Which rank runs where: each worker notes it when it starts, for the driver to tell of it when the worker is gone."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dmlscale.launch.recovery.memory_kills import count_memory_kills

_PREFIX = "rank_"


@dataclass(frozen=True)
class Place:
    """Of one worker.

    Args:
        rank: of it.
        host: name.
        address: by which the others reach it.
        pid: as its host counts.
        memory_kills: how often the kernel had ended a process of the host for want of memory when this one began.
    """

    rank: int
    host: str
    address: str
    pid: int
    memory_kills: int


def write_place(folder: Path, rank: int, address: str) -> None:
    """Notes where this process runs. A disk that is full does not end the run: messages are then without the name."""
    place = Place(rank, socket.gethostname(), address, os.getpid(), count_memory_kills())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{_PREFIX}{rank}.json"
        partial.write_text(json.dumps(asdict(place)))
        partial.replace(folder / f"{_PREFIX}{rank}.json")
    except OSError:
        return


def read_places(folder: Path) -> Mapping[int, Place]:
    """By rank, those of the workers that have begun."""
    places = {}
    for path in sorted(folder.glob(f"{_PREFIX}*.json")):
        try:
            place = Place(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):  # cut off by a full disk
            continue
        places[place.rank] = place
    return places
