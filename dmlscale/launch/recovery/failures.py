"""What made the workers end, and whether starting them again can help.

Errors are told by their names and words, not by their classes: those of Ray are none of this file's business, and some
come from C++ as a bare RuntimeError.

When one rank dies, the others fail too, in the collective that they share with it. So what is reported is the first
cause: a rank's own error before a rank that is lost, and that before connections that broke. Of these
the rank is named that they led to.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from dmlscale.launch.recovery.out_of_memory import is_out_of_memory
from dmlscale.launch.recovery.roster import Place

Kind = Literal["lost", "broken_connection", "lasting", "out_of_memory"]

# Processes, nodes and Ray's own parts that are gone, or never came.
_LOST_NAMES = {
    "RayActorError", "NodeDiedError", "WorkerCrashedError", "LocalRayletDiedError", "ObjectLostError", "RpcError",
    "WorkerHealthCheckTimeoutError", "WorkerGroupStartupFailedError", "CollectiveTimeoutError", "PreemptionError",
    "ActorPlacementGroupRemoved", "TaskPlacementGroupRemoved", "RaySystemError", "GetTimeoutError", "OutOfMemoryError",
    # A transfer that may go better later; what is lasting there is a DataError of another class.
    "TransferError", "ShardError",
}  # fmt: skip
# What a worker's machine lacks, which Ray calls an error of its own system where it unpacks what the worker is to do.
_IMPORT_WORDS = re.compile(r"\b(ModuleNotFoundError|ImportError|No module named)\b")
# What healthy ranks see of it.
_CONNECTION_NAMES = {"DistBackendError", "DistNetworkError", "DistStoreError", "ConnectionError", "TimeoutError"}
_CONNECTION_WORDS = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused|aborted)|broken pipe|socket|timed out|process group|TCPStore",
    re.I,
)
# Of hardware rather than of the program. An illegal address or an assertion on the device is the program's own.
_DEVICE_WORDS = re.compile(
    r"uncorrectable (ECC|NVLink)|NVLink error|fallen off the bus|GPU is lost|unspecified launch failure|"
    r"CUDNN_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)|CUBLAS_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)",
    re.I,
)
# A disk or a server of files that may be back in a minute. A full disk, missing rights or a missing file will not mend
# themselves by a new start, so all other numbers are lasting.
_PASSING_NUMBERS = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN,
    errno.ENETUNREACH, errno.ENETRESET, errno.ENOTCONN, errno.ENOLINK,
}  # fmt: skip
_WRAPPERS = ("health_check_failure", "controller_failure", "cause", "_base_exc")
_NODE_WORDS = re.compile(
    r"node (\(.*?\) )?(has )?(died|was (terminated|dead|killed))|node (failure|is dead)|its node", re.I
)
_MEMORY_WORDS = re.compile(r"running low on memory|memory (usage )?threshold", re.I)
# The other end of a connection, as gloo ("[10.0.0.1]:41282") and NCCL ("peer n1<41282>") write it.
_PEER = re.compile(r"\[(?:::ffff:)?([0-9a-fA-F.:]*[.:][0-9a-fA-F.:]+)\]:\d+|peer ([\w.:-]+)<\d+>")
# Of gloo's text: where in its source, and what it says whatever has happened.
_NOISE = re.compile(r"\[\S*\.(?:cc|cpp|h|hpp):\d+\] ?|\. This (?:is typically|may indicate) .*")
_LONGEST_ERROR = 500
_KILLED = "was killed (SIGKILL?)"


@dataclass(frozen=True)
class Note:
    """What a rank's watch wrote before it ended the process.

    Args:
        rank: that wrote it.
        kind: lost, stalled, superseded or failed.
        message: one line, with ranks, host and step.
    """

    rank: int
    kind: str
    message: str


@dataclass(frozen=True)
class Failure:
    """Why the workers ended.

    Args:
        kind: lost: a new start can help; out_of_memory and lasting: it cannot.
        what: one line, for a person.
        errors: first line of the error of each rank that is the cause.
        is_for_memory: lost because a machine had too little memory.
        tells_step: whether ``what`` names the step already.
    """

    kind: Literal["lost", "lasting", "out_of_memory"]
    what: str
    errors: Mapping[int, str]
    is_for_memory: bool = False
    tells_step: bool = False

    @property
    def is_worth_a_restart(self) -> bool:
        """Whether a new start can help."""
        return self.kind == "lost"


def classify(
    errors: Mapping[int, BaseException],
    places: Mapping[int, Place],
    notes: Sequence[Note] = (),
    *,
    memory_kills: Mapping[str, int] | None = None,
) -> Failure:
    """The first cause among the errors of one start of the workers.

    Args:
        errors: by rank; at least one.
        places: of the workers that had begun.
        notes: of their watches.
        memory_kills: of hosts that could be asked, how often their kernel has ended a process for want of memory.
    """
    causes = {rank: unwrapped(error) for rank, error in sorted(errors.items())}
    kinds = {rank: kind_of(error) for rank, error in causes.items()}
    for kind in ("out_of_memory", "lasting"):
        own = [rank for rank in causes if kinds[rank] == kind]
        if own:
            told = {rank: first_line(causes[rank]) for rank in own}
            return Failure(kind, f"{_ranks(own, places)}: {told[own[0]]}", told)
    # On both sides of a cut network ranks take those beyond for lost: those are right of whose end we have heard.
    by_kind = {kind: [note for note in notes if note.kind == kind] for kind in ("superseded", "failed")}
    found = [note for note in notes if note.kind not in by_kind]
    first = min(found, key=lambda note: (note.rank not in errors, note.rank), default=None)
    if first is not None:
        return Failure("lost", first.message, {first.rank: first.message}, tells_step=True)
    if by_kind["superseded"]:
        said = "another start of this run's workers has taken its place"
        told = {note.rank: note.message for note in by_kind["superseded"]}
        return Failure("lasting", said, told, tells_step=True)
    # Whoever has left a note was ended by its own watch, which Ray takes for a death like any other.
    noted = {note.rank for note in by_kind["failed"]}
    lost = {rank: error for rank, error in causes.items() if kinds[rank] == "lost" and rank not in noted}
    if lost:
        return _of_lost(lost, places, memory_kills or {})
    broken = {rank: error for rank, error in causes.items() if kinds[rank] == "broken_connection"}
    if by_kind["failed"] and not broken:
        said = min(by_kind["failed"], key=lambda note: note.rank).message
        return Failure("lost", said, {note.rank: note.message for note in by_kind["failed"]}, tells_step=True)
    what = _of_connection(broken, noted, places)
    return Failure("lost", what, {rank: first_line(error) for rank, error in broken.items()})


def unwrapped(error: BaseException) -> BaseException:
    """The error itself, out of all that Ray wraps around it."""
    while inner := next((e for name in _WRAPPERS if isinstance(e := getattr(error, name, None), BaseException)), None):
        error = inner
    return error


def kind_of(error: BaseException) -> Kind:
    """What one error is by itself."""
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    if is_out_of_memory(error):
        return "out_of_memory"
    if "RaySystemError" in names and _IMPORT_WORDS.search(text):
        return "lasting"
    if names & _LOST_NAMES:
        return "lost"
    if names & _CONNECTION_NAMES:
        return "broken_connection"
    if isinstance(error, OSError) and error.errno in _PASSING_NUMBERS:
        return "lost"
    if isinstance(error, RuntimeError) and not type(error).__module__.startswith("dmlscale."):
        if _DEVICE_WORDS.search(text):
            return "lost"
        if _CONNECTION_WORDS.search(text):
            return "broken_connection"
    return "lasting"


def hosts_of_killed(errors: Mapping[int, BaseException], places: Mapping[int, Place]) -> set[str]:
    """Machines of workers that ended without a word: there the kernel may tell why, for ``memory_kills``."""
    killed = {rank for rank, error in errors.items() if _word(unwrapped(error), None, {}) == _KILLED}
    return {place.host for rank, place in places.items() if rank in killed}


def first_line(error: BaseException) -> str:
    """Class and first line of the message, without what gloo puts around it."""
    line = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return _NOISE.sub("", line)[:_LONGEST_ERROR]


def _of_lost(
    causes: Mapping[int, BaseException], places: Mapping[int, Place], memory_kills: Mapping[str, int]
) -> Failure:
    by_word: dict[str, list[int]] = {}
    for rank, error in causes.items():
        by_word.setdefault(_word(error, places.get(rank), memory_kills), []).append(rank)
    what = "; ".join(_sentence(ranks, places, word) for word, ranks in by_word.items())
    told = {rank: first_line(error) for rank, error in causes.items()}
    return Failure("lost", what, told, is_for_memory=any("memory" in word for word in by_word))


def _sentence(ranks: Sequence[int], places: Mapping[int, Place], word: str) -> str:
    if len(ranks) > 1:
        word = word.replace("was ", "were ", 1).replace("its ", "their ", 1)
    return f"{_ranks(ranks, places)} {word}"


def _word(error: BaseException, place: Place | None, memory_kills: Mapping[str, int]) -> str:
    """What became of a rank, as the rest of a sentence."""
    names, text = {kind.__name__ for kind in type(error).__mro__}, str(error)
    if getattr(error, "preempted", False) or "PreemptionError" in names:
        return "was lost: its node was taken away (preemption)"
    if _MEMORY_WORDS.search(text) or "OutOfMemoryError" in names:
        return "was ended by Ray: its node ran low on memory"
    if place is not None and memory_kills.get(place.host, 0) > place.memory_kills:
        return "was killed, probably by the kernel: there was too little memory on its machine"
    if "NodeDiedError" in names or _NODE_WORDS.search(text):
        return "was lost: its node is gone"
    if "RayActorError" in names or "WorkerCrashedError" in names:
        return _KILLED
    return f"failed: {first_line(error)}"


def _of_connection(broken: Mapping[int, BaseException], noted: Set[int], places: Mapping[int, Place]) -> str:
    """All that the healthy ranks know: with whom they can no longer talk. Those that have left a note are healthy."""
    ends = {end for rank, error in broken.items() for end in _other_ends(error, places.get(rank))}
    beyond = [rank for rank, place in places.items() if ends & {place.address, place.host}]
    silent = [rank for rank in beyond if rank not in broken and rank not in noted]
    who = _ranks(broken, places)
    if len(silent) == 1 and broken.keys() <= places.keys():
        return f"{_ranks(silent, places)} was lost: {who} lost the connection to it"
    hosts = {place.address: place.host for place in places.values()}
    where = f" to {', '.join(sorted({hosts.get(end, end) for end in ends}))}" if len(set(hosts.values())) > 1 else ""
    whose = f" ({_ranks(silent, {})})" if silent and where else ""
    return f"{who} lost the connection{where if ends else ''}{whose}: {first_line(next(iter(broken.values())))}"


def _other_ends(error: BaseException, here: Place | None) -> set[str]:
    """Addresses or hosts in the error's text, but for this rank's own where there are others."""
    ends = {address or host for address, host in _PEER.findall(str(error))}
    others = ends - ({here.address, here.host} if here is not None else set())
    return others or ends


def _ranks(ranks: Iterable[int], places: Mapping[int, Place]) -> str:
    """E.g. "ranks 2, 3 on n1"; "the workers" for an error of Ray's controller, which has no rank."""
    known = [rank for rank in ranks if rank >= 0]
    if not known:
        return "the workers"
    hosts = sorted({places[rank].host for rank in known if rank in places})
    where = f" on {', '.join(hosts)}" if hosts else ""
    shown = ", ".join(map(str, known[:8])) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
    return f"rank{'s' if len(known) > 1 else ''} {shown}{where}"
