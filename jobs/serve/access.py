"""Who may ask: whoever knows the token, and no page of the web that goes by another name."""

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError

COOKIE = "viaduct_token"
"""Holds the token of a browser that signed in: pictures of a page carry no header."""

OPEN_PATHS = frozenset({"/", "/page.css", "/page.js", "/icon.svg", "/healthz", "/v1/sign-in"})
"""What is told to anybody: that it is there, and how to sign in."""

_MIN_TOKEN_CHARS = 16
_LOOPBACK_NAMES = ("localhost",)


@dataclass(frozen=True)
class Access:
    """The rule of who is answered."""

    token: str | None
    """None answers everybody."""
    names: frozenset[str] | None
    """Names the server goes by, without ports; None for any. Bound to loopback it has a few: a page
    of the web whose own name is made to point to 127.0.0.1 would read its answers otherwise."""

    def refusal(self, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Status and reason, or None for who may ask.

        Args:
            path: asked for.
            headers: by names in lower case.
        """
        if self.names is not None:
            name = host_name(headers.get("host", ""))
            if name not in self.names and not _is_loopback(name):
                return 421, f"host: {name[:80]!r} is no name of this server; --allow-host adds one"
        if self.token is None or path in OPEN_PATHS or self.knows(_given(headers)):
            return None
        return 401, "authorization: a token is needed"

    def knows(self, given: str) -> bool:
        """Whether this is the token."""
        known = (self.token or "").encode()
        return hmac.compare_digest(given.encode(errors="surrogatepass"), known)


def open_access(host: str, token_file: str | None, allow_host: tuple[str, ...]) -> Access:
    """The rule for a server at an address.

    Args:
        host: address or name it listens at.
        token_file: holds the token alone; None where there is none.
        allow_host: further names of a server on loopback.

    Raises:
        ConfigError: the file cannot be read, or holds no good token.
    """
    token = None if token_file is None else _read_token(token_file)
    if not (_is_loopback(host) or host in _LOOPBACK_NAMES):
        return Access(token, None)
    return Access(token, frozenset({host, *_LOOPBACK_NAMES, *(n.lower() for n in allow_host)}))


def host_name(header: str) -> str:
    """The name of a Host header, without its port, in lower case."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _given(headers: Mapping[str, str]) -> str:
    """The token of a request, of its header or its cookie; empty where there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return ""


def _read_token(file: str) -> str:
    try:
        token = Path(file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token_file: {file}: cannot be read: {error}") from error
    if len(token) < _MIN_TOKEN_CHARS or not token.isascii() or not _fits_cookie(token):
        raise ConfigError(
            f"token_file: {file}: a token is at least {_MIN_TOKEN_CHARS} ASCII letters, digits "
            "or -._~+/= without spaces"
        )
    return token


def _fits_cookie(token: str) -> bool:
    return all(c.isalnum() or c in "-._~+/=" for c in token)
