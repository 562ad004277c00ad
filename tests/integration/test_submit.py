"""Jobs on three hosts, which have the package in common and one folder, and submit from a host that is not the head."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.distributed.pool import GlooPool
from tests.hosts.network import Hosts, why_no_hosts
from tests.hosts.ray_cluster import RayOnHosts
from tests.integration.runs import curve, task_of, work_on_rank

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(why_no_hosts() is not None, reason=why_no_hosts() or ""),
]

SMALL = (
    *("data.source.limit_classes=60", "data.source.num_processes=1", "train.steps=20", "train.log_every=1"),
    *("evaluation.report=false", "evaluation.raw_pixels=false", "tracking.registered_model=null"),
)


@dataclass(frozen=True)
class Site:
    """Three hosts with a Ray cluster, a folder that they share, and one with configs to submit."""

    cluster: RayOnHosts
    shared: Path
    project: Path

    def words(self, *words: str) -> list[str]:
        """A command of ours on a host."""
        return [sys.executable, "-m", "dmlscale.cli", *words, "--address", self.cluster.dashboard]

    def submit_words(self, command: str, file: str, *words: str) -> list[str]:
        place = ("--working-dir", str(self.project), "--shared", str(self.shared))
        return self.words("submit", command, str(self.project / file), *words, *place)

    def run(self, words: Sequence[str], timeout: float = 400) -> subprocess.CompletedProcess[str]:
        return self.cluster.run("n1", words, timeout=timeout)

    def jobs(self) -> dict[str, dict[str, Any]]:
        """By id, as `dmlscale jobs list --json` tells."""
        file = self.shared / "jobs.json"
        assert self.run(self.words("jobs", "list", "--json", str(file))).returncode == 0
        return {row["job"]: row for row in json.loads(file.read_text())}

    def tags(self) -> list[dict[str, str]]:
        """Of each MLflow run."""
        found: dict[str, dict[str, str]] = {}
        with sqlite3.connect(self.shared / "mlflow.db") as store:
            for run, key, value in store.execute("select run_uuid, key, value from tags"):
                found.setdefault(run, {})[key] = value
        return list(found.values())

    def measured_machines(self) -> set[str]:
        """Those with a load in MLflow; of runs on several."""
        with sqlite3.connect(self.shared / "mlflow.db") as store:
            names = store.execute("select distinct key from metrics where key like 'system/%/cpu_%'")
            return {name.split("/")[1] for (name,) in names}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    project = folder / "project"
    (project / "tune").mkdir(parents=True)
    (folder / "shared").mkdir()
    shutil.copy("configs/quickstart.yaml", project)
    sweep = {
        "base": "../quickstart.yaml",
        "set": {"resources.workers": 1},
        "sweep": {"searcher": "random", "scheduler": "none", "trials": 2, "repeats": 0, "concurrent": 2},
        "space": {"losses.margin": {"uniform": [0.1, 0.3]}},
    }
    (project / "tune/margin.yaml").write_text(yaml.safe_dump(sweep))
    with Hosts(3, folder) as hosts, RayOnHosts(hosts, cpus=1) as cluster:
        yield Site(cluster, folder / "shared", project)


def test_what_cannot_work_is_refused(site: Site) -> None:
    few = site.run(site.submit_words("train", "quickstart.yaml", *SMALL, "resources.workers=4"))
    assert few.returncode == 2, few.stdout
    assert "needs 4 CPUs; the cluster's 3 node(s) have 3 CPUs" in few.stdout
    assert site.jobs() == {}
    own = site.run(site.submit_words("train", "quickstart.yaml", *SMALL, "run.folder=/dev/shm/runs", "--name", "own"))
    assert own.returncode == 2, own.stdout
    refusal = next(line for line in own.stdout.splitlines() if line.startswith("refused: "))
    assert re.match(r"refused: .*n1.*: storage: .*/dev/shm/runs.*; mount the same storage", refusal), refusal
    assert "on 2 Ray worker(s)" not in own.stdout
    assert site.jobs()["own"]["exit_code"] == 2


def test_the_quickstart_trains_on_three_hosts_with_the_curve_of_one_machine(site: Site, gloo_pool: GlooPool) -> None:
    log = site.shared.parent / "train.log"
    often = "tracking.system_metrics_every_s=0.2"
    words = (*SMALL, "run.name=three", "resources.workers=3", often, "--json", str(site.shared / "three.json"))
    process = site.cluster.start("n1", site.submit_words("train", "quickstart.yaml", *words), log=log)
    while process.poll() is None and "looked at 3 node(s)" not in log.read_text():
        time.sleep(0.2)
    assert process.poll() is None, log.read_text()  # the log comes while the job runs
    assert process.wait(500) == 0, log.read_text()
    text = log.read_text()
    assert "on 3 Ray worker(s)" in text
    assert "step 20/20" in text
    assert "mlflow run" in text
    record = json.loads((site.shared / "three.json").read_text())
    job = record["job"]
    assert record["exit_code"] == 0
    assert [tags["cluster.ray_job"] for tags in site.tags() if tags["mlflow.runName"] == "three"] == [job]
    assert site.measured_machines() == {"n0", "n1", "n2"}
    row = site.jobs()[job]
    assert (row["status"], row["command"], row["name"]) == ("SUCCEEDED", "train quickstart.yaml", "three")

    places = (f"data.path={site.shared}/data/glyphs", f"run.folder={site.shared}/alone", "resources.workers=3")
    task = task_of(Path("configs/quickstart.yaml"), "alone", *SMALL, *places)
    gloo_pool.run(3, work_on_rank, task)
    there, here = curve(site.shared / "runs/three"), curve(task.folder)
    assert set(there) == set(here) == set(range(1, 21))
    assert all(abs(there[step] - here[step]) < 1e-4 for step in here)


def test_machines_tell_what_their_kernels_have_killed(site: Site) -> None:
    asked = (
        "import json, ray\n"
        "from dmlscale.launch.recovery.asked_nodes import ask_memory_kills\n"
        "ray.init(address='auto', logging_level='ERROR')\n"
        "print(json.dumps(ask_memory_kills(['n0', 'n1', 'n2', 'away'])))\n"
    )
    done = site.run([sys.executable, "-c", asked])
    assert json.loads(done.stdout.splitlines()[-1]).keys() == {"n0", "n1", "n2"}, done.stderr


def test_a_sweep_runs_two_trials_at_a_time(site: Site) -> None:
    base = [f"base.{text}" for text in SMALL]
    done = site.run(site.submit_words("tune", "tune/margin.yaml", *base, "sweep.name=margins", "--name", "sweep"))
    assert done.returncode == 0, done.stdout
    assert "2 trial(s) at a time" in done.stdout
    trials = [tags for tags in site.tags() if tags.get("sweep") == "margins"]
    assert len(trials) == 3  # with the parent
    assert {tags["cluster.ray_job"] for tags in trials} == {"sweep"}
    with sqlite3.connect(site.shared / "mlflow.db") as store:
        children = "select start_time, end_time from runs where run_uuid in (select run_uuid from tags where key = ?)"
        (start_a, end_a), (start_b, end_b) = store.execute(children, ("mlflow.parentRunId",)).fetchall()
    assert max(start_a, start_b) < min(end_a, end_b)


def test_a_job_that_is_stopped_saves(site: Site) -> None:
    words = (*SMALL, "train.steps=100000", "run.name=long", "--name", "long", "--no-wait")
    submitted = site.run(site.submit_words("train", "quickstart.yaml", *words))
    assert submitted.returncode == 0, submitted.stdout
    assert "dmlscale jobs stop long" in submitted.stdout
    deadline = time.monotonic() + 300
    while "loss" not in site.run(site.words("jobs", "logs", "long")).stdout:
        assert time.monotonic() < deadline
        time.sleep(2)
    stopped = site.run(site.words("jobs", "stop", "long"))
    assert stopped.returncode == 0, stopped.stdout
    assert "ended with exit code 75" in stopped.stdout
    assert site.jobs()["long"]["status"] == "STOPPED"
    assert list((site.shared / "runs/long/checkpoints").glob("step_*"))
    followed = site.run(site.words("jobs", "logs", "long", "--follow"))
    assert followed.returncode == 75, followed.stdout
