"""Structured logs: text on a terminal, JSON lines where asked.

Lines about a request have its `request_id`, lines about a job `job_id` and the `request_id` that
asked for it; `trace_id` where there is one. What libraries log has the same form.
"""

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from app.jobs.origin import CURRENT, trace_id

__all__ = ["configure"]

_SEVERAL_LINES = ("exception", "stack", "exc_info")


def configure(level: str = "info", as_json: bool = False) -> None:
    """Set up all logging of this process; call once at start.

    Args:
        level: debug, info, warning or error; what is less severe is dropped.
        as_json: one JSON object a line instead of text.
    """
    severity = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        _of_the_request,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering: list[Processor]
    if as_json:
        rendering = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # Plain tracebacks: the default ones print local variables, secrets among them.
        console = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        rendering = [_on_one_line, console]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(severity),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    _take_in_libraries(max(severity, logging.WARNING), shared, rendering)
    logging.captureWarnings(as_json)


def _of_the_request(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Name the request that is being served, its job and its trace; what is said stays."""
    origin = CURRENT.get()
    if origin.request_id is not None:
        event.setdefault("request_id", origin.request_id)
    if origin.job_id is not None:
        event.setdefault("job_id", origin.job_id)
    if origin.traceparent is not None:
        event.setdefault("trace_id", trace_id(origin.traceparent))
    return event


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Ours, among the handlers that others may have set."""


def _take_in_libraries(severity: int, shared: list[Processor], rendering: list[Processor]) -> None:
    """Render what goes through Python's own logging as our lines are."""
    handler = _Handler(sys.stderr)
    handler.setLevel(severity)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    for before in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(before)
    root.addHandler(handler)


def _on_one_line(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escape what a client may have put into a value to make it look like a line of its own."""
    for name, value in event.items():
        if isinstance(value, str) and name not in _SEVERAL_LINES and not value.isprintable():
            event[name] = value.encode("unicode_escape").decode()
    return event
