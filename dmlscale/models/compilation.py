"""Compiled blocks: torch.compile, a block at a time.

A block at a time rather than a whole backbone: blocks that are alike are compiled once, gradients of the last blocks
travel while those before are computed, and what is fetched for a block (distributed/fully_sharded.py) stays outside.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmlscale.models.errors import ModelError

# Passes that a block is compiled for: training, its first of two passes, evaluation; each for a batch of one as well.
_PASSES = 6


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Changes the blocks in place; their parameters keep their names. Compilation itself waits for the first batch.

    Batches of all sizes (but one) share the code. Dropout draws what it draws without compilation.

    Raises:
        ModelError: there is no compiler on this machine.
    """
    require_compiler()
    # Blocks of one class share a list of what they were compiled for; beyond its limit they would stay as they are.
    limits = torch._dynamo.config
    most = _PASSES * len(blocks)
    limits.recompile_limit = max(limits.recompile_limit, most)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, most)
    for block in blocks:
        _compile(block)


def require_compiler() -> None:
    """Whether the compiler that torch.compile calls is on this machine.

    Raises:
        ModelError: it is not.
    """
    names = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    if torch.cuda.is_available():  # Triton compiles no more than the launchers of its kernels, and those are in C
        names += [os.environ.get("CC"), "gcc", "clang", "cc"]
    if not any(shutil.which(name) for name in names if name):
        raise ModelError(
            "train.compile=true needs a C++ compiler on the machine of every worker, and there is none here: install "
            "one (Debian and Ubuntu: apt-get install g++), name one in the environment variable CXX, or set "
            "train.compile=false"
        )


def _compile(block: nn.Module) -> None:
    compiled = torch.compile(block.forward, options={"fallback_random": True})

    def forward(*args: Any, **options: Any) -> Any:
        for argument in args:
            if isinstance(argument, Tensor) and argument.dim() > 1:
                torch._dynamo.maybe_mark_dynamic(argument, 0)
        return compiled(*args, **options)

    vars(block)["forward"] = forward  # found before the method of the class
