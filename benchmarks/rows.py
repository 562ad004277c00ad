"""The rows of the loss benchmark, and what must hold in each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.cells import Size

# Peak memory of a step above the inputs and the bank with its gradient, B=8192 or C=100,000.
MOST_MEGABYTES = 150.0
MOST_MEGABYTES_ON_GPU = 1500.0  # a dense block of B=32,768 takes 4096
# Time as a multiple of the bare matrix products: log-sum-exp of similarities, of distances, all triplets.
OF_SIMILARITY, OF_DISTANCE, ALL_TRIPLETS = 2.0, 2.5, 4.0


@dataclass(frozen=True)
class Row:
    """A loss, the sizes it is timed and weighed at, and its bounds.

    Args:
        time: size of the time columns.
        memory: size of the memory columns.
        most_of_floor: bound of our time as a multiple of the bare products'; infinite where it is only stated.
        most_megabytes: bound of our memory; infinite where it is only stated.
        same_value: the reference computes the same number.
        time_reference: whether the reference is timed, where it has the memory.
    """

    time: Size
    memory: Size
    most_of_floor: float = math.inf
    most_megabytes: float = MOST_MEGABYTES
    same_value: bool = True
    time_reference: bool = True

    def __str__(self) -> str:
        return " ".join([self.time.loss, *(f"{k}={v}" for k, v in self.time.options.items())])


def _pairs(loss: str, reference: str | None = None, *, bound: float = math.inf, **more: Any) -> Row:
    options = more.pop("options", {})
    size = Size(loss, 4096, options, reference)
    return Row(size, replace(size, batch=8192), bound, **more)


def _classes(
    loss: str, reference: str | None = None, *, bound: float = math.inf, classes: int = 10_000, **more: Any
) -> Row:
    options = more.pop("options", {})
    size = Size(loss, 4096, options, reference, classes)
    return Row(size, replace(size, batch=1024, classes=100_000), bound, **more)


def _triplet(mining: str, reference: str | None = None, *, bound: float = math.inf, **more: Any) -> Row:
    options = {"mining": mining, **more.pop("options", {})}
    return _pairs("triplet", reference, bound=bound, options=options, **more)


ROWS = [
    _pairs("contrastive", "contrastive", bound=OF_DISTANCE, options={"squared": False}),
    _triplet("all", "triplet_all", bound=ALL_TRIPLETS),
    _triplet("all_semi_hard", "triplet_all_semi_hard"),
    _triplet("semi_hard", "triplet_semi_hard", same_value=False),
    _triplet("batch_hard", "triplet_batch_hard"),
    _triplet("all_positives_hardest_negative", "triplet_all_positives_hardest_negative"),
    # pytorch-metric-learning draws anchor by anchor in numpy: minutes at this size.
    _triplet("distance_weighted", options={"squared": False}),
    _triplet("random"),
    _pairs("lifted_structure", "lifted_structure", bound=OF_DISTANCE, time_reference=False),
    _pairs("lifted_structure", options={"form": "hard"}),
    _pairs("lifted_structure", "lifted_structure_per_anchor", bound=OF_DISTANCE, options={"form": "per_anchor"}),
    _pairs("n_pairs", "n_pairs", options={"l2_weight": 0.0}, same_value=False),
    _pairs("multi_similarity", "multi_similarity", bound=OF_SIMILARITY),
    _pairs("circle", "circle", bound=OF_SIMILARITY),
    _pairs("supervised_contrastive", "supervised_contrastive", bound=OF_SIMILARITY),
    # The greedy search is over the whole batch, C B^2 of time and B^2 of memory: a small size, stated.
    Row(Size("clustering", 512), Size("clustering", 512), most_megabytes=math.inf),
    _classes("softmax", bound=OF_SIMILARITY),
    _classes("norm_softmax", "norm_softmax", bound=OF_SIMILARITY),
    _classes("cosface", "cosface", bound=OF_SIMILARITY),
    _classes("arcface", "arcface", bound=OF_SIMILARITY),
    _classes("proxy_nca", bound=OF_SIMILARITY),
    _classes("proxy_nca", "proxy_nca_plus_plus", bound=OF_SIMILARITY, options={"form": "plus_plus"}),
    _classes("proxy_anchor", "proxy_anchor", bound=OF_SIMILARITY),
    _classes("circle_proxy", bound=OF_SIMILARITY),
    # Ten centers a class: C=1,000 has as many columns as C=10,000 elsewhere.
    _classes("soft_triple", "soft_triple", bound=OF_SIMILARITY, classes=1000, options={"regularizer_weight": 0.0}),
    _classes("soft_triple", bound=OF_SIMILARITY, classes=1000),
    _classes("center"),
    _classes("triplet_center"),
]


def on_gpu(row: Row) -> Row:
    """The row on a GPU: as many times larger as keeps it busy, with its bounds stated only."""
    if row.time.loss == "clustering":  # its search is not the GPU's kind of work
        time, memory = row.time, row.memory
    elif row.time.classes is None:
        time, memory = replace(row.time, batch=4 * row.time.batch), replace(row.memory, batch=4 * row.memory.batch)
    else:
        assert row.memory.classes is not None
        time = replace(row.time, classes=10 * row.time.classes)
        memory = replace(row.memory, batch=4 * row.memory.batch, classes=10 * row.memory.classes)
    return replace(
        row,
        time=replace(time, device="cuda"),
        memory=replace(memory, device="cuda"),
        most_of_floor=math.inf,
        most_megabytes=MOST_MEGABYTES_ON_GPU if row.most_megabytes < math.inf else math.inf,
    )
