from __future__ import annotations

import pytest
import torch
from torch import nn

from dmlscale.models.backbone import backbone
from dmlscale.models.embedder import Embedder

SMALL = {"channels": [8, 8, 16, 16], "stem_width": 8}


def test_embeddings_have_their_shape_and_length() -> None:
    net, num_features = backbone("resnet10t", channels=1, options=SMALL)
    images = torch.randn(3, 1, 32, 32)
    assert Embedder(net, num_features, 5)(images).norm(dim=1).tolist() == pytest.approx([1, 1, 1], rel=1e-5)
    free = Embedder(net, num_features, 5, normalize=False)(images)
    assert free.shape == (3, 5)
    assert not torch.allclose(free.norm(dim=1), torch.ones(3))


def test_memory_order_changes_nothing_but_rounding() -> None:
    net, num_features = backbone("resnet10t", channels=1, options=SMALL)
    net.eval()
    embedder = Embedder(net, num_features, 5)
    images = torch.randn(3, 1, 32, 32)
    last = embedder(images)
    embedder_first = Embedder(net, num_features, 5, channels_last=False)
    embedder_first.head = embedder.head
    torch.testing.assert_close(embedder_first(images), last, rtol=1e-4, atol=1e-5)


def test_frozen_batch_norm_stays_frozen() -> None:
    net, _ = backbone("resnet10t", channels=1, batch_norm="frozen", options=SMALL)
    net.train()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    before = norms[0].running_mean.clone() if norms[0].running_mean is not None else None
    net(torch.randn(4, 1, 32, 32))
    assert before is not None
    assert norms[0].running_mean is not None
    assert torch.equal(norms[0].running_mean, before)
    assert not any(m.training for m in norms)
    assert net.training


def test_wrong_names_and_options_are_explained() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'resnet50'|resnet5"):
        backbone("resnet5O")
    with pytest.raises(ValueError, match=r"model.options: timm refused"):
        backbone("resnet10t", options={"no_such_thing": 1})
