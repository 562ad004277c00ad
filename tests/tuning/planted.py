"""Trials whose results follow a known rule."""

import numpy as np

from dmlscale.tuning.outcomes import Outcome, Scalar, Status

METRIC = "val/recall_at_1"


def planted_trials(num: int, *, seed: int = 0) -> list[Outcome]:
    """The learning rate matters most, the loss a little, the temperature only where there is one, the rest not."""
    random = np.random.default_rng(seed)
    trials = []
    for number in range(num):
        loss = str(random.choice(["triplet", "supervised_contrastive"]))
        rate = float(10 ** random.uniform(-4, -2))
        dim = int(random.integers(32, 257))
        drawn: dict[str, Scalar] = {
            "losses.name": loss,
            "data.samples_per_class": int(random.choice([2, 4, 8])),
            "optim.backbone_lr": rate,
            "model.embedding_dim": dim,
        }
        level = 0.6 + 0.2 * np.log10(rate / 1e-3) + 0.02 * (loss == "triplet")
        if loss == "triplet":
            drawn["losses.margin"] = float(random.uniform(0.05, 0.5))
        else:
            drawn["losses.temperature"] = temperature = float(random.uniform(0.01, 1))
            level += 0.15 * (temperature > 0.5)
        steps = int(random.choice([100, 200, 400]))
        status: Status = "finished" if steps == 400 else "stopped"
        curve = tuple(
            (step, {METRIC: float(level * (0.5 + step / 800)), "cost_s": float(step * dim)})
            for step in range(100, steps + 1, 100)
        )
        reason = "" if status == "finished" else f"below the best third at step {steps}"
        trials.append(
            Outcome(
                trial=f"trial_{number:03d}",
                status=status,
                reason=reason,
                drawn=drawn,
                curve=curve,
                seconds=steps * 0.4,
                run_id=f"{number:032x}",
            )
        )
    return trials
