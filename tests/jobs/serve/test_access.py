import pytest

from jobs.serve.access import COOKIE, Access, host_name, open_access
from pipeline.errors import ConfigError

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("127.0.0.1:8000", "127.0.0.1"),
        ("LOCALHOST", "localhost"),
        ("[::1]:8000", "::1"),
        ("[::1]", "::1"),
        ("", ""),
        ("a:b:c", "a"),
    ],
)
def test_a_name_is_the_host_without_its_port(header, name):
    assert host_name(header) == name


def test_a_server_on_loopback_answers_to_its_names_alone():
    access = open_access("127.0.0.1", None, ("Search.Example",))
    for name in ("127.0.0.1", "127.0.0.1:8000", "localhost:8000", "[::1]:8000", "search.example"):
        assert access.refusal("/v1/index", {"host": name}) is None
    for name in ("evil.example", "127.0.0.1.evil.example", "", "10.0.0.1"):
        assert access.refusal("/", {"host": name})[0] == 421
    assert open_access("0.0.0.0", None, ()).refusal("/", {"host": "any.example"}) is None


def test_a_token_is_known_by_header_or_cookie():
    access = Access(TOKEN, None)
    assert access.refusal("/metrics", {})[0] == 401
    assert access.refusal("/healthz", {}) is None
    for headers in (
        {"authorization": f"Bearer {TOKEN}"},
        {"authorization": f"bearer  {TOKEN} "},
        {"cookie": f"a=b; {COOKIE}={TOKEN}"},
    ):
        assert access.refusal("/metrics", headers) is None
    for headers in (
        {"authorization": f"Token {TOKEN}"},
        {"authorization": "Bearer \u00ff"},
        {"cookie": f"{COOKIE}={TOKEN[:-1]}"},
        {"cookie": f"x{COOKIE}={TOKEN}"},
        {"authorization": "Bearer "},
    ):
        assert access.refusal("/metrics", headers)[0] == 401


def test_a_token_file_is_read_or_refused_in_one_line(tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert open_access("127.0.0.1", str(file), ()).token == TOKEN
    for bad in ("", "short", "with a space in it ...", "\u00e9" * 20, "semicolon;semicolon;"):
        file.write_text(bad)
        with pytest.raises(ConfigError, match=f"token_file: {file}: a token is at least 16"):
            open_access("127.0.0.1", str(file), ())
    with pytest.raises(ConfigError, match="nowhere: cannot be read"):
        open_access("127.0.0.1", str(tmp_path / "nowhere"), ())
