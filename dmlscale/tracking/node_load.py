"""Load of all machines of a run: the first rank of each keeps its newest sample in a file, and rank 0 reads them.

Nobody waits for anybody: a node that is lost, or cannot write, gives no more points, and holds up neither a step nor
the samples of the others. The files are those of one start of the workers, so that those of an earlier one that live
on, cut off, are not read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dmlscale.tracking.spools import FOLDER
from dmlscale.tracking.system import SystemSampler
from dmlscale.tracking.tracker import NullTracker, Status


def load_folder(run_folder: Path, attempt: int) -> Path:
    """Where the files are of the start of the workers with this number."""
    return run_folder / FOLDER / "load" / f"{attempt:06d}"


def first_ranks(hosts: Sequence[str]) -> dict[int, str]:
    """First rank of each machine -> name of the machine.

    Args:
        hosts: of each rank.
    """
    return {hosts.index(host): host for host in dict.fromkeys(hosts)}


def named_system(metrics: Mapping[str, float], machine: str = "") -> dict[str, float]:
    """A sample under MLflow's names: with that of the machine in runs on several.

    Args:
        metrics: by their names without `system/`.
        machine: name of it; empty where there is one only.
    """
    prefix = f"system/{machine}/" if machine else "system/"
    return {f"{prefix}{name}": value for name, value in metrics.items()}


class NodeLoad(NullTracker):
    """Records nothing but the load of its machine: for the first rank of each machine but rank 0's. `close` it.

    Args:
        folder: from `load_folder`.
        rank: of this process.
        interval_s: seconds between samples.
    """

    def __init__(self, folder: Path, rank: int, *, interval_s: float = 5.0) -> None:
        self._file = _file_of(folder, rank)
        self._number = 0
        self._has_folder = False
        self._sampler = SystemSampler(self._write, interval_s=interval_s)

    def finish(self, status: Status = "FINISHED", reason: str = "") -> int:
        """See `Tracker`."""
        return self.close()

    def close(self) -> int:
        """Ends the sampling."""
        self._sampler.stop()
        return 0

    def _write(self, metrics: Mapping[str, float]) -> None:
        self._number += 1
        partial = self._file.with_suffix(".partial")
        with suppress(OSError):  # a disk that is full now need not be at the next sample
            if not self._has_folder:  # once: one that is gone again was removed by a later start
                partial.parent.mkdir(parents=True, exist_ok=True)
                self._has_folder = True
            partial.write_text(json.dumps({"number": self._number, "metrics": dict(metrics)}))
            partial.replace(self._file)


class NodeLoads:
    """Rank 0's side: the names of all machines' samples, as MLflow itself gives them to runs on several.

    Args:
        folder: from `load_folder`. Those of earlier starts of the workers are removed.
        hosts: of each rank.
    """

    def __init__(self, folder: Path, hosts: Sequence[str]) -> None:
        (_, self._own), *others = first_ranks(hosts).items()
        self._others = {_file_of(folder, rank): host for rank, host in others}
        self._numbers: dict[Path, int] = {}
        for old in folder.parent.glob("[0-9]*"):
            if old.name < folder.name:
                shutil.rmtree(old, ignore_errors=True)

    def named(self, own: Mapping[str, float]) -> dict[str, float]:
        """What there is to record: `system/<metric>`, on several machines `system/<machine>/<metric>`.

        Args:
            own: a sample of this machine.

        Returns:
            It, and the newest sample of each other machine that has not been read yet.
        """
        if not self._others:
            return named_system(own)
        named = named_system(own, self._own)
        for file, host in self._others.items():
            named |= named_system(self._unread(file), host)
        return named

    def _unread(self, file: Path) -> dict[str, float]:
        try:
            said = json.loads(file.read_text())
            number = int(said["number"])
            metrics = {name: float(value) for name, value in dict(said["metrics"]).items()}
        except (OSError, ValueError, KeyError, TypeError):  # not there yet, or damaged
            return {}
        if number == self._numbers.get(file):
            return {}
        self._numbers[file] = number
        return metrics


def _file_of(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.json"
