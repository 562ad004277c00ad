"""vectors -> features: the backbone of inputs that are no pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchvision.ops import MLP

from dmlscale.models.errors import ModelError

NAME = "mlp"  # among the backbones
_OPTIONS = ("in_features", "hidden")
_EXAMPLE = "e.g. {in_features: 64, hidden: [256, 256]}"


def mlp(options: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """Linear layers with a ReLU after each.

    Args:
        options: ``in_features``, the values of a sample, and ``hidden``, the width of each layer.

    Returns:
        (b, ...) -> (b, features) module that flattens a sample of more axes, and the number of features.

    Raises:
        ModelError: an option is missing, unknown or out of its range.
    """
    unknown = [key for key in options if key not in _OPTIONS]
    if unknown:
        raise ModelError(f"model.options: {NAME} has no key {unknown[0]!r} (it has: {', '.join(_OPTIONS)})")
    missing = [key for key in _OPTIONS if key not in options]
    if missing:
        raise ModelError(f"model.options: {NAME} needs {missing[0]}, {_EXAMPLE}")
    in_features, hidden = options["in_features"], options["hidden"]
    widths = [in_features, *hidden] if isinstance(hidden, list | tuple) and hidden else [0]
    if not all(type(width) is int and width >= 1 for width in widths):
        raise ModelError(
            f"model.options: {NAME} takes whole numbers of at least 1, {_EXAMPLE}, "
            f"got in_features={in_features!r}, hidden={hidden!r}"
        )
    # torchvision ends with a linear layer, where the head begins with another.
    return nn.Sequential(nn.Flatten(), MLP(in_features, list(hidden)), nn.ReLU()), hidden[-1]
