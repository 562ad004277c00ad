"""The command ``submit``: another command becomes a job of a cluster, after all that can be checked from here."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dmlscale
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.jobs import environment
from dmlscale.launch.jobs.capacity import Cluster, check_room, check_version
from dmlscale.launch.jobs.client import asking, connect, job_address
from dmlscale.launch.jobs.command import Command, Settings, SettingsReader, chosen_name, settings_of
from dmlscale.launch.jobs.follow import follow
from dmlscale.launch.jobs.places import folders_of, placed
from dmlscale.launch.jobs.working_directory import Shipment, stage
from dmlscale.tracking.provenance import GIT_TAGS, git_tags, user_name
from dmlscale.tracking.store import resolve_uri

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


@dataclass(frozen=True)
class Order:
    """How a command is to be submitted.

    Args:
        address: of the dashboard, as http://head:8265; None looks into the environment.
        job: id that the job gets; None makes one.
        working_dir: folder that is shipped.
        shared: absolute path of a folder that all nodes have, below which relative paths are put.
        env: ``NAME`` or ``NAME=VALUE``, set for the job.
        exclude: patterns of files that are not shipped.
        ship_package: whether the dmlscale that is installed here goes along.
        wait: whether to follow the job to its end.
        json_file: to write what became of it into.
    """

    address: str | None = None
    job: str | None = None
    working_dir: str = "."
    shared: str | None = None
    env: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    ship_package: bool = False
    wait: bool = True
    json_file: str | None = None


def submit(command: Command, order: Order, read: SettingsReader) -> int:
    """Submits a command, and follows the job unless told otherwise.

    Args:
        command: to run.
        order: how.
        read: what reads the command's config file.

    Returns:
        The exit code of the command; 0 if the job is not followed.

    Raises:
        ConfigError: wrong keys or values.
        StoreError: a tracking store that cannot be used.
        LaunchError: what else cannot work, with what to do; nothing runs then.
    """
    address = job_address(order.address, os.environ)
    _check_order(order)
    command, settings, name = _prepared(command, order.shared, read)
    variables = environment.chosen_variables(order.env, os.environ)
    uri = None if settings is None else settings.config.tracking.uri
    if _is_tracked(command):
        # What --env says of the store counts more than what this shell has, and is checked in the same way.
        variables |= environment.tracking_variable(uri, {**os.environ, **variables}, order.shared)
    store = uri or variables.get("MLFLOW_TRACKING_URI")
    if store is not None and _is_tracked(command):
        resolve_uri(store)  # refuses what MLflow does not write to
    with tempfile.TemporaryDirectory(prefix="dmlscale-job-") as folder:
        shipment = stage(Path(order.working_dir), Path(folder) / "files", order.exclude)
        command = _seen_from(command, Path(order.working_dir), shipment, read)
        client = connect(address)
        _check_cluster(client, settings, store)
        job = _unused_id(client, order.job or f"{name}-{secrets.token_hex(2)}")
        with asking(address):
            client.submit_job(
                entrypoint=shlex.join(["exec", *_entry(command, settings)]),
                submission_id=job,
                runtime_env=_runtime_env(shipment, variables | _commit(order), order.ship_package),
                metadata=_metadata(command, name),
                entrypoint_num_cpus=0,
            )
    _tell(client, job, command, shipment, order)
    code = follow(client, job) if order.wait else 0
    if order.json_file:
        record: dict[str, Any] = {"job": job, "address": address, "command": command.words, "name": name}
        record |= {"folders": folders_of(command, settings), "exit_code": code if order.wait else None}
        Path(order.json_file).write_text(json.dumps(record, indent=1) + "\n")
    return code


def _prepared(command: Command, shared: str | None, read: SettingsReader) -> tuple[Command, Settings | None, str]:
    """The command as it will run, what can be known of it here, and its name.

    Raises:
        ConfigError: wrong keys or values.
        LaunchError: settings that cannot work, paths that would be lost, or another cluster in the config.
    """
    if command.config_file is None:
        command = placed(command, None, shared)
        if command.name == "evaluate":  # its record may name the cluster of the training
            command = replace(command, overrides=("resources.address=auto", *command.overrides))
        settings = settings_of(command, read)
        _check_address(settings)
        return command, settings, chosen_name(command, settings)
    settings = settings_of(command, read)
    assert settings is not None
    name = chosen_name(command, settings)
    command = placed(command, settings, shared)
    if settings.name is None:
        command = command.with_overrides(f"{settings.name_key}={name}")
    settings = read(command.subject[0], command.overrides)
    _check_address(settings)
    return command, settings, name


def _check_address(settings: Settings | None) -> None:
    if settings is not None and settings.config.resources.address not in (None, "auto"):
        raise LaunchError(
            f"{settings.prefix}resources.address={settings.config.resources.address}: a submitted job runs on the "
            "cluster that it is submitted to; leave the key out"
        )


def _check_order(order: Order) -> None:
    if order.job is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", order.job):
        raise LaunchError(
            f"--name {order.job}: an id has letters, digits, '.', '_' and '-', and begins with none of those"
        )
    if order.json_file and not Path(order.json_file).absolute().parent.is_dir():
        raise LaunchError(f"--json {order.json_file}: its folder does not exist")


def _unused_id(client: JobSubmissionClient, job: str) -> str:
    with asking(client.get_address()):
        if job in {info.submission_id for info in client.list_jobs()}:
            raise LaunchError(f"--name {job}: the cluster has a job of this id; choose another, or leave it out")
    return job


def _is_tracked(command: Command) -> bool:
    return command.name in ("train", "tune")


def _seen_from(command: Command, working_dir: Path, shipment: Shipment, read: SettingsReader) -> Command:
    """The command with its config file as the job finds it: relative to the copy of the working directory.

    Raises:
        LaunchError: the file, or one that it refers to, is not shipped.
    """
    if command.config_file is None:
        return command
    root, file = working_dir.resolve(), Path(command.config_file).resolve()
    if not file.is_relative_to(root):
        raise LaunchError(f"{command.config_file} is not inside the working directory {root}: see --working-dir")
    inside = file.relative_to(root)
    try:
        read(str(shipment.folder / inside), command.overrides)
    except ValueError as error:  # it was read before, so something is missing
        raise LaunchError(
            f"{command.config_file} cannot be read from what is shipped: is it, or its base, ignored by git or outside "
            f"the working directory {root}? ({error})"
        ) from None
    return Command(command.name, (str(inside), *command.subject[1:]), command.overrides, command.options)


def _check_cluster(client: JobSubmissionClient, settings: Settings | None, tracking: str | None) -> None:
    import ray

    def say(text: str) -> None:
        print(text, flush=True)

    cluster = Cluster.of(client)
    check_version(cluster, ray.__version__, say)
    environment.check_server(tracking, len(cluster.cpus))
    if settings is not None:
        check_room(cluster, settings.config.resources, say)


def _entry(command: Command, settings: Settings | None) -> list[str]:
    words = ["python", "-m", "dmlscale.launch.jobs.entry", "--version", dmlscale.__version__]
    for folder in folders_of(command, settings).values():
        words += ["--folder", folder]
    if settings is not None and Path(settings.config.data.path).is_absolute():  # else a URL, which has no mount
        words += ["--data", settings.config.data.path]
    if _is_tracked(command) and settings is not None:
        words.append("--tracked")
        words += [] if settings.config.tracking.uri is None else ["--tracking", settings.config.tracking.uri]
        words += ["--store-may-be-away"] if settings.config.tracking.if_unreachable == "continue" else []
    return [*words, "--", *command.words]


def _runtime_env(shipment: Shipment, variables: Mapping[str, str], ship_package: bool) -> dict[str, Any]:
    environment = {"working_dir": str(shipment.folder), "env_vars": dict(variables)}
    if ship_package:
        environment["py_modules"] = [str(Path(dmlscale.__file__).parent)]
    return environment


def _commit(order: Order) -> dict[str, str]:
    """Which commit is shipped, for the tags of the run: the copy has no repository."""
    tags = git_tags(Path(order.working_dir))
    return {GIT_TAGS: json.dumps(tags)} if tags else {}


def _metadata(command: Command, name: str) -> dict[str, str]:
    """What `dmlscale jobs list` shows; Ray's dashboard shows it too."""
    return {
        "dmlscale.command": command.name,
        "dmlscale.subject": " ".join(command.subject),
        "dmlscale.name": name,
        "dmlscale.version": dmlscale.__version__,
        "dmlscale.user": user_name(),
    }


def _tell(client: JobSubmissionClient, job: str, command: Command, shipment: Shipment, order: Order) -> None:
    address = client.get_address()
    print(f"job {job}  {shlex.join(command.words)}")
    print(f"shipped       {shipment.num_files:,} files, {shipment.num_bytes / 1e6:.3g} MB")
    if shipment.left_out:
        why = "secrets by their name, links to folders or out of this one, or repositories of their own"
        print(f"left out      {', '.join(shipment.left_out)}: {why}")
    print(f"dashboard     {address}/#/jobs/{job}")
    if not order.wait:
        print(f"to follow     dmlscale jobs logs {job} --follow --address {address}")
        print(f"to stop       dmlscale jobs stop {job} --address {address}")
    print(flush=True)
