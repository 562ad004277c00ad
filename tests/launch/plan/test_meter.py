"""The meter against tensors whose memory and operations are known."""

from __future__ import annotations

import torch

from dmlscale.launch.plan.meter import Meter


def test_memory_that_is_freed_is_not_alive() -> None:
    with Meter() as meter:
        a = torch.ones(1000)  # 4 kB
        b = a + 1
        a.add_(b)
        view = b[:10]
        del b
        assert meter.live == 8000  # the view holds it
        del view
        assert meter.live == 4000
        del a
    assert meter.live == 0
    assert meter.peak == 8000


def test_views_and_writes_into_what_was_there_before_take_nothing() -> None:
    before = torch.zeros(100, 10)
    with Meter() as meter:
        before.view(-1).add_(1)
        torch.mul(before, 2, out=before)
        before[3].fill_(0)
    assert meter.peak == 0


def test_products_count_also_in_place_and_in_the_backward_pass() -> None:
    a, b, c = (torch.ones(8, 8, requires_grad=True) for _ in range(3))
    with Meter() as meter:
        c.detach().addmm_(a.detach(), b.detach())
        torch.mm(a.detach(), b.detach(), out=torch.empty(8, 8))
        (a @ b).sum().backward()
    assert meter.flops == (1 + 1 + 3) * 2 * 8**3


def test_sweeps_count_bytes_read_and_written() -> None:
    a = torch.ones(1000)
    with Meter() as meter:
        a.exp_()
    assert meter.moved == 8000


def test_a_sparse_gradient_is_its_parts() -> None:
    with Meter() as meter:
        values = torch.ones(2, 3)
        torch.sparse_coo_tensor(torch.tensor([[0, 1]]), values, (9, 3), check_invariants=False)
    assert meter.peak < 9 * 3 * 4
