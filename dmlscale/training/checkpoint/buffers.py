"""Copies of tensors in the host's memory, which can be written while the training goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from dmlscale.training.checkpoint.pieces import Piece


class Buffers:
    """Memory that is used again at each checkpoint: as much as this rank has to write, and no more."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def copy(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces as they are now, in tensors that stay as they are until the next call."""
        copies = [dataclasses.replace(piece, tensor=self._filled(piece)) for piece in pieces]
        for device in {piece.tensor.device for piece in pieces if piece.tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return copies

    def _filled(self, piece: Piece) -> Tensor:
        source = piece.tensor
        buffer = self._tensors.get(piece.name)
        if buffer is None or buffer.shape != source.shape or buffer.dtype != source.dtype:
            # Pinned, a GPU fills all of them without waiting for each.
            buffer = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
            self._tensors[piece.name] = buffer
        return buffer.copy_(source, non_blocking=True)
