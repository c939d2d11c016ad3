"""`AsyncAvocat`: the client for programs with an event loop (asyncio or trio)."""

from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack

import anyio
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

__all__ = ["AsyncAvocat"]

T = TypeVar("T")


class AsyncAvocat:
    """One service, one key; `async with` closes the connections.

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
        self._http = httpx.AsyncClient(**http_options(server, api_key, timeout_s))
        self._retries = retries or Retries()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def generate(
        self, prompt: str, *, timeout_s: float | None = None, **fields: Unpack[JobFields]
    ) -> Sequence[Picture]:
        """Draw and fetch; raises JobFailed, JobCanceled, or JobTimeout after `timeout_s`."""
        return await self._run(calls.generate(prompt, fields, timeout_s, self._retries))

    async def submit(
        self, prompt: str, *, idempotency_key: str | None = None, **fields: Unpack[JobFields]
    ) -> Job:
        """Submit a job; without a key of yours it gets one, so that retries make no second job."""
        return await self._run(calls.submit(prompt, fields, idempotency_key, self._retries))

    async def wait(self, job: Job | str, *, timeout_s: float | None = None) -> Job:
        """The job once it has succeeded; raises as `generate` does."""
        return await self._run(calls.wait(id_of(job), timeout_s, self._retries))

    def stream(self, job: Job | str, *, previews: int = 0) -> AsyncIterator[Event]:
        """What happens to the job, up to `Ended`; with `previews`, so many looks at it before."""
        return self._events(calls.follow(id_of(job), previews, None, self._retries))

    async def get(self, job: Job | str) -> Job:
        """The job as it is now."""
        return await self._run(calls.get(id_of(job), self._retries))

    async def cancel(self, job: Job | str) -> Job:
        """Cancel the job; one that has ended stays as it is."""
        return await self._run(calls.cancel(id_of(job), self._retries))

    async def list(self, *, status: str | None = None, page_size: int = 50) -> AsyncIterator[Job]:
        """The key's jobs, newest first; pages are fetched as they are needed."""
        cursor: str | None = None
        while True:
            page = await self._run(calls.page(status, page_size, cursor, self._retries))
            for job in page.data:
                yield job
            cursor = page.next_cursor
            if cursor is None:
                return

    async def download(self, image: Image) -> bytes:
        """The bytes of a picture."""
        return await self._run(calls.download(image, self._retries))

    async def verify(
        self, picture: Picture | bytes | str | Path, *, timeout_s: float = 300.0
    ) -> Verification:
        """Let the service draw a PNG or WebP again from the recipe inside; a text is a path."""
        return await self._run(calls.verify(bytes_of(picture), timeout_s, self._retries))

    async def models(self) -> Sequence[Model]:
        """The models that can be drawn with."""
        return await self._run(calls.models(self._retries))

    async def workers(self) -> Sequence[Worker]:
        """The live workers, and which models they have or could load; for operators."""
        return await self._run(calls.workers(self._retries))

    async def load_model(
        self, model: str, *, worker: str | None = None, timeout_s: float = 60.0
    ) -> ModelPlaces:
        """Have a worker load a model, and wait for it; for operators."""
        return await self._run(calls.move("load", model, worker, timeout_s, self._retries))

    async def unload_model(
        self, model: str, *, worker: str | None = None, timeout_s: float = 60.0
    ) -> ModelPlaces:
        """Have the given worker, or all, unload a model, and wait for it; for operators."""
        return await self._run(calls.move("unload", model, worker, timeout_s, self._retries))

    async def _run(self, call: Call[T]) -> T:
        async with aclosing(_Connection(self._http)) as connection:
            answer: Answer = None
            while True:
                try:
                    step = call.send(answer)
                except StopIteration as done:
                    result: T = done.value
                    return result
                answer = await connection.do(step)

    async def _events(self, call: Generator[Step | Event, Answer, Job]) -> AsyncIterator[Event]:
        async with aclosing(_Connection(self._http)) as connection:
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
                    answer = await connection.do(step)


class _Connection:
    """Does the steps of one call, with at most one open stream."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._head: httpx.Response | None = None
        self._sent: AsyncIterator[ServerSentEvent] | None = None

    async def aclose(self) -> None:
        if self._head is not None:
            await self._head.aclose()

    async def do(self, step: Step) -> Answer:
        try:
            match step:
                case Pause(seconds):
                    await anyio.sleep(seconds)
                case Send():
                    return await self._http.send(new_request(self._http, step))
                case Listen():
                    await self.aclose()
                    request = new_request(self._http, step)
                    self._head = await self._http.send(request, stream=True)
                    self._sent = EventSource(self._head).aiter_sse()
                    return self._head
                case NextSent() if self._sent is not None:
                    return await anext(self._sent, None)
        except httpx.RequestError as fault:
            return fault
        return None
