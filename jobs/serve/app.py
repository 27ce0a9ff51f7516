"""The server's routes."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import fastapi
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from jobs.serve.access import COOKIE, Access
from jobs.serve.catalogue import Catalogue
from jobs.serve.door import DOCS, Door, fault
from jobs.serve.limits import MAX_JSON_BYTES, LimitsConfig
from jobs.serve.metrics import CONTENT_TYPE, Metrics
from jobs.serve.search_request import (
    Bodies,
    Refused,
    SearchRequest,
    SignIn,
    parsed,
    read_search,
)
from jobs.serve.searches import Answer, Searches
from jobs.serve.watching import Watched

_PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
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
    part: int | None = None
    """Of the index, where there are additions: 0 is what it was made of at first."""


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
    part: int | None = None
    """As of a result."""


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
        docs_url=DOCS,
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
    bodies = Bodies(limits)
    _add_search(app, Searches(answer, catalogue, limits, metrics), bodies, limits)
    _add_service(app, catalogue, limits, metrics)
    _add_sign_in(app, access, bodies)
    return Door(app, access, metrics)


def _add_faults(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return fault(error.status, str(error), error.retry_after_s)

    @app.exception_handler(HTTPException)
    async def not_routed(_: Request, error: HTTPException) -> Response:
        return fault(error.status_code, HTTPStatus(error.status_code).phrase.lower())

    @app.exception_handler(RequestValidationError)
    async def not_valid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return fault(422, f"{'.'.join(map(str, first['loc'][1:]))[:80]}: {first['msg'][:200]}")

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:  # uvicorn logs it
        return fault(500, "the server failed; its log says why")


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
        pictures = catalogue.get()
        found = pictures.find(bytes.fromhex(uid))
        if found is None:
            raise Refused(404, f"uid: {uid} is not indexed here")
        told = {"uid": uid, "url": found.url, "captions": found.captions}
        place = {"shard": found.shard, "row": found.row}
        part = {"part": found.part} if pictures.has_additions else {}
        return JSONResponse(told | place | part)

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


def _add_search(app: FastAPI, searches: Searches, bodies: Bodies, limits: LimitsConfig) -> None:
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
        async with read_search(request, bodies, limits) as (asked, picture):
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


def _add_sign_in(app: FastAPI, access: Access, bodies: Bodies) -> None:
    @app.post("/v1/sign-in", tags=["service"], status_code=204)
    async def sign_in(request: Request) -> Response:
        """Have the browser hold the token, in a cookie that no script can read."""
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise Refused(415, "content-type: is not application/json")
        async with bodies.read(request, MAX_JSON_BYTES) as body:
            given = parsed(SignIn, body).token
        if access.token is None or not access.knows(given):
            raise Refused(401, "token: is not the server's")
        response = Response(status_code=204)
        response.set_cookie(COOKIE, given, httponly=True, samesite="strict", path="/")
        return response
