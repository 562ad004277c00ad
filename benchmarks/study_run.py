"""One run of the study: a config, a seed and a number of steps -> figures, in one process and one thread."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dmlscale.config.load import load_config
from dmlscale.config.schema import Config
from dmlscale.data.index import Index
from dmlscale.distributed.world import World
from dmlscale.evaluation.embed import raw_pixels
from dmlscale.evaluation.evaluate import evaluate
from dmlscale.launch.build import build_embedder, build_eval_batches
from dmlscale.launch.evaluation.evaluator import Evaluator
from dmlscale.launch.run import run_folder
from dmlscale.launch.task import Task
from dmlscale.launch.worker import Training
from dmlscale.training.loop import DivergedError

CONFIGS = Path(__file__).parents[1] / "configs" / "glyphs"
RAW_PIXELS, UNTRAINED = "raw pixels", "untrained network"
BASELINES = (RAW_PIXELS, UNTRAINED)
CPU = torch.device("cpu")

# What all runs have in common, whatever their file says.
SAME_FOR_ALL = (
    "train.eval_every=0",
    "train.reproducible=false",
    "train.keep_checkpoints=1",
    "evaluation.raw_pixels=false",
    "evaluation.report=false",
    "resources.workers=1",
    "resources.device=cpu",
)


@dataclass(frozen=True)
class Run:
    """A config of configs/glyphs, or one of `BASELINES` with seed and steps 0."""

    config: str
    seed: int
    steps: int


@dataclass(frozen=True)
class Outcome:
    """What came of a run. Its figures are missing unless it is "ok"."""

    run: Run
    status: Literal["ok", "diverged", "failed"]
    message: str = ""
    recall_at_1: float | None = None
    map_at_r: float | None = None
    nmi: float | None = None
    cpu_s: float | None = None  # of the training, class means and mining included, evaluation not

    def as_json(self) -> dict[str, Any]:
        """Plain values, flat."""
        values = asdict(self)
        return values.pop("run") | values

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Outcome:
        """The inverse of `as_json`."""
        rest = dict(values)
        return cls(Run(*(rest.pop(key) for key in ("config", "seed", "steps"))), **rest)


def study_config(name: str, *overrides: str) -> Config:
    """A config of configs/glyphs as the study runs it."""
    return load_config(CONFIGS / f"{name}.yaml", [*SAME_FOR_ALL, *overrides])


def measure(run: Run) -> Outcome:
    """Trains and evaluates; a run that diverges or breaks is an outcome too."""
    torch.set_num_threads(1)
    try:
        metrics, cpu_s = _baseline(run.config) if run.config in BASELINES else _trained(run)
    except DivergedError as error:
        return Outcome(run, "diverged", str(error))
    except Exception as error:
        # Finite losses may still leave embeddings that are not, which the evaluation refuses.
        status: Literal["diverged", "failed"] = "diverged" if "NaN or infinity" in str(error) else "failed"
        return Outcome(run, status, f"{type(error).__name__}: {error}")
    return Outcome(run, "ok", "", metrics["recall_at_1"], metrics["map_at_r"], metrics["nmi"], cpu_s)


class _TimedTraining(Training):
    """Notes the CPU time that is spent when the final evaluation begins."""

    cpu_s = 0.0

    def _finish(self, step: int) -> dict[str, Any]:
        self.cpu_s = time.process_time()
        return super()._finish(step)


def _trained(run: Run) -> tuple[dict[str, float], float]:
    with tempfile.TemporaryDirectory(prefix="study-") as folder:
        own = (f"train.steps={run.steps}", f"train.checkpoint_every={run.steps}", f"run.seed={run.seed}")
        config = study_config(run.config, *own, f"run.folder={folder}", "run.name=run")
        config = run_folder.resolve(config, run.config)
        task = Task("train", config.model_dump(mode="json"), str(run_folder.open_folder(config, resume=False)))
        training = _TimedTraining(task, World(), CPU)
        start = time.process_time()
        metrics: dict[str, float] = training.run()["metrics"]
        return metrics, training.cpu_s - start


def _baseline(name: str) -> tuple[dict[str, float], float]:
    config = study_config("norm_softmax")
    if name == RAW_PIXELS:
        index = Index.load(config.data.path)
        batches = build_eval_batches(config, index, config.data.eval_split, World())
        return dict(evaluate(raw_pixels(batches)).metrics), 0.0
    evaluator = Evaluator(config, Index.load(config.data.path), World(), CPU)
    return evaluator.model(build_embedder(config))[0], 0.0
