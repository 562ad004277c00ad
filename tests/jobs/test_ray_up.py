"""The file of `ray up`, by Ray's own code."""

from __future__ import annotations

import copy
import shlex
import subprocess
from typing import Any

import pytest
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.jobs.files import ROOT, read

FILE = read("ray_up.yaml")


def test_ray_accepts_it() -> None:
    config = prepare_config(copy.deepcopy(FILE))
    validate_config(config)
    assert config["max_workers"] == len(FILE["provider"]["worker_ips"])


def test_ray_would_find_faults() -> None:
    with pytest.raises(ValidationError):
        validate_config(prepare_config(copy.deepcopy(FILE) | {"setup_comands": []}))


def test_the_files_are_there_and_none_is_a_secret_of_the_repository() -> None:
    here = [path for path in FILE["file_mounts"].values() if not path.startswith("~")]
    assert not [path for path in here if not (ROOT / path).exists()]
    assert [path for path in FILE["file_mounts"].values() if path.startswith("~")] == ["~/.ray/auth_token"]
    assert {"pyproject.toml", "constraints.txt", "README.md", "dmlscale"} == set(here)


def starts() -> list[tuple[str, Any]]:
    return [
        ("head", FILE["head_start_ray_commands"][-1]),
        ("worker", FILE["worker_start_ray_commands"][-1]),
    ]


@pytest.mark.parametrize(("node", "command"), starts())
def test_commands_are_sound(node: str, command: str) -> None:
    for line in [*FILE["setup_commands"], command]:
        subprocess.run(["bash", "-n", "-c", line], check=True)
    assert "RAY_AUTH_MODE=token" in command
    words = shlex.split(command)
    assert ("--head" in words) == (node == "head")
    # On loopback the trials of a sweep would not find it; all addresses of the machine are more than the cluster needs.
    if node == "head":
        assert f"--dashboard-host={FILE['provider']['head_ip']}" in words
