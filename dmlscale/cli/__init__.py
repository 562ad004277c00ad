"""The command line: dispatch only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import dmlscale
from dmlscale.cli.data import add_data_commands
from dmlscale.cli.doctor import add_doctor
from dmlscale.cli.jobs import add_job_commands
from dmlscale.cli.losses import add_losses
from dmlscale.cli.models import add_model_commands
from dmlscale.cli.plan import add_plan
from dmlscale.cli.sync import add_sync
from dmlscale.cli.training import add_training_commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failed, 2 refused before any work, 75 resume me."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positionals in one run only; key=value may also follow an option.
    if not hasattr(options, "overrides") or any(text.startswith("-") or "=" not in text for text in rest):
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
    else:
        options.overrides += rest
    try:
        code: int = options.run(options)
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if options.traceback:
            raise
        if type(error).__module__.startswith("dmlscale."):
            print(f"error: {error}", file=sys.stderr)
            names = {kind.__name__ for kind in type(error).__mro__}
            return 1 if names & {"WorkersFailedError", "DivergedError"} else 2
        print(f"error: {type(error).__name__}: {error} (--traceback shows where)", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dmlscale", description=dmlscale.__doc__)
    parser.add_argument("--version", action="version", version=f"dmlscale {dmlscale.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_data_commands,
        add_training_commands,
        add_model_commands,
        add_sync,
        add_job_commands,
        add_doctor,
        add_plan,
        add_losses,
    ):
        add(commands)
    for command in commands.choices.values():
        command.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser
