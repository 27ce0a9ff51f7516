"""A search as clients ask for it, over HTTP: read within bounds, and told in one line if wrong."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import Request
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.search_queries import Find, Query
from jobs.serve.limits import BODIES_AT_ONCE, MAX_JSON_BYTES, MAX_TEXT_CHARS, LimitsConfig
from pipeline.errors import ConfigError

_ANY_PICTURE = Image.new("RGB", (1, 1))
"""In place of one that is not decoded yet, or not looked up."""

_SHOWN_CHARS = 60
"""Of a wrong value that are told."""

Model = TypeVar("Model", bound=BaseModel)


class Refused(Exception):
    """A request that is not served; its text is what the client is told.

    Args:
        status: of HTTP.
        error: one line that names the field and the value.
        retry_after_s: when to come again.
    """

    def __init__(self, status: int, error: str, retry_after_s: int | None = None) -> None:
        super().__init__(error)
        self.status, self.retry_after_s = status, retry_after_s


class SearchRequest(BaseModel):
    """What to search for: a text, an indexed picture, or both. With a picture as the body these
    are the query string."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Annotated[str | None, Field(min_length=1, max_length=MAX_TEXT_CHARS)] = None
    """What the pictures should show."""
    uid: Annotated[str | None, Field(pattern="^[0-9a-f]{32}$")] = None
    """A picture of the index to find the like of."""
    k: Annotated[int, Field(ge=1)] = 12
    """Results wanted."""
    rerank: Annotated[int, Field(ge=0)] = 0
    """Candidates that are looked at again beside the text; 0 for none."""
    find: Find = "pictures"
    """`pictures`, or `captions` that fit the picture."""


class SignIn(BaseModel):
    """A token, for a browser that shall hold it as a cookie."""

    model_config = ConfigDict(extra="forbid", strict=True)

    token: Annotated[str, Field(min_length=1, max_length=1000)]


class Bodies:
    """Reads bodies of requests; those in memory at once are bounded.

    Args:
        limits: see there.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._left = BODIES_AT_ONCE * limits.max_body_bytes

    @asynccontextmanager
    async def read(self, request: Request, max_bytes: int) -> AsyncIterator[bytes]:
        """The body, which counts as in memory within the block.

        Raises:
            Refused: it is too large, too slow or broken off, or others fill the memory.
        """
        _check_length(request.headers.get("content-length", "0"), max_bytes)
        body = bytearray()
        try:
            await self._fill(body, request, max_bytes)
            yield bytes(body)
        finally:
            self._left += len(body)

    async def _fill(self, body: bytearray, request: Request, max_bytes: int) -> None:
        try:
            async with asyncio.timeout(self._limits.request_timeout_s):
                async for part in _parts(request):
                    if len(body) + len(part) > max_bytes:
                        raise Refused(413, f"body: more than {max_bytes} bytes")
                    if len(part) > self._left:
                        raise Refused(503, "busy: too many pictures at once", 1)
                    self._left -= len(part)
                    body += part
        except TimeoutError:
            raise Refused(408, "body: did not come in time") from None


async def _parts(request: Request) -> AsyncIterator[bytes]:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "body: broken off")
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _check_length(told: str, max_bytes: int) -> None:
    if told.isascii() and told.isdigit() and int(told[:20]) > max_bytes:
        raise Refused(413, f"body: {told[:20]} bytes are more than {max_bytes}")


@asynccontextmanager
async def read_search(
    request: Request, bodies: Bodies, limits: LimitsConfig
) -> AsyncIterator[tuple[SearchRequest, bytes | None]]:
    """The search that a request asks for, and the picture that is its body.

    Raises:
        Refused: it is none.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "content-encoding: send the body as it is")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        if request.url.query:
            raise Refused(422, "query string: goes with a picture as the body, not with JSON")
        async with bodies.read(request, MAX_JSON_BYTES) as body:
            search = parsed(SearchRequest, body)
        check_search(search, None, limits)
        yield search, None
    elif kind.startswith("image/") or kind == "application/octet-stream":
        search = _from_query(request)
        async with bodies.read(request, limits.max_body_bytes) as body:
            check_search(search, body, limits)
            yield search, body
    else:
        raise Refused(415, f"content-type: {_shown(kind)} is neither application/json nor image/*")


def check_search(search: SearchRequest, picture: bytes | None, limits: LimitsConfig) -> None:
    """Raises Refused where a search is out of bounds, or its parts do not go together."""
    for name, most in (("k", limits.max_k), ("rerank", limits.max_rerank)):
        if getattr(search, name) > most:
            raise Refused(422, f"{name}: {getattr(search, name)} is more than {most}")
    if picture is not None and search.uid is not None:
        raise Refused(422, "uid: the body is a picture already")
    if picture is not None and not picture:
        raise Refused(422, "picture: the body is empty")
    shows = picture is not None or search.uid is not None
    try:
        Query(
            text=search.text,
            picture=_ANY_PICTURE if shows else None,
            k=search.k,
            rerank=search.rerank,
            find=search.find,
        )
    except ConfigError as error:
        raise Refused(422, str(error)) from None


def parsed(model: type[Model], body: bytes) -> Model:
    """A body of JSON; raises Refused."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise Refused(422, _first(error)) from None
    except RecursionError:
        raise Refused(422, "body: nested too deep") from None


def _from_query(request: Request) -> SearchRequest:
    given: list[tuple[str, str]] = request.query_params.multi_items()
    names = [name for name, _ in given]
    for name in names:
        if names.count(name) > 1:
            raise Refused(422, f"{_shown(name)}: is given twice")
    try:
        return SearchRequest.model_validate_strings(dict(given), strict=False)
    except ValidationError as error:
        raise Refused(422, _first(error)) from None


def _first(error: ValidationError) -> str:
    """The first fault in one line: field, value, what is wrong."""
    fault: Any = error.errors(include_url=False)[0]
    where = ".".join(str(part)[:_SHOWN_CHARS] for part in fault["loc"]) or "body"
    if fault["type"] == "json_invalid":
        return f"body: no JSON: {fault['ctx']['error']}"
    return f"{where}: {_shown(fault['input'])}: {fault['msg'][:200]}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
