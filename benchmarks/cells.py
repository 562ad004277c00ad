"""One measurement of one implementation at one size. A process per memory cell keeps cells apart."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

Step = Callable[[], float]  # forward and backward once; the loss


@dataclass(frozen=True)
class Size:
    """Loss and shape of a row of the table."""

    loss: str
    batch: int
    dim: int = 128
    classes: int | None = None  # None: samples x samples, 4 samples per class

    def __str__(self) -> str:
        return f"{self.loss} B={self.batch} d={self.dim}" + (f" C={self.classes}" if self.classes else "")


def _inputs(size: Size) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size.batch, size.dim, generator=generator)
    x = nn.functional.normalize(x)
    if size.classes is None:
        y = torch.arange(size.batch) // 4
        y = y[torch.randperm(size.batch, generator=generator)]
    else:
        y = torch.randint(0, size.classes, (size.batch,), generator=generator)
    return x, y


def _step(loss: Callable[[Tensor, Tensor], Tensor], module: nn.Module, size: Size) -> Step:
    x, y = _inputs(size)
    x.requires_grad_()

    def step() -> float:
        x.grad = None
        module.zero_grad()
        value = loss(x, y)
        value.backward()
        return value.item()

    return step


def ours(size: Size) -> Step:
    """This package."""
    import dmlscale

    loss = dmlscale.GlobalLoss(size.loss, num_classes=size.classes, embedding_dim=size.dim)
    return _step(loss, loss, size)


def reference(size: Size) -> Step:
    """pytorch-metric-learning."""
    from pytorch_metric_learning import distances, losses, miners, reducers

    if size.loss == "proxy_anchor":
        from dmlscale.distributed.class_bank import random_rows

        proxy_anchor = losses.ProxyAnchorLoss(size.classes, size.dim)
        with torch.no_grad():  # our start, so that the values can be compared
            rows = random_rows(0, size.classes or 0, (1, size.dim), 0)[:, 0]
            proxy_anchor.proxies.copy_(rows if proxy_anchor.proxies.shape == rows.shape else rows.T)
        return _step(proxy_anchor, proxy_anchor, size)
    if size.loss == "lifted_structure":
        lifted = losses.LiftedStructureLoss(1, distance=distances.LpDistance(normalize_embeddings=False))
        return _step(lifted, lifted, size)
    # Its semi-hard miner returns all semi-hard triplets, ours one per positive pair: the same kind of work.
    miner = miners.TripletMarginMiner(0.2, "semihard", distance=distances.LpDistance(power=2))
    triplet = losses.TripletMarginLoss(0.2, distance=distances.LpDistance(power=2), reducer=reducers.MeanReducer())
    return _step(lambda x, y: triplet(x, y, miner(x, y)), triplet, size)


def floor(size: Size) -> Step:
    """The matrix products that the maths needs and nothing else: one forward, two for the gradients."""
    x, _ = _inputs(size)
    columns = x if size.classes is None else torch.randn(size.classes, size.dim)
    gradient = torch.randn(size.batch, len(columns))
    # Into memory that is there: fresh pages for a matrix of this size would be a fifth of the time.
    similarity, to_rows, to_columns = torch.empty_like(gradient), torch.empty_like(x), torch.empty_like(columns)

    def step() -> float:
        torch.mm(x, columns.T, out=similarity)
        torch.mm(gradient, columns, out=to_rows)
        torch.mm(gradient.T, x, out=to_columns)
        return 0.0

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
    warm = Size(size.loss, 16, size.dim, None if size.classes is None else 8)
    SIDES[side](warm)()  # loads kernels and libraries
    step = SIDES[side](size)
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


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")
