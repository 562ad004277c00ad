"""How long a step takes, and what it waits for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dmlscale.config.schema import Config
from dmlscale.launch.plan.backbone_cost import BackboneCost
from dmlscale.launch.plan.collectives import Traffic
from dmlscale.launch.plan.devices import Device
from dmlscale.launch.plan.layout import Layout
from dmlscale.launch.plan.loss_cost import LossCost
from dmlscale.launch.plan.memory import Memory
from dmlscale.launch.plan.sizes import Sizes
from dmlscale.launch.plan.step_traffic import StepTraffic

# What of a data sheet's figures real programs reach. Assumptions; of the CPU, where products were measured, all of it.
PRODUCTS_REACHED, MEMORY_REACHED, LINKS_REACHED = 0.45, 0.7, 0.7
_SWEPT = {"adamw": 7, "sgd": 5}  # times that a number's 4 bytes are read or written in an optimizer's step


@dataclass(frozen=True)
class Duration:
    """Seconds of a step.

    Args:
        forward: of the backbone; with the first pass of two.
        backward: of the backbone.
        model_exchange: of its parameters and gradients between ranks.
        hidden_exchange: as much of it as goes on beside the backbone's passes, at most.
        loss_products: matrix products of the losses.
        loss_sweeps: everything else of the losses: passes over memory.
        loss_exchange: of embeddings and the like between ranks.
        optimizer: its step.
    """

    forward: float
    backward: float
    model_exchange: float
    hidden_exchange: float
    loss_products: float
    loss_sweeps: float
    loss_exchange: float
    optimizer: float

    @property
    def work(self) -> float:
        """Without what ranks exchange."""
        passes = self.forward + self.backward
        return passes + self.loss_products + self.loss_sweeps + self.optimizer

    @property
    def open_exchange(self) -> float:
        """Of the backbone, what cannot go on beside its passes."""
        return self.model_exchange - min(self.hidden_exchange, self.forward + self.backward)

    @property
    def step(self) -> float:
        """All of it, where what can go on at the same time does."""
        return self.work + self.open_exchange + self.loss_exchange

    @property
    def bound_by(self) -> str:
        """The largest part."""
        parts = {
            "backbone": self.forward + self.backward,
            "exchange of gradients": self.open_exchange,
            "products of the losses": self.loss_products,
            "memory bandwidth in the losses": self.loss_sweeps,
            "exchange of embeddings": self.loss_exchange,
            "memory bandwidth in the optimizer": self.optimizer,
        }
        return max(parts, key=parts.__getitem__)


def duration(
    config: Config,
    sizes: Sizes,
    layout: Layout,
    backbone: BackboneCost,
    losses: LossCost,
    traffic: StepTraffic,
    memory: Memory,
    device: Device,
    *,
    half_precision: bool,
) -> Duration:
    """Seconds of a step on a device; waiting for data is left out.

    Args:
        config: of the run.
        sizes: of a step.
        layout: of the backbone.
        backbone: what a pass takes.
        losses: what they take.
        traffic: what is sent.
        memory: for how much the optimizer sweeps over.
        device: that it runs on.
        half_precision: bf16 in the network.
    """
    products = PRODUCTS_REACHED if device.is_gpu else 1.0
    bandwidth = device.bandwidth * (MEMORY_REACHED if device.is_gpu else 1.0)
    network_flops = products * (device.half_flops if half_precision else device.full_flops)
    one = backbone.of(layout.samples)
    # Operations that are no products pass over memory; shared out between the passes as the products are.
    sweeps = one.moved / bandwidth / (one.forward_flops + one.backward_flops)
    forward = layout.passes * (one.forward_flops / network_flops + one.forward_flops * sweeps)
    backward = layout.passes * (one.backward_flops / network_flops + one.backward_flops * sweeps)
    if layout.two_passes:
        forward *= 2
    return Duration(
        forward=forward,
        backward=backward,
        model_exchange=_seconds(traffic.model, device),
        hidden_exchange=_seconds((call for call in traffic.model if call.hidden), device),
        # In float64 half as many products a second; the tiles' bytes were measured in the right precision.
        loss_products=losses.flops(sizes) / (products * device.full_flops / (2 if layout.reproducible else 1)),
        loss_sweeps=losses.moved_bytes(sizes) / bandwidth,
        loss_exchange=_seconds(traffic.losses, device),
        optimizer=_swept_bytes(config, memory) / bandwidth,
    )


def _seconds(calls: Iterable[Traffic], device: Device) -> float:
    """Of collectives one after the other: the slowest link of each, and its messages' delays."""
    total = 0.0
    for call in calls:
        link, latency = (device.far_link, device.latency_far) if call.far else (device.local_link, device.latency_local)
        # The delays of a tree, as NCCL takes for small tensors: no ring waits W times.
        delays = min(call.hops, 2 * max(1, call.num_ranks - 1).bit_length())
        total += call.wire / (link * LINKS_REACHED) + delays * latency
    return total


def _swept_bytes(config: Config, memory: Memory) -> float:
    held = memory.held
    return _SWEPT[config.optim.name] * (held["model"] + memory.updated_banks)
