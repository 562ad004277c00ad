"""Distributed deep metric learning: exact, sharded, tiled losses, and the way to train with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmlscale.distributed.class_sampling import ClassSampling
    from dmlscale.distributed.global_loss import GlobalLoss

__all__ = ["ClassSampling", "GlobalLoss", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Loaded on first use: `import dmlscale.losses` and the command line stay light.
    if name == "GlobalLoss":
        from dmlscale.distributed.global_loss import GlobalLoss

        return GlobalLoss
    if name == "ClassSampling":
        from dmlscale.distributed.class_sampling import ClassSampling

        return ClassSampling
    raise AttributeError(f"module 'dmlscale' has no attribute {name!r}")
