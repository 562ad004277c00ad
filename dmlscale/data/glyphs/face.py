"""A font face: the files that hold its drawings, and which characters are in them."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from dmlscale.data.errors import DataError


class FontFile(NamedTuple):
    """One face in a font file."""

    path: Path
    number: int = 0  # of the face, where the file is a collection (.ttc)


class Face(NamedTuple):
    """One design of characters."""

    name: str
    files: tuple[FontFile, ...]  # the first one that has a character draws it
    reference: str = "H"  # the first of these characters that the face has is drawn ...
    reference_height: int = 15  # ... so many pixels high, which makes faces comparable

    def file_of(self, code_point: int) -> FontFile:
        """The file that draws a character of this face."""
        for file in self.files[:-1]:
            if code_point in characters_of_file(file):
                return file
        return self.files[-1]

    def characters(self) -> frozenset[int]:
        """Code points that the face maps to a glyph; not all of these draw something."""
        return frozenset().union(*(characters_of_file(file) for file in self.files))


@lru_cache(maxsize=128)
def characters_of_file(file: FontFile) -> frozenset[int]:
    """Code points that a font file maps to a glyph.

    Raises:
        DataError: the file is no font.
    """
    from fontTools.ttLib import TTFont, TTLibError

    try:
        logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of glyph names, which are not used here
        with TTFont(file.path, fontNumber=file.number, lazy=True) as font:
            return frozenset(font.getBestCmap() or ())
    except (TTLibError, OSError) as error:
        raise DataError(f"font file {file.path} (face {file.number}) cannot be read: {error}") from None
