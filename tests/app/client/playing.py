"""A service played by a list of answers, for calls that do no input or output themselves."""

from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import httpx
from httpx_sse import ServerSentEvent

from app.client.calls import Answer, Listen, Pause, Send, Step
from app.client.events import Event

T = TypeVar("T")
STREAM = httpx.Response(200, headers={"Content-Type": "text/event-stream; charset=utf-8"})
JOB: dict[str, Any] = {
    "id": "01J",
    "status": "queued",
    "created_at": "2026-11-23T05:31:49.399Z",
    "started_at": None,
    "finished_at": None,
    "expires_at": "2026-11-24T05:31:49.399Z",
    "request": {
        "prompt": "a red apple",
        "negative_prompt": None,
        "model": "tiny",
        "n": 1,
        "seed": 7,
        "steps": 8,
        "sampler": "ddim",
        "guidance_scale": 3.0,
        "size": "16x16",
        "output_format": "png",
        "background": "transparent",
        "priority": "normal",
        "guidance_interval": [0.0, 1.0],
        "best_of": 1,
        "cache": True,
        "webhook_url": None,
    },
    "progress": {"step": 0, "total_steps": 8, "fraction": 0.0},
    "queue_position": 2,
    "eta_seconds": None,
    "images": [],
    "attempts": 0,
    "warnings": [],
    "error": None,
    "metadata": {},
}


def job(status: str = "queued", **fields: Any) -> httpx.Response:
    """An answer with a job."""
    return httpx.Response(200, json=JOB | {"status": status} | fields, request=REQUEST)


REQUEST = httpx.Request("GET", "http://test/")


def problem(status: int, slug: str, **headers: str) -> httpx.Response:
    """An answer with a problem."""
    body = {"type": f"/problems/{slug}", "title": slug, "status": status, "detail": "so it is"}
    return httpx.Response(
        status, json=body | {"instance": "r1"}, headers={"Retry-After": "0"} | headers
    )


def sent(event: str, data: str, event_id: str = "") -> ServerSentEvent:
    """One event of a stream."""
    return ServerSentEvent(event=event, data=data, id=event_id)


class Play:
    """Runs a call against answers; keeps what it asked for, and the events it gave out."""

    def __init__(self, *answers: Answer) -> None:
        self._answers: Iterator[Answer] = iter(answers)
        self.steps: list[Step] = []
        self.events: list[Event] = []

    def run(self, call: Generator[Any, Answer, T]) -> T:
        """The call's result."""
        answer: Answer = None
        while True:
            try:
                step = call.send(answer)
            except StopIteration as done:
                result: T = done.value
                return result
            answer = None
            if isinstance(step, Event):
                self.events.append(step)
                continue
            self.steps.append(step)
            if not isinstance(step, Pause):
                answer = next(self._answers)

    @property
    def asked(self) -> list[Send | Listen]:
        """The requests."""
        return [step for step in self.steps if isinstance(step, (Send, Listen))]

    @property
    def pauses(self) -> list[float]:
        """How long it waited between them."""
        return [step.seconds for step in self.steps if isinstance(step, Pause)]
