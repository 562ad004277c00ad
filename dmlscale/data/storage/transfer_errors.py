"""What goes wrong on the way from a server, sorted by whether trying again can help."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dmlscale.data.errors import DataError
from dmlscale.redaction import shown, tells, without


class MissingFileError(DataError):
    """The server answers, and has no such file or bucket."""


class TransferError(DataError):
    """No connection, no answer, an early end, a server's own trouble: trying again may help."""


class ShardError(DataError):
    """A file could not be had although it was tried for as long as the settings allow."""


class TransferStopped(Exception):  # noqa: N818 - not an error: somebody asked for it
    """A transfer was ended on request."""


_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# s3fs gives the server's refusals as OSError with these numbers, among them "invalid argument", "not allowed",
# "elsewhere" (a wrong region) and "not implemented".
_REFUSALS = (
    errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG, errno.EROFS, errno.EREMCHG,
)  # fmt: skip
# Requests that the same client may send again: time-out, too early, too many.
_PASSING_STATUSES = (408, 425, 429)
# By name, because the packages they come from need not be installed.
_LASTING_KINDS = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound",
    "ParamValidationError", "InvalidURL", "ClientConnectorCertificateError", "SSLCertVerificationError",
}  # fmt: skip


@contextmanager
def clear_errors(url: str, secrets: Sequence[str] = ()) -> Iterator[None]:
    """Turn what fsspec and its back ends raise within the block into this module's errors.

    Args:
        url: what the block reads.
        secrets: values that no message may hold.

    Raises:
        MissingFileError: no such file or bucket.
        DataError: no access, refused, wrong address or option, disk full.
        TransferError: everything else.
    """
    try:
        yield
    except (DataError, TransferStopped):
        raise
    except Exception as error:  # the back ends have no common base for their errors
        cause = error
        if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception) and url.startswith("http"):
            cause = error.__cause__  # asked for a size, fsspec's http calls every failure "file not found"
        has_leak = any(tells(f"{seen!r} {seen}", secrets) for seen in _chain(error))
        raise _sorted(url, cause, secrets) from (None if has_leak else error)  # logs show what an error came from


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _sorted(url: str, error: Exception, secrets: Sequence[str]) -> DataError:
    status = next((s for s in (getattr(error, n, None) for n in ("status", "code")) if isinstance(s, int)), None)
    number = error.errno if isinstance(error, OSError) else None
    reason = without(_reason(error, status), secrets)
    if isinstance(error, (FileNotFoundError, IsADirectoryError)) or status in (404, 410):
        return MissingFileError(f"{shown(url)} does not exist: check the dataset's place, or upload the file")
    if isinstance(error, PermissionError) or status in (401, 403):
        return DataError(f"no access to {shown(url)} ({reason}): check the credentials and their rights")
    if number in _FULL_DISK:
        return DataError(f"no space left on the disk for {shown(url)}: free some, or lower data.cache_gb")
    is_lasting = (
        (status is not None and 400 <= status < 500 and status not in _PASSING_STATUSES)
        or number in _REFUSALS
        or bool(_LASTING_KINDS & {kind.__name__ for kind in type(error).__mro__})
        or isinstance(error, (ImportError, NotImplementedError, TypeError))
    )
    if is_lasting:
        return DataError(f"{shown(url)} cannot be read: {reason}")
    return TransferError(reason)


def _reason(error: Exception, status: int | None) -> str:
    if status is not None:
        return f"the server answers {status} {getattr(error, 'message', '')}".rstrip()
    text = next(iter(str(error).splitlines()), "")
    if not text and isinstance(error, TimeoutError):
        return "no answer in time"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
