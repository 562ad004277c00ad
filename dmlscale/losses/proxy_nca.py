"""Proxy-NCA: a softmax over squared distances to proxies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dmlscale.losses import LOSSES, ClassLoss
from dmlscale.losses.block import LOG_OF_NOTHING, SimilarityBlock, softplus
from dmlscale.losses.hyper_parameters import require_choice
from dmlscale.losses.scores import ScaledSimilarity
from dmlscale.losses.search_space import Choice, LogUniform, SearchSpace


@LOSSES.register("proxy_nca")
@dataclass(frozen=True)
class ProxyNCA(ClassLoss):
    """Proxy-NCA (Movshovitz-Attias et al. 2017, eq. 4) and Proxy-NCA++ (Teh et al. 2020, eq. 6).

    Formula:
        with ``d^2`` the squared distance of unit vectors,
        "paper": ``mean_i -log( exp(-scale d^2(x_i, p_y)) / sum_{c != y} exp(-scale d^2(x_i, p_c)) )``: the positive
        is not in the denominator, so the loss has no lower bound;
        "plus_plus": the denominator runs over all proxies. Its scale of 9 is the 3 of each side, or 1 / temperature
        of 1/9; pytorch-metric-learning's `ProxyNCALoss(softmax_scale=9)` is this form.

    Block: classes (B, C); samples and proxies are divided by their length.

    Args:
        form: which of the two.
        scale: dimensionless multiplier of d^2; None takes 1 for "paper" and 9 for "plus_plus".

    Raises:
        ValueError: form is unknown, or scale is not positive.
    """

    form: Literal["paper", "plus_plus"] = "paper"
    scale: float | None = None

    paper: ClassVar[str] = "Movshovitz-Attias et al. 2017, No Fuss Distance Metric Learning Using Proxies"
    # Center: the optima of Musgrave et al. 2020 for the form plus_plus, 8 to 14; the range begins at the paper's 1.
    search_space: ClassVar[SearchSpace] = {
        "form": Choice(("paper", "plus_plus")),
        "scale": LogUniform(1.0, 100.0),
    }

    def __post_init__(self) -> None:
        require_choice(self, "proxy_nca", "form", "paper", "plus_plus")
        if self.scale is not None and self.scale <= 0:
            raise ValueError(f"proxy_nca: scale must be positive, got {self.scale}")

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        scale = self.scale or (1.0 if self.form == "paper" else 9.0)
        # On the sphere -d^2 = 2 cos - 2, and the constant cancels.
        logits = ScaledSimilarity(2 * scale)
        others = block.logsumexp(logits, over="columns", where="negative")
        excess = others - block.target(logits)
        if self.form == "paper":
            # A bank of one class has nothing to compare with.
            return block.mean(torch.where(others > LOG_OF_NOTHING / 2, excess, 0.0), of="rows")
        return block.mean(softplus(excess), of="rows")
