"""No name, number or disguise leads a worker into its own network."""

import ipaddress
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trustme
from urllib3.exceptions import ReadTimeoutError, SSLError

from pipeline.deadlines import deadline, remaining_s
from pipeline.guard import BlockedAddress, GuardedPools, is_public

PUBLIC = ("93.184.216.34", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e")
REFUSED = (
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "::1", "::"),
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fd00:ec2::254", "fc00::1"),
    *("169.254.169.254", "fe80::1", "fe80::1%eth0", "fec0::1", "100.64.0.1", "100.100.100.200"),
    *("224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1", "240.0.0.1", "255.255.255.255"),
    *("192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1"),
    *("2001:db8::1", "3fff::1", "100::1", "4000::1", "168.63.129.16", "2001::1"),
)


class Site(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


def serve(authority=None, name: str = ""):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.handle_error = lambda *_: None
    if authority:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    return server


@pytest.fixture(scope="module")
def port():
    server = serve()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("address", PUBLIC)
def test_hosts_of_the_open_web_are_public(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", REFUSED)
def test_what_is_not_of_the_open_web_is_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("inner", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1"])
def test_an_address_within_an_address_is_found(inner):
    number = int(ipaddress.IPv4Address(inner))
    mapped, nat64 = 0xFFFF << 32, 0x64_FF9B << 96
    sixtofour, compatible, nat64_local = 0x2002 << 112, 0, 0x64_FF9B_0001 << 80
    teredo = (0x2001_0000 << 96) | (number ^ 0xFFFF_FFFF)  # Teredo writes the client inverted
    for outer in (mapped | number, nat64 | number, sixtofour | number << 80):
        assert not is_public(ipaddress.IPv6Address(outer))
    for outer in (compatible | number, nat64_local | number, teredo):
        assert not is_public(ipaddress.IPv6Address(outer))
    public = int(ipaddress.IPv4Address("1.1.1.1"))
    for outer in (mapped | public, nat64 | public, sixtofour | public << 80):
        assert is_public(ipaddress.IPv6Address(outer))


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0"),
        *("[::1]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]", "localhost", "localhost."),
        "\uff11\uff12\uff17.0.0.1",
    ],
)
def test_no_way_of_writing_loopback_is_connected_to(web, port, host):
    with pytest.raises((BlockedAddress, ValueError)):
        _get(GuardedPools(frozenset()), f"http://{host}:{port}/")
    assert not web.attempts


def test_one_private_address_among_many_refuses_the_name(web):
    web.names["mixed.test"] = ["93.184.216.34", "10.0.0.1"]
    with pytest.raises(BlockedAddress):
        _get(GuardedPools(frozenset()), "http://mixed.test/")
    assert not web.attempts


def test_the_connection_goes_to_the_address_that_was_checked(web, port):
    answers = iter([["93.184.216.34"], ["127.0.0.1"], ["127.0.0.1"]])
    web.names["rebind.test"] = lambda: next(answers)
    pools = GuardedPools(frozenset())
    for _ in range(2):  # the second request finds the connection of the first
        assert _get(pools, f"http://rebind.test:{port}/") == 200
    assert web.asked == ["rebind.test"]
    with pytest.raises(BlockedAddress):  # a new connection is a new check
        _get(GuardedPools(frozenset()), f"http://rebind.test:{port}/")
    assert web.attempts == [("93.184.216.34", port)]


def test_a_host_that_is_allowed_is_reached_by_that_name_alone(web, port):
    web.names |= {"inside.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}
    web.names["sub.inside.test"] = ["127.0.0.1"]
    pools = GuardedPools(frozenset({"inside.test"}))
    for host in ("inside.test", "INSIDE.test."):
        assert _get(pools, f"http://{host}:{port}/") == 200
    for host in ("other.test", "127.0.0.1", "sub.inside.test"):
        with pytest.raises(BlockedAddress):
            _get(pools, f"http://{host}:{port}/")


def test_proxy_variables_change_nothing(web, port, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    web.names["outside.test"] = ["93.184.216.34"]
    assert _get(GuardedPools(frozenset()), f"http://outside.test:{port}/") == 200
    assert web.attempts == [("93.184.216.34", port)]


def test_the_next_address_is_tried_when_one_does_not_answer(web, port):
    web.names["two.test"] = ["1.1.1.1", "93.184.216.34"]
    assert _get(GuardedPools(frozenset()), f"http://two.test:{port}/") == 200
    assert [host for host, _ in web.attempts] == ["1.1.1.1", "93.184.216.34"]


def test_certificates_are_verified_for_the_name_and_not_for_the_address(web, monkeypatch, tmp_path):
    web.names |= {"good.test": [web.OUTSIDE], "other.test": [web.OUTSIDE]}
    authority = trustme.CA()
    server = serve(authority, "good.test")
    good, other = (f"https://{name}.test:{server.server_port}/" for name in ("good", "other"))
    try:
        with pytest.raises(SSLError):  # signed by nobody who is known
            _get(GuardedPools(frozenset()), good)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        pools = GuardedPools(frozenset())
        assert _get(pools, good) == 200
        with pytest.raises(SSLError):
            _get(pools, other)
    finally:
        server.shutdown()
        server.server_close()


def test_reads_end_by_the_deadline_however_the_bytes_drip():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def drip() -> None:
            peer, _ = listener.accept()
            with peer:
                while not stop.wait(0.05):
                    peer.sendall(b"H")

        thread = threading.Thread(target=drip)
        thread.start()
        begun = time.monotonic()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with deadline(0.4), pytest.raises(ReadTimeoutError):
            _get(GuardedPools(frozenset({"127.0.0.1"})), url)
        assert time.monotonic() - begun < 2
        stop.set()
        thread.join()
    assert remaining_s() > 1e9  # the deadline is gone with its block


def _get(pools: GuardedPools, url: str) -> int:
    return pools.request("GET", url, retries=False).status
