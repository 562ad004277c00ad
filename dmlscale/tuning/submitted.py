"""What the file of a sweep says to whoever submits it as a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dmlscale.config.load import override_values, read_values, set_value
from dmlscale.launch.jobs.command import Settings
from dmlscale.tuning.config import load_sweep
from dmlscale.tuning.plan import check_sweep


def read_sweep(path: str, overrides: Sequence[str]) -> Settings:
    """The settings of ``dmlscale tune``.

    Raises:
        ConfigError: with everything that is wrong.
        LaunchError: a sweep that cannot work.
    """
    sweep = load_sweep(path, list(overrides))
    check_sweep(sweep)
    return Settings(sweep.base_config, sweep.settings.name, "sweep.name", _data_path(path, overrides), "base.")


def _data_path(path: str, overrides: Sequence[str]) -> str:
    """As it is written: a loaded sweep has it absolute already, seen from this machine."""
    values = read_values(path)
    base = values["base"]
    if isinstance(base, str):
        base = read_values(Path(path).parent / base)
    for key, value in (values.get("set") or {}).items():
        set_value(base, key, value)
    base = override_values(base, [text.removeprefix("base.") for text in overrides if text.startswith("base.")])
    return str(base["data"]["path"])
