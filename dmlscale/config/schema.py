"""The config: one tree of plain values, checked as a whole before any work is spent.

Losses and sources describe themselves (their dataclass fields are their schema), so they are not repeated here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dmlscale.config.components import LossTerm
from dmlscale.config.data import DataConfig
from dmlscale.config.section import Section


class RunConfig(Section):
    """Where a run lives."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its folder; None makes one of the config's file name and the time."""
    folder: str = "runs"
    """Folder of all runs; on several nodes it must be storage that all of them share."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the order of samples, augmentation, initial weights and proxies."""


class ModelConfig(Section):
    """Backbone and embedding head."""

    backbone: str = "resnet50"
    """Name of a timm model, or mlp for vectors."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed on to timm; of mlp: in_features, hidden (a list of widths)."""
    pretrained: bool = False
    batch_norm: Literal["local", "frozen", "sync"] = "local"
    """local: each worker's own statistics; frozen: fixed; sync: over all workers (GPU)."""
    embedding_dim: int = Field(default=128, ge=1)
    normalize: bool = True
    """Embeddings of length one; off for losses on un-normalised Euclidean distance."""
    channels_last: bool = True
    """Memory order of images and convolutions."""
    view_pooling: Literal["max", "mean"] = "max"
    """What becomes of the features of an object's views, for data.input=views: the largest of each, or their mean."""


class OptimConfig(Section):
    """Optimizer, learning rates of its groups, and their course."""

    name: Literal["adamw", "sgd"] = "adamw"
    backbone_lr: float = Field(default=1e-4, gt=0)
    head_lr: float = Field(default=1e-4, gt=0)
    bank_lr: float = Field(default=1e-2, gt=0)
    """Of proxies and centers."""
    weight_decay: float = Field(default=1e-4, ge=0)
    bank_weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    step_every: int = Field(default=0, ge=0)
    """For schedule "step": steps between two decays."""
    step_factor: float = Field(default=0.5, gt=0, le=1)
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the whole gradient, banks included."""


class TrainConfig(Section):
    """Length of the run and what happens on the way."""

    steps: int = Field(ge=1)
    """Optimizer steps, whatever the number of workers."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the backbone; auto takes bf16 where the GPU has it. Losses are computed in fp32."""
    reproducible: bool | None = None
    """The same bits at any number of workers, at some cost in speed; None: on CPU yes, on GPU no."""
    bank_start: Literal["random", "class_means"] = "random"
    """class_means embeds the training split once and starts each class's rows there, seen from the middle of all."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Most samples in the network at a time on each worker; the loss still sees the whole global batch, at the cost of
    a second forward pass. None: the whole batch at once."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """ddp: every worker holds the whole backbone and its optimizer state. fsdp: a part of them, fetched layer by layer
    when it is needed; for backbones that do not fit."""
    by_node: bool = False
    """For slow links between nodes. ddp: gradients are summed within each node first, then between nodes. fsdp: a
    backbone is cut over the workers of a node, and the nodes hold the same."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the backbone with torch.compile; the first steps take minutes."""
    log_every: int = Field(default=10, ge=1)
    eval_every: int = Field(default=0, ge=0)
    """0: only at the end."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between two checkpoints."""
    checkpoint_every_minutes: float | None = Field(default=None, gt=0)
    """Also save when so many minutes have passed since the last checkpoint."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the newest to keep."""
    keep_best: int = Field(default=0, ge=0)
    """How many of the best to keep beside them, by best_metric; each evaluation is then saved. Of use
    with eval_every."""
    best_metric: str = "recall_at_1"
    """A metric of the evaluation split of which more is better."""
    checkpoint_folder: str | None = None
    """Folder or URL (any that fsspec knows, as s3://bucket/prefix) under which the run's checkpoints are kept, in a
    folder of the run's name; None: in the run's own folder."""
    checkpoint_storage_options: dict[str, Any] = Field(default_factory=dict)
    """For a URL: see data.storage_options."""
    async_checkpoints: bool = True
    """Write checkpoints while the training goes on, from a copy in memory."""
    on_checkpoint_error: Literal["continue", "stop"] = "continue"
    """When a checkpoint cannot be written: go on with the last good one and try again at the next, or stop. The last
    checkpoint of a run must be written in any case."""
    max_skipped_steps: int = Field(default=3, ge=0)
    """Steps that may be skipped because their loss or gradient is not finite; one more ends the run."""


class EvalConfig(Section):
    """Zero-shot retrieval of the evaluation split."""

    ks: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 4, 8)
    """For Recall@k."""
    batch_size: int = Field(default=256, ge=1)
    """Per worker."""
    metric: Literal["cosine", "euclidean"] = "cosine"
    raw_pixels: bool = True
    """Also measure nearest neighbours of the pixels, as the line to beat."""
    gallery_queries: int = Field(default=9, ge=0)
    """Rows of the report's picture of queries and neighbours; 0 leaves it out."""
    report: bool = True
    """At the end of a training also measure the whole ranking, verification and unknown classes, and draw it all.
    False: only what is measured on the way, and no pictures. `dmlscale evaluate` measures everything in any case."""


class ResourcesConfig(Section):
    """What the run takes of the cluster. On one kind of device, the number of workers does not change the results."""

    workers: int = Field(default=1, ge=1)
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """gpu: one per worker. auto: gpu where the cluster has one for each worker."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """Less than one lets more workers than cores share a machine."""
    address: str | None = None
    """Of a Ray cluster; None starts one on this machine, unless RAY_ADDRESS is set."""
    min_workers: int | None = Field(default=None, ge=1)
    """Go on with as few as this where nodes are lost, and with more again, up to `workers`, when they are back; None:
    wait for all."""
    max_failures: int = Field(default=3, ge=0)
    """How often in a row, without a new checkpoint between, to start again from the last one after a worker, a node or
    the network has failed. Errors that a restart cannot mend end the run at once."""
    heartbeat_timeout_s: float = Field(default=60.0, gt=0)
    """A worker that has not been heard from for so long is taken for lost: the others end and start again."""
    stall_timeout_s: float = Field(default=600.0, gt=0)
    """A training step that takes so long is taken for hung; evaluation may take longer."""
    first_step_timeout_s: float = Field(default=900.0, gt=0)
    """The same up to the end of the first step, in which weights are fetched and kernels compiled, if it is more than
    `stall_timeout_s`; what passes over the data (class means, mining) may take longer."""


class TrackingConfig(Section):
    """Where the run is logged."""

    uri: str | None = None
    """MLflow store; None takes MLFLOW_TRACKING_URI, or else a local SQLite file beside the runs."""
    if_unreachable: Literal["fail", "continue"] = "fail"
    """When the store does not answer at the start: end with an error, or train and keep all on disk until it does
    (`dmlscale sync` sends it later). Once a run has begun, a store that is away never stops it."""
    experiment: str = "dmlscale"
    system_metrics_every_s: float = Field(default=5.0, gt=0)
    registered_model: str | None = Field(default=None, pattern=r"^[^/:]+$")
    """Name in MLflow's registry under which the trained model becomes a new version; None leaves that out."""


class Config(Section):
    """All settings of a run."""

    run: RunConfig = RunConfig()
    data: DataConfig
    model: ModelConfig = ModelConfig()
    losses: tuple[LossTerm, ...]
    """Summed with their weights; a single loss may be given without the list."""
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    evaluation: EvalConfig = EvalConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _one_loss_is_a_list_of_one(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("losses"), dict):
            return values | {"losses": [values["losses"]]}
        if isinstance(values, dict) and values.get("losses") == []:
            raise ValueError("losses: needs at least one loss")
        return values

    @model_validator(mode="after")
    def _streams_serve_all_workers(self) -> Config:
        if self.resources.workers > self.data.num_streams:
            raise ValueError(
                f"resources.workers is {self.resources.workers}, but data.num_streams is {self.data.num_streams}: "
                "each worker needs a stream of its own; lower the workers or raise num_streams (which must divide "
                "data.classes_per_batch)"
            )
        return self

    @model_validator(mode="after")
    def _fewest_workers_are_not_more_than_all(self) -> Config:
        r = self.resources
        if r.min_workers is not None and r.min_workers > r.workers:
            raise ValueError(
                f"resources.min_workers is {r.min_workers}, but resources.workers is {r.workers}: the run has at most "
                "`workers` of them; lower min_workers"
            )
        return self

    @model_validator(mode="after")
    def _storage_options_have_a_url(self) -> Config:
        t = self.train
        if t.checkpoint_storage_options and t.checkpoint_folder is None:
            raise ValueError(
                "train.checkpoint_storage_options are for a URL, but train.checkpoint_folder is not set: set it, or "
                "leave the options out"
            )
        return self
