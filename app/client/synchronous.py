"""`Avocat`: the client for programs without an event loop."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx
from httpx_sse import EventSource, ServerSentEvent

from app.client import calls
from app.client.calls import Answer, Call, Listen, NextSent, Pause, Send, Step
from app.client.connection import bytes_of, http_options, id_of, new_request
from app.client.events import Event
from app.client.retries import Retries
from app.client.types import (
    Image,
    Job,
    JobFields,
    Model,
    ModelPlaces,
    Picture,
    Verification,
    Worker,
)

__all__ = ["Avocat"]

T = TypeVar("T")


class Avocat:
    """One service, one key; `with` closes the connections.

    Args:
        server: the service's address; by default `AVOCAT_SERVER`, else http://127.0.0.1:8000.
        api_key: by default `AVOCAT_API_KEY`, else none.
        retries: how patiently connection faults, 429, 502, 503 and 504 are tried again.
        timeout_s: the longest silence of one answer.
    """

    def __init__(
        self,
        server: str | None = None,
        api_key: str | None = None,
        *,
        retries: Retries | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self._http = httpx.Client(**http_options(server, api_key, timeout_s))
        self._retries = retries or Retries()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(
        self, prompt: str, *, timeout_s: float | None = None, **fields: Unpack[JobFields]
    ) -> Sequence[Picture]:
        """Draw and fetch; raises JobFailed, JobCanceled, or JobTimeout after `timeout_s`."""
        return self._run(calls.generate(prompt, fields, timeout_s, self._retries))

    def submit(
        self, prompt: str, *, idempotency_key: str | None = None, **fields: Unpack[JobFields]
    ) -> Job:
        """Submit a job; without a key of yours it gets one, so that retries make no second job."""
        return self._run(calls.submit(prompt, fields, idempotency_key, self._retries))

    def wait(self, job: Job | str, *, timeout_s: float | None = None) -> Job:
        """The job once it has succeeded; raises as `generate` does."""
        return self._run(calls.wait(id_of(job), timeout_s, self._retries))

    def stream(self, job: Job | str, *, previews: int = 0) -> Iterator[Event]:
        """What happens to the job, up to `Ended`; with `previews`, so many looks at it before."""
        return self._events(calls.follow(id_of(job), previews, None, self._retries))

    def get(self, job: Job | str) -> Job:
        """The job as it is now."""
        return self._run(calls.get(id_of(job), self._retries))

    def cancel(self, job: Job | str) -> Job:
        """Cancel the job; one that has ended stays as it is."""
        return self._run(calls.cancel(id_of(job), self._retries))

    def list(self, *, status: str | None = None, page_size: int = 50) -> Iterator[Job]:
        """The key's jobs, newest first; pages are fetched as they are needed."""
        cursor: str | None = None
        while True:
            page = self._run(calls.page(status, page_size, cursor, self._retries))
            yield from page.data
            cursor = page.next_cursor
            if cursor is None:
                return

    def download(self, image: Image) -> bytes:
        """The bytes of a picture."""
        return self._run(calls.download(image, self._retries))

    def verify(
        self, picture: Picture | bytes | str | Path, *, timeout_s: float = 300.0
    ) -> Verification:
        """Let the service draw a PNG or WebP again from the recipe inside; a text is a path."""
        return self._run(calls.verify(bytes_of(picture), timeout_s, self._retries))

    def models(self) -> Sequence[Model]:
        """The models that can be drawn with."""
        return self._run(calls.models(self._retries))

    def workers(self) -> Sequence[Worker]:
        """The live workers, and which models they have or could load; for operators."""
        return self._run(calls.workers(self._retries))

    def load_model(
        self, model: str, *, worker: str | None = None, timeout_s: float = 60.0
    ) -> ModelPlaces:
        """Have a worker load a model, and wait for it; for operators."""
        return self._run(calls.move("load", model, worker, timeout_s, self._retries))

    def unload_model(
        self, model: str, *, worker: str | None = None, timeout_s: float = 60.0
    ) -> ModelPlaces:
        """Have the given worker, or all, unload a model, and wait for it; for operators."""
        return self._run(calls.move("unload", model, worker, timeout_s, self._retries))

    def _run(self, call: Call[T]) -> T:
        with closing(_Connection(self._http)) as connection:
            answer: Answer = None
            while True:
                try:
                    step = call.send(answer)
                except StopIteration as done:
                    result: T = done.value
                    return result
                answer = connection.do(step)

    def _events(self, call: Generator[Step | Event, Answer, Job]) -> Iterator[Event]:
        with closing(_Connection(self._http)) as connection:
            answer: Answer = None
            while True:
                try:
                    step = call.send(answer)
                except StopIteration:
                    return
                answer = None
                if isinstance(step, Event):
                    yield step
                else:
                    answer = connection.do(step)


class _Connection:
    """Does the steps of one call, with at most one open stream."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._head: httpx.Response | None = None
        self._sent: Iterator[ServerSentEvent] | None = None

    def close(self) -> None:
        if self._head is not None:
            self._head.close()

    def do(self, step: Step) -> Answer:
        try:
            match step:
                case Pause(seconds):
                    time.sleep(seconds)
                case Send():
                    return self._http.send(new_request(self._http, step))
                case Listen():
                    self.close()
                    request = new_request(self._http, step)
                    self._head = self._http.send(request, stream=True)
                    self._sent = EventSource(self._head).iter_sse()
                    return self._head
                case NextSent() if self._sent is not None:
                    return next(self._sent, None)
        except httpx.RequestError as fault:
            return fault
        return None
