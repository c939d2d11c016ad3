"""What a process knows of the jobs that are followed in it. No Redis and no HTTP here."""

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass

from app.jobs.outlook import Outlook
from app.jobs.reader import Mark
from app.jobs.record import JobRecord, JobStatus

__all__ = ["Follower", "Preview", "Topic"]

_MOST_PREVIEWS = 64  # kept for a listener that is slower than they come


@dataclass(frozen=True)
class Preview:
    """What picture `index` would be if it ended now."""

    attempt: int
    step: int
    index: int
    data_url: str


class Topic:
    """The newest that is known of one job, for all who follow it."""

    def __init__(self) -> None:
        self.record: JobRecord | None = None  # None: not read yet, or gone
        self.outlook = Outlook()
        self.gone = False
        self.followers: set[Follower] = set()

    @property
    def detailed(self) -> bool:
        """Whether anybody wants more than the end."""
        return any(not follower.only_end for follower in self.followers)

    @property
    def previews(self) -> int:
        """The most previews of each picture that anybody wants."""
        return max((follower.previews for follower in self.followers), default=0)

    @property
    def unwished(self) -> bool:
        """Whether the job's worker does not know yet how many that is."""
        return self.record is not None and self.previews > self.record.previews

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.gone or (self.record is not None and self.record.status.terminal)

    @property
    def in_line(self) -> bool:
        """Whether somebody wants to know where the job stands in line."""
        waits = self.record is not None and self.record.status is JobStatus.QUEUED
        return waits and self.detailed

    def agrees(self, mark: Mark) -> bool:
        """Take in how far the job is; False when more has changed, and it should be read."""
        if self.record is None or mark[:2] != (self.record.status, self.record.attempts):
            return False
        if mark.status is JobStatus.RUNNING:
            self.progress(mark.attempts, mark.step)
        return True

    def read(self, record: JobRecord | None, outlook: Outlook) -> None:
        """Take in what Redis holds; what is older than what messages told changes nothing."""
        if record is None:
            self.gone, self.record = True, None
        elif self.record is None or _moment(record) >= _moment(self.record):
            self.record, self.outlook = record, outlook
        self.wake()

    def progress(self, attempt: int, step: int) -> None:
        """Take in that the job's attempt `attempt` has done `step` steps."""
        if self.record is None:
            return
        changes = {"status": JobStatus.RUNNING, "attempts": attempt, "step": step}
        later = self.record.model_copy(update=changes)
        if _moment(later) > _moment(self.record):
            self.record, self.outlook = later, Outlook()
            self.wake()

    def move(self, outlook: Outlook) -> None:
        """Take in where the job stands in line."""
        if outlook != self.outlook:
            self.outlook = outlook
            self.wake()

    def preview(self, preview: Preview) -> None:
        """Hand a preview to those who want it; those of lost attempts are dropped."""
        if self.record is None or preview.attempt >= self.record.attempts:
            for follower in self.followers:
                follower.show(preview)

    def wake(self) -> None:
        """Let all followers look."""
        for follower in self.followers:
            follower.wake()


class Follower:
    """One who waits for news of a job."""

    def __init__(self, topic: Topic, *, previews: int = 0, only_end: bool = False) -> None:
        """`previews`: how many of each picture, evenly spread over its way."""
        self.topic = topic
        self.only_end = only_end
        self.previews = previews
        self._shown: dict[tuple[int, int], int] = {}  # (attempt, index) -> part of the way
        self._previews: deque[Preview] = deque(maxlen=_MOST_PREVIEWS)
        self._news = asyncio.Event()

    async def wait(self, timeout_s: float) -> bool:
        """Wait until there may be news; False when there were none for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        arrived = self._news.is_set()
        self._news.clear()
        return arrived

    def take_previews(self) -> list[Preview]:
        """The previews that came since the last call, oldest first."""
        taken = list(self._previews)
        self._previews.clear()
        return taken

    def wake(self) -> None:
        """There may be news."""
        self._news.set()

    def show(self, preview: Preview) -> None:
        """Keep a preview if this follower's next one is due: others may have asked for more."""
        record = self.topic.record
        if not self.previews or record is None:
            return
        part = preview.step * (self.previews + 1) // record.total_steps
        place = (preview.attempt, preview.index)
        if part > self._shown.get(place, 0):
            self._shown[place] = part
            self._previews.append(preview)
            self.wake()


def _moment(record: JobRecord) -> tuple[bool, int, int]:
    """Later moments of a job's life are greater."""
    if record.status is JobStatus.QUEUED:
        return False, record.attempts + 1, -1  # the next attempt, not begun
    return record.status.terminal, record.attempts, record.step
