"""The command ``embed``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dmlscale.data.embeddings_file import EmbeddingsWriter, Provenance
from dmlscale.data.errors import DataError
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.models.embedding_model import EmbeddingModel
from dmlscale.launch.models.model_folder import load_model
from dmlscale.launch.vectors.embed_sources import FileSamples, NamedBatch, PackedSamples, open_samples
from dmlscale.launch.vectors.printable import printable


def embed(model: str, source: str, out: str, *, split: str | None = None, batch_size: int | None = None) -> int:
    """Writes the embeddings of all samples of a source, in bounded memory; on a GPU where torch sees one.

    Samples that cannot be read are left out, and told.

    Args:
        model: an exported folder, a checkpoint, or a run's folder.
        source: a packed dataset (folder or URL), a folder of files at any depth, or one file.
        out: Parquet file to write; one that is there is replaced when the new one is complete.
        split: of a packed dataset; None takes all.
        batch_size: samples in the network at a time; None takes that of the model's evaluation.

    Returns:
        0 if there are embeddings, 1 if not one sample could be read: then nothing is written.

    Raises:
        LaunchError: there is no such model or source, or another option is wrong.
        DataError: samples do not fit the model, or the file cannot be written.
    """
    if not out.endswith(".parquet"):
        raise LaunchError(f"{out} is to be a Parquet file: let its name end in .parquet")
    if Path(out).is_dir():
        raise LaunchError(f"{out} is a folder: name the Parquet file to write")
    if batch_size is not None and batch_size < 1:
        raise LaunchError(f"--batch-size {batch_size}, must be at least 1")
    opened = load_model(model, device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    samples = open_samples(opened, source, split, batch_size or opened.config.evaluation.batch_size)
    provenance = Provenance(
        model=opened.name,
        model_hash=opened.content_hash,
        model_path=model,
        metric=opened.config.evaluation.metric,
        source=source,
        input=opened.config.data.input,
    )
    with EmbeddingsWriter(Path(out), opened.embedding_dim, provenance) as writer:
        _write(opened, samples, writer)
        num_lost = samples.total - writer.num_rows
        remarks = [*([f"skipped {num_lost:,} that cannot be read"] if num_lost else []), *samples.remarks]
        if not writer.num_rows:
            print(f"error: {'; '.join([f'no embeddings of {source}', *remarks])}", file=sys.stderr)
            return 1
        writer.publish()
    made = f"{out}: {writer.num_rows:,} embeddings of {opened.embedding_dim} dimensions by {opened.name}"
    print("; ".join([made, *remarks]))
    return 0


def _write(model: EmbeddingModel, samples: PackedSamples | FileSamples, writer: EmbeddingsWriter) -> None:
    columns = (
        TextColumn("embedding"),
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,} samples"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("embedding", total=samples.total)
        for batch in samples.batches():
            writer.append(batch.ids, batch.labels, batch.splits, _vectors(model, batch))
            bar.update(task, completed=writer.num_rows)


def _vectors(model: EmbeddingModel, batch: NamedBatch) -> NDArray[np.float32]:
    try:
        return model.embed_images(batch.images)
    except DataError as error:
        raise DataError(f"{printable(batch.ids[0])} to {printable(batch.ids[-1])}: {error}") from None
