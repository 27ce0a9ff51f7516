"""The routes, as a client of HTTP sees them."""

import asyncio
import re
import socket
import time
from pathlib import Path

import httpx
import pytest

from jobs import serve
from jobs.serve.replicas import Asked, Refusal, Reply
from jobs.serve.running import listening

TOKEN = "a-token-of-24-characters"


@pytest.fixture
def asked() -> list[Asked]:
    return []


@pytest.fixture
def client(serving, asked):
    """A client of a server whose replica notes what it is asked."""

    async def answer(one: Asked) -> Reply | Refusal:
        asked.append(one)
        if one.text == "no picture":
            return Refusal("picture: cannot be used (failed:truncated)")
        if one.text == "slow":
            await asyncio.sleep(30)
        if one.text == "fails":
            raise RuntimeError("of ours: /secret/path")
        return Reply("d" * 64, [{"rank": 1, "score": 0.5, "uid": "0" * 32}], 3, 0.0123)

    with httpx.Client(base_url=serving(answer=answer, max_k=30).url, timeout=60) as client:
        yield client


def test_words_an_indexed_picture_and_an_uploaded_one_are_searched_for(client, asked, uid):
    some = uid(3).hex()
    told = client.post("/v1/search", json={"text": "a red boat", "k": 5, "rerank": 20})
    assert told.json() == {
        "index": "d" * 64,
        "results": [{"rank": 1, "score": 0.5, "uid": "0" * 32}],
        "seconds": 0.0123,
    }
    client.post("/v1/search", json={"uid": some})
    client.post("/v1/search", json={"uid": some, "text": "red"})
    client.post("/v1/search", json={"uid": some, "find": "captions"})
    query = {"text": "red", "k": "7", "rerank": "9"}
    image = {"content-type": "image/jpeg"}
    assert client.post("/v1/search", params=query, content=b"jpeg", headers=image).is_success
    text, like, both, captions, uploaded = asked
    assert text == Asked(text="a red boat", k=5, rerank=20)
    assert (like.like.uid, like.like.row, like.k) == (uid(3), 3, 12)
    assert (both.like.uid, both.text) == (uid(3), "red")
    assert (captions.like.uid, captions.find) == (uid(3), "captions")
    assert uploaded == Asked(text="red", picture=b"jpeg", k=7, rerank=9)


def test_faults_say_in_one_line_whose_they_are(client, caplog):
    def said(status: int, **fields: object) -> str:
        answer = client.post("/v1/search", json=fields)
        assert answer.status_code == status
        return answer.json()["error"]

    assert said(422, text="a", k=31) == "k: 31 is more than 30"
    assert said(422, text="a", k="3") == "k: '3': Input should be a valid integer"
    assert said(422, text="a", more=1) == "more: 1: Extra inputs are not permitted"
    assert said(422) == "text, picture: give a text or a picture to search for"
    assert said(422, text="a", rerank=5) == "rerank: 5 is less than k=12"
    assert said(422, text="no picture") == "picture: cannot be used (failed:truncated)"
    assert said(404, uid="f" * 32) == f"uid: {'f' * 32} is not indexed here"
    assert said(503, text="slow") == "busy: the search took too long"
    assert said(500, text="fails") == "the server failed; its log says why"
    until = time.monotonic() + 30
    while "secret" not in caplog.text:  # the log has it, a moment after the answer, and no client
        assert time.monotonic() < until
        time.sleep(0.01)


def test_whoever_is_too_many_is_told_to_come_again(serving):
    held, served = asyncio.Event(), []

    async def answer(asked: Asked) -> Reply:
        served.append(asked.text)
        if asked.text == "hold":
            while not held.is_set():
                await asyncio.sleep(0.01)
        return Reply("d", [], 1, 0.0)

    url = serving(answer=answer, max_searches=3, max_heavy=1, search_timeout_s=20.0).url

    async def crowd() -> list[int]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:

            async def search(**fields) -> httpx.Response:
                return await client.post("/v1/search", json=fields)

            first = asyncio.create_task(search(text="hold", rerank=12))
            while not served:
                await asyncio.sleep(0.01)
            heavy = await search(text="other", rerank=12)
            words = await search(text="words")
            more = [asyncio.create_task(search(text="hold")) for _ in range(2)]
            while len(served) < 4:
                await asyncio.sleep(0.01)
            last = await search(text="words")
            healthy = await client.get("/healthz")
            held.set()
            late = await asyncio.gather(first, *more)
            assert heavy.headers["retry-after"] == "1"
            assert "too many searches" in heavy.json()["error"]
            return [one.status_code for one in (heavy, words, last, *late, healthy)]

    assert asyncio.run(crowd()) == [503, 200, 503, 200, 200, 200, 200]


def test_pairs_and_their_pictures(client, uid, jpeg):
    one = client.get(f"/v1/pairs/{uid(2).hex()}")
    assert one.json() == {
        "uid": uid(2).hex(),
        "url": "http://example.org/2.jpg",
        "captions": ["caption 0 of 2", "caption 1 of 2"],
        "shard": 0,
        "row": 2,
    }
    picture = client.get(f"/v1/pairs/{uid(2).hex()}/picture")
    assert picture.content == jpeg(2)
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.headers["x-content-type-options"] == "nosniff"
    facts = client.get("/v1/index").json()
    assert facts["num_pictures"] == 7
    assert facts["max_k"] == 30
    assert facts["examples"] == [uid(row).hex() for row in range(7)]


def test_what_was_taken_down_is_gone_from_a_running_server(serving, make_catalogue, uid):
    down: set[bytes] = set()
    url = serving(catalogue=lambda: make_catalogue(down)).url
    path = f"/v1/pairs/{uid(1).hex()}"
    assert httpx.get(url + path).status_code == 200
    down.add(uid(1))
    assert httpx.get(url + path).status_code == 404
    assert httpx.get(f"{url}{path}/picture").status_code == 404
    assert httpx.post(f"{url}/v1/search", json={"uid": uid(1).hex()}).status_code == 404
    assert httpx.get(f"{url}/v1/pairs/{uid(2).hex()}").status_code == 200


def test_metrics_count_by_route_and_never_by_a_clients_words(client, uid):
    client.get("/healthz")
    client.get(f"/v1/pairs/{uid(2).hex()}")
    client.get("/some/words/of/a/client")
    client.post("/v1/search", json={"text": "a"})
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'viaduct_http_requests_total{route="/v1/pairs/{uid}",status="200"} 1.0' in lines
    assert 'viaduct_http_requests_total{route="other",status="404"} 1.0' in lines
    assert 'viaduct_searches_total{by="text",find="pictures"} 1.0' in lines
    assert 'viaduct_batch_queries_bucket{le="4.0"} 1.0' in lines
    assert "viaduct_searches_under_way 0.0" in lines
    assert "words/of" not in answer.text


def test_no_page_asks_for_anything_off_this_machine(client):
    for path in ("/", "/page.css", "/page.js", "/icon.svg", "/docs", "/openapi.json"):
        answer = client.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "http" not in policy
        addresses = set(re.findall(r"https?://[^\s\"'<>)]+", answer.text))
        assert addresses <= {"http://www.w3.org/2000/svg"}
    for asset in re.findall(r'(?:src|href)="([^"]+)"', client.get("/docs").text):
        assert asset.startswith("/static-offline-docs/")
        assert client.get(asset).status_code == 200
    assert "unsafe" not in client.get("/").headers["content-security-policy"]


def test_the_api_describes_both_bodies_of_a_search(client):
    described = client.get("/openapi.json").json()
    search = described["paths"]["/v1/search"]["post"]
    assert set(search["requestBody"]["content"]) == {"application/json", "image/*"}
    fields = search["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert set(fields) == {"text", "uid", "k", "rerank", "find"}
    assert {one["name"] for one in search["parameters"]} == {"text", "k", "rerank", "find"}


def test_a_token_is_asked_for_and_held_in_a_cookie_that_no_script_reads(serving, uid):
    url = serving(token=TOKEN).url
    picture = f"/v1/pairs/{uid(1).hex()}/picture"
    with httpx.Client(base_url=url) as client:
        for path in ("/", "/page.js", "/page.css", "/healthz"):
            assert client.get(path).status_code == 200
        for path in (picture, "/v1/index", "/metrics", "/docs", "/openapi.json", "/other"):
            assert client.get(path).status_code == 401
        refused = client.post("/v1/search", json={"text": "a"})
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"):
            headers = {"authorization": wrong.encode("latin-1")}
            assert client.get("/v1/index", headers=headers).status_code == 401
        assert client.get("/v1/index", headers={"authorization": f"Bearer {TOKEN}"}).is_success
        assert client.post("/v1/sign-in", json={"token": "guess"}).status_code == 401
        assert client.get("/v1/index").status_code == 401
        signed = client.post("/v1/sign-in", json={"token": TOKEN})
        assert signed.status_code == 204
        cookie = signed.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get(picture).is_success
        assert client.post("/v1/search", json={"text": "a"}).is_success


def test_no_answer_waits_for_its_head_to_be_confirmed():
    """Else each on a connection that is used again takes 40 ms more."""
    with (
        listening("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_other_sites_get_no_leave_to_read(client):
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answers = [client.options("/v1/search", headers=asked), client.get("/v1/index", headers=asked)]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answers[0].status_code == 405


def test_the_page_is_in_the_package():
    page = Path(serve.__file__).parent / "page"
    assert {file.name for file in page.iterdir()} == {
        *("index.html", "page.css", "page.js", "icon.svg")
    }
    assert "innerHTML" not in (page / "page.js").read_text()
