"""Predicted bytes of a step are those that the collectives really get: equal, not close."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from dmlscale.config.load import load_config
from dmlscale.launch import build
from dmlscale.launch.plan.backbone_cost import backbone_cost
from dmlscale.launch.plan.collectives import Nodes, Traffic, by_node
from dmlscale.launch.plan.layout import Layout
from dmlscale.launch.plan.loss_traffic import loss_traffic
from dmlscale.launch.plan.sizes import Sizes
from dmlscale.launch.plan.step_traffic import StepTraffic, step_traffic
from tests.distributed.pool import GlooPool
from tests.launch.plan.ranks import CPU, FEATURES, bytes_of_a_loss_by_node, bytes_of_steps

CONFIGS = sorted(Path("configs/glyphs").glob("*.yaml"))
SMALL = [
    "data.classes_per_batch=12",
    "data.samples_per_class=2",
    "data.num_streams=4",
    "model.backbone=mlp",
    f"model.options={{in_features: {FEATURES}, hidden: [7]}}",
    "model.embedding_dim=6",
    "resources.device=cpu",
]
# Classes of the batch lie in the banks of different ranks, unevenly: 12 of 29.
CLASSES = [0, 1, 2, 3, 4, 5, 7, 11, 13, 20, 27, 28]
LABELS = [label for label in CLASSES for _ in range(2)]


# With and without exact sums, clipping and two passes; between them, all pairs.
SETTINGS = {
    1: ["train.reproducible=false"],
    2: ["train.reproducible=false"],
    3: ["train.reproducible=true", "optim.clip_norm=1.0"],
    4: ["train.reproducible=false", "optim.clip_norm=1.0", "train.micro_batch_size=2"],
}
IN_SHARDS = {
    2: ["train.parallel=fsdp", "train.activation_checkpointing=true"],
    3: ["train.parallel=fsdp", "train.precision=bf16", "train.micro_batch_size=4"],
    4: ["train.parallel=fsdp"],
}


@pytest.mark.parametrize("num_ranks", SETTINGS)
def test_every_loss(gloo_pool: GlooPool, num_ranks: int) -> None:
    overrides = [*SMALL, *SETTINGS[num_ranks], f"resources.workers={num_ranks}"]
    predicted = [_predicted(path, overrides) for path in CONFIGS]
    ranks = gloo_pool.run(num_ranks, bytes_of_steps, [str(path) for path in CONFIGS], overrides, LABELS)
    for rank in ranks:
        for path, (step, logged), traffic in zip(CONFIGS, rank, predicted, strict=True):
            assert step == _by_collective(traffic.every_step), path.stem
            skipped = Counter(all_gather=8 * num_ranks) if num_ranks > 1 else Counter()
            assert logged + skipped == _by_collective(traffic.logging), path.stem
    assert num_ranks == 1 or sum(_by_collective(predicted[0].every_step).values()) > 0


@pytest.mark.parametrize("num_ranks", IN_SHARDS)
def test_a_backbone_in_shards(gloo_pool: GlooPool, num_ranks: int) -> None:
    path = Path("configs/glyphs/norm_softmax.yaml")
    overrides = [*SMALL, *IN_SHARDS[num_ranks], f"resources.workers={num_ranks}"]
    predicted = _by_collective(_predicted(path, overrides).every_step)
    for [(step, _)] in gloo_pool.run(num_ranks, bytes_of_steps, [str(path)], overrides, LABELS):
        assert step == predicted


def _predicted(path: Path, overrides: list[str]) -> StepTraffic:
    config = load_config(path, overrides)
    sizes = _with_known_classes(Sizes.of(config, max(LABELS) + 1))
    layout = Layout.of(config, sizes, 8, reproducible=build.is_reproducible(config, CPU))
    half_precision = config.train.precision == "bf16"
    backbone = backbone_cost(config, (FEATURES,), 2, half_precision=half_precision, keep_gradients=True)
    nodes = Nodes(sizes.num_ranks, 8)
    return step_traffic(config, sizes, layout, backbone, nodes, half_precision=half_precision)


def _by_collective(calls: Iterable[Traffic]) -> Counter[str]:
    found: Counter[str] = Counter()
    for call in calls:
        found[call.collective] += call.payload
    return found


def _with_known_classes(sizes: Sizes) -> Sizes:
    share = sizes.local_classes
    held = Counter(label // share for label in CLASSES)
    return replace(sizes, fullest_classes=max(held.values()))


@pytest.mark.parametrize("loss", ["norm_softmax", "lifted_structure"])
def test_embeddings_by_node(gloo_pool: GlooPool, loss: str) -> None:
    path = f"configs/glyphs/{loss}.yaml"
    overrides = ["data.classes_per_batch=100", "model.embedding_dim=128", "resources.workers=4"]
    config = load_config(path, overrides)
    sizes = Sizes.of(config, 100)
    calls = by_node(loss_traffic(config, sizes, reproducible=False), Nodes(4, per_node=2))
    assert any(call.collective == "all_to_all" for call in calls)  # the batch is large enough
    for rank in gloo_pool.run(4, bytes_of_a_loss_by_node, path, overrides, sizes.local):
        assert rank == _by_collective(calls)
