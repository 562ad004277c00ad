from __future__ import annotations

import numpy as np
import pytest

from dmlscale.data.glyphs.drawing import CAP_HEIGHT, IMAGE_SIZE, draw_centred, render
from dmlscale.data.glyphs.faces import FACES


@pytest.mark.parametrize("face", FACES)
def test_capitals_have_the_same_height_in_every_face(face: str) -> None:
    ink = np.asarray(draw_centred(face, ord("H"), oversampling=4)) > 127
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    assert abs(rows[-1] - rows[0] + 1 - 4 * CAP_HEIGHT) <= 3
    for inked in (rows, columns):
        assert abs((inked[0] + inked[-1] + 1) / 2 - 2 * IMAGE_SIZE) <= 2


def test_pixels_depend_on_face_character_and_seed() -> None:
    reference = render("DejaVuSans", ord("A"), seed=0)
    assert render("DejaVuSans", ord("A"), seed=0) == reference
    assert render("DejaVuSans", ord("A"), seed=1) != reference
    assert render("DejaVuSans", ord("B"), seed=0) != reference
    assert render("DejaVuSerif", ord("A"), seed=0) != reference
