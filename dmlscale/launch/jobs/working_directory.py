"""What of the working directory is shipped: the code and the configs, no results, no data, and no secrets."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dmlscale.config.secrets import secrets_in_text
from dmlscale.launch.errors import LaunchError

LIMIT_BYTES = 100_000_000
# Where there is no git to ask. Of the whole tree:
_GENERATED = ("__pycache__", "node_modules", "venv", "*.egg-info", "*.pyc")
# Of its first level: a package may well be named data.
_RESULTS = ("data", "runs", "mlruns", "mlartifacts", "mlflow.db*", "build", "dist")
_SECRET_FILES = (
    *(".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "id_rsa*", "id_dsa*", "id_ecdsa*"),
    *("id_ed25519*", ".netrc", "_netrc", ".pgpass", ".pypirc", ".git-credentials", ".htpasswd", "auth_token"),
    *("credentials", "credentials.*", "credentials-*", "secrets.y*ml", "secrets.json", "secrets.toml", "kubeconfig*"),
)
_SECRET_FOLDERS = (".aws", ".azure", ".kube", ".ssh", ".gnupg", ".docker", "gcloud", ".secrets")


@dataclass(frozen=True)
class Shipment:
    """A clean copy of a working directory.

    Args:
        folder: the copy.
        num_files: in it.
        num_bytes: of them together.
        left_out: paths that look like secrets, links that lead out or to a folder, and repositories of their own
            (submodules); relative to the working directory.
    """

    folder: Path
    num_files: int
    num_bytes: int
    left_out: tuple[str, ...]


def stage(working_dir: Path, into: Path, exclude: Sequence[str] = ()) -> Shipment:
    """Copies what a job needs.

    In a git work tree these are the tracked files and those that git does not ignore; elsewhere all but hidden
    folders, environments, caches and, on the first level, results and data. Others may work in the folder meanwhile:
    a file that vanishes is left out.

    Args:
        working_dir: to copy from.
        into: folder that is empty or not there.
        exclude: patterns of paths relative to ``working_dir`` that are left out, as ``notebooks`` with all in it, or
            ``*.ipynb``.

    Raises:
        LaunchError: it is no folder, holds credentials, or is too large; with the files.
    """
    if not working_dir.is_dir():
        raise LaunchError(f"--working-dir {working_dir} is no folder")
    root = working_dir.resolve()
    paths, left_out = [], []
    for path in sorted(_candidates(root)):
        text = path.as_posix()
        # Ray would follow .gitignore once more, and drop files that are tracked in spite of it.
        if _is_excluded(path, exclude) or path.name == ".gitignore":
            continue
        # git names a submodule, and a link to a folder, as if they were files.
        if _names_secret(path) or not (root / path).resolve().is_relative_to(root) or (root / path).is_dir():
            left_out.append(text)
        elif (root / path).is_file():
            paths.append(path)
    _check_size(root, paths)
    _check_content(root, paths)
    into.mkdir(parents=True, exist_ok=True)
    sizes = []
    for path in paths:
        (into / path.parent).mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            shutil.copy2(root / path, into / path)
            sizes.append((into / path).stat().st_size)
    return Shipment(into, len(sizes), sum(sizes), tuple(left_out))


def _candidates(root: Path) -> Iterator[Path]:
    """Relative paths of files and links."""
    listing = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(listing, capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        yield from _walk(root)
        return
    yield from (Path(name.decode()) for name in set(done.stdout.split(b"\0")) if name)


def _walk(root: Path) -> Iterator[Path]:
    for name_of_folder, folders, files in os.walk(root):
        folder = Path(name_of_folder)
        skipped = _GENERATED + (_RESULTS if folder == root else ())
        links = [name for name in folders if (folder / name).is_symlink()]
        folders[:] = [name for name in folders if not name.startswith(".") and not _matches(name, skipped)]
        yield from ((folder / name).relative_to(root) for name in [*files, *links] if not _matches(name, skipped))


def _is_excluded(path: Path, exclude: Sequence[str]) -> bool:
    """Whether a pattern fits the path or a folder that it lies in."""
    places = [place.as_posix() for place in (path, *path.parents[:-1])]
    return any(fnmatch.fnmatchcase(place, pattern.rstrip("/")) for place in places for pattern in exclude)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in patterns)


def _names_secret(path: Path) -> bool:
    return _matches(path.name, _SECRET_FILES) or any(_matches(part, _SECRET_FOLDERS) for part in path.parts[:-1])


def _check_size(root: Path, paths: Sequence[Path]) -> None:
    sizes = {}
    for path in paths:
        with suppress(FileNotFoundError):
            sizes[path] = (root / path).stat().st_size
    total = sum(sizes.values())
    if total <= LIMIT_BYTES:
        return
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:5]
    listed = ", ".join(f"{path} ({sizes[path] / 1e6:.3g} MB)" for path in largest)
    raise LaunchError(
        f"the working directory {root} has {total / 1e6:.4g} MB to ship, more than {LIMIT_BYTES / 1e6:g}: data belongs "
        f"on storage that the nodes share. The largest: {listed}; leave files out by .gitignore or --exclude 'PATTERN'"
    )


def _check_content(root: Path, paths: Sequence[Path]) -> None:
    found = []
    for path in paths:
        try:
            content = (root / path).read_bytes()
        except FileNotFoundError:
            continue
        if b"\0" in content[:8192]:
            continue  # no text
        kinds = secrets_in_text(content.decode(errors="replace"))
        if kinds:
            found.append(f"{path} ({', '.join(kinds)})")
    if found:
        raise LaunchError(
            f"files hold what looks like credentials, and a job's files can be read on every node: {'; '.join(found)}. "
            "Move them out of the working directory, or leave the files out by --exclude 'PATTERN'"
        )
