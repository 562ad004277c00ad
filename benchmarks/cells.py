"""One measurement of one implementation at one size. A process per memory cell keeps cells apart."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dmlscale

Step = Callable[[], float]  # forward and backward once; the loss


@dataclass(frozen=True)
class Size:
    """Loss and shape of a measurement.

    Args:
        loss: a registered name.
        batch: B; 4 samples per class where there are no classes.
        options: hyper-parameters.
        reference: name of the counterpart in `references`; None where there is none.
        classes: C of a class loss; None for samples x samples.
        dim: d.
        device: where it is computed, "cpu" or "cuda".
    """

    loss: str
    batch: int
    options: dict[str, Any] = field(default_factory=dict)
    reference: str | None = None
    classes: int | None = None
    dim: int = 128
    device: str = "cpu"

    def __str__(self) -> str:
        return f"B={self.batch:,}" + (f" C={self.classes:,}" if self.classes else "")

    def to_text(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Size:
        """From another process."""
        return cls(**json.loads(text))


def _inputs(size: Size) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size.batch, size.dim, generator=generator)
    x = nn.functional.normalize(x)
    if size.classes is None:
        y = torch.arange(size.batch) // 4
        y = y[torch.randperm(size.batch, generator=generator)]
    else:
        y = torch.randint(0, size.classes, (size.batch,), generator=generator)
    return x.to(size.device), y.to(size.device)


def _step(loss: Callable[[Tensor, Tensor], Tensor], module: nn.Module, size: Size) -> Step:
    x, y = _inputs(size)
    x.requires_grad_()

    def step() -> float:
        x.grad = None
        module.zero_grad()
        value = loss(x, y)
        value.backward()
        if isinstance(module, dmlscale.GlobalLoss):
            module.step_bank()
        return value.item()

    return step


def _our_loss(size: Size) -> dmlscale.GlobalLoss:
    loss = dmlscale.GlobalLoss(size.loss, num_classes=size.classes, embedding_dim=size.dim, **size.options)
    return loss.to(size.device)


def ours(size: Size) -> Step:
    """This package."""
    loss = _our_loss(size)
    return _step(loss, loss, size)


def reference(size: Size) -> Step:
    """The same in pytorch-metric-learning."""
    from benchmarks.references import make, start_alike

    assert size.reference is not None
    compute, module, weights = make(size.reference, size.classes, size.dim)
    if weights is not None:
        bank = _our_loss(size).bank
        assert bank is not None
        start_alike(module, weights, bank.weight.detach().flatten(0, 1).cpu())
    module.to(size.device)
    return _step(compute, module, size)


def bank_megabytes(size: Size) -> float:
    """The gradient of the bank, which every implementation must hold, if the loss has one."""
    bank = _our_loss(size).bank
    return 0.0 if bank is None or not bank.weight.requires_grad else bank.weight.numel() * 4 / 2**20


def floor(size: Size) -> Step:
    """The matrix products that the maths needs and nothing else: one forward, two for the gradients."""
    x, _ = _inputs(size)
    depth = _our_loss(size).loss.rows_per_class
    columns = x if size.classes is None else torch.randn(size.classes * depth, size.dim, device=size.device)
    gradient = torch.randn(size.batch, len(columns), device=size.device)
    # Into memory that is there: fresh pages for a matrix of this size would be a fifth of the time.
    similarity, to_rows, to_columns = torch.empty_like(gradient), torch.empty_like(x), torch.empty_like(columns)

    def step() -> float:
        torch.mm(x, columns.T, out=similarity)
        torch.mm(gradient, columns, out=to_rows)
        torch.mm(gradient.T, x, out=to_columns)
        return 0.0 if size.device == "cpu" else float(to_columns[0, 0])  # as the others, waits for the device

    return step


SIDES: dict[str, Callable[[Size], Step]] = {"ours": ours, "reference": reference, "floor": floor}


def seconds(step: Step, clock: Callable[[], float]) -> float:
    """Time of one step."""
    start = clock()
    step()
    return clock() - start


def clock_for(threads: int) -> Callable[[], float]:
    """CPU time of the process for one thread, which other load on the machine disturbs little; else wall time."""
    return time.process_time if threads == 1 else time.perf_counter


def peak_megabytes(side: str, size: Size, limit_gib: float) -> float:
    """Peak memory of the first step above what the process held before it; for a process of its own.

    Raises:
        MemoryError: the step needs more than ``limit_gib``.
    """
    warm = replace(size, batch=16, classes=None if size.classes is None else 8)
    SIDES[side](warm)()  # loads kernels and libraries
    step = SIDES[side](size)
    if size.device == "cuda":
        return _peak_on_gpu(step)
    limit = int(limit_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    try:
        step()
    except RuntimeError as error:
        if "memory" in str(error):
            raise MemoryError from error
        raise
    return (_status("VmHWM") - before) / 1024


def _peak_on_gpu(step: Step) -> float:
    """Of what torch has allocated; no process of its own is needed."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        step()
    except torch.OutOfMemoryError as error:
        raise MemoryError from error
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")
