"""Model + batches -> embeddings, and the raw pixels to compare them with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlscale.data.types import Batch


class Embedded(NamedTuple):
    """Embedded samples, on the CPU."""

    embeddings: Tensor  # (n, d) float32
    labels: Tensor  # (n,) int64, global class ids
    ids: Tensor  # (n,) int64, row numbers in the index: the same for any number of ranks


def embed(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    *,
    progress: Callable[[int], None] | None = None,
) -> Embedded:
    """The embeddings of all batches, in their order.

    Args:
        model: the images of a batch -> embeddings (b, d). It runs in eval mode; afterwards each
            of its modules is in the mode it was in before (a frozen batch norm stays frozen).
        batches: this rank's share; may be empty, then the result has shape (0, 0).
        device: where the model is.
        progress: called after each batch with the number of samples done so far.
    """
    with eval_mode(model), torch.inference_mode():
        return _collect(batches, lambda images: model(images.to(device, non_blocking=True)), progress)


def raw_pixels(batches: Iterable[Batch], *, max_side: int = 16) -> Embedded:
    """The images themselves as embeddings: average-pooled to at most ``max_side`` pixels a side, flattened.

    What a retrieval by plain picture similarity reaches is the number that a trained model must beat. The views of an
    object are put one after the other; vectors stay as they are.
    """

    def pool(images: Tensor) -> Tensor:
        if images.dim() == 2:
            return images.float()
        height, width = images.shape[-2:]
        size = (min(height, max_side), min(width, max_side))
        return F.adaptive_avg_pool2d(images.float().flatten(1, -3), size).flatten(1)

    with torch.inference_mode():
        return _collect(batches, pool, None)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards every module back in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _collect(
    batches: Iterable[Batch], function: Callable[[Tensor], Tensor], progress: Callable[[int], None] | None
) -> Embedded:
    parts: list[Embedded] = []
    num_done = 0
    for batch in batches:
        parts.append(Embedded(function(batch.images).float().cpu(), batch.labels.cpu(), batch.ids.cpu()))
        num_done += len(batch.labels)
        if progress is not None:
            progress(num_done)
    if not parts:
        nothing = torch.empty(0, dtype=torch.int64)
        return Embedded(torch.empty(0, 0), nothing, nothing)
    return Embedded(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
