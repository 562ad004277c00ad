"""Whether a PNG is sound to its last byte.

libpng, as torchvision drives it, ends the whole process where the picture data is damaged, and Pillow overlooks some of
that damage. So the packer looks itself, and only what it has found sound is decoded by libpng later.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SAMPLES_PER_PIXEL = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_HEADER = struct.Struct(">IIBBBBB")  # width, height, bits per sample, colour type, compression, filter, interlace
_DEPTH_AT, _INTERLACE_AT = 24, 28


def is_plain(data: bytes | bytearray | memoryview) -> bool:
    """Whether a file begins as a PNG of 8 bits a sample that is not interlaced: the kind `defect_of` is for."""
    return (
        len(data) > _INTERLACE_AT
        and data[:8] == SIGNATURE
        and data[12:16] == b"IHDR"
        and data[_DEPTH_AT] == 8
        and data[_INTERLACE_AT] == 0
    )


def defect_of(data: bytes | bytearray | memoryview) -> str | None:
    """What is wrong with a PNG that `is_plain`; None if nothing is."""
    try:
        parts = list(_chunks(memoryview(data)))
    except ValueError as error:
        return str(error)
    kinds = [kind for kind, _ in parts]
    if kinds[0] != b"IHDR" or kinds.count(b"IHDR") != 1 or kinds[-1] != b"IEND" or len(parts[0][1]) != _HEADER.size:
        return "the PNG's chunks are not in order"
    width, height, depth, colour, compression, filtering, _ = _HEADER.unpack(parts[0][1])
    if not width or not height or compression or filtering or colour not in _SAMPLES_PER_PIXEL:
        return "the PNG's header is damaged"
    first, number = kinds.index(b"IDAT") if b"IDAT" in kinds else 0, kinds.count(b"IDAT")
    if not number or kinds[first : first + number] != [b"IDAT"] * number:
        return "the PNG's picture data is not in one piece"
    palettes = [content for kind, content in parts[:first] if kind == b"PLTE"]
    if kinds.count(b"PLTE") != len(palettes) or len(palettes) > 1 or (colour == 3 and not palettes):
        return "the PNG has no palette"
    if any(not 0 < len(palette) <= 768 or len(palette) % 3 for palette in palettes) or (palettes and colour in (0, 4)):
        return "the PNG's palette is damaged"
    row = 1 + width * _SAMPLES_PER_PIXEL[colour] * depth // 8
    return _defect_of_rows(b"".join(content for kind, content in parts if kind == b"IDAT"), row, height)


def _chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of each chunk, up to the end.

    Raises:
        ValueError: one is cut off, or its check sum is wrong.
    """
    at = len(SIGNATURE)
    kind = b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise ValueError("the PNG is cut off")
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        end = at + 8 + size
        if end + 4 > len(data):
            raise ValueError("the PNG is cut off")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError("a check sum in the PNG is wrong")
        yield kind, data[at + 8 : end]
        at = end + 4


def _defect_of_rows(compressed: bytes, row: int, height: int) -> str | None:
    inflate = zlib.decompressobj()
    try:
        rows = inflate.decompress(compressed, row * height + 1)
        rows += inflate.decompress(inflate.unconsumed_tail, 1)  # the end mark and the check sum
    except zlib.error:
        return "the PNG's picture data is damaged"
    if len(rows) != row * height or not inflate.eof or inflate.unused_data:
        return "the PNG's picture data is not as large as its header says"
    if any(kind > 4 for kind in rows[::row]):
        return "the PNG's picture data is damaged"
    return None
