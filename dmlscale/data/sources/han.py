"""Han characters rendered in Debian's fonts: a real task with tens of thousands of classes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar

from dmlscale.data.errors import DataError
from dmlscale.data.glyphs.classes import GlyphClass, find_classes
from dmlscale.data.glyphs.designs import FETCH_COMMAND, find_faces
from dmlscale.data.glyphs.face import Face
from dmlscale.data.glyphs.open_faces import OpenFaces
from dmlscale.data.glyphs.survey import survey
from dmlscale.data.inputs import InputKind
from dmlscale.data.sources import SOURCES, TEST_SPLIT, TRAIN_SPLIT

# The unified ideographs of Unicode 15.1, block by block: python's own table would differ from version to version.
_IDEOGRAPHS = (
    range(0x3400, 0x4DC0),  # extension A
    range(0x4E00, 0xA000),
    range(0x20000, 0x2A6E0),  # extension B
    range(0x2A700, 0x2EE5E),  # C, D, E, F, I
    range(0x30000, 0x323B0),  # G, H
)


@SOURCES.register("han")
@dataclass(frozen=True)
class Han:
    """Grey 32 x 32 pictures of Han characters; class = character, one sample per design.

    The unified ideographs that at least ``min_designs`` designs draw, without those that look like another one; a hash
    of the character decides whether it is seen in training, so the classes of "train" and "test" are disjoint. Pictures
    are varied as those of ``glyphs``. The fonts come from ``python -m dmlscale.data.glyphs.fetch``; docs/han.md tells
    what is in them.

    Args:
        fonts: folder that holds the font files, at any depth.
        designs: names of designs (docs/han.md) or of font files to draw with; None takes every known design that is in
            ``fonts``.
        min_designs: a character in fewer designs is no class.
        train_share: part of the classes that is seen in training, above 0 and at most 1.
        limit_classes: keep so many classes, ``train_share`` of them in training, those in most designs first; None
            keeps all.
        seed: of the augmentations; the classes and splits do not depend on it.
        num_processes: that look for the classes; None takes one per available core.
    """

    fonts: str
    designs: tuple[str, ...] | None = None
    min_designs: int = 4
    train_share: float = 0.9
    limit_classes: int | None = None
    seed: int = 0
    num_processes: int | None = field(default=None, compare=False)

    input: ClassVar[InputKind] = "image"

    def __post_init__(self) -> None:
        if self.designs is not None:  # a config file gives a list; equal options must be equal sources
            object.__setattr__(self, "designs", tuple(dict.fromkeys(self.designs)))
        if self.min_designs < 1:
            raise DataError(f"han: min_designs={self.min_designs}, must be at least 1")
        if not 0 < self.train_share <= 1:
            raise DataError(f"han: train_share={self.train_share}, must be above 0 and at most 1")
        if self.limit_classes is not None and self.limit_classes < 1:
            raise DataError(f"han: limit_classes={self.limit_classes}, must be at least 1 (or null for all)")
        if self.num_processes is not None and self.num_processes < 1:
            raise DataError(f"han: num_processes={self.num_processes}, must be at least 1 (or null for all cores)")

    def open(self, scratch: Path) -> OpenHan:
        """Find the fonts; what they draw is kept in ``scratch``.

        Raises:
            DataError: no such folder, a named design is not in it, or it holds fewer designs than ``min_designs``.
        """
        folder = Path(self.fonts).expanduser()
        faces = find_faces(folder, self.designs)
        if len(faces) < self.min_designs:
            raise DataError(
                f"han: {folder} holds {len(faces)} of the designs, fewer than min_designs={self.min_designs}: fetch "
                f"fonts with `{FETCH_COMMAND} {folder}`, or list font files of yours in 'designs'"
            )
        return OpenHan(self, faces, scratch)

    def split_of(self, code_point: int) -> str:
        """The split of a character; it depends on nothing but the character and ``train_share``."""
        digest = blake2b(f"split/{code_point}".encode(), digest_size=8).digest()
        return TRAIN_SPLIT if int.from_bytes(digest) < self.train_share * 2**64 else TEST_SPLIT

    def limits(self) -> dict[str, int] | None:
        """Classes to keep, by split."""
        if self.limit_classes is None:
            return None
        num_train = round(self.limit_classes * self.train_share)
        return {TRAIN_SPLIT: num_train, TEST_SPLIT: self.limit_classes - num_train}


class OpenHan(OpenFaces):
    """The fonts of ``Han``."""

    def __init__(self, options: Han, faces: list[Face], scratch: Path) -> None:
        super().__init__(faces, options.seed)
        self._options, self._scratch = options, scratch

    def classes(self) -> list[GlyphClass]:
        """See ``OpenFaces``."""
        options, faces = self._options, tuple(self._faces.values())
        return find_classes(
            faces,
            _candidates(faces, options.min_designs),
            min_faces=options.min_designs,
            split_of=options.split_of,
            limits=options.limits(),
            ask=lambda code_points: survey(faces, code_points, self._scratch, options.num_processes),
        )


def _candidates(faces: tuple[Face, ...], min_designs: int) -> list[int]:
    """Ideographs that enough designs list, those that most of them list first."""
    num_designs = Counter(code_point for face in faces for code_point in face.characters())
    listed = [c for block in _IDEOGRAPHS for c in block if num_designs[c] >= min_designs]
    return sorted(listed, key=lambda c: -num_designs[c])
