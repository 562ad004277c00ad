"""One step: memory order, reproducible or not, changes nothing but rounding; nan is never saved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import dmlscale
from dmlscale.data.types import Batch
from dmlscale.distributed.world import World
from dmlscale.models.embedder import Embedder
from dmlscale.training.objective import Objective
from dmlscale.training.optim import optimizer, schedule
from dmlscale.training.step import Trainee, train_step


def after_steps(*, channels_last: bool, reproducible: bool, dropout: float = 0.0) -> list[Tensor]:
    """Parameters after a few steps."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout)
    )
    embedder = Embedder(net, 4, 5, channels_last=channels_last)
    objective = Objective([(dmlscale.GlobalLoss("norm_softmax", num_classes=4, embedding_dim=5), 1.0)])
    optim = optimizer(
        embedder, objective, name="adamw", backbone_lr=0.01, head_lr=0.01, bank_lr=0.01, weight_decay=0.0, eps=1e-3
    )
    trainee = Trainee(
        embedder, objective, optim, schedule("constant", total_steps=5), World(), reproducible=reproducible
    )
    generator = torch.Generator().manual_seed(1)
    for step in range(3):
        images = torch.randn(8, 3, 9, 9, generator=generator)
        batch = Batch(images, torch.arange(8) % 4, torch.arange(8), {0: 4, 1: 4})
        train_step(trainee, batch, step)
    return [p.detach().contiguous() for p in embedder.parameters()]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("reproducible", [True, False])
def test_all_ways_of_a_step_agree(channels_last: bool, reproducible: bool) -> None:
    plain = after_steps(channels_last=False, reproducible=False)
    for a, b in zip(after_steps(channels_last=channels_last, reproducible=reproducible), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_dropout_is_a_function_of_the_step() -> None:
    first = after_steps(channels_last=True, reproducible=True, dropout=0.5)
    torch.manual_seed(99)
    again = after_steps(channels_last=True, reproducible=True, dropout=0.5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
