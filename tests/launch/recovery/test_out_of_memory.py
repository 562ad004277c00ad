"""Too little memory: the advice names settings that this config does not use yet."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmlscale.config.load import load_config
from dmlscale.launch.recovery.memory_kills import count_memory_kills
from dmlscale.launch.recovery.out_of_memory import is_on_device, is_out_of_memory, memory_advice


def advice(*overrides: str, on_device: bool = True) -> str:
    return "\n".join(memory_advice(load_config("configs/quickstart.yaml", overrides), on_device=on_device))


def test_what_is_not_used_yet_is_advised_most_gain_first() -> None:
    values = ("data.classes_per_batch=16", "data.samples_per_class=4", "resources.workers=2", "train.precision=fp32")
    said = advice(*values, "train.reproducible=false")
    order = [
        "micro_batch_size=8 (now 32",
        "precision=bf16",
        "activation_checkpointing",
        "parallel=fsdp",
        "data.classes",
    ]
    assert [words for words in sorted(order, key=said.index)] == order
    assert "`dmlscale plan CONFIG`" in said


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.activation_checkpointing=true", "activation_checkpointing"),
        ("train.micro_batch_size=1", "train.micro_batch_size="),
        ("train.precision=bf16", "train.precision="),
        ("train.parallel=fsdp", "train.parallel="),
        ("losses={name: norm_softmax, class_sampling: 0.5}", "class_sampling"),
    ],
)
def test_what_is_used_already_is_not_advised(override: str, words: str) -> None:
    common = ("resources.workers=2", "train.precision=fp32", "train.reproducible=false", "losses={name: norm_softmax}")
    assert words in advice(*common)
    assert words not in advice(*common, override)


def test_the_machines_own_memory_has_other_settings() -> None:
    said = advice("data.loader_threads=4", "train.precision=fp32", "resources.workers=2", on_device=False)
    assert "data.loader_threads=1" in said
    assert "fewer workers on each machine" in said
    assert "bf16" not in said
    assert "fsdp" not in said


def test_every_setting_that_is_advised_is_one() -> None:
    said = advice("resources.workers=2", "losses={name: norm_softmax}", "train.reproducible=false")
    config = load_config("configs/quickstart.yaml")
    for section, key in re.findall(r"\b(train|data|evaluation|resources)\.([a-z_]+)", said):
        assert hasattr(getattr(config, section), key)


def test_torchs_error_of_a_device_is_known() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert is_out_of_memory(error)
    assert is_on_device(error)
    assert is_out_of_memory(MemoryError())
    assert not is_on_device(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_kills_are_counted() -> None:
    assert count_memory_kills() >= 0


def test_a_run_in_this_process_that_needs_too_much_says_what_to_do(tmp_path: Path) -> None:
    """A real failure to allocate, in the training itself."""
    script = tmp_path / "run.py"
    script.write_text(
        "import resource, sys\n"
        "import dmlscale.launch.local as local\n"
        "from dmlscale.config.load import load_config\n"
        "from dmlscale.launch.task import Task\n"
        "def work(task, world, device):\n"
        "    import torch\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\n"
        "    return torch.ones(2**34)\n"
        "local.made_ready = lambda *task: lambda: work(*task)\n"
        "config = load_config('configs/quickstart.yaml')\n"
        "local.run_local(Task('train', config.model_dump(mode='json'), sys.argv[1]), config.resources)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=environment,
    )
    assert done.returncode == 1
    assert re.search(r"WorkersFailedError: rank 0: RuntimeError: .*allocate", done.stderr)
    assert "train.micro_batch_size=" in done.stderr
