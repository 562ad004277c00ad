"""A run that needs more memory than there is: how it is told, and which settings would help this config."""

from __future__ import annotations

import math
import re

from dmlscale.config.schema import Config
from dmlscale.distributed.support import require_sampling_support
from dmlscale.losses import LOSSES

_ON_DEVICE = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|HIP out of memory", re.I
)
_ON_HOST = re.compile(
    r"DefaultCPUAllocator|can't allocate memory|cannot allocate memory|not enough memory|bad_alloc", re.I
)
_FEW = 0.1  # of the classes, as an example


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation of this process has failed, on the host or on its GPU."""
    if isinstance(error, MemoryError) or _is_torchs(error):
        return True
    said = str(error)
    return isinstance(error, (RuntimeError, OSError)) and bool(_ON_DEVICE.search(said) or _ON_HOST.search(said))


def is_on_device(error: BaseException) -> bool:
    """Whether it was the GPU's memory."""
    return _is_torchs(error) or bool(_ON_DEVICE.search(str(error)))


def _is_torchs(error: BaseException) -> bool:
    """Torch's own, which is for devices; Ray has one of the same name for nodes."""
    return type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("torch")


def memory_advice(config: Config, *, on_device: bool) -> list[str]:
    """Settings that would lower what this config needs and that it does not use yet, those that gain most first.

    Args:
        config: of the run.
        on_device: whether it was a GPU's memory that did not suffice, or the host's.

    Returns:
        Whole lines.
    """
    lines = _of_training(config, on_device=on_device) + _of_banks(config)
    if not on_device and config.data.loader_threads > 1:
        lines.append(f"data.loader_threads=1: fewer batches are made ahead (now {config.data.loader_threads} threads)")
    if not on_device and config.resources.workers > 1:
        lines.append("fewer workers on each machine (resources.cpus_per_worker higher, or resources.workers lower)")
    if config.evaluation.batch_size > 1:
        half = config.evaluation.batch_size // 2
        lines.append(f"evaluation.batch_size={half} (now {config.evaluation.batch_size}), if it happened in evaluation")
    per_batch = config.data.classes_per_batch * config.data.samples_per_class
    lines.append(f"last, smaller batches (now {per_batch} samples, data.classes_per_batch): that changes the results")
    where = "the GPU" if on_device else "the machine"
    return [
        f"out of memory: {where} has less than this run needs. What would help, most first:",
        *(f"  - {line}" for line in lines),
        "`dmlscale plan CONFIG` tells beforehand what a config needs.",
    ]


def _of_training(config: Config, *, on_device: bool) -> list[str]:
    t, workers = config.train, config.resources.workers
    here = math.ceil(config.data.classes_per_batch * config.data.samples_per_class / workers)
    at_once = min(here, t.micro_batch_size or here)
    lines = []
    if at_once > 1:
        lines.append(
            f"train.micro_batch_size={max(1, at_once // 4)} (now {at_once} samples are in the network at a time): the "
            "same results, one more forward pass"
        )
    if on_device and t.precision == "fp32":
        lines.append("train.precision=bf16: half the memory of activations")
    if not t.activation_checkpointing:
        lines.append("train.activation_checkpointing=true: activations are computed again, the same results")
    if on_device and t.parallel == "ddp" and workers > 1 and not t.reproducible:
        lines.append("train.parallel=fsdp: each worker keeps a part of the backbone and of its optimizer's state")
    if on_device and workers < config.data.num_streams:
        lines.append(f"more resources.workers (now {workers}, up to {config.data.num_streams}): each has fewer samples")
    return lines


def _of_banks(config: Config) -> list[str]:
    lines = []
    for number, term in enumerate(config.losses):
        loss = LOSSES[term.name](**term.options)
        if term.class_sampling is None and loss.block == "classes":
            try:
                require_sampling_support(term.name, loss)
            except ValueError:
                continue
            lines.append(
                f"losses.{number}.class_sampling={_FEW}: {term.name} with a part of the classes, if there are very many"
            )
        if term.memory_size:
            lines.append(f"losses.{number}.memory_size lower (now {term.memory_size:,})")
    return lines
