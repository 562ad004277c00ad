"""The commands on what was trained: export, embed, index, search."""

from __future__ import annotations

import argparse

from dmlscale.cli.commands import Commands


def add_model_commands(commands: Commands) -> None:
    """Adds export, embed, index and search."""
    export = commands.add_parser("export", help="a checkpoint -> a folder with the model: safetensors, config, ONNX")
    export.add_argument("checkpoint", help="folder of a checkpoint, or of a run (its newest)")
    export.add_argument("folder", help="to write")
    export.add_argument("--onnx", action="store_true", help="also as ONNX, compared with the original")
    export.add_argument("--register", metavar="NAME", help="also put it into MLflow's registry under this name")
    export.set_defaults(run=_export)

    embed = commands.add_parser("embed", help="a model and samples -> a Parquet file of ids and vectors")
    embed.add_argument("model", help="exported folder, checkpoint, or run")
    embed.add_argument("source", help="packed dataset (folder or URL), folder of pictures, or one file")
    embed.add_argument("out", help="Parquet file to write")
    embed.add_argument("--split", metavar="NAME", help="of a packed dataset (default: all)")
    embed.add_argument("--batch-size", type=int, metavar="N", help="(default: that of the model's evaluation)")
    embed.set_defaults(run=_embed)

    index = commands.add_parser("index", help="embeddings -> a faiss index with measured recall")
    index.add_argument("embeddings", help="Parquet file of `dmlscale embed`")
    index.add_argument("out", help="folder to write")
    index.add_argument("--kind", choices=("flat", "ivf_pq", "hnsw"), default="flat")
    index.add_argument("--queries", type=int, default=1000, metavar="N", help="to measure recall with (default: 1000)")
    index.set_defaults(run=_index)

    search = commands.add_parser("search", help="a picture -> its nearest neighbours")
    search.add_argument("image", help="file")
    search.add_argument("index", help="folder of `dmlscale index`")
    search.add_argument("--model", help="exported folder, checkpoint, or run (default: that of the index)")
    search.add_argument("-k", type=int, default=10, metavar="N", help="neighbours (default: 10)")
    search.add_argument("--pictures", metavar="FILE", help="draw query and neighbours, as PNG")
    search.set_defaults(run=_search)


def _export(options: argparse.Namespace) -> int:
    from dmlscale.launch.models.export import export

    return export(options.checkpoint, options.folder, onnx=options.onnx, register=options.register)


def _embed(options: argparse.Namespace) -> int:
    from dmlscale.launch.vectors.embed import embed

    return embed(options.model, options.source, options.out, split=options.split, batch_size=options.batch_size)


def _index(options: argparse.Namespace) -> int:
    from dmlscale.launch.vectors.build_index import build_index

    return build_index(options.embeddings, options.out, kind=options.kind, num_queries=options.queries)


def _search(options: argparse.Namespace) -> int:
    from dmlscale.launch.vectors.search import search

    return search(options.image, options.index, model=options.model, k=options.k, pictures=options.pictures)
