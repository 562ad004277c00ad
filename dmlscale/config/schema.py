"""The config: one tree of plain values, checked as a whole before any work is spent.

Losses and sources describe themselves (their dataclass fields are their schema), so they are not repeated here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from dmlscale.config.components import (
    LossTerm,
    SourceChoice,
    TransformChoice,
    TransformSetting,
    checked_options,
    transform_setting,
)
from dmlscale.data.inputs import InputKind
from dmlscale.data.log_mel import AudioOptions
from dmlscale.data.mined_plan import MinedSampling
from dmlscale.data.sampling import SamplingName
from dmlscale.data.transforms import TRANSFORMS


class Section(BaseModel):
    """A group of settings; a key that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class RunConfig(Section):
    """Where a run lives."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its folder; None makes one of the config's file name and the time."""
    folder: str = "runs"
    """Folder of all runs; on several nodes it must be storage that all of them share."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the order of samples, augmentation, initial weights and proxies."""


def _transform(name: str) -> TransformSetting:
    return TransformSetting(**transform_setting(name))


class DataConfig(Section):
    """What to train on and how a global batch is made."""

    path: str
    """Folder or URL of a packed dataset (`dmlscale pack`): any that fsspec knows, as s3://bucket/prefix."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """For a URL: options of fsspec's file system, as endpoint_url for S3. They are logged, so no secrets: credentials
    come from the environment."""
    cache_folder: str | None = None
    """Where shards that are not on this machine are kept; None takes $DMLSCALE_CACHE or ~/.cache/dmlscale."""
    cache_gb: float = Field(default=50.0, gt=0)
    """Most that the cache may hold, for all workers of a machine together."""
    retry_seconds: float = Field(default=120.0, ge=0)
    """How long to try again when a server does not answer; a shard that cannot be had then is skipped."""
    max_skipped: float = Field(default=0.01, ge=0, lt=1)
    """Share of a split's samples that may be left out because they cannot be read, counted on each worker; more is an
    error."""
    source: SourceChoice | None = None
    """Packed into `path` first, if nothing is there yet."""
    train_split: str = "train"
    eval_split: str = "test"
    """Its classes should be disjoint from those of train_split: zero-shot."""
    input: InputKind = "image"
    """What a sample's files are. image: a picture; views: several pictures of one object; array: .npy or .npz, vectors
    too; audio: .wav, from which log-mels are made."""
    channels: int = Field(default=3, ge=1, validate_default=True)
    """Of pictures 1 (grey) or 3 (RGB), to which they are converted; of arrays (c, h, w) c; of audio 1."""
    audio: dict[str, Any] | None = Field(default=None, validate_default=True)
    """How log-mels are made: sample_rate, seconds, window_ms, hop_ms, mels, low_hz, high_hz, log_floor."""
    classes_per_batch: int = Field(default=32, ge=1)
    """P: classes in a global batch."""
    samples_per_class: int = Field(default=4, ge=1)
    """K: samples of each of them."""
    num_streams: int = Field(default=8, ge=1)
    """N canonical streams a global batch is dealt to; divides P and is at least the number of workers."""
    sampling: SamplingName | MinedSampling = "classes"
    """What a batch is made of. classes: P classes x K samples, every sample once an epoch. balanced: every class equally
    often. by_frequency: a class with m groups of K in proportion to m ** frequency_power. hierarchical: classes of
    super_classes_per_batch super-classes. all_positives: classes as a whole, P x K samples together. hard_triplets and
    hard_neighbors mine offline: every mine_every steps the
    training split is embedded and searched (nearness is evaluation.metric), and about P x K samples are, hard_triplets:
    an anchor, the farthest sample of its class, near samples of other classes; hard_neighbors: an anchor, any sample of
    its class, near samples of other classes for both (Song et al. 2016)."""
    frequency_power: float = Field(default=0.5, ge=0, le=1)
    """For sampling by_frequency: 0 is balanced, 1 is classes."""
    max_samples_per_class: int | None = Field(default=None, ge=1)
    """Most samples of a class in an epoch, in whole groups of K; the epochs after bring the others."""
    super_classes_per_batch: int = Field(default=1, ge=1)
    """For sampling hierarchical; divides P."""
    window_shards: int = Field(default=0, ge=0)
    """0: batches are drawn from the whole split. Else from so many shards at a time, in random order: for a dataset that
    is far away and larger than the cache."""
    mine_every: int = Field(default=200, ge=1)
    """Steps between two minings; the first is before step 0."""
    mine_candidates: int = Field(default=10, ge=1, le=1000)
    """Nearest samples of other classes that hard negatives are drawn from: with 1 always the nearest, more make batches
    differ and let outliers and wrong labels weigh less."""
    mine_negatives: int = Field(default=1, ge=1)
    """Hard negatives drawn for an anchor (hard_triplets) or for each end of a pair (hard_neighbors)."""
    transform: TransformChoice = Field(default_factory=lambda: _transform("papers_train"), validate_default=True)
    """A recipe by its name, or with options: {name: papers_train, size: 64}."""
    eval_transform: TransformChoice = Field(default_factory=lambda: _transform("papers_eval"), validate_default=True)
    loader_threads: int = Field(default=1, ge=1)
    """Threads per worker that read, decode and transform."""

    @field_validator("channels")
    @classmethod
    def _channels_are_those_of_the_input(cls, channels: int, info: ValidationInfo) -> int:
        if info.data.get("input") in ("image", "views") and channels not in (1, 3):
            raise ValueError("pictures have 1 or 3")
        if info.data.get("input") == "audio" and channels != 1:
            raise ValueError("log-mels have one: set data.channels=1")
        return channels

    @field_validator("audio", mode="before")
    @classmethod
    def _audio_is_for_audio(cls, options: Any, info: ValidationInfo) -> Any:
        if info.data.get("input") == "audio" and (options is None or isinstance(options, dict)):
            return checked_options(AudioOptions, options or {}, name="audio")
        if options is not None:
            raise ValueError("is a group of settings for data.input=audio alone")
        return None

    @field_validator("transform", "eval_transform")
    @classmethod
    def _transform_is_for_the_input(cls, transform: TransformSetting, info: ValidationInfo) -> TransformSetting:
        kind = info.data.get("input", "image")
        if kind not in TRANSFORMS[transform.name].inputs:
            fitting = [name for name, recipe in TRANSFORMS.items() if kind in recipe.inputs]
            raise ValueError(f"{transform.name} is not for data.input={kind} (those that are: {', '.join(fitting)})")
        return transform

    @model_validator(mode="after")
    def _streams_divide_classes(self) -> DataConfig:
        if self.classes_per_batch % self.num_streams:
            raise ValueError(f"num_streams {self.num_streams} must divide classes_per_batch {self.classes_per_batch}")
        return self

    @model_validator(mode="after")
    def _negatives_are_drawn_from_candidates(self) -> DataConfig:
        if self.mine_negatives > self.mine_candidates:
            raise ValueError(
                f"mine_negatives {self.mine_negatives} are drawn from mine_candidates {self.mine_candidates}: "
                "raise the candidates or lower the negatives"
            )
        return self


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
    log_every: int = Field(default=10, ge=1)
    eval_every: int = Field(default=0, ge=0)
    """0: only at the end."""
    checkpoint_every: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)


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
    """Rows of the picture of queries and neighbours; 0 leaves it out."""


class ResourcesConfig(Section):
    """What the run takes of the cluster. On one kind of device, the number of workers does not change the results."""

    workers: int = Field(default=1, ge=1)
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """gpu: one per worker. auto: gpu where the cluster has one for each worker."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """Less than one lets more workers than cores share a machine."""
    address: str | None = None
    """Of a Ray cluster; None starts one on this machine, unless RAY_ADDRESS is set."""
    max_failures: int = Field(default=0, ge=0)
    """How often to restart from the last checkpoint after a worker has died."""


class TrackingConfig(Section):
    """Where the run is logged."""

    uri: str | None = None
    """MLflow store; None takes MLFLOW_TRACKING_URI, or else a local SQLite file beside the runs."""
    experiment: str = "dmlscale"
    system_metrics_every_s: float = Field(default=5.0, gt=0)


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
