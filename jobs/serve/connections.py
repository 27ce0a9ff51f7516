"""Connections of clients that may be slow, broken or hostile.

uvicorn bounds neither how long the head of a request may take, nor a client that never reads what
it asked for, nor a body that goes on after the answer. Ray Serve's own HTTP proxy is made of it,
keeps what it gets of a body in memory without a bound, and lets a client's headers set its time
limit. So the server has no such proxy, and this class between itself and clients.
"""

import asyncio
import json
import time
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from jobs.serve.limits import LimitsConfig

_LINGER_S = 2.0
"""How long a body is read on and thrown away after an answer that did not wait for its end: a
client that is cut off while it sends may never see the answer."""

_LINGER_BYTES = 64 << 20
"""And how much of it."""


class BoundedConnection(H11Protocol):
    """HTTP/1.1 of uvicorn, with an end to all waiting.

    Args:
        config, server_state, app_state: of uvicorn.
        limits: see there.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: LimitsConfig,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._reading_timer: asyncio.TimerHandle | None = None
        self._lingered = -1
        """Bytes thrown away, or -1 while there is no need to."""
        self.waits_since: float | None = None
        """Since when, by the monotonic clock, it has asked for nothing; None while it is served."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) > self._limits.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._reading_timer):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingered >= 0:
            self._lingered += len(data)
            if self._lingered > _LINGER_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        if self._is_idle():
            if self._head_timer is None:  # the first bytes of another request
                self._await_head()
        else:
            self._stop_awaiting_head()

    def on_response_complete(self) -> None:
        is_cut_short = self.conn.their_state is h11.SEND_BODY
        super().on_response_complete()  # may begin the next request
        if self.transport.is_closing():
            return
        if is_cut_short:
            self._linger()
        elif self._is_idle():
            self.waits_since = time.monotonic()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():  # closing waits for a client that reads nothing
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading_timer is None:
            self._reading_timer = self.loop.call_later(
                self._limits.reading_timeout_s, self.transport.abort
            )

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading_timer is not None:
            self._reading_timer.cancel()
            self._reading_timer = None

    def send_400_response(self, msg: str) -> None:
        self.refuse(HTTPStatus.BAD_REQUEST, "this is no HTTP request")

    def refuse(self, status: HTTPStatus, error: str) -> None:
        """Answer what is no whole request, and close."""
        self._stop_awaiting_head()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": error}).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            answer = h11.Response(
                status_code=status, headers=headers, reason=status.phrase.encode()
            )
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _is_idle(self) -> bool:
        """Whether no request is under way, or only the beginning of one."""
        is_served = self.cycle is not None and not self.cycle.response_complete
        return not is_served and self.conn.their_state is h11.IDLE

    def _await_head(self) -> None:
        self.waits_since = time.monotonic()
        self._head_timer = self.loop.call_later(
            self._limits.request_timeout_s,
            self.refuse,
            HTTPStatus.REQUEST_TIMEOUT,
            "no request came in time",
        )

    def _stop_awaiting_head(self) -> None:
        self.waits_since = None
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _make_room(self) -> None:
        """Close the connection that has waited longest without asking for anything."""
        waiting = [
            one
            for one in self.connections
            if isinstance(one, BoundedConnection) and one.waits_since is not None
        ]
        longest = min(waiting, key=lambda one: one.waits_since or 0.0)  # itself waits too
        longest.refuse(HTTPStatus.REQUEST_TIMEOUT, "too many connections; this one asked nothing")

    def _linger(self) -> None:
        """Read on for a while, so that the client sees the answer before the end."""
        self._unset_keepalive_if_required()
        self._lingered = 0
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.abort)
