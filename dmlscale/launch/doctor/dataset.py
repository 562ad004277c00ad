"""The dataset as each node sees it: readable, and the same one."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmlscale.launch.doctor.finding import Finding, most_common
from dmlscale.launch.doctor.machines import Machines
from dmlscale.redaction import shown

CHECK = "data.path"
_SECONDS = 20.0


def check_dataset(machines: Machines, path: str, options: Mapping[str, Any], description_file: str) -> list[Finding]:
    """Whether each machine reads the dataset, and all of them the same.

    Args:
        machines: the nodes.
        path: absolute, or a URL.
        options: of the URL's file system.
        description_file: name of the file that tells one dataset from another.
    """
    asked = {machine.name: (path, dict(options), description_file, _SECONDS / 2) for machine in machines.all}
    answers = machines.ask(read_description, asked, seconds=_SECONDS)
    advice = f"see whether the mount of {shown(path)} answers there"
    order = [machine.name for machine in machines.all if machine.name in answers.values]
    return [*answers.findings(CHECK, advice), *judge_dataset(path, {name: answers.values[name] for name in order})]


def read_description(path: str, options: Mapping[str, Any], file: str, seconds: float) -> dict[str, str]:
    """On a node: a digest of the dataset's description, or why it cannot be read."""
    from dmlscale.data.errors import DataError
    from dmlscale.data.storage.storage import Storage

    try:
        storage = Storage.open(path, options, timeout_seconds=seconds)
        if storage.is_local:
            content = storage.local_path(file).read_bytes()
        else:
            with tempfile.TemporaryDirectory() as folder:
                storage.download(file, Path(folder) / file)
                content = (Path(folder) / file).read_bytes()
    except (DataError, OSError) as error:
        return {"error": str(error).splitlines()[0], "digest": ""}
    return {"error": "", "digest": hashlib.sha256(content).hexdigest()}


def judge_dataset(path: str, answers: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Findings from what `read_description` says of each node, the head first."""
    readers = [node for node, answer in answers.items() if not answer["error"]]
    usual = most_common({node: answers[node]["digest"] for node in readers}, readers) if readers else ""
    where, found = shown(path), []
    for node, answer in answers.items():
        if answer["error"]:
            advice = "put it on storage that every node mounts, or behind a URL that every node reaches"
            what = f"{where} cannot be read: {answer['error']}"
            found.append(Finding(node, CHECK, "fail", what, advice))
        elif answer["digest"] != usual:
            what = f"{where} is another dataset than on the other nodes"
            found.append(Finding(node, CHECK, "fail", what, "copy it there again, or use storage that all nodes share"))
        else:
            found.append(Finding(node, CHECK, "ok", f"{where} is readable"))
    return found
