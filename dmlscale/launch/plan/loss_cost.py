"""What the losses of a step take, learnt by rehearsing them at a few small sizes.

Memory, products and sweeps of a loss are sums of a few terms: for each sample of the rank, for each of the global
batch, for each class of the rank's bank, for each pair of them. Their weights come from rehearsals with the real code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls

from dmlscale.config.components import LossChoice
from dmlscale.config.schema import Config
from dmlscale.distributed.grid import COLUMNS_ON_CPU, COLUMNS_ON_GPU, ROWS_ON_CPU, ROWS_ON_GPU
from dmlscale.distributed.rehearsal import RehearsalGroup, rehearse_with
from dmlscale.distributed.world import World
from dmlscale.launch import build
from dmlscale.launch.plan.meter import Meter
from dmlscale.launch.plan.sizes import Sizes
from dmlscale.losses import LOSSES

# (samples of the rank, ranks, rows of the bank that it looks at): one whole tile at least, and so many rows that what
# takes the same memory however many there are does not hide how the rest grows.
_PAIRS = tuple(product((256, 512), (2, 4), (1,)))
_CLASSES = (*product((64, 128), (2, 4), (32_768,)), (64, 2, 49_152), (64, 4, 49_152))
_LARGEST_BANK = 2**27  # numbers, for a rehearsal
_ONE_TILE = (ROWS_ON_CPU, 2, COLUMNS_ON_CPU)
# The whole batch is searched for each class (clustering): only small sizes are bearable, and cost grows with the cube.
_SMALL = ((32, 2, 64), (64, 2, 64))


@dataclass(frozen=True)
class Rehearsal:
    """Sizes and figures of one rehearsal."""

    local: int
    total: int
    classes: int
    figures: tuple[float, float, float]  # peak bytes, floating-point operations, bytes moved


@dataclass(frozen=True)
class LossCost:
    """Forward and backward pass of all losses, on one rank.

    Args:
        rehearsals: what was measured.
        tile_bytes: alive for each entry of a tile.
        is_cubic: work grows with the cube of the batch, memory with its square.
    """

    rehearsals: tuple[Rehearsal, ...]
    tile_bytes: float
    is_cubic: bool

    def peak_bytes(self, sizes: Sizes, *, on_gpu: bool) -> float:
        """Most bytes alive, gradients by embeddings and banks included, banks and embeddings themselves not."""
        if self.is_cubic:
            return self._grown(sizes, 0, 2)
        weights = self._fit(0, lambda r: (1, *_linear(r)))
        terms = (sizes.local, sizes.total, sizes.local_classes)
        # The constant holds a tile of the rehearsal's device, the CPU.
        larger = _tile(*terms, on_gpu=on_gpu) - _tile(*terms, on_gpu=False)
        return float(weights @ (1, *terms)) + larger * self.tile_bytes

    def flops(self, sizes: Sizes) -> float:
        """Floating-point operations of the products."""
        return self._work(sizes, 1)

    def moved_bytes(self, sizes: Sizes) -> float:
        """Bytes read and written by everything else: mostly sweeps over tiles."""
        return self._work(sizes, 2)

    def _work(self, sizes: Sizes, figure: int) -> float:
        if self.is_cubic:
            return self._grown(sizes, figure, 3)
        classes = sizes.local_classes
        weights = self._fit(figure, lambda r: (1, *_linear(r), r.local * r.total, r.total * r.classes))
        terms = (1, sizes.local, sizes.total, classes, sizes.local * sizes.total, sizes.total * classes)
        return float(weights @ terms)

    def _fit(self, figure: int, terms: Callable[[Rehearsal], tuple[int, ...]]) -> NDArray[np.float64]:
        matrix = np.array([terms(r) for r in self.rehearsals], dtype=np.float64)
        scale = matrix.max(0)
        weights, _ = nnls(matrix / scale, np.array([r.figures[figure] for r in self.rehearsals]))
        result: NDArray[np.float64] = weights / scale
        return result

    def _grown(self, sizes: Sizes, figure: int, exponent: int) -> float:
        largest = max(self.rehearsals, key=lambda r: r.total)
        return largest.figures[figure] * (sizes.total / largest.total) ** exponent


def loss_cost(config: Config, *, reproducible: bool) -> LossCost:
    """Rehearses the losses of a config; takes a second or two.

    Args:
        config: whose losses.
        reproducible: the embeddings are float64.
    """
    is_cubic = any(term.name == "clustering" for term in config.losses)
    sizes = _SMALL if is_cubic else _sizes(config)
    found = tuple(_rehearse(config, size, config.model.embedding_dim, reproducible) for size in sizes)
    # Of two numbers each, samples and classes take next to nothing: what is left is the tile.
    local, ranks, classes = _ONE_TILE
    if any(map(_has_bank, config.losses)):
        classes = int(classes * _classes_for_a_row(config))
    looked_at = _SMALL[0] if is_cubic else (local, ranks, classes)
    tile = _rehearse(config, looked_at, 2, reproducible)
    return LossCost(found, tile.figures[0] / _tile(local, ranks * local, COLUMNS_ON_CPU, on_gpu=False), is_cubic)


def _sizes(config: Config) -> Sequence[tuple[int, int, int]]:
    if not any(map(_has_bank, config.losses)):
        return _PAIRS
    share = _classes_for_a_row(config)
    largest = max(rows for _, _, rows in _CLASSES) * config.model.embedding_dim / _rate(config)
    share *= min(1.0, _LARGEST_BANK / largest)
    return [(local, ranks, int(rows * share)) for local, ranks, rows in _CLASSES]


def _classes_for_a_row(config: Config) -> float:
    """Classes of a bank for each row that is looked at."""
    depth = max(LOSSES[term.name](**term.options).rows_per_class for term in config.losses if _has_bank(term))
    return 1 / depth / _rate(config)


def _has_bank(term: LossChoice) -> bool:
    return LOSSES[term.name].block == "classes"


def _rate(config: Config) -> float:
    return min(term.class_sampling or 1.0 for term in config.losses)


def _rehearse(config: Config, size: tuple[int, int, int], dim: int, reproducible: bool) -> Rehearsal:
    local, ranks, classes = size
    model = config.model.model_copy(update={"embedding_dim": dim})
    objective = build.build_objective(config.model_copy(update={"model": model}), classes, World())
    group = RehearsalGroup(ranks)
    rehearse_with(objective, group.world)
    each = min(config.data.samples_per_class, local // 2)
    if not all(map(_has_bank, config.losses)):
        each = max(1, each // ranks)  # the other ranks have samples of the same classes
    labels = torch.arange(local) // each
    if classes > 1:  # spread over the bank, as random classes are
        labels = labels * max(1, classes // (int(labels.max()) + 1))
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(local, dim, generator=generator)
    embeddings = embeddings.double() if reproducible else embeddings
    embeddings = torch.nn.functional.normalize(embeddings, dim=1).requires_grad_()
    latest = max(term.memory_start for term in config.losses)
    leaves = [embeddings, *(p for p in objective.parameters() if p.requires_grad)]
    with Meter() as meter:
        loss = objective(embeddings, labels, torch.arange(local), latest)[0]
        # Not backward(), which copies gradients where it is watched.
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    del gradients
    figures = (float(meter.peak), float(meter.flops), float(meter.moved))
    return Rehearsal(local, ranks * local, classes, figures)


def _linear(r: Rehearsal) -> tuple[int, int, int]:
    return r.local, r.total, r.classes


def _tile(local: int, total: int, classes: int, *, on_gpu: bool) -> int:
    """Entries of the largest tile: samples of the rank x all samples, or all samples x classes of the rank."""
    height, width = (ROWS_ON_GPU, COLUMNS_ON_GPU) if on_gpu else (ROWS_ON_CPU, COLUMNS_ON_CPU)
    sides = ((local, total), (total, classes))
    return max(min(rows, height) * min(columns, width) for rows, columns in sides)
