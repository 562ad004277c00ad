"""Load of this machine, sampled by a thread, under the names that MLflow's "System metrics" tab knows."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import psutil

logger = logging.getLogger(__name__)

_MEGABYTE = 1e6


class SystemSampler:
    """Owns the thread. `stop` it.

    Args:
        log: takes one sample, names without the `system/` prefix.
        interval_s: seconds between samples.
    """

    def __init__(self, log: Callable[[dict[str, float]], None], *, interval_s: float = 5.0) -> None:
        self._log = log
        self._interval_s = interval_s
        self._probe = Probe()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after a last sample."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._thread.join(5.0)

    def _run(self) -> None:
        last = False
        while not last:
            last = self._stopped.wait(self._interval_s)
            try:
                self._log(self._probe.sample())
            except Exception:  # a sensor that fails must not end the training, nor be asked again
                logger.warning("system metrics stop: they cannot be read", exc_info=True)
                return


class Probe:
    """Reads the counters; network is counted from its creation on."""

    def __init__(self) -> None:
        self._network = psutil.net_io_counters()
        self._process = psutil.Process()
        psutil.cpu_percent()  # the first call has nothing to compare with and gives 0
        self._process.cpu_percent()
        self._nvml, self._gpus = _open_nvml()

    def sample(self) -> dict[str, float]:
        """All metrics now, by MLflow's names and two of this process (`process_...`)."""
        memory, disk, network = psutil.virtual_memory(), psutil.disk_usage(os.sep), psutil.net_io_counters()
        metrics = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / _MEGABYTE,
            "disk_available_megabytes": disk.free / _MEGABYTE,
            "process_cpu_percentage": self._process.cpu_percent(),
            "process_memory_megabytes": self._process.memory_info().rss / _MEGABYTE,
        }
        if network is not None and self._network is not None:  # None in a sandbox without interfaces
            metrics["network_receive_megabytes"] = (network.bytes_recv - self._network.bytes_recv) / _MEGABYTE
            metrics["network_transmit_megabytes"] = (network.bytes_sent - self._network.bytes_sent) / _MEGABYTE
        for number, gpu in enumerate(self._gpus):
            metrics |= {f"gpu_{number}_{name}": value for name, value in self._read_gpu(gpu).items()}
        return metrics

    def _read_gpu(self, gpu: Any) -> dict[str, float]:
        metrics: dict[str, float] = {}
        # Virtual and partitioned GPUs refuse some of these.
        with contextlib.suppress(self._nvml.NVMLError):
            memory = self._nvml.nvmlDeviceGetMemoryInfo(gpu)
            metrics["memory_usage_megabytes"] = memory.used / _MEGABYTE
            metrics["memory_usage_percentage"] = 100 * memory.used / memory.total
        with contextlib.suppress(self._nvml.NVMLError):
            metrics["utilization_percentage"] = self._nvml.nvmlDeviceGetUtilizationRates(gpu).gpu
        with contextlib.suppress(self._nvml.NVMLError):
            metrics["power_usage_watts"] = self._nvml.nvmlDeviceGetPowerUsage(gpu) / 1000
        return metrics


def _open_nvml() -> tuple[Any, list[Any]]:
    """The module of nvidia-ml-py and a handle per GPU; no handles where either is missing."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        return nvml, [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    except Exception:  # not installed, no driver, or no permission: there is nothing to report then
        return None, []
