"""Which trials end before their last step: those behind the others, those that stand still, all when time is over."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.stopper import CombinedStopper, Stopper, TimeoutStopper, TrialPlateauStopper

from dmlscale.config.schema import Config
from dmlscale.launch.errors import LaunchError
from dmlscale.tuning.config import SweepConfig
from dmlscale.tuning.trial import read_outcomes


def grace_steps(config: Config, settings: SweepConfig) -> int:
    """The step of ASHA's first rung.

    Raises:
        LaunchError: trials are not evaluated on the way, or the rung is behind their end.
    """
    train = config.train
    grace = settings.grace_steps or train.eval_every
    if not train.eval_every or grace >= train.steps:
        raise LaunchError(
            f"sweep.scheduler=asha compares trials on the way: train.eval_every={train.eval_every} must be above 0, "
            f"and the first rung (sweep.grace_steps, now {grace}) before train.steps={train.steps}; or set "
            "sweep.scheduler=none"
        )
    return grace


class RememberingASHA(ASHAScheduler):
    """ASHA that knows, after a resume, what earlier trials had reached: Tune does not keep it.

    Args:
        folder: of the stage, whose trials tell what they reached.
        options: of ``ASHAScheduler``.
    """

    def __init__(self, folder: str, **options: Any) -> None:
        super().__init__(**options)
        self._folder, self._remembers = folder, False

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """See ``ASHAScheduler``."""
        if not self._remembers:
            self._remembers = True
            for outcome in read_outcomes(Path(self._folder)):
                if outcome.status in ("finished", "stopped"):
                    for step, metrics in outcome.curve:
                        earlier = SimpleNamespace(trial_id=outcome.trial)
                        self._brackets[0].on_result(earlier, step, self._metric_op * metrics[self._metric])
        super().on_trial_add(tune_controller, trial)


class Plateau(TrialPlateauStopper):
    """`TrialPlateauStopper` that leaves trials their last step, and remembers whom it stopped.

    Args:
        steps: of a whole trial.
        options: of ``TrialPlateauStopper``.
    """

    stopped: ClassVar[set[str]] = set()  # of this process; a copy that Tune restores shares it

    def __init__(self, steps: int, **options: Any) -> None:
        super().__init__(**options)
        self._steps = steps

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """See ``Stopper``."""
        stops = bool(super().__call__(trial_id, result)) and result["step"] < self._steps
        if stops:
            self.stopped.add(trial_id)
        return stops


def stopper(settings: SweepConfig, steps: int) -> Stopper | None:
    """What ends trials beside the scheduler; None for nothing.

    Args:
        settings: of the sweep.
        steps: of a whole trial.
    """
    stoppers: list[Stopper] = []
    if settings.plateau_evaluations is not None:
        n = settings.plateau_evaluations
        deviation = settings.plateau_deviation
        stoppers.append(Plateau(steps, metric=settings.metric, std=deviation, num_results=n, grace_period=n))
    if settings.time_budget_minutes is not None:
        stoppers.append(TimeoutStopper(settings.time_budget_minutes * 60))
    return CombinedStopper(*stoppers) if stoppers else None
