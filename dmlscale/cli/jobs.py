"""The commands on jobs of a Ray cluster: submit, jobs."""

from __future__ import annotations

import argparse

from dmlscale.cli.commands import Commands

_ADDRESS = "of the cluster's dashboard, as http://head:8265 (default: RAY_API_SERVER_ADDRESS)"


def add_job_commands(commands: Commands) -> None:
    """Adds submit and jobs."""
    submit = commands.add_parser("submit", help="train, tune, evaluate or pack, as a job of a Ray cluster")
    kinds = submit.add_subparsers(required=True, metavar="{train,tune,evaluate,pack}", dest="submitted")
    for name, subject, help_text in (
        ("train", ("config",), "as `dmlscale train`"),
        ("tune", ("config",), "as `dmlscale tune`"),
        ("evaluate", ("checkpoint",), "as `dmlscale evaluate`"),
        ("pack", ("source", "path"), "as `dmlscale pack`"),
    ):
        kind = kinds.add_parser(name, help=help_text)
        for word in subject:
            kind.add_argument(word)
        kind.add_argument("overrides", nargs="*", metavar="key=value")
        if name in ("train", "tune"):
            kind.add_argument("--resume", action="store_true", help=f"as of `dmlscale {name}`")
        if name == "evaluate":
            kind.add_argument("--report", metavar="FOLDER", help="as of `dmlscale evaluate`; on shared storage")
        _add_order(kind)
        kind.set_defaults(run=_submit, subject=subject)

    jobs = commands.add_parser("jobs", help="the jobs of a Ray cluster: list, logs, stop")
    actions = jobs.add_subparsers(required=True, metavar="{list,logs,stop}", dest="action")
    listing = actions.add_parser("list", help="what was submitted, and what became of it")
    listing.add_argument("--json", metavar="FILE", help="write it for machines instead")
    listing.set_defaults(run=_list)
    logs = actions.add_parser("logs", help="what a job has written")
    logs.add_argument("job", help="its id")
    logs.add_argument("--follow", action="store_true", help="to its end; the exit code is then the job's")
    logs.set_defaults(run=_logs)
    stop = actions.add_parser("stop", help="ask a job to save and stop")
    stop.add_argument("job", help="its id")
    stop.add_argument("--no-wait", action="store_true", help="do not wait for its end")
    stop.set_defaults(run=_stop)
    for action in (listing, logs, stop):
        action.add_argument("--address", help=_ADDRESS)
        _add_traceback(action)


def _add_order(kind: argparse.ArgumentParser) -> None:
    kind.add_argument("--address", help=_ADDRESS)
    kind.add_argument(
        "--shared",
        metavar="FOLDER",
        help="absolute path of storage that all nodes share: relative paths are below it",
    )
    kind.add_argument("--name", metavar="ID", help="of the job (default: from the run's name)")
    kind.add_argument("--working-dir", default=".", metavar="FOLDER", help="that is shipped (default: this one)")
    kind.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="of files that are not shipped")
    kind.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]", help="set it for the job; no secrets"
    )
    kind.add_argument("--ship-package", action="store_true", help="send this machine's dmlscale along")
    kind.add_argument("--no-wait", action="store_true", help="do not follow the job")
    kind.add_argument("--json", metavar="FILE", help="write the job's id and exit code for machines")
    _add_traceback(kind)


def _add_traceback(command: argparse.ArgumentParser) -> None:
    """As every command has it; it also may come before the second word, which must not be undone here."""
    command.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _submit(options: argparse.Namespace) -> int:
    from dmlscale.launch.jobs.command import Command, read_train
    from dmlscale.launch.jobs.submit import Order, submit
    from dmlscale.tuning.submitted import read_sweep

    further = ["--resume"] if getattr(options, "resume", False) else []
    if getattr(options, "report", None):
        further += ["--report", options.report]
    command = Command(
        options.submitted,
        tuple(getattr(options, word) for word in options.subject),
        tuple(options.overrides),
        tuple(further),
    )
    order = Order(
        address=options.address,
        job=options.name,
        working_dir=options.working_dir,
        shared=options.shared,
        env=tuple(options.env),
        exclude=tuple(options.exclude),
        ship_package=options.ship_package,
        wait=not options.no_wait,
        json_file=options.json,
    )
    return submit(command, order, read_sweep if command.name == "tune" else read_train)


def _list(options: argparse.Namespace) -> int:
    from dmlscale.launch.jobs.manage import list_jobs

    return list_jobs(options.address, json_file=options.json)


def _logs(options: argparse.Namespace) -> int:
    from dmlscale.launch.jobs.manage import show_log

    return show_log(options.job, options.address, to_end=options.follow)


def _stop(options: argparse.Namespace) -> int:
    from dmlscale.launch.jobs.manage import stop_job

    return stop_job(options.job, options.address, wait=not options.no_wait)
