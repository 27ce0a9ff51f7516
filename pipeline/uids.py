"""The uid: 128 bits that name a picture from its URL to the search result."""

import hashlib
from urllib.parse import quote, unquote, urlsplit


def canonical_url(url: str) -> str:
    """A URL without what does not change the picture: scheme, port, user, fragment.

    The host is in lower case and percent-encoding is normalised, so that two spellings of one
    address are one picture.
    """
    parts = urlsplit(url.strip())
    host = (parts.hostname or "").removesuffix(".")
    path = quote(unquote(parts.path or "/", errors="replace"), safe="/~!$&'()*+,;=:@")
    query = f"?{parts.query}" if parts.query else ""
    return f"{host}{path}{query}"


def uid_of_url(url: str) -> bytes:
    """The uid of a picture that has a URL; a text that is no URL is hashed as it stands."""
    try:
        return uid_of(canonical_url(url))
    except ValueError:
        return uid_of(url)


def uid_of(name: str) -> bytes:
    """The first 16 bytes of SHA-256 of a canonical name (a URL, or a path in its source)."""
    return hashlib.sha256(name.encode("utf-8", errors="surrogatepass")).digest()[:16]
