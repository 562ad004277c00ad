"""What a user reads when a training in one process ends with an error."""

from __future__ import annotations

import pytest

from dmlscale.config.load import load_config
from dmlscale.data.errors import DataError
from dmlscale.launch import local
from dmlscale.launch.errors import WorkersFailedError
from dmlscale.launch.task import Task


def test_what_to_do_is_told_however_long_the_text_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"data.path: {'a-long-name/' * 100}\nis damaged: pack it again"

    def fails() -> None:
        raise DataError(text)

    monkeypatch.setattr(local, "made_ready", lambda *_: fails)
    task = Task("train", load_config("configs/quickstart.yaml", []).model_dump(mode="json"), "runs/mine")
    with pytest.raises(WorkersFailedError) as raised:
        local.run_local(task, task.settings.resources)
    assert text in str(raised.value)
