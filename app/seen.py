"""Event ids: what the follower of a job has seen of it, so that it can go on from there."""

import re
from typing import NamedTuple, Self

from app.jobs.followers import Topic
from app.jobs.record import JobStatus

__all__ = ["END", "Seen"]

END = "end"  # id of the last event
_ID = re.compile(r"(\d{1,6})-(?:(\d{1,6})|q(\d{0,9}))", re.ASCII)


class Seen(NamedTuple):
    """A job before its end: `2-17` (17 steps of attempt 2 are done) or `1-q3` (3 jobs ahead)."""

    attempt: int
    step: int | None  # None: it waits for this attempt
    position: int | None = None  # in line, while it waits

    @classmethod
    def of(cls, topic: Topic) -> Self | None:
        """What there is to see now; None where nothing is, or it has ended."""
        record = topic.record
        if record is None or record.status.terminal:
            return None
        if record.status is JobStatus.QUEUED:
            return cls(record.attempts + 1, None, topic.outlook.queue_position)
        return cls(record.attempts, record.step)

    @classmethod
    def read(cls, event_id: str | None) -> Self | None:
        """From an event's id; None for what is none of ours, so that all is told anew."""
        found = _ID.fullmatch(event_id or "")
        if found is None:
            return None
        attempt, step, position = (int(part) if part else None for part in found.groups())
        return cls(attempt or 0, step, position)

    def __str__(self) -> str:
        if self.step is not None:
            return f"{self.attempt}-{self.step}"
        return f"{self.attempt}-q{'' if self.position is None else self.position}"

    @property
    def begun(self) -> Self:
        """The same before its first step."""
        return self if self.step is None else self._replace(step=0)

    def in_another_state(self, before: Self | None) -> bool:
        """Whether there is more news than steps."""
        return before is None or self.begun != before.begun

    def progressed(self, before: Self | None) -> bool:
        """Whether steps were done since."""
        return bool(self.step) and (before is None or self[:2] != before[:2])
