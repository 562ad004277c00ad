"""Losses: pure functions of a block, one file each. Needs torch alone."""

from __future__ import annotations

from dmlscale.losses.loss import ClassLoss, Loss, PairLoss
from dmlscale.registry import Registry

LOSSES: Registry[Loss] = Registry("loss", "dmlscale.losses")

__all__ = ["LOSSES", "ClassLoss", "Loss", "PairLoss"]
