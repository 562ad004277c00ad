"""What the workers' errors are taken for: with the errors that torch, Ray and the system really raise."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
import ray.exceptions
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerHealthCheckFailedError

from dmlscale.data.errors import DataError
from dmlscale.data.storage.transfer_errors import TransferError
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.recovery.failures import Note, classify, kind_of
from dmlscale.launch.recovery.out_of_memory import is_on_device
from dmlscale.launch.recovery.roster import Place
from dmlscale.models.errors import ModelError
from dmlscale.training.checkpoint import CheckpointError
from dmlscale.training.loop import DivergedError

PLACES = {rank: Place(rank, f"n{rank // 2}", f"10.0.0.{rank // 2}", 100 + rank, 0) for rank in range(4)}
CLOSED = "[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.0.0.1]:41282"


def died(message: str, *, address: str = "10.0.0.1") -> WorkerHealthCheckFailedError:
    """As Ray Train hands on the death of an actor."""
    context = ActorDiedErrorContext(
        error_message=message, actor_id=b"0" * 16, class_name="RayTrainWorker", node_ip_address=address, pid=7
    )
    return WorkerHealthCheckFailedError("A worker health check failed.", ray.exceptions.ActorDiedError(context))


KILLED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed "
    "unexpectedly due to SIGSEGV or another unexpected error."
)
NODE_GONE = "The actor died because its node has died. Node Id: 7e3f\n\tthe actor's node was terminated unexpectedly"
LOW_MEMORY = "Task was killed due to the node running low on memory.\nMemory on the node was 23.1GB / 24.0GB (0.96)"


def _lose_a_peer(rank: int, store: str, errors: mp.SimpleQueue[bytes]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=20)
    )
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:
            dist.all_reduce(torch.zeros(1))
    except Exception as error:
        errors.put(pickle.dumps(error))


@pytest.fixture(scope="module")
def real_gloo_error(tmp_path_factory: pytest.TempPathFactory) -> BaseException:
    """What a healthy rank raises when the process of the other is killed."""
    context = mp.get_context("spawn")
    errors = context.SimpleQueue()
    store = str(tmp_path_factory.mktemp("gloo") / "store")
    processes = [context.Process(target=_lose_a_peer, args=(rank, store, errors)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    error = pickle.loads(errors.get())
    assert isinstance(error, BaseException)
    return error


def test_a_lost_peer_breaks_the_connection_of_the_healthy_rank(real_gloo_error: BaseException) -> None:
    assert kind_of(real_gloo_error) == "broken_connection"
    failure = classify({0: real_gloo_error}, PLACES)
    assert failure.is_worth_a_restart
    assert failure.what.startswith("rank 0 on n0 lost the connection")


def test_the_first_cause_is_told_and_not_what_followed(real_gloo_error: BaseException) -> None:
    killed = classify({0: real_gloo_error, 1: real_gloo_error, 2: died(KILLED), 3: real_gloo_error}, PLACES)
    assert killed.is_worth_a_restart
    assert killed.what == "rank 2 on n1 was killed (SIGKILL?)"
    assert set(killed.errors) == {2}
    own = classify({0: real_gloo_error, 2: died(KILLED), 3: DataError("x.tar is damaged")}, PLACES)
    assert own.kind == "lasting"
    assert own.what == "rank 3 on n1: DataError: x.tar is damaged"
    memory = classify({0: DataError("x.tar"), 1: torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")}, PLACES)
    assert memory.kind == "out_of_memory"
    assert set(memory.errors) == {1}


def test_all_ranks_of_a_lost_node_are_one_line() -> None:
    failure = classify({2: died(NODE_GONE), 3: died(NODE_GONE), 0: RuntimeError(CLOSED)}, PLACES)
    assert failure.what == "ranks 2, 3 on n1 were lost: their node is gone"
    both = classify({1: died(KILLED), 2: died(NODE_GONE)}, PLACES)
    assert both.what == "rank 1 on n0 was killed (SIGKILL?); rank 2 on n1 was lost: its node is gone"


def test_a_connection_names_the_host_at_its_other_end() -> None:
    failure = classify({0: RuntimeError(CLOSED), 1: RuntimeError(CLOSED)}, PLACES)
    assert failure.what.startswith("ranks 0, 1 on n0 lost the connection to n1 (ranks 2, 3): RuntimeError: ")


# As gloo says it to a healthy rank when the other's node is switched off.
RESET = (
    "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [{}]:1177: Connection reset by "
    "peer. This is typically caused by a remote worker hanging or bugs in the application. Check the logs of the "
    "remote worker before reporting an error. GLHF! \U0001f3d6\ufe0f"
)
ONE_EACH = {rank: Place(rank, f"n{rank}", f"10.77.0.1{rank}", 100, 0) for rank in range(3)}


@pytest.mark.parametrize(
    "text", [RESET.format("10.77.0.12"), RESET.format("::ffff:10.77.0.12"), "NCCL: closed by remote peer n2<41234>"]
)
def test_of_a_broken_connection_the_rank_is_named_that_is_gone(text: str) -> None:
    failure = classify({0: RuntimeError(text)}, ONE_EACH)
    assert failure.what == "rank 2 on n2 was lost: rank 0 on n0 lost the connection to it"
    # Another healthy rank has ended because the first did.
    both = classify({0: RuntimeError(text), 1: RuntimeError(RESET.format("10.77.0.10"))}, ONE_EACH)
    assert both.what == "rank 2 on n2 was lost: ranks 0, 1 on n0, n1 lost the connection to it"
    unknown = classify({0: RuntimeError(text)}, {2: ONE_EACH[2]})
    assert unknown.what.startswith("rank 0 lost the connection: RuntimeError: ")
    assert "GLHF" not in unknown.what
    assert "pair.cc" not in unknown.what


def test_the_address_of_ipv6_is_one_too() -> None:
    places = {rank: Place(rank, f"n{rank}", f"fd00::{rank}", 100, 0) for rank in range(3)}
    assert classify({1: RuntimeError(RESET.format("fd00::2"))}, places).what.startswith("rank 2 on n2 was lost: rank 1")


def test_a_rank_that_failed_for_its_connection_is_not_the_cause_for_those_that_were_told_of_it() -> None:
    """Their watches end them with its words, and Ray takes that for deaths."""
    said = f"rank 0 (n0, pid 9) failed at step 5, and the others wait for it: RuntimeError: {RESET}"
    notes = [Note(1, "failed", said)]
    broken = RuntimeError(RESET.format("10.77.0.12"))
    failure = classify({0: broken, 1: died(KILLED)}, ONE_EACH, notes)
    assert failure.what == "rank 2 on n2 was lost: rank 0 on n0 lost the connection to it"
    assert classify({0: broken, 2: died(KILLED)}, ONE_EACH, notes).what == "rank 2 on n2 was killed (SIGKILL?)"
    alone = classify({1: died(KILLED)}, ONE_EACH, notes)
    assert alone.what == said
    assert alone.tells_step


def test_an_error_of_no_rank_is_told_of_the_workers() -> None:
    early = ControllerError(WorkerGroupStartupFailedError("a worker died while it started"))
    assert classify({-1: early}, {}).what.startswith("the workers failed: WorkerGroupStartupFailedError: a worker died")
    assert classify({-1: TypeError("no")}, {}).what == "the workers: TypeError: no"


def test_what_a_watch_has_found_comes_before_deaths() -> None:
    said = "rank 1 (n0, pid 101) has not been heard from for 60 s, last at step 57 (step): it is taken for lost"
    notes = [Note(2, "lost", "the same, later"), Note(0, "lost", said)]
    failure = classify({0: died(KILLED), 2: died(KILLED)}, PLACES, notes)
    assert failure.is_worth_a_restart
    assert failure.what == said
    assert failure.tells_step
    assert classify({0: TypeError("no")}, PLACES, notes).kind == "lasting"


def test_of_the_two_sides_of_a_cut_network_the_near_one_is_believed() -> None:
    near, far = Note(1, "lost", "rank 0 (n0) is lost"), Note(0, "lost", "rank 1 (n1) is lost")
    assert classify({1: died(KILLED)}, PLACES, [far, near]).what == near.message


def test_workers_of_an_earlier_start_do_not_come_back() -> None:
    failure = classify({0: died(KILLED)}, PLACES, [Note(0, "superseded", "attempt 3 has begun")])
    assert not failure.is_worth_a_restart


def test_a_machine_without_memory_is_told() -> None:
    by_ray = classify({2: died(LOW_MEMORY)}, PLACES)
    assert by_ray.is_worth_a_restart  # others may have filled it
    assert by_ray.is_for_memory
    assert "rank 2 on n1 was ended by Ray: its node ran low on memory" in by_ray.what
    by_kernel = classify({2: died(KILLED)}, PLACES, memory_kills={"n1": 1})
    assert by_kernel.is_for_memory
    assert "probably by the kernel" in by_kernel.what
    assert not classify({2: died(KILLED)}, PLACES, memory_kills={"n0": 1, "n1": 0}).is_for_memory


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.NodeDiedError("n1"),
        ray.exceptions.ActorUnavailableError("RPC failed", b"0" * 16),
        ray.exceptions.WorkerCrashedError(),
        ray.exceptions.OutOfMemoryError(LOW_MEMORY),
        ControllerError(WorkerGroupStartupFailedError("a worker died while it started")),
        TransferError("the server answers 503"),
        OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
        OSError(errno.EIO, os.strerror(errno.EIO)),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        dist.DistNetworkError("The client socket has timed out after 60000ms"),
        dist.DistBackendError("NCCL error: remote process exited"),
        RuntimeError("[../gloo/gloo/transport/tcp/buffer.cc:71] Timed out waiting 1800000ms for recv"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_new_start_can_help(error: Exception) -> None:
    failure = classify({-1: error}, {})
    assert failure.is_worth_a_restart
    assert "\n" not in failure.what


@pytest.mark.parametrize(
    "error",
    [
        DataError("x.tar is damaged"),
        CheckpointError("no tensor 'model.x'"),
        LaunchError("timed out, says our own error"),
        ModelError("unknown backbone"),
        DivergedError("the loss is nan"),
        TypeError("unsupported operand"),
        KeyError("x"),
        AssertionError(),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
        RuntimeError("CUDA error: device-side assert triggered"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_new_start_cannot_help(error: Exception) -> None:
    failure = classify({0: RuntimeError(CLOSED), 1: error}, PLACES)
    assert failure.kind == "lasting"
    assert set(failure.errors) == {1}


_FILL = """
import pickle, resource, sys
import torch
torch.zeros(1)
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
try:
    {allocate}
except BaseException as error:
    sys.stdout.buffer.write(pickle.dumps(error))
"""


@pytest.mark.parametrize("allocate", ["torch.empty(2**33)", "bytearray(2**33)", "__import__('numpy').ones(2**33)"])
def test_a_real_failure_to_allocate_is_told(allocate: str) -> None:
    script = _FILL.format(allocate=allocate)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=200)
    error = pickle.loads(done.stdout)
    failure = classify({0: RuntimeError(CLOSED), 1: error}, PLACES)
    assert failure.kind == "out_of_memory"
    assert failure.what.startswith("rank 1 on n0: ")
    assert not is_on_device(error)


def test_connections_refused_by_the_system() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError) as caught:
            socket.create_connection(free.getsockname(), timeout=5)
    assert kind_of(caught.value) == "broken_connection"
