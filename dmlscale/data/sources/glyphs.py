"""Characters rendered in the fonts that matplotlib ships: a real zero-shot task without a download."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar

from dmlscale.data.errors import DataError
from dmlscale.data.glyphs.classes import GlyphClass, find_classes
from dmlscale.data.glyphs.faces import FACES, is_drawable, matplotlib_face, shared_characters
from dmlscale.data.glyphs.open_faces import OpenFaces
from dmlscale.data.glyphs.survey import survey
from dmlscale.data.inputs import InputKind
from dmlscale.data.sources import SOURCES, TEST_SPLIT, TRAIN_SPLIT


@SOURCES.register("glyphs")
@dataclass(frozen=True)
class Glyphs:
    """Grey 32 x 32 pictures of characters; class = character, one sample per font face.

    Letters, numbers and symbols that at least ``min_faces`` faces draw, without those that look like another
    one; a hash of the character decides whether it is seen in training, so the classes of "train" and "test"
    are disjoint. Each picture is rotated, scaled, sheared, shifted, blurred and noisy, once: a class never
    holds two versions of the same drawing.

    Args:
        faces: names of font files without their ending.
        min_faces: a character in fewer faces is no class.
        seed: of the augmentations; the classes and splits do not depend on it.
        limit_classes: keep the first so many classes of each split; None keeps all.
        num_processes: that look for the classes; None takes one per available core.
    """

    faces: tuple[str, ...] = FACES
    min_faces: int = 8
    seed: int = 0
    limit_classes: int | None = None
    num_processes: int | None = field(default=None, compare=False)

    input: ClassVar[InputKind] = "image"

    def __post_init__(self) -> None:
        # A config file gives a list; equal options must be equal sources.
        object.__setattr__(self, "faces", tuple(self.faces))
        if not 1 <= self.min_faces <= len(self.faces):
            raise DataError(f"glyphs: min_faces={self.min_faces}, must be 1 to {len(self.faces)} (number of 'faces')")
        if self.limit_classes is not None and self.limit_classes < 1:
            raise DataError(f"glyphs: limit_classes={self.limit_classes}, must be at least 1 (or null for all)")
        if self.num_processes is not None and self.num_processes < 1:
            raise DataError(f"glyphs: num_processes={self.num_processes}, must be at least 1 (or null for all cores)")
        for name in self.faces:
            matplotlib_face(name)

    def open(self, scratch: Path) -> OpenGlyphs:
        """Find the fonts; what they draw is kept in ``scratch``."""
        return OpenGlyphs(self, scratch)


class OpenGlyphs(OpenFaces):
    """The fonts of ``Glyphs``."""

    def __init__(self, options: Glyphs, scratch: Path) -> None:
        super().__init__(map(matplotlib_face, options.faces), options.seed)
        self._options, self._scratch = options, scratch

    def classes(self) -> list[GlyphClass]:
        """See ``OpenFaces``."""
        options, faces = self._options, tuple(self._faces.values())
        limit = options.limit_classes
        return find_classes(
            faces,
            [c for c in shared_characters(faces, options.min_faces) if is_drawable(c)],
            min_faces=options.min_faces,
            split_of=_split_of,
            limits=None if limit is None else {TRAIN_SPLIT: limit, TEST_SPLIT: limit},
            ask=lambda code_points: survey(faces, code_points, self._scratch, options.num_processes),
        )


def _split_of(code_point: int) -> str:
    """Half of the characters each; a character's side depends on nothing but itself."""
    digest = blake2b(f"split/{code_point}".encode(), digest_size=1).digest()
    return TRAIN_SPLIT if digest[0] % 2 == 0 else TEST_SPLIT
