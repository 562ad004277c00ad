"""Samples of any kind as small pictures, to be looked at."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def thumbnail(sample: Tensor) -> NDArray[np.uint8]:
    """What to draw of a decoded sample.

    Args:
        sample: a picture (1 or 3, height, width) uint8 stays as it is; the views of an object (v, channels, height,
            width) stand side by side; of a log-mel (1, mels, frames) or an array (c, h, w) of floats the first channel
            is drawn, from its smallest value in black to its largest in white, low bands at the bottom; a vector (d,)
            is a square of its values, row by row.

    Returns:
        (height, width) or (height, width, 3) uint8.
    """
    if sample.dim() == 4:
        return np.concatenate([thumbnail(view) for view in sample], axis=1)
    if sample.dtype == torch.uint8:
        return sample.permute(1, 2, 0).squeeze(2).numpy()
    if sample.dim() == 1:
        side = int(np.ceil(np.sqrt(len(sample))))
        padding = sample.new_full((side * side - len(sample),), float(sample.min()))
        return _grey(torch.cat([sample, padding]).reshape(side, side))
    return _grey(sample[0].flip(0))


def _grey(values: Tensor) -> NDArray[np.uint8]:
    smallest, largest = values.aminmax()
    scaled = (values - smallest) * (255 / max(float(largest - smallest), 1e-12))
    return scaled.round().to(torch.uint8).numpy()
