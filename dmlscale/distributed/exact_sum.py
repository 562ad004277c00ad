"""A sum that does not depend on the order or the grouping of its terms, to the last bit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dmlscale.distributed.collectives import max_over_ranks, sum_over_ranks
from dmlscale.distributed.world import World

# Whole numbers up to 2^53 are exact in float64, and so is every sum of them that stays below.
EXACT_BITS = 52


def exact_sum(terms: Sequence[Tensor], num_terms: int, world: World) -> Tensor:
    """Sum of all ranks' terms, rounded to float32 once.

    Floating-point addition is not associative, so a plain all-reduce gives other bits at another number of ranks.
    Here every term is first rounded to a common grid, 2^-52 of the largest possible sum; sums on the grid are exact.
    (The idea of Demmel & Nguyen 2013, "Fast Reproducible Floating-Point Summation", with one bin.)

    Args:
        terms: this rank's (n,) float32 vectors.
        num_terms: how many there are over all ranks.
        world: the ranks.

    Returns:
        (n,) float32, the same bits on every rank and for every way of dealing the terms to ranks. An infinite
        term makes the whole sum nan.

    Communication: one all-reduce (max) of a scalar and one (sum) of n float64.
    """
    largest = torch.stack([torch.linalg.vector_norm(term, torch.inf) for term in terms]).max().double()
    peak = float(max_over_ranks(largest.reshape(1), world))
    if not math.isfinite(peak):
        return torch.full_like(terms[0], math.nan)
    if peak == 0:
        return torch.zeros_like(terms[0])
    grid = 2.0 ** (math.frexp(peak * num_terms)[1] - EXACT_BITS)
    total = torch.zeros_like(terms[0], dtype=torch.float64)
    for term in terms:
        total += term.double().div_(grid).round_()
    return sum_over_ranks(total, world).mul_(grid).float()
