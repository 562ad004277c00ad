from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import overhead
from benchmarks.overhead import Ratio, Times, measure, report
from benchmarks.overhead_sides import NEITHER, SIDES, SMALL_NETWORK, Setting, Written


def times(step_s: float, noise: float = 0.0) -> Times:
    """Of 30 rounds."""
    drawn = step_s * (1 + noise * np.random.default_rng(int(1e6 * step_s)).normal(size=30))
    return Times(drawn, drawn, Written(31, 2.5, 40))


def test_a_ratio_is_that_of_the_rounds() -> None:
    machine = np.random.default_rng(0).uniform(1, 3, 30)  # other load, the same for both sides of a round
    ratio = Ratio.of(1.02 * machine, machine)
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.02, 1.02, 1.02))
    noisy = Ratio.of(times(0.2, noise=0.1).wall_s, times(0.1).wall_s)
    assert noisy.low < noisy.median < noisy.high
    assert 1.8 < noisy.low < 2 < noisy.high < 2.2


def test_what_does_not_hold_is_told() -> None:
    sides = {NEITHER: times(0.1), "checkpoints": times(0.102), "tracking": times(0.104)}
    sides |= {"both": times(0.1)}
    table, failures = report(sides, Setting(steps=20))
    assert failures == ["tracking: 1.040x (1.040 to 1.040), bound 1.03x"]
    assert (
        "| checkpoints | 102.0 | 1.020x (1.020 to 1.020) | 1.020x (1.020 to 1.020) | 1.03x | 29.4 | 2.5 | 40 |" in table
    )


def test_the_command_writes_a_table_and_fails_on_a_missed_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["overhead", "--small", "--markdown", str(file)])
    for step_s, status in ((0.1, 0), (0.11, 1)):
        sides = {name: times(0.1 if name == NEITHER else step_s) for name in SIDES}
        monkeypatch.setattr(overhead, "measure", lambda setting, say, sides=sides: sides)
        assert overhead.main() == status
        printed = capsys.readouterr().out
        assert printed.startswith(file.read_text())
        assert printed.count("BOUND") == 3 * status


@pytest.mark.timeout(300)
def test_sides_take_turns_and_do_what_they_are_to_do(tmp_path: Path) -> None:
    data = (f"data.path={tmp_path / 'glyphs'}", "data.source={name: glyphs, limit_classes: 24, num_processes: 1}")
    few = ("data.classes_per_batch=4", "evaluation.gallery_queries=0", *SMALL_NETWORK)
    setting = Setting(rounds=2, steps=4, checkpoints=1, overrides=(*data, *few))
    found = measure(setting, (NEITHER, "both"))
    for side in found.values():
        assert side.wall_s.shape == side.cpu_s.shape == (2,)
        assert (side.wall_s > 0).all()
        assert (side.cpu_s > 0).all()
    assert found[NEITHER].left == Written(0, 0, 0)
    both = found["both"].left
    assert both.checkpoints >= 2
    assert both.megabytes > 0.1
    assert both.figures > 10
