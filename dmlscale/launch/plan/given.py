"""What a plan must know of the data: the shape of a sample and the number of classes."""

from __future__ import annotations

from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch

from dmlscale.config.schema import Config
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.loader import Recipe, eval_batches
from dmlscale.data.transforms import apply
from dmlscale.launch import build
from dmlscale.launch.errors import LaunchError
from dmlscale.losses import LOSSES
from dmlscale.models.mlp import NAME as MLP

# Pictures of two sizes: a recipe that makes the same of both needs no data to say what.
_TRIED_SIZES = ((250, 300), (280, 260))


class Given(NamedTuple):
    """What does not stand in the config."""

    shape: tuple[int, ...]
    num_classes: int


def find_given(config: Config, shape: tuple[int, ...] | None, num_classes: int | None) -> Given:
    """From the command line, else from the dataset's index, else from the config where it tells.

    Args:
        config: of the run.
        shape: of a sample as the network gets it, if it was said.
        num_classes: of the class banks, if that was said.

    Raises:
        LaunchError: it stands nowhere; names the option.
    """
    if num_classes is not None and num_classes < 1:
        raise LaunchError(f"--classes must be at least 1, got {num_classes}")
    if num_classes is None and all(LOSSES[term.name].block == "pairs" for term in config.losses):
        num_classes = 1  # no loss has a bank
    shape = shape or _from_config(config)
    if shape is not None and num_classes is not None:
        return Given(shape, num_classes)
    try:
        index = build.open_index(config)
        return Given(shape or _of_a_sample(config, index), num_classes or index.num_classes)
    except (DataError, OSError) as error:
        missing = "--classes N" if shape else "--shape, e.g. --shape 3,224,224"
        raise LaunchError(f"data.path={config.data.path} cannot tell ({error}): give {missing}") from None


def _from_config(config: Config) -> tuple[int, ...] | None:
    """Of vectors, and of pictures whose recipe makes all of one size."""
    if config.model.backbone == MLP and "in_features" in config.model.options:
        return (int(config.model.options["in_features"]),)
    if config.data.input != "image":
        return None
    recipe = config.data.transform.build()
    ids = np.zeros(1, dtype=np.int64)
    pictures = [torch.zeros((config.data.channels, *size), dtype=torch.uint8) for size in _TRIED_SIZES]
    first, second = (tuple(apply(recipe, [p], ids, seed=0, epoch=0).shape[1:]) for p in pictures)
    return first if first == second else None


def _of_a_sample(config: Config, index: Index) -> tuple[int, ...]:
    recipe = Recipe(build.build_decoder(config, index), config.data.transform.build())
    split = index.split(config.data.train_split)
    with closing(eval_batches(split, recipe, batch_size=1)) as batches:
        return tuple(next(batches).images.shape[1:])
