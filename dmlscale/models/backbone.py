"""images -> features: any timm network without its classifier, or the perceptron for vectors."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

import timm
from torch import Tensor, nn

from dmlscale.models.errors import ModelError
from dmlscale.models.mlp import NAME as MLP_NAME
from dmlscale.models.mlp import mlp

# What becomes of batch normalisation: "local" statistics differ from rank to rank, so a run then depends on W.
BatchNorm = Literal["local", "frozen", "sync"]


def backbone(
    name: str,
    *,
    channels: int = 3,
    pretrained: bool = False,
    batch_norm: BatchNorm = "local",
    options: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, int]:
    """A network that ends in pooled features.

    Args:
        name: of the timm model, e.g. "resnet50"; or "mlp", see `dmlscale.models.mlp`.
        channels: of the input images; 1 for log-mels.
        pretrained: load timm's weights (from its hub or its cache).
        batch_norm: "frozen" keeps the running statistics fixed, "sync" computes them over all ranks (GPU only).
        options: passed on to the timm model or to "mlp".

    Returns:
        (b, channels, h, w) -> (b, features) module, or (b, d) -> (b, features), and the number of features.

    Raises:
        ModelError: no such timm model (the message names the nearest one), or options it refuses.
    """
    if name == MLP_NAME:
        if pretrained:
            raise ModelError(f"model.pretrained: there are no weights for {name!r}")
        return mlp(options or {})
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*timm.list_models(), MLP_NAME], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ModelError(f"model.backbone: timm has no model {name!r}{hint}")
    try:
        net = timm.create_model(name, pretrained=pretrained, in_chans=channels, num_classes=0, **dict(options or {}))
        num_features: int = net.num_features
    except Exception as error:  # each of its networks has errors of its own
        key = "model.options" if options else "model.pretrained" if pretrained else "model.backbone"
        raise ModelError(f"{key}: timm refused to build {name!r}: {type(error).__name__}: {error}") from error
    if batch_norm == "sync":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return (FrozenBatchNorm(net) if batch_norm == "frozen" else net), num_features


class FrozenBatchNorm(nn.Module):
    """Keeps every batch normalisation of a network in evaluation mode, also while it trains."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """(b, channels, h, w) -> (b, features)."""
        features: Tensor = self.net(images)
        return features

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        """As `nn.Module.train`, except for batch normalisation."""
        super().train(mode)
        for module in self.net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self
