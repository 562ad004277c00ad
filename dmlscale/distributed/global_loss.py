"""A loss over the global batch as one `nn.Module`, for any torch program, distributed or not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmlscale.distributed.class_bank import ClassBank
from dmlscale.distributed.class_block import ClassBlock
from dmlscale.distributed.pair_block import PairBlock
from dmlscale.distributed.unit import unit_rows
from dmlscale.distributed.world import World
from dmlscale.losses import LOSSES, Loss
from dmlscale.losses.hyper_parameters import make


class GlobalLoss(nn.Module):
    """A metric-learning loss whose value and gradients are those of one process on the concatenated batch.

    Works in any ``torch.distributed`` program, and with no process group at all. Class losses keep one row (or K)
    per class in ``bank.weight``, of which each rank holds and updates its own range of classes: give it to the
    optimizer, but do not wrap this module in DDP.

    Example:
        >>> loss = GlobalLoss("proxy_anchor", num_classes=100, embedding_dim=64, margin=0.1)
        >>> value = loss(torch.randn(8, 64, requires_grad=True), torch.arange(8))
        >>> value.backward()

    Args:
        name: a registered loss: "lifted_structure", "norm_softmax", "proxy_anchor", "soft_triple", "triplet", ...
        num_classes: C; needed by class losses, ignored by pair losses.
        embedding_dim: d.
        data_parallel: how the caller combines the backbone's gradients over ranks. "sum": they are summed.
            "mean": they are averaged, as torch's DDP does; the gradient handed to the embeddings is then multiplied
            by the number of ranks, so that the average comes out exact. The bank's gradient is exact either way.
        seed: of the bank's random start, which does not depend on the number of ranks.
        group: the process group; the default group if None.
        **hyper_parameters: the loss's own, e.g. ``margin=0.1``; unknown ones are an error.

    Raises:
        ValueError: unknown name or hyper-parameter, a value out of range, or a class loss without ``num_classes``.

    Communication: see `PairBlock` and `ClassBlock`.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int | None = None,
        embedding_dim: int,
        data_parallel: Literal["sum", "mean"] = "sum",
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
        **hyper_parameters: Any,
    ) -> None:
        super().__init__()
        if data_parallel not in ("sum", "mean"):
            raise ValueError(f"data_parallel must be 'sum' or 'mean', got {data_parallel!r}")
        self.name = name
        self.loss: Loss = make(LOSSES[name], name, hyper_parameters)
        self.world = World.current(group)
        self.embedding_dim = embedding_dim
        self._averaged = data_parallel == "mean"
        self.bank: ClassBank | None = None
        if self.loss.block == "classes":
            if num_classes is None:
                raise ValueError(f"{name} keeps a row per class: pass num_classes")
            rows = self.loss.rows_per_class
            self.bank = ClassBank(num_classes, rows, embedding_dim, seed=seed, world=self.world)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of the global batch.

        Args:
            embeddings: (b, d) this rank's; b may differ between ranks, also be 0. Half precision is computed in fp32.
            labels: (b,) int64 class ids, below ``num_classes`` for class losses.

        Returns:
            () the same scalar on every rank.

        Raises:
            ValueError: shapes that do not fit, or a label outside the bank.
        """
        self._check(embeddings, labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            if torch.is_grad_enabled() and not embeddings.requires_grad:
                # All ranks must take part in the backward collectives, also one without samples or trainable backbone.
                embeddings = embeddings.detach().requires_grad_()
            if embeddings.dtype in (torch.float16, torch.bfloat16):
                embeddings = embeddings.float()
            if self._averaged and self.world.num_ranks > 1:
                embeddings = _ScaledGradient.apply(embeddings, self.world.num_ranks)
            if self.loss.on_sphere:
                embeddings = unit_rows(embeddings)
            block = self._block(embeddings, labels)
            # Comparisons hide nan from miners and empty sums; the probe is zero, or nan if any embedding is not finite.
            return self.loss(block) + block.probe

    def _block(self, embeddings: Tensor, labels: Tensor) -> PairBlock | ClassBlock:
        if self.bank is None:
            return PairBlock(embeddings, labels, self.world, on_sphere=self.loss.on_sphere)
        weight = self.bank.weight.to(embeddings.dtype)
        return ClassBlock(
            embeddings,
            labels,
            unit_rows(weight) if self.loss.on_sphere else weight,
            first_class=self.bank.start,
            num_classes=self.bank.num_classes,
            world=self.world,
            on_sphere=self.loss.on_sphere,
        )

    def start_at_class_means(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Sets the bank to the class means of the given (embeddings, labels) batches; see `ClassBank`.

        Raises:
            ValueError: the loss has no bank.
        """
        if self.bank is None:
            raise ValueError(f"{self.name} has no rows per class that could start at class means")
        self.bank.start_at_class_means(batches)

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_dim:
            raise ValueError(f"embeddings must be (b, {self.embedding_dim}), got {tuple(embeddings.shape)}")
        if labels.shape != embeddings.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(f"labels must be ({len(embeddings)},) int64, got {tuple(labels.shape)} {labels.dtype}")
        if self.bank is not None and len(labels):
            inside = ((labels >= 0) & (labels < self.bank.num_classes)).all()
            message = f"{self.name}: a label is outside 0..{self.bank.num_classes - 1}"
            if labels.is_cuda:
                torch._assert_async(inside, message)  # no wait for the device
            elif not inside:
                raise ValueError(f"{message} (labels run from {int(labels.min())} to {int(labels.max())})")


class _ScaledGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied: undoes the averaging of the caller's data parallelism."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None
