"""A job as a person watches it in a terminal: a bar, and the picture as it appears."""

import io
from types import TracebackType
from typing import Self

from PIL import Image
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.style import Style
from rich.table import Table
from rich.text import Text

from app.client import Avocat, Ended, Event, Job, Preview, Progressed, StatusChanged

__all__ = ["Watch", "half_blocks"]

PREVIEWS = 12
COLUMNS = 32  # of one picture; a character is two pixels high
CHECKS = (102, 153)  # greys of the board under transparency


class Watch:
    """Shows jobs on stderr, one after the other; `with` begins and ends the display."""

    def __init__(self, *, pictures: bool) -> None:
        self._console = Console(stderr=True)
        colours = self._console.color_system in ("256", "truecolor")
        self.previews = PREVIEWS if pictures and colours and self._console.is_terminal else 0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeElapsedColumn())
        self._shown: dict[int, Text] = {}
        self._live = Live(console=self._console, get_renderable=self._render, transient=True)

    def __enter__(self) -> Self:
        # Without a terminal there is nothing to move, and half a display would only be noise.
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._live.stop()

    def follow(self, client: Avocat, job: Job, note: str = "") -> Job:
        """The job at its end, whatever that is."""
        self._shown.clear()
        task = self._bar.add_task(f"{note}waiting", total=job.progress.total_steps)
        try:
            for event in client.stream(job, previews=self.previews):
                if isinstance(event, Ended):
                    return event.job
                self._show(event, note)
        finally:
            self._bar.remove_task(task)
        return client.get(job)

    def _show(self, event: Event, note: str) -> None:
        task = self._bar.tasks[-1].id
        match event:
            case StatusChanged():
                place = f", place {event.queue_position + 1}" if event.queue_position else ""
                words = "waiting" if event.status == "queued" else "drawing"
                self._bar.update(task, description=f"{note}{words}{place}")
            case Progressed():
                self._bar.update(task, completed=event.step, total=event.total_steps)
            case Preview() if self.previews:
                self._shown[event.index] = half_blocks(event.data)

    def _render(self) -> RenderableType:
        if not self._shown:
            return self._bar
        side_by_side = Table.grid(padding=(0, 1))
        fitting = max(1, (self._console.width + 1) // (COLUMNS + 1))
        side_by_side.add_row(*[self._shown[index] for index in sorted(self._shown)[:fitting]])
        return Group(side_by_side, self._bar)


def half_blocks(data: bytes, columns: int = COLUMNS) -> Text:
    """A picture in characters of two pixels each; a checkerboard under transparency."""
    with Image.open(io.BytesIO(data)) as opened:
        rows = max(2, round(columns * opened.height / opened.width / 2) * 2)
        picture = opened.convert("RGBA").resize((columns, rows), Image.Resampling.BOX)
    text = Text(no_wrap=True)
    for top in range(0, rows, 2):
        for left in range(columns):
            upper, lower = _colour(picture, left, top), _colour(picture, left, top + 1)
            text.append("▀", Style(color=upper, bgcolor=lower))
        text.append("\n" if top + 2 < rows else "")
    return text


def _colour(picture: Image.Image, x: int, y: int) -> str:
    pixel = picture.getpixel((x, y))
    if not isinstance(pixel, tuple):
        raise TypeError(f"an RGBA pixel is {pixel!r}")
    red, green, blue, alpha = pixel
    grey = CHECKS[(x // 2 + y // 2) % 2]
    mixed = [round((value * alpha + grey * (255 - alpha)) / 255) for value in (red, green, blue)]
    return "#{:02x}{:02x}{:02x}".format(*mixed)
