"""Everything that can be found wrong before a worker starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing

import numpy as np
import torch

from dmlscale.config.schema import Config
from dmlscale.data.damage import damaged_shards
from dmlscale.data.index import Index
from dmlscale.data.loader import Recipe, eval_batches
from dmlscale.data.packing.pack import ensure_packed
from dmlscale.data.planning.mined_plan import check_mined_plan
from dmlscale.data.planning.mixing import classes_in_a_window
from dmlscale.data.storage.storage import Storage
from dmlscale.distributed.support import require_memory_support, require_sampling_support
from dmlscale.distributed.world import World
from dmlscale.evaluation.metrics import count_relevant
from dmlscale.evaluation.neighbors import require_faiss
from dmlscale.launch.build import (
    build_decoder,
    build_embedder,
    build_objective,
    build_plans,
    mined_options,
    open_index,
)
from dmlscale.launch.display import PackProgress
from dmlscale.launch.errors import LaunchError
from dmlscale.losses import LOSSES

_TRIED = 8  # samples of a split that are tried for a batch


def prepare_data(config: Config, say: Callable[[str], None]) -> Index:
    """The dataset, packed first if the config says from what.

    Raises:
        DataError: it is missing, damaged, or was packed with other options.
    """
    if config.data.source is not None:
        if not Storage.open(config.data.path).is_local:
            raise LaunchError(f"data.source is packed into a folder: data.path={config.data.path} must be one")
        source = config.data.source.build()
        with PackProgress() as progress:
            summary = ensure_packed(source, config.data.path, progress=progress)
        for line in (str(summary), *summary.differences(source)):
            say(line)
    return open_index(config)


def check_cheap(config: Config) -> None:
    """What needs neither data nor workers: names, options, and the packages evaluation needs.

    Raises:
        ModelError: an unknown backbone, or options it refuses.
        FaissMissingError: no faiss is installed.
        LaunchError: a loss that cannot work with a memory or with class sampling, GPU options without a GPU, or ways
            of training that exclude each other; or train.best_metric is no metric.
    """
    require_faiss()
    build_embedder(config)
    check_terms(config)
    check_parallel(config)
    _check_best_metric(config)
    if config.model.batch_norm == "sync" and config.resources.device == "cpu":
        raise LaunchError("model.batch_norm=sync needs GPUs; use frozen or local with resources.device=cpu")


def _check_best_metric(config: Config) -> None:
    known = [f"recall_at_{k}" for k in config.evaluation.ks]
    known += ["precision_at_1", "r_precision", "map_at_r", "nmi", "ami", "f1"]
    if config.train.keep_best and config.train.best_metric not in known:
        raise LaunchError(
            f"train.best_metric={config.train.best_metric} is not measured by evaluations during training: there are "
            f"{', '.join(known)}; evaluation.ks says which recall_at_k"
        )


def check_parallel(config: Config) -> None:
    """Whether the ways of training go together.

    Raises:
        LaunchError: names the keys.
    """
    t = config.train
    if t.parallel == "fsdp" and t.reproducible:
        raise LaunchError(
            "train.reproducible=true needs the whole backbone on every worker, but train.parallel=fsdp keeps a part "
            "on each: leave train.reproducible out, or set train.parallel=ddp"
        )
    if config.model.batch_norm == "sync" and t.reproducible:
        raise LaunchError(
            "train.reproducible=true and model.batch_norm=sync exclude each other: what passes the network together, "
            "and with that its statistics, depends on the number of workers; leave one of them out"
        )
    if t.compile and t.reproducible:
        raise LaunchError(
            "train.reproducible=true and train.compile=true exclude each other: what is compiled may round otherwise "
            "from one run to the next; leave one of them out"
        )


def check_terms(config: Config) -> None:
    """Whether each loss can work with what is set for it.

    Raises:
        LaunchError: names the key.
    """
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


def check_data(config: Config, index: Index, say: Callable[[str], None] = print) -> None:
    """Whether the data can be batched and the losses built as asked.

    Raises:
        DataError: a split is missing, P x K is larger than the data offers, or the data cannot be mined as asked.
        LaunchError: the splits leave nothing to evaluate, or have classes that the banks lack.
    """
    train = index.split(config.data.train_split)
    check_evaluation(config, index)
    options = mined_options(config)
    if options is not None:
        check_mined_plan(train.labels, options)
    else:
        build_plans(config, train)
    check_shards(config, index, (config.data.train_split, config.data.eval_split, config.data.gallery_split), say)
    _check_input(config, index)
    _check_cache(config, train)
    if config.data.window_shards:
        _tell_poor_mixing(config, train, say)
    outside = int(train.labels.max()) >= index.num_classes
    if outside and build_objective(config, 1, World()).banks():
        raise LaunchError(
            f"data.train_split={config.data.train_split!r} has labels up to {int(train.labels.max())}, but class "
            f"banks have a row for the {index.num_classes} classes of the split 'train' only"
        )


def check_evaluation(config: Config, index: Index) -> None:
    """Whether there is something to retrieve.

    Raises:
        DataError: a split is missing.
        LaunchError: no query has a sample of its class to find.
    """
    d = config.data
    queries = index.split(d.eval_split)
    if d.gallery_split is None:
        if not count_relevant(queries.labels).any():
            raise LaunchError(
                f"data.eval_split={d.eval_split!r}: no class has two samples, so there is nothing to retrieve"
            )
    elif not count_relevant(queries.labels, index.split(d.gallery_split).labels).any():
        raise LaunchError(
            f"data.eval_split={d.eval_split!r} and data.gallery_split={d.gallery_split!r} have no class in common, so "
            f"there is nothing to retrieve: name splits of the same classes, or set data.gallery_split=null to look up "
            f"each query among the others"
        )


def check_shards(
    config: Config, index: Index, splits: Iterable[str | None], say: Callable[[str], None] = print
) -> None:
    """Says which samples cannot be read because shards of this machine are missing or too short.

    Raises:
        LaunchError: they are more than data.max_skipped allows, or offline mining needs them.
    """
    d = config.data
    for name in splits:
        if name is None:
            continue
        split = index.split(name)
        damaged = damaged_shards(split)
        num_lost = sum(shard.num_lost for shard in damaged)
        if not num_lost:
            continue
        more = f" and {len(damaged) - 1} others" if len(damaged) > 1 else ""
        first = f"{damaged[0].path} {damaged[0].what}{more}"
        what = f"{num_lost:,} of {len(split):,} samples of the split {name!r} cannot be read: {first}"
        advice = f"restore the shards (`dmlscale verify {d.path}` lists all) or pack again"
        if name == d.train_split and mined_options(config) is not None:
            raise LaunchError(f"{what}; data.sampling={d.sampling} needs all of them: {advice}")
        if num_lost > d.max_skipped * len(split):
            raise LaunchError(f"{what}: {advice}, or raise data.max_skipped ({d.max_skipped:g} of a split)")
        say(f"warning: {what}; they are skipped")


def _check_input(config: Config, index: Index) -> None:
    packed = index.description["input"]
    if packed != config.data.input:
        raise LaunchError(
            f"data.input={config.data.input!r}, but {index.storage} was packed from {packed!r}: set it so"
        )


def _tell_poor_mixing(config: Config, train: Index, say: Callable[[str], None]) -> None:
    found, expected = classes_in_a_window(train.shard_rows, train.class_rows.counts, config.data.window_shards)
    if found < expected / 2:
        say(
            f"warning: {config.data.window_shards} shards have {found:,} classes, where mixed ones would have "
            f"{expected:,.0f}: the shards are sorted by class, so few classes meet in a batch; raise "
            "data.window_shards, or pack the dataset anew"
        )


def _check_cache(config: Config, train: Index) -> None:
    """Whether what the batches are drawn from fits into the cache; else shards would be fetched again and again."""
    d = config.data
    far = [n for n in train.used_shards.tolist() if not train.storage.holds_locally(train.shards.names[n])]
    sizes = train.shards.sizes[far]
    if d.window_shards:
        needed = int(np.sort(sizes)[::-1][: 2 * d.window_shards].sum())
        what, advice = "two windows of shards take", "raise data.cache_gb or lower data.window_shards"
    else:
        needed = int(sizes.sum())
        what = f"the shards of {d.train_split!r} take"
        advice = "raise data.cache_gb, or set data.window_shards to draw batches from a few shards at a time"
    if needed > d.cache_gb * 10**9:
        raise LaunchError(f"{what} {needed / 1e9:.3g} GB, but data.cache_gb={d.cache_gb:g}: {advice}")


def check_batch(config: Config, index: Index) -> None:
    """Sends two samples of each split through transform and network, which must fit each other.

    Raises:
        LaunchError: they do not, or a picture cannot be read.
    """
    embedder = build_embedder(config).eval()
    d = config.data
    for split, transform in (
        (d.train_split, d.transform),
        (d.eval_split, d.eval_transform),
        (d.gallery_split, d.eval_transform),
    ):
        if split is None:
            continue
        whole = index.split(split)
        few = whole.take(np.arange(min(len(whole), _TRIED)))
        recipe = Recipe(build_decoder(config, index), transform.build())
        try:
            # A few bad samples are skipped in training as well; if all of these are bad, more will be.
            with closing(eval_batches(few, recipe, batch_size=2, max_skipped=len(few) - 1)) as batches:
                batch = next(batches)
            with torch.no_grad():
                embedder(batch.images)
        except Exception as error:  # whatever a transform or a network makes of what does not fit
            raise LaunchError(
                f"samples of the split {split!r} do not pass through data transform {transform.name!r} and "
                f"{config.model.backbone} with data.input={config.data.input} and "
                f"data.channels={config.data.channels}: {error}"
            ) from error
