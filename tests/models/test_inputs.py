"""Objects of several views, vectors and log-mels through the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dmlscale.models.backbone import backbone
from dmlscale.models.embedder import Embedder, ViewPooling

SMALL = {"channels": [8, 8, 16, 16], "stem_width": 8}
POOLINGS: tuple[ViewPooling, ...] = ("max", "mean")


def network(name: str = "resnet10t", *, channels: int = 1, options: Any = SMALL, **embedder: Any) -> Embedder:
    torch.manual_seed(0)
    net, num_features = backbone(name, channels=channels, options=options)
    return Embedder(net, num_features, 5, **embedder).eval()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_one_view_is_the_picture(pooling: ViewPooling) -> None:
    embedder, images = network(view_pooling=pooling), torch.randn(3, 1, 32, 32)
    assert torch.equal(embedder(images[:, None]), embedder(images))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_features_of_views_are_pooled_before_the_head(pooling: ViewPooling, channels_last: bool) -> None:
    embedder = network(view_pooling=pooling, normalize=False, channels_last=channels_last, channels=3)
    objects = torch.randn(4, 3, 3, 32, 32)
    by_object = [embedder.backbone(views) for views in objects]
    pooled = torch.stack([views.max(dim=0).values if pooling == "max" else views.mean(dim=0) for views in by_object])
    torch.testing.assert_close(embedder(objects), embedder.head(pooled), rtol=1e-4, atol=1e-5)


def flat(pooling: ViewPooling) -> Embedder:
    torch.manual_seed(0)
    net, num_features = backbone("mlp", options={"in_features": 12, "hidden": [16]})
    return Embedder(net.double(), num_features, 5, view_pooling=pooling).double()


@pytest.mark.parametrize("pooling", POOLINGS)
@given(order=st.permutations(range(4)))
def test_the_order_of_views_matters_neither_for_values_nor_for_gradients(
    pooling: ViewPooling, order: list[int]
) -> None:
    embedder = flat(pooling)
    objects = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    objects[:, 1] = objects[:, 0]  # equal views
    weights = torch.arange(10.0, dtype=torch.float64).reshape(2, 5)

    def gradients(views: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        views = views.clone().requires_grad_()
        embedder.zero_grad()
        embeddings = embedder(views)
        (embeddings * weights).sum().backward()
        assert views.grad is not None
        return embeddings.detach(), views.grad, [p.grad.clone() for p in embedder.parameters() if p.grad is not None]

    embeddings, of_views, of_parameters = gradients(objects)
    again, of_views_again, of_parameters_again = gradients(objects[:, order])
    torch.testing.assert_close(again, embeddings)
    torch.testing.assert_close(of_views_again, of_views[:, order])
    assert len(of_parameters) == 4
    for found, expected in zip(of_parameters_again, of_parameters, strict=True):
        torch.testing.assert_close(found, expected)


def test_every_view_is_trained_by_the_mean_and_the_largest_by_the_maximum() -> None:
    for pooling in POOLINGS:
        objects = torch.randn(3, 4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
        embedder = flat(pooling)
        features = embedder.backbone(objects.flatten(0, 1)).unflatten(0, (3, 4))
        (gradient,) = torch.autograd.grad(embedder(objects).pow(3).sum(), objects)
        has_gradient = gradient.flatten(2).abs().sum(dim=2) > 0
        if pooling == "mean":
            assert has_gradient.all()
        else:
            positive = features.amax(dim=1, keepdim=True) > 0
            largest = (features == features.amax(dim=1, keepdim=True)) & positive
            assert torch.equal(has_gradient, largest.any(dim=2))


def test_vectors_and_arrays_pass_through_the_perceptron() -> None:
    embedder = network("mlp", options={"in_features": 12, "hidden": [16, 8]})
    vectors = torch.randn(6, 12)
    found = embedder(vectors)
    assert found.shape == (6, 5)
    torch.testing.assert_close(embedder(vectors.reshape(6, 1, 3, 4)), found)
    first, second = (module for module in embedder.backbone.modules() if isinstance(module, nn.Linear))
    hidden = (second(first(vectors).clamp(min=0))).clamp(min=0)
    torch.testing.assert_close(found, torch.nn.functional.normalize(embedder.head(hidden)))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        embedder(torch.randn(6, 11))


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_lite0"])
def test_log_mels_pass_through_networks_for_pictures(name: str) -> None:
    embedder = network(name, options=SMALL if name == "resnet10t" else {})
    assert embedder(torch.randn(2, 1, 40, 98)).shape == (2, 5)
