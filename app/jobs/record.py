"""The job record: what is known about a job, and its form in Redis."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import to_json

from app.jobs.origin import trace_id
from app.jobs.scene import Scene

__all__ = [
    "FORMAT",
    "JobRecord",
    "JobRequest",
    "JobStatus",
    "LoraUse",
    "Problem",
    "RecordTooNew",
    "StoredImage",
    "StoredInput",
    "from_hash",
    "to_hash",
]

# The format of records, as the hash field `format` has it; those without it are of format 1. A
# field that readers may ignore needs no new format; one that they would misunderstand does. What a
# release writes the one before has to read: so a new format is first read, and written a release
# later. Format 2 is that of jobs that start from a picture, format 3 that of jobs whose pictures
# have layers: the release before would draw them otherwise, and leaves them to workers of this one.
FORMAT = 3
_PLAIN, _WITH_INPUTS = 1, 2


class RecordTooNew(ValueError):
    """A later release has written the record; this one must leave it as it is."""


Sampler = Literal["ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_karras", "euler", "euler_ancestral", "lcm"]
OutputFormat = Literal["png", "webp", "jpeg"]
Priority = Literal["low", "normal", "high"]


class JobStatus(StrEnum):
    """Where a job is. The last three are final: the record never changes again."""

    QUEUED = "queued"  # waits in an RQ queue
    RUNNING = "running"  # has rows in a worker's engine
    SUCCEEDED = "succeeded"  # all its images are in storage
    FAILED = "failed"  # `error` says why
    CANCELED = "canceled"  # by its owner

    @property
    def terminal(self) -> bool:
        """Whether this is an end."""
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class LoraUse(_Frozen):
    """A LoRA that a job's pictures are drawn with, and how strongly."""

    name: str
    weight: float = 1.0
    sha256: str


class JobRequest(_Frozen):
    """A request with every field resolved to the value used."""

    prompt: str
    negative_prompt: str | None = None
    model: str
    n: int = 1
    seed: int  # image i uses seed + i
    steps: int
    sampler: Sampler
    guidance_scale: float
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # shares of the trajectory
    size: str  # "WxH" in pixels
    output_format: OutputFormat = "png"
    background: str  # "transparent", "white" or "#rrggbb"
    priority: Priority = "normal"
    best_of: int = 1
    cache: bool = True
    webhook_url: str | None = None  # told of the end
    lora: tuple[LoraUse, ...] = ()
    init_image: str | None = None  # sha256 of the file of the picture that it starts from
    mask: str | None = None  # and of the mask, white where to draw anew
    strength: float | None = None  # share of the steps that are taken from there
    compose: bool = False  # whether the things that the prompt names are painted one by one
    scene: Scene | None = None  # those things; None where it names one

    @property
    def pictures(self) -> int:
        """Pictures drawn, of which `n` are kept."""
        return max(self.n, self.best_of)

    @property
    def rows(self) -> int:
        """Rows of the engine: one a picture, or one for each of its layers."""
        return self.pictures * len(self.texts)

    @property
    def texts(self) -> tuple[str, ...]:
        """What each picture is painted of: the prompts of its layers, or the one of the whole."""
        return (self.prompt,) if self.scene is None else self.scene.layers

    @property
    def is_variation(self) -> bool:
        """Whether the picture it starts from stands for the prompt."""
        return self.init_image is not None and not self.prompt

    @property
    def taken(self) -> int:
        """Steps that are taken: from a picture, the last ones, as many as diffusers takes."""
        if self.strength is None:
            return self.steps
        return min(int(self.steps * self.strength), self.steps)

    @property
    def forwards(self) -> int:
        """Forwards of the network that one row takes: two for a step in which guidance acts."""
        first, last = self.guidance_interval
        if self.guidance_scale == 1:
            return self.taken
        if first <= 0 and last >= 1:
            return 2 * self.taken
        left, end = range(self.steps - self.taken, self.steps), max(1, self.steps - 1)
        begin = bisect_left(left, first, key=lambda step: step / end)
        return self.taken + bisect_right(left, last, begin, key=lambda step: step / end) - begin

    @property
    def most_bytes(self) -> int:
        """More than its images can take in storage: raw pixels, and the recipe in three forms."""
        texts = len(self.prompt) + len(self.negative_prompt or "")
        if self.scene is not None:
            texts += sum(map(len, self.texts))
        return self.n * (5 * self.width * self.height + 4096 + 64 * texts)

    @property
    def width(self) -> int:
        """Pixels across."""
        return int(self.size.split("x")[0])

    @property
    def height(self) -> int:
        """Pixels down."""
        return int(self.size.split("x")[1])


class StoredImage(_Frozen):
    """An image of a finished job, in storage under `name`."""

    index: int
    name: str
    seed: int
    width: int
    height: int
    content_type: str
    bytes: int
    sha256: str
    clip_score: float | None = None


class StoredInput(_Frozen):
    """A file that a job starts from, in storage under `name`."""

    role: Literal["init_image", "mask"]
    name: str
    sha256: str
    bytes: int


class Problem(_Frozen):
    """Why a job failed, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str


class JobRecord(_Frozen):
    """One job. Times are unix seconds."""

    id: str
    owner: str
    status: JobStatus = JobStatus.QUEUED
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float  # until the job ends: the earliest time it can be
    retention_s: int  # seconds the record outlives the job's end
    request: JobRequest
    step: int = 0
    total_steps: int
    attempts: int = 0  # times a worker took it
    execution: str | None = None  # the worker's token for the current or last attempt
    worker: str | None = None
    cancel_requested: bool = False
    previews: int = 0  # of each picture, which somebody wants to see while it is drawn
    cached: bool = False  # never drawn: its images are those of an earlier job
    inputs: tuple[StoredInput, ...] = ()
    images: tuple[StoredImage, ...] = ()
    warnings: tuple[str, ...] = ()
    error: Problem | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    request_id: str | None = None  # of the request that asked for it
    traceparent: str | None = None  # W3C's: the span that the job is part of

    @property
    def log_fields(self) -> dict[str, str]:
        """What every line about the job is logged with."""
        found = {"job_id": self.id}
        if self.request_id is not None:
            found["request_id"] = self.request_id
        if self.traceparent is not None:
            found["trace_id"] = trace_id(self.traceparent)
        return found


# Fields that are JSON inside the hash; all others are plain text.
_JSON_FIELDS = frozenset({"request", "inputs", "images", "warnings", "error", "metadata"})
_STORED_IMAGES = TypeAdapter(tuple[StoredImage, ...])


def to_hash(record: JobRecord) -> dict[str, str]:
    """The record as fields of a Redis hash; what is None or empty is left out."""
    written = FORMAT if record.request.scene else _WITH_INPUTS if record.inputs else _PLAIN
    fields = {"format": str(written)}
    for name, value in vars(record).items():
        if value is None:
            continue
        if name in _JSON_FIELDS:
            if value:
                fields[name] = to_json(value).decode()
        elif isinstance(value, bool):
            fields[name] = str(int(value))
        else:
            fields[name] = f"{value:.6f}" if isinstance(value, float) else str(value)
    return fields


def from_hash(fields: Mapping[bytes, bytes]) -> JobRecord | None:
    """Read a record; None for an empty hash. Unknown fields are ignored.

    Raises:
        RecordTooNew: it has a later format.
        ValueError: it is no record.
    """
    if not fields:
        return None
    written = int(fields.get(b"format", b"1"))
    if written > FORMAT:
        raise RecordTooNew(
            f"the job's record has format {written}, of a later release; this one reads up to "
            f"{FORMAT}"
        )
    text = {name.decode(): value.decode() for name, value in fields.items()}
    values = {
        name: json.loads(value) if name in _JSON_FIELDS else value for name, value in text.items()
    }
    return JobRecord.model_validate(values)


def images_json(images: Sequence[StoredImage]) -> str:
    """Images as the hash field `images` has them."""
    return _STORED_IMAGES.dump_json(tuple(images)).decode()
