"""Manners: what a server may ask of those who fetch from it, and how it is obeyed."""

import urllib3
from urllib3.exceptions import HTTPError

AGENT = "viaduct"
"""The name by which a server may address this project."""

_OPT_OUT = frozenset(("noai", "noimageai", "noindex", "noimageindex"))
"""Directives of X-Robots-Tag that img2dataset obeys by default too."""


def opts_out(response: urllib3.BaseHTTPResponse) -> bool:
    """Whether a server forbids that its picture be used so.

    X-Robots-Tag holds directives, for all or after the name of an agent: `noai, bingbot: noindex`.
    TDM-Reservation is of the W3C's TDM Reservation Protocol.
    """
    if response.headers.get("TDM-Reservation", "").strip() == "1":
        return True
    for line in response.headers.getlist("X-Robots-Tag"):
        agent = ""
        for part in line.lower().split(","):
            name, colon, directive = part.rpartition(":")
            agent = name.strip() if colon else agent
            if agent in ("", AGENT) and directive.strip() in _OPT_OUT:
                return True
    return False


def retry_after_s(response: urllib3.BaseHTTPResponse) -> float | None:
    """Seconds that an answer asks to wait for, if it says so in a way that can be read."""
    try:
        return urllib3.Retry().get_retry_after(response)
    except (HTTPError, ValueError, OverflowError):
        return None
