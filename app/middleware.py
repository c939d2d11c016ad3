"""Plain ASGI middleware: common headers, last-resort errors, HEAD, the body limit."""

from collections.abc import Container, MutableMapping
from itertools import chain
from typing import Any

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import (
    INTERNAL,
    PROBLEMS,
    AmbiguousRequest,
    ApiError,
    BodyTooLarge,
    HeadersTooLarge,
    problem_response,
)
from app.patience import MOST_HEAD_BYTES

__all__ = ["BodyLimit", "HeadAsGet", "HeaderLimit", "RequestContext", "add_header"]

_log = structlog.get_logger()
MOST_HEADERS = 100
# Answers that are opened as pages run nothing and sit in no frame.
_COMMON = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
)
# A client that sends too much gets its answer only once it has been listened to, up to here.
_DRAINED_BYTES = 1 << 20


def add_header(request: Request, name: str, value: str) -> None:
    """Add a header to the answer of this request, whatever it will be."""
    request.scope["state"]["headers"][name] = value


class RequestContext:
    """Gives each answer its common headers; turns bugs into a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state: MutableMapping[str, Any] = scope["state"]
        state["headers"] = {}
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                raw = message["headers"]
                given = {name for name, _ in raw}
                raw += [header for header in _COMMON if header[0] not in given]
                raw.append((b"x-request-id", state["request_id"].encode()))
                if scope["app"].state.stopping:
                    MutableHeaders(raw=raw)["Connection"] = "close"
                if state["headers"]:
                    headers = MutableHeaders(raw=raw)
                    for name, value in state["headers"].items():
                        headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            _log.exception("request failed", path=scope["path"])
            if started:  # too late for an answer: let the server cut the connection
                raise
            answer = problem_response(
                Request(scope), INTERNAL, "The fault is noted; the request id finds it in the log"
            )
            await answer(scope, receive, send_with_headers)


class HeadAsGet:
    """Answers HEAD as GET without the body; `scope["state"]["head"]` tells who cares."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        scope["state"]["head"] = True

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, send_without_body)
        finally:
            scope.update((name, as_get[name]) for name in ("route", "endpoint") if name in as_get)


class HeaderLimit:
    """Refuses heads of more lines or bytes than any client has a reason to send, or of two lengths.

    The server's own limit, `PatientProtocol`'s, is for heads that never end.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (wrong := _wrong_head(scope)) is None:
            await self._app(scope, receive, send)
            return
        kind, headers = PROBLEMS[type(wrong)], {"Connection": "close"}
        answer = problem_response(Request(scope), kind, wrong.detail, headers=headers)
        await answer(scope, receive, send)


def _wrong_head(scope: Scope) -> ApiError | None:
    lines = len(scope["headers"])
    if lines > MOST_HEADERS:
        return HeadersTooLarge(f"{lines} headers; the most is {MOST_HEADERS}")
    names = [name for name, _ in scope["headers"]]
    if b"transfer-encoding" in names and b"content-length" in names:
        return AmbiguousRequest("Transfer-Encoding and Content-Length say two things; send one")
    size = 4 * lines + sum(map(len, chain.from_iterable(scope["headers"])))
    size += len(scope.get("raw_path") or b"") + len(scope["query_string"])
    if size > MOST_HEAD_BYTES:
        return HeadersTooLarge(f"{size} bytes of head; the most is {MOST_HEAD_BYTES}")
    return None


class BodyLimit:
    """Refuses bodies over `max_bytes`, announced or not; hands on whole ones.

    Routes at the paths `elsewhere` read their bodies, and hold to a limit, by themselves.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, elsewhere: Container[str] = ()) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._elsewhere = elsewhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        bodiless = scope["type"] != "http" or scope["method"] in ("GET", "HEAD")
        if bodiless or scope["path"] in self._elsewhere:
            await self._app(scope, receive, send)
            return
        body = await self._read(receive)
        if body is not None:
            await self._app(scope, _replay(body, receive), send)
            return
        detail = f"The body is over {self._max_bytes} bytes, which is the most"
        kind = PROBLEMS[BodyTooLarge]
        answer = problem_response(Request(scope), kind, detail, headers={"Connection": "close"})
        await answer(scope, receive, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, or None when it is too large (or its sender has gone)."""
        chunks: list[bytes] = []
        size, more = 0, True
        while more and size <= _DRAINED_BYTES:
            message = await receive()
            if message["type"] != "http.request":
                return None
            more = message.get("more_body", False)
            size += len(message.get("body", b""))
            if size <= self._max_bytes:
                chunks.append(message.get("body", b""))
        return b"".join(chunks) if size <= self._max_bytes else None


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()  # only news now: the client has gone
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
