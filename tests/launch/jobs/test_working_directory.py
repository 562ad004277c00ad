from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dmlscale.launch.errors import LaunchError
from dmlscale.launch.jobs import working_directory
from dmlscale.launch.jobs.working_directory import stage

# Put together here, so that no file of ours holds one.
AWS_KEY = "AKIA" + "ABCDEFGHIJKLMNOP"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with code, configs, results, and things that must not travel."""
    folder = tmp_path / "project"
    for name, text in {
        "configs/mine.yaml": "train: {steps: 1}",
        "package/data/reader.py": "x = 1",
        "data/glyphs/shard.tar": "much",
        "runs/one/config.yaml": "a: 1",
        "mlflow.db": "rows",
        ".venv/bin/python": "binary",
        "package/__pycache__/reader.pyc": "bytes",
        ".env": "PASSWORD=opensesame",
        "deploy/server.pem": "certificate",
        ".aws/config": "profile",
        "deploy/.kube/config": "cluster",
        "credentials.json": "{}",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


def test_without_git_code_and_configs_travel(project: Path, tmp_path: Path) -> None:
    shipment = stage(project, tmp_path / "copy")
    assert _files(shipment.folder) == {"configs/mine.yaml", "package/data/reader.py"}
    assert {".env", "deploy/server.pem", "credentials.json"} <= set(shipment.left_out)
    assert (shipment.num_files, shipment.num_bytes) == (2, 22)


def test_with_git_what_it_ignores_stays_and_secrets_stay_even_if_tracked(project: Path, tmp_path: Path) -> None:
    (project / ".gitignore").write_text("/data/\n/runs/\n.venv/\n__pycache__/\n*.db\n*.yaml\n")
    (project / "untracked.py").write_text("y = 2")
    _git(project, "init")
    _git(project, "add", "--force", "configs/mine.yaml", ".env", ".aws/config", "package/data/reader.py")
    shipment = stage(project, tmp_path / "copy")
    # configs/mine.yaml is ignored but tracked: it travels, and no .gitignore that would make Ray drop it.
    assert _files(shipment.folder) == {"configs/mine.yaml", "package/data/reader.py", "untracked.py"}
    left_out = {".env", ".aws/config", "deploy/server.pem", "deploy/.kube/config", "credentials.json"}
    assert set(shipment.left_out) == left_out


def test_a_tracked_file_that_was_deleted_is_no_error(project: Path, tmp_path: Path) -> None:
    _git(project, "init")
    _git(project, "add", "configs/mine.yaml", "package/data/reader.py")
    (project / "package/data/reader.py").unlink()
    assert "package/data/reader.py" not in _files(stage(project, tmp_path / "copy", ["data/*", "runs/*"]).folder)


def test_a_file_that_vanishes_meanwhile_is_no_error(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working_directory, "_check_size", lambda root, _: (root / "package/data/reader.py").unlink())
    shipment = stage(project, tmp_path / "copy")
    assert _files(shipment.folder) == {"configs/mine.yaml"}
    assert (shipment.num_files, shipment.num_bytes) == (1, 17)


def test_a_folder_is_excluded_by_its_name_and_files_by_a_pattern(project: Path, tmp_path: Path) -> None:
    (project / "notebooks/deep").mkdir(parents=True)
    (project / "notebooks/deep/look.py").write_text("z = 3")
    (project / "notebooks2.py").write_text("z = 4")
    for number, patterns in enumerate((["notebooks"], ["notebooks/"], ["notebooks/*"])):
        shipped = _files(stage(project, tmp_path / f"copy{number}", patterns).folder)
        assert shipped == {"configs/mine.yaml", "package/data/reader.py", "notebooks2.py"}
    assert _files(stage(project, tmp_path / "last", ["*.py"]).folder) == {"configs/mine.yaml"}


@pytest.mark.parametrize("with_git", [False, True])
def test_what_git_names_as_one_is_said_to_be_left_out(project: Path, tmp_path: Path, with_git: bool) -> None:
    (project / "link").symlink_to(project / "configs")
    expected = {"link"}
    if with_git:
        (project / "module").mkdir()
        (project / "module/code.py").write_text("a = 1")
        _git(project / "module", "init")
        _git(project, "init")
        expected.add("module")
    assert expected <= set(stage(project, tmp_path / "copy").left_out)


def test_credentials_in_a_file_are_refused_by_its_name(project: Path, tmp_path: Path) -> None:
    (project / "package/upload.py").write_text(f"key = '{AWS_KEY}'")
    with pytest.raises(LaunchError, match=r"package/upload\.py \(AWS access key\)") as refused:
        stage(project, tmp_path / "copy")
    assert AWS_KEY not in str(refused.value)
    assert not (tmp_path / "copy").exists()
    stage(project, tmp_path / "copy", ["package/upload.py"])


def test_links_that_lead_out_are_left_out(project: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("mine")
    (project / "outside").symlink_to(tmp_path / "outside.txt")
    (project / "inside").symlink_to(project / "configs/mine.yaml")
    shipment = stage(project, tmp_path / "copy")
    assert "outside" in shipment.left_out
    assert (shipment.folder / "inside").read_text() == "train: {steps: 1}"
    assert not (shipment.folder / "inside").is_symlink()


def test_too_much_is_refused_with_the_largest(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working_directory, "LIMIT_BYTES", 1_000_000)
    (project / "package/weights.bin").write_bytes(bytes(2_000_000))
    with pytest.raises(LaunchError, match=r"package/weights\.bin \(2 MB\), configs/mine\.yaml"):
        stage(project, tmp_path / "copy")
    with pytest.raises(LaunchError, match="no folder"):
        stage(project / "missing", tmp_path / "copy")


def test_this_repository_can_be_shipped(tmp_path: Path) -> None:
    shipment = stage(Path(__file__).parents[3], tmp_path / "copy")
    assert {"configs/quickstart.yaml", "dmlscale/data/reader.py"} <= _files(shipment.folder)
    assert shipment.num_bytes < 30e6
