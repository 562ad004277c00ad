"""`dmlscale plan` against real steps, and far beyond them.

Run:  python -m benchmarks.plan                      # measures, about ten minutes on two cores
      python -m benchmarks.plan --only classes,resnet18
      python -m benchmarks.plan --report benchmarks/plan_DATE_HARDWARE.md --docs docs/scaling.md

Memory, bytes and time of real steps on 1 to 4 gloo ranks are set beside the predictions. Memory is what is resident
above what the process held before it built anything, at its highest during the second step; every large tensor is
mapped by itself, so what is freed is gone. Bytes are counted by wrapping the functions of torch.distributed. Exits with
1 if memory is off by more than 15 % or a byte is missing. ``--docs`` puts the tables between the markers of that file.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.plan_cells import Cell, Measured, measure
from dmlscale.config.load import load_config
from dmlscale.launch.plan.devices import find_device
from dmlscale.launch.plan.figures import seconds, size
from dmlscale.launch.plan.prediction import Planner, Prediction

MOST_OFF = 0.15  # of the measured memory

_MLP = ("model.backbone=mlp", "model.options={in_features: 64, hidden: [64]}")
_FAST = "train.reproducible=false"
_GLYPHS = "configs/glyphs/"


def _network(name: str) -> tuple[str, ...]:
    """64 samples in a batch."""
    batch = ("data.classes_per_batch=16", "data.samples_per_class=4", "data.channels=3")
    return (f"model.backbone={name}", "model.options={}", *batch)


_CLASSES = 1_000_000
CELLS = {
    "classes, AdamW": Cell(_GLYPHS + "norm_softmax.yaml", (*_MLP, _FAST), (64,), _CLASSES),
    "classes, float64": Cell(_GLYPHS + "norm_softmax.yaml", _MLP, (64,), _CLASSES // 4),
    "classes, Proxy-Anchor": Cell(_GLYPHS + "proxy_anchor.yaml", (*_MLP, _FAST), (64,), _CLASSES),
    "classes, 10 % sampled": Cell(
        _GLYPHS + "norm_softmax_sampled.yaml", (*_MLP, _FAST, "losses.class_sampling=0.1"), (64,), _CLASSES
    ),
    "resnet18": Cell(_GLYPHS + "triplet.yaml", (*_network("resnet18"), _FAST), (3, 96, 96), 1),
    "resnet18, same bits": Cell(_GLYPHS + "triplet.yaml", _network("resnet18"), (3, 64, 64), 1),
    "resnet50": Cell(_GLYPHS + "triplet.yaml", (*_network("resnet50"), _FAST), (3, 96, 96), 1),
    "resnet50, computed again": Cell(
        _GLYPHS + "triplet.yaml",
        (*_network("resnet50"), _FAST, "train.activation_checkpointing=true"),
        (3, 96, 96),
        1,
    ),
    "resnet50, 8 at a time": Cell(
        _GLYPHS + "triplet.yaml", (*_network("resnet50"), _FAST, "train.micro_batch_size=8"), (3, 64, 64), 1
    ),
    "resnet50, FSDP": Cell(_GLYPHS + "triplet.yaml", (*_network("resnet50"), "train.parallel=fsdp"), (3, 64, 64), 1),
    "quickstart": Cell("configs/quickstart.yaml", (), (1, 32, 32), 1, steps=8),
}
RANKS = {
    "classes, AdamW": (1, 2, 4),
    "classes, Proxy-Anchor": (3,),
    "classes, 10 % sampled": (2,),
    "resnet18": (1, 2, 3, 4),
    "resnet18, same bits": (1, 2),
    "resnet50": (1, 2),
    "resnet50, FSDP": (2, 4),
    "quickstart": (1, 2, 3, 4),
}
_OTHERS = (1,)

MEASURED_HEAD = (
    "| run | W | memory, predicted | measured | ratio | bytes sent | CPU time of a step, predicted / measured |"
)
FAR_HEAD = "| loss | GPUs | global batch | classes | memory of a GPU | step | bound by | samples/s |"


def predicted(cell: Cell, num_ranks: int) -> tuple[Prediction, float]:
    """What `dmlscale plan` says of a cell, whose batch is not read by a loader; bytes with what libraries take."""
    config = load_config(cell.config, [*cell.overrides, f"resources.workers={num_ranks}"])
    # A rank's CPU time does not depend on how many others share the cores.
    planner = Planner(config, cell.shape, find_device("cpu", 1), per_node=8)
    prediction = planner.predict(cell.num_classes)
    prediction.memory.held.pop("batches in the loader")
    return prediction, planner.needed(prediction)


def sent_bytes(prediction: Prediction) -> Counter[str]:
    """Of a step, by collective."""
    found: Counter[str] = Counter()
    for call in prediction.traffic.every_step:
        found[call.collective] += call.payload
    return found


def compare(name: str, num_ranks: int) -> tuple[str, list[str]]:
    """A row of the table, and what does not hold."""
    (expected, needed), real = predicted(CELLS[name], num_ranks), measure(CELLS[name], num_ranks)
    ratio = needed / real.peak
    sent = sent_bytes(expected)
    is_equal = sent == Counter(real.sent)
    failures = []
    if abs(ratio - 1) > MOST_OFF:
        failures.append(f"{name}, W={num_ranks}: memory {ratio:.2f} of the measured")
    if not is_equal:
        failures.append(f"{name}, W={num_ranks}: sends {dict(real.sent)}, predicted {dict(sent)}")
    return _row(name, num_ranks, expected, needed, real, is_equal=is_equal), failures


def _row(name: str, num_ranks: int, expected: Prediction, needed: float, real: Measured, *, is_equal: bool) -> str:
    sent = f"{sum(real.sent.values()):,}{'' if is_equal else ' (not as predicted)'}"
    lasts = expected.duration.work
    cells = [
        name,
        f"{num_ranks}",
        size(needed),
        size(real.peak),
        f"{needed / real.peak:.2f}",
        sent,
        f"{seconds(lasts)} / {seconds(real.seconds)} = {lasts / real.seconds:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def measured_table(only: Sequence[str]) -> tuple[list[str], list[str]]:
    """All rows that were asked for, and what does not hold."""
    lines, failures = [MEASURED_HEAD, "|---|---:|---:|---:|---:|---:|---|"], []
    print("\n".join(lines), flush=True)
    for name in CELLS:
        if only and not any(name.startswith(start) for start in only):
            continue
        for num_ranks in RANKS.get(name, _OTHERS):
            line, found = compare(name, num_ranks)
            print(line, flush=True)
            lines.append(line)
            failures += found
    return lines, failures


# 128 samples of 224 x 224 on each GPU, ResNet-50, d = 512, AdamW, bf16 in the network.
_FAR = (
    "model.backbone=resnet50",
    "model.options={}",
    "model.embedding_dim=512",
    "data.channels=3",
    "data.samples_per_class=2",
    "train.precision=bf16",
    _FAST,
)
_FAR_LOSSES = {
    "norm_softmax": ("norm_softmax.yaml", (10**5, 10**6, 10**7, 10**8)),
    "norm_softmax, 10 % sampled": ("norm_softmax_sampled.yaml", (10**7, 10**8)),
    "proxy_anchor": ("proxy_anchor.yaml", (10**6, 10**8)),
    "supervised_contrastive": ("supervised_contrastive.yaml", (None,)),
}
_FAR_RANKS = (8, 64, 256, 1024)


def far_table() -> list[str]:
    """Predictions for H100s, eight in a node."""
    lines = [FAR_HEAD, "|---|---:|---:|---:|---:|---:|---|---:|"]
    for name, (file, classes) in _FAR_LOSSES.items():
        for num_ranks in _FAR_RANKS:
            lines += _far_rows(name, file, classes, num_ranks)
    return lines


def _far_rows(name: str, file: str, classes: Sequence[int | None], num_ranks: int) -> list[str]:
    data = (f"data.classes_per_batch={64 * num_ranks}", f"data.num_streams={num_ranks}")
    rate = ("losses.class_sampling=0.1",) if "sampled" in name else ()
    config = load_config(_GLYPHS + file, [*_FAR, *data, *rate, f"resources.workers={num_ranks}"])
    planner = Planner(config, (3, 224, 224), find_device("h100", num_ranks), per_node=8)
    rows = []
    for number in classes:
        found = planner.predict(number or 1)
        needed, lasts = planner.needed(found), found.duration
        fits = planner.fits(found)
        cells = [
            name,
            f"{num_ranks:,}",
            f"{found.sizes.total:,}",
            "-" if number is None else f"{number:,}",
            size(needed) if fits else f"**{size(needed)}: does not fit**",
            seconds(lasts.step) if fits else "-",
            lasts.bound_by if fits else "-",
            f"{found.sizes.total / lasts.step:,.0f}" if fits else "-",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def put_between(text: str, marker: str, lines: Sequence[str]) -> str:
    """The text with what lies between a pair of markers replaced.

    Raises:
        ValueError: the markers are not there.
    """
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    if begin not in text or end not in text:
        raise ValueError(f"no {begin} ... {end}")
    new = "\n".join([begin, *lines, end])
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: new, text, flags=re.DOTALL)


def main() -> int:
    """Measures, predicts, writes, and says what does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="beginnings of runs' names, separated by commas")
    parser.add_argument("--report", type=Path, help="write both tables to this file")
    parser.add_argument("--docs", type=Path, help="renew the tables of this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines, failures = measured_table(options.only.split(",") if options.only else [])
    far = far_table()
    print("\n".join(far))
    head = f"{datetime.date.today()}, {platform.processor() or platform.machine()}, torch {torch.__version__}"
    if options.report:
        parts = [
            f"# Plan: predicted and measured\n\n{head}; gloo, one thread a rank.\n",
            *lines,
            "",
            "Predictions:",
            "",
        ]
        options.report.write_text("\n".join([*parts, *far]) + "\n")
    if options.docs:
        text = put_between(options.docs.read_text(), "measured", [f"{head}.", "", *lines])
        options.docs.write_text(put_between(text, "predicted", far))
    for failure in failures:
        print("BOUND", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
