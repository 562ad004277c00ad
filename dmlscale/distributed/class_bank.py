"""Proxies and centers, one range of classes per rank."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dmlscale.distributed import collectives
from dmlscale.distributed.world import World

# Classes that share one random generator: large enough to be fast, small enough to skip to any class range.
CLASSES_PER_DRAW = 1024


class ClassBank(nn.Module):
    """K rows for each class, of which this rank holds the classes ``[start, stop)``.

    The first values are a function of (seed, class id) alone, so they are the same at any number of ranks. The
    parameter must not be wrapped in DDP: each rank owns its part and its gradient is already complete.

    Args:
        num_classes: C, over all ranks.
        rows_per_class: K.
        embedding_dim: d.
        seed: of the random start.
        world: the ranks that share the bank.

    Attributes:
        weight: (stop - start, K, d) parameter.

    Raises:
        ValueError: fewer than one class.
    """

    def __init__(self, num_classes: int, rows_per_class: int, embedding_dim: int, *, seed: int, world: World) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.world = world
        self.start, self.stop = world.share(num_classes)
        values = random_rows(self.start, self.stop, (rows_per_class, embedding_dim), seed)
        # Length one on average, whatever the dimension.
        self.weight = nn.Parameter(values / embedding_dim**0.5)
        self._seed = seed

    @torch.no_grad()
    def start_at_class_means(
        self, batches: Iterable[tuple[Tensor, Tensor]], spread: float = 0.05, *, directions: bool = True
    ) -> None:
        """Sets each class's rows to where its embeddings lie: as seen from the middle of all, or as a point among them.

        An untrained network sends everything in nearly the same direction, so the classes' mean directions hardly
        differ; those from the middle of all samples do, and a softmax over them has something to learn from at once.
        Classes that never occur keep their values. Embeddings with NaN or infinity are left out: one of them would
        move every class.

        Args:
            batches: this rank's (embeddings (b, d), labels (b,)) pairs; ranks may have different numbers.
            spread: length of the random offset that tells a class's K rows apart (K > 1).
            directions: rows of length one, from the mean direction of all samples to that of the class; False for the
                class's plain mean.

        Communication: per batch one all-gather of embeddings and labels and of the sizes; a rank that has run out
        of batches takes part with empty ones until all have.
        """
        num_local, depth, dim = self.weight.shape
        # In double precision the means do not feel the order of the batches, which depends on the number of ranks.
        sums = self.weight.new_zeros((num_local, dim), dtype=torch.float64)
        counts = self.weight.new_zeros(num_local, dtype=torch.float64)
        total, num_samples = sums.new_zeros(dim), 0
        iterator = iter(batches)
        while True:
            batch = next(iterator, None)
            sizes = collectives.gather_sizes(-1 if batch is None else len(batch[0]), self.world, sums.device)
            if max(sizes) < 0:
                break
            sizes = [max(0, n) for n in sizes]
            embeddings, labels = batch or (sums.new_zeros((0, dim)), counts.new_zeros(0, dtype=torch.int64))
            rows = embeddings.detach().to(sums.dtype)
            rows = normalize(rows, dim=1) if directions else rows
            everyone = collectives.gather_rows(rows, sizes, self.world)
            position = collectives.gather_rows(labels, sizes, self.world) - self.start
            usable = torch.isfinite(everyone).all(1)
            mine = (position >= 0) & (position < num_local) & usable
            total += everyone[usable].sum(0)
            num_samples += int(usable.sum())
            sums.index_add_(0, position[mine], everyone[mine])
            counts.index_add_(0, position[mine], torch.ones_like(counts[:1]).expand(int(mine.sum())))
        seen = counts > 0
        means = sums / counts.clamp_min(1)[:, None]
        if directions:
            away = means - total / max(1, num_samples)
            # A class alone is the middle of all.
            means = normalize(torch.where(away.norm(dim=1, keepdim=True) > 1e-6, away, means), dim=1)
        means = means[:, None, :].expand(-1, depth, -1).clone()
        if depth > 1:
            offsets = normalize(random_rows(self.start, self.stop, (depth, dim), self._seed + 1), dim=2)
            means += spread * offsets.to(means)
        self.weight[seen] = means[seen].to(self.weight.dtype)

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return f"num_classes={self.num_classes}, local=[{self.start}, {self.stop})"


def random_rows(start: int, stop: int, shape: tuple[int, int], seed: int) -> Tensor:
    """Standard normal rows (stop - start, *shape) that depend on the seed and on each class id only."""
    draws = []
    for block in range(start // CLASSES_PER_DRAW, -(-stop // CLASSES_PER_DRAW)):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + block) % 2**63)
        values = torch.randn((CLASSES_PER_DRAW, *shape), generator=generator)
        first = block * CLASSES_PER_DRAW
        draws.append(values[max(0, start - first) : stop - first])
    return torch.cat(draws) if draws else torch.empty((0, *shape))
