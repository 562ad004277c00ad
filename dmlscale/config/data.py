"""The settings of the data: what to train on, where it lies, and how a global batch is made."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dmlscale.config.components import (
    SourceChoice,
    TransformChoice,
    TransformSetting,
    checked_options,
    transform_setting,
)
from dmlscale.config.section import Section
from dmlscale.data.decoding.log_mel import AudioOptions
from dmlscale.data.inputs import InputKind
from dmlscale.data.planning.mined_plan import MinedSampling
from dmlscale.data.planning.sampling import SamplingName
from dmlscale.data.transforms import TRANSFORMS


def _transform(name: str) -> TransformSetting:
    return TransformSetting(**transform_setting(name))


class DataConfig(Section):
    """What to train on and how a global batch is made."""

    path: str
    """Folder or URL of a packed dataset (`dmlscale pack`): any that fsspec knows, as s3://bucket/prefix."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """For a URL: options of fsspec's file system, as endpoint_url for S3. They are logged, so no secrets: credentials
    come from the environment, where the service's own tools look, or by a reference: `secret: env:NAME`."""
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
    validation_classes: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training classes that are set apart as a split "validation", chosen by their names: what a sweep
    chooses by. Classes that another split has too are never taken."""
    train_split: str = "train"
    eval_split: str = "test"
    """Its classes should be disjoint from those of train_split: zero-shot."""
    gallery_split: str | None = None
    """Where the samples of eval_split are looked up, as in the protocol of In-Shop; None: each among the others of
    eval_split."""
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
    """What a batch is made of. classes: P classes x K samples, every sample once an epoch. balanced: every class
    equally often. by_frequency: a class with m groups of K in proportion to m ** frequency_power. hierarchical: classes
    of super_classes_per_batch super-classes. all_positives: classes as a whole, P x K samples together. hard_triplets
    and hard_neighbors mine offline: every mine_every steps the training split is embedded and searched (nearness is
    evaluation.metric), and about P x K samples are, hard_triplets: an anchor, the farthest sample of its class, near
    samples of other classes; hard_neighbors: an anchor, any sample of its class, near samples of other classes for both
    (Song et al. 2016)."""
    frequency_power: float = Field(default=0.5, ge=0, le=1)
    """For sampling by_frequency: 0 is balanced, 1 is classes."""
    max_samples_per_class: int | None = Field(default=None, ge=1)
    """Most samples of a class in an epoch, in whole groups of K; the epochs after bring the others."""
    super_classes_per_batch: int = Field(default=1, ge=1)
    """For sampling hierarchical; divides P."""
    window_shards: int = Field(default=0, ge=0)
    """0: batches are drawn from the whole split. Else from so many shards at a time, in random order: for a dataset
    that is far away and larger than the cache."""
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

    @field_validator("gallery_split")
    @classmethod
    def _gallery_is_another_split(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is not None and name == info.data.get("eval_split"):
            raise ValueError("is eval_split itself: set it to null to look up each of its samples among the others")
        return name

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
