"""Everything that can be found wrong before a worker starts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from dmlscale.config.schema import Config
from dmlscale.data.index import Index
from dmlscale.data.loader import eval_batches
from dmlscale.data.mined_plan import check_mined_plan
from dmlscale.data.plan import check_plan
from dmlscale.data.shards import ensure_packed
from dmlscale.data.transforms import find_transform
from dmlscale.distributed.support import require_memory_support, require_sampling_support
from dmlscale.distributed.world import World
from dmlscale.evaluation.metrics import count_relevant
from dmlscale.evaluation.neighbors import require_faiss
from dmlscale.launch.build import build_embedder, build_objective, mined_options
from dmlscale.launch.display import PackProgress
from dmlscale.launch.errors import LaunchError
from dmlscale.losses import LOSSES


def prepare_data(config: Config, say: Callable[[str], None]) -> Index:
    """The dataset, packed first if the config says from what.

    Raises:
        DataError: it is missing, damaged, or was packed with other options.
    """
    if config.data.source is not None:
        source = config.data.source.build()
        with PackProgress(source.num_items) as progress:
            summary = ensure_packed(source, config.data.path, progress=progress)
        say(str(summary))
    return Index.load(config.data.path)


def check_cheap(config: Config) -> None:
    """What needs neither data nor workers: names, options, and the packages evaluation needs.

    Raises:
        DataError: an unknown transform.
        ModelError: an unknown backbone, or options it refuses.
        FaissMissingError: no faiss is installed.
        LaunchError: a loss that cannot work with a memory or with class sampling, or GPU options without a GPU.
    """
    require_faiss()
    find_transform(config.data.transform)
    find_transform(config.data.eval_transform)
    build_embedder(config)
    _check_terms(config)
    if config.model.batch_norm == "sync" and config.resources.device == "cpu":
        raise LaunchError("model.batch_norm=sync needs GPUs; use frozen or local with resources.device=cpu")


def _check_terms(config: Config) -> None:
    for n, term in enumerate(config.losses):
        loss, where = LOSSES[term.name](**term.options), f"losses.{n}"
        if term.memory_start and not term.memory_size:
            raise LaunchError(f"{where}.memory_start={term.memory_start} has no effect without memory_size")
        if loss.block == "pairs" and (term.bank_lr is not None or term.bank_weight_decay is not None):
            raise LaunchError(f"{where}: {term.name} has no bank; leave out bank_lr and bank_weight_decay")
        if term.class_sampling is not None and (term.bank_weight_decay or config.optim.bank_weight_decay):
            raise LaunchError(f"{where}.class_sampling: banks with sampled classes have no weight decay; set it to 0")
        for key, is_on, check in (
            ("memory_size", term.memory_size > 0, require_memory_support),
            ("class_sampling", term.class_sampling is not None, require_sampling_support),
        ):
            try:
                if is_on:
                    check(term.name, loss)
            except ValueError as error:
                raise LaunchError(f"{where}.{key}: {error}; leave the key out or choose another loss") from None


def check_data(config: Config, index: Index) -> None:
    """Whether the data can be batched and the losses built as asked.

    Raises:
        DataError: a split is missing, P x K is larger than the data offers, or the data cannot be mined as asked.
        LaunchError: the splits leave nothing to evaluate, or have classes that the banks lack.
    """
    train = index.split(config.data.train_split)
    if count_relevant(index.split(config.data.eval_split).labels).max() < 1:
        raise LaunchError(
            f"data.eval_split={config.data.eval_split!r}: no class has two samples, so there is nothing to retrieve"
        )
    options = mined_options(config)
    if options is not None:
        check_mined_plan(train.labels, options)
    else:
        check_plan(
            train.labels,
            classes_per_batch=config.data.classes_per_batch,
            samples_per_class=config.data.samples_per_class,
            num_streams=config.data.num_streams,
        )
    outside = int(train.labels.max()) >= index.num_classes
    if outside and build_objective(config, 1, World()).banks():
        raise LaunchError(
            f"data.train_split={config.data.train_split!r} has labels up to {int(train.labels.max())}, but class "
            f"banks have a row for the {index.num_classes} classes of the split 'train' only"
        )


def check_batch(config: Config, index: Index) -> None:
    """Sends two samples of each split through transform and network, which must fit each other.

    Raises:
        LaunchError: they do not, or a picture cannot be read.
    """
    embedder = build_embedder(config).eval()
    for split, transform in (
        (config.data.train_split, config.data.transform),
        (config.data.eval_split, config.data.eval_transform),
    ):
        few = index.split(split).take(np.arange(2))
        try:
            batch = next(
                eval_batches(few, batch_size=2, transform=find_transform(transform), channels=config.data.channels)
            )
            with torch.no_grad():
                embedder(batch.images)
        except Exception as error:  # whatever a transform or a network makes of what does not fit
            raise LaunchError(
                f"samples of the split {split!r} do not pass through data transform {transform!r} and "
                f"{config.model.backbone} with data.channels={config.data.channels}: {error}"
            ) from error
