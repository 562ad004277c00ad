"""What a device that computes on its own is waited for: a few times a step, not in every tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dmlscale
from dmlscale.distributed import grid
from tests.losses.cases import SEED, Case, all_cases

# A greedy search waits for each of its choices.
CASES = [case for case in all_cases() if case.loss != "clustering"]
pytestmark = pytest.mark.filterwarnings(r"ignore:center. step_bank\(\) was not called")


class Waits(TorchDispatchMode):
    """Counts operations whose result, or its shape, Python has to know; `tolist` escapes it."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        is_index = name.startswith(("aten.index.", "aten.index_put")) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        words = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "aten.equal")
        self.number += is_index or any(word in name for word in words)
        return func(*args, **(kwargs or {}))


def waits(case: Case) -> int:
    x = torch.randn(48, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = torch.arange(12).repeat_interleave(4)
    loss = dmlscale.GlobalLoss(case.loss, num_classes=24, embedding_dim=8, seed=SEED, **case.options)
    with Waits() as counted:
        loss(x, y).backward()
    return counted.number


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_tile_waits_for_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    few = waits(case)
    for size in ("ROWS_ON_CPU", "COLUMNS_ON_CPU", "POSITIVE_ROWS_ON_CPU"):
        monkeypatch.setattr(grid, size, 16)
    assert waits(case) == few
