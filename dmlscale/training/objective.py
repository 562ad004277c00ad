"""A weighted sum of losses, each with its own class bank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from dmlscale.distributed.class_bank import ClassBank
from dmlscale.distributed.global_loss import GlobalLoss


class Objective(nn.Module):
    """The scalar that training minimises.

    Args:
        terms: losses with their weights.
    """

    def __init__(self, terms: Sequence[tuple[GlobalLoss, float]]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(loss for loss, _ in terms)
        self.weights = [weight for _, weight in terms]

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum (), and each term by name when there are several."""
        values = [loss(embeddings, labels) for loss in self.terms]
        total = torch.stack([w * v for w, v in zip(self.weights, values, strict=True)]).sum()
        if len(values) == 1:
            return total, {}
        names = [loss.name for loss in self._losses()]
        return total, {
            name if names.count(name) == 1 else f"{name}_{n}": value.detach()
            for n, (name, value) in enumerate(zip(names, values, strict=True))
        }

    def banks(self) -> list[ClassBank]:
        """The class banks, in the order of the terms that have one."""
        return [loss.bank for loss in self._losses() if loss.bank is not None]

    def start_at_class_means(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Sets every bank to the class means of these embeddings, which are read once."""
        banks = self.banks()
        # Several banks need the embeddings several times; one streams them.
        source = batches if len(banks) < 2 else list(batches)
        for bank in banks:
            bank.start_at_class_means(source)

    def _losses(self) -> list[GlobalLoss]:
        return [loss for loss in self.terms if isinstance(loss, GlobalLoss)]
