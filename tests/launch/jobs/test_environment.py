from __future__ import annotations

import pytest

from dmlscale.launch.errors import LaunchError
from dmlscale.launch.jobs.environment import check_server, chosen_variables, tracking_variable

LOGIN = "me:opensesame"  # apart from its address, or this very file could not be shipped


def test_variables_are_taken_from_here_or_as_given() -> None:
    chosen = chosen_variables(["OMP_NUM_THREADS", "NCCL_DEBUG=INFO", "EMPTY="], {"OMP_NUM_THREADS": "2"})
    assert {"OMP_NUM_THREADS": "2", "NCCL_DEBUG": "INFO", "EMPTY": ""}.items() <= chosen.items()
    with pytest.raises(LaunchError, match="MISSING: is not set here"):
        chosen_variables(["MISSING"], {})
    with pytest.raises(LaunchError, match="NAME=VALUE"):
        chosen_variables(["not a name=1"], {})


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN"])
def test_secrets_are_refused_without_being_shown(name: str) -> None:
    for asked in (name, f"{name}=opensesame"):
        with pytest.raises(LaunchError, match=f"{name}: looks like a secret") as refused:
            chosen_variables([asked], {name: "opensesame"})
        assert "opensesame" not in str(refused.value)
    with pytest.raises(LaunchError, match="SERVER: looks like a secret") as refused:
        chosen_variables([f"SERVER=http://{LOGIN}@host"], {})
    assert "opensesame" not in str(refused.value)


def test_the_tracking_store_of_the_caller_goes_along_if_it_can() -> None:
    def passed_on(uri: str, shared: str | None = None, in_config: str | None = None) -> dict[str, str]:
        return tracking_variable(in_config, {"MLFLOW_TRACKING_URI": uri}, shared)

    server = "http://mlflow.example:5000"
    assert passed_on(server) == {"MLFLOW_TRACKING_URI": server}
    assert passed_on(server, in_config="http://other") == {}
    assert tracking_variable(None, {}, None) == {}
    assert passed_on("sqlite:////mnt/s/mlflow.db", "/mnt/s")
    for shared in (None, "/mnt/s"):
        with pytest.raises(LaunchError, match="file of this machine"):
            passed_on("sqlite:////home/me/mlflow.db", shared)
    with pytest.raises(LaunchError, match="password") as refused:
        passed_on(f"https://{LOGIN}@mlflow.example")
    assert "opensesame" not in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.1.1", "[::1]"])
def test_a_loopback_server_is_another_one_on_each_node(host: str) -> None:
    check_server(f"http://{host}:5000", 1)
    with pytest.raises(LaunchError, match="loopback"):
        check_server(f"http://{host}:5000", 3)
    check_server("http://mlflow.example:5000", 3)
    check_server("sqlite:////mnt/mlflow.db", 3)
