"""Parts of a training that do something else on a GPU."""

from __future__ import annotations

import time

import pytest
import torch

from dmlscale.distributed.exact_sum import exact_sum
from dmlscale.distributed.world import World
from dmlscale.launch.doctor.gpus import judge_gpus, look_at_gpus
from dmlscale.launch.doctor.machines import Machine
from dmlscale.training.checkpoint.buffers import Buffers
from dmlscale.training.checkpoint.pieces import piece_here
from dmlscale.training.pace import Stopwatch


def test_copies_for_a_checkpoint_stay_as_they_were(device: torch.device) -> None:
    """Though the training overwrites its tensors at once, and had not even computed them when it was asked."""
    buffers = Buffers()
    tensor = torch.zeros(2**24, device=device)
    for n in range(5):
        torch.cuda._sleep(20_000_000)
        tensor += 1
        (copy,) = buffers.copy([piece_here("weight", tensor)])
        tensor -= 0.5  # the training goes on
        assert copy.tensor.is_pinned()
        assert (copy.tensor == 1 + n / 2).all()


def test_the_forward_pass_is_timed_on_the_device(device: torch.device) -> None:
    """The call returns long before the device is done; other work after it does not count."""
    stopwatch = Stopwatch(device, meets_in_forward=False)
    started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    started.record()
    torch.cuda._sleep(100_000_000)
    ended.record()
    torch.cuda.synchronize()
    wanted = started.elapsed_time(ended) / 1000
    stopwatch.restart()
    for _ in range(3):
        stopwatch.waits()
        stopwatch.has_batch(8)
        torch.cuda._sleep(100_000_000)
        stopwatch.embedded()
        torch.cuda._sleep(200_000_000)
        stopwatch.stepped(8)
    torch.cuda.synchronize()
    _, (pace,) = stopwatch.read(World())
    assert wanted > 0.01
    assert pace.own_s == pytest.approx(wanted, rel=0.2)


def test_sums_do_not_depend_on_the_device(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    terms = [torch.randn(10_000, generator=generator) * 10.0**n for n in range(4)]
    of_cpu = exact_sum(terms, 4, World())
    assert torch.equal(exact_sum([term.to(device) for term in terms], 4, World()).cpu(), of_cpu)


def test_the_doctor_finds_the_gpu(device: torch.device) -> None:
    began = time.monotonic()
    facts = look_at_gpus(True)
    assert time.monotonic() - began < 60
    assert facts["names"][0] == torch.cuda.get_device_name(device)
    assert not facts["missing"]
    finding = judge_gpus(Machine("n0", resources={"GPU": float(len(facts["names"]))}), facts)
    assert finding.status == "ok", finding
