"""The command ``pack``."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dmlscale.config.components import SourceChoice, SourceSetting, checked_options
from dmlscale.config.load import ConfigError, override_values
from dmlscale.data.packing.pack import ensure_packed
from dmlscale.data.packing.writing import PackOptions
from dmlscale.launch.display import PackProgress


def pack(source_name: str, path: str, overrides: list[str]) -> int:
    """Packs a source with options ``key=value`` into a folder, unless it is there already.

    Options of packing (``pack.shard_size_bytes`` and so on) begin with "pack.".

    Raises:
        ConfigError: no such source or option.
        DataError: the folder cannot be written or holds another dataset.
    """
    values = override_values({"name": source_name}, overrides)
    options = _options(values.pop("pack", {}))
    try:
        setting: SourceSetting = TypeAdapter(SourceChoice).validate_python(values)
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    source = setting.build()
    with PackProgress() as progress:
        summary = ensure_packed(source, path, options, progress=progress)
    print("\n".join([str(summary), *summary.differences(source)]))
    return 0


def _options(given: Any) -> PackOptions:
    if not isinstance(given, dict):
        raise ConfigError(f"pack={given!r}: write pack.{fields(PackOptions)[0].name}=... and so on")
    try:
        return PackOptions(**checked_options(PackOptions, given, name="pack"))
    except ValueError as error:
        raise ConfigError(f"pack.{error}") from None
