"""The command ``pack``."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from dmlscale.config.components import SourceChoice, SourceSetting
from dmlscale.config.load import ConfigError, override_values
from dmlscale.data.shards import ensure_packed
from dmlscale.launch.display import PackProgress


def pack(source_name: str, path: str, overrides: list[str]) -> int:
    """Packs a source with options ``key=value`` into a folder, unless it is there already.

    Raises:
        ConfigError: no such source or option.
        DataError: the folder cannot be written or holds another dataset.
    """
    values = override_values({"name": source_name}, overrides)
    try:
        setting: SourceSetting = TypeAdapter(SourceChoice).validate_python(values)
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    source = setting.build()
    with PackProgress(source.num_items) as progress:
        summary = ensure_packed(source, path, progress=progress)
    print(summary)
    return 0
