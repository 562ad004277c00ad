"""Who may use the cluster: whether Ray asks for a token, and its dashboard, which runs jobs for whoever reaches it."""

from __future__ import annotations

import ipaddress
import os
import socket
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dmlscale.launch.doctor.finding import Finding

AUTHENTICATION, DASHBOARD = "authentication", "dashboard"
_ANSWER_SECONDS = 5.0
_REFUSED = (401, 403)

Door = Literal["open", "locked", "closed"]


@dataclass(frozen=True)
class Credentials:
    """What this process would show to a cluster.

    Args:
        mode: RAY_AUTH_MODE; "" if it is not set.
        token: where a token is, in words; "" if there is none.
    """

    mode: str
    token: str


def look_for_credentials() -> Credentials:
    """Those of this process. The token itself is not read."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Credentials(mode, "in RAY_AUTH_TOKEN")
    named_file = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named_file) if named_file else Path.home() / ".ray" / "auth_token"
    return Credentials(mode, f"in {file}" if file.is_file() else "")


def try_door(dashboard: str) -> Door:
    """What a stranger who has no token finds at the dashboard: open, locked, or nobody there.

    Args:
        dashboard: "host:port".
    """
    # Nodes of a cluster are reached directly, whatever proxy the way out takes.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{dashboard}/api/version", timeout=_ANSWER_SECONDS):
            return "open"
    except urllib.error.HTTPError as refusal:
        return "locked" if refusal.code in _REFUSED else "open"
    except OSError:
        return "closed"


def check_access(dashboard: str, have: Credentials) -> list[Finding]:
    """Whether the dashboard is there, and who may use it.

    Args:
        dashboard: "host:port" as the cluster tells it; "" if it has none.
        have: what this process had before it connected: Ray sets RAY_AUTH_MODE itself where it finds a token.
    """
    door: Door = try_door(dashboard) if dashboard else "closed"
    return [*judge_dashboard(dashboard, door), *judge_credentials(have, door)]


def judge_dashboard(dashboard: str, door: Door) -> list[Finding]:
    """A finding from what a stranger finds there."""
    if door == "closed":
        where = f"{dashboard} does not answer" if dashboard else "the cluster has none"
        advice = (
            "sweeps and `dmlscale submit` need it: install ray[default], start the head with --include-dashboard=true"
        )
        return [Finding("", DASHBOARD, "warn", where, advice)]
    if door == "open" and not _is_loopback(dashboard.rpartition(":")[0]):
        what = f"{dashboard} is open to everyone who reaches it, and runs any program for them"
        advice = (
            "start Ray with RAY_AUTH_MODE=token (`ray get-auth-token --generate`, the file on every node), or with "
            "--dashboard-host=127.0.0.1"
        )
        return [Finding("", DASHBOARD, "warn", what, advice)]
    return [
        Finding("", DASHBOARD, "ok", f"{dashboard} answers" + (", and asks for a token" if door == "locked" else ""))
    ]


def judge_credentials(have: Credentials, door: Door) -> list[Finding]:
    """A finding from what this process has and what the cluster asks for."""
    if door == "locked":
        if have.mode not in ("", "token"):
            what = f"the cluster asks for a token, RAY_AUTH_MODE here is {have.mode}"
            return [Finding("", AUTHENTICATION, "fail", what, "set RAY_AUTH_MODE=token")]
        if have.token and not have.mode:
            what = f"the cluster asks for a token, and got that {have.token} only because its address is auto"
            advice = (
                "set RAY_AUTH_MODE=token: other addresses, `ray` and `dmlscale submit` do not look for it themselves"
            )
            return [Finding("", AUTHENTICATION, "warn", what, advice)]
        if not have.token:
            advice = "copy ~/.ray/auth_token of the head, readable for you alone"
            return [Finding("", AUTHENTICATION, "fail", "the cluster asks for a token, and there is none here", advice)]
        return [Finding("", AUTHENTICATION, "ok", f"by token, {have.token}")]
    if door == "open" and have.mode == "token":
        what = "RAY_AUTH_MODE=token here, but the cluster asks for none"
        return [Finding("", AUTHENTICATION, "warn", what, "start it with RAY_AUTH_MODE=token on every node")]
    mode = f"RAY_AUTH_MODE={have.mode}" if have.mode else "RAY_AUTH_MODE is not set"
    return [Finding("", AUTHENTICATION, "ok", f"none is asked for; here {mode}")]


def judge_no_connection(address: str, reason: str, have: Credentials) -> Finding:
    """A failure to connect at all, with what is known to cause it."""
    mode = f"RAY_AUTH_MODE here is {have.mode or 'not set'}, a token is {have.token or 'not there'}"
    advice = (
        "see whether the cluster is up (`ray status --address ...` on its head), has the same Ray and Python as here, "
        f"and asks for a token, which needs RAY_AUTH_MODE=token here ({mode})"
    )
    return Finding("", "cluster", "fail", f"{address}: {reason}", advice)


def why_unreachable(address: str) -> str:
    """Why nothing listens at an address "host:port"; "" if something does, or if the address is of another form.

    Ray itself would try for a minute.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return ""
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        return str(error)
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
