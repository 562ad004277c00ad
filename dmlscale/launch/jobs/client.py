"""The way to a cluster: its address, its job API, and its errors in words."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import requests

from dmlscale.launch.errors import LaunchError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_VARIABLE = "RAY_API_SERVER_ADDRESS"
_ANSWER_SECONDS = 10.0


def job_address(given: str | None, environment: Mapping[str, str]) -> str:
    """Where the cluster's job API answers, as ``http://head:8265``.

    Args:
        given: on the command line; else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS if it is a web address.
        environment: variables by name.

    Raises:
        LaunchError: nobody says, or it is the address of something else.
    """
    ray_address = environment.get("RAY_ADDRESS", "")
    of_ray = ray_address if ray_address.startswith(("http://", "https://")) else None
    address = given or environment.get(_VARIABLE) or of_ray
    advice = "the address of the cluster's dashboard, as --address http://head:8265"
    if not address:
        known = f" (RAY_ADDRESS={ray_address} is not one)" if ray_address else ""
        raise LaunchError(f"which cluster? give {advice}, or set {_VARIABLE}{known}")
    if not address.startswith(("http://", "https://")):
        raise LaunchError(f"--address {address}: give {advice}")
    return address.rstrip("/")


def connect(address: str) -> JobSubmissionClient:
    """The job API at an address that `job_address` gave.

    Raises:
        LaunchError: nothing answers there, something else does, or Ray refuses this user.
    """
    try:
        requests.get(f"{address}/api/version", timeout=_ANSWER_SECONDS)  # Ray's client would wait without end
    except requests.RequestException as error:
        raise LaunchError(
            f"no Ray dashboard answers at {address} ({type(error).__name__}): is the cluster up, was it started with "
            "--include-dashboard=true and --dashboard-host, and is its port open from here? Through Kubernetes: "
            "`kubectl port-forward service/<cluster>-head-svc 8265` and --address http://127.0.0.1:8265"
        ) from None
    from ray.job_submission import JobSubmissionClient

    # Ray prefers the variables RAY_API_SERVER_ADDRESS and RAY_ADDRESS to the address it is given.
    os.environ[_VARIABLE] = address
    for talkative in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{talkative}").setLevel(logging.WARNING)
    with asking(address):
        return JobSubmissionClient(address)


@contextmanager
def asking(address: str) -> Iterator[None]:
    """Turns what goes wrong while a cluster is asked into one clear error.

    Raises:
        LaunchError: as above.
    """
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise LaunchError(
            f"the cluster at {address} wants a token and this machine has none that it takes: set RAY_AUTH_MODE=token "
            "and RAY_AUTH_TOKEN (or the file ~/.ray/auth_token) to the cluster's token; on its head, "
            "`ray get-auth-token` prints it"
        ) from None
    except (requests.RequestException, ConnectionError) as error:
        raise LaunchError(f"the cluster at {address} does not answer any more: {error}") from None
    except (RuntimeError, ValueError, KeyError) as error:
        raise LaunchError(f"the cluster at {address}: {_first_line(error)}") from None


def ask(client: JobSubmissionClient, path: str) -> Any:
    """What the dashboard answers to a GET of ``path``, from JSON.

    Raises:
        LaunchError: it does not.
    """
    with asking(client.get_address()):
        # Ray has no public way to send a request with the cluster's token.
        answer = client._do_request("GET", path)
        answer.raise_for_status()
        return answer.json()


def _first_line(error: Exception) -> str:
    """Of what Ray says: the sentence without the trace of its server."""
    lines = [line for line in str(error).replace("\\n", "\n").splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
