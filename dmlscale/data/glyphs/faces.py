"""The font faces that matplotlib ships, and the characters in them."""

from __future__ import annotations

import importlib.util
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dmlscale.data.errors import DataError
from dmlscale.data.glyphs.face import Face, FontFile

_STYLES = {"DejaVuSans": "Oblique", "DejaVuSansMono": "Oblique", "DejaVuSerif": "Italic"}
FACES = (
    *(
        family + suffix
        for family, slanted in _STYLES.items()
        for suffix in ("", "-Bold", f"-{slanted}", f"-Bold{slanted}")
    ),
    *(f"STIXGeneral{suffix}" for suffix in ("", "Bol", "Italic", "BolIta")),
)

# Characters that are no drawing of their own: frames and dots (all alike), marks that modify another
# character, and blocks of which these fonts hold only a handful.
_EXCLUDED_BLOCKS = (
    (0x02B0, 0x036F),  # spacing modifiers, combining marks
    (0x2500, 0x259F),  # box drawing, block elements
    (0x2800, 0x28FF),  # braille
    (0x2E80, 0xA4CF),  # CJK and Yi
    (0xA700, 0xA71F),  # modifier tone letters
    (0xF900, 0xFAFF),  # CJK compatibility ideographs
    (0xFE20, 0xFE4F),  # combining half marks, CJK compatibility forms
    (0xFF00, 0xFFEF),  # half and full width forms
    (0x20000, 0x3FFFF),  # CJK extensions
)


def matplotlib_face(name: str) -> Face:
    """The face ``name`` (one of ``FACES``).

    Raises:
        DataError: matplotlib or the font file is missing.
    """
    # The location alone is wanted; importing matplotlib would cost each rendering process half a second.
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("source 'glyphs' draws with the fonts of matplotlib, which is missing: pip install matplotlib")
    path = Path(next(iter(spec.submodule_search_locations)), "mpl-data", "fonts", "ttf", f"{name}.ttf")
    if not path.is_file():
        raise DataError(f"font file {path} is missing: reinstall matplotlib, or leave {name!r} out of 'faces'")
    return Face(name, (FontFile(path),))


def is_drawable(code_point: int) -> bool:
    """Whether a code point is a letter, number or symbol that stands alone."""
    category = unicodedata.category(chr(code_point))
    if category[0] not in "LNS" or category in ("Lm", "Sk"):
        return False
    return not any(first <= code_point <= last for first, last in _EXCLUDED_BLOCKS)


def shared_characters(faces: Sequence[Face], min_faces: int) -> list[int]:
    """Code points, ascending, that at least ``min_faces`` of ``faces`` map to a glyph."""
    num_faces = Counter(code_point for face in faces for code_point in face.characters())
    return sorted(c for c, count in num_faces.items() if count >= min_faces)
