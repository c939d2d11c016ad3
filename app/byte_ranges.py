"""Conditional and partial GET (RFC 9110, sections 13 and 14) for whole images in memory."""

import re
from dataclasses import dataclass

from app.errors import RangeNotSatisfiable

__all__ = ["Slice", "matches", "requested_slice"]

_RANGE = re.compile(r"bytes=\s*([0-9]{0,15})-([0-9]{0,15})\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Slice:
    """Bytes from `first` to `last`, both included, of `total`."""

    first: int
    last: int
    total: int

    @property
    def content_range(self) -> str:
        """The Content-Range header."""
        return f"bytes {self.first}-{self.last}/{self.total}"


def matches(header: str | None, etag: str) -> bool:
    """Whether an If-None-Match header names this entity (weak comparison)."""
    if header is None:
        return False
    if header.strip() == "*":
        return True
    return any(tag.strip().removeprefix("W/") == etag for tag in header.split(","))


def requested_slice(
    range_header: str | None, if_range: str | None, etag: str, total: int
) -> Slice | None:
    """The one slice asked for; None: send all (no range, several, not understood, or outdated).

    Raises:
        RangeNotSatisfiable: it lies behind the end.
    """
    if range_header is None or (if_range is not None and if_range.strip() != etag):
        return None
    found = _RANGE.fullmatch(range_header.strip())
    if found is None or found[1] == found[2] == "":
        return None
    if found[1] == "":
        first, last = max(0, total - int(found[2])), total - 1
        satisfiable = int(found[2]) > 0 and total > 0
    else:
        first = int(found[1])
        last = min(int(found[2]), total - 1) if found[2] else total - 1
        if found[2] and int(found[2]) < first:
            return None
        satisfiable = first < total
    if not satisfiable:
        raise RangeNotSatisfiable(
            f"The image has {total} bytes", headers={"Content-Range": f"bytes */{total}"}
        )
    return Slice(first, last, total)
