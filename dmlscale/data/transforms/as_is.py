"""Samples that are ready."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dmlscale.data.inputs import InputKind
from dmlscale.data.transforms import TRANSFORMS, stacked


@TRANSFORMS.register("as_is")
@dataclass(frozen=True)
class AsIs:
    """The values as they are, stacked; for arrays and vectors that were prepared before packing."""

    inputs: ClassVar[tuple[InputKind, ...]] = ("image", "views", "array", "audio")

    def __call__(self, images: Sequence[Tensor], ids: NDArray[np.int64], *, seed: int, epoch: int) -> Tensor:
        """See ``Transform``."""
        return stacked(images).float()
