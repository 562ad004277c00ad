from __future__ import annotations

import numpy as np
import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.glyphs.drawing import IMAGE_SIZE, draw_centred, draw_placeholders, render
from dmlscale.data.glyphs.faces import FACES, matplotlib_face

SANS = matplotlib_face("DejaVuSans")


@pytest.mark.parametrize("name", FACES)
def test_capitals_have_the_same_height_in_every_face(name: str) -> None:
    face = matplotlib_face(name)
    ink = np.asarray(draw_centred(face, ord("H"), oversampling=4)) > 127
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    assert abs(rows[-1] - rows[0] + 1 - 4 * face.reference_height) <= 3
    for inked in (rows, columns):
        assert abs((inked[0] + inked[-1] + 1) / 2 - 2 * IMAGE_SIZE) <= 2


def test_pixels_depend_on_face_character_and_seed() -> None:
    reference = render(SANS, ord("A"), seed=0)
    assert render(SANS, ord("A"), seed=0) == reference
    assert render(SANS, ord("A"), seed=1) != reference
    assert render(SANS, ord("B"), seed=0) != reference
    assert render(matplotlib_face("DejaVuSerif"), ord("A"), seed=0) != reference


def test_the_first_reference_that_a_face_has_tells_the_size() -> None:
    # No Han character is in this face, so "H" is taken, not the frame that stands for a missing character.
    face = SANS._replace(reference="\u570bH")
    assert draw_centred(face, ord("A")).tobytes() == draw_centred(SANS, ord("A")).tobytes()
    with pytest.raises(DataError, match=r"DejaVuSans\.ttf draws none of '\u570b'"):
        draw_centred(SANS._replace(reference="\u570b"), ord("A"))


def test_a_missing_character_shows_the_placeholder() -> None:
    (placeholder,) = draw_placeholders(SANS)
    assert draw_centred(SANS, 0x570B).tobytes() == placeholder.tobytes()
    assert draw_centred(SANS, ord("A")).tobytes() != placeholder.tobytes()
