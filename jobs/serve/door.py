"""What stands before all routes: who may ask, what is counted, and what browsers must forbid."""

import time
from http import HTTPStatus

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.serve.access import Access
from jobs.serve.limits import MAX_HEAD_BYTES
from jobs.serve.metrics import Metrics

DOCS = "/docs"
"""FastAPI's page of the API."""

_DOCS_ASSETS = "/static-offline-docs"
_POLICY = (
    "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DOCS_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""Of that page, which has a script of its own in it."""


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
        app = self._app if refusal is None else fault(*refusal)
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
    is_docs = path.startswith((DOCS, _DOCS_ASSETS))
    headers["content-security-policy"] = _DOCS_POLICY if is_docs else _POLICY
    headers["x-content-type-options"] = "nosniff"
    headers["referrer-policy"] = "no-referrer"
    headers["cross-origin-resource-policy"] = "same-origin"
    headers.setdefault("cache-control", "no-store")


def fault(status: int, error: str, retry_after_s: int | None = None) -> JSONResponse:
    """Why a request is not served, in the one form that clients get."""
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": error}, status, headers)
