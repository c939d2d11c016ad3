"""Where a job came from: the request that asked for it, and the trace that it is part of."""

import re
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["CURRENT", "Origin", "read_traceparent", "trace_id"]

# W3C Trace Context; later versions may say more after a further dash.
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True)
class Origin:
    """The request that is being served: what is logged with every line, and kept in the record."""

    request_id: str | None = None
    traceparent: str | None = None  # of the span that the job belongs under
    job_id: str | None = None  # once it is known

    def of(self, job_id: str) -> "Origin":
        """The same, and that it is about this job."""
        return Origin(self.request_id, self.traceparent, job_id)


CURRENT: ContextVar[Origin] = ContextVar("origin", default=Origin())  # noqa: B039 - it is frozen


def read_traceparent(header: str | None) -> str | None:
    """A `traceparent` as version 00 has it; None for one that is none, which W3C says to ignore."""
    found = _TRACEPARENT.fullmatch(header.strip()) if header is not None else None
    if found is None:
        return None
    version, trace, parent, flags, more = found.groups()
    whole = version != "ff" and not (version == "00" and more)
    if not whole or not int(trace, 16) or not int(parent, 16):
        return None
    return f"00-{trace}-{parent}-{flags}"


def trace_id(traceparent: str) -> str:
    """The trace that a span belongs to, 32 hex digits."""
    return traceparent.split("-")[1]
