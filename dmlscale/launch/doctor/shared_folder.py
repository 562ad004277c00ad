"""Storage that all nodes must share: what one writes, each other reads."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlscale.launch.doctor.finding import Finding, most_common, named
from dmlscale.launch.doctor.machines import Machines

WAIT_SECONDS = 10.0
_SLOW_SECONDS = 2.0
_LITTLE_BYTES, _TOO_LITTLE_BYTES = 10 * 10**9, 10**8


@dataclass(frozen=True)
class Seen:
    """What a node saw in a folder.

    Args:
        tokens: nodes whose files it could read, with how long that took since all were written, in seconds.
        free_bytes: for it.
    """

    tokens: Mapping[str, float]
    free_bytes: int


def check_shared_folder(
    machines: Machines, check: str, folder: str, *, wait_seconds: float = WAIT_SECONDS
) -> list[Finding]:
    """Lets each machine write a small file into ``folder`` and read those of all others; then removes them.

    Args:
        machines: that must share it.
        check: name of the check, e.g. "storage of run.folder".
        folder: absolute path; made where it is missing, and removed again.
        wait_seconds: for the files of others, at most: network storage may show them late.
    """
    names = [machine.name for machine in machines.all]
    mark = f".dmlscale-doctor-{uuid.uuid4().hex[:12]}"
    files = {name: f"{number:06d}" for number, name in enumerate(names)}
    written = machines.ask(write_token, {name: (folder, mark, files[name]) for name in names})
    try:
        errors = {name: answer["error"] for name, answer in written.values.items() if answer["error"]}
        writers = {name: files[name] for name in written.values if name not in errors}
        asked = {name: (folder, mark, writers, wait_seconds) for name in writers}
        read = machines.ask(read_tokens, asked, seconds=wait_seconds + 10)
    finally:
        # In two rounds: a folder is empty once all have taken their files away.
        machines.ask(remove_token, {name: (folder, mark, files[name]) for name in written.values})
        made = {name: answer["made"] for name, answer in written.values.items() if answer["made"]}
        machines.ask(remove_folders, {name: (folders,) for name, folders in made.items()})
    advice = f"see whether the mount of {folder} answers there"
    seen = {name: Seen(answer["tokens"], answer["free_bytes"]) for name, answer in read.values.items()}
    return [
        *written.findings(check, advice),
        *read.findings(check, advice),
        *judge_writing(check, folder, errors),
        *judge_sharing(check, folder, seen, names),
    ]


def write_token(folder: str, mark: str, file: str) -> dict[str, Any]:
    """On a node: writes the file; says what kept it from it, and which folders it had to make."""
    made: list[str] = []
    try:
        missing = [path for path in (Path(folder), *Path(folder).parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            made.append(str(path))
        place = Path(folder) / mark
        place.mkdir(exist_ok=True)
        with (place / file).open("w") as token:
            token.write(mark)
            token.flush()
            os.fsync(token.fileno())
    except OSError as error:
        return {"error": str(error), "made": made}
    return {"error": "", "made": made}


def read_tokens(folder: str, mark: str, files: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """On a node: waits for the files of all nodes.

    Args:
        folder: in which they are.
        mark: name of their folder in it, and what each says.
        files: by node.
        seconds: to wait at most.
    """
    started = time.monotonic()
    tokens: dict[str, float] = {}
    while True:
        for node, file in files.items():
            if node not in tokens:
                with suppress(OSError):
                    if (Path(folder) / mark / file).read_text() == mark:
                        tokens[node] = time.monotonic() - started
        if len(tokens) == len(files) or time.monotonic() - started > seconds:
            break
        time.sleep(0.02)
    status = os.statvfs(folder)
    return {"tokens": tokens, "free_bytes": status.f_bavail * status.f_frsize}


def remove_token(folder: str, mark: str, file: str) -> None:
    """On a node: removes its file, and the folder that holds them all if it was the last."""
    with suppress(OSError):
        (Path(folder) / mark / file).unlink()
    with suppress(OSError):
        (Path(folder) / mark).rmdir()


def remove_folders(folders: Sequence[str]) -> None:
    """On a node: removes the folders that `write_token` had to make there, from the last on, while they are empty."""
    for path in reversed(folders):
        with suppress(OSError):
            Path(path).rmdir()


def judge_writing(check: str, folder: str, errors: Mapping[str, str]) -> list[Finding]:
    """A failure for each node that could not write."""
    advice = "mount it there, give the user of Ray's processes the right to write, or choose another folder"
    return [Finding(node, check, "fail", f"cannot write {folder}: {error}", advice) for node, error in errors.items()]


def judge_sharing(check: str, folder: str, seen: Mapping[str, Seen], nodes: Sequence[str]) -> list[Finding]:
    """Findings from what each node saw: those that see what most do share the storage.

    Args:
        check: name of the check.
        folder: that was looked at.
        seen: by node, of those that could write.
        nodes: the head first, whose storage is taken for the shared one if no more nodes have another.
    """
    nodes = [node for node in nodes if node in seen]
    if not nodes:
        return []
    usual = most_common({node: frozenset(seen[node].tokens) for node in nodes}, nodes)
    found = []
    for node in nodes:
        missing = [other for other in nodes if other not in seen[node].tokens]
        if frozenset(seen[node].tokens) == usual and node in usual:
            found.append(_judge_room(check, folder, node, seen[node], alone=len(nodes) == 1))
        else:
            what = f"{folder} is not shared: files that {named(missing)} wrote are not there"
            advice = "mount the same storage on every node, or choose a folder on one (run.folder, data.path)"
            found.append(Finding(node, check, "fail", what, advice))
    return found


def _judge_room(check: str, folder: str, node: str, seen: Seen, *, alone: bool) -> Finding:
    room = f"{seen.free_bytes / 1e9:,.0f} GB free"
    if seen.free_bytes < _TOO_LITTLE_BYTES:
        what = f"{folder} is full: {seen.free_bytes / 1e6:,.0f} MB free"
        return Finding(node, check, "fail", what, "remove old runs, or choose another folder")
    if seen.free_bytes < _LITTLE_BYTES:
        return Finding(node, check, "warn", f"{folder} has only {room}", "checkpoints may fill it: remove old runs")
    if alone:
        return Finding(node, check, "ok", f"{folder} can be written, {room}")
    lag = max(seen.tokens.values(), default=0.0)
    if lag > _SLOW_SECONDS:
        what = f"{folder} is shared, but shows files of other nodes only after {lag:.1f} s"
        return Finding(node, check, "warn", what, "turn the attribute cache of the mount down (NFS: actimeo=1)")
    return Finding(node, check, "ok", f"{folder} is written and read by all, {room}")
