"""What the losses do not use of a block yet, and what a block refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dmlscale.distributed.batch import LocalBatch
from dmlscale.distributed.class_block import ClassBlock, ClassRange
from dmlscale.distributed.pair_block import PairBlock
from dmlscale.distributed.world import World
from dmlscale.losses.block import BlockError, Tile
from dmlscale.losses.dense import DenseBlock
from dmlscale.losses.scores import ScaledSimilarity
from tests.distributed.pool import GlooPool

NUM_CLASSES, DIM = 7, 4


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(11, DIM, generator=generator, dtype=torch.float64)
    y = torch.randint(0, NUM_CLASSES, (11,), generator=generator)
    return x, y, torch.randn(NUM_CLASSES, 1, DIM, generator=generator, dtype=torch.float64)


def half_squared_distance(tile: Tile) -> Tensor:
    return tile.squared_distance / 2


def hinge(block: ClassBlock | DenseBlock) -> Tensor:
    """Triplet-center's terms: nearest center of another class, and the farthest of all."""
    nearest = block.minimum(half_squared_distance, where="negative")
    farthest = block.maximum(half_squared_distance, where="negative")
    own = block.target(half_squared_distance)
    spread = block.sum(
        lambda tile: tile.similarity.square() * tile.distance * tile.rows[0], where="negative", rows=(nearest,)
    )
    weighted = block.row_sums(lambda tile: tile.similarity * tile.rows[0], where="negative", rows=(own,))
    return block.mean((own + 5 - nearest).relu() + farthest + weighted, of="rows") + spread


def run_rank(world: World) -> tuple[Tensor, Tensor, Tensor]:
    x, y, proxies = inputs()
    mine = slice(*world.share(len(x)))
    start, stop = world.share(NUM_CLASSES)
    local, centers = x[mine].clone().requires_grad_(), proxies[start:stop].clone().requires_grad_()
    batch = LocalBatch(local, y[mine], torch.arange(len(x))[mine])
    block = ClassBlock(batch, centers, ClassRange(start, stop, NUM_CLASSES), world=world, on_sphere=False)
    loss = hinge(block)
    loss.backward()
    assert local.grad is not None
    assert centers.grad is not None
    return loss.detach(), local.grad, centers.grad


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_extremes_over_sharded_classes_equal_the_dense_block(gloo_pool: GlooPool, num_ranks: int) -> None:
    x, y, proxies = (t.clone() for t in inputs())
    x.requires_grad_()
    proxies.requires_grad_()
    wanted = hinge(DenseBlock(x, y, proxies, on_sphere=False))
    wanted.backward()
    ranks = gloo_pool.run(num_ranks, run_rank)
    for loss, _, _ in ranks:
        torch.testing.assert_close(loss, wanted.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat([g for _, g, _ in ranks]), x.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.cat([g for _, _, g in ranks]), proxies.grad, rtol=1e-10, atol=1e-12)


def test_blocks_refuse_what_they_cannot_reduce() -> None:
    x, y, proxies = inputs()
    batch = LocalBatch(x, y, torch.arange(len(x)))
    pairs = PairBlock(batch, World(), on_sphere=True)
    with pytest.raises(ValueError, match="reduces over columns"):
        pairs.logsumexp(ScaledSimilarity(1.0), over="rows", where="negative")
    with pytest.raises(BlockError, match=r"no target\(\)"):
        pairs.target(ScaledSimilarity(1.0))
    classes = ClassBlock(batch, proxies, ClassRange(0, NUM_CLASSES, NUM_CLASSES), world=World(), on_sphere=True)
    with pytest.raises(BlockError, match=r"no to_columns\(\)"):
        classes.to_columns(x[:, 0])
