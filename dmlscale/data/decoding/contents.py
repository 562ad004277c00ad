"""What is in a sample's files, without torch: processes that pack them should not wait for it."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Content = bytes | bytearray | memoryview  # of one file

_MAX_ARRAY_AXES = 3
_RATES_HZ = range(1_000, 768_001)  # what recordings have; a damaged header may say anything
_FULL_SCALE = {np.dtype("u1"): 2.0**7, np.dtype("i2"): 2.0**15, np.dtype("i4"): 2.0**31}


class Wave(NamedTuple):
    """A recording."""

    samples: NDArray[np.float32]  # (n,) in -1..1, the mean of its channels
    rate_hz: int


def only_part(parts: Sequence[Content]) -> Content:
    """The file of a sample that has one.

    Raises:
        ValueError: it has none or several.
    """
    if len(parts) != 1:
        raise ValueError(f"has {len(parts)} files, must have one (only the input 'views' takes several)")
    return parts[0]


def check_sizes(sizes: Sequence[tuple[int, int]]) -> None:
    """Whether the views of an object can be put into one array.

    Args:
        sizes: (width, height) of each.

    Raises:
        ValueError: there are none, or not all are equal.
    """
    if not sizes:
        raise ValueError("has no views")
    for number, size in enumerate(sizes):
        if size != sizes[0]:
            (width, height), (first_width, first_height) = size, sizes[0]
            raise ValueError(
                f"view {number} is {width} x {height}, view 0 is {first_width} x {first_height}: "
                "all views of an object must have one size"
            )


def read_picture(data: Content) -> Image.Image:
    """Decode a picture in any format that Pillow knows; of an animation the first frame.

    Raises:
        ValueError: it is none, is cut off, has too many pixels or values of unknown range.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if image.format == "EPS":
            raise ValueError("is PostScript, a program that Pillow has Ghostscript run: save it as .png")
        most = Image.MAX_IMAGE_PIXELS
        if most is not None and image.width * image.height > most:
            raise ValueError(f"has {image.width} x {image.height} pixels, more than {most}: make it smaller")
        image.load()
    except UnidentifiedImageError:
        raise ValueError("is no picture in a format that Pillow knows") from None
    except Exception as error:  # Pillow's readers raise a dozen kinds
        raise ValueError(_reason(error, "is no picture")) from None
    if image.mode in ("I", "F"):
        raise ValueError(
            f"is a picture of 32-bit values (mode {image.mode!r}) whose range is unknown: "
            "save it with 8 or 16 bits, or as .npy for the input 'array'"
        )
    return image


def read_array(data: Content) -> NDArray[np.float32]:
    """Read a .npy file, or an .npz file: its only array, the one called "data", or the first.

    Returns:
        (d,) a vector as it is; (h, w) as (1, h, w); (c, h, w) as it is.

    Raises:
        ValueError: it is neither, or has other axes, no values, or values that are no finite numbers.
    """
    try:
        loaded = _load_array(data)
    except Exception as error:  # of zip, zlib, the header's syntax, memory
        raise ValueError(_reason(error, "is no .npy or .npz file")) from None
    if loaded.dtype.kind not in "biuf":
        raise ValueError(f"holds values of type {loaded.dtype}, must be real numbers")
    if not 1 <= loaded.ndim <= _MAX_ARRAY_AXES or not loaded.size:
        raise ValueError(f"has the shape {loaded.shape}, must be (d,), (h, w) or (c, h, w) without a zero")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(loaded, np.float32)
    if not np.isfinite(array).all():
        raise ValueError("holds values that are not finite in float32: replace or leave out the sample")
    return array[None] if array.ndim == 2 else array


def read_wave(data: Content) -> Wave:
    """Read a .wav file: PCM of 8, 16, 24 or 32 bits, or floats.

    Raises:
        ValueError: it is none, is cut off, or has no samples, or samples that are not finite.
    """
    from scipy.io import wavfile  # half a second, which those with pictures need not wait

    try:
        rate, samples = wavfile.read(io.BytesIO(_essential_chunks(bytes(data))))
    except Exception as error:  # damaged headers raise what they like
        raise ValueError(_reason(error, "is no .wav file")) from None
    if rate not in _RATES_HZ:
        raise ValueError(f"has a sample rate of {rate} Hz, must be {_RATES_HZ[0]} to {_RATES_HZ[-1]}")
    if not samples.size:
        raise ValueError("has no samples")
    # 24 bits come as the upper bytes of 32; 8 bits have their zero at 128.
    values = samples.astype(np.float32) - (128 if samples.dtype == np.uint8 else 0)
    values /= _FULL_SCALE.get(samples.dtype, 1.0)
    if not np.isfinite(values).all():
        raise ValueError("holds samples that are not finite")
    return Wave(values if values.ndim == 1 else values.mean(axis=1), int(rate))


def _load_array(data: Content) -> NDArray:
    file, head = io.BytesIO(data), bytes(data[:6])
    if head == b"\x93NUMPY":
        return np.load(file, allow_pickle=False)
    if not head.startswith(b"PK"):  # for other bytes NumPy's message is about pickles
        raise ValueError("is no .npy or .npz file")
    with np.load(file, allow_pickle=False) as archive:
        if not archive.files:
            raise ValueError("is an .npz file without arrays")
        return archive["data" if "data" in archive.files else archive.files[0]]


def _essential_chunks(data: bytes) -> bytes:
    """The .wav file without what is no sound, on which SciPy would warn.

    Raises:
        ValueError: it is none, or has fewer bytes than it says.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError("is no .wav file (it does not begin with RIFF and WAVE)")
    chunks = dict(_chunks(data))
    if b"fmt " not in chunks or b"data" not in chunks:
        raise ValueError("is a .wav file without samples, or cut off before them")
    kept = b"".join(name + struct.pack("<I", len(chunks[name])) + chunks[name] for name in (b"fmt ", b"data"))
    return b"RIFF" + struct.pack("<I", len(kept) + 4) + b"WAVE" + kept


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of the parts of a .wav file, up to its samples."""
    start, name = 12, b""
    while start + 8 <= len(data) and name != b"data":
        name, size = data[start : start + 4], struct.unpack_from("<I", data, start + 4)[0]
        content = data[start + 8 : start + 8 + size]
        if len(content) < size:
            raise ValueError(f"is cut off: {len(content)} of {size} bytes of its part {name.decode('latin-1')!r}")
        yield name, content
        start += 8 + size + size % 2


def _reason(error: Exception, otherwise: str) -> str:
    """One line of why; some readers raise errors without a word."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else f"{otherwise} ({type(error).__name__})"
