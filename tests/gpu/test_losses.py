"""Losses on a GPU: what they are on the CPU, which the formulas are the oracles of, in little memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dmlscale
from dmlscale.distributed import grid
from tests.losses.cases import SEED, Case, all_cases

CASES = all_cases()
# Some tests look at a loss twice without a step between.
pytestmark = pytest.mark.filterwarnings(r"ignore:center. step_bank\(\) was not called")
DIM = 16


def outcome(
    case: Case, device: torch.device, dtype: torch.dtype, size: int, num_classes: int
) -> tuple[Tensor, list[Tensor]]:
    """Loss, and its gradients by embeddings and bank; all on the CPU."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, DIM, generator=generator, dtype=torch.float64)
    y = torch.randint(0, num_classes, (size,), generator=generator)
    if case.ordered:
        y = y.sort().values  # which samples play which role follows their order
    x, y = x.to(device, dtype).requires_grad_(), y.to(device)
    torch.manual_seed(1)  # of the bank
    loss = dmlscale.GlobalLoss(case.loss, num_classes=num_classes, embedding_dim=DIM, seed=SEED, **case.options).to(
        device, dtype
    )
    value = loss(x, y)
    inputs = [x]
    if loss.bank is not None and loss.bank.weight.requires_grad:
        inputs.append(loss.bank.weight)
    gradients = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
    return value.detach().cpu(), [gradient.cpu() for gradient in gradients]


@pytest.mark.parametrize("num_classes", [3, 40])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradients_are_those_of_the_cpu(
    case: Case, num_classes: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, over several tiles on both."""
    monkeypatch.setattr(grid, "ROWS_ON_GPU", 128)
    monkeypatch.setattr(grid, "COLUMNS_ON_GPU", 256)
    monkeypatch.setattr(grid, "POSITIVE_ROWS_ON_GPU", 64)
    size = 300 if case.loss == "clustering" else 700
    value, gradients = outcome(case, device, torch.float64, size, num_classes)
    wanted, wanted_gradients = outcome(case, torch.device("cpu"), torch.float64, size, num_classes)
    torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-10)
    for gradient, of_cpu in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(gradient, of_cpu, rtol=1e-9, atol=1e-10)


# Whom a miner takes among samples that are nearly as close is decided by rounding.
@pytest.mark.parametrize("case", [case for case in CASES if "mining" not in case.options and not case.drawn], ids=str)
def test_single_precision_is_close_to_double(case: Case, device: torch.device) -> None:
    """A product in TensorFloat32 would not be."""
    size = 300 if case.loss == "clustering" else 700
    value, _ = outcome(case, device, torch.float32, size, 40)
    wanted, _ = outcome(case, torch.device("cpu"), torch.float64, size, 40)
    torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [2, 2, 2], [4], [], [0, 0, 1]], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_degenerate_batches_are_finite(case: Case, labels: list[int], dtype: torch.dtype, device: torch.device) -> None:
    """No positives, one class, one sample, none at all."""
    x = torch.randn(len(labels), DIM, device=device, requires_grad=True)
    loss = dmlscale.GlobalLoss(case.loss, num_classes=7, embedding_dim=DIM, **case.options).to(device)
    value = loss(x, torch.tensor(labels, dtype=torch.int64, device=device))
    value.backward()
    assert x.grad is not None
    assert torch.isfinite(value)
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("supervised_contrastive", {}),
        ("circle", {}),
        ("contrastive", {}),
        ("triplet", {"mining": "batch_hard"}),
        ("triplet", {"mining": "semi_hard"}),
    ],
)
def test_a_large_batch_takes_no_dense_block(name: str, options: dict[str, Any], device: torch.device) -> None:
    size = 65_536
    dense = size * size * 4  # 16 GiB, and formulas hold several
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(size, 128, device=device, generator=generator, requires_grad=True)
    y = torch.arange(size, device=device) // 4
    loss = dmlscale.GlobalLoss(name, embedding_dim=128, **options).to(device)
    loss(x[:64], y[:64]).backward()  # loads libraries
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value = loss(x, y)
    value.backward()
    assert torch.isfinite(value)
    assert torch.cuda.max_memory_allocated() - before < dense / 10


@pytest.mark.parametrize("name", ["norm_softmax", "proxy_anchor", "arcface"])
def test_many_classes_take_no_dense_block(name: str, device: torch.device) -> None:
    size, num_classes = 8192, 1_000_000
    dense = size * num_classes * 4  # 30 GiB
    loss = dmlscale.GlobalLoss(name, num_classes=num_classes, embedding_dim=128).to(device)
    assert loss.bank is not None
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(size, 128, device=device, generator=generator, requires_grad=True)
    y = torch.randint(0, num_classes, (size,), device=device, generator=generator)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value = loss(x, y)
    value.backward()
    assert torch.isfinite(value)
    of_bank = loss.bank.weight.numel() * 4
    assert torch.cuda.max_memory_allocated() - before < 4 * of_bank + dense / 10
