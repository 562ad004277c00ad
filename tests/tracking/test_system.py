import itertools
import threading
import time
from types import SimpleNamespace

import psutil
import pytest

from dmlscale.tracking import system
from dmlscale.tracking.system import Probe, SystemSampler


def test_sample_has_mlflows_names_and_sane_values() -> None:
    sample = Probe().sample()
    assert 0 < sample["system_memory_usage_percentage"] <= 100
    assert 0 <= sample["cpu_utilization_percentage"] <= 100
    assert 1 < sample["process_memory_megabytes"] <= psutil.virtual_memory().total / 1e6
    assert {"disk_usage_percentage", "network_receive_megabytes", "network_transmit_megabytes"} <= set(sample)


def test_gpu_metrics_where_the_driver_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    class RefusedError(Exception):
        pass

    def refuse(gpu: object) -> None:
        raise RefusedError

    nvml = SimpleNamespace(
        NVMLError=RefusedError,
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=2e9, total=8e9),
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=55),
        nvmlDeviceGetPowerUsage=refuse,
    )
    monkeypatch.setattr(system, "_open_nvml", lambda: (nvml, ["gpu"]))
    sample = Probe().sample()
    assert sample["gpu_0_memory_usage_percentage"] == 25
    assert sample["gpu_0_memory_usage_megabytes"] == 2000
    assert sample["gpu_0_utilization_percentage"] == 55
    assert "gpu_0_power_usage_watts" not in sample


def test_samples_come_by_the_clock_and_once_more_at_the_end() -> None:
    times: list[float] = []
    has_three = threading.Event()

    def note(sample: dict[str, float]) -> None:
        times.append(time.monotonic())
        if len(times) == 3:
            has_three.set()

    started = time.monotonic()
    sampler = SystemSampler(note, interval_s=0.05)
    assert has_three.wait(60)
    before = [started, *times[:3]]
    assert min(later - sooner for sooner, later in itertools.pairwise(before)) > 0.049
    sampler.stop()
    number = len(times)
    sampler.stop()
    long = SystemSampler(note, interval_s=60)
    long.stop()
    assert len(times) == number + 1


def test_a_failing_sensor_ends_the_sampling_only() -> None:
    calls = []

    def fail(sample: dict[str, float]) -> None:
        calls.append(sample)
        raise OSError("sensor")

    sampler = SystemSampler(fail, interval_s=0.01)
    time.sleep(0.2)
    sampler.stop()
    assert len(calls) == 1
