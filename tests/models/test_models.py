from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dmlscale.models.backbone import backbone
from dmlscale.models.embedder import Embedder
from dmlscale.models.errors import ModelError

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
    with pytest.raises(ValueError, match="did you mean 'mlp'"):
        backbone("mlpp")
    with pytest.raises(ModelError, match=r"model.backbone: timm refused to build 'resnet10t.nobody': RuntimeError"):
        backbone("resnet10t.nobody")


@pytest.mark.parametrize(
    "options",
    [
        {"norm_layer": "nothing"},
        {"global_pool": "nothing"},
        {"features_only": True},
        {"stem_width": 2**70},
        {"act_layer": []},
    ],
)
def test_whatever_timm_says_to_an_option_is_one_kind_of_error(options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"^model.options: timm refused to build 'resnet10t': \w+"):
        backbone("resnet10t", options=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "mlp needs in_features, e.g."),
        ({"in_features": 3}, "mlp needs hidden"),
        ({"in_features": 3, "hidden": [4], "depth": 1}, "mlp has no key 'depth'"),
        ({"in_features": 0, "hidden": [4]}, "at least 1, .* got in_features=0"),
        ({"in_features": 3, "hidden": []}, "at least 1"),
        ({"in_features": 3, "hidden": 4}, "got in_features=3, hidden=4"),
    ],
)
def test_wrong_options_of_the_perceptron_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        backbone("mlp", options=options)
    with pytest.raises(ModelError, match="no weights for 'mlp'"):
        backbone("mlp", pretrained=True, options={"in_features": 3, "hidden": [4]})
