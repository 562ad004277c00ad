"""What holds for every file in jobs/: a head that says how to run it, commands that exist, no secrets, one version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dmlscale.cli import _parser
from dmlscale.config.load import load_config
from dmlscale.config.secrets import secrets_in_text
from tests.jobs.files import FILES, IN_THE_IMAGE, JOBS, ROOT, SCRIPTS, constraints, documented_commands, name, read


def check_command(arguments: list[str]) -> None:
    """The command line takes these arguments, and the config that they name takes the overrides."""
    options, rest = _parser().parse_known_args(arguments)
    assert all("=" in text and not text.startswith("-") for text in rest), rest
    words = [text for text in arguments if text.endswith(".yaml")]
    overrides = [text for text in arguments if re.match(r"[a-z_.]+=", text)]
    for config in words:
        load_config(ROOT / config.removeprefix(IN_THE_IMAGE), overrides)
    assert options.run is not None


def test_there_is_a_file_for_every_kind_of_cluster() -> None:
    assert {name(path) for path in FILES} >= {
        "jobs/local.sh",
        "jobs/ray_submit.sh",
        "jobs/slurm.sbatch",
        "jobs/kuberay/rayjob.yaml",
        "jobs/kuberay/raycluster.yaml",
        "jobs/kuberay/storage.yaml",
        "jobs/ray_up.yaml",
        "jobs/Containerfile",
    }


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_head_says_what_it_is_and_how_to_run_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    if path.suffix == ".md":
        assert lines[0].startswith("# ")
        return
    if path in SCRIPTS:
        assert lines.pop(0) == "#!/usr/bin/env bash"
        assert "set -euo pipefail" in lines
        assert path.suffix != ".sh" or os.access(path, os.X_OK)
    head = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    assert re.match(r"# [A-Z].*\w", head[0])
    assert any(name(path) in line for line in head if re.match(r"#  +\S", line)), "no command that names the file"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_secrets(path: Path) -> None:
    assert secrets_in_text(path.read_text()) == []


def test_the_readme_lists_every_file() -> None:
    readme = (JOBS / "README.md").read_text()
    named = set(re.findall(r"\]\(([^)#]+)\)", readme))
    assert not [link for link in named if not (JOBS / link).exists()]
    unlisted = {path for path in FILES if path.relative_to(JOBS).as_posix() not in readme}
    assert {name(path) for path in unlisted} <= {"jobs/README.md", "jobs/kuberay/save_before_stop.sh"}


COMMANDS = [(path, command) for path in FILES for command in documented_commands(path)]


def test_commands_are_found() -> None:
    found = {name(path) for path, _ in COMMANDS}
    assert {"jobs/README.md", "jobs/ray_up.yaml", "jobs/kuberay/raycluster.yaml", "jobs/Containerfile"} <= found


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[f"{name(p)}-{' '.join(c[:2])}" for p, c in COMMANDS])
def test_documented_commands_exist(path: Path, command: list[str]) -> None:
    check_command(command)


def test_the_entrypoint_of_the_job_exists() -> None:
    command, *arguments = read("kuberay/rayjob.yaml")["spec"]["entrypoint"].split()
    assert command == "dmlscale"
    check_command(arguments)


def run_script(script: str, folder: Path, arguments: list[str], environment: dict[str, str]) -> list[str]:
    """The arguments that a script hands to dmlscale, in a repository of which it knows the layout only."""
    (folder / "jobs").mkdir(parents=True)
    shutil.copy(JOBS / script, folder / "jobs")
    command = folder / ".venv" / "bin" / "dmlscale"
    command.parent.mkdir(parents=True)
    command.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$PWD" "$@"\n')
    command.chmod(0o755)
    own = {"PATH": f"{folder / 'tools'}:/usr/bin:/bin"} | environment
    done = subprocess.run([folder / "jobs" / script, *arguments], env=own, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    where, *handed = done.stdout.splitlines()
    assert where == str(folder)
    return handed


def test_local_takes_the_resources_of_the_config_without_gpus(tmp_path: Path) -> None:
    assert run_script("local.sh", tmp_path / "a", [], {}) == ["train", "configs/quickstart.yaml"]
    own = ["configs/glyphs/circle.yaml", "train.steps=5", "run.name=a b"]
    assert run_script("local.sh", tmp_path / "b", own, {}) == ["train", *own]


@pytest.mark.parametrize(("listed", "workers"), [("GPU 0: H100\nGPU 1: H100", "2"), ("GPU 0: H100", "1")])
def test_local_takes_all_gpus(tmp_path: Path, listed: str, workers: str) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "nvidia-smi").write_text(f'#!/usr/bin/env bash\necho "{listed}"\n')
    (tmp_path / "tools" / "nvidia-smi").chmod(0o755)
    handed = run_script("local.sh", tmp_path, ["configs/glyphs/circle.yaml", "resources.workers=1"], {})
    assert handed[2:4] == [f"resources.workers={workers}", "resources.device=gpu"]
    assert handed[4:] == ["resources.workers=1"]  # what the user says comes last
    check_command(handed)


def test_submit_hands_over_what_it_was_told(tmp_path: Path) -> None:
    environment = {"ADDRESS": "http://10.0.0.5:8265", "SHARED": "/mnt/shared"}
    handed = run_script("ray_submit.sh", tmp_path, ["configs/glyphs/circle.yaml", "resources.workers=2"], environment)
    options, _ = _parser().parse_known_args(handed)
    assert options.address == environment["ADDRESS"]
    assert options.shared == environment["SHARED"]
    assert "configs/glyphs/circle.yaml" in handed
    assert handed[-1] == "resources.workers=2"


@pytest.mark.parametrize("missing", ["ADDRESS", "SHARED"])
def test_submit_says_what_is_missing(missing: str) -> None:
    environment = {"ADDRESS": "http://10.0.0.5:8265", "SHARED": "/mnt/shared", "PATH": os.environ["PATH"]}
    del environment[missing]
    done = subprocess.run([JOBS / "ray_submit.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"{missing}: is " in done.stderr


def test_one_version_of_ray_and_of_the_package() -> None:
    import dmlscale

    assert read("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == constraints()["ray"]
    assert read("kuberay/raycluster.yaml")["spec"]["rayVersion"] == constraints()["ray"]
    images = {
        image for path in FILES for image in re.findall(r"registry\.example\.com/dmlscale:([\w.]+)", path.read_text())
    }
    assert images == {dmlscale.__version__}


@pytest.mark.parametrize("path", ["slurm.sbatch", "ray_up.yaml", "kuberay/rayjob.yaml", "kuberay/raycluster.yaml"])
def test_a_node_that_is_cut_off_is_noticed_soon(path: str) -> None:
    """Every head that is started here is told when to give a node up, in the words that this Ray knows."""
    from ray import _raylet as compiled

    text = (JOBS / path).read_text()
    found = dict(re.findall(r"RAY_(health_check_\w+?)(?:=|, value: \")(\d+)", text))
    assert set(found) == {f"health_check_{name}" for name in ("period_ms", "timeout_ms", "failure_threshold")}
    period, timeout, threshold = (
        int(found[f"health_check_{k}"]) for k in ("period_ms", "timeout_ms", "failure_threshold")
    )
    assert 20 <= (period + timeout) * threshold / 1000 <= 30
    assert all(hasattr(compiled.Config, name) for name in found)  # type: ignore[attr-defined]  # its stub leaves it out


def tool(program: str) -> str:
    """A checker that comes with the development packages."""
    found = shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found is not None, f"{program} is missing: make check installs it"
    return found


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / ".ci" / "run"], ids=name)
def test_shellcheck(path: Path) -> None:
    done = subprocess.run([tool("shellcheck"), "--external-sources", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_hadolint() -> None:
    done = subprocess.run([tool("hadolint"), JOBS / "Containerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
