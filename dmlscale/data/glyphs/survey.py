"""What every face says about a list of characters: drawn in processes, and kept for a packing that was cut off."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np

from dmlscale.data.glyphs.face import Face
from dmlscale.data.glyphs.lookalikes import FaceReport, inspect_face
from dmlscale.data.glyphs.processes import ordered_map
from dmlscale.data.originals.scratch_names import file_stamp


def survey(
    faces: Sequence[Face], code_points: Sequence[int], scratch: Path, num_processes: int | None = None
) -> list[FaceReport]:
    """The report of every face, in their order.

    Args:
        faces: what to draw with.
        code_points: what to draw.
        scratch: folder of the reports made before; they are used where face and characters are the same.
        num_processes: that draw; None takes one per available core.

    Raises:
        DataError: a font cannot be read, or a process died.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    paths = [scratch / _file_name(face, code_points) for face in faces]
    missing = [(face, path) for face, path in zip(faces, paths, strict=True) if not path.is_file()]
    for _ in ordered_map(partial(_inspect_and_keep, code_points=code_points), missing, num_processes):
        pass
    return [_read(path) for path in paths]


def _file_name(face: Face, code_points: Sequence[int]) -> str:
    digest = blake2b(np.array(code_points, np.int64).tobytes(), digest_size=8)
    digest.update(repr((face, [file_stamp(file.path) for file in face.files])).encode())
    return f"{face.name}-{digest.hexdigest()}.npz"


def _inspect_and_keep(task: tuple[Face, Path], code_points: Sequence[int]) -> None:
    face, path = task
    report = inspect_face(face, code_points)
    unfinished = path.with_suffix(f".{os.getpid()}")
    with unfinished.open("wb") as file:
        np.savez(file, **report._asdict())
    unfinished.replace(path)


def _read(path: Path) -> FaceReport:
    with np.load(path) as arrays:
        return FaceReport(arrays["is_drawn"], arrays["alike"])
