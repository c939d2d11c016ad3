"""What a client sends and gets; the wire's own schemas, under the names that clients use."""

from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from app.jobs.record import OutputFormat, Priority, Sampler
from app.schemas.jobs import ImageObject as Image
from app.schemas.jobs import JobObject as Job
from app.schemas.models import ModelObject as Model
from app.schemas.models import ModelPlaces
from app.schemas.models import WorkerObject as Worker
from app.schemas.problems import ProblemDetails as Problem
from app.schemas.verification import Verification

__all__ = [
    "GivenPicture",
    "Image",
    "Job",
    "JobFields",
    "Lora",
    "Model",
    "ModelPlaces",
    "Picture",
    "Problem",
    "Verification",
    "Worker",
]


class Lora(TypedDict):
    """A LoRA of the model by its name, and how strongly it acts, 1 if absent."""

    name: str
    weight: NotRequired[float]


class JobFields(TypedDict, total=False):
    """What a request may say besides its prompt; docs/api.md explains each field."""

    negative_prompt: str | None
    model: str | None
    n: int
    seed: int | None
    steps: int | None
    sampler: Sampler | None
    guidance_scale: float | None
    guidance_interval: tuple[float, float] | None
    size: str | None
    output_format: OutputFormat
    background: str | None
    priority: Priority
    webhook_url: str | None
    best_of: int | None
    cache: bool
    lora: list[Lora]
    metadata: dict[str, str]
    init_image: "GivenPicture | None"
    mask: "GivenPicture | None"
    strength: float | None
    compose: bool | None


@dataclass(frozen=True)
class Picture:
    """One picture, fetched.

    Args:
        data: the file's bytes.
        image: what the service says of it: seed, size, sha256, …
        job: the job that drew it.
    """

    data: bytes
    image: Image
    job: Job

    @property
    def seed(self) -> int:
        """With the job's other parameters, this seed draws the same picture again."""
        return self.image.seed

    def save(self, file: str | Path) -> Path:
        """Write the bytes as they are; they carry their recipe (PNG and WebP)."""
        path = Path(file)
        path.write_bytes(self.data)
        return path


# To start from: one that was drawn, a file's bytes or its name (a text is a name, but a data URL
# and a path under /v1/images/ stay what they are).
GivenPicture = Picture | bytes | str | Path
