"""Versions that fit together: the same packages on every node."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from dmlscale.launch.doctor.finding import Finding, most_common, named
from dmlscale.launch.doctor.machines import Machines

CHECK = "packages"
_NEEDED = ("dmlscale", "torch", "ray", "mlflow", "pyarrow")
_FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cu11")


def check_packages(machines: Machines) -> list[Finding]:
    """Whether all machines have what is needed, in the same versions."""
    answers = machines.ask(look_at_packages)
    return [*answers.findings(CHECK), *judge_packages(answers.values, [m.name for m in machines.all])]


def look_at_packages() -> dict[str, Any]:
    """On a node: version by package, that of Python included; None where a package is missing.

    Versions are read, not imported, so a package that is broken or slow to load holds up nothing.
    """
    versions: dict[str, str | None] = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in (*_NEEDED, *_FAISS):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    if versions["dmlscale"] is None and importlib.util.find_spec("dmlscale") is not None:
        import dmlscale  # a working directory that was shipped: it is importable without being installed

        versions["dmlscale"] = dmlscale.__version__
    return versions


def judge_packages(versions: Mapping[str, Mapping[str, str | None]], nodes: Sequence[str]) -> list[Finding]:
    """Findings from what `look_at_packages` says of each node.

    Args:
        versions: by node.
        nodes: the head first: it has the last word where two versions are equally frequent.
    """
    nodes = [node for node in nodes if node in versions]
    found = []
    for name in ("python", *_NEEDED):
        usual = most_common({node: versions[node][name] for node in nodes}, nodes) if nodes else None
        for node in nodes:
            have = versions[node][name]
            if have is None:
                advice = f"install it there: `pip install {name}{'' if usual is None else f'=={usual}'}`"
                found.append(Finding(node, CHECK, "fail", f"{name} is not installed", advice))
            elif have != usual:
                others = [other for other in nodes if versions[other][name] == usual]
                what = f"{name} {have} here, {usual} on {named(others)}"
                found.append(Finding(node, CHECK, "fail", what, f"install {name} {usual} there, or use one image"))
    found += [finding for node in nodes for finding in _judge_faiss(node, versions[node])]
    found += _judge_faiss_versions(versions, nodes)
    faulty = {finding.node for finding in found}
    return found + [Finding(node, CHECK, "ok", _summary(versions[node])) for node in nodes if node not in faulty]


def _judge_faiss(node: str, versions: Mapping[str, str | None]) -> list[Finding]:
    wheels = [name for name in _FAISS if versions[name] is not None]
    if not wheels:
        advice = "install one there: `pip install faiss-cpu`, or faiss-gpu on a GPU machine"
        return [Finding(node, CHECK, "fail", "no faiss is installed, which evaluation needs", advice)]
    if len(wheels) > 1:
        advice = f"remove all of them and install one again: `pip uninstall {' '.join(wheels)}`"
        return [Finding(node, CHECK, "fail", f"{' and '.join(wheels)} are installed, two of one module", advice)]
    return []


def _judge_faiss_versions(versions: Mapping[str, Mapping[str, str | None]], nodes: Sequence[str]) -> list[Finding]:
    """Different wheels may be meant (a head without GPU); different versions rank ties differently at most."""
    used = {node: next((v for name in _FAISS if (v := versions[node][name])), None) for node in nodes}
    if not nodes or len({version for version in used.values() if version}) < 2:
        return []
    usual = most_common(used, nodes)
    return [
        Finding(node, CHECK, "warn", f"faiss {version} here, {usual} elsewhere", f"install faiss {usual} there")
        for node, version in used.items()
        if version not in (None, usual)
    ]


def _summary(versions: Mapping[str, str | None]) -> str:
    wheel = next((name for name in _FAISS if versions[name]), "faiss")
    return ", ".join(f"{name} {versions[name]}" for name in ("python", *_NEEDED, wheel))
