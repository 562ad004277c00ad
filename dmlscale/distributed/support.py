"""Checks before any work is spent: does the batch fit the loss, and the loss the way it is to be used?"""

from __future__ import annotations

import torch
from torch import Tensor

from dmlscale.distributed.batch import LocalBatch
from dmlscale.distributed.class_block import ClassRange
from dmlscale.distributed.class_sampling import ClassSampling, SampledClassBlock
from dmlscale.distributed.memory_bank import MemoryBank
from dmlscale.distributed.memory_block import MemoryBlock
from dmlscale.distributed.world import World
from dmlscale.losses import Loss
from dmlscale.losses.block import BlockError
from dmlscale.losses.draws import Chance


def check_batch(
    name: str, embeddings: Tensor, labels: Tensor, ids: Tensor | None, embedding_dim: int, num_classes: int | None
) -> None:
    """Whether a batch fits.

    Args:
        name: of the loss.
        embeddings: (b, d).
        labels: (b,) int64.
        ids: (b,) int64, or None.
        embedding_dim: d.
        num_classes: of the bank; None without one.

    Raises:
        ValueError: shapes that do not fit, or a label outside the bank.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] != embedding_dim:
        raise ValueError(f"embeddings must be (b, {embedding_dim}), got {tuple(embeddings.shape)}")
    if labels.shape != embeddings.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be ({len(embeddings)},) int64, got {tuple(labels.shape)} {labels.dtype}")
    if ids is not None and (ids.shape != labels.shape or ids.dtype != torch.int64):
        raise ValueError(f"ids must be ({len(labels)},) int64, got {tuple(ids.shape)} {ids.dtype}")
    if num_classes is not None and len(labels):
        inside = ((labels >= 0) & (labels < num_classes)).all()
        message = f"{name}: a label is outside 0..{num_classes - 1}"
        if labels.is_cuda:
            torch._assert_async(inside, message)  # no wait for the device
        elif not inside:
            raise ValueError(f"{message} (labels run from {int(labels.min())} to {int(labels.max())})")


def require_memory_support(name: str, loss: Loss) -> None:
    """Tries the loss on two samples with a memory.

    Raises:
        ValueError: it asks for what a memory cannot give.
    """
    if loss.block != "pairs":
        raise ValueError(f"{name} compares samples with classes: a cross-batch memory is for pair losses")
    block = MemoryBlock(_two_samples(), MemoryBank(1, 2, world=World()), World(), on_sphere=loss.on_sphere)
    try:
        loss(block)
    except BlockError as error:
        raise ValueError(f"{name} cannot use a cross-batch memory with these options: {error}") from None


def require_sampling_support(name: str, loss: Loss) -> None:
    """Tries the loss on two samples with class sampling.

    Raises:
        ValueError: it needs all classes.
    """
    if loss.block != "classes":
        raise ValueError(f"{name} compares samples with samples: class sampling is for class losses")
    weight = torch.eye(2)[:, None].expand(-1, loss.rows_per_class, -1).contiguous()
    block = SampledClassBlock(
        _two_samples(),
        weight,
        ClassRange(0, 2, 2),
        ClassSampling(1.0),
        Chance(),
        world=World(),
        on_sphere=loss.on_sphere,
    )
    try:
        if loss.steps_bank:
            block.class_sums()
        loss(block)
    except BlockError as error:
        raise ValueError(f"{name} cannot sample classes: {error}") from None


def _two_samples() -> LocalBatch:
    numbers = torch.arange(2)
    return LocalBatch(torch.eye(2), numbers, numbers)
