"""The one place where a config becomes objects. Classes take plain values; none of them knows the config."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast, get_args

import torch
from torch import nn

from dmlscale.config.components import LossChoice
from dmlscale.config.schema import Config
from dmlscale.data.decoding.decode import Decoder, find_decoder
from dmlscale.data.decoding.log_mel import AudioOptions
from dmlscale.data.hold_out import hold_out_classes
from dmlscale.data.index import Index
from dmlscale.data.loader import Recipe, TrainStream, eval_batches
from dmlscale.data.planning.mined_plan import MinedOptions, MinedSampling
from dmlscale.data.planning.mined_rounds import Mine, MinedRounds
from dmlscale.data.planning.planner import EpochPlanner
from dmlscale.data.planning.sampling import Sampling, SamplingName
from dmlscale.data.storage.cache import ShardCache, default_cache_folder
from dmlscale.data.storage.retry import Retry
from dmlscale.data.types import Batch
from dmlscale.distributed.class_sampling import ClassSampling
from dmlscale.distributed.fully_sharded import fully_sharded
from dmlscale.distributed.global_loss import GlobalLoss
from dmlscale.distributed.node_groups import grouped_by_node
from dmlscale.distributed.world import World
from dmlscale.distributed.wrap import data_parallel
from dmlscale.launch.equal_batches import equal_batches
from dmlscale.models.backbone import backbone
from dmlscale.models.blocks import find_blocks
from dmlscale.models.checkpointing import recompute_activations
from dmlscale.models.compilation import compile_blocks
from dmlscale.models.embedder import Embedder
from dmlscale.models.half_precision import HalfPrecision
from dmlscale.training.loop import Rhythm
from dmlscale.training.objective import Objective
from dmlscale.training.optim import BankRates, optimizer, schedule
from dmlscale.training.step import Trainee


def build_embedder(config: Config) -> Embedder:
    """The network; its first weights depend on the seed alone."""
    torch.manual_seed(config.run.seed)
    net, num_features = backbone(
        config.model.backbone,
        channels=config.data.channels,
        pretrained=config.model.pretrained,
        batch_norm=config.model.batch_norm,
        options=config.model.options,
    )
    return Embedder(
        net,
        num_features,
        config.model.embedding_dim,
        normalize=config.model.normalize,
        channels_last=config.model.channels_last,
        view_pooling=config.model.view_pooling,
    )


def build_decoder(config: Config, index: Index) -> Decoder:
    """What makes tensors of a sample's files."""
    d = config.data
    return find_decoder(
        d.input,
        channels=d.channels,
        audio=None if d.audio is None else AudioOptions(**d.audio),
        is_checked=index.description["packing"]["check"],
    )


def build_objective(config: Config, num_classes: int, world: World) -> Objective:
    """The weighted losses with their banks."""
    return Objective(
        [
            (
                GlobalLoss(
                    term.name,
                    num_classes=num_classes,
                    embedding_dim=config.model.embedding_dim,
                    seed=config.run.seed + n,
                    group=world.group,
                    by_node=config.train.by_node,
                    memory_size=term.memory_size,
                    memory_start=term.memory_start,
                    class_sampling=class_sampling(term),
                    **term.options,
                ),
                term.weight,
            )
            for n, term in enumerate(config.losses)
        ]
    )


def class_sampling(term: LossChoice) -> ClassSampling | None:
    """Which classes a loss looks at; None for all."""
    if term.class_sampling is None:
        return None
    return ClassSampling(term.class_sampling, unbiased=term.class_sampling_unbiased)


def build_trainee(
    config: Config, embedder: Embedder, objective: Objective, world: World, device: torch.device
) -> Trainee:
    """Model, losses and optimizer, ready for steps.

    Args:
        config: of the run.
        embedder: on the CPU or on ``device``; changed in place.
        objective: on ``device``.
        world: the ranks.
        device: of this rank.
    """
    o = config.optim
    model = build_parallel(config, embedder, world, device)  # first: the optimizer is given the parameters it leaves
    return Trainee(
        model=model,
        objective=objective,
        optimizer=optimizer(
            embedder,
            objective,
            name=o.name,
            backbone_lr=o.backbone_lr,
            head_lr=o.head_lr,
            bank_lr=o.bank_lr,
            weight_decay=o.weight_decay,
            bank_weight_decay=o.bank_weight_decay,
            banks=[BankRates(term.bank_lr, term.bank_weight_decay) for term in config.losses],
            momentum=o.momentum,
            eps=o.eps,
        ),
        schedule=schedule(
            o.schedule,
            total_steps=config.train.steps,
            warmup_steps=o.warmup_steps,
            step_every=o.step_every,
            step_factor=o.step_factor,
        ),
        world=grouped_by_node(world) if config.train.by_node else world,
        clip_norm=o.clip_norm,
        half_precision=half_precision(config, device),
        reproducible=is_reproducible(config, device),
        seed=config.run.seed,
        micro_batch=config.train.micro_batch_size,
    )


def build_parallel(config: Config, embedder: Embedder, world: World, device: torch.device) -> nn.Module:
    """The network as it trains: compiled or computed twice where asked, its gradients summed over ranks.

    Raises:
        ModelError: train.compile, and this machine has no compiler.
        ValueError: fsdp with train.by_node, and nodes have different numbers of workers.
    """
    t = config.train
    is_sharded = t.parallel == "fsdp" and world.num_ranks > 1
    blocks = find_blocks(embedder.backbone) if t.compile or t.activation_checkpointing or is_sharded else []
    if t.compile:
        compile_blocks(blocks)
    if t.activation_checkpointing:
        recompute_activations(blocks)
    if is_sharded:
        half = half_precision(config, device)
        return fully_sharded(embedder, blocks, world, half_precision=half, by_node=t.by_node)
    embedder.to(device)
    return embedder if is_reproducible(config, device) else data_parallel(embedder, world, by_node=t.by_node)


def evaluated(config: Config, embedder: Embedder, world: World, device: torch.device) -> nn.Module:
    """What embeds while a run trains. Evaluation is in float32, unless the weights are sent in half precision."""
    is_rounded = config.train.parallel == "fsdp" and world.num_ranks > 1 and half_precision(config, device)
    return HalfPrecision(embedder) if is_rounded else embedder


def is_reproducible(config: Config, device: torch.device) -> bool:
    """Whether a run has the same bits at any number of ranks."""
    if config.train.reproducible is None:
        return device.type == "cpu" and config.train.parallel == "ddp" and not config.train.compile
    return config.train.reproducible


def half_precision(config: Config, device: torch.device) -> bool:
    """Whether the backbone computes in bf16."""
    if config.train.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return config.train.precision == "bf16"


def open_index(config: Config) -> Index:
    """The dataset, with its validation classes set apart if the config asks for some.

    Raises:
        DataError: it is missing or damaged, or has too few classes to set some apart.
    """
    d = config.data
    folder = default_cache_folder() if d.cache_folder is None else Path(d.cache_folder).expanduser()
    cache = ShardCache(folder, int(d.cache_gb * 10**9), Retry(seconds=d.retry_seconds))
    index = Index.load(d.path, d.storage_options, cache)
    if not d.validation_classes:
        return index
    return hold_out_classes(index, d.validation_classes, train_split=d.train_split)


def mined_options(config: Config) -> MinedOptions | None:
    """How mined batches are made; None where batches are not mined."""
    d = config.data
    if d.sampling not in get_args(MinedSampling):
        return None
    return MinedOptions(
        sampling=cast(MinedSampling, d.sampling),
        batch_size=d.classes_per_batch * d.samples_per_class,
        num_streams=d.num_streams,
        num_steps=d.mine_every,
        num_candidates=d.mine_candidates,
        num_negatives=d.mine_negatives,
    )


def build_plans(config: Config, split: Index, mine: Mine | None = None) -> EpochPlanner | MinedRounds:
    """What the batches of a split are; ``mine`` is called for those that are mined.

    Raises:
        DataError: the data cannot be batched as asked.
    """
    d, seed = config.data, config.run.seed
    options = mined_options(config)
    if options is not None:
        assert mine is not None
        return MinedRounds(split.labels, split.row_ids, options, seed=seed, mine=mine)
    sampling = Sampling(
        classes_per_batch=d.classes_per_batch,
        samples_per_class=d.samples_per_class,
        num_streams=d.num_streams,
        name=cast(SamplingName, d.sampling),
        frequency_power=d.frequency_power,
        max_samples_per_class=d.max_samples_per_class,
        super_classes_per_batch=d.super_classes_per_batch,
        window_shards=d.window_shards,
    )
    return EpochPlanner(
        split.class_rows,
        sampling,
        seed=seed,
        super_classes=split.super_classes()[0] if split.has_super_classes else None,
        shards=split.shard_rows if d.window_shards else None,
    )


def build_stream(config: Config, index: Index, world: World, mine: Mine) -> TrainStream:
    """This rank's training batches; ``mine`` is called for those that are mined."""
    split = index.split(config.data.train_split)
    return TrainStream(
        split,
        build_plans(config, split, mine),
        Recipe(build_decoder(config, index), config.data.transform.build()),
        seed=config.run.seed,
        rank=world.rank,
        num_ranks=world.num_ranks,
        num_workers=config.data.loader_threads,
        max_skipped=_most_skipped(config, split),
    )


def build_eval_batches(config: Config, index: Index, split_name: str, world: World) -> Iterator[Batch]:
    """This rank's share of a split, once; with empty batches at the end where a model in shards needs them."""
    split = index.split(split_name)
    batches = eval_batches(
        split,
        Recipe(build_decoder(config, index), config.data.eval_transform.build()),
        batch_size=config.evaluation.batch_size,
        rank=world.rank,
        num_ranks=world.num_ranks,
        num_workers=config.data.loader_threads,
        max_skipped=_most_skipped(config, split),
    )
    return equal_batches(batches, world) if config.train.parallel == "fsdp" else batches


def _most_skipped(config: Config, split: Index) -> int:
    return int(config.data.max_skipped * len(split))


def build_rhythm(config: Config) -> Rhythm:
    """Length of the run and what happens on the way."""
    t = config.train
    return Rhythm(t.steps, t.log_every, t.eval_every, t.checkpoint_every, save_evaluated=t.keep_best > 0)
