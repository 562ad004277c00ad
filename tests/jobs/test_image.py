"""The image, as far as it can be made without a builder: what is sent to it, what lies in it, and who runs there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from docker.utils import exclude_paths

from tests.jobs.files import IN_THE_IMAGE, JOBS, ROOT, constraints

TEXT = re.sub(r"\\\n", " ", (JOBS / "Containerfile").read_text())
LINES = [line.split(None, 1) for line in TEXT.splitlines() if line and not line.startswith("#")]


def of(instruction: str) -> list[str]:
    return [rest for name, rest in LINES if name == instruction]


def test_it_is_not_root_who_runs() -> None:
    assert of("USER") == ["1000:1000"]
    assert json.loads(of("CMD")[0])[0] == "dmlscale"
    last_as_root = [name for name, _ in LINES].index("USER")
    assert {name for name, _ in LINES[last_as_root + 1 :]} <= {"WORKDIR", "ENV", "CMD"}


def test_the_base_has_a_version_that_the_package_takes() -> None:
    (base,) = of("FROM")
    assert base == "docker.io/library/python:${PYTHON}-slim-bookworm"
    (version,) = [rest.split("=")[1] for rest in of("ARG") if rest.startswith("PYTHON=")]
    assert (3, 11) <= tuple(map(int, version.split("."))) < (3, 15)
    assert "--constraint constraints.txt" in TEXT
    assert "torch" in constraints()


def sent(folder: Path) -> set[str]:
    """Files that `docker build` would send, by docker's own reading of .dockerignore."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    return {path for path in exclude_paths(str(folder), patterns) if (folder / path).is_file()}


def test_no_secrets_and_no_data_are_sent(tmp_path: Path) -> None:
    wanted = {"pyproject.toml", "constraints.txt", "README.md", "dmlscale/cli/data.py", "configs/quickstart.yaml"}
    others = {
        ".env",
        ".git/config",
        ".venv/bin/python",
        "mlflow.env",
        "mlflow.db",
        "data/glyphs/train-000000.tar",
        "runs/a/config.yaml",
        "dmlscale/__pycache__/registry.pyc",
        "dmlscale/.env",
        "configs/team/.netrc",
        "configs/server.key",
        "jobs/kuberay/credentials.pem",
        "jobs/mlflow.env",
        "tests/conftest.py",
    }
    for name in wanted | others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sent(tmp_path) == wanted


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder /app of the image: of what is sent, what COPY takes."""
    app = tmp_path_factory.mktemp("app")
    files = sent(ROOT)
    for line in of("COPY"):
        *sources, target = shlex.split(line)
        for source in sources:
            taken = [name for name in files if name == source or name.startswith(f"{source}/")]
            assert taken, f"COPY {source}: nothing of that name is sent to the builder"
            for name in taken:
                to = app / target / (name if target == "./" else name.removeprefix(f"{source}/"))
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, to)
    return app


def test_the_package_is_whole_in_it(image: Path, tmp_path: Path) -> None:
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=image, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("dmlscale-*.whl")
    there = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("dmlscale/")}
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dmlscale").rglob("*") if path.is_file()}
    assert {name for name in wanted if "__pycache__" not in name} == there


def test_what_the_manifests_name_is_there(image: Path) -> None:
    assert of("WORKDIR")[0] == IN_THE_IMAGE.rstrip("/")
    named = {
        path
        for manifest in (JOBS / "kuberay").glob("*.yaml")
        for path in re.findall(r"/app/([\w./]+)", manifest.read_text())
    }
    assert named == {"configs/quickstart.yaml", "jobs/kuberay/save_before_stop.sh"}
    assert not [path for path in named if not (image / path).is_file()]
