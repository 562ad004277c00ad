"""The command doctor: all checks, one after another, whatever any of them finds."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from dmlscale.config.schema import Config, ResourcesConfig
from dmlscale.data.errors import DataError
from dmlscale.data.layout import DESCRIPTION_FILE
from dmlscale.data.storage.storage import Storage
from dmlscale.launch.doctor import access, host_names
from dmlscale.launch.doctor.capacity import judge_capacity
from dmlscale.launch.doctor.clocks import check_clocks
from dmlscale.launch.doctor.dataset import check_dataset
from dmlscale.launch.doctor.finding import Finding, passes
from dmlscale.launch.doctor.gpus import check_gpus
from dmlscale.launch.doctor.limits import check_limits
from dmlscale.launch.doctor.lost_nodes import check_lost_nodes
from dmlscale.launch.doctor.machines import Machines, ThisMachine, in_short
from dmlscale.launch.doctor.nodes import cluster_machines, unreachable
from dmlscale.launch.doctor.packages import check_packages
from dmlscale.launch.doctor.report import show
from dmlscale.launch.doctor.ring import CHECK as RING
from dmlscale.launch.doctor.ring import check_ring
from dmlscale.launch.doctor.shared_folder import check_shared_folder
from dmlscale.launch.doctor.tracking import check_tracking
from dmlscale.launch.errors import LaunchError
from dmlscale.tracking.store import StoreError, resolve_uri

Check = Callable[[], list[Finding]]


def doctor(config: Config | None, *, address: str | None, json_file: str | None) -> int:
    """Looks at this machine or at all nodes of a cluster, and shows what it finds.

    Args:
        config: whose needs are checked too: folders, data, tracking, resources. None leaves them out.
        address: of a Ray cluster; None takes that of the config, or RAY_ADDRESS, or else this machine alone.
        json_file: where to write the findings for machines.

    Returns:
        0 if nothing failed, 1 if something did.

    Raises:
        LaunchError: the address is not that of a cluster, or the file cannot be written.
    """
    if json_file and not os.access(Path(json_file).absolute().parent, os.W_OK):
        raise LaunchError(f"--json {json_file}: its folder does not exist or cannot be written")
    name, where = _address(address, config)
    if where and "://" in where:
        raise LaunchError(
            f"{name} {where} is one for clients and jobs; doctor looks from a node of the cluster, with the address "
            "of its head, as --address 10.0.0.1:6379 or --address auto"
        )
    console = Console()
    with console.status("looking ...") as status:
        found = examine(config, where, lambda check: status.update(f"looking at {check} ..."))
    show(found, console)
    if json_file:
        content = {"passes": passes(found), "findings": [asdict(finding) for finding in found]}
        Path(json_file).write_text(json.dumps(content, indent=1) + "\n")
    return 0 if passes(found) else 1


def _address(address: str | None, config: Config | None) -> tuple[str, str | None]:
    """What names the cluster, and its address."""
    if address:
        return "--address", address
    if config is not None and config.resources.address:
        return "resources.address", config.resources.address
    return "RAY_ADDRESS", os.environ.get("RAY_ADDRESS") or None


def examine(
    config: Config | None, address: str | None, say: Callable[[str], None] = lambda check: None
) -> list[Finding]:
    """All findings.

    Args:
        config: whose needs are checked too.
        address: of a Ray cluster; None looks at this machine, without Ray.
        say: is told what is being looked at.
    """
    if address is None:
        return _in_turn(_checks(ThisMachine(socket.gethostname()), config), say)
    say("the cluster")
    have = access.look_for_credentials()
    refused = access.why_unreachable(address)
    if refused:
        return [access.judge_no_connection(address, refused, have)]
    try:
        with _connected(address) as (machines, dashboard):
            checks = _checks(machines, config)
            return _in_turn({"access": lambda: access.check_access(dashboard, have), **checks}, say)
    except Exception as error:  # Ray has many kinds: no such cluster, no token, another version
        reason = str(error) if isinstance(error, LaunchError) else in_short(error)
        return [access.judge_no_connection(address, reason, have)]


@contextmanager
def _connected(address: str) -> Iterator[tuple[Machines, str]]:
    """The nodes of a cluster, and where its dashboard is, "host:port" ("" if there is none)."""
    from dmlscale.launch.cluster import ray_cluster

    with ray_cluster(ResourcesConfig(address=address)):
        import ray

        dashboard = ray.init(ignore_reinit_error=True, logging_level="ERROR").dashboard_url or ""
        with cluster_machines() as machines:
            yield machines, dashboard


def _checks(machines: Machines, config: Config | None) -> dict[str, Check]:
    """What to do, by what it looks at, in order."""
    device = "auto" if config is None else config.resources.device
    checks: dict[str, Check] = {
        "nodes": lambda: unreachable(machines),
        "packages": lambda: check_packages(machines),
        "gpus": lambda: check_gpus(machines, device=device),
        "limits": lambda: check_limits(machines),
        "clocks": lambda: check_clocks(machines),
        "lost nodes": lambda: check_lost_nodes(machines),
    }
    if config is not None:
        checks["resources"] = lambda: judge_capacity(config.resources, machines.all)
        checks["storage"] = lambda: check_shared_folder(machines, "run.folder", _absolute(config.run.folder))
        checks["data"] = lambda: _check_data(machines, config)
        checks["mlflow"] = lambda: check_tracking(machines, _store(config))
    checks["links"] = lambda: _check_links(machines, device)
    return checks


def _in_turn(checks: dict[str, Check], say: Callable[[str], None]) -> list[Finding]:
    found: list[Finding] = []
    for name, check in checks.items():
        say(name)
        try:
            found += check()
        except (DataError, StoreError) as error:  # of the config or the environment; it says what to do
            found.append(Finding("", name, "fail", str(error)))
        except Exception as error:  # one that breaks must not hide the others
            found.append(
                Finding(
                    "", name, "fail", f"could not be checked: {in_short(error)}", "a fault of this check: report it"
                )
            )
    return found


def _check_links(machines: Machines, device: str) -> list[Finding]:
    names = host_names.check_host_names(machines)
    if not passes(names):
        advice = "put the host names right first"
        return [*names, Finding("", RING, "warn", "not measured: they need the host names", advice)]
    return [*names, *check_ring(machines, nccl=device != "cpu" and _all_have_gpus(machines))]


def _all_have_gpus(machines: Machines) -> bool:
    return all(machine.resources is not None and machine.resources.get("GPU", 0) >= 1 for machine in machines.all)


def _check_data(machines: Machines, config: Config) -> list[Finding]:
    storage = Storage.open(config.data.path)
    if config.data.source is not None and storage.is_local and not storage.local_path(DESCRIPTION_FILE).exists():
        return check_shared_folder(machines, "data.path", storage.root)  # the first run packs it there
    return check_dataset(machines, storage.root, config.data.storage_options, DESCRIPTION_FILE)


def _absolute(folder: str) -> str:
    return str(Path(folder).absolute())


def _store(config: Config) -> str:
    return resolve_uri(config.tracking.uri, folder=Path(_absolute(config.run.folder)).parent)
