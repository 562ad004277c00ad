"""Everything that can be found wrong before a worker starts."""

from __future__ import annotations

from collections.abc import Callable

from dmlscale.config.schema import Config
from dmlscale.data.index import Index
from dmlscale.data.plan import check_plan
from dmlscale.data.shards import ensure_packed
from dmlscale.data.transforms import find_transform
from dmlscale.distributed.world import World
from dmlscale.evaluation.neighbors import require_faiss
from dmlscale.launch.build import build_embedder, build_objective
from dmlscale.launch.display import PackProgress
from dmlscale.launch.errors import LaunchError


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
    """
    require_faiss()
    find_transform(config.data.transform)
    find_transform(config.data.eval_transform)
    build_embedder(config)
    if config.model.batch_norm == "sync" and config.resources.device == "cpu":
        raise LaunchError("model.batch_norm=sync needs GPUs; use frozen or local with resources.device=cpu")


def check_data(config: Config, index: Index) -> None:
    """Whether the data can be batched and the losses built as asked.

    Raises:
        DataError: a split is missing, or P x K is larger than the data offers.
        LaunchError: the splits leave nothing to evaluate.
    """
    train = index.split(config.data.train_split)
    index.split(config.data.eval_split)
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
