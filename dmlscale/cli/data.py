"""The commands on datasets: pack, inspect, verify."""

from __future__ import annotations

import argparse

from dmlscale.cli.commands import Commands


def add_data_commands(commands: Commands) -> None:
    """Adds pack, inspect and verify."""
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
