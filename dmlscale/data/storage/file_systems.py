"""fsspec's file systems, with limits on how long a silent server is waited for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.utils import get_protocol

from dmlscale.data.errors import DataError
from dmlscale.redaction import shown

_CONNECT_TIMEOUT_SECONDS = 10.0
# A large object comes from S3 in pieces, several at a time, that are held in memory until they are written.
_S3_PIECE_BYTES, _S3_PIECES = 16 * 2**20, 4


def is_local(protocol: str) -> bool:
    """Whether ``protocol`` means files of this machine."""
    return protocol in ("file", "local")


def is_http(protocol: str) -> bool:
    """Whether ``protocol`` means a web server."""
    return protocol in ("http", "https")


def is_s3(protocol: str) -> bool:
    """Whether ``protocol`` means S3 or a service that speaks like it."""
    return protocol in ("s3", "s3a")


def same_service(protocol: str, other: str) -> bool:
    """Whether options for one of two protocols suit the other."""
    return protocol == other or any(kind(protocol) and kind(other) for kind in (is_local, is_http, is_s3))


def connect(url: str, options: Mapping[str, Any], timeout_seconds: float) -> tuple[AbstractFileSystem, str]:
    """The file system that ``url`` belongs to, and the path within it.

    fsspec keeps one file system per process and set of options; after a fork it makes new ones.

    Raises:
        DataError: no such protocol, a package that it needs is missing, or a wrong option.
    """
    protocol = get_protocol(url)
    try:
        if is_http(protocol):
            options = _http_options(options, timeout_seconds)
        elif is_s3(protocol):
            options = _s3_options(options, timeout_seconds)
        file_system, path = url_to_fs(url, **options)
    except ImportError as error:
        raise DataError(
            f"{shown(url)} needs a package that is not installed ({error}); for s3:// and http(s)://: "
            f"pip install s3fs aiohttp, or dmlscale[remote]"
        ) from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{shown(url)} cannot be opened: {error}; is the protocol right, and data's options?") from None
    if is_s3(protocol):
        file_system.retries = 1  # the cache tries again itself, and knows for how long
    return file_system, path


def _http_options(options: Mapping[str, Any], timeout_seconds: float) -> dict[str, Any]:
    from aiohttp import ClientTimeout  # an optional package

    session = {
        "timeout": ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_SECONDS, sock_read=timeout_seconds),
        "trust_env": True,  # proxies and .netrc, as for other programs
        # The bytes as they lie there: the offsets of an index mean those.
        "auto_decompress": False,
        "headers": {"Accept-Encoding": "identity"},
    }
    return {**options, "client_kwargs": {**session, **options.get("client_kwargs", {})}}


def _s3_options(options: Mapping[str, Any], timeout_seconds: float) -> dict[str, Any]:
    limits = {
        "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
        "read_timeout": timeout_seconds,
        "retries": {"total_max_attempts": 1},
    }
    pieces = {"default_block_size": _S3_PIECE_BYTES, "max_concurrency": _S3_PIECES}
    return {**pieces, **options, "config_kwargs": {**limits, **options.get("config_kwargs", {})}}
