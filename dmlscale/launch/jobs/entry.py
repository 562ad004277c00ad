"""What a job does on the cluster: look whether its nodes can do the work, then run the command.

``python -m dmlscale.launch.jobs.entry [--folder FOLDER] [--data PATH] [--tracked] [--tracking URI] -- train FILE ...``
"""

from __future__ import annotations

import argparse
import runpy
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import dmlscale
from dmlscale.launch.doctor.finding import Line, lines_of, named
from dmlscale.launch.doctor.tracking import CHECK
from dmlscale.launch.jobs.follow import ENDED_LINE
from dmlscale.launch.jobs.nodes import Needs, look
from dmlscale.tracking.store import StoreError, is_server, resolve_uri

_REFUSED = 2


def main(arguments: Sequence[str]) -> int:
    """Checks, runs, and says how it ended.

    Args:
        arguments: as above.

    Returns:
        The command's exit code; 2 if the nodes cannot do the work.
    """
    # Ray blocks Ctrl-C's signal in its processes, and so in their children; a sweep is stopped by it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    options, command = _parsed(arguments)
    if options.version not in (None, dmlscale.__version__):
        print(f"warning: submitted by dmlscale {options.version}, the cluster runs {dmlscale.__version__}", flush=True)
    problems = _problems(options)
    for problem in problems:
        print(f"refused: {problem}", flush=True)
    code = _REFUSED if problems else _run(command)
    print(f"{ENDED_LINE} {code}", flush=True)
    return code


def _parsed(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    at = list(arguments).index("--")
    parser = argparse.ArgumentParser(prog="python -m dmlscale.launch.jobs.entry")
    parser.add_argument("--folder", action="append", default=[], help="absolute; all nodes must share it")
    parser.add_argument("--data", help="absolute path of the dataset, or of where it will be packed")
    parser.add_argument("--tracked", action="store_true", help="the command has an MLflow run")
    parser.add_argument("--tracking", help="its store, if the config names one")
    parser.add_argument("--store-may-be-away", action="store_true", help="the run does not wait for its server")
    parser.add_argument("--version", help="of dmlscale where it was submitted")
    return parser.parse_args(arguments[:at]), list(arguments[at + 1 :])


def _problems(options: argparse.Namespace) -> list[str]:
    """A line for each thing that would keep the command from working."""
    try:
        store = resolve_uri(options.tracking, folder=Path(options.folder[0]).parent) if options.tracked else None
    except StoreError as error:  # of the nodes' MLFLOW_TRACKING_URI, which nobody could see before
        return [str(error)]
    lines = lines_of(look(Needs(options.folder, options.data, store)))
    if options.store_may_be_away and store is not None and is_server(store):
        lines = [
            replace(line, status="warn") if line.check == CHECK and line.status == "fail" else line for line in lines
        ]
    nodes = {node for line in lines for node in line.nodes}
    print(f"looked at {len(nodes)} node(s): {', '.join(dict.fromkeys(line.check for line in lines))}", flush=True)
    for line in lines:
        if line.status == "warn":
            print(f"warning: {_sentence(line)}", flush=True)
    return [_sentence(line) for line in lines if line.status == "fail"]


def _sentence(line: Line) -> str:
    return f"{named(line.nodes) or 'the cluster'}: {line.check}: {line.what}" + f"; {line.advice}" * bool(line.advice)


def _run(command: Sequence[str]) -> int:
    """The command in this process, so that a signal reaches it."""
    sys.argv = ["dmlscale", *command]
    try:
        runpy.run_module("dmlscale.cli", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
