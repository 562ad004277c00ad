"""A process that records a run is killed at any moment, the next goes on: nothing is lost or doubled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mlflow.tracking import MlflowClient

from dmlscale.tracking.mlflow import begin_run, send_rest
from dmlscale.tracking.spools import read_all

NUM_KILLS, SEED = 30, 7

# Forks from a process that has imported everything: one import of MLflow takes 3 s.
_LIVES = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
from mlflow.tracking import MlflowClient
from dmlscale.tracking import sender
from dmlscale.tracking.mlflow import MlflowTracker
from dmlscale.tracking.spools import read_all

uri, folder, num_kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
sender.RECORDS_PER_BATCH = 5
random.seed(seed)
# Makes the client's first use fast in the forks, with a store that they do not share.
copy = shutil.copy(uri.removeprefix("sqlite:///"), folder / "copy.db")
MlflowClient(f"sqlite:///{copy}").search_experiments()


def life(first):
    tracker = MlflowTracker(uri, folder, system_interval_s=0.02)
    tracker._sender._hurry.set()  # send all the time
    for step in range(first, 10**9):
        tracker.log_metrics({"train/loss": 1 / (1 + step), "train/lr": step}, step)
        time.sleep(0.002)


def num_sent():
    return sum(json.loads(path.read_text())["n"] for path in (folder / "tracking").glob("*.sent"))


last = -1
kill = 0
while kill < num_kills or num_sent() <= 100:  # on a busy machine a life may be too short to send anything
    kill += 1
    pid = os.fork()
    if pid == 0:
        life(max(0, last - random.randrange(20)))
    time.sleep(random.uniform(0.02, 1.2))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    last = max((f["step"] for f in read_all(folder) if f["kind"] == "metrics" and f["step"] is not None), default=-1)
print(last)
"""


def test_every_step_arrives_once_and_in_order(sqlite_uri: str, tmp_path: Path) -> None:
    run_id = begin_run(sqlite_uri, tmp_path, "kills", "run", tags={}, params={})
    arguments = [sqlite_uri, str(tmp_path), str(NUM_KILLS), str(SEED)]
    done = subprocess.run([sys.executable, "-c", _LIVES, *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    last = int(done.stdout)
    sent = [json.loads(path.read_text())["n"] for path in (tmp_path / "tracking").glob("*.sent")]
    assert sum(sent) > 100  # they were killed while they sent, not before
    client = MlflowClient(sqlite_uri)
    arrived_before = len(client.get_metric_history(run_id, "train/loss"))
    assert send_rest(sqlite_uri, tmp_path).problem == ""
    for name, value in (("train/loss", lambda step: 1 / (1 + step)), ("train/lr", float)):
        history = client.get_metric_history(run_id, name)
        assert [(point.step, point.value) for point in history] == [(step, value(step)) for step in range(last + 1)]
    print(f"{last + 1} steps, {arrived_before} of them before the last process")
    steps = [point.step for point in client.get_metric_history(run_id, "system/disk_usage_percentage")]
    assert steps == sorted(set(steps))
    assert client.get_run(run_id).info.status == "KILLED"  # nobody said how it ended
    assert sum(fields["kind"] == "status" for fields in read_all(tmp_path)) == 1
