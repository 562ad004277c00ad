"""Everything that a step sends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from dmlscale.config.schema import Config
from dmlscale.launch.plan.backbone_cost import BackboneCost
from dmlscale.launch.plan.collectives import Nodes, Traffic, by_node, placed
from dmlscale.launch.plan.layout import Layout
from dmlscale.launch.plan.loss_traffic import loss_traffic, metrics_traffic
from dmlscale.launch.plan.sizes import Sizes
from dmlscale.losses import LOSSES
from dmlscale.training.loop import STOP_CHECK_EVERY

_FLOAT32, _FLOAT64, _INT64, _BFLOAT16 = 4, 8, 8, 2


@dataclass(frozen=True)
class StepTraffic:
    """What is sent, and how often.

    Args:
        losses: in every step.
        model: parameters and gradients of backbone and head, in every step.
        logging: in each step that is logged.
        stop_check: each `STOP_CHECK_EVERY` steps.
    """

    losses: tuple[Traffic, ...]
    model: tuple[Traffic, ...]
    logging: tuple[Traffic, ...]
    stop_check: tuple[Traffic, ...]

    @property
    def every_step(self) -> tuple[Traffic, ...]:
        """Those of each step."""
        return (*self.losses, *self.model)

    def mean_payload(self, log_every: int) -> float:
        """Bytes of a step, with the share of what is sent in some steps only."""
        rarely = _payload(self.logging) / log_every + _payload(self.stop_check) / STOP_CHECK_EVERY
        return _payload(self.every_step) + rarely


def step_traffic(
    config: Config, sizes: Sizes, layout: Layout, backbone: BackboneCost, nodes: Nodes, *, half_precision: bool
) -> StepTraffic:
    """The collectives of a step on the rank that holds most; none for one rank.

    Args:
        config: of the run.
        sizes: of its step.
        layout: of its backbone.
        backbone: its parameters.
        nodes: how ranks lie on them.
        half_precision: bf16 in the network.
    """
    if sizes.num_ranks == 1:
        return StepTraffic((), (), (), ())
    skipped = Traffic("skipped samples", "all_gather", sizes.num_ranks * _INT64, sizes.num_ranks)
    paces = Traffic("each rank's pace", "all_gather", sizes.num_ranks * 3 * _FLOAT64, sizes.num_ranks)
    places = by_node if config.train.by_node else placed
    if layout.shards > 1:
        model = _in_shards(layout, backbone, nodes, half_precision=half_precision)
    else:
        model = places(_summed(layout, backbone.num_trainable, sizes), nodes)
    numbers = []
    if layout.shards > 1 and layout.two_passes:
        numbers.append(_all_reduce("number of parts", _INT64, sizes))
    if config.optim.clip_norm is not None:
        numbers += [_all_reduce("norm of the banks' gradient", _FLOAT64, sizes)] if _has_bank(config) else []
        numbers += [_all_reduce("norm of the shards' gradient", _FLOAT64, sizes)] if layout.shards > 1 else []
    elif _has_bank(config) or layout.shards > 1:
        numbers.append(_all_reduce("whether the step is finite", _FLOAT32, sizes))
    return StepTraffic(
        places(loss_traffic(config, sizes, reproducible=layout.reproducible), nodes),
        (*model, *placed(numbers, nodes)),
        placed((*metrics_traffic(config, sizes), paces, skipped), nodes),
        placed([_all_reduce("whether to stop or save", 3 * _FLOAT32, sizes)], nodes),
    )


def _payload(calls: Iterable[Traffic]) -> int:
    return sum(call.payload for call in calls)


def _has_bank(config: Config) -> bool:
    return any(LOSSES[term.name].block == "classes" for term in config.losses)


def _summed(layout: Layout, num_trainable: int, sizes: Sizes) -> list[Traffic]:
    """As `data_parallel`, bucket by bucket beside the backward pass; or exactly, as `training.reproducible`."""
    if not layout.reproducible:
        return [_all_reduce("gradient of the model", num_trainable * _FLOAT32, sizes, hidden=True)]
    return [
        _all_reduce("number of streams", _FLOAT32, sizes),
        _all_reduce("largest gradient", _FLOAT64, sizes),
        _all_reduce("gradient of the model", num_trainable * _FLOAT64, sizes),
    ]


def _all_reduce(what: str, payload: int, sizes: Sizes, *, hidden: bool = False) -> Traffic:
    return Traffic(what, "all_reduce", payload, sizes.num_ranks, hidden=hidden)


def _in_shards(layout: Layout, backbone: BackboneCost, nodes: Nodes, *, half_precision: bool) -> tuple[Traffic, ...]:
    """As `fully_sharded`: per part of the batch and group of parameters two gathers, three where it is passed twice."""
    ranks = layout.shards
    far = ranks > nodes.per_node
    found: list[Traffic] = []
    for group in backbone.shapes:
        fetched = sum(_padded(shape, ranks) * _item(shape, half_precision=half_precision) for shape in group)
        whole = sum(_padded(shape, ranks) for shape in group) * _FLOAT32
        gather = Traffic("parameters", "all_gather", fetched, ranks, far, hidden=True)
        found += [gather] * (layout.passes * (3 if layout.two_passes else 2))
        found += [Traffic("gradient of the model", "reduce_scatter", whole, ranks, far, hidden=True)] * layout.passes
        if ranks < nodes.num_ranks:
            copies = nodes.num_ranks // ranks
            shard = Traffic("gradient of the model", "all_reduce", whole // ranks, copies, far=True, hidden=True)
            found += [shard] * layout.passes
    return tuple(found)


def _padded(shape: torch.Size, ranks: int) -> int:
    """Numbers of a parameter that is cut into equal parts along its first axis."""
    first, *others = shape or (1,)
    return ranks * math.ceil(first / ranks) * math.prod(others)


def _item(shape: torch.Size, *, half_precision: bool) -> int:
    return _BFLOAT16 if half_precision and len(shape) > 1 else _FLOAT32
