from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

KILLS = 100


def test_a_whole_checkpoint_outlives_every_kill(tmp_path: Path) -> None:
    """That the kills hit is tested too: many must have left a partial one, which the next start removed."""
    command = [sys.executable, "-m", "tests.training.checkpoint.killed_writers"]
    done = subprocess.run(
        [*command, str(tmp_path / "checkpoints"), str(KILLS), "7"],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > KILLS // 10
