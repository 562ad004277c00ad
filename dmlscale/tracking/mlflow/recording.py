"""A run from its start to its end: what is written down, and when it is sent."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mlflow.exceptions import MlflowException

from dmlscale.redaction import shown
from dmlscale.tracking.mlflow.receiver import Receiver
from dmlscale.tracking.mlflow.runs import (
    DatasetNote,
    TrackingDeniedError,
    TrackingUnreachableError,
    require_reachable,
    start_recorded,
)
from dmlscale.tracking.run_file import forget_other_store, known_run
from dmlscale.tracking.sender import RECORDS_PER_BATCH, ReceiverLostAllError, Say, first_line, log_it
from dmlscale.tracking.spooled import SpooledTracker
from dmlscale.tracking.spools import Spools, adopt_old_layout, first_start, num_undelivered, read_all
from dmlscale.tracking.tracker import Status

# A file of a run is tried three times before it is left out.
_MOST_FAILURES, _PAUSE_S = 4, 0.5


class Delivery(NamedTuple):
    """What became of records."""

    sent: int
    left: int
    problem: str  # why some are left; empty if none are


class MlflowTracker(SpooledTracker):
    """The `Tracker` of a run that `begin_run` has begun, for rank 0: see `SpooledTracker` for its further options.

    Args:
        uri: the store.
        run_folder: of the run.
    """

    def __init__(self, uri: str, run_folder: Path, **options: Any) -> None:
        super().__init__(Receiver(uri, run_folder).deliver, Spools(run_folder), **options)


def begin_run(
    uri: str,
    run_folder: Path,
    experiment: str,
    run_name: str,
    *,
    tags: Mapping[str, Any],
    params: Mapping[str, Any],
    description: str = "",
    datasets: Sequence[DatasetNote] = (),
    if_unreachable: Literal["fail", "continue"] = "fail",
    say: Say = log_it,
) -> str:
    """Makes the run of a folder, or continues it; for the driver, before the workers start.

    Args:
        uri: the store, as from `resolve_uri`. If the run was recorded in another one before, it is sent to this one
            from its beginning.
        run_folder: of the run, by which it is found again.
        experiment: see `start_or_continue`, as for the others.
        run_name: of a new run.
        tags: set again on a continued run.
        params: settings by dotted name.
        description: Markdown.
        datasets: what it is trained and evaluated on.
        if_unreachable: "continue" writes down what the run is; it is made once the store is there.
        say: who is told that the run goes on without its store.

    Returns:
        The id of the run; empty if the store has not made it yet.

    Raises:
        TrackingUnreachableError: no answer, and the run shall fail then.
        TrackingDeniedError: no right to write there.
        ValueError: the experiment has been deleted.
    """
    start = {
        "kind": "start",
        "store": uri,
        "experiment": experiment,
        "run_name": run_name,
        "key": str(run_folder),
        "tags": {name: str(value) for name, value in tags.items()},
        "params": {name: str(value) for name, value in params.items()},
        "description": description,
        "datasets": [
            [*note[:3], json.loads(json.dumps(note.description, default=str)), note.context] for note in datasets
        ],
        "time_ms": _began_ms(run_folder) or time.time_ns() // 1_000_000,
    }
    is_there = True
    try:
        start_recorded(uri, run_folder, start)
    except TrackingUnreachableError as error:
        if if_unreachable == "fail":
            advice = (
                ", or train without it: tracking.if_unreachable=continue keeps all on disk, `dmlscale sync` sends it"
            )
            raise TrackingUnreachableError(error.uri, error.reason, advice=advice) from error
        is_there = False
        forget_other_store(run_folder, uri)
        say(
            fault=f"tracking: the store {shown(uri)} cannot be reached ({shown(error.reason)}): the training goes on, "
            "and what it records waits on disk"
        )
    with Spools(run_folder, starts=True) as spools:
        spools.own.append([start])
        if is_there:
            spools.own.confirm(spools.own.pending(1)[0])
        spools.note_away(not is_there)
    known = known_run(run_folder)
    return "" if known is None else known.run_id


def end_run(uri: str, run_folder: Path, status: Status, reason: str = "") -> Delivery:
    """Says how a run ended whose workers did not say it, and sends what they left, if the store is there.

    Args:
        uri: the store.
        run_folder: of the run.
        status: how it ended.
        reason: why.
    """
    end = {"kind": "status", "status": status, "reason": shown(reason), "time_ms": time.time_ns() // 1_000_000}
    with Spools(run_folder) as spools:
        spools.own.append([end])
        return _deliver(spools, uri, run_folder)


def send_rest(uri: str, run_folder: Path, *, parents: Mapping[str, str] | None = None) -> Delivery:
    """Sends what the folder of a run holds that its store lacks. Nobody may train there.

    A run that did not say how it ended is KILLED then: its processes are gone. One that is continued is RUNNING again.

    Args:
        uri: the store. If the run was recorded in another one before, it gets the run from its beginning, but for the
            files that were large.
        run_folder: of the run.
        parents: id of a parent run in another store -> its id in this one.
    """
    adopt_old_layout(run_folder)
    known = known_run(run_folder)
    if known is not None and known.uri != uri:
        problem = _problem(uri)
        if problem:  # such as a typing error: the run keeps the store that it has
            return Delivery(0, num_undelivered(run_folder), problem)
        forget_other_store(run_folder, uri)
    with Spools(run_folder) as spools:
        if last_status(run_folder) == "":
            reason = "ended without a word: its processes are gone"
            spools.own.append(
                [{"kind": "status", "status": "KILLED", "reason": reason, "time_ms": _last_ms(run_folder)}]
            )
        return _deliver(spools, uri, run_folder, parents)


def is_delivered(uri: str, run_folder: Path) -> bool:
    """Whether a store has confirmed all of a run that has ended. The store is not asked."""
    known = known_run(run_folder)
    if known is None or known.uri != uri or num_undelivered(run_folder):
        return False
    return last_status(run_folder) != ""


def last_status(run_folder: Path) -> str:
    """How the run said that it ended; empty if it did not, or has been continued since."""
    status = ""
    for fields in read_all(run_folder, but_metrics=True):
        if fields["kind"] in ("start", "status"):
            status = str(fields.get("status", ""))
    return status


def recorded_store(run_folder: Path) -> str:
    """The store that the run was begun with the last time; empty where nobody wrote that down."""
    store = ""
    for fields in read_all(run_folder, but_metrics=True):
        store = str(fields.get("store", store))
    return store


def _deliver(spools: Spools, uri: str, run_folder: Path, parents: Mapping[str, str] | None = None) -> Delivery:
    """Everything, in this thread; gives up when the store has failed some times without a record arriving."""
    receiver = Receiver(uri, run_folder, parents=parents)
    num_before, problem, failures = spools.num_pending, "", 0
    try:
        require_reachable(uri)
        if known_run(run_folder) is None:
            start_recorded(uri, run_folder, first_start(run_folder), parents=parents)
        receiver.open()
    except ReceiverLostAllError:
        spools.rewind()
        num_before = spools.num_pending
    except (TrackingUnreachableError, TrackingDeniedError, MlflowException, ValueError, LookupError) as error:
        return Delivery(0, num_before, first_line(error))
    while spools.num_pending and failures < _MOST_FAILURES:
        records = spools.pending(RECORDS_PER_BATCH)
        if not spools.is_current():
            problem = "another process goes on with this run"
            break
        try:
            receiver.deliver(records)
        except ReceiverLostAllError:
            spools.rewind()
            num_before = spools.num_pending
            continue
        except Exception as error:  # whatever is wrong with the store: the records stay
            problem, failures = first_line(error), failures + 1
            time.sleep(_PAUSE_S)
            continue
        spools.confirm(records[-1])
        problem, failures = "", 0
    spools.note_away(bool(problem) and spools.is_known_away())
    return Delivery(num_before - spools.num_pending, spools.num_pending, problem)


def _problem(uri: str) -> str:
    """Why a store cannot be used; empty if it can."""
    try:
        require_reachable(uri)
    except (TrackingUnreachableError, TrackingDeniedError) as error:
        return first_line(error)
    return ""


def _began_ms(run_folder: Path) -> int | None:
    try:
        return int(first_start(run_folder)["time_ms"])
    except LookupError:
        return None


def _last_ms(run_folder: Path) -> int:
    return max((int(fields["time_ms"]) for fields in read_all(run_folder) if "time_ms" in fields), default=0)
