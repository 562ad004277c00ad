"""One character in one face as a small grey picture; every pixel a function of (face, character, seed)."""

from __future__ import annotations

import io
import itertools
import math
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dmlscale.data.errors import DataError
from dmlscale.data.glyphs.face import Face, FontFile

IMAGE_SIZE = 32  # pixels, both sides
OVERSAMPLING = 2  # drawn this much larger, so that the affine map and the reduction stay smooth

MAX_ROTATION = math.radians(10.0)
MAX_SCALE = 0.12
MAX_SHEAR = 0.12
MAX_SHIFT = 0.06 * IMAGE_SIZE  # pixels

_TRIAL_SIZE = 200  # pixels per em at which a face is measured
_UNASSIGNED = "\U0010ffff"  # no font has this one: it shows what stands for missing characters


@lru_cache(maxsize=128)
def _font(file: FontFile, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(file.path), size, index=file.number, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=128)
def _size(face: Face) -> float:
    """Pixels per em at which the reference character has its height."""
    for file, character in itertools.product(face.files, face.reference):
        trial = _font(file, _TRIAL_SIZE)
        _, top, _, bottom = trial.getbbox(character)
        if bottom > top and bytes(trial.getmask(character)) != bytes(trial.getmask(_UNASSIGNED)):
            return _TRIAL_SIZE * face.reference_height / (bottom - top)
    raise DataError(
        f"font file {face.files[0].path} draws none of {face.reference!r}, whose height would tell how large to draw: "
        f"leave it out"
    )


def draw_centred(face: Face, code_point: int, oversampling: int = 1) -> Image.Image:
    """The plain character, its ink centred, white on black; black throughout where the font draws nothing.

    Returns:
        Grey image, ``IMAGE_SIZE * oversampling`` pixels on both sides; ink beyond them is cut off.
    """
    return _draw(face, face.file_of(code_point), chr(code_point), oversampling)


def draw_placeholders(face: Face) -> list[Image.Image]:
    """What each file of the face shows, as ``draw_centred`` would, for a character that it does not have."""
    return [_draw(face, file, _UNASSIGNED, oversampling=1) for file in face.files]


def _draw(face: Face, file: FontFile, character: str, oversampling: int) -> Image.Image:
    size = IMAGE_SIZE * oversampling
    font = _font(file, _size(face) * oversampling)
    left, top, right, bottom = font.getbbox(character)
    image = Image.new("L", (size, size))
    corner = (round((size - right - left) / 2), round((size - bottom - top) / 2))
    ImageDraw.Draw(image).text(corner, character, fill=255, font=font)
    return image


def render(face: Face, code_point: int, seed: int) -> bytes:
    """The augmented picture of one character: affine map, blur, contrast and noise.

    Returns:
        PNG file, grey, (IMAGE_SIZE, IMAGE_SIZE).
    """
    rng = _generator(face.name, code_point, seed)
    image = draw_centred(face, code_point, OVERSAMPLING)
    image = image.transform(image.size, Image.Transform.AFFINE, _affine(rng), Image.Resampling.BILINEAR)
    image = image.reduce(OVERSAMPLING).filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.7)))
    ink = np.asarray(image, dtype=np.float32)
    pixels = ink * rng.uniform(0.6, 0.9) + rng.uniform(0.0, 25.0)
    pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(2.0, 10.0)
    return _png(pixels.round().clip(0, 255).astype(np.uint8))


def _generator(face_name: str, code_point: int, seed: int) -> np.random.Generator:
    digest = blake2b(f"{face_name}/{code_point}/{seed}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def _affine(rng: np.random.Generator) -> tuple[float, ...]:
    """Coefficients (a, b, c, d, e, f): output pixel (x, y) shows input pixel (ax + by + c, dx + ey + f)."""
    angle, stretch_x, stretch_y, shear, shift_x, shift_y = rng.uniform(-1.0, 1.0, 6).tolist()
    cosine, sine = math.cos(MAX_ROTATION * angle), math.sin(MAX_ROTATION * angle)
    scale_x, scale_y, shear = 1 + MAX_SCALE * stretch_x, 1 + MAX_SCALE * stretch_y, MAX_SHEAR * shear
    # rotation @ [[scale_x, shear], [0, scale_y]]
    a, b = cosine * scale_x, cosine * shear - sine * scale_y
    d, e = sine * scale_x, sine * shear + cosine * scale_y
    # About the centre of the picture, so that scale and rotation do not move the character.
    centre = IMAGE_SIZE * OVERSAMPLING / 2
    x, y = centre + MAX_SHIFT * OVERSAMPLING * shift_x, centre + MAX_SHIFT * OVERSAMPLING * shift_y
    return a, b, centre - a * x - b * y, d, e, centre - d * x - e * y


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
