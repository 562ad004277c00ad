"""A weighted sum of losses, each with its own class bank or memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

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

    def forward(
        self, embeddings: Tensor, labels: Tensor, ids: Tensor | None = None, step: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum (), and each term by name when there are several; arguments as `GlobalLoss.forward`'s."""
        values = [loss(embeddings, labels, ids=ids, step=step) for loss in self.losses()]
        total = torch.stack([w * v for w, v in zip(self.weights, values, strict=True)]).sum()
        if len(values) == 1:
            return total, {}
        return total, {name: value.detach() for name, value in zip(self.names(), values, strict=True)}

    def names(self) -> list[str]:
        """The terms' names, with their place where a loss occurs twice."""
        names = [loss.name for loss in self.losses()]
        return [name if names.count(name) == 1 else f"{name}_{n}" for n, name in enumerate(names)]

    def losses(self) -> list[GlobalLoss]:
        """The terms."""
        return [loss for loss in self.terms if isinstance(loss, GlobalLoss)]

    def banks(self) -> list[ClassBank]:
        """The class banks, in the order of the terms that have one."""
        return [loss.bank for loss in self.losses() if loss.bank is not None]

    def step_banks(self) -> None:
        """Moves banks that have a rule of their own, after the optimizer's step."""
        for loss in self.losses():
            loss.step_bank()

    def undoer(self) -> Callable[[], None]:
        """What brings back the present state of all losses, but for parameters; see `GlobalLoss.undoer`."""
        undoers = [loss.undoer() for loss in self.losses()]

        def undo() -> None:
            for each in undoers:
                each()

        return undo

    def metrics(self) -> dict[str, Tensor]:
        """What the losses have to say of their banks, () each; all ranks call it together."""
        return {
            f"{name}/{key}": value
            for name, loss in zip(self.names(), self.losses(), strict=True)
            for key, value in loss.metrics().items()
        }

    def start_at_class_means(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Sets every bank to the class means of these embeddings, which are read once."""
        with_bank = [loss for loss in self.losses() if loss.bank is not None]
        # Several banks need the embeddings several times; one streams them.
        source = batches if len(with_bank) < 2 else list(batches)
        for loss in with_bank:
            loss.start_at_class_means(source)
