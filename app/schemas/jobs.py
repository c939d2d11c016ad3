"""Jobs on the wire: what a client sends, and what it gets."""

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from app.jobs.record import JobStatus, LoraUse, OutputFormat, Priority, Sampler
from app.jobs.scene import Scene
from app.schemas.text import NEGATIVE_PATTERN, PROMPT_PATTERN, check_negative, check_prompt

__all__ = ["MAX_IMAGES", "MAX_SEED", "JobCreate", "JobList", "JobListQuery", "JobObject", "Time"]

MAX_SEED = 2**53 - 1  # the largest integer that JSON carries safely
MAX_IMAGES = 8
MAX_LORAS = 4
MAX_URL_CHARACTERS = 2048
MAX_METADATA_BYTES = 4096
PUBLIC_URL_PATTERN = r"^https://([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.){1,4}[a-z]{2,24}(/[!-~]*)?$"
INPUT_PATTERN = (
    r"^(data:image/(png|webp|jpeg);base64,[A-Za-z0-9+/]+={0,2}"
    r"|(https?://[^/]+)?/v1/images/[!-~]+)$"
)
CURSOR_PATTERN = r"^[0-9]{1,16}-[0-7][0-9A-HJKMNP-TV-Z]{25}$"


def _integral(value: object) -> object:
    """JSON does not tell 7 from 7.0, so neither do we; "7" and true are no numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _pair(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _small(metadata: dict[str, str]) -> dict[str, str]:
    size = sum(len(text.encode()) for pair in metadata.items() for text in pair)
    if size > MAX_METADATA_BYTES:
        raise PydanticCustomError(
            "too_large",
            "Keys and values have {size} bytes as UTF-8; the most is {most}",
            {"size": size, "most": MAX_METADATA_BYTES},
        )
    return metadata


Integral = BeforeValidator(_integral)
Text = Annotated[
    str,
    AfterValidator(check_prompt),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "pattern": PROMPT_PATTERN,
        }
    ),
]
NegativeText = Annotated[
    str,
    AfterValidator(check_negative),
    WithJsonSchema({"type": "string", "pattern": NEGATIVE_PATTERN}),
]
Share = Annotated[float, Field(ge=0, le=1)]
GivenPicture = Annotated[
    str,
    WithJsonSchema({"type": "string", "minLength": 1, "pattern": INPUT_PATTERN}),
]


class LoraAsk(BaseModel):
    """A LoRA by its name, and how strongly it acts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        description="One of the model's `loras`"
    )
    weight: Annotated[float, Field(ge=-4, le=4)] = Field(1.0, description="0: as if it were none")


class JobCreate(BaseModel):
    """A request for images. Fields that are not listed here are refused."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"prompt": "a red apple", "n": 2, "seed": 7}]},
    )

    prompt: Text = Field(
        description="What to draw, at most 1000 characters. Stripped; control characters are "
        "refused"
    )
    negative_prompt: NegativeText | None = Field(
        None, description="What to steer away from, at most 1000 characters; may be empty"
    )
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="One of `GET /v1/models`; absent: the default one"
    )
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES), Integral] = Field(
        1, description="Images; image i uses seed + i"
    )
    seed: Annotated[int, Field(ge=0, le=MAX_SEED), Integral] | None = Field(
        None, description="Absent: drawn at submission; always returned. seed + n - 1 < 2^53"
    )
    steps: Annotated[int, Field(ge=1, le=1000), Integral] | None = Field(
        None, description="Denoising steps, at most the model's training length"
    )
    sampler: Sampler | None = Field(None, description="Absent: the model's default")
    guidance_scale: Annotated[float, Field(ge=0, le=20)] | None = Field(
        None, description="1: no guidance; absent: the model's default"
    )
    size: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$")] | None = Field(
        None,
        description='"WxH", one of the model\'s sizes or `free_sizes`; absent: its native size',
    )
    output_format: OutputFormat = "png"
    background: Annotated[str, Field(pattern=r"^(transparent|white|#[0-9a-fA-F]{6})$")] | None = (
        Field(None, description="transparent, white or #rrggbb; absent: the model's default")
    )
    priority: Priority = Field("normal", description="high needs a key that allows it")
    webhook_url: (
        Annotated[
            str,
            Field(max_length=MAX_URL_CHARACTERS),
            # What any server calls; one whose operator lists targets calls those as well.
            WithJsonSchema(
                {"type": "string", "maxLength": MAX_URL_CHARACTERS, "pattern": PUBLIC_URL_PATTERN}
            ),
        ]
        | None
    ) = Field(None, description="https URL that is told of the job's end, see Webhooks")
    guidance_interval: Annotated[tuple[Share, Share], BeforeValidator(_pair)] | None = Field(
        None, description="[from, to]: guidance acts only in this part of the trajectory"
    )
    best_of: Annotated[int, Field(ge=1, le=MAX_IMAGES), Integral] | None = Field(
        None, description="n to 8 candidates are drawn, and the best n by CLIP score kept"
    )
    lora: Annotated[list[LoraAsk], Field(max_length=MAX_LORAS)] = Field(
        default_factory=list,
        description=f"Up to {MAX_LORAS} LoRAs of the model, each with its weight",
    )
    cache: bool = Field(True, description="Whether an identical earlier result may be given")
    metadata: Annotated[dict[str, str], Field(max_length=16), AfterValidator(_small)] = Field(
        default_factory=dict,
        description=f"Up to 16 pairs, {MAX_METADATA_BYTES} bytes in all; returned as is",
    )
    init_image: GivenPicture | None = Field(
        None,
        description="Picture to start from: a data URL of a PNG, WebP or JPEG, or the `url` of an "
        "image of a job of yours",
    )
    mask: GivenPicture | None = Field(
        None,
        description="Of the size of `init_image`, without transparency: white is drawn anew, "
        "black is kept",
    )
    strength: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="With `init_image`: share of the steps that are taken from there; at 1 "
        "hardly anything is left of it. Absent: 0.8, with a mask 1",
    )
    compose: bool | None = Field(
        None,
        description="Whether the things that the prompt names are painted one by one and laid "
        "together; absent: by model",
    )


Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class ResolvedRequest(BaseModel):
    """The request, every field resolved to the value used."""

    prompt: str
    negative_prompt: str | None
    model: str
    n: int
    seed: int
    steps: int
    sampler: Sampler
    guidance_scale: float
    size: str
    output_format: OutputFormat
    background: str
    priority: Priority
    guidance_interval: tuple[float, float]
    best_of: int
    cache: bool
    webhook_url: str | None
    lora: list[LoraUse] = Field(default_factory=list)
    init_image: str | None = Field(
        None, description="sha256 of the file of the picture that it started from"
    )
    mask: str | None = Field(None, description="sha256 of the mask's file")
    strength: float | None = None
    compose: bool = False
    scene: Scene | None = Field(
        None,
        description="The things that each picture is laid together from, and how they stand to "
        "one another; null: painted whole",
    )


class Progress(BaseModel):
    """Denoising steps done."""

    step: int
    total_steps: int
    fraction: float

    @classmethod
    def of(cls, step: int, total_steps: int) -> Self:
        """So many steps of so many."""
        return cls(step=step, total_steps=total_steps, fraction=round(step / total_steps, 4))


class ImageObject(BaseModel):
    """One image of a finished job."""

    index: int
    url: str = Field(description="Path on this server; signed, so it works without a key")
    seed: int
    width: int
    height: int
    content_type: str
    bytes: int
    sha256: str
    clip_score: float | None


class JobError(BaseModel):
    """Why a job failed (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str


class JobObject(BaseModel):
    """A job. Once its status is terminal it never changes again."""

    id: str
    object: Literal["job"] = "job"
    status: JobStatus
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    expires_at: Time = Field(description="Until the job ends: the earliest time it can be")
    request: ResolvedRequest
    progress: Progress
    queue_position: int | None = Field(description="Jobs ahead; null when not queued")
    eta_seconds: float | None = Field(
        description="Estimate until it ends; null when no worker serves it"
    )
    images: list[ImageObject] = Field(description="Empty until succeeded, then complete")
    attempts: int
    cached: bool = Field(False, description="Whether its images are those of an earlier job")
    warnings: list[str]
    error: JobError | None
    metadata: dict[str, str]


class JobList(BaseModel):
    """Some of the caller's jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobObject]
    next_cursor: str | None = Field(description="Give it as `cursor` for the rest; null: no more")


class JobListQuery(BaseModel):
    """Which jobs to list."""

    model_config = ConfigDict(extra="forbid")

    status: JobStatus | None = Field(None, description="Only jobs of this status")
    limit: int = Field(20, ge=1, le=100, description="Most jobs in the answer")
    cursor: str | None = Field(
        None, pattern=CURSOR_PATTERN, description="`next_cursor` of the answer before, as given"
    )
