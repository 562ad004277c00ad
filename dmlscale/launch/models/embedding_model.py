"""A trained network with everything between a sample's files and its vector."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmlscale.config.schema import Config
from dmlscale.data.decoding.contents import Content
from dmlscale.data.decoding.decode import Decoder
from dmlscale.data.errors import DataError
from dmlscale.data.transforms import Transform, apply
from dmlscale.models.embedder import Embedder


@dataclass(frozen=True)
class Origin:
    """Where a model comes from; names only, no path of the machine that it was made on.

    Args:
        run: name of the run that trained it.
        step: of the checkpoint.
        dataset: that it was trained on.
        losses: that it was trained with.
        versions: of the packages that were installed when it was taken out of its checkpoint.
    """

    run: str
    step: int
    dataset: str
    losses: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class EmbeddingModel:
    """Files of samples in, embeddings out. Threads may share one.

    Args:
        embedder: the network; in evaluation mode from here on.
        decoder: a sample's files -> one tensor.
        transform: decoded samples -> the network's input; the one that the run was evaluated with.
        config: with the sections ``data``, ``model`` and ``evaluation``; of an exported folder the others are empty of
            meaning, and ``data.path`` is the name of the dataset.
        origin: the training.
        content_hash: see `hash_of_weights`.
        device: of the network.
    """

    embedder: Embedder
    decoder: Decoder
    transform: Transform
    config: Config
    origin: Origin
    content_hash: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        self.embedder.to(self.device).eval()

    @property
    def name(self) -> str:
        """For messages: "quickstart at step 1000"."""
        return f"{self.origin.run} at step {self.origin.step}"

    @property
    def embedding_dim(self) -> int:
        """Values of an embedding, d."""
        return self.config.model.embedding_dim

    def embed_parts(self, samples: Sequence[Sequence[Content]]) -> NDArray[np.float32]:
        """The embeddings of samples, made as the evaluation of the run made them.

        Decoded are ``evaluation.batch_size`` samples at a time.

        Args:
            samples: n of them, each the contents of its files: one, or several for the input "views".

        Returns:
            (n, d) float32.

        Raises:
            DataError: a sample cannot be decoded (names its position, from 0), or samples of one batch do not fit
                together or into the network.
        """
        size = self.config.evaluation.batch_size
        chunks = [self._embed_chunk(samples[start : start + size], start) for start in range(0, len(samples), size)]
        return np.concatenate(chunks) if chunks else np.empty((0, self.embedding_dim), np.float32)

    def embed_images(self, images: Tensor) -> NDArray[np.float32]:
        """The embeddings of transformed samples, ``evaluation.batch_size`` at a time.

        Args:
            images: (b, channels, height, width), views (b, v, channels, height, width) or vectors (b, n), float32.

        Returns:
            (b, d) float32.

        Raises:
            DataError: their shape does not fit the network.
        """
        if not len(images):
            return np.empty((0, self.embedding_dim), np.float32)
        with torch.inference_mode():
            try:
                made = [self.embedder(part.to(self.device)).cpu() for part in self._batches(images)]
            except RuntimeError as error:
                shape = tuple(images.shape[1:])
                reason = str(error).splitlines()[0]
                raise DataError(f"samples of shape {shape} do not fit the network of {self.name}: {reason}") from error
        return torch.cat(made).float().numpy()

    def _batches(self, images: Tensor) -> Sequence[Tensor]:
        return images.split(self.config.evaluation.batch_size)

    def _embed_chunk(self, samples: Sequence[Sequence[Content]], start: int) -> NDArray[np.float32]:
        decoded = []
        for position, parts in enumerate(samples, start):
            try:
                decoded.append(self.decoder(parts))
            except ValueError as error:
                raise DataError(f"sample {position} cannot be decoded: {error}") from None
        ids = np.arange(start, start + len(decoded), dtype=np.int64)
        return self.embed_images(apply(self.transform, decoded, ids, seed=0, epoch=0))


def hash_of_weights(weights: Mapping[str, Tensor]) -> str:
    """A name of the weights: equal for equal weights, wherever they are kept.

    Args:
        weights: a state dict.

    Returns:
        128 bits of BLAKE2b over names, types, shapes and values, as hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        # Cloned: a tensor of one value counts as contiguous whatever its stride, and cannot be viewed as bytes then.
        tensor = weights[name].detach().cpu().clone(memory_format=torch.contiguous_format)
        digest.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
