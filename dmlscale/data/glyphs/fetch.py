"""Fetches the Debian packages that hold the fonts of the source ``han``.

Run:  python -m dmlscale.data.glyphs.fetch data/han-fonts          # the default set
      python -m dmlscale.data.glyphs.fetch data/han-fonts --all    # every known design

Nothing is installed and no rights of root are needed: packages are downloaded with apt-get, which checks them, and the
fonts are taken out. What is there already is not fetched again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from dmlscale.data.errors import DataError
from dmlscale.data.glyphs.designs import known_designs

_TOOLS = ("apt-get", "dpkg-deb")


def packages_to_fetch(everything: bool) -> dict[str, frozenset[str]]:
    """Names of the font files to take from each package, by package."""
    wanted: dict[str, set[str]] = {}
    for design in known_designs().values():
        if everything or design.is_default:
            for file in design.files:
                wanted.setdefault(file.package, set()).add(file.name)
    return {package: frozenset(names) for package, names in sorted(wanted.items())}


def fetch(folder: Path, everything: bool = False) -> dict[str, str]:
    """Put each package's fonts and its licence into a folder of its name under ``folder``.

    Args:
        folder: made if missing; packages that are in it are left alone.
        everything: all packages of the table, not only those of the default set.

    Returns:
        What went wrong, by package; empty where all went well. The others are there then.

    Raises:
        DataError: there is no apt-get here, or ``folder`` cannot be written.
    """
    missing_tools = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing_tools:
        raise DataError(
            f"{missing_tools[0]} is not on this machine: fonts are fetched on Debian or Ubuntu. Elsewhere, put "
            f"the font files of these packages into {folder} by hand: {', '.join(packages_to_fetch(everything))}"
        )
    failures = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for package, names in packages_to_fetch(everything).items():
            if (folder / package).is_dir():
                continue
            print(f"fetching {package}", flush=True)
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as scratch:
                problem = _fetch_package(package, names, Path(scratch))
                if problem:
                    failures[package] = problem
                else:
                    (Path(scratch) / package).replace(folder / package)
    except OSError as error:
        raise DataError(f"cannot write to {folder} ({error.strerror or error}): choose another folder") from None
    return failures


def _fetch_package(package: str, names: Iterable[str], scratch: Path) -> str:
    """Download and unpack into ``scratch / package``; what went wrong, or ""."""
    # apt-get gives up its rights as root, and would then complain that it may not write here.
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=", "download", package]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    archives = list(scratch.glob("*.deb"))
    if done.returncode or not archives:
        return done.stderr.strip() or "apt-get downloaded nothing"
    target = scratch / package
    target.mkdir()
    _take_files(archives[0], {*names, "copyright"}, target)
    lacking = sorted(name for name in names if not (target / name).is_file())
    return f"holds no {', '.join(lacking)} any more" if lacking else ""


def _take_files(archive: Path, names: set[str], target: Path) -> None:
    """Take the files called ``names`` out of a .deb, without their folders."""
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as tar,
    ):
        for member in tar:
            name = PurePosixPath(member.name).name
            content = tar.extractfile(member) if member.isfile() and name in names else None
            if content is not None:
                with (target / name).open("wb") as file:
                    shutil.copyfileobj(content, file)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dmlscale.data.glyphs.fetch", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="where the fonts go")
    parser.add_argument("--all", action="store_true", dest="everything", help="every known design (720 MB to download)")
    options = parser.parse_args(arguments)
    folder = options.folder.expanduser()
    try:
        failures = fetch(folder, options.everything)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    for package, problem in failures.items():
        print(f"{package}: {problem}", file=sys.stderr)
    wanted = packages_to_fetch(options.everything)
    print(f"{folder} holds the fonts of {len(wanted) - len(failures)} of {len(wanted)} packages")
    if failures:
        print(
            "For packages that apt does not know, `apt-get update` may help; the others can be used.", file=sys.stderr
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
