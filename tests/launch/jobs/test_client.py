from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dmlscale.launch.errors import LaunchError
from dmlscale.launch.jobs.client import connect, job_address


def test_the_address_is_given_or_in_the_environment() -> None:
    variables = {"RAY_API_SERVER_ADDRESS": "http://a:8265", "RAY_ADDRESS": "https://b"}
    assert job_address("http://c:8265/", variables) == "http://c:8265"
    assert job_address(None, variables) == "http://a:8265"
    assert job_address(None, {"RAY_ADDRESS": "https://b"}) == "https://b"


@pytest.mark.parametrize("variables", [{}, {"RAY_ADDRESS": "head:6379"}, {"RAY_ADDRESS": "auto"}])
def test_without_one_it_says_what_to_give(variables: dict[str, str]) -> None:
    with pytest.raises(LaunchError, match="--address http://head:8265"):
        job_address(None, variables)
    with pytest.raises(LaunchError, match="--address ray://head:10001: give the address of the cluster's dashboard"):
        job_address("ray://head:10001", variables)


@pytest.fixture
def server() -> Iterator[tuple[str, list[int]]]:
    """A web server on loopback that answers everything with the status in the list."""
    statuses = [404]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses[0])
            self.end_headers()
            self.wfile.write(b"Unauthorized: Missing authentication token")

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", statuses
        http.shutdown()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Also puts it back, since Ray's client takes the address from there.
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")


def test_nothing_there_another_server_and_a_missing_token_are_told_apart(server: tuple[str, list[int]]) -> None:
    address, statuses = server
    with pytest.raises(LaunchError, match="Version check returned 404"):
        connect(address)
    statuses[0] = 401
    with pytest.raises(LaunchError, match=r"wants a token.*RAY_AUTH_MODE=token"):
        connect(address)
    with pytest.raises(LaunchError, match=r"no Ray dashboard answers at http://127\.0\.0\.1:9"):
        connect("http://127.0.0.1:9")
