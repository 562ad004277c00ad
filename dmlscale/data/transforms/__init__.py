"""From decoded samples to the network's input: recipes by name, a frozen dataclass of options each.

A recipe takes the samples of a batch at once, so that cheap ones run as a few array operations. What it
draws at random belongs to (seed, epoch, sample id): any number of ranks and loader threads gives the same
pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmlscale.data.errors import DataError
from dmlscale.data.inputs import InputKind
from dmlscale.registry import Registry, UnknownNameError


@runtime_checkable
class Transform(Protocol):
    """A recipe."""

    __dataclass_fields__: ClassVar[dict]
    inputs: ClassVar[tuple[InputKind, ...]]  # that it is for

    def __call__(self, images: Sequence[Tensor], ids: NDArray[np.int64], *, seed: int, epoch: int) -> Tensor:
        """Make the input of the network.

        Args:
            images: b samples: pictures (channels, height, width) uint8, log-mels (1, mels, frames) float32,
                arrays (c, h, w) or (d,) float32.
            ids: (b,) sample ids.
            seed: of the run.
            epoch: 0, 1, ...

        Returns:
            (b, channels, height, width) float32, or (b, d) of vectors.

        Raises:
            DataError: this recipe is not for such samples, or their shapes differ where it does not make them equal.
        """


TRANSFORMS: Registry[Transform] = Registry("transform", "dmlscale.data.transforms")


def find_transform(name: str, **options: Any) -> Transform:
    """The recipe called ``name`` with its options.

    Raises:
        DataError: there is none (names the nearest), or an option is out of its range.
        TypeError: it has no such option.
    """
    try:
        recipe = TRANSFORMS[name]
    except UnknownNameError as error:
        raise DataError(str(error)) from None
    return recipe(**options)


def apply(transform: Transform, samples: Sequence[Tensor], ids: NDArray[np.int64], *, seed: int, epoch: int) -> Tensor:
    """A recipe on samples of any kind; each view of an object is a picture with draws of its own.

    Args:
        transform: the recipe.
        samples: b samples as a decoder gives them; all of one kind.
        ids: (b,) sample ids.
        seed: of the run.
        epoch: 0, 1, ...

    Returns:
        What the recipe gives; for objects of v views (b, v, channels, height, width). An object of one view has the
        pixels that its picture would have alone.

    Raises:
        DataError: objects have different numbers of views; or see ``Transform``.
    """
    if samples[0].dim() != 4:
        return transform(samples, ids, seed=seed, epoch=epoch)
    num_views = len(samples[0])
    other = next((len(sample) for sample in samples if len(sample) != num_views), None)
    if other is not None:
        raise DataError(
            f"objects with {num_views} and with {other} views in one batch: pack the same number of views of each"
        )
    views = [view for sample in samples for view in sample]
    view_ids = (ids[:, None] * num_views + np.arange(num_views)).ravel()
    return transform(views, view_ids, seed=seed, epoch=epoch).unflatten(0, (-1, num_views))


def stacked(samples: Sequence[Tensor]) -> Tensor:
    """The samples as one tensor.

    Raises:
        DataError: their shapes differ.
    """
    shapes = {tuple(sample.shape) for sample in samples}
    if len(shapes) > 1:
        first, second = sorted(shapes)[:2]
        raise DataError(
            f"pictures of different sizes in one batch ({first} and {second}; channels, height, width): "
            f"use a transform that makes them equal, as 'papers_eval' does; arrays must be equal before packing"
        )
    return torch.stack(list(samples))


def require(condition: bool, message: str) -> None:
    """Refuse an option.

    Raises:
        DataError: the condition does not hold; with ``message``.
    """
    if not condition:
        raise DataError(message)
