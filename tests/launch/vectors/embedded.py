"""A model that nobody trained, and pictures for it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from dmlscale.launch.models.model_folder import load_model
from tests.launch.models.checkpoints import write_checkpoint


def draw(number: int, size: tuple[int, int] = (40, 40)) -> bytes:
    """A PNG of its own for each number."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def write_pictures(folder: Path) -> dict[str, bytes]:
    """Seven pictures at several depths, by relative path, and beside them what is none."""
    names = ("a.png", "birds/b.PNG", "birds/small/c.png", "birds/d (2).png", "é/f.png", "é/g.jpg", "z.png")
    pictures = {name: draw(number) for number, name in enumerate(names)}
    for name, content in {**pictures, "readme.txt": b"text", ".hidden.png": b"", "birds/list.csv": b"1"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return pictures


def write_model(run: Path, *overrides: str, case: str = "image", step: int = 7) -> str:
    """The path of a run with a model of five dimensions."""
    write_checkpoint(run, case, *overrides, step=step)
    return str(run)


def vectors_of(model: str, contents: list[bytes]) -> np.ndarray:
    """What the model makes of pictures, one at a time."""
    loaded = load_model(model)
    return np.concatenate([loaded.embed_parts([[content]]) for content in contents])
