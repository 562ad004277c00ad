"""The command doctor."""

from __future__ import annotations

import argparse

from dmlscale.cli.commands import Commands


def add_doctor(commands: Commands) -> None:
    """Adds doctor."""
    doctor = commands.add_parser(
        "doctor", help="this machine or all nodes of a cluster -> what keeps a run from working"
    )
    doctor.add_argument("config", nargs="?", help="YAML file; what this config needs is looked at too")
    doctor.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. run.folder=/shared/runs")
    doctor.add_argument("--address", help="of a Ray cluster, e.g. auto; else resources.address, RAY_ADDRESS, or no Ray")
    doctor.add_argument("--json", metavar="FILE", help="write the findings for machines")
    doctor.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from dmlscale.launch.doctor.checkup import doctor

    return doctor(options.config, options.overrides, address=options.address, json_file=options.json)
