"""The command line: dispatch only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import dmlscale


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

    pack = commands.add_parser("pack", help="a dataset -> WebDataset shards and an index")
    pack.add_argument("source", help="name of a source, e.g. glyphs")
    pack.add_argument("path", help="folder to write")
    pack.add_argument("overrides", nargs="*", metavar="option=value", help="options of the source")
    pack.set_defaults(run=_pack)

    train = commands.add_parser("train", help="a config -> a trained model and an MLflow run")
    train.add_argument("config", help="YAML file, e.g. configs/quickstart.yaml")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.steps=200 losses.margin=0.1")
    train.add_argument("--resume", action="store_true", help="continue the run of this run.name, if there is one")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="a checkpoint -> retrieval metrics")
    evaluate.add_argument("checkpoint", help="folder of a checkpoint, or of a run (its newest)")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.eval_split=test")
    evaluate.set_defaults(run=_evaluate)

    losses = commands.add_parser("losses", help="the catalogue: name, family, paper, hyper-parameters, what is sharded")
    losses.add_argument("name", nargs="?", help="of one loss, to read all about it")
    losses.add_argument(
        "--renew", metavar="FILE", help="write the tables into a document that has them: docs/losses.md"
    )
    losses.set_defaults(run=_losses)

    for command in (train, evaluate):
        command.add_argument("--local", action="store_true", help="one process, without Ray")
        command.add_argument("--json", metavar="FILE", help="write the final figures for machines")
    for command in (pack, train, evaluate, losses):
        command.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser


def _pack(options: argparse.Namespace) -> int:
    from dmlscale.launch.pack import pack

    return pack(options.source, options.path, options.overrides)


def _train(options: argparse.Namespace) -> int:
    from dmlscale.launch.driver import train

    return train(options.config, options.overrides, local=options.local, resume=options.resume, json_file=options.json)


def _evaluate(options: argparse.Namespace) -> int:
    from dmlscale.launch.driver import evaluate

    return evaluate(options.checkpoint, options.overrides, local=options.local, json_file=options.json)


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
