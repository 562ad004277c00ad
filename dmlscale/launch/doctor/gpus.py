"""GPUs: those that Ray hands out are those that torch can use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmlscale.launch.doctor.finding import Finding
from dmlscale.launch.doctor.machines import Machine, Machines

CHECK = "gpus"
_SECONDS = 60.0  # importing torch from busy network storage
# In a process of its own: it may see other devices than this one, and what it breaks is gone with it.
_SCRIPT = """
import json, warnings
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as told:
    import torch
    usable = torch.cuda.is_available()
    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if usable else []
    capabilities = [torch.cuda.get_device_capability(n) for n in range(len(names))]
    missing = []
    for n in range(len(names)):
        try:
            torch.ones(1, device=f"cuda:{n}").add_(1).item()
        except Exception as error:
            missing.append(f"GPU {n}: {str(error).strip().splitlines()[0]}")
print(json.dumps({"torch_cuda": torch.version.cuda, "names": names, "capabilities": capabilities, "missing": missing,
    "bf16": bool(names) and torch.cuda.is_bf16_supported(), "told": [str(w.message).splitlines()[0] for w in told]}))
"""


def check_gpus(machines: Machines, *, device: str = "auto") -> list[Finding]:
    """Whether torch can use the GPUs of each machine.

    Args:
        machines: the nodes.
        device: resources.device of the config.
    """
    if device == "cpu":
        return []
    asked = {machine.name: ((machine.resources or {}).get("GPU", 0) > 0,) for machine in machines.all}
    answers = machines.ask(look_at_gpus, asked, seconds=_SECONDS + 5)
    found = [
        judge_gpus(machine, answers.values[machine.name]) for machine in machines.all if machine.name in answers.values
    ]
    return [*answers.findings(CHECK), *found, *judge_wish(device, answers.values)]


def look_at_gpus(announced: bool) -> dict[str, Any]:
    """On a node: what torch says of its GPUs, and the version of their driver ("" without one).

    Args:
        announced: whether Ray says that there are any. If not, and there is no driver, torch is not asked.
    """
    driver = Path("/proc/driver/nvidia/version")
    version = driver.read_text().splitlines()[0] if driver.exists() else shutil.which("nvidia-smi") or ""
    if not (version or announced):
        return {"driver": "", "error": "", "names": [], "missing": []}
    environment = dict(os.environ)
    # Ray hides all GPUs from a process that asked for none; what the node itself was given is what its raylet sees.
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    given = _variable_of_parent("CUDA_VISIBLE_DEVICES")
    if given is not None:
        environment["CUDA_VISIBLE_DEVICES"] = given
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=_SECONDS, env=environment
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"driver": version, "error": lines[-1]}
    facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"driver": version, "error": "", **facts}


def _variable_of_parent(name: str) -> str | None:
    try:
        entries = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:  # another user's
        return os.environ.get(name)
    found = [entry.partition(b"=")[2].decode() for entry in entries if entry.startswith(f"{name}=".encode())]
    return found[0] if found else None


def judge_gpus(machine: Machine, facts: Mapping[str, Any]) -> Finding:
    """A finding from what `look_at_gpus` says of a node."""
    node = machine.name
    if facts["error"]:
        advice = "install torch there again: it must import"
        return Finding(node, CHECK, "fail", f"torch cannot be imported: {facts['error']}", advice)
    count = len(facts["names"])
    announced = count if machine.resources is None else int(machine.resources.get("GPU", 0))
    if count < announced or (facts["driver"] and not count):
        return Finding(node, CHECK, "fail", *_why_fewer(facts, announced))
    if facts["missing"]:
        advice = "see `nvidia-smi`: is it in use, broken, or too old for this build of torch?"
        return Finding(node, CHECK, "fail", facts["missing"][0], advice)
    if count > announced:
        what = f"torch can use {count} GPUs, Ray announces {announced}"
        return Finding(node, CHECK, "warn", what, f"start Ray there with --num-gpus={count}, unless others use them")
    if not count:
        return Finding(node, CHECK, "ok", "none")
    kinds = {(name, tuple(capability)) for name, capability in zip(facts["names"], facts["capabilities"], strict=True)}
    shown = ", ".join(f"{name} ({major}.{minor})" for name, (major, minor) in sorted(kinds))
    what = f"{count} x {shown}, CUDA {facts['torch_cuda']}, {'bf16' if facts['bf16'] else 'no bf16'}"
    if len(kinds) > 1:
        return Finding(node, CHECK, "warn", what, "all workers wait for the slowest kind")
    return Finding(node, CHECK, "ok", what)


def _why_fewer(facts: Mapping[str, Any], announced: int) -> tuple[str, str]:
    """What is wrong and what to do, where torch sees fewer GPUs than there are."""
    if facts["torch_cuda"] is None:
        return "there are GPUs, but this build of torch is for CPUs", "install torch with CUDA there"
    told = f": {facts['told'][0]}" if facts["told"] else ""
    if not facts["driver"]:
        what = f"Ray announces {announced} GPUs, but there is no NVIDIA driver"
        return what, "start Ray there without --num-gpus, or install the driver"
    what = f"torch (CUDA {facts['torch_cuda']}) can use {len(facts['names'])} of the GPUs{told}"
    return what, "see `nvidia-smi` there: a driver that is older than this CUDA must be updated, or take an older torch"


def judge_wish(device: str, facts: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """A failure if GPUs are asked for and no node has any; a warning if nodes have different kinds."""
    have = {node: sorted(set(fact.get("names", ()))) for node, fact in facts.items() if fact.get("names")}
    if device == "gpu" and not have:
        return [Finding("", CHECK, "fail", "resources.device=gpu, but no node has a GPU", "use resources.device=cpu")]
    kinds = {tuple(names) for names in have.values()}
    if len(kinds) > 1:
        what = "nodes have different GPUs: " + "; ".join(sorted(", ".join(names) for names in kinds))
        return [Finding("", CHECK, "warn", what, "all workers wait for the slowest kind")]
    return []
