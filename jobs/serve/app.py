"""The server's routes, and what stands before all of them: who may ask, and what is counted."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import fastapi
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indexes.retrieval import FoundPicture
from jobs.serve.access import COOKIE, Access
from jobs.serve.catalogue import Catalogue
from jobs.serve.limits import MAX_HEAD_BYTES, MAX_JSON_BYTES, LimitsConfig
from jobs.serve.metrics import CONTENT_TYPE, Metrics
from jobs.serve.replicas import Asked, Refusal, Reply
from jobs.serve.search_request import (
    Bodies,
    Refused,
    SearchRequest,
    SignIn,
    parsed,
    read_search,
)
from jobs.serve.watching import Watched

Answer = Callable[[Asked], Awaitable[Reply | Refusal]]
"""Whoever answers searches: Ray Serve's replicas."""

_PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_POLICY = (
    "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DOCS_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""Of FastAPI's page of the API, which has a script of its own in it."""
_DOCS = "/docs"
_UID = Annotated[str, fastapi.Path(pattern="^[0-9a-f]{32}$", description="As searches tell it.")]


class Result(BaseModel):
    """Something found."""

    rank: int
    score: float
    """Cosine."""
    match: float | None = None
    """ITM's logit plus the cosine, where it was looked at again."""
    uid: str
    """Of the picture; of a caption's picture."""
    url: str | None = None
    captions: list[str] | None = None
    text: str | None = None
    """Of a caption."""
    shard: int | None = None
    row: int | None = None


class SearchReply(BaseModel):
    """What a search found, best first."""

    index: str
    """Digest of the index."""
    results: list[Result]
    seconds: float
    """At the replica."""


class Pair(BaseModel):
    """A picture with its captions."""

    uid: str
    url: str
    captions: list[str]
    shard: int
    row: int


class Fault(BaseModel):
    """Why a request was not served."""

    error: str


def make_app(
    answer: Answer,
    catalogue: Watched[Catalogue],
    access: Access,
    limits: LimitsConfig,
    metrics: Metrics,
) -> ASGIApp:
    """The server as an ASGI application.

    Args:
        answer: answers searches; raises where it cannot.
        catalogue: of the pictures that are searched.
        access: who may ask.
        limits: what they may ask for.
        metrics: where requests are counted.
    """
    app = FastAPIOffline(
        docs_url=_DOCS,
        redoc_url=None,
        redirect_slashes=False,
        title="Viaduct",
        description="Search of pictures by words, by picture, or by both.",
        swagger_ui_parameters={"validatorUrl": None},  # it would ask a server elsewhere
        responses={code: {"model": Fault} for code in (400, 401, 404, 408, 413, 415, 422, 503)},
    )
    _add_faults(app)
    _add_page(app)
    _add_pairs(app, catalogue)
    _add_search(app, _Searches(answer, catalogue, limits, metrics))
    _add_service(app, catalogue, access, limits, metrics)
    return Door(app, access, metrics)


class Door:
    """Stands before the routes: refuses whom it must, counts, and tells browsers what to forbid.

    Args:
        app: with the routes.
        access: who may ask.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self._app, self._access, self._metrics = app, access, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), HTTPStatus.INTERNAL_SERVER_ERROR.value

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _protect(MutableHeaders(scope=message), scope["path"])
            await send(message)

        refusal = _malformed(scope) or self._access.refusal(scope["path"], Headers(scope=scope))
        app = self._app if refusal is None else _fault(*refusal)
        try:
            await app(scope, receive, told)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - begun)


def _malformed(scope: Scope) -> tuple[int, str] | None:
    """What a parser takes, but nobody means."""
    if scope["http_version"] not in ("1.0", "1.1"):
        return 400, f"version: HTTP/{scope['http_version'][:8]} is not spoken here"
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD_BYTES:
        return 431, f"headers: more than {MAX_HEAD_BYTES} bytes"
    return None


def _protect(headers: MutableHeaders, path: str) -> None:
    """Have browsers run nothing that is not ours, and tell others nothing."""
    is_docs = path.startswith((_DOCS, "/static-offline-docs"))
    headers["content-security-policy"] = _DOCS_POLICY if is_docs else _POLICY
    headers["x-content-type-options"] = "nosniff"
    headers["referrer-policy"] = "no-referrer"
    headers["cross-origin-resource-policy"] = "same-origin"
    headers.setdefault("cache-control", "no-store")


def _fault(status: int, error: str, retry_after_s: int | None = None) -> JSONResponse:
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": error}, status, headers)


def _add_faults(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return _fault(error.status, str(error), error.retry_after_s)

    @app.exception_handler(HTTPException)
    async def not_routed(_: Request, error: HTTPException) -> Response:
        return _fault(error.status_code, HTTPStatus(error.status_code).phrase.lower())

    @app.exception_handler(RequestValidationError)
    async def not_valid(_: Request, error: RequestValidationError) -> Response:
        fault = error.errors()[0]
        return _fault(422, f"{'.'.join(map(str, fault['loc'][1:]))[:80]}: {fault['msg'][:200]}")

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:  # uvicorn logs it
        return _fault(500, "the server failed; its log says why")


def _add_page(app: FastAPI) -> None:
    for path, (name, kind) in _FILES.items():
        app.add_api_route(path, _file((_PAGE / name).read_bytes(), kind), include_in_schema=False)


def _file(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def file() -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return file


def _add_pairs(app: FastAPI, catalogue: Watched[Catalogue]) -> None:
    @app.get("/v1/pairs/{uid}", tags=["pairs"], responses={200: {"model": Pair}})
    def pair(uid: _UID) -> Response:
        """A picture's address and captions."""
        found = catalogue.get().find(bytes.fromhex(uid))
        if found is None:
            raise Refused(404, f"uid: {uid} is not indexed here")
        told = {"uid": uid, "url": found.url, "captions": found.captions}
        return JSONResponse(told | {"shard": found.shard, "row": found.row})

    @app.get(
        "/v1/pairs/{uid}/picture",
        tags=["pairs"],
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}},
    )
    def picture(uid: _UID) -> Response:
        """The picture as it is stored, a JPEG."""
        jpeg = catalogue.get().picture(bytes.fromhex(uid))
        if jpeg is None:
            raise Refused(404, f"uid: {uid} is not indexed here")
        # A picture never changes, but may be taken down.
        headers = {"cache-control": "private, max-age=60"}
        return Response(jpeg, media_type="image/jpeg", headers=headers)


class _Searches:
    """Searches under way, within bounds.

    Args:
        answer, catalogue, limits, metrics: as `make_app` has them.
    """

    def __init__(
        self, answer: Answer, catalogue: Watched[Catalogue], limits: LimitsConfig, metrics: Metrics
    ) -> None:
        self.bodies = Bodies(limits)
        self.limits = limits
        self._answer, self._catalogue, self._metrics = answer, catalogue, metrics
        self._under_way = {"all": 0, "heavy": 0}
        self._most = {"all": limits.max_searches, "heavy": limits.max_heavy}

    async def search(self, search: SearchRequest, picture: bytes | None) -> Reply:
        """Raises Refused, or whatever a replica raises that fails."""
        like = None if search.uid is None else await asyncio.to_thread(self._like, search.uid)
        asked = Asked(
            text=search.text,
            picture=picture,
            like=like,
            k=search.k,
            rerank=search.rerank,
            find=search.find,
        )
        async with self._place("all"), AsyncExitStack() as heavy:
            if asked.is_heavy:
                await heavy.enter_async_context(self._place("heavy"))
            try:
                async with asyncio.timeout(self.limits.search_timeout_s):
                    reply = await self._answer(asked)
            except TimeoutError:
                raise Refused(503, "busy: the search took too long", 1) from None
        if isinstance(reply, Refusal):
            raise Refused(422, reply.error)
        self._count(asked, reply)
        return reply

    def _like(self, uid: str) -> FoundPicture:
        found = self._catalogue.get().find(bytes.fromhex(uid))
        if found is None:
            raise Refused(404, f"uid: {uid} is not indexed here")
        return found

    @asynccontextmanager
    async def _place(self, kind: str) -> AsyncIterator[None]:
        if self._under_way[kind] >= self._most[kind]:
            raise Refused(503, "busy: too many searches at once", 1)
        self._under_way[kind] += 1
        self._metrics.searches_under_way.set(self._under_way["all"])
        try:
            yield
        finally:
            self._under_way[kind] -= 1
            self._metrics.searches_under_way.set(self._under_way["all"])

    def _count(self, asked: Asked, reply: Reply) -> None:
        shows = asked.picture is not None or asked.like is not None
        by = "both" if shows and asked.text is not None else "picture" if shows else "text"
        self._metrics.searches.labels(by, asked.find).inc()
        self._metrics.batch_queries.observe(reply.num_queries)
        self._metrics.replica_seconds.observe(reply.seconds)


def _add_search(app: FastAPI, searches: _Searches) -> None:
    @app.post(
        "/v1/search",
        tags=["search"],
        responses={200: {"model": SearchReply}},
        openapi_extra=_search_body(),
    )
    async def search(request: Request) -> Response:
        """Find pictures, or captions that fit a picture.

        The body is JSON with a text, the uid of an indexed picture, or both. Or it is a picture
        itself (`image/jpeg`, `image/png` and the like), and what else there is to say stands in the
        query string. A text and a picture together find what is close to one thing that the
        picture shows, and to the words at once.
        """
        async with read_search(request, searches.bodies, searches.limits) as (asked, picture):
            reply = await searches.search(asked, picture)
        told = {"index": reply.index, "results": reply.results}
        return JSONResponse(told | {"seconds": round(reply.seconds, 4)})


def _search_body() -> dict[str, Any]:
    """What FastAPI cannot know of a route that reads its body itself."""
    schema = SearchRequest.model_json_schema()
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": schema, "example": {"text": "a red boat", "k": 12}},
                "image/*": binary,
            },
        },
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": False,
                "schema": schema["properties"][name],
                "description": "Goes with a picture as the body.",
            }
            for name in ("text", "k", "rerank", "find")
        ],
    }


def _add_service(
    app: FastAPI,
    catalogue: Watched[Catalogue],
    access: Access,
    limits: LimitsConfig,
    metrics: Metrics,
) -> None:
    @app.get("/healthz", tags=["service"])
    async def healthz() -> dict[str, str]:
        """Says that the server answers."""
        return {"status": "ok"}

    @app.get("/metrics", tags=["service"], response_class=Response)
    async def prometheus() -> Response:
        """Counts and times, for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/index", tags=["service"])
    def index() -> dict[str, Any]:
        """What is searched, and what may be asked for."""
        most = {"max_k": limits.max_k, "max_rerank": limits.max_rerank}
        return catalogue.get().facts() | most | {"max_body_bytes": limits.max_body_bytes}

    @app.post("/v1/sign-in", tags=["service"], status_code=204)
    async def sign_in(request: Request) -> Response:
        """Have the browser hold the token, in a cookie that no script can read."""
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise Refused(415, "content-type: is not application/json")
        async with Bodies(limits).read(request, MAX_JSON_BYTES) as body:
            given = parsed(SignIn, body).token
        if access.token is None or not access.knows(given):
            raise Refused(401, "token: is not the server's")
        response = Response(status_code=204)
        response.set_cookie(COOKIE, given, httponly=True, samesite="strict", path="/")
        return response
