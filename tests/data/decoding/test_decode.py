from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from dmlscale.data.decoding.decode import decode, decode_with_pillow, find_decoder
from dmlscale.data.errors import DataError
from dmlscale.data.inputs import InputKind

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
DECODERS = [decode, decode_with_pillow]


def encoded(mode: str, file_format: str, *, height: int = 12, seed: int = 0, **options: Any) -> bytearray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, 17, 3), dtype=np.uint8)
    return saved(Image.fromarray(pixels).convert(mode), file_format, **options)


def saved(image: Image.Image, file_format: str, **options: Any) -> bytearray:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return bytearray(buffer.getvalue())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_both_decoders_agree(mode: str, file_format: str, channels: int) -> None:
    if file_format == "JPEG" and mode in ("RGBA", "P"):
        mode = "CMYK"
    data = encoded(mode, file_format)
    fast, plain = decode(data, channels, is_checked=True), decode_with_pillow(data, channels)
    assert fast.shape == plain.shape == (channels, 12, 17)
    assert fast.dtype == plain.dtype == torch.uint8
    if file_format == "PNG" and mode == "L":
        assert torch.equal(fast, plain)
    # Colour to grey differs in rounding; for JPEG, in what is clipped on the way.
    assert (fast.int() - plain.int()).abs().float().mean() < 1.5


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("file_format", "options"),
    [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True})],
    ids=["png", "jpeg", "prog"],
)
def test_a_cut_off_picture_is_never_half_a_picture(
    decoder: Callable[[bytearray, int], torch.Tensor], file_format: str, options: dict[str, Any]
) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (150, 150, 3), dtype=np.uint8))
    data = saved(noise.filter(ImageFilter.GaussianBlur(2)), file_format, **options)
    whole = decoder(data, 3)
    for end in {*range(0, len(data), len(data) // 60), *range(len(data) - 25, len(data))}:
        try:
            pixels = decoder(data[:end], 3)
        except ValueError:
            continue
        assert torch.equal(pixels, whole), f"cut at {end} of {len(data)}"  # a PNG without its last, empty part
        assert end > len(data) - 25


@pytest.mark.parametrize("decoder", DECODERS)
def test_sixteen_bits_are_reduced_to_eight(decoder: Callable[[bytearray, int], torch.Tensor]) -> None:
    values = np.random.default_rng(2).integers(0, 2**16, (6, 7), dtype=np.uint16)
    pixels = decoder(saved(Image.fromarray(values), "PNG"), 3)
    assert pixels.dtype == torch.uint8
    assert pixels.tolist() == [(values >> 8).tolist()] * 3


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "BMP", "TIFF"])
def test_other_formats_are_decoded_too_and_animations_give_their_first_picture(file_format: str) -> None:
    first = Image.fromarray(np.full((12, 17, 3), (250, 130, 10), np.uint8))
    more = {} if file_format == "BMP" else {"save_all": True, "append_images": [first.rotate(180), first]}
    pixels = decode(saved(first, file_format, **more), 3)
    assert pixels.shape == (3, 12, 17)
    assert (pixels.int() - torch.tensor([250, 130, 10])[:, None, None]).abs().max() < 8


def test_views_are_the_pictures_one_after_the_other() -> None:
    parts = [encoded("RGB", "PNG", seed=seed) for seed in range(3)]
    views = find_decoder("views", channels=3)(parts)
    assert views.shape == (3, 3, 12, 17)
    assert all(torch.equal(view, decode(part, 3)) for view, part in zip(views, parts, strict=True))
    with pytest.raises(ValueError, match="view 1 is 17 x 9, view 0 is 17 x 12"):
        find_decoder("views")([parts[0], encoded("RGB", "PNG", height=9)])


def test_a_decoder_can_be_pickled_and_shared_by_threads() -> None:
    kinds: tuple[InputKind, ...] = ("image", "views", "array", "audio")
    for kind in kinds:
        assert pickle.loads(pickle.dumps(find_decoder(kind))) == find_decoder(kind)
    files = [encoded("RGB", ("PNG", "WEBP")[seed % 2], seed=seed) for seed in range(40)]
    decoder = find_decoder("image")
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda data: decoder([data]), files))
    assert all(torch.equal(found, decoder([data])) for found, data in zip(together, files, strict=True))


def test_what_there_is_no_decoder_for_is_named() -> None:
    with pytest.raises(DataError, match=r"channels=2, must be 1 \(grey\) or 3"):
        find_decoder("views", channels=2)
    with pytest.raises(DataError, match=r"unknown input 'video' .*there are: image, views"):
        find_decoder("video")  # type: ignore[arg-type]
