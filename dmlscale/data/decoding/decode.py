"""Files of a sample to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dmlscale.data.decoding.contents import Content, check_sizes, only_part, read_array, read_picture
from dmlscale.data.decoding.log_mel import AudioOptions, LogMelDecoder
from dmlscale.data.decoding.png import is_plain
from dmlscale.data.errors import DataError
from dmlscale.data.inputs import InputKind

# torchvision decodes small PNGs twice as fast as Pillow. Its function warns at each call that it will go one day, which
# takes a seventh of the time of a small picture; so this is the operator below it.
try:
    import_module("torchvision.io")  # loads the operator
    _decode_image = torch.ops.image.decode_image.default
except (ImportError, AttributeError):  # a torchvision that has dropped it, or was built without it
    HAS_TORCHVISION_DECODER = False
else:
    HAS_TORCHVISION_DECODER = True

_JPEG = b"\xff\xd8\xff"


class Decoder(Protocol):
    """Makes a tensor of a sample's files. The content decides, never a file's extension.

    Decoders are plain values: they can be pickled, and threads may share one.
    """

    def __call__(self, parts: Sequence[Content]) -> Tensor:
        """Decode one sample.

        Args:
            parts: its files; several where it is made of several (views of an object).

        Raises:
            ValueError: they cannot be decoded; says why.
        """


def find_decoder(
    kind: InputKind, *, channels: int = 3, audio: AudioOptions | None = None, is_checked: bool = False
) -> Decoder:
    """The decoder of a kind of input.

    Args:
        kind: "image" gives (channels, height, width) uint8; "views" (v, channels, height, width) uint8; "array"
            (c, h, w) or (d,) float32; "audio" (1, mels, frames) float32.
        channels: of pictures: 1 for grey, 3 for RGB; those of the other kind are converted.
        audio: how log-mels are made; None takes the defaults.
        is_checked: the packer has looked into every picture: see `decode`.

    Raises:
        DataError: no such kind, or pictures of other channels.
    """
    if kind in ("image", "views") and channels not in (1, 3):
        raise DataError(f"channels={channels}, must be 1 (grey) or 3 (RGB) for pictures")
    if kind == "image":
        return ImageDecoder(channels, is_checked)
    if kind == "views":
        return ViewsDecoder(channels, is_checked)
    if kind == "array":
        return ArrayDecoder()
    if kind == "audio":
        return LogMelDecoder(audio or AudioOptions())
    raise DataError(f"unknown input {kind!r} (there are: image, views, array, audio)")


@dataclass(frozen=True)
class ImageDecoder:
    """A picture -> (channels, height, width) uint8."""

    channels: int
    is_checked: bool = False

    def __call__(self, parts: Sequence[Content]) -> Tensor:
        """See ``Decoder``."""
        return decode(only_part(parts), self.channels, is_checked=self.is_checked)


@dataclass(frozen=True)
class ViewsDecoder:
    """Pictures of one object, all of one size -> (v, channels, height, width) uint8."""

    channels: int
    is_checked: bool = False

    def __call__(self, parts: Sequence[Content]) -> Tensor:
        """See ``Decoder``."""
        views = [decode(part, self.channels, is_checked=self.is_checked) for part in parts]
        check_sizes([(view.shape[2], view.shape[1]) for view in views])
        return torch.stack(views)


@dataclass(frozen=True)
class ArrayDecoder:
    """A .npy or .npz file -> (c, h, w) or (d,) float32."""

    def __call__(self, parts: Sequence[Content]) -> Tensor:
        """See ``Decoder``."""
        return torch.from_numpy(read_array(only_part(parts)))


def decode(data: Content, channels: int, *, is_checked: bool = False) -> Tensor:
    """Decode a picture in any format that torchvision or Pillow knows; of an animation the first frame.

    Args:
        data: the file.
        channels: 1 for grey, 3 for RGB; a picture of the other kind is converted, one of 16 bits reduced to 8.
        is_checked: `check_bytes` has found nothing wrong with it: then a PNG can be decoded twice as fast, by libpng,
            which ends the process where picture data is damaged.

    Returns:
        (channels, height, width) uint8.

    Raises:
        ValueError: these bytes are no picture, or cut off.
    """
    if HAS_TORCHVISION_DECODER and (data[:3] == _JPEG or (is_checked and is_plain(data))):
        writable = data if isinstance(data, bytearray) else bytearray(data)  # what torch.frombuffer asks for
        try:
            # Its modes are the numbers of channels.
            pixels = _decode_image(torch.frombuffer(writable, dtype=torch.uint8), channels, False)
        except RuntimeError:  # its message is a place in torchvision's sources; Pillow's is for people
            return decode_with_pillow(data, channels)
        return pixels if pixels.dtype == torch.uint8 else (pixels.to(torch.int32) >> 8).to(torch.uint8)
    return decode_with_pillow(data, channels)


def decode_with_pillow(data: Content, channels: int) -> Tensor:
    """The same as ``decode``, by Pillow alone."""
    image = read_picture(data)
    if image.mode.startswith("I;16"):  # grey; Pillow would clip it at 255
        grey = (np.asarray(image) >> 8).astype(np.uint8)[None]
        return torch.from_numpy(grey.repeat(channels, axis=0))
    try:
        pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError) as error:  # a mode that Pillow can read but not convert
        raise ValueError(str(error)) from None
    return torch.from_numpy(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1).copy())
