"""The files in jobs/, and the commands that they name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "jobs"
FILES = sorted(path for path in JOBS.rglob("*") if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix in (".sh", ".sbatch")]
IN_THE_IMAGE = "/app/"  # where jobs/Containerfile puts configs/ and jobs/


def name(path: Path) -> str:
    """As documents say it."""
    return path.relative_to(ROOT).as_posix()


def read(path: str) -> Any:
    """What a YAML file in jobs/ holds."""
    return yaml.safe_load((JOBS / path).read_text())


def constraints() -> dict[str, str]:
    """The version of each package that was tested."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    return dict(line.split("==") for line in lines)


def documented_commands(path: Path) -> list[list[str]]:
    """Arguments of the dmlscale commands in a file's head or console blocks, but of those with an ellipsis.

    A command may follow others on its line: ``docker run IMAGE dmlscale ...``, ``sbatch jobs/slurm.sbatch ...``.
    """
    text = re.sub(r"\\\n(#| )*", "", path.read_text())
    found = re.findall(r"^(?:#  +|\$ )(?:.*\s)?(?:dmlscale|jobs/slurm\.sbatch) ([a-z]+ .+)$", text, re.M)
    commands = [shlex.split(re.sub(r"\s{2,}#.*", "", line)) for line in found]
    return [command for command in commands if "..." not in command]
