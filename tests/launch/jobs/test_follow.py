from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.job_submission import JobStatus

from dmlscale.launch.errors import LaunchError
from dmlscale.launch.jobs.follow import ENDED_LINE, Printed, exit_code


@given(text=st.text(max_size=60), data=st.data())
def test_a_log_that_is_sent_anew_is_printed_once(text: str, data: st.DataObject) -> None:
    shown: list[str] = []
    log = Printed(shown.append)
    for _ in range(data.draw(st.integers(0, 3))):  # connections that broke
        log.begin()
        sent = text[: data.draw(st.integers(0, len(text)))]
        cut = data.draw(st.integers(0, len(sent)))
        log.take(sent[:cut])
        log.take(sent[cut:])
    log.begin()
    log.take(text)
    assert "".join(shown) == text
    assert log.tail == text


def _info(status: JobStatus, code: int | None = None, message: str = "") -> SimpleNamespace:
    return SimpleNamespace(status=status, driver_exit_code=code, message=message)


def test_the_exit_code_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(_info(JobStatus.SUCCEEDED, 0), "") == 0
    assert exit_code(_info(JobStatus.FAILED, 2), "refused: n1: ...") == 2
    assert exit_code(_info(JobStatus.FAILED, -9), "step 7/20") == 137  # out of memory; as a shell says it
    assert exit_code(_info(JobStatus.STOPPED), f"saved\n{ENDED_LINE} 75\n") == 75
    assert exit_code(_info(JobStatus.STOPPED), "step 7/20") == 137
    assert exit_code(_info(JobStatus.FAILED, message="the head node died"), "") == 1
    assert "the head node died" in capsys.readouterr().err


def test_an_image_that_cannot_run_it_is_one_clear_error() -> None:
    said = "python: Error while finding module specification (ModuleNotFoundError: No module named 'dmlscale')"
    with pytest.raises(LaunchError, match="--ship-package"):
        exit_code(_info(JobStatus.FAILED, 1), said)
    with pytest.raises(LaunchError, match="PATH of the cluster's head"):
        exit_code(_info(JobStatus.FAILED, 127), "/bin/sh: 1: exec: python: not found")
    with pytest.raises(LaunchError, match="environment: runtime_env setup failed"):
        exit_code(_info(JobStatus.FAILED, message="runtime_env setup failed"), "")
