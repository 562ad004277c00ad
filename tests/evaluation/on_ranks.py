"""Evaluation over ranks that are threads."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.evaluate import evaluate


def evaluate_on_ranks(
    shares: list[Embedded], galleries: list[Embedded] | None = None, **options: Any
) -> list[Mapping[str, float]]:
    """One thread per rank, with real meeting points: a rank that leaves out a collective hangs the test."""
    barrier = threading.Barrier(len(shares))
    board: list[Tensor] = [torch.empty(0)] * len(shares)

    def meet(rank: int, tensor: Tensor, combine: Callable[[list[Tensor]], Tensor]) -> Tensor:
        board[rank] = tensor.clone()
        barrier.wait(timeout=120)
        result = combine(board)
        barrier.wait(timeout=120)
        return result

    def run(rank: int) -> Mapping[str, float]:
        return evaluate(
            shares[rank],
            None if galleries is None else galleries[rank],
            gather=lambda tensor: meet(rank, tensor, torch.cat),
            all_sum=lambda tensor: meet(rank, tensor, lambda parts: torch.stack(parts).sum(0)),
            rank=rank,
            **options,
        ).metrics

    with ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(run, range(len(shares))))
