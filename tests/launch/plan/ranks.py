"""Real steps on gloo ranks, as a worker does them."""

from __future__ import annotations

from collections import Counter

import torch

from benchmarks.plan_counting import counted_bytes
from dmlscale.config.load import load_config
from dmlscale.data.types import Batch
from dmlscale.distributed.node_groups import grouped_by_node
from dmlscale.distributed.world import World
from dmlscale.launch import build
from dmlscale.training.pace import Stopwatch
from dmlscale.training.step import train_step

CPU = torch.device("cpu")
FEATURES = 5  # of a sample


def bytes_of_steps(
    world: World, paths: list[str], overrides: list[str], labels: list[int]
) -> list[tuple[Counter[str], Counter[str]]]:
    """`bytes_of_a_step` of each config."""
    return [bytes_of_a_step(world, path, overrides, labels) for path in paths]


def bytes_of_a_step(
    world: World, path: str, overrides: list[str], labels: list[int]
) -> tuple[Counter[str], Counter[str]]:
    """What this rank hands to each collective in its second step, and for what is logged of losses and paces."""
    config = load_config(path, overrides)
    num_classes = max(labels) + 1
    embedder = build.build_embedder(config)
    objective = build.build_objective(config, num_classes, world)
    trainee = build.build_trainee(config, embedder, objective, world, CPU)
    batch = local_batch(world, labels, config.data.num_streams)
    train_step(trainee, batch, 0)
    with counted_bytes() as found:
        train_step(trainee, batch, 1)
    with counted_bytes() as logged:
        objective.metrics()
        Stopwatch(CPU, meets_in_forward=False).read(world)
    return found, logged


def local_batch(world: World, labels: list[int], num_streams: int) -> Batch:
    """A rank's part of a global batch that is dealt to streams of equal size."""
    each = len(labels) // num_streams
    streams = range(world.rank, num_streams, world.num_ranks)
    rows = torch.cat([torch.arange(s * each, (s + 1) * each) for s in streams])
    images = torch.randn(len(labels), FEATURES, generator=torch.Generator().manual_seed(0))[rows]
    return Batch(images, torch.tensor(labels)[rows], rows, dict.fromkeys(streams, each))


def bytes_of_a_loss_by_node(world: World, path: str, overrides: list[str], samples: int) -> Counter[str]:
    """What this rank hands to each collective for a loss; two ranks to a node."""
    config = load_config(path, overrides)
    objective = build.build_objective(config, 100, world)
    for loss in objective.losses():
        loss.world = grouped_by_node(world, f"node {world.rank // 2}")
    embeddings = torch.randn(samples, config.model.embedding_dim).requires_grad_()
    ids = torch.arange(samples) + world.rank * samples
    with counted_bytes() as found:
        objective(embeddings, ids % 100, ids, 0)[0].backward()
    return found
