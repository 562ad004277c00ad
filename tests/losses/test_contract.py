"""One contract over the whole registry: whatever the number of ranks and however uneven their batches, the loss and
the gradient of every parameter are those of the formula on the concatenated batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import dmlscale
from dmlscale.distributed.world import World
from dmlscale.losses import LOSSES
from dmlscale.losses.dense import DenseBlock
from tests.distributed.pool import GlooPool
from tests.losses.cases import SEED, Case, all_cases

CASES = all_cases()
# Some tests look at a loss twice without a step between.
pytestmark = pytest.mark.filterwarnings(r"ignore:center. step_bank\(\) was not called")
DIM, NUM_CLASSES = 5, 7  # 7 divides by none of 2, 3, 4
LAYOUTS = {  # local batch sizes of the ranks
    1: {"whole": [23]},
    2: {"uneven": [14, 9], "one sample": [22, 1], "empty": [0, 23]},
    3: {"uneven": [9, 3, 11], "one sample": [11, 1, 11]},
    4: {"uneven": [7, 2, 9, 5], "one sample": [1, 10, 10, 2], "empty": [12, 0, 11, 0]},
}


@dataclass
class Outcome:
    """A loss with the gradients of backbone and bank; the bank's is this rank's range of classes."""

    loss: Tensor
    backbone: Tensor
    bank: Tensor | None
    weight: Tensor | None


def global_batch(order: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(23, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, NUM_CLASSES - 1, (23,), generator=generator)  # the last class is absent
    labels[0] = 0
    if order == "sorted":
        labels = labels.sort().values
    return images, labels


def backbone() -> nn.Linear:
    torch.manual_seed(11)
    return nn.Linear(4, DIM).double()


def run_rank(world: World, case: Case, sizes: list[int], order: str, data_parallel: str = "sum") -> Outcome:
    images, labels = global_batch(order)
    net = backbone()
    loss = dmlscale.GlobalLoss(
        case.loss,
        num_classes=NUM_CLASSES,
        embedding_dim=DIM,
        data_parallel="mean" if data_parallel == "mean" else "sum",
        seed=SEED,
        group=world.group,
        **case.options,
    ).double()
    start = sum(sizes[: world.rank])
    mine = slice(start, start + sizes[world.rank])
    value = loss(net(images[mine]), labels[mine])
    value.backward()
    assert net.weight.grad is not None
    if loss.bank is None:
        return Outcome(value.detach(), net.weight.grad, None, None)
    return Outcome(value.detach(), net.weight.grad, loss.bank.weight.grad, loss.bank.weight.detach())


def expected(case: Case, order: str, weight: Tensor | None) -> Outcome:
    held = None if weight is None else (tuple(weight.shape), tuple(weight.flatten().tolist()))
    return _expected(CASES.index(case), order, held)


@cache
def _expected(number: int, order: str, held: tuple[tuple[int, ...], tuple[float, ...]] | None) -> Outcome:
    """The loops are slow, and what they give is the same at any number of ranks: once for each bank is enough."""
    case = CASES[number]
    images, labels = global_batch(order)
    net = backbone()
    weight = None
    if held is None:
        value = case.oracle(net(images), labels, **case.oracle_options)
    else:
        weight = torch.tensor(held[1], dtype=torch.float64).reshape(held[0]).requires_grad_()
        value = case.oracle(net(images), labels, weight, **case.oracle_options)
    value.backward()
    assert net.weight.grad is not None
    return Outcome(value.detach(), net.weight.grad, None if weight is None else weight.grad, None)


def joined(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def close(actual: Tensor | None, wanted: Tensor | None) -> None:
    if actual is None or wanted is None:
        assert actual is wanted
    else:
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradients_equal_the_formula(gloo_pool: GlooPool, case: Case, num_ranks: int) -> None:
    for sizes in LAYOUTS[num_ranks].values():
        for order in ("mixed", "sorted"):
            ranks = gloo_pool.run(num_ranks, run_rank, case, sizes, order)
            wanted = expected(case, order, joined([rank.weight for rank in ranks]))
            for rank in ranks:
                close(rank.loss, wanted.loss)
            close(torch.stack([rank.backbone for rank in ranks]).sum(0), wanted.backbone)
            close(joined([rank.bank for rank in ranks]), wanted.bank)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mean_data_parallelism_gives_the_same_gradient(gloo_pool: GlooPool, case: Case) -> None:
    ranks = gloo_pool.run(3, run_rank, case, [9, 3, 11], "mixed", "mean")
    wanted = expected(case, "mixed", joined([rank.weight for rank in ranks]))
    close(torch.stack([rank.backbone for rank in ranks]).mean(0), wanted.backbone)
    close(joined([rank.bank for rank in ranks]), wanted.bank)


def test_every_registered_loss_has_a_case() -> None:
    assert {case.loss for case in CASES} == set(LOSSES)


def batch(labels: list[int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(labels), DIM, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return x, torch.tensor(labels)


def loss_of(case: Case, num_classes: int = NUM_CLASSES) -> dmlscale.GlobalLoss:
    return dmlscale.GlobalLoss(case.loss, num_classes=num_classes, embedding_dim=DIM, **case.options)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("num_classes", [1, 3, 40])
def test_tiles_equal_the_dense_block_beyond_one_tile(case: Case, num_classes: int) -> None:
    """More rows and columns than a tile holds, with few and with many positives."""
    generator = torch.Generator().manual_seed(0)
    # The dense form of all triplets holds B^3 numbers, the search for medoids takes C B^2 time.
    size = 300 if case.loss == "clustering" or case.options.get("mining", "").startswith("all") else 700
    x = torch.randn(size, DIM, generator=generator, dtype=torch.float64).requires_grad_()
    y = torch.randint(0, num_classes, (size,), generator=generator)
    if case.ordered:
        y = y.sort().values  # the order of a block's columns
    loss = loss_of(case, num_classes).double()
    weight = loss.bank.weight if loss.bank is not None else None
    inputs = [x] if weight is None or not weight.requires_grad else [x, weight]
    tiled = loss(x, y)
    dense = loss.loss(DenseBlock(x, y, weight, on_sphere=loss.loss.on_sphere))
    close(tiled, dense)
    wanted = torch.autograd.grad(dense, inputs, allow_unused=True, materialize_grads=True)
    for a, b in zip(torch.autograd.grad(tiled, inputs), wanted, strict=True):
        close(a, b)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [2, 2, 2], [4], [], [0, 0, 1]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_degenerate_batches_are_finite(case: Case, labels: list[int], dtype: torch.dtype) -> None:
    """No positives, one class, one sample, none at all."""
    x, y = batch(labels, dtype)
    loss = loss_of(case)
    value = loss(x, y.to(torch.int64))
    value.backward()
    assert x.grad is not None
    assert torch.isfinite(value)
    assert torch.isfinite(x.grad).all()
    if loss.bank is None and not case.alone and len(set(labels)) in (0, 1, len(labels)):
        assert value == 0
        assert x.grad.abs().sum() == 0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_identical_samples_have_finite_gradients(case: Case) -> None:
    x = torch.ones(6, DIM, requires_grad=True)
    loss_of(case)(x, torch.tensor([0, 0, 1, 1, 2, 2])).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("case", [case for case in CASES if not case.ordered], ids=str)
def test_order_of_samples_does_not_matter(case: Case) -> None:
    x, y = batch([0, 1, 2, 0, 1, 2, 3, 3, 4, 0])
    order = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    loss = loss_of(case).double()
    close(loss(x, y), loss(x[order], y[order]))


@pytest.mark.parametrize(
    "case", [case for case in CASES if LOSSES[case.loss].block == "pairs" and not case.drawn], ids=str
)
def test_names_of_labels_do_not_matter(case: Case) -> None:
    x, y = batch([0, 1, 2, 0, 1, 2, 3, 3, 4, 0])
    loss = loss_of(case)
    close(loss(x, y), loss(x, (10**12 - 7 * y)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_half_precision_is_computed_in_single(case: Case) -> None:
    x, y = batch([0, 1, 2, 0, 1, 2, 3, 3, 4, 0], torch.bfloat16)
    loss = loss_of(case)
    value = loss(x, y, step=0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(x.float(), y, step=0))


@pytest.mark.parametrize("name", list(LOSSES))
def test_docstrings_tell_formula_block_and_arguments(name: str) -> None:
    doc = LOSSES[name].__doc__ or ""
    for part in ("Formula:", "Block:", "Args:", "Raises:"):
        assert part in doc, f"{name}: docstring lacks {part}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nan_stays_visible(case: Case) -> None:
    x, y = batch([0, 1, 2, 0, 1, 2, 3, 3, 4, 0])
    poisoned = x.detach().clone()
    poisoned[4] = torch.nan
    assert loss_of(case).double()(poisoned, y).isnan()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_under_autocast_is_computed_in_full_precision(case: Case) -> None:
    x, y = batch([0, 1, 2, 0, 1, 2, 3, 3, 4, 0] * 5, torch.float32)
    loss = loss_of(case)
    plain = torch.autograd.grad(loss(x, y, step=0), x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(torch.autograd.grad(loss(x, y, step=0), x)[0], plain)
