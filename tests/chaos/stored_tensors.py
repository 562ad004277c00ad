"""The tensors of a checkpoint, read without the package that wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file


def read_tensors(folder: Path) -> dict[str, NDArray[Any]]:
    """Whole tensors by name, put together of the pieces that ranks wrote; each value must be there exactly once."""
    whole: dict[str, NDArray[Any]] = {}
    times: dict[str, NDArray[np.int64]] = {}
    for file in json.loads((folder / "record.json").read_text())["files"]:
        stored = load_file(folder / file["name"])
        for piece in file["pieces"]:
            name, box = piece["name"], stored[piece["name"]]
            where = tuple(slice(o, o + s) for o, s in zip(piece["offsets"], piece["sizes"], strict=True))
            whole.setdefault(name, np.zeros(piece["shape"], box.dtype))[where] = box
            times.setdefault(name, np.zeros(piece["shape"], np.int64))[where] += 1
    assert all((count == 1).all() for count in times.values())
    return whole
