"""All losses on the glyphs with the same small budget: zero-shot retrieval of unseen characters.

Run:  python -m benchmarks.study                      # every config of configs/glyphs x seeds 0, 1, 2
      python -m benchmarks.study --jobs 2             # two runs at a time, one thread each
      python -m benchmarks.study --only triplet,center --seeds 0 --steps 150 --results /tmp/trial.jsonl
      python -m benchmarks.study --report             # table and picture of what is there, no runs

Every run has the same steps, batch size, network and augmentation; hyper-parameters are those of its file. Each
finished run is a line of the results file; stop the study and start it again, and it goes on with the runs that are not
there. Table (.md) and picture (.png) are written beside that file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from benchmarks.study_report import write_report
from benchmarks.study_run import BASELINES, CONFIGS, Outcome, Run, measure, study_config
from dmlscale.launch.preflight import prepare_data

STEPS = 600
SEEDS = (0, 1, 2)


def all_configs() -> list[str]:
    """Names of the files in configs/glyphs."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def plan(configs: Iterable[str], seeds: Iterable[int], steps: int) -> list[Run]:
    """Baselines first, then seed by seed, so that a study that is stopped has every config once."""
    names = list(configs)
    return [Run(name, 0, 0) for name in BASELINES] + [Run(name, seed, steps) for seed in seeds for name in names]


def read_results(path: Path) -> list[Outcome]:
    """What was measured; of two lines for one run the later one counts."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return list({outcome.run: outcome for outcome in map(Outcome.of_json, map(json.loads, lines))}.values())


def open_runs(runs: Iterable[Run], results: Path) -> list[Run]:
    """Those that are not measured yet; one that failed by a mistake is tried again, one that diverged is not."""
    done = {outcome.run for outcome in read_results(results) if outcome.status != "failed"}
    return [run for run in runs if run not in done]


def run_all(runs: list[Run], results: Path, jobs: int) -> None:
    """Measures the runs, ``jobs`` at a time, and appends each to the results as it ends."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers, which are fresh processes
    start, fresh = time.perf_counter(), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=fresh) as pool:
        futures = [pool.submit(measure, run) for run in runs]
        try:
            for n, future in enumerate(as_completed(futures), 1):
                outcome = future.result()
                with results.open("a") as file:
                    file.write(json.dumps(outcome.as_json()) + "\n")
                left = (time.perf_counter() - start) / n * (len(runs) - n) / 60
                print(f"{n}/{len(runs)} {_line(outcome)}; about {left:.0f} min left", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _line(outcome: Outcome) -> str:
    run = outcome.run
    name = f"{run.config} seed {run.seed}"
    if outcome.recall_at_1 is None or outcome.map_at_r is None:
        return f"{name}: {outcome.status}: {outcome.message}"
    return f"{name}: Recall@1 {outcome.recall_at_1:.3f}, MAP@R {outcome.map_at_r:.3f}, {outcome.cpu_s or 0:.0f} CPU s"


def main() -> int:
    """Runs what is open and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    today = Path(__file__).with_name(f"study_{datetime.date.today()}_glyphs.jsonl")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only", help="names of configs, with commas between them")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--results", type=Path, default=today, help="JSON lines; name it to continue another day's")
    parser.add_argument("--report", action="store_true", help="only write the report")
    options = parser.parse_args()
    configs = options.only.split(",") if options.only else all_configs()
    unknown = sorted(set(configs) - set(all_configs()))
    if unknown:
        parser.error(f"no {', '.join(unknown)} in {CONFIGS}; there are: {', '.join(all_configs())}")
    runs = plan(configs, map(int, options.seeds.split(",")), options.steps)
    if not options.report:
        prepare_data(study_config("norm_softmax"), print)
        run_all(open_runs(runs, options.results), options.results, options.jobs)
    wanted = set(runs)
    outcomes = [outcome for outcome in read_results(options.results) if outcome.run in wanted]
    if not outcomes:
        parser.error(f"{options.results} has no such runs yet")
    print(write_report(outcomes, options.results, options.steps))
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
