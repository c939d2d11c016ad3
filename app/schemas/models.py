"""Models on the wire: OpenAI's list form, with what a client needs to choose."""

from typing import Literal

from pydantic import BaseModel, Field

from app.jobs.models import ModelCard

__all__ = ["ModelList", "ModelObject"]


class ModelObject(BaseModel):
    """One model. The first four fields are OpenAI's."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["avocat"] = "avocat"
    description: str
    license: str
    bundle_sha256: str
    fingerprint: str
    runtime: str = Field(description="What executes the network, with its version")
    dtype: str = Field("float32", description="The number format that it computes in")
    forward_ms: float | None = Field(
        None, description="Milliseconds of one round of its calls, as measured when it was chosen"
    )
    difference: float | None = Field(
        None,
        description="Largest difference to plain torch in float32, of an output of order 1",
    )
    native_size: str
    sizes: list[str]
    channels: int
    samplers: list[str]
    default_sampler: str
    default_steps: int
    default_guidance_scale: float
    default_guidance_interval: tuple[float, float]
    default_background: str
    max_steps: int
    context_length: int
    is_default: bool
    exact: bool

    @classmethod
    def of(cls, card: ModelCard, *, is_default: bool) -> "ModelObject":
        """The wire form of a card."""
        values = card.model_dump(exclude={"name", "native_size", "created_at", "is_default"})
        return cls(
            id=card.name,
            created=int(card.created_at),
            native_size=card.native,
            is_default=is_default,
            **values,
        )


class ModelList(BaseModel):
    """All models, by name."""

    object: Literal["list"] = "list"
    data: list[ModelObject]
