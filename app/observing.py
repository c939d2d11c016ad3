"""Plain ASGI middleware that sees each request from its begin to its end, and tells of it.

To people by one line in the log, to Prometheus by counts, to a tracer by a span, to the audit log
by who asked for what.
"""

import random
import re
import time
from collections.abc import MutableMapping
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from app.audit import Audit, of_request
from app.jobs.origin import CURRENT, Origin, read_traceparent
from app.jobs.tracing import Span, Tracing
from app.metrics import Metrics

__all__ = ["Observing"]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._~-]{1,64}")
# Asked again and again by machines; of no interest unless something is sought.
_PROBES = ("/healthz", "/readyz", "/metrics")


class Observing:
    """Gives each request its id, in `scope["state"]["request_id"]`, and notes how it ended."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing, audit: Audit) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._audit = audit
        self._log = structlog.get_logger().bind()  # else each line would bind it anew

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        headers = Headers(scope=scope)
        state["request_id"] = _request_id(headers.get("x-request-id"))
        span = self._begin(scope, read_traceparent(headers.get("traceparent")))
        status: int | None = None
        seconds: float | None = None
        begun = time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.perf_counter() - begun
                _log_answer(self._log, scope, status, seconds)
            await send(message)

        self._metrics.opened()
        try:
            await self._app(scope, receive, noting)
        finally:
            route = _route(scope)
            self._metrics.closed(scope["method"], route, status, seconds)
            if "problem" in state:
                self._metrics.problem(state["problem"], tuple(state["policies"]))
            _end(span, scope["method"], route, status, state)
            if self._audit.on and (entry := of_request(scope, route, status)) is not None:
                self._audit.note(entry)

    def _begin(self, scope: Scope, caller: str | None) -> Span:
        """Start the span, and let all that is logged or submitted from here on know of it."""
        request_id = scope["state"]["request_id"]
        traced = scope["path"] not in _PROBES
        span = self._tracing.start("request", caller, "SERVER") if traced else Span(caller)
        CURRENT.set(Origin(request_id, span.traceparent))
        return span


def _end(
    span: Span, method: str, route: str, status: int | None, state: MutableMapping[str, Any]
) -> None:
    attributes: dict[str, str | int] = {
        "http.request.method": method,
        "http.route": route,
        "avocat.request.id": state["request_id"],
    }
    if status is not None:
        attributes["http.response.status_code"] = status
    failed = status is None or status >= 500
    error = str(state.get("problem", "the connection was cut")) if failed else None
    span.end(name=f"{method} {route}", attributes=attributes, error=error)


def _log_answer(log: FilteringBoundLogger, scope: Scope, status: int, seconds: float) -> None:
    """One line per request; never the query, which may hold a signature."""
    tell = log.debug if scope["path"] in _PROBES else log.info
    tell(
        "request",
        method=scope["method"],
        path=scope["path"],
        status=status,
        ms=round(seconds * 1000, 1),
    )


def _route(scope: Scope) -> str:
    """The template of the route that answered; never the path, for there are endless ones."""
    if (route := scope.get("route")) is not None:
        return str(route.path)
    return "files" if "endpoint" in scope else "none"


def _request_id(offered: str | None) -> str:
    """The client's own id if it is harmless, so that its logs and ours can be matched."""
    if offered is not None and _REQUEST_ID.fullmatch(offered):
        return offered
    return f"{random.getrandbits(128):032x}"  # a name, which opens nothing
