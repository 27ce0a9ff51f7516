"""Two spellings of one address are one picture; two addresses are two."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.uids import canonical_url, uid_of, uid_of_url

steady = settings(max_examples=200, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://a.org/x.jpg", "https://a.org/x.jpg"),
        ("http://a.org/x.jpg", "HTTP://A.ORG:8080/x.jpg"),
        ("http://a.org/x.jpg", "http://me:secret@a.org/x.jpg"),
        ("http://a.org/x.jpg", "http://a.org./x.jpg#top"),
        ("http://a.org/x.jpg", " http://a.org/x.jpg \n"),
        ("http://a.org", "http://a.org/"),
        ("http://a.org/%C3%A9%20~", "http://a.org/%c3%a9%20%7e"),
        ("http://a.org/%C3%A9", "http://a.org/\u00e9"),
        ("http://a.org/x?name=%C3%A9", "http://a.org/x?name=%c3%a9"),
    ],
)
def test_spellings_of_one_address_have_one_uid(one, other):
    assert uid_of_url(one) == uid_of_url(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://a.org/x.jpg", "http://b.org/x.jpg"),
        ("http://a.org/x.jpg", "http://a.org/X.jpg"),
        ("http://a.org/x.jpg", "http://a.org/x.jpg?size=2"),
        ("http://a.org/x?a=1&b=2", "http://a.org/x?b=2&a=1"),
        ("http://a.org/x/", "http://a.org/x"),
        ("http://a.org/x%3Fy", "http://a.org/x?y"),
        ("http://a.org/x%23y", "http://a.org/x#y"),
        ("http://a.org/50%25", "http://a.org/50"),
        ("http://a.org/x%2Fy", "http://a.org/x/y"),  # RFC 3986, 2.2: not equivalent
        ("http://a.org/caf%E9", "http://a.org/caf%E8"),  # Latin-1, as old sites have it
    ],
)
def test_different_addresses_have_different_uids(one, other):
    assert uid_of_url(one) != uid_of_url(other)


def test_the_canonical_url_is_host_path_and_query():
    url = "https://User@Example.ORG:443/a%20b/%e9t?q=1#there"
    assert canonical_url(url).startswith("example.org/a%20b/")
    assert canonical_url("http://example.org/x?q=1&r#there") == "example.org/x?q=1&r"


def test_a_uid_is_the_first_half_of_a_sha256():
    digest = hashlib.sha256(b"example.org/x").digest()
    assert uid_of_url("http://example.org/x") == uid_of("example.org/x") == digest[:16]


@steady
@given(st.text(st.characters(), max_size=20), st.sampled_from(["", "http://", "http://[", "//h:"]))
def test_any_text_has_a_uid_that_is_always_the_same(text, prefix):
    uid = uid_of_url(prefix + text)
    assert len(uid) == 16
    assert uid_of_url(prefix + text) == uid
    assert len(uid_of(text)) == 16


def test_names_that_are_no_unicode_have_uids_of_their_own():
    assert len({uid_of(name) for name in ("a", "a\ud800", "a\udfff")}) == 3


@steady
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_the_canonical_url_is_its_own_canonical_url(path):
    canonical = canonical_url(f"http://a.org/x{path}")
    assert canonical_url(f"http://{canonical}") == canonical
