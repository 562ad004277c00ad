"""A config, a number of devices and their kind -> what a step takes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dmlscale.config.schema import Config
from dmlscale.launch import build
from dmlscale.launch.plan.backbone_cost import BackboneCost, backbone_cost
from dmlscale.launch.plan.collectives import Nodes
from dmlscale.launch.plan.devices import Device
from dmlscale.launch.plan.duration import Duration, duration
from dmlscale.launch.plan.layout import Layout
from dmlscale.launch.plan.loss_cost import LossCost, loss_cost
from dmlscale.launch.plan.memory import Memory, memory
from dmlscale.launch.plan.sizes import Sizes
from dmlscale.launch.plan.step_traffic import StepTraffic, step_traffic


@dataclass(frozen=True)
class Prediction:
    """What a step takes of each rank; of the rank that has most where they differ."""

    sizes: Sizes
    memory: Memory
    traffic: StepTraffic
    duration: Duration


class Planner:
    """Predicts the steps of a config at any size; what does not depend on it is measured once.

    Args:
        config: the run; `resources.workers` are the ranks.
        shape: of a sample as the network gets it.
        device: of each rank.
        per_node: devices of a node.

    Raises:
        ModelError: the model cannot be built.
    """

    def __init__(self, config: Config, shape: Sequence[int], device: Device, per_node: int) -> None:
        self.config, self.device, self.shape = config, device, tuple(shape)
        self.nodes = Nodes(config.resources.workers, per_node)
        kind = torch.device("cuda" if device.is_gpu else "cpu")
        self.reproducible = build.is_reproducible(config, kind)
        # Of that GPU, not of the one that may or may not be here.
        asked = config.train.precision
        self.half_precision = device.is_gpu if asked == "auto" else asked == "bf16"
        self._losses: LossCost = loss_cost(config, reproducible=self.reproducible)
        layout = self._layout(Sizes.of(config, 1))
        self._backbone: BackboneCost = backbone_cost(
            config,
            shape,
            layout.samples,
            half_precision=self.half_precision,
            keep_gradients=layout.keeps_gradients,
        )

    @property
    def num_parameters(self) -> int:
        """Of backbone and head."""
        return self._backbone.num_parameters

    def predict(self, num_classes: int) -> Prediction:
        """A step with so many classes in the banks."""
        return self._of(self.config, Sizes.of(self.config, num_classes))

    def of_batch(self, classes_per_batch: int, num_classes: int) -> Prediction:
        """A step with another batch."""
        config = self._with_batch(classes_per_batch)
        return self._of(config, Sizes.of(config, num_classes))

    def needed(self, prediction: Prediction) -> float:
        """Bytes of a device, what its libraries take included."""
        return prediction.memory.peak + self.device.overhead

    def fits(self, prediction: Prediction) -> bool:
        """Whether a device has the memory."""
        return self.needed(prediction) <= self.device.memory

    def most_classes(self) -> int:
        """The most classes that fit; 0 if none do. Meaningless without a bank."""
        return _largest(lambda n: self._has_memory_for(self.config, n), 2**40)

    def largest_batch(self, num_classes: int) -> int:
        """The most samples of a global batch that fit, in whole streams; 0 if none do."""
        d = self.config.data
        times = _largest(lambda n: self._has_memory_for(self._with_batch(n * d.num_streams), num_classes), 2**30)
        return times * d.num_streams * d.samples_per_class

    def _with_batch(self, classes_per_batch: int) -> Config:
        data = self.config.data.model_copy(update={"classes_per_batch": classes_per_batch})
        return self.config.model_copy(update={"data": data})

    def _has_memory_for(self, config: Config, num_classes: int) -> bool:
        needed = self._memory(config, Sizes.of(config, num_classes))
        return needed.peak + self.device.overhead <= self.device.memory

    def _layout(self, sizes: Sizes) -> Layout:
        return Layout.of(self.config, sizes, self.nodes.per_node, reproducible=self.reproducible)

    def _memory(self, config: Config, sizes: Sizes) -> Memory:
        return memory(
            config,
            sizes,
            self._layout(sizes),
            self._backbone,
            self._losses,
            4 * math.prod(self.shape),
            half_precision=self.half_precision,
            on_gpu=self.device.is_gpu,
        )

    def _of(self, config: Config, sizes: Sizes) -> Prediction:
        layout, half = self._layout(sizes), self.half_precision
        needed = self._memory(config, sizes)
        sent = step_traffic(config, sizes, layout, self._backbone, self.nodes, half_precision=half)
        lasts = duration(
            config, sizes, layout, self._backbone, self._losses, sent, needed, self.device, half_precision=half
        )
        return Prediction(sizes, needed, sent, lasts)


def _largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number that fits, by halving; what fits also fits where there is less."""
    low, high = 0, 1
    while high < limit and fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
