"""Secrets have no place in configs: how they are recognised, and what is said of them.

What a config may hold is a reference, ``env:NAME``, which the storage resolves where it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from dmlscale.data.storage.references import is_reference
from dmlscale.redaction import is_secret_name, secret_in_url
from dmlscale.tracking.store import sign_in

__all__ = ["is_secret_name", "literal_secrets", "secret_in_url", "secrets_in_text"]

# Few and precise: each has a form that hardly anything else has.
_CREDENTIALS = {
    "private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----\s+[A-Za-z0-9+/=\s:,-]{32,}",
    "AWS access key": r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b",
    "AWS secret key": r"(?i:aws_?secret_?access_?key)[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])",
    "GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})",
    "GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "Slack token": r"\bxox[abeoprs]-[0-9A-Za-z]+-[0-9A-Za-z-]{10,}",
    "Hugging Face token": r"\bhf_[A-Za-z]{34}\b",
    "Google API key": r"\bAIza[0-9A-Za-z_-]{35}(?![0-9A-Za-z_-])",
    "Google OAuth token": r"\bya29\.[0-9A-Za-z_-]{30,}",
    "Azure storage key": r"AccountKey=[A-Za-z0-9+/]{80,}={0,2}",
    "API key": r"\bsk-(?:ant-|proj-|live_)?[A-Za-z0-9_-]{32,}",
    "JSON web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}",
    "bearer header": r"(?i:authorization)[\"']?\s*[:=]\s*[\"']?(?i:bearer|basic)\s+[A-Za-z0-9._~+/-]{16,}=*",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _CREDENTIALS.items()}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'`<>]+")
# Documentation and tests are full of passwords that stand for one: ${PASSWORD}, <password>, {password}, ***, letmein.
_PLACEHOLDER = re.compile(r"[$<{\[%*].*|\D*|.{,5}", re.DOTALL)
_PLACEHOLDER_HOST = re.compile(
    r"(?:host|hostname|server|(?:.*\.)?example(?:\.(?:com|org|net))?)(?:[:/?#].*)?", re.DOTALL
)
# Words for ways to sign in, which fsspec's back ends take in the place of a token.
_WAYS = ("anon", "cloud", "google_default", "cache", "browser")


def secrets_in_text(text: str) -> list[str]:
    """Which kinds of well-known credentials a text holds, such as the content of a file.

    Args:
        text: any; source code and configs hardly ever look like one.

    Returns:
        Kinds, as "AWS access key" or "URL with a password"; each once, none of the values.
    """
    found = [kind for kind, pattern in _PATTERNS.items() if pattern.search(text)]
    return [*found, "URL with a password"] if any(map(_has_real_password, _URL.findall(text))) else found


def literal_secrets(values: Any, key: str = "") -> Iterator[str]:
    """A line for each secret that stands in config values: its dotted key and what to do, never the value.

    Args:
        values: nested, as from YAML.
        key: dotted, of the values.
    """
    if isinstance(values, dict):
        for name, value in values.items():
            at = f"{key}.{name}" if key else str(name)
            if is_secret_name(str(name)):
                yield from _under_secret_name(value, at)
            else:
                yield from literal_secrets(value, at)
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            yield from literal_secrets(value, f"{key}.{number}")
    elif isinstance(values, str):
        if secret_in_url(values):
            yield f"{key}: the URL holds a password or a signature; {_advice_for_url(key, values)}"
        elif kinds := secrets_in_text(values):
            yield f"{key}: holds a secret ({kinds[0]}); {_advice(key)}"


def _under_secret_name(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, dict | list | tuple):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in entries:
            yield from _under_secret_name(inner, f"{key}.{name}")
    elif value is None or isinstance(value, bool) or value in ("", *_WAYS) or _is_count(key, value):
        return
    elif not is_reference(value):
        yield f"{key}: is a secret by its name and must not stand in a config; {_advice(key)}"
    elif not _takes_references(key):
        yield f"{key}: only storage_options take references to the environment; {_advice(key)}"


def _is_count(key: str, value: Any) -> bool:
    return isinstance(value, int | float) and key.lower().endswith("token")  # of texts or images, as in timm's options


def _takes_references(key: str) -> bool:
    return any(part.endswith("storage_options") for part in key.split("."))


def _advice(key: str) -> str:
    if _takes_references(key):
        return f"set an environment variable wherever the run has workers, and write env:NAME, as {key}=env:MY_SECRET"
    return "leave it to the environment, where the library or the service's own tools look for it"


def _advice_for_url(key: str, url: str) -> str:
    if key.endswith("tracking.uri"):
        return f"leave it out and {sign_in(url)}"
    return "leave it out and give the credentials by the environment, or by data.storage_options with env:NAME"


def _has_real_password(url: str) -> bool:
    user, _, host = url.partition("://")[2].rpartition("@")
    _, _, password = user.partition(":")
    return secret_in_url(url) and not _PLACEHOLDER.fullmatch(password) and not _PLACEHOLDER_HOST.fullmatch(host)
