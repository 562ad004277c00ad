"""What a command shows at its end, and where else it puts its figures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from dmlscale.config.schema import Config
from dmlscale.launch.display import left_out_lines, metrics_table
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.evaluation.report import REPORT_FILE


def check_json(json_file: str | None) -> None:
    """Whether figures can be written there.

    Raises:
        LaunchError: they cannot.
    """
    if json_file and Path(json_file).is_dir():
        raise LaunchError(f"--json {json_file} is a folder: name a file in it")
    if json_file and not os.access(Path(json_file).absolute().parent, os.W_OK):
        raise LaunchError(f"--json {json_file}: its folder does not exist or cannot be written")


def write_json(json_file: str | None, result: Mapping[str, Any]) -> None:
    """Writes them, if a file is named."""
    if json_file:
        Path(json_file).write_text(json.dumps(result, indent=1) + "\n")


def open_report_folder(folder: str) -> Path:
    """The folder, made if it is not there; evaluating first and failing then would be a pity.

    Raises:
        LaunchError: it cannot be made, or not be written.
    """
    path = Path(folder).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(f"--report {folder}: cannot be made: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise LaunchError(f"--report {folder}: cannot be written")
    return path


def show(result: Mapping[str, Any], config: Config) -> None:
    """Prints the figures, and what was left out."""
    title = f"zero-shot retrieval, {config.data.eval_split} split of {Path(config.data.path).name}"
    if config.data.gallery_split:
        title += f", searched in {config.data.gallery_split}"
    Console().print(metrics_table(title, result["metrics"], result["raw_pixels"], result["intervals"]))
    for line in left_out_lines(result["left_out"]):
        print(line)
    if result.get("skipped"):
        why = ", ".join(f"{count:,} x {kind}" for kind, count in result["skipped"].items())
        print(f"\nskipped       training samples that could not be read: {why}; `dmlscale verify` names them")
    if "report" in result:
        print(f"\nreport        {Path(result['report']) / REPORT_FILE}")
