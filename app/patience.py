"""Uvicorn's HTTP protocol with an end to its patience: slow clients may not hold connections.

Uvicorn alone limits how long a connection may be idle, not how long a request may take to arrive.
"""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["MOST_HEAD_BYTES", "PatientProtocol"]

MOST_HEAD_BYTES = 32768


def _answer(status: int, phrase: str, slug: str, title: str, detail: str) -> bytes:
    problem = {"type": f"/problems/{slug}", "title": title, "status": status, "detail": detail}
    body = json.dumps(problem)
    return (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/problem+json\r\n"
        f"Cache-Control: no-store\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode("ascii")


_TOO_SLOW = _answer(
    408, "Request Timeout", "request-timeout", "The request did not arrive in time",
    "The whole request should be sent at once",
)  # fmt: skip
_TOO_LARGE = _answer(
    431, "Request Header Fields Too Large", "headers-too-large", "The headers are too large",
    f"The head is over {MOST_HEAD_BYTES} bytes, which is the most",
)  # fmt: skip
_NO_REQUEST = _answer(
    400, "Bad Request", "bad-request", "That is no HTTP request",
    "The bytes are not HTTP/1.1, or say two things at once",
)  # fmt: skip


class PatientProtocol(H11Protocol):
    """Closes connections whose request's head, or body, is not there after some seconds.

    Both count from their beginning, so that a byte now and then buys no time.
    """

    head_s = 10.0
    body_s = 60.0  # 8 MiB, the largest body, at 1.1 Mbit/s

    _due: asyncio.TimerHandle | None = None
    _waits_for: object = None  # h11's state of the client that `_due` is for

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for(h11.IDLE)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        state = self.conn.their_state
        if state is h11.IDLE and self.conn.trailing_data[0] == b"":
            self._wait_for(None)  # between two requests: uvicorn's own limit holds
        else:
            self._wait_for(state if state in (h11.IDLE, h11.SEND_BODY) else None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_for(None)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no request, or has no end, in the form of all other errors."""
        endless = len(self.conn.trailing_data[0]) >= MOST_HEAD_BYTES
        if self.conn.our_state is not h11.SEND_BODY:
            self.transport.write(_TOO_LARGE if endless else _NO_REQUEST)
        self.transport.close()

    def _wait_for(self, state: object) -> None:
        if state is self._waits_for:
            return
        if self._due is not None:
            self._due.cancel()
        self._waits_for, self._due = state, None
        if state is not None:
            seconds = self.head_s if state is h11.IDLE else self.body_s
            self._due = self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        if self.conn.our_state is not h11.SEND_BODY:  # else it would stand in another answer
            self.transport.write(_TOO_SLOW)
        self.transport.close()
