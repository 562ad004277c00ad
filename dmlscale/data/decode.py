"""Picture files to tensors."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# torchvision decodes small PNGs twice as fast as Pillow, but announces that its decoders will go.
try:
    from torchvision.io import ImageReadMode, decode_image
except ImportError:  # a torchvision that has dropped them
    HAS_TORCHVISION_DECODER = False
else:
    HAS_TORCHVISION_DECODER = True
    warnings.filterwarnings("ignore", "The image decoding and encoding", DeprecationWarning, "torchvision")


def decode(data: bytearray, channels: int) -> Tensor:
    """Decode a picture in any format that torchvision or Pillow knows.

    Args:
        data: the file.
        channels: 1 for grey, 3 for RGB; a picture of the other kind is converted.

    Returns:
        (channels, height, width) uint8.

    Raises:
        ValueError: these bytes are no picture; the message is the decoder's.
    """
    if HAS_TORCHVISION_DECODER:
        mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
        try:
            return decode_image(torch.frombuffer(data, dtype=torch.uint8), mode)
        except RuntimeError as error:
            raise ValueError(str(error).splitlines()[0]) from None
    return decode_with_pillow(data, channels)


def decode_with_pillow(data: bytearray, channels: int) -> Tensor:
    """The same as ``decode``, by Pillow alone."""
    try:
        image = Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError) as error:  # Pillow's word for a broken PNG chunk is SyntaxError
        raise ValueError(str(error)) from None
    pixels = np.array(image)
    return torch.from_numpy(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1).copy())
