"""The characters of some faces as an open source: what all sources that draw have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from dmlscale.data.glyphs.classes import GlyphClass
from dmlscale.data.glyphs.drawing import render
from dmlscale.data.glyphs.face import Face
from dmlscale.data.sources import Item


class OpenFaces(ABC):
    """See ``OpenSource``.

    Args:
        faces: that show the characters.
        seed: of the augmentations.
    """

    def __init__(self, faces: Iterable[Face], seed: int) -> None:
        self._faces = {face.name: face for face in faces}
        self._seed = seed

    @abstractmethod
    def classes(self) -> list[GlyphClass]:
        """The classes of both splits, in code point order."""

    def items(self) -> Iterator[Item]:
        """Every picture once, by class in code point order, then by face."""
        for glyph in self.classes():
            yield from glyph.items()

    def load(self, ref: str) -> tuple[bytes]:
        """The picture "face/code point", a PNG file."""
        name, code_point = ref.rsplit("/", 1)
        return (render(self._faces[name], int(code_point), self._seed),)
