"""Proxies: requests go through those that the environment names, where that was asked for.

Behind a proxy it is the proxy that resolves names and connects. What can be checked here is: a host
that resolves to a refused address, or is one, is not asked for. Where else a name leads, the proxy
has the last word, which is its owner's to restrict.
"""

import re
import socket
from typing import Any
from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from pipeline.errors import ConfigError
from pipeline.guard import BlockedAddress, ProxiedPools, checked_addresses

_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]*|[0-9]+)\.?")
"""How an address ends, however it is written, and no name does."""


def proxies_of_environment() -> dict[str, Url]:
    """The proxies for http and https, from HTTP_PROXY and HTTPS_PROXY as the standard library reads
    them.

    Raises:
        ConfigError: a variable holds no URL of an HTTP proxy; its value is not told, for it may
            hold a password.
    """
    proxies = {}
    for scheme, text in getproxies().items():
        if scheme not in ("http", "https"):
            continue
        try:
            proxy = parse_url(text if "://" in text else f"http://{text}")
        except LocationParseError:
            proxy = Url()
        if proxy.scheme != "http" or not proxy.host:
            raise ConfigError(
                f"proxy_from_environment: {scheme.upper()}_PROXY is not of the form "
                f"http://[user:password@]host[:port]"
            )
        proxies[scheme] = proxy
    return proxies


class Proxies:
    """The ways through the environment's proxies, with kept connections."""

    def __init__(self, allow_host: frozenset[str], **options: Any) -> None:
        """
        Args:
            allow_host: hosts, in lower case, that are asked for whatever their addresses are.
            options: of every pool, as of `urllib3.ProxyManager`.

        Raises:
            ConfigError: as of `proxies_of_environment`.
        """
        self._allow_host = allow_host
        self._pools = {}
        for scheme, proxy in proxies_of_environment().items():
            told = urllib3.make_headers(proxy_basic_auth=unquote(proxy.auth or "") or None)
            self._pools[scheme] = ProxiedPools(proxy, proxy_headers=told, **options)

    def pools(self, url: Url) -> ProxiedPools | None:
        """The way to `url`; None where it needs no proxy, by NO_PROXY or for want of one.

        Raises:
            BlockedAddress, LocationParseError: as `guard.checked_addresses`; also an address in a
                writing that is not understood here, but may be by the proxy.
        """
        pools = self._pools.get(url.scheme or "")
        if pools is None or proxy_bypass(url.netloc or ""):
            return None
        host = url.host or ""
        try:
            checked_addresses(host, url.port, self._allow_host)
        except socket.gaierror:  # behind a proxy, workers often have no names of the open web
            if ":" in host or _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
                raise BlockedAddress(host) from None
        return pools
