"""Random numbers that belong to an entry: a function of (seed, step, identities), the same at any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The constants of splitmix64 as signed 64-bit numbers; torch multiplies int64 modulo 2^64.
_GOLDEN = -0x61C8864680B583EB
_FIRST, _SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


@dataclass(frozen=True)
class Chance:
    """Whose random numbers: a run's, at one step.

    Args:
        seed: of the run and of the loss's place in it.
        step: optimizer steps done before.
    """

    seed: int = 0
    step: int = 0

    def uniform(self, *identities: Tensor) -> Tensor:
        """Independent numbers in [0, 1) for each combination of identities, which are broadcast -> float64."""
        bits = torch.tensor([self.seed], dtype=torch.int64, device=identities[0].device)
        bits = _mix(_mix(bits) ^ self.step)
        for identity in identities:
            bits = _mix(bits ^ identity)
        return _shifted(bits, 11).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64: every output bit depends on every input bit."""
    x = x + _GOLDEN
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
