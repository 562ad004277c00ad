"""Which samples pass the network together, and with which random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """Images that pass the network together.

    Args:
        images: (m, c, h, w).
        seed: of dropout and the like: the same in every pass of these images.
    """

    images: Tensor
    seed: tuple[int, ...]


Forward = Callable[[Part], Tensor]  # -> (m, d)


def parts_of(
    images: Tensor, groups: Mapping[int, int], seed: tuple[int, ...], micro_batch: int | None
) -> list[list[Part]]:
    """For each group of samples, the parts it is cut into.

    Args:
        images: (b, c, h, w) of this rank.
        groups: samples of each group, by its number, in the order of the images.
        seed: of the step; a part's seed adds the group's number, and its place there after the first.
        micro_batch: most samples of a part; None for whole groups.
    """
    cut = []
    for (number, size), piece in zip(groups.items(), images.split([*groups.values()]), strict=True):
        chunks = piece.split(size if micro_batch is None else micro_batch) if size else (piece,)
        # Copied where a batch is cut: how a product is rounded may depend on where in memory its operand begins.
        chunks = chunks if len(groups) == len(chunks) == 1 else tuple(chunk.clone() for chunk in chunks)
        cut.append([Part(chunk, (*seed, number, n) if n else (*seed, number)) for n, chunk in enumerate(chunks)])
    return cut


def draw_from(part: Part) -> None:
    """Dropout and the like depend on the step and the part alone, so a second pass or a resumed run draws the same."""
    torch.manual_seed(hash(part.seed) % 2**63)
