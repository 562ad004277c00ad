"""The command line: dispatch only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import dmlscale

Commands = argparse._SubParsersAction  # argparse has no public name for it


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failed, 2 refused before any work, 75 resume me."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positionals in one run only; key=value may also follow an option.
    if not hasattr(options, "overrides") or any(text.startswith("-") or "=" not in text for text in rest):
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
    else:
        options.overrides += rest
    try:
        code: int = options.run(options)
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if options.traceback:
            raise
        if type(error).__module__.startswith("dmlscale."):
            print(f"error: {error}", file=sys.stderr)
            return 1 if type(error).__name__ in ("WorkersFailedError", "DivergedError") else 2
        print(f"error: {type(error).__name__}: {error} (--traceback shows where)", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dmlscale", description=dmlscale.__doc__)
    parser.add_argument("--version", action="version", version=f"dmlscale {dmlscale.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (_add_data_commands, _add_training_commands, _add_model_commands, _add_losses):
        group(commands)
    for command in commands.choices.values():
        command.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser


def _add_data_commands(commands: Commands) -> None:
    pack = commands.add_parser("pack", help="a dataset -> WebDataset shards and an index")
    pack.add_argument("source", help="name of a source, e.g. glyphs")
    pack.add_argument("path", help="folder to write")
    pack.add_argument("overrides", nargs="*", metavar="option=value", help="options of the source")
    pack.set_defaults(run=_pack)

    inspect = commands.add_parser("inspect", help="a packed dataset -> what is in it, in numbers and pictures")
    inspect.add_argument("path", help="its folder or URL")
    inspect.add_argument("--split", metavar="NAME", help="look at one split")
    inspect.add_argument("--classes", type=int, default=8, metavar="N", help="to name and to draw (default: 8)")
    inspect.add_argument("--pictures", metavar="FILE", help="draw samples of some classes, as PNG")
    inspect.add_argument("--json", metavar="FILE", help="write the numbers for machines")
    inspect.set_defaults(run=_inspect)

    verify = commands.add_parser("verify", help="a packed dataset -> whether every byte is as its index says")
    verify.add_argument("path", help="its folder or URL")
    verify.add_argument("--processes", type=int, metavar="N", help="that read shards (default: one per core)")
    verify.add_argument("--quick", action="store_true", help="compare tables and the sizes of shards only")
    verify.set_defaults(run=_verify)


def _add_training_commands(commands: Commands) -> None:
    train = commands.add_parser("train", help="a config -> a trained model and an MLflow run")
    train.add_argument("config", help="YAML file, e.g. configs/quickstart.yaml")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.steps=200 losses.margin=0.1")
    train.add_argument("--resume", action="store_true", help="continue the run of this run.name, if there is one")
    train.set_defaults(run=_train)

    tune = commands.add_parser("tune", help="a search space -> trials, their MLflow runs, and the best config")
    tune.add_argument("config", help="YAML file of a sweep, e.g. configs/tune/glyphs.yaml")
    tune.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. sweep.trials=24 base.train.steps=500")
    tune.add_argument("--resume", action="store_true", help="continue the sweep of this sweep.name, if there is one")
    tune.set_defaults(run=_tune)

    evaluate = commands.add_parser("evaluate", help="a checkpoint -> metrics with intervals, and a report")
    evaluate.add_argument("checkpoint", help="folder of a checkpoint, or of a run (its newest)")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.eval_split=test")
    evaluate.add_argument("--report", metavar="FOLDER", help="write report.html and its figures there")
    evaluate.set_defaults(run=_evaluate)

    for command in (train, evaluate):
        command.add_argument("--local", action="store_true", help="one process, without Ray")
        command.add_argument("--json", metavar="FILE", help="write the final figures for machines")


def _add_model_commands(commands: Commands) -> None:
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


def _add_losses(commands: Commands) -> None:
    losses = commands.add_parser("losses", help="the catalogue: name, family, paper, hyper-parameters, what is sharded")
    losses.add_argument("name", nargs="?", help="of one loss, to read all about it")
    losses.add_argument(
        "--renew", metavar="FILE", help="write the tables into a document that has them: docs/losses.md"
    )
    losses.set_defaults(run=_losses)


def _pack(options: argparse.Namespace) -> int:
    from dmlscale.launch.datasets.pack import pack

    return pack(options.source, options.path, options.overrides)


def _inspect(options: argparse.Namespace) -> int:
    from dmlscale.launch.datasets.inspect import inspect

    return inspect(
        options.path,
        split=options.split,
        num_classes=options.classes,
        pictures_file=options.pictures,
        json_file=options.json,
    )


def _verify(options: argparse.Namespace) -> int:
    from dmlscale.launch.datasets.verify import verify

    return verify(options.path, num_processes=options.processes, quick=options.quick)


def _train(options: argparse.Namespace) -> int:
    from dmlscale.launch.driver import train

    return train(options.config, options.overrides, local=options.local, resume=options.resume, json_file=options.json)


def _tune(options: argparse.Namespace) -> int:
    from dmlscale.tuning.sweep import tune

    return tune(options.config, options.overrides, resume=options.resume)


def _evaluate(options: argparse.Namespace) -> int:
    from dmlscale.launch.driver import evaluate

    return evaluate(
        options.checkpoint,
        options.overrides,
        local=options.local,
        json_file=options.json,
        report_folder=options.report,
    )


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


def _losses(options: argparse.Namespace) -> int:
    from dmlscale.launch.loss_table import renew_document, show_loss, show_losses

    if options.renew:
        renew_document(options.renew)
    elif options.name:
        show_loss(options.name)
    else:
        show_losses()
    return 0


if __name__ == "__main__":
    sys.exit(main())
