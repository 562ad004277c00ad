"""The most that fits does fit, and more does not; more of anything takes more."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.config.load import load_config
from dmlscale.launch.plan.devices import find_device
from dmlscale.launch.plan.prediction import Planner

SHAPE = (3, 32, 32)
NETWORK = ["model.backbone=resnet18", "model.options={}", "data.channels=3"]


@cache
def planner(loss: str, workers: int, *more: str) -> Planner:
    overrides = [*NETWORK, "data.classes_per_batch=64", "data.num_streams=16", f"resources.workers={workers}", *more]
    config = load_config(f"configs/glyphs/{loss}.yaml", overrides)
    return Planner(config, SHAPE, find_device("h100", workers), per_node=8)


@given(classes=st.integers(1, 10**8), more=st.integers(1, 10**8))
@settings(max_examples=20)
def test_more_classes_take_more(classes: int, more: int) -> None:
    few, many = (planner("norm_softmax", 16).predict(n) for n in (classes, classes + more))
    assert many.memory.peak >= few.memory.peak
    assert many.duration.step >= few.duration.step
    assert many.traffic.mean_payload(10) == few.traffic.mean_payload(10)  # classes do not travel


@pytest.mark.parametrize("more", [(), ("losses.class_sampling=0.1",)])
def test_the_most_classes_fit_and_more_do_not(more: tuple[str, ...]) -> None:
    plan = planner("norm_softmax_sampled" if more else "norm_softmax", 16, *more)
    most = plan.most_classes()
    assert plan.fits(plan.predict(most))
    assert not plan.fits(plan.predict(int(most * 1.01)))


def test_the_largest_batch_fits_and_a_larger_one_does_not() -> None:
    plan = planner("supervised_contrastive", 16)
    most = plan.largest_batch(1) // plan.config.data.samples_per_class
    assert most % plan.config.data.num_streams == 0
    assert plan.fits(plan.of_batch(most, 1))
    assert not plan.fits(plan.of_batch(int(most * 1.01) // 16 * 16 + 16, 1))


def test_shards_take_less_memory_and_send_more() -> None:
    whole, cut = (planner("triplet", 16, "train.reproducible=false", f"train.parallel={p}") for p in ("ddp", "fsdp"))
    held = [p.predict(1).memory.held["model"] for p in (whole, cut)]
    assert held[1] == pytest.approx(held[0] / 16, rel=0.05)  # running statistics are whole on every rank
    sent = [sum(call.payload for call in p.predict(1).traffic.model) for p in (whole, cut)]
    assert sent[1] == pytest.approx(2 * sent[0], rel=0.01)  # for one sum two fetches in bf16 and one in float32


def test_a_second_pass_trades_memory_for_time() -> None:
    once = planner("norm_softmax", 1, "train.reproducible=false").predict(10)
    twice = planner("norm_softmax", 1, "train.reproducible=false", "train.micro_batch_size=16").predict(10)
    assert twice.memory.peak < once.memory.peak
    assert twice.duration.forward >= 2 * once.duration.forward
    assert twice.duration.backward >= once.duration.backward


def test_what_a_node_sends_to_others_is_less_by_node() -> None:
    by_rank, by_node = (
        planner("triplet", 16, "train.reproducible=false", f"train.by_node={by}") for by in ("false", "true")
    )
    far = [
        sum(call.wire for call in p.predict(1).traffic.model if call.far) * ranks
        for p, ranks in ((by_rank, 1), (by_node, 8))  # in one ring one rank's link leaves the node; by node all do
    ]
    assert far[1] == pytest.approx(far[0] * (1 / 2) / (15 / 16), rel=0.01)


def test_a_device_without_the_memory_is_refused() -> None:
    plan = planner("triplet", 1)
    needed = plan.needed(plan.predict(1))
    try:
        plan.device = replace(plan.device, memory=needed - 1)
        assert not plan.fits(plan.predict(1))
    finally:
        plan.device = replace(plan.device, memory=80e9)
