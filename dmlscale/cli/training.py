"""The commands train, tune and evaluate."""

from __future__ import annotations

import argparse

from dmlscale.cli.commands import Commands

# Without it the same command continues a run that is not finished.
_RESUME = "continue the run of this run.name, if there is one, also with other settings or for more steps"


def add_training_commands(commands: Commands) -> None:
    """Adds train, tune and evaluate."""
    train = commands.add_parser("train", help="a config -> a trained model and an MLflow run")
    train.add_argument("config", help="YAML file, e.g. configs/quickstart.yaml")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.steps=200 losses.margin=0.1")
    train.add_argument("--resume", action="store_true", help=_RESUME)
    train.set_defaults(run=_train)

    tune = commands.add_parser("tune", help="a search space -> trials, their MLflow runs, and the best config")
    tune.add_argument("config", help="YAML file of a sweep, e.g. configs/tune/glyphs.yaml")
    tune.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. sweep.trials=24 base.train.steps=500")
    tune.add_argument("--resume", action="store_true", help="continue the sweep of this sweep.name, if there is one")
    tune.set_defaults(run=_tune)

    evaluate = commands.add_parser("evaluate", help="a checkpoint -> metrics with intervals, and a report")
    evaluate.add_argument("checkpoint", help="folder or URL of a checkpoint, or a run (its newest)")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.eval_split=test")
    evaluate.add_argument("--report", metavar="FOLDER", help="write report.html and its figures there")
    evaluate.add_argument("--best", action="store_true", help="of a run with train.keep_best: its best checkpoint")
    evaluate.set_defaults(run=_evaluate)

    for command in (train, evaluate):
        command.add_argument("--local", action="store_true", help="one process, without Ray")
        command.add_argument("--json", metavar="FILE", help="write the final figures for machines")


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
        best=options.best,
    )
