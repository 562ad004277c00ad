"""What the losses of a step send: learnt by rehearsing them once on a few samples.

A loss's collectives follow from its code, not from its samples, and each has the shape of some part of the batch. So a
rehearsal with a batch whose parts have tell-tale sizes says which part that is, and the bytes of any other batch follow
exactly. A loss that is added later needs nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch

from dmlscale.config.schema import Config
from dmlscale.distributed.rehearsal import Call, RehearsalGroup, rehearse_with
from dmlscale.distributed.world import World
from dmlscale.launch import build
from dmlscale.launch.plan.collectives import Traffic
from dmlscale.launch.plan.sizes import Sizes
from dmlscale.training.objective import Objective

# Numbers that no sum or product of the others could be mistaken for: ranks, classes and samples of a rank, dimension.
_RANKS, _CLASSES, _PER_CLASS, _DIM, _BANK = 3, 5, 4, 7, 11
_LOCAL = _CLASSES * _PER_CLASS
_LARGEST_FIXED = 3  # a few numbers for each sample, or scalars stacked together

_NAMES = {
    ("all_gather", "embeddings"): "embeddings",
    ("reduce_scatter", "embeddings"): "gradient of the embeddings",
    ("all_gather", "integers"): "labels and identities",
    ("all_gather", "sizes"): "sizes",
}


def loss_traffic(config: Config, sizes: Sizes, *, reproducible: bool) -> list[Traffic]:
    """The collectives of the losses of one step, forward and backward, in their order; none for one rank.

    Args:
        config: whose losses.
        sizes: of the step.
        reproducible: the embeddings are float64.
    """

    def step(objective: Objective) -> None:
        dtype = torch.float64 if reproducible else torch.float32
        generator = torch.Generator().manual_seed(0)
        embeddings = torch.randn(_LOCAL, _DIM, generator=generator).to(dtype).requires_grad_()
        labels = torch.arange(_LOCAL) // _PER_CLASS
        latest = max(term.memory_start for term in config.losses)
        objective(embeddings, labels, torch.arange(_LOCAL), latest)[0].backward()

    return _rehearsed(config, sizes, step)


def metrics_traffic(config: Config, sizes: Sizes) -> list[Traffic]:
    """What the losses' own figures send at each step that is logged."""
    return _rehearsed(config, sizes, lambda objective: objective.metrics())


def _rehearsed(config: Config, sizes: Sizes, action: Callable[[Objective], object]) -> list[Traffic]:
    if sizes.num_ranks == 1:
        return []
    model = config.model.model_copy(update={"embedding_dim": _DIM})
    objective = build.build_objective(config.model_copy(update={"model": model}), _BANK, World())
    group = RehearsalGroup(_RANKS)
    rehearse_with(objective, group.world)
    action(objective)
    return [_scaled(call, config.model.embedding_dim, sizes) for call in group.calls]


def _scaled(call: Call, dim: int, sizes: Sizes) -> Traffic:
    """A call of the rehearsal at the sizes of the step."""
    if call.collective == "all_reduce":
        first = {_RANKS * _LOCAL: sizes.total, _RANKS * _CLASSES: sizes.batch_classes}
        ranks = 1
    else:
        first = {_LOCAL: sizes.local, _CLASSES: sizes.fullest}
        ranks = sizes.num_ranks
    shape = [_length(n, first | {_DIM: dim}, call) for n in call.shape]
    return Traffic(_name(call), call.collective, ranks * prod(shape) * call.dtype.itemsize, sizes.num_ranks)


def _length(length: int, lengths: dict[int, int], call: Call) -> int:
    if length <= _LARGEST_FIXED:
        return length
    if length not in lengths:
        raise ValueError(f"{call.collective} of a tensor {call.shape}: of no part of the batch that is known here")
    return lengths[length]


def _name(call: Call) -> str:
    kind = "sizes" if call.shape == (1,) else "integers" if not call.dtype.is_floating_point else ""
    kind = "embeddings" if call.shape[1:] == (_DIM,) else kind
    scalars = prod(call.shape) <= _LARGEST_FIXED
    return _NAMES.get((call.collective, kind), "sums and means" if scalars else "numbers of each sample")
