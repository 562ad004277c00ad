"""The command ``search``."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dmlscale.data.errors import DataError
from dmlscale.evaluation.figures.style import png
from dmlscale.evaluation.figures_search import Found, search_result
from dmlscale.evaluation.thumbnails import thumbnail
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.models.embedding_model import EmbeddingModel
from dmlscale.launch.models.model_folder import load_model
from dmlscale.launch.vectors.found_pictures import read_pictures
from dmlscale.launch.vectors.index_folder import IndexFolder, open_index_folder
from dmlscale.launch.vectors.printable import printable

_WIDEST = 10_000  # characters: a table that goes into a file is not folded


def search(image: str, index: str, *, model: str | None = None, k: int = 10, pictures: str | None = None) -> int:
    """Prints what an index holds that is nearest to a picture.

    Args:
        image: file of the query: a picture, or whatever else the model takes.
        index: folder of ``index``; only from people you trust.
        model: an exported folder, a checkpoint, or a run's folder; None takes the one that the index names.
        k: neighbours.
        pictures: for a picture of query and neighbours, PNG. They are read from where they were embedded; those that
            cannot be had any more are left blank, and told.

    Returns:
        0.

    Raises:
        LaunchError: there is no such index, model or file, or the index was made by another model.
        DataError: the file cannot be decoded, or the picture cannot be written.
    """
    if k < 1:
        raise LaunchError(f"-k {k}, must be at least 1")
    if pictures is not None:
        _check_writable(Path(pictures))
    opened = open_index_folder(Path(index))
    embedder = _model(opened, index, model)
    query = _read(image)
    found = _look_up(opened, embedder, image, query, k)
    closeness = "cosine similarity" if opened.index.metric == "cosine" else "Euclidean distance"
    if opened.kind == "ivf_pq":
        closeness = f"approximate {closeness}"
    _print(found, closeness)
    if pictures is not None:
        images, problems = read_pictures(embedder, opened.provenance, [neighbour.id for neighbour in found])
        figure = search_result(
            thumbnail(embedder.decoder([query])), found, images, title=f"Nearest to {image}", closeness=closeness
        )
        try:
            Path(pictures).write_bytes(png(figure))
        except OSError as error:
            raise DataError(f"cannot write {pictures}: {error.strerror}") from None
        print(f"pictures: {pictures}")
        for problem in problems:
            print(f"left blank: {printable(problem)}", file=sys.stderr)
    return 0


def _check_writable(pictures: Path) -> None:
    if pictures.is_dir():
        raise LaunchError(f"--pictures {pictures}: is a folder; name the PNG file to write")
    if not pictures.absolute().parent.is_dir():
        raise LaunchError(f"--pictures {pictures}: there is no folder {pictures.absolute().parent}; make it first")


def _model(opened: IndexFolder, index: str, given: str | None) -> EmbeddingModel:
    """The model that made an index; another one's embeddings cannot be compared with it."""
    made_by = opened.provenance
    path = made_by.model_path if given is None else given
    if given is None and not Path(path).exists():
        raise LaunchError(
            f"{index} was made by {made_by.model}, then at {path}, which is not there (seen from {Path.cwd()}): "
            "tell where it is with --model"
        )
    model = load_model(path)
    if model.content_hash != made_by.model_hash:
        raise LaunchError(
            f"{index} was made by {made_by.model} (weights {made_by.model_hash}), {path} is {model.name} (weights "
            f"{model.content_hash}): give that one with --model, or embed and index with this one"
        )
    return model


def _read(image: str) -> bytes:
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise LaunchError(f"cannot read {image}: {error.strerror}") from None


def _look_up(opened: IndexFolder, model: EmbeddingModel, image: str, query: bytes, k: int) -> list[Found]:
    try:
        model.decoder([query])
    except ValueError as error:
        raise DataError(f"{image} cannot be decoded: {error}") from None
    vector = model.embed_parts([[query]])
    if vector.shape[1] != opened.index.embedding_dim:
        raise LaunchError(
            f"the index holds vectors of {opened.index.embedding_dim} dimensions, {model.name} makes some of "
            f"{vector.shape[1]}: embed and index again"
        )
    values, rows = (part[0] for part in opened.index.search(vector, min(k, opened.index.num_vectors)))
    names = opened.names.take(rows[rows >= 0]).to_pylist()
    return [
        Found(name["id"], name["label"], name["split"], float(value))
        for name, value in zip(names, values, strict=False)
    ]


def _print(found: list[Found], closeness: str) -> None:
    # Brackets of names are shown as they are.
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _WIDEST)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("rank", justify="right")
    table.add_column(closeness, justify="right")
    columns = [name for name in ("label", "split") if any(getattr(neighbour, name) for neighbour in found)]
    for name in ("id", *columns):
        table.add_column(name, overflow="fold")
    for rank, neighbour in enumerate(found, 1):
        names = [printable(getattr(neighbour, name) or "") for name in ("id", *columns)]
        table.add_row(str(rank), f"{neighbour.closeness:.4f}", *names)
    console.print(table)
