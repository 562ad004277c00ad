"""A rank reads what it holds, not the whole checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dmlscale.distributed.world import World
from dmlscale.training import checkpoint
from dmlscale.training.state import Record
from tests.distributed.pool import GlooPool
from tests.training.checkpoint.test_round_trip import in_rows

ROWS, COLUMNS = 2048, 16_384  # 128 MB
MOST_MB = 24  # 8 to compute a digest; the quarter itself, 32, is read to where it belongs


def megabytes(kind: str) -> float:
    """Memory of this process, of a kind that Linux tells."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{kind}:"))


def load_rows(world: World, folder: Path) -> float:
    """The most memory that this rank took beyond what it had, in MB."""
    bank = in_rows(torch.zeros(1).expand(ROWS, COLUMNS), world)
    first, stop = world.share(ROWS)
    held = bank.to_local()  # type: ignore[attr-defined]  # a DTensor, as there are several ranks
    held += 0  # so that its pages are there
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far
    before = megabytes("VmRSS")
    checkpoint.load(folder / "step_00000001", {"bank": bank}, world)
    most = megabytes("VmHWM") - before
    assert held[0, 0] == first
    assert held[-1, -1] == stop - 1
    return most


def test_ranks_read_their_rows_of_a_large_piece(gloo_pool: GlooPool, tmp_path: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the kernel does not tell how much memory was used at most")
    bank = torch.arange(float(ROWS))[:, None].expand(ROWS, COLUMNS).contiguous()
    checkpoint.save(tmp_path, {"bank": bank}, Record(1, {}, 1, {}, {}), World(), keep=1)
    for most in gloo_pool.run(4, load_rows, tmp_path):
        assert most < MOST_MB
