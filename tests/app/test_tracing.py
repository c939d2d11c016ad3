"""Trace contexts as callers send them, and spans that nobody takes."""

import time

import pytest

from app.jobs.origin import read_traceparent, trace_id
from app.jobs.tracing import Tracing

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "read"),
    [
        (f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01"),
        (f" 00-{TRACE}-{SPAN}-00 ", f"00-{TRACE}-{SPAN}-00"),
        (f"01-{TRACE}-{SPAN}-01-of-later", f"00-{TRACE}-{SPAN}-01"),
        (f"00-{TRACE}-{SPAN}-01-of-later", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"00-{TRACE}-{SPAN}-01\n", f"00-{TRACE}-{SPAN}-01"),
        ("", None),
        ("x" * 5000, None),
        (None, None),
    ],
)
def test_traceparents(header: str | None, read: str | None) -> None:
    assert read_traceparent(header) == read


def test_without_an_endpoint_the_callers_context_goes_through() -> None:
    tracing = Tracing(None, "test")
    span = tracing.start("x", f"00-{TRACE}-{SPAN}-01")
    assert span.traceparent == f"00-{TRACE}-{SPAN}-01"
    span.end(error="none is noted")
    assert tracing.start("x", None).traceparent is None
    tracing.close()


def test_a_collector_that_is_away_holds_nothing_up() -> None:
    tracing = Tracing("http://127.0.0.1:9", "test")
    began = time.monotonic()
    span = tracing.start("x", f"00-{TRACE}-{SPAN}-01", attributes={"a": 1})
    span.end()
    assert time.monotonic() - began < 1
    assert span.traceparent is not None
    assert trace_id(span.traceparent) == TRACE
    assert SPAN not in span.traceparent
    tracing.close()
    assert time.monotonic() - began < 15
