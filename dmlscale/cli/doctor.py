"""The command doctor."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dmlscale.cli.commands import Commands

if TYPE_CHECKING:
    from dmlscale.config.schema import Config


def add_doctor(commands: Commands) -> None:
    """Adds doctor."""
    doctor = commands.add_parser(
        "doctor", help="this machine or all nodes of a cluster -> what keeps a run from working"
    )
    doctor.add_argument("config", nargs="?", help="YAML file, also a sweep's; what it needs is looked at too")
    doctor.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. run.folder=/shared/runs")
    doctor.add_argument("--address", help="of a Ray cluster, e.g. auto; else resources.address, RAY_ADDRESS, or no Ray")
    doctor.add_argument("--json", metavar="FILE", help="write the findings for machines")
    doctor.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from dmlscale.launch.doctor.checkup import doctor

    return doctor(_config(options.config, options.overrides), address=options.address, json_file=options.json)


def _config(file: str | None, overrides: list[str]) -> Config | None:
    from dmlscale.config.load import load_config, read_values
    from dmlscale.launch.errors import LaunchError
    from dmlscale.tuning.config import load_sweep

    if file is None:
        return None
    if "=" in file and not Path(file).exists():
        raise LaunchError(f"{file} changes a config, and none is named: dmlscale doctor configs/quickstart.yaml {file}")
    if "space" in read_values(file):  # a sweep's: each trial needs what its base does
        return load_sweep(file, overrides).base_config
    return load_config(file, overrides)
