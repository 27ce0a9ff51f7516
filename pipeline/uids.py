"""The uid: 128 bits that name a picture from its URL to the search result."""

import hashlib
import re
import string
from urllib.parse import quote, urlsplit

_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")
_PLAIN = re.compile(r"[A-Za-z0-9._~/!$&'()*+,;=:@?\[\]-]*")
"""What most URLs consist of: it stands for itself."""
_UNRESERVED = frozenset(string.ascii_letters + string.digits + "-._~")


def canonical_url(url: str) -> str:
    """A URL without what does not change the picture: scheme, port, user, fragment.

    The host is in lower case and percent-encoding is normalised, so that two spellings of one
    address are one picture.
    """
    parts = urlsplit(url.strip())
    host = (parts.hostname or "").removesuffix(".")
    query = f"?{_one_spelling(parts.query)}" if parts.query else ""
    return f"{host}{_one_spelling(parts.path or '/')}{query}"


def uid_of_url(url: str) -> bytes:
    """The uid of a picture that has a URL; a text that is no URL is hashed as it stands."""
    try:
        return uid_of(canonical_url(url))
    except ValueError:
        return uid_of(url)


def uid_of(name: str) -> bytes:
    """The first 16 bytes of SHA-256 of a canonical name (a URL, or a path in its source)."""
    return hashlib.sha256(name.encode("utf-8", errors="surrogatepass")).digest()[:16]


def _one_spelling(text: str) -> str:
    """Percent-encoding as RFC 3986, section 6.2.2, has it.

    Unreserved characters stand for themselves and everything that cannot stand in a URL is encoded,
    in capitals; an encoded reserved character stays encoded, for it means something else.
    """
    if _PLAIN.fullmatch(text):
        return text

    def plain(escape: re.Match[str]) -> str:
        character = chr(int(escape[1], 16))
        return character if character in _UNRESERVED else escape[0].upper()

    return quote(_ESCAPE.sub(plain, text), safe="%/~!$&'()*+,;=:@?[]")
