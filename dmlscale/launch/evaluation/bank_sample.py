"""Rows of class banks, to be looked at: of all classes that were trained, or of some where they are many."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dmlscale.config.schema import Config
from dmlscale.data.index import Index
from dmlscale.distributed.world import World
from dmlscale.evaluation.neighbors import FloatArray, IntArray
from dmlscale.evaluation.subsample import hash_order
from dmlscale.launch.ranks import OverRanks
from dmlscale.losses import LOSSES
from dmlscale.training import checkpoint
from dmlscale.training.objective import Objective

MOST_NUMBERS = 50_000_000
"""Of a bank that are brought together (200 MB)."""


class BankSample(NamedTuple):
    """The proxies or centers of some classes."""

    name: str  # of the loss, with its place where one occurs twice
    labels: IntArray  # (M,) ascending; only classes with training samples: the rows of others have learnt nothing
    weights: FloatArray  # (M, K, d)


def gather_banks(
    objective: Objective, trained: IntArray, ranks: OverRanks, *, seed: int = 0, most_numbers: int = MOST_NUMBERS
) -> list[BankSample]:
    """The banks of a training, which are spread over ranks; all ranks call it, and have the same result.

    Args:
        objective: whose banks.
        trained: (C',) ascending labels of the classes with training samples, the same on every rank.
        ranks: that hold the banks.
        seed: of the choice of classes where there are too many.
        most_numbers: how many proxy coordinates to bring together.

    Communication: for each bank gather of at most ``most_numbers`` float32.
    """
    found = []
    for name, loss in zip(objective.names(), objective.losses(), strict=True):
        if loss.bank is None:
            continue
        bank = loss.bank
        chosen = _choose(trained, math.prod(bank.weight.shape[1:]), seed, most_numbers)
        own = chosen[(chosen >= bank.start) & (chosen < bank.stop)] - bank.start
        # Ranks hold ascending ranges of classes, so rows gathered in rank order are in the order of labels.
        rows = ranks.gather(bank.weight.detach()[torch.from_numpy(own).to(bank.weight.device)].float())
        found.append(BankSample(name, chosen, rows.numpy()))
    return found


def load_banks(
    path: Path, config: Config, num_classes: int, trained: IntArray
) -> tuple[list[BankSample], dict[str, str]]:
    """The banks of a checkpoint, read by this process alone.

    Args:
        path: of the checkpoint.
        config: that it was trained with.
        num_classes: C.
        trained: as for `gather_banks`.

    Returns:
        Banks that are small enough to be loaded, and for each other one (`bank of <loss>`) why it is not.
    """
    found, left_out = [], {}
    names = [term.name for term in config.losses]
    for n, term in enumerate(config.losses):
        loss = LOSSES[term.name](**term.options)
        if loss.block != "classes":
            continue
        name = term.name if names.count(term.name) == 1 else f"{term.name}_{n}"  # as `Objective.names`
        shape = (num_classes, loss.rows_per_class, config.model.embedding_dim)
        if math.prod(shape) > MOST_NUMBERS:
            left_out[f"bank of {name}"] = f"{shape} is too large to be loaded for a picture"
            continue
        weights = torch.empty(shape)
        try:
            stored = {f"objective.terms.{n}.bank.weight": weights}
            checkpoint.load(path, stored, World(), is_verified=True)  # when the model was loaded
        except checkpoint.CheckpointError as error:
            left_out[f"bank of {name}"] = str(error)
            continue
        found.append(BankSample(name, trained, weights.numpy()[trained]))
    return found, left_out


def trained_labels(config: Config, index: Index) -> IntArray:
    """(C',) labels of the classes with training samples, ascending."""
    return np.flatnonzero(index.split(config.data.train_split).class_rows.counts)


def _choose(trained: IntArray, numbers_per_class: int, seed: int, most_numbers: int) -> IntArray:
    """All classes, or as many as there is room for, in the order of a hash of their labels."""
    most = max(2, most_numbers // numbers_per_class)
    return trained if len(trained) <= most else np.sort(trained[hash_order(trained, seed)[:most]])
