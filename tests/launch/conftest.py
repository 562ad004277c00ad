from __future__ import annotations

from tests.integration.conftest import config_file, glyphs

__all__ = ["config_file", "glyphs"]
