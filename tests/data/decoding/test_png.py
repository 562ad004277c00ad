from __future__ import annotations

import pickle
import random
import struct
import subprocess
import sys
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from dmlscale.data.decoding.check import check_bytes
from dmlscale.data.decoding.decode import decode, decode_with_pillow
from dmlscale.data.decoding.png import SIGNATURE, defect_of, is_plain

Chunks = list[tuple[bytes, bytes]]
MODES = ["L", "RGB", "P", "LA", "RGBA"]
DECODE = """
import pickle, sys
from dmlscale.data.decoding.decode import decode
for data in pickle.load(sys.stdin.buffer):
    try:
        decode(data, 3, is_checked=True)
    except ValueError:
        pass
print("alive")
"""


def png(mode: str, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def chunks_of(data: bytes) -> Chunks:
    found, at = [], len(SIGNATURE)
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def joined(chunks: Chunks) -> bytes:
    """A PNG whose check sums are right, whatever is in it."""
    return SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def with_rows(data: bytes, change: object) -> bytes:
    """Other picture data in the same frame."""
    assert callable(change)
    return joined([(k, zlib.compress(change(zlib.decompress(c))) if k == b"IDAT" else c) for k, c in chunks_of(data)])


@pytest.mark.parametrize("mode", MODES)
def test_sound_pictures_pass_and_decode_as_pillow_does(mode: str) -> None:
    data = png(mode)
    assert is_plain(data)
    assert defect_of(data) is None
    assert check_bytes("image", [data]) is None
    if mode in ("L", "RGB", "P"):
        assert decode(data, 3, is_checked=True).equal(decode_with_pillow(data, 3))


def flip_last_bit_of_a_sum(data: bytes) -> bytes:
    at = data.index(b"IDAT") + 4 + struct.unpack(">I", data[data.index(b"IDAT") - 4 : data.index(b"IDAT")])[0]
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_last_bit_of_a_sum, "check sum"),
        (lambda data: with_rows(data, lambda rows: rows[:-5]), "not as large"),
        (lambda data: with_rows(data, lambda rows: rows + bytes(9)), "not as large"),
        (lambda data: with_rows(data, lambda rows: b"\x07" + rows[1:]), "damaged"),
        (lambda data: data[:-20], "cut off"),
        (lambda data: joined([c for c in chunks_of(data) if c[0] != b"PLTE"]), "no palette"),
    ],
    ids=["sum", "rows missing", "rows too many", "filter", "cut", "palette"],
)
def test_damage_is_named(damage: object, reason: str) -> None:
    assert callable(damage)
    data = damage(png("P"))
    assert reason in str(defect_of(data))
    assert check_bytes("image", [data]) is not None


def mutated(chance: random.Random) -> bytes:
    chunks = chunks_of(png(chance.choice(MODES), chance.randrange(99)))
    at = chance.choice([n for n, (_, content) in enumerate(chunks) if content])
    kind, content = chunks[at]
    if kind == b"IDAT" and chance.random() < 0.7:
        rows = bytearray(zlib.decompress(content))
        rows[chance.randrange(len(rows))] ^= 1 << chance.randrange(8)
        content = zlib.compress(bytes(rows[: chance.randrange(1, len(rows))] if chance.random() < 0.3 else rows))
    else:
        damaged = bytearray(content)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        content = bytes(damaged)
    return joined([*chunks[:at], (kind, content), *chunks[at + 1 :]])


def test_what_passes_the_check_does_not_end_the_process() -> None:
    chance = random.Random(7)
    damaged = [mutated(chance) for _ in range(1500)]
    passed = [data for data in damaged if check_bytes("image", [data]) is None]
    assert 100 < len(passed) < len(damaged)
    done = subprocess.run([sys.executable, "-c", DECODE], input=pickle.dumps(passed), capture_output=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.strip() == b"alive"


def test_what_was_not_checked_is_not_given_to_libpng() -> None:
    damaged = with_rows(png("RGB"), lambda rows: b"\x07" + rows[1:])  # would end this process
    with pytest.raises(ValueError, match="unrecognized data stream"):
        decode(damaged, 3)
