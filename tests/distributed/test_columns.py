"""Columns: the gradient of several readers is that of plain autograd, however often and in parts it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import dmlscale
from dmlscale.distributed import columns as module
from dmlscale.distributed.assignment import SoftAssignment
from dmlscale.distributed.columns import Columns
from dmlscale.distributed.entries import squared_distances
from dmlscale.distributed.gram import sum_of_centers
from dmlscale.distributed.grid import Grid
from dmlscale.distributed.hinges import HingeSums, hinge_sums
from dmlscale.distributed.reductions import complete_log
from dmlscale.distributed.tiles import Reduction, reduce_tiles
from dmlscale.losses.block import Score, Tile
from dmlscale.losses.scores import ScaledSimilarity

NUM_CLASSES, K, DIM = 6, 3, 4
LABELS = torch.tensor([0, 0, 1, 3, 3, 5])  # of the rows, ascending
TAKEN = torch.tensor([17, 2, 2, 0])


@dataclass
class Inputs:
    """Rows, and columns; if so wanted that of index 4 has length zero, and that of index 10 nearly so."""

    rows: Tensor
    raw: Tensor

    @classmethod
    def of(cls, dtype: torch.dtype = torch.float64, *, with_zero: bool = False) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(len(LABELS), DIM, generator=generator, dtype=torch.float64)
        raw = torch.randn(NUM_CLASSES * K, DIM, generator=generator, dtype=torch.float64)
        if with_zero:
            raw[4] = 0
            raw[10] *= 1e-13
        return cls(rows.requires_grad_(), raw.to(dtype).requires_grad_())


def reduction(score: Score, *, assigned: bool, on_sphere: bool, kind: str = "logsumexp") -> Reduction:
    labels = torch.arange(NUM_CLASSES) if assigned else torch.arange(NUM_CLASSES).repeat_interleave(K)
    return Reduction(
        grid=Grid.of(LABELS, labels, one_positive=assigned, depth=K if assigned else 1),
        score=score,
        kind="logsumexp" if kind == "logsumexp" else "row_sum",
        over="columns",
        where="negative",
        on_sphere=on_sphere,
        assignment=SoftAssignment(K, 0.2) if assigned else None,
        combine=complete_log,
    )


def squared_cosine(tile: Tile) -> Tensor:
    return tile.similarity.square()


def spread(products: Tensor) -> Tensor:
    return products.square().sum((1, 2))


def read(columns: Columns, rows: Tensor, names: list[str], *, unit: bool) -> dict[str, Tensor]:
    """What the readers make of the columns, one after the other -> () each."""
    rows, logits = normalize(rows, dim=1), ScaledSimilarity(3.0)
    weight = torch.arange(1.0, 5.0, dtype=torch.float64)[:, None]
    grid = reduction(logits, assigned=False, on_sphere=unit).grid
    threshold = torch.full((len(rows), 1), 1.6, dtype=rows.dtype)

    def tiles(score: Score, assigned: bool = False, kind: str = "logsumexp") -> Tensor:
        return reduce_tiles(reduction(score, assigned=assigned, on_sphere=unit, kind=kind), rows, columns)

    readers = {
        "take": lambda: (columns.take(TAKEN).tanh() * weight).sum(),
        "assigned": lambda: tiles(logits, assigned=True).square().sum(),
        "plain": lambda: tiles(logits).sum(),
        "any score": lambda: tiles(squared_cosine, kind="row_sum").sum(),
        "centers": lambda: sum_of_centers(columns, K, spread),
        "entries": lambda: squared_distances(rows, columns, TAKEN.expand(len(rows), -1)).sqrt().sum(),
        "hinges": lambda: hinge_sums(HingeSums(grid, unit, False, 2), rows, columns, threshold, None)[0].sum(),
    }
    return {name: readers[name]() for name in names}


def read_plainly(raw: Tensor, rows: Tensor, *, unit: bool) -> dict[str, Tensor]:
    """The same in plain torch, in float64."""
    columns, rows = raw.double(), normalize(rows, dim=1)
    if unit:
        columns = columns / columns.norm(dim=1, keepdim=True).clamp_min(1e-12)
    each = (rows @ columns.T).unflatten(1, (-1, K))
    assigned = (torch.softmax(each / 0.2, 2) * each).sum(2)
    negative = LABELS[:, None] != torch.arange(NUM_CLASSES)
    every = negative.repeat_interleave(K, 1)
    weight = torch.arange(1.0, 5.0, dtype=torch.float64)[:, None]
    plain = rows @ columns.T
    apart = (rows[:, None] - columns[None]).square().sum(2)
    centers = columns.unflatten(0, (-1, K))
    return {
        "take": (columns[TAKEN].tanh() * weight).sum(),
        "assigned": (3 * assigned).masked_fill(~negative, -torch.inf).logsumexp(1).square().sum(),
        "plain": (3 * plain).masked_fill(~every, -torch.inf).logsumexp(1).sum(),
        "any score": plain.square().masked_fill(~every, 0).sum(),
        "centers": (centers @ centers.mT).square().sum(),
        "entries": apart[:, TAKEN].sqrt().sum(),
        "hinges": (1.6 - apart.sqrt()).relu().square().masked_fill(~every, 0).sum(),
    }


READERS = ["take", "plain", "any score", "centers", "entries", "hinges"]
OF_SEVERAL_CENTERS = ["take", "assigned", "centers"]


def close(actual: Tensor, wanted: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize(
    "names",
    [*([name] for name in [*READERS, "assigned"]), READERS, READERS[::-1], OF_SEVERAL_CENTERS],
    ids="+".join,
)
def test_readers_share_one_gradient(names: list[str], unit: bool) -> None:
    check(names, unit=unit)


def test_readers_of_centers_and_of_classes_side_by_side() -> None:
    check([*READERS, "assigned", "plain", "assigned"], unit=True)


def check(names: list[str], *, unit: bool) -> None:
    mine, plain = Inputs.of(), Inputs.of()
    found = read(Columns(mine.raw, dtype=torch.float64, unit=unit), mine.rows, names, unit=unit)
    wanted = read_plainly(plain.raw, plain.rows, unit=unit)
    for name, value in found.items():
        close(value, wanted[name])
    total = torch.stack([*found.values()]).sum()
    right = torch.stack([wanted[name] for name in found]).sum()
    gradients = torch.autograd.grad(total, [mine.raw, mine.rows], allow_unused=True, materialize_grads=True)
    for gradient, other in zip(
        gradients,
        torch.autograd.grad(right, [plain.raw, plain.rows], allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        close(gradient, other)


@pytest.mark.parametrize("rows_at_a_time", [1, 5, 4096])
def test_columns_of_length_zero(monkeypatch: pytest.MonkeyPatch, rows_at_a_time: int) -> None:
    """They are divided by the shortest length, and so is their gradient, as in torch's `normalize`."""
    monkeypatch.setattr(module, "ROWS_AT_A_TIME", rows_at_a_time)
    mine, plain = Inputs.of(with_zero=True), Inputs.of(with_zero=True)
    for name in ("centers", "assigned", *READERS[:3]):
        columns = Columns(mine.raw, dtype=torch.float64, unit=True)
        assert columns.at(torch.tensor(4)).abs().sum() == 0
        found = read(columns, mine.rows, [name], unit=True)[name]
        wanted = read_plainly(plain.raw, plain.rows, unit=True)[name]
        (actual,) = torch.autograd.grad(found, mine.raw, retain_graph=True)
        (right,) = torch.autograd.grad(wanted, plain.raw)
        assert torch.isfinite(actual).all()
        close(actual, right)
        if name == "centers":
            assert actual[10].norm() > 1e6


def test_a_second_backward_pass_gives_the_same_gradient() -> None:
    mine = Inputs.of()
    columns = Columns(mine.raw, dtype=torch.float64, unit=True)
    total = torch.stack([*read(columns, mine.rows, READERS, unit=True).values()]).sum()
    first = torch.autograd.grad(total, [mine.raw, mine.rows], retain_graph=True)
    again = torch.autograd.grad(total, [mine.raw, mine.rows], retain_graph=True)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    total.backward(retain_graph=True)
    total.backward()
    assert mine.raw.grad is not None
    close(mine.raw.grad, 2 * first[0])


def test_readers_differentiated_one_by_one() -> None:
    mine = Inputs.of()
    found = read(Columns(mine.raw, dtype=torch.float64, unit=True), mine.rows, READERS, unit=True)
    wanted = read_plainly(mine.raw, mine.rows, unit=True)
    for name in READERS:
        (alone,) = torch.autograd.grad(found[name], mine.raw, retain_graph=True)
        close(alone, torch.autograd.grad(wanted[name], mine.raw, retain_graph=True)[0])


@pytest.mark.parametrize("name", ["assigned", "plain", "any score", "entries", "hinges"])
def test_a_gradient_by_the_rows_alone_leaves_nothing_behind(name: str) -> None:
    mine = Inputs.of()
    value = read(Columns(mine.raw, dtype=torch.float64, unit=True), mine.rows, [name], unit=True)[name]
    (wanted,) = torch.autograd.grad(value, mine.raw, retain_graph=True)
    torch.autograd.grad(value, mine.rows, retain_graph=True)
    close(torch.autograd.grad(value, mine.raw)[0], wanted)


def test_a_loss_can_be_asked_for_the_embeddings_gradient_first() -> None:
    """As methods do that weigh losses by the length of their gradients."""
    loss = dmlscale.GlobalLoss("norm_softmax", num_classes=5, embedding_dim=DIM)
    x = torch.randn(8, DIM, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = loss(x, torch.arange(8) % 5)
    assert loss.bank is not None
    (wanted,) = torch.autograd.grad(value, loss.bank.weight, retain_graph=True)
    torch.autograd.grad(value, x, retain_graph=True)
    value.backward()
    assert loss.bank.weight.grad is not None
    torch.testing.assert_close(loss.bank.weight.grad, wanted)


@pytest.mark.parametrize("names", [READERS, OF_SEVERAL_CENTERS], ids="+".join)
@pytest.mark.parametrize("unit", [True, False])
def test_single_precision_columns_are_computed_in_double(unit: bool, names: list[str]) -> None:
    mine, plain = Inputs.of(torch.float32), Inputs.of(torch.float32)
    found = read(Columns(mine.raw, dtype=torch.float64, unit=unit), mine.rows, names, unit=unit)
    wanted = read_plainly(plain.raw, plain.rows, unit=unit)
    for name in names:
        assert found[name].dtype == torch.float64
        close(found[name], wanted[name])
    by_raw, by_rows = torch.autograd.grad(torch.stack([*found.values()]).sum(), [mine.raw, mine.rows])
    right = torch.autograd.grad(torch.stack([wanted[name] for name in names]).sum(), [plain.raw, plain.rows])
    assert by_raw.dtype == torch.float32
    torch.testing.assert_close(by_raw, right[0], rtol=3e-7, atol=1e-7)  # rounded once
    close(by_rows, right[1])


def test_columns_without_gradient() -> None:
    mine = Inputs.of()
    columns = Columns(mine.raw.detach(), dtype=torch.float64, unit=True)
    value = torch.stack([*read(columns, mine.rows, READERS, unit=True).values()]).sum()
    plain = read_plainly(mine.raw.detach(), mine.rows, unit=True)
    wanted = torch.stack([plain[name] for name in READERS]).sum()
    close(torch.autograd.grad(value, mine.rows)[0], torch.autograd.grad(wanted, mine.rows)[0])


def test_a_gpu_gets_larger_slices() -> None:
    """All rows once, on either; the meta device stands for one that is no CPU."""
    for device, number in (("cpu", 49), ("meta", 2)):
        slices = module.row_slices(torch.empty(200_000, 128, device=device))
        assert len(slices) == number
        assert [n for part in slices for n in range(200_000)[part]] == list(range(200_000))
    assert len(module.row_slices(torch.empty(10_000, 16_384, device="meta"))) == 3
