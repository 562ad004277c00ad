"""Collectives by rank and by node over slow links between nodes: time, and bytes that a node sends.

Run:  sudo python -m benchmarks.node_links                         # two hosts with two ranks each, links of 100 Mbit/s
      sudo python -m benchmarks.node_links --nodes 3 --mbit 1000
      sudo python -m benchmarks.node_links --markdown benchmarks/node_links_DATE_HARDWARE.md

The hosts are network namespaces of this machine (tests/hosts) with gloo between them, so root is needed. Both sides
take turns in one run; a round lasts until the last rank is done, and the median of rounds counts. Bytes are what the
hosts' network cards counted, mean over hosts, in multiples of the tensor: payload, headers and acknowledgements. Exits
with 1 if a node sends more than theory and 6 % allow, or the two sides differ in what they compute.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmlscale.distributed.by_node import gather_by_node, scatter_sum_by_node, sum_by_node
from dmlscale.distributed.collectives import gather_rows, gather_sizes
from dmlscale.distributed.node_groups import NodeGroups
from dmlscale.distributed.world import World
from dmlscale.distributed.wrap import data_parallel
from tests.hosts.network import Hosts

SENT = Path("/sys/class/net/veth0/statistics/tx_bytes")
BATCH, DIM = 4096, 128
ALLOWANCE = 1.06
Work = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """Two ways to the same result.

    Args:
        name: what is communicated.
        num_bytes: of the whole tensor.
        by_rank: one way, over all ranks at once.
        by_node: the other.
        least: what a node must send at N nodes, in multiples of ``(N - 1) / N`` of the tensor.
    """

    name: str
    num_bytes: int
    by_rank: Work
    by_node: Work
    least: int


@dataclass(frozen=True)
class Result:
    """Of the two ways: seconds of the slowest rank, and what this rank's host sent in multiples of the tensor."""

    name: str
    megabytes: float
    seconds: tuple[float, float]
    sent: tuple[float, float]
    least: int
    same: bool


def cases(world: World) -> list[Case]:
    """What a step of training sends: gradients of a ResNet-18, embeddings of a batch, a few numbers."""
    groups = NodeGroups.of(world)
    width = -(-BATCH // world.num_ranks)
    local = torch.randn(width, DIM)
    sizes = gather_sizes(width, world, local.device)
    whole = torch.randn(sum(sizes), DIM)

    def scattered() -> Tensor:
        kept = torch.empty_like(local)
        dist.reduce_scatter_tensor(kept, whole)
        return kept

    num_parameters = sum(SIZES)
    return [
        Case("gradients, DDP, float32", 4 * num_parameters, gradients(world, False), gradients(world, True), 2),
        Case(
            "gradients, reproducible, float64",
            8 * num_parameters,
            summed(num_parameters, world, None),
            summed(num_parameters, world, groups),
            2,
        ),
        Case(
            f"embeddings {BATCH} x {DIM}, gathered",
            whole.nbytes,
            lambda: gather_rows(local, sizes, world),
            lambda: gather_by_node(local, sizes, groups),
            1,
        ),
        Case(
            f"embeddings {BATCH} x {DIM}, gradient",
            whole.nbytes,
            scattered,
            lambda: scatter_sum_by_node(whole, sizes, groups),
            1,
        ),
        Case(f"{BATCH} numbers, float64", 8 * BATCH, summed(BATCH, world, None), summed(BATCH, world, groups), 2),
        Case("one number", 8, summed(1, world, None), summed(1, world, groups), 2),
    ]


def gradients(world: World, by_node: bool) -> Work:
    """A backward pass of `Weights`; its result is one gradient of each tensor."""
    model = data_parallel(Weights(), world, by_node=by_node)
    inputs = torch.full((1,), float(world.rank))

    def backward() -> Tensor:
        model.zero_grad()
        model(inputs).backward()
        return torch.cat([parameter.grad[:1] for parameter in model.parameters() if parameter.grad is not None])

    return backward


def summed(size: int, world: World, groups: NodeGroups | None) -> Work:
    """A sum of so many numbers in float64, by node where there are groups; its result is one of them."""
    tensor = torch.full((size,), float(world.rank), dtype=torch.float64)

    def run() -> Tensor:
        total = tensor.clone()
        if groups is None:
            dist.all_reduce(total)
        else:
            sum_by_node(total, groups)
        return total[:1]

    return run


# Tensors of a ResNet-18 with a head of 128, roughly as it holds them: 11.2 million numbers.
SIZES = [9408] + [36864] * 4 + [73728] + [147456] * 3 + [294912] + [589824] * 3 + [1179648] + [2359296] * 3 + [65536]


class Weights(nn.Module):
    """The parameters of a network whose backward pass costs nothing: what remains is communication."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.zeros(size) for size in SIZES])

    def forward(self, inputs: Tensor) -> Tensor:
        """Any scalar that depends on all parameters and on the rank."""
        return torch.stack([weight.sum() for weight in self.weights]).sum() * (inputs.sum() + 1)


def run_rank(address: str, rank: int, num_ranks: int, rounds: int, only: str) -> None:
    """Measures all cases on one rank and prints a line of JSON for each."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"tcp://{address}:29500", rank=rank, world_size=num_ranks)
    for case in [case for case in cases(World.current()) if only in case.name]:
        seconds: list[list[float]] = [[], []]
        sent: list[list[float]] = [[], []]
        for _ in range(rounds + 1):
            values = []
            for side, work in enumerate((case.by_rank, case.by_node)):
                dist.barrier()
                time.sleep(0.05)  # for the barrier's own packets
                before, start = int(SENT.read_text()), time.perf_counter()
                values.append(work())
                taken = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
                dist.barrier()
                sent[side].append((int(SENT.read_text()) - before) / case.num_bytes)
                dist.all_reduce(taken, dist.ReduceOp.MAX)
                seconds[side].append(float(taken))
        result = Result(
            case.name,
            case.num_bytes / 1e6,
            (median(seconds[0][1:]), median(seconds[1][1:])),  # the first round warms up
            (median(sent[0][1:]), median(sent[1][1:])),
            case.least,
            torch.allclose(values[0], values[1], rtol=1e-5, atol=1e-5),
        )
        print(json.dumps(asdict(result)), flush=True)
    dist.destroy_process_group()


def measure(num_nodes: int, ranks_per_node: int, mbit: float, rounds: int, only: str) -> list[list[Result]]:
    """Results of the first rank of each host, case by case."""
    with tempfile.TemporaryDirectory() as text, Hosts(num_nodes, Path(text)) as hosts:
        logs: list[Path] = []
        running: list[subprocess.Popen[bytes]] = []
        for name in hosts.names:
            hosts.slow(name, mbit=mbit)
            for _ in range(ranks_per_node):
                rank = len(running)
                command = [sys.executable, "-m", "benchmarks.node_links", "--rank", hosts.address("n0"), str(rank)]
                command += [str(num_nodes * ranks_per_node), str(rounds), only]
                logs.append(Path(text) / f"{rank}.log")
                environment = {"GLOO_SOCKET_IFNAME": "veth0", "OMP_NUM_THREADS": "1"}
                running.append(hosts.start(name, command, log=logs[-1], env=environment))
        for process, log in zip(running, logs, strict=True):
            if process.wait() != 0:
                raise RuntimeError(log.read_text())
        lines = [log.read_text().splitlines() for log in logs[::ranks_per_node]]
    found = [[Result(**json.loads(line)) for line in log if line.startswith("{")] for log in lines]
    return [list(case) for case in zip(*found, strict=True)]


HEAD = ["what", "MB", "by rank ms", "by node ms", "by rank / by node", "sent by rank", "sent by node", "least"]


def main() -> int:
    """Measures, prints the table and says which bounds do not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=2, help="on each node")
    parser.add_argument("--mbit", type=float, default=100, help="of each host's link, each way")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="part of the names of cases")
    parser.add_argument("--markdown", type=Path, help="also append the table to this file")
    parser.add_argument("--rank", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        address, rank, num_ranks, rounds, only = options.rank
        run_rank(address, int(rank), int(num_ranks), int(rounds), only)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the hosts go too
    lines = ["| " + " | ".join(HEAD) + " |", "|---|" + "---:|" * (len(HEAD) - 1)]
    failures = []
    for hosts in measure(options.nodes, options.ranks, options.mbit, options.rounds, options.only):
        first, num_hosts = hosts[0], len(hosts)
        slower, faster = first.seconds
        flat, by_node = (sum(host.sent[side] for host in hosts) / num_hosts for side in (0, 1))
        least = first.least * (num_hosts - 1) / num_hosts
        cells = [first.name, f"{first.megabytes:,.3g}", f"{slower * 1e3:,.1f}", f"{faster * 1e3:,.1f}"]
        cells += [f"{slower / faster:.2f}x", f"{flat:,.2f}", f"{by_node:,.2f}", f"{least:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
        if first.megabytes > 1 and by_node > ALLOWANCE * least:
            failures.append(f"{first.name}: a node sends {by_node:.2f} of the tensor, {least:.2f} are needed")
        if not all(host.same for host in hosts):
            failures.append(f"{first.name}: the two ways differ")
    print("\n".join(lines))
    if options.markdown:
        head = f"{datetime.date.today()}, {platform.processor() or platform.machine()}, torch {torch.__version__}, gloo"
        title = f"## {options.nodes} nodes with {options.ranks} ranks each, links of {options.mbit:g} Mbit/s"
        with options.markdown.open("a") as file:
            file.write("\n".join([f"{title}\n\n{head}; median of {options.rounds} rounds\n", *lines, ""]) + "\n")
    for failure in failures:
        print("BOUND", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
