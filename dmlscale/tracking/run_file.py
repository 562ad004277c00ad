"""Which run of which store a run's folder is recorded as: `tracking/run.json`, once the store has said."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from dmlscale.tracking.spools import FOLDER, forget_sent

_FILE = "run.json"


class KnownRun(NamedTuple):
    """A run in a store."""

    uri: str
    run_id: str


def known_run(run_folder: Path) -> KnownRun | None:
    """The run; None as long as no store has made it."""
    values = _read(run_folder)
    return KnownRun(values["uri"], values["run_id"]) if "run_id" in values else None


def earlier_ids(run_folder: Path) -> list[str]:
    """What the run was called in other stores, where it was recorded before."""
    return list(_read(run_folder).get("earlier", []))


def note_run(run_folder: Path, run: KnownRun) -> bool:
    """Remember the run, for all later processes.

    Returns:
        Whether it was another run before: everything is to be sent anew then.
    """
    known = known_run(run_folder)
    if known == run:
        return False
    if known is not None:
        _forget(run_folder, known)
    _write(run_folder, {**run._asdict(), "earlier": earlier_ids(run_folder)})
    return known is not None


def forget_other_store(run_folder: Path, uri: str) -> None:
    """If the run was recorded in another store than this one, everything is to be sent anew."""
    known = known_run(run_folder)
    if known is not None and known.uri != uri:
        _forget(run_folder, known)


def _forget(run_folder: Path, known: KnownRun) -> None:
    forget_sent(run_folder)
    _write(run_folder, {"earlier": [*earlier_ids(run_folder), known.run_id]})


def _read(run_folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((run_folder / FOLDER / _FILE).read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write(run_folder: Path, values: dict[str, Any]) -> None:
    path = run_folder / FOLDER / _FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_FILE}.new")
    temporary.write_text(json.dumps(values, indent=1) + "\n")
    os.replace(temporary, path)
