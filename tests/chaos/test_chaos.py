"""Twenty faults over one run: it ends as if nothing had happened.

DMLSCALE_CHAOS_SEED draws other faults, DMLSCALE_CHAOS_FAULTS says how many, DMLSCALE_CHAOS_KINDS of which kinds (with
commas between).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import cast

import pytest

from tests.chaos.campaign import run_campaign, table
from tests.chaos.observe import ProgressLog
from tests.chaos.plan import KINDS, FaultKind, draw_plan, steps_of_run
from tests.chaos.same_run import assert_each_step_once, assert_same_checkpoint, assert_same_steps
from tests.chaos.site import left_behind, site_of
from tests.chaos.workload import BATCHES_PER_EPOCH, start_undisturbed
from tests.hosts.network import why_no_hosts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(why_no_hosts() is not None, reason=why_no_hosts() or ""),
]

SEED = int(os.environ.get("DMLSCALE_CHAOS_SEED", "7"))
SKIPPED = r"step (\d+) is skipped: the loss is nan"
FAULTS = int(os.environ.get("DMLSCALE_CHAOS_FAULTS", "20"))
_CHOSEN = os.environ.get("DMLSCALE_CHAOS_KINDS")


def test_a_run_that_is_struck_by_many_faults_is_the_run_that_nothing_disturbed(tmp_path: Path) -> None:
    kinds = KINDS if _CHOSEN is None else tuple(cast("FaultKind", kind.strip()) for kind in _CHOSEN.split(","))
    plan, steps = draw_plan(SEED, FAULTS, kinds), steps_of_run(FAULTS)
    print(f"\nseed {SEED}: {FAULTS} faults in {steps} steps", *plan, sep="\n")
    with site_of(tmp_path, steps=steps) as site:
        outcomes = run_campaign(site, plan)
        print(table(outcomes), flush=True)
        alone, end = start_undisturbed(site.config_file, "alone", f"train.checkpoint_folder={tmp_path / 'alone'}")
        end.result(300)
        undisturbed = ProgressLog(alone / "progress.jsonl")
        undisturbed.look()

        assert_same_steps(site.progress.steps(), undisturbed.steps(), steps)
        assert_same_checkpoint(site.disk.path / site.run_name, tmp_path / "alone" / "alone")
        assert_each_step_once(site.store, undisturbed.steps())
        text = site.log.text()
        assert "Traceback" not in text
        skipped = {int(step) for entry in undisturbed.entries for step in re.findall(SKIPPED, entry.get("fault", ""))}
        assert len(skipped) == steps // BATCHES_PER_EPOCH or len(skipped) == steps // BATCHES_PER_EPOCH + 1
        assert skipped == {int(step) for step in re.findall(f"fault: {SKIPPED}", text)}
    assert left_behind(tmp_path) == []
