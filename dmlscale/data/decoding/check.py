"""Whether a sample's files can be decoded, found out while packing and without torch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from threading import Lock

from PIL import Image

from dmlscale.data.decoding.contents import Content, check_sizes, only_part, read_array, read_picture, read_wave
from dmlscale.data.decoding.png import defect_of, is_plain
from dmlscale.data.inputs import InputKind

_filters = Lock()  # Python's list of warning filters belongs to all threads


def check_bytes(kind: InputKind, parts: Sequence[Content]) -> str | None:
    """Decode a sample to see whether it can be. Made for processes: threads of one take turns.

    Args:
        kind: what its files are.
        parts: the files of the sample; several for "views", else one.

    Returns:
        Why it cannot be decoded; None where it can.
    """
    # Complaints of Pillow that are no errors (odd metadata, large pictures) would come once per process.
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if kind == "views":
                check_sizes([_checked_picture(part).size for part in parts])
            elif kind == "image":
                _checked_picture(only_part(parts))
            elif kind == "array":
                read_array(only_part(parts))
            else:
                read_wave(only_part(parts))
        except ValueError as error:
            return str(error)
    return None


def _checked_picture(part: Content) -> Image.Image:
    picture = read_picture(part)
    defect = defect_of(part) if is_plain(part) else None
    if defect is not None:
        raise ValueError(defect)
    return picture
