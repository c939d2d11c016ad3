"""Server-sent events as an answer.

FastAPI's encoding, but not its route machinery: that holds two tasks and a queue per stream, and
answers before a route could still say no. Nor sse-starlette: it holds four tasks per stream.
"""

import time
from collections.abc import AsyncIterator, Iterable, Mapping

from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel

__all__ = ["KEEPALIVE_COMMENT", "STREAM_SCHEMA", "EventStream", "Silence", "encode_event"]

# OpenAPI 3.1 does not say whether a stream's schema is that of the text or of one event in it.
STREAM_SCHEMA: Mapping[str, object] = {
    "type": ["string", "object"],
    "description": "Text of events, or each event as an object of its fields",
    "properties": {name: {"type": "string"} for name in ("event", "id", "data")},
}

KEEP_ALIVE_S = 15.0
_HEADERS = {
    # nginx hands each event on at once; nobody compresses or keeps the stream.
    "X-Accel-Buffering": "no",
    "Cache-Control": "no-store, no-transform",
}


class Silence:
    """How long a stream may go on saying nothing before proxies take it for dead."""

    def __init__(self) -> None:
        self.broken()

    def broken(self) -> None:
        """Something was said now."""
        self._since = time.monotonic()

    @property
    def left_s(self) -> float:
        """Seconds until a comment is due."""
        return max(0.0, self._since + KEEP_ALIVE_S - time.monotonic())


class EventStream(StreamingResponse):
    """An answer of encoded events."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes] | Iterable[bytes],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(events, headers={**_HEADERS, **(headers or {})})


def encode_event(name: str, data: BaseModel, event_id: str | None = None) -> bytes:
    """One event with JSON data."""
    return format_sse_event(event=name, data_str=data.model_dump_json(), id=event_id)
