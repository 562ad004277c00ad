"""What one pass of backbone and head takes, found without spending it: the real network runs on fake tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from dmlscale.config.schema import Config
from dmlscale.launch import build
from dmlscale.launch.plan.meter import Meter
from dmlscale.models.blocks import find_blocks
from dmlscale.models.checkpointing import recompute_activations
from dmlscale.models.embedder import Embedder


@dataclass(frozen=True)
class Pass:
    """A forward and a backward pass of some samples.

    Args:
        samples: how many.
        kept: bytes that the forward pass leaves for the backward pass.
        forward_peak: most bytes alive in the forward pass, what is kept included.
        backward_peak: in the backward pass; gradients of parameters included where they are kept.
        forward_flops: floating-point operations.
        backward_flops: the second forward pass of activation checkpointing included.
        moved: bytes read and written by all operations that are no products.
    """

    samples: float
    kept: float
    forward_peak: float
    backward_peak: float
    forward_flops: float
    backward_flops: float
    moved: float


@dataclass(frozen=True)
class BackboneCost:
    """Backbone and head.

    Args:
        shapes: of the parameters, by what is fetched together in shards: the blocks, then the rest.
        num_trainable: parameters with a gradient.
        buffer_bytes: running statistics and the like.
        smaller: one pass.
        larger: another, of more samples.
    """

    shapes: tuple[tuple[torch.Size, ...], ...]
    num_trainable: int
    buffer_bytes: int
    smaller: Pass
    larger: Pass

    @property
    def num_parameters(self) -> int:
        """With those that are not trained."""
        return sum(shape.numel() for group in self.shapes for shape in group)

    def of(self, samples: float) -> Pass:
        """A pass of any number of samples: everything grows linearly with them."""
        a, b = self.smaller, self.larger
        share = (samples - a.samples) / (b.samples - a.samples)
        return Pass(*(x + share * (y - x) for x, y in zip(vars(a).values(), vars(b).values(), strict=True)))


def backbone_cost(
    config: Config, shape: Sequence[int], samples: int, *, half_precision: bool, keep_gradients: bool
) -> BackboneCost:
    """Measures a network.

    Args:
        config: whose model.
        shape: of one sample.
        samples: of a pass; a multiple is measured too.
        half_precision: bf16 in the network.
        keep_gradients: whether gradients of parameters pile up in the backward pass; False where their place is
            taken beforehand, or they leave at once.

    Raises:
        ModelError: the model cannot be built.
    """
    # Weights that are loaded take as much as random ones.
    model = config.model.model_copy(update={"pretrained": False})
    with torch.device("meta"):
        embedder = build.build_embedder(config.model_copy(update={"model": model}))
    blocks = find_blocks(embedder.backbone)
    groups = _groups(embedder, blocks)
    if config.train.activation_checkpointing:
        recompute_activations(blocks)
    settings = (half_precision, keep_gradients)
    return BackboneCost(
        shapes=tuple(tuple(p.shape for p in group) for group in groups if group),
        num_trainable=sum(p.numel() for p in embedder.parameters() if p.requires_grad),
        buffer_bytes=sum(b.numel() * b.element_size() for b in embedder.buffers()),
        smaller=_measured(embedder, (samples, *shape), *settings),
        larger=_measured(embedder, (2 * samples, *shape), *settings),
    )


def _groups(embedder: Embedder, blocks: Sequence[nn.Module]) -> list[list[nn.Parameter]]:
    groups = [list(block.parameters()) for block in blocks]
    inside = {id(p) for group in groups for p in group}
    return [*groups, [p for p in embedder.parameters() if id(p) not in inside]]


class _BothPasses(nn.Module):
    """Forward and backward, as one call of a module whose parameters are replaced meanwhile."""

    def __init__(self, net: nn.Module, meter: Meter, half_precision: bool) -> None:
        super().__init__()
        self.net, self.half_precision = net, half_precision
        self._meter = meter

    def forward(self, samples: Tensor) -> list[float]:
        """The figures of `Pass` after the number of samples."""
        meter = self._meter
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half_precision):
            embeddings = self.net(samples)
        kept, forward_peak, forward_flops = meter.live, meter.peak, meter.flops
        meter.peak = meter.live
        embeddings.backward(torch.empty_like(embeddings))
        return [kept, forward_peak, meter.peak, forward_flops, meter.flops - forward_flops, meter.moved]


def _measured(embedder: Embedder, shape: tuple[int, ...], half_precision: bool, keep_gradients: bool) -> Pass:
    meter = Meter()
    both = _BothPasses(embedder.train(), meter, half_precision)
    with FakeTensorMode():
        tensors = {name: _fake(t) for name, t in (*both.named_parameters(), *both.named_buffers())}
        if not keep_gradients:
            for tensor in tensors.values():
                if tensor.requires_grad:
                    tensor.register_post_accumulate_grad_hook(_forget)
        with meter:
            figures = functional_call(both, tensors, (torch.empty(shape),))
    return Pass(shape[0], *figures)


def _fake(tensor: Tensor) -> Tensor:
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return fake.requires_grad_(tensor.requires_grad)


def _forget(parameter: Tensor) -> None:
    parameter.grad = None
