from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from dmlscale.data.decode import decode, decode_with_pillow

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


def encoded(mode: str, file_format: str) -> bytearray:
    shape = (12, 17) if mode == "L" else (12, 17, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, file_format)
    return bytearray(buffer.getvalue())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_both_decoders_agree(mode: str, file_format: str, channels: int) -> None:
    data = encoded(mode, file_format)
    fast, plain = decode(data, channels), decode_with_pillow(data, channels)
    assert fast.shape == plain.shape == (channels, 12, 17)
    assert fast.dtype == plain.dtype == torch.uint8
    if file_format == "PNG" and mode == "L":
        assert torch.equal(fast, plain)
    # Colour to grey differs in rounding; for JPEG, in what is clipped on the way.
    assert (fast.int() - plain.int()).abs().float().mean() < 1


@pytest.mark.parametrize("decoder", [decode, decode_with_pillow])
@pytest.mark.parametrize("end", [0.0, 0.3, 0.7])
def test_cut_off_file_is_a_value_error(decoder: Callable[[bytearray, int], torch.Tensor], end: float) -> None:
    data = encoded("L", "PNG")
    damaged = data[: max(4, int(len(data) * end))]
    with pytest.raises(ValueError, match=r"\w"):
        decoder(damaged, 1)
