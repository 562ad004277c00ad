"""Memory of a rank, part by part, and when they are alive together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dmlscale.config.schema import Config
from dmlscale.launch.plan.backbone_cost import BackboneCost, Pass
from dmlscale.launch.plan.layout import Layout
from dmlscale.launch.plan.loss_cost import LossCost
from dmlscale.launch.plan.sizes import Sizes
from dmlscale.losses import LOSSES

_FLOAT = 4
# Copies of a sparse gradient that a step of SparseAdam or of plain SGD makes, the rows that were looked at included;
# counted on torch 2.15.
_COPIES_OF_SPARSE_ADAM, _COPIES_OF_SPARSE_SGD = 7, 2


@dataclass(frozen=True)
class Bank:
    """A term's rows per class on one rank.

    Args:
        values: bytes of the bank.
        gradient: bytes of its gradient; of sampled classes those that are looked at.
        state: bytes of its optimizer's state.
        temporary: bytes that its optimizer's step takes.
    """

    values: float
    gradient: float
    state: float
    temporary: float


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank.

    Args:
        held: what is there at all times, by name.
        phases: what is alive beside it in each part of a step, by name.
        host: batches that wait in the loader; in the device's own memory where that is the CPU.
        updated_banks: bytes of the banks' rows that an optimizer's step changes.
    """

    held: dict[str, float]
    phases: dict[str, float]
    host: float
    updated_banks: float

    @property
    def peak(self) -> float:
        """The most."""
        return sum(self.held.values()) + max(self.phases.values())

    @property
    def fullest_phase(self) -> str:
        """When that is."""
        return max(self.phases, key=self.phases.__getitem__)


def memory(
    config: Config,
    sizes: Sizes,
    layout: Layout,
    backbone: BackboneCost,
    losses: LossCost,
    sample_bytes: int,
    *,
    half_precision: bool,
    on_gpu: bool,
) -> Memory:
    """What a rank needs from its second step on.

    Args:
        config: of the run.
        sizes: of a step.
        layout: of the backbone.
        backbone: what a pass takes.
        losses: what they take.
        sample_bytes: of one sample as the network gets it.
        half_precision: bf16 in the network.
        on_gpu: whose tiles are larger, and whose loader waits elsewhere.
    """
    banks = _banks(config, sizes)
    trained = backbone.num_trainable * _FLOAT / layout.shards
    batches = (config.data.loader_threads + 2) * sizes.local * sample_bytes  # as `TrainStream` reads ahead
    held = {
        "model": backbone.num_parameters * _FLOAT / layout.shards + backbone.buffer_bytes,
        "optimizer of the model": _state(config) * trained,
        "class banks": sum(bank.values for bank in banks),
        "optimizer of the banks": sum(bank.state for bank in banks),
        "memory of past batches": _past_batches(config, sizes),
        "batch": float(sizes.local * sample_bytes * (1 if layout.passes == 1 else 2)),  # parts are copies
        "gradient buckets": trained if layout.has_buckets else 0.0,
        "fetched blocks": _fetched(backbone, layout, half_precision=half_precision),
    }
    if not on_gpu:
        held["batches in the loader"] = float(batches)
    phases = _phases(config, sizes, layout, backbone, losses, banks, on_gpu=on_gpu)
    return Memory(held, phases, float(batches), sum(bank.gradient for bank in banks))


def _phases(
    config: Config,
    sizes: Sizes,
    layout: Layout,
    backbone: BackboneCost,
    losses: LossCost,
    banks: Sequence[Bank],
    *,
    on_gpu: bool,
) -> dict[str, float]:
    one = backbone.of(layout.samples)
    kept = 0.0 if layout.two_passes else one.kept * layout.passes
    by_bank = sum(bank.gradient for bank in banks)
    trained = backbone.num_trainable * _FLOAT / layout.shards
    gradients = 0.0 if layout.has_buckets else trained  # buckets are held anyway
    phases = {
        "forward": max(one.forward_peak, kept),
        "loss": kept + losses.peak_bytes(sizes, on_gpu=on_gpu),
        "optimizer": by_bank + gradients + _temporary(config, backbone, banks),
    }
    if layout.reproducible:
        phases["backward"] = by_bank + _backward_by_stream(sizes, layout, one, trained)
        phases["exact sum"] = by_bank + _exact_sum(sizes, backbone.num_trainable)
    else:
        # Of several parts DDP keeps the gradients beside its buckets, into which it copies them after the last.
        beside = trained if layout.has_buckets and layout.passes > 1 else 0.0
        phases["backward"] = by_bank + one.backward_peak + beside + (0.0 if layout.keeps_gradients else gradients)
    return phases


def _backward_by_stream(sizes: Sizes, layout: Layout, one: Pass, gradient: float) -> float:
    """Each stream leaves its gradient as one vector; while that is put together it is there twice."""
    others = sizes.streams - 1
    waiting = 0.0 if layout.two_passes else others * one.kept * layout.passes / sizes.streams
    here = max(one.backward_peak, 2 * gradient)
    return max(waiting, others * gradient) + here


def _exact_sum(sizes: Sizes, num_trainable: int) -> float:
    """`distributed.exact_sum`: the streams' vectors and the last one's parts, two in float64, and what is rounded."""
    vectors = (sizes.streams + 1) * num_trainable * _FLOAT
    rounded = num_trainable * _FLOAT if sizes.num_ranks > 1 else 0
    return float(vectors + 2 * num_trainable * 8 + rounded)


def _temporary(config: Config, backbone: BackboneCost, banks: Sequence[Bank]) -> float:
    """What clipping makes of the largest gradient (float64, and its squares), or SGD of it, or a bank's optimizer."""
    parameters = [shape.numel() for group in backbone.shapes for shape in group]
    largest = max([*parameters, *(int(bank.gradient) // _FLOAT for bank in banks)])
    clipping = 16 * largest if config.optim.clip_norm is not None else 0
    decay = 2 * _FLOAT * largest if config.optim.name == "sgd" else 0
    return float(max([clipping, decay, *(bank.temporary for bank in banks)]))


def _fetched(backbone: BackboneCost, layout: Layout, *, half_precision: bool) -> float:
    """FSDP: the parameters of no block, the largest block and the one fetched ahead, and a block's whole gradient."""
    if layout.shards == 1:
        return 0.0
    groups = [float(sum(map(torch.Size.numel, group))) for group in backbone.shapes]
    *blocks, rest = groups
    two = sum(sorted(blocks)[-2:])
    return (two + rest) * (2 if half_precision else _FLOAT) + max(groups) * _FLOAT


def _state(config: Config) -> int:
    """Tensors of the optimizer for each parameter."""
    if config.optim.name == "adamw":
        return 2
    return 1 if config.optim.momentum else 0


def _past_batches(config: Config, sizes: Sizes) -> float:
    slots = sum(math.ceil(term.memory_size / sizes.num_ranks) for term in config.losses)
    return float(slots * (config.model.embedding_dim * _FLOAT + 8))


def _banks(config: Config, sizes: Sizes) -> list[Bank]:
    found = []
    for term in config.losses:
        loss = LOSSES[term.name](**term.options)
        if loss.block != "classes":
            continue
        values = float(sizes.local_classes * loss.rows_per_class * config.model.embedding_dim * _FLOAT)
        rate, is_sgd = term.class_sampling, config.optim.name == "sgd"
        learns = loss.bank_has_gradient
        state = _state(config) if learns and not (is_sgd and rate is not None) else 0
        copies = 0 if rate is None else _COPIES_OF_SPARSE_SGD if is_sgd else _COPIES_OF_SPARSE_ADAM
        share = 1.0 if rate is None else min(1.0, rate + sizes.fullest / max(1, sizes.local_classes))
        gradient = values * share if learns else 0.0
        found.append(Bank(values, gradient, state * values, copies * gradient))
    return found
