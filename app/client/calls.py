"""What a client does, free of input and output, so that one text serves both kinds of client.

A call is a generator: it yields what is to be done next (`Send`, `Listen`, `NextSent`, `Pause`),
is sent the outcome, and returns the result. `follow` also yields events for its reader.
"""

import base64
import hashlib
import math
import time
import uuid
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from httpx_sse import ServerSentEvent
from pydantic import BaseModel, ValidationError

from app.client.errors import JobCanceled, JobFailed, JobTimeout, Unreachable, problem_error
from app.client.events import Ended, Event, changes, read_event
from app.client.retries import Retries, retry_after_s
from app.client.types import GivenPicture, Image, Job, JobFields, Model, Picture, Verification
from app.jobs.record import JobStatus
from app.schemas.jobs import JobList
from app.schemas.models import ModelList, ModelPlaces, WorkerList, WorkerObject

__all__ = ["Answer", "Call", "Headers", "Listen", "NextSent", "Params", "Pause", "Send", "Step"]

MOST_WAIT_S = 60
HEARTBEAT_S = 15.0  # a stream says something at least so often, if only a comment
FIRST_POLL_S, LAST_POLL_S = 0.1, 2.0
FRUITLESS_STREAMS = 3  # streams that end before they said anything, until polling takes over


Headers = Mapping[str, str]
Params = Mapping[str, str | int]


@dataclass(frozen=True)
class Send:
    """Send a request; the outcome is the whole answer, or the fault."""

    method: str
    path: str
    json: Mapping[str, Any] | None = None
    params: Params | None = None
    headers: Headers = field(default_factory=dict)
    content: bytes | None = None
    timeout_s: float | None = None  # in place of the client's


@dataclass(frozen=True)
class Listen:
    """Open a stream, closing the one before; the outcome is its head, or the fault."""

    path: str
    params: Params
    headers: Headers


@dataclass(frozen=True)
class NextSent:
    """Read on in the open stream; the outcome is None at its end, or the fault."""


@dataclass(frozen=True)
class Pause:
    """Do nothing for a while."""

    seconds: float


Step = Send | Listen | NextSent | Pause
Answer = httpx.Response | httpx.RequestError | ServerSentEvent | None
T = TypeVar("T")
Call = Generator[Step, Answer, T]
M = TypeVar("M", bound=BaseModel)


def submit(prompt: str, fields: JobFields, key: str | None, retries: Retries) -> Call[Job]:
    """Submit a job; its idempotency key makes every retry safe."""
    headers = {"Idempotency-Key": key or uuid.uuid4().hex}
    body: dict[str, Any] = {"prompt": prompt, **fields}
    for name in ("init_image", "mask"):
        if body.get(name) is not None:
            body[name] = given_picture(body[name])
    return (yield from _model(Job, Send("POST", "/v1/jobs", body, headers=headers), retries))


def get(job_id: str, retries: Retries) -> Call[Job]:
    """A job as it is now."""
    return (yield from _model(Job, Send("GET", _path(job_id)), retries))


def cancel(job_id: str, retries: Retries) -> Call[Job]:
    """Cancel a job; one that has ended stays as it is."""
    return (yield from _model(Job, Send("POST", f"{_path(job_id)}/cancel"), retries))


def page(status: str | None, limit: int, cursor: str | None, retries: Retries) -> Call[JobList]:
    """One page of the caller's jobs, newest first."""
    given = {"status": status, "limit": limit, "cursor": cursor}
    params = {name: value for name, value in given.items() if value is not None}
    return (yield from _model(JobList, Send("GET", "/v1/jobs", params=params), retries))


def models(retries: Retries) -> Call[list[Model]]:
    """All models that are served."""
    return (yield from _model(ModelList, Send("GET", "/v1/models"), retries)).data


def workers(retries: Retries) -> Call[list[WorkerObject]]:
    """All live workers with their models."""
    return (yield from _model(WorkerList, Send("GET", "/v1/workers"), retries)).data


def move(
    verb: str, model: str, worker: str | None, timeout_s: float, retries: Retries
) -> Call[ModelPlaces]:
    """`load` or `unload` a model; where it is then, or after `timeout_s` (at most 60)."""
    wait_s = max(0, min(MOST_WAIT_S, int(timeout_s)))
    send = Send(
        "POST",
        f"/v1/models/{quote(model, safe='')}/{verb}",
        {} if worker is None else {"worker": worker},
        headers={"Prefer": f"wait={wait_s}"} if wait_s else {},
        timeout_s=wait_s + HEARTBEAT_S,
    )
    return (yield from _model(ModelPlaces, send, retries))


def verify(data: bytes, timeout_s: float, retries: Retries) -> Call[Verification]:
    """Whether a picture is what its recipe gives."""
    headers = {"Content-Type": _media_type(data)}
    send = Send("POST", "/v1/verify", headers=headers, content=data, timeout_s=timeout_s)
    return (yield from _model(Verification, send, retries))


def given_picture(picture: GivenPicture) -> str:
    """A picture as a job's field has it: one of the service's own by its path, others as data."""
    if isinstance(picture, Picture):
        return picture.image.url.partition("?")[0]
    if isinstance(picture, str) and picture.startswith(("data:", "/v1/images/")):
        return picture
    data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    return f"data:{_media_type(data)};base64,{base64.b64encode(data).decode()}"


def _media_type(data: bytes) -> str:
    """By the first bytes; what is none of these is for the service to refuse."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return "image/webp" if data[8:12] == b"WEBP" else "application/octet-stream"


def download(image: Image, retries: Retries) -> Call[bytes]:
    """A picture's bytes, compared with its sha256."""
    data = (yield from _request(Send("GET", image.url), retries)).content
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise Unreachable(f"the bytes of {image.url!r} are not those of the job's sha256")
    return data


def pictures(job: Job, retries: Retries) -> Call[list[Picture]]:
    """All pictures of a job that has succeeded."""
    found = []
    for image in job.images:
        data = yield from download(image, retries)
        found.append(Picture(data, image, job))
    return found


def generate(
    prompt: str, fields: JobFields, timeout_s: float | None, retries: Retries
) -> Call[list[Picture]]:
    """Submit, wait, fetch."""
    deadline = _deadline(timeout_s)
    job = yield from submit(prompt, fields, None, retries)
    left = None if deadline is None else deadline - time.monotonic()
    job = yield from wait(job.id, left, retries)
    return (yield from pictures(job, retries))


def wait(job_id: str, timeout_s: float | None, retries: Retries) -> Call[Job]:
    """The job once it has succeeded; raises JobFailed, JobCanceled or JobTimeout."""
    following = follow(job_id, 0, timeout_s, retries)
    answer: Answer = None
    while True:
        try:
            step = following.send(answer)
        except StopIteration as ended:
            job: Job = ended.value
            break
        answer = None if isinstance(step, Event) else (yield step)
    if job.status is JobStatus.CANCELED:
        raise JobCanceled(job)
    if job.status is not JobStatus.SUCCEEDED:
        raise JobFailed(job)
    return job


def follow(
    job_id: str, previews: int, timeout_s: float | None, retries: Retries
) -> Generator[Step | Event, Answer, Job]:
    """Events until the job ends, from its stream; by asking again and again where there is none."""
    deadline = _deadline(timeout_s)
    stream = _Stream(job_id, previews)
    before: Job | None = None
    pause_s = FIRST_POLL_S
    while True:
        # Close to the deadline a stream may stay silent past it.
        if stream.useful and (deadline is None or deadline - time.monotonic() > HEARTBEAT_S):
            ended = yield from stream.events(deadline)
            if ended is not None:
                return ended
        job = yield from get(job_id, retries)
        if job.status.terminal:
            yield Ended(job)
            return job
        yield from changes(before, job)
        before = job
        left_s = math.inf if deadline is None else deadline - time.monotonic()
        if left_s <= 0:
            raise JobTimeout(job_id)
        yield Pause(min(pause_s, left_s))
        pause_s = min(pause_s * 1.3, LAST_POLL_S)


class _Stream:
    """A job's event stream, opened anew where it broke off."""

    def __init__(self, job_id: str, previews: int) -> None:
        self._path = f"{_path(job_id)}/events"
        self._params = {"previews": previews} if previews else {}
        self._last_id = ""
        self._fruitless = 0

    @property
    def useful(self) -> bool:
        """Whether it is worth opening (again)."""
        return self._fruitless < FRUITLESS_STREAMS

    def events(self, deadline: float | None) -> Generator[Step | Event, Answer, Job | None]:
        """Events until the job ends, or None where the stream does before it."""
        headers = {"Accept": "text/event-stream"}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        head = yield Listen(self._path, self._params, headers)
        if not isinstance(head, httpx.Response) or not _is_stream(head):
            # An answer that is no stream stays none; a lost connection may come back.
            self._fruitless += FRUITLESS_STREAMS if isinstance(head, httpx.Response) else 1
            return None
        self._fruitless += 1
        while isinstance(sent := (yield NextSent()), ServerSentEvent):
            event = read_event(sent)
            if event is not None:
                self._fruitless, self._last_id = 0, sent.id
                yield event
            if isinstance(event, Ended):
                return event.job
            if deadline is not None and deadline - time.monotonic() < HEARTBEAT_S:
                return None
        return None


def _is_stream(head: httpx.Response) -> bool:
    kind = head.headers.get("Content-Type", "")
    return head.is_success and kind.startswith("text/event-stream")


def _path(job_id: str) -> str:
    """A job's path; whatever stands for an id stays one part of it."""
    return "/v1/jobs/" + quote(job_id, safe="", errors="surrogateescape")


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _model(kind: type[M], send: Send, retries: Retries) -> Call[M]:
    response = yield from _request(send, retries)
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as wrong:
        raise Unreachable(f"{response.url} answered with something that is not Avocat's") from wrong


def _request(send: Send, retries: Retries) -> Call[httpx.Response]:
    tried = 0
    while True:
        answer = yield send
        tried += 1
        if isinstance(answer, httpx.Response) and answer.is_success:
            return answer
        if not isinstance(answer, (httpx.Response, httpx.RequestError)):
            raise TypeError(f"a request was answered by {answer!r}")
        pause_s = retries.pause_s(tried, answer)
        if pause_s is not None:
            yield Pause(pause_s)
        elif isinstance(answer, httpx.Response):
            raise problem_error(answer, retry_after_s(answer))
        else:
            raise Unreachable(str(answer) or type(answer).__name__) from answer
