"""Several optimizers as one: dense parameters in one, banks with sparse gradients in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer, SparseAdam


class Optimizers:
    """Optimizers of disjoint parameters.

    Args:
        parts: at least one.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One step of all parts."""
        for part in self.parts:
            part.step()

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The optimizer's tensors for a parameter; made, as its first step would, where they are not there yet."""
        part = next(part for part in self.parts if any(parameter is p for g in part.param_groups for p in g["params"]))
        state = part.state[parameter]
        if not state and isinstance(part, AdamW | SparseAdam):
            # SparseAdam counts in Python, where a step is exact; a checkpoint holds tensors.
            precision = torch.float64 if isinstance(part, SparseAdam) else torch.float32
            state["step"] = torch.zeros((), device=parameter.device, dtype=precision)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        elif not state and part.param_groups[0]["momentum"]:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        if isinstance(state.get("step"), int | float):
            state["step"] = torch.tensor(float(state["step"]), device=parameter.device, dtype=torch.float64)
        return {key: value for key, value in state.items() if isinstance(value, Tensor)}
