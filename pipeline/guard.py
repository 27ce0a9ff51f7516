"""Guarding: which addresses a worker may reach, and that nothing keeps it there for too long.

URLs are written by strangers, so a URL, a redirect or a name server may point into the worker's
own network. The connections made here resolve a name once, check every address of the answer, and
connect to an address that was checked; TLS still speaks to the name, and verifies it. Where a proxy
was asked for (`pipeline.proxies`), it is connected to instead. Every read ends by the deadlines
(`pipeline.deadlines`), so a peer that drips bytes gains no time.
"""

import ipaddress
import socket
import ssl
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import urllib3
import urllib3.connection
from urllib3.exceptions import (
    ConnectTimeoutError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
)
from urllib3.util import Url

from pipeline.deadlines import at_most

_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
"""All that is allocated as global unicast (RFC 4291); what lies outside is for something else."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""How a network without IPv4 writes the IPv4 addresses of the web (RFC 6052)."""

_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # public by its number; inside Azure it is the host's own service
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata is there (RFC 6890)
        "192.88.99.0/24",  # 6to4 relays, deprecated (RFC 7526)
        "2001::/23",  # protocol assignments, Teredo and its embedded IPv4 among them
        "3fff::/20",  # documentation (RFC 9637)
    )
)


class BlockedAddress(Exception):
    """A host has an address that strangers' URLs may not reach."""


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is a host of the open web, and not one that only looks like it.

    Loopback, private, shared (RFC 6598), link-local, multicast, reserved and unspecified addresses
    are not; an IPv6 address that carries an IPv4 one (mapped, 6to4, NAT64) is what that one is.
    """
    if isinstance(address, IPv6Address):
        carried = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            carried = IPv4Address(int(address) & 0xFFFF_FFFF)
        if carried is not None:
            return is_public(carried)
        if address not in _GLOBAL_IPV6:
            return False
    if any(address in network for network in _NOT_PUBLIC if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


class GuardedPools(urllib3.PoolManager):
    """Kept connections that lead to checked addresses only; certificates are verified.

    Args:
        allow_host: hosts, in lower case, that may be reached whatever their addresses are.
        options: of every pool, as of `urllib3.PoolManager`.
    """

    def __init__(self, allow_host: frozenset[str], **options: Any) -> None:
        super().__init__(ssl_context=_verifying(), **options)
        self.pool_classes_by_scheme = _pool_classes(allow_host)


class ProxiedPools(urllib3.ProxyManager):
    """Kept connections to a proxy, whose address is trusted, and through it to anywhere.

    What the proxy is asked for is the caller's to check (`checked_addresses`). Reads end by the
    deadlines, and certificates are verified within the tunnel, as in `GuardedPools`.

    Args:
        proxy: its URL, http only.
        options: of every pool, as of `urllib3.ProxyManager`.
    """

    def __init__(self, proxy: Url, **options: Any) -> None:
        super().__init__(proxy._replace(auth=None).url, ssl_context=_verifying(), **options)
        self.pool_classes_by_scheme = _pool_classes(frozenset({plain_name(proxy.host or "")}))


def plain_name(host: str) -> str:
    """A host as `allow_host` has it: in lower case, without brackets and the root's dot."""
    return host.lower().strip("[]").rstrip(".")


def checked_addresses(host: str, port: int | None, allow_host: frozenset[str]) -> list[Any]:
    """What `host` resolves to, as of `socket.getaddrinfo`, if all of it may be reached.

    Raises:
        BlockedAddress: one address may not.
        LocationParseError: this can be no name.
        OSError: the name does not resolve.
    """
    host = host.strip("[]")
    try:
        host.encode("idna")  # as urllib3 does: getaddrinfo raises UnicodeError
    except UnicodeError:
        raise LocationParseError(host) from None
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if plain_name(host) not in allow_host:
        for *_, address in found:
            if not is_public(ipaddress.ip_address(address[0])):
                raise BlockedAddress(host)
    return found


def _verifying() -> ssl.SSLContext:
    """One context for all connections: it takes 20 ms to read the certificates."""
    tls = ssl.create_default_context()
    tls.sslsocket_class = _TlsSocket
    return tls


def _pool_classes(allow_host: frozenset[str]) -> dict[str, Any]:
    return {"http": partial(_Pool, allow_host), "https": partial(_TlsPool, allow_host)}


def _connect(
    host: str, port: int, timeout_s: float | None, allow_host: frozenset[str]
) -> socket.socket:
    """A connection to the first address of `host` that answers, if all of them may be reached.

    Raises:
        BlockedAddress, LocationParseError: as `checked_addresses`; none was tried.
        OSError: the name does not resolve, or no address answers.
    """
    fault = OSError(f"{host}: has no address")
    for family, kind, protocol, _, address in checked_addresses(host, port, allow_host):
        connection = _Socket(family, kind, protocol)
        try:
            connection.settimeout(at_most(timeout_s))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.connect(address)
            connection.settimeout(at_most(timeout_s))  # a handshake may follow
            return connection
        except OSError as error:
            connection.close()
            fault = error
    raise fault


class _Punctual:
    """What a socket's class is mixed with for its reads to end by the reader's deadline.

    A timeout is set anew by urllib3 for each answer; here it only ever becomes shorter. A TLS
    handshake counts its timeout over all its steps.
    """

    def recv_into(self: Any, *arguments: Any) -> int:
        self.settimeout(at_most(self.gettimeout()))
        return super().recv_into(*arguments)  # type: ignore[misc]


class _Socket(_Punctual, socket.socket):
    pass


class _TlsSocket(_Punctual, ssl.SSLSocket):
    pass


class _Guarded:
    """What a connection's class is mixed with for `_connect` to make its connections."""

    allow_host: frozenset[str] = frozenset()

    def _new_conn(self: Any) -> socket.socket:
        host = self._dns_host
        try:
            return _connect(host, self.port, self.timeout, self.allow_host)
        except socket.gaierror as error:
            raise NameResolutionError(host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"{host}: {error}") from error
        except OSError as error:
            raise NewConnectionError(self, f"{host}: {error}") from error


class _Connection(_Guarded, urllib3.connection.HTTPConnection):
    pass


class _TlsConnection(_Guarded, urllib3.connection.HTTPSConnection):
    pass


class _GuardedPool:
    """What a pool's class is mixed with: its connections know which host may be reached."""

    def __init__(self, allow_host: frozenset[str], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.allow_host = allow_host

    def _new_conn(self) -> Any:
        connection = super()._new_conn()  # type: ignore[misc]
        connection.allow_host = self.allow_host
        return connection


class _Pool(_GuardedPool, urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(_GuardedPool, urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection
