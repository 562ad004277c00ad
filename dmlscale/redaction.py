"""What is a secret by its name or its place in a URL, and texts that may be shown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

_WORD_ENDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+")
# A name with one of these words in it, as db_password or AWS_SECRET_ACCESS_KEY.
_SECRET_WORDS = frozenset(
    {"password", "passwd", "passphrase", "passcode", "secret", "secrets", "credential", "credentials", "authorization"}
    | {"cookie", "cookies", "jwt", "bearer", "sas", "netrc", "htpasswd"}
)
# Written together, also with something before: dbpassword, myapikey.
_SECRET_ENDS = (
    *("password", "passwd", "apikey", "accesskey", "secretkey", "privatekey", "accountkey", "authtoken"),
    *("accesstoken", "sastoken", "sessiontoken", "refreshtoken", "connectionstring", "clientsecret"),
)
# What makes a secret of the word "pass", also of "key", and of "token" none: those of networks and of texts.
_WHOSE_PASS = frozenset({"", "user", "db", "database", "ftp", "proxy", "admin", "root"})
_KINDS_OF_SECRET_KEY = frozenset(
    {"api", "access", "private", "secret", "account", "signing", "encryption", "ssh", "ssl", "tls", "shared", "auth"}
    | {"service", "deploy", "master", "customer", "hmac", "aes", "license"}
)
_KINDS_OF_PLAIN_TOKEN = frozenset(
    {"class", "cls", "reg", "register", "dist", "distill", "mask", "pad", "patch", "per", "num", "max", "pos"}
    | {"layers", "mix", "prefix", "bos", "eos", "sep", "unk"}
)
# A name that ends with one of these is of something about a secret: private_key_path, token_length.
_ABOUT = frozenset(
    {"file", "path", "dir", "folder", "name", "names", "url", "uri", "endpoint", "type", "kind", "length", "size"}
    | {"dim", "count", "expiry", "lifetime", "ttl", "enabled"}
)
_SIGNATURES = frozenset({"sig", "signature", "x-amz-signature", "x-goog-signature", "x-oss-signature", "q-signature"})

# After "://": everything up to the last @ before a path begins. A password with a slash in it, which no client reads as
# such, is one too: what stands after the colon is no port then.
_USER = re.compile(r"(?<=://)(?:[^\s/?#]*@|[^\s/?#@:\[]*:(?!\d*(?:[/?#\s]|$))[^\s]*@)")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PARAMETER = re.compile(r"[?&;]([^=&;#\s]+)=([^&;#\s]+)")
_HIDDEN = "***"
_SHORTEST_HIDDEN = 4  # a shorter value would be found in the middle of many words


def is_secret_name(name: str) -> bool:
    """Whether what is called so is a secret, by the words of its name.

    Args:
        name: of a config key (the last part of a dotted one), of an environment variable, or of a header.
    """
    words = [word.lower().rstrip("0123456789") for word in _WORD_ENDS.split(name) if word]
    words = [word for word in words if word]
    if not words or words[-1] in _ABOUT:
        return False
    words = [word.removesuffix("s") if word.endswith(("keys", "passwords")) else word for word in words]
    if any(word in _SECRET_WORDS or word.endswith(_SECRET_ENDS) for word in words):
        return True
    pairs = list(zip(["", *words], words, strict=False))
    if any(word == "key" and before in _KINDS_OF_SECRET_KEY for before, word in pairs):
        return True
    if any(pair in (("connection", "string"), ("conn", "string"), ("conn", "str")) for pair in pairs):
        return True
    before, last = pairs[-1]
    if last == "pass":
        return before in _WHOSE_PASS
    if last == "token":
        return before not in _KINDS_OF_PLAIN_TOKEN
    return words == ["auth"] or (last == "pwd" and before != "")


def secret_in_url(url: str) -> bool:
    """Whether a text holds a URL with a password, a token in the place of a user, or a signature.

    Args:
        url: or any text; what is no URL has none. ``sftp://me@host`` has a user, and no secret.
    """
    for found in _USER.finditer(url):
        scheme = _SCHEME.findall(url[: found.start()])[-1:] or [""]
        _, colon, password = found[0][:-1].partition(":")
        if (colon and password) or scheme[0].lower() in ("http", "https"):
            return True
    if "://" not in url:
        return False
    names = (unquote(name).lower() for name, _ in _PARAMETER.findall(url))
    return any(name in _SIGNATURES or is_secret_name(name) for name in names)


def shown(text: str) -> str:
    """A URL, or a text with URLs in it, as it may stand in a message: without a password or a signature."""
    return re.sub(r"(://[^\s?]*)\?[^\s'\")>]+", r"\1?...", _USER.sub("", text))


def without(text: str, secrets: Iterable[str]) -> str:
    """A text of somebody else, as `shown`, and without the values that are known to be secret."""
    for form in _forms(secrets):
        text = text.replace(form, _HIDDEN)
    return shown(text)


def tells(text: str, secrets: Iterable[str]) -> bool:
    """Whether a text holds one of the values that are known to be secret."""
    return any(form in text for form in _forms(secrets))


def _forms(secrets: Iterable[str]) -> list[str]:
    """As texts hold the values: as they are, without blanks around, as in Python, as in a URL; the longest first."""
    forms = {form for value in secrets for form in (value, value.strip(), repr(value)[1:-1], quote(value, safe=""))}
    return sorted((form for form in forms if len(form) >= _SHORTEST_HIDDEN), key=len, reverse=True)
