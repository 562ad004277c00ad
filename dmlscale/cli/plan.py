"""The command plan."""

from __future__ import annotations

import argparse

from dmlscale.cli.commands import Commands


def add_plan(commands: Commands) -> None:
    """Adds plan."""
    plan = commands.add_parser("plan", help="a config -> memory, bytes sent and time of a step, before any is spent")
    plan.add_argument("config", help="YAML file, e.g. configs/quickstart.yaml")
    plan.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.classes_per_batch=4096")
    plan.add_argument("--workers", type=int, required=True, metavar="N", help="one device each")
    plan.add_argument("--device", required=True, help="h100, h200, a100 or cpu")
    plan.add_argument("--classes", type=int, metavar="C", help="in the banks; else those of the dataset")
    plan.add_argument("--shape", metavar="C,H,W", help="of a sample, e.g. 3,224,224; else that of the dataset")
    plan.add_argument("--per-node", type=int, default=8, metavar="G", help="devices of a node (8)")
    plan.add_argument("--json", metavar="FILE", help="write all figures for machines")
    plan.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> int:
    from dmlscale.launch.plan.command import plan

    return plan(
        options.config,
        options.overrides,
        workers=options.workers,
        device=options.device,
        classes=options.classes,
        shape=options.shape,
        per_node=options.per_node,
        json_file=options.json,
    )
