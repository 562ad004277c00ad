from __future__ import annotations

from tests.integration.conftest import config_file

__all__ = ["config_file"]
