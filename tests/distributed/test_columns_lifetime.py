"""Columns are gone when their step is, make no gradient that nobody wants, and notice when they are written to."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import dmlscale
from dmlscale.distributed.columns import Columns


def test_a_step_leaves_nothing_for_the_cyclic_collector() -> None:
    raw = torch.randn(6, 4, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        columns = Columns(raw, dtype=torch.float32, unit=True)
        gone = weakref.ref(columns)
        value = columns.take(torch.tensor([1, 2])).sum()
        value.backward()
        del columns, value
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["norm_softmax", "softmax", "triplet_center"])
def test_a_gradient_by_the_embeddings_alone_leaves_the_next_one_right(name: str) -> None:
    loss = dmlscale.GlobalLoss(name, num_classes=5, embedding_dim=4)
    assert loss.bank is not None
    x = torch.randn(8, 4, requires_grad=True)
    value = loss(x, torch.arange(8) % 5)
    (wanted,) = torch.autograd.grad(value, loss.bank.weight, retain_graph=True)
    torch.autograd.grad(value, x, retain_graph=True)
    value.backward()
    torch.testing.assert_close(loss.bank.weight.grad, wanted)


def test_a_frozen_bank_gets_no_buffer() -> None:
    raw = torch.randn(6, 4)
    columns = Columns(raw, dtype=torch.float32, unit=False)
    assert not columns.handle.requires_grad
    assert columns.gradient() is None


def test_a_bank_that_is_written_to_before_backward_is_noticed() -> None:
    loss = dmlscale.GlobalLoss("norm_softmax", num_classes=5, embedding_dim=4)
    assert loss.bank is not None
    value = loss(torch.randn(8, 4, requires_grad=True), torch.arange(8) % 5)
    with torch.no_grad():
        loss.bank.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_columns_in_another_order_are_never_formed_but_read() -> None:
    raw, order = torch.randn(7, 4), torch.tensor([3, 1, 6, 0, 2, 5, 4])
    columns = Columns(raw, dtype=torch.float64, unit=True, order=order)
    plain = torch.nn.functional.normalize(raw[order].double(), dim=1)
    torch.testing.assert_close(columns.strip(2, 6), plain[2:6])
    torch.testing.assert_close(columns.at(torch.tensor([0, 6])), plain[[0, 6]])
    torch.testing.assert_close(columns.squared_lengths(), torch.ones(7, dtype=torch.float64))
