"""Models on the wire: OpenAI's list form, with what a client needs to choose."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.jobs.fleet import Fleet, ModelState, Standing
from app.jobs.models import FreeSizes, LoraCard, ModelCard

__all__ = [
    "ModelList",
    "ModelMove",
    "ModelObject",
    "ModelPlaces",
    "PlaceObject",
    "WorkerList",
    "WorkerObject",
]


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
    free_sizes: FreeSizes | None = Field(None, description="Further ones; null: none but `sizes`")
    channels: int
    samplers: list[str]
    default_sampler: str
    default_steps: int
    default_guidance_scale: float
    default_guidance_interval: tuple[float, float]
    default_background: str
    composes: bool = Field(
        False, description="Whether things that a prompt names are painted one by one"
    )
    styles: list[str] = Field(
        default_factory=list, description='That prompts may name: "a red apple, flat style"'
    )
    max_steps: int
    lcm_steps: int | None = Field(None, description="The most with `lcm`; null: it is not served")
    context_length: int
    is_default: bool
    exact: bool
    loras: list[LoraCard] = Field(
        default_factory=list, description="That jobs may name; those with a `fault` do not fit"
    )
    loaded: bool = True  # servers before this field load all at their start

    @classmethod
    def of(cls, card: ModelCard, *, is_default: bool, loaded: bool) -> "ModelObject":
        """The wire form of a card; `loaded`: some worker draws with it without loading it."""
        values = card.model_dump(exclude={"name", "native_size", "created_at", "is_default"})
        return cls(
            id=card.name,
            created=int(card.created_at),
            native_size=card.native,
            is_default=is_default,
            loaded=loaded,
            **values,
        )


class ModelList(BaseModel):
    """All models, by name."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class ModelMove(BaseModel):
    """The body of a call that loads or unloads a model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    worker: str | None = Field(
        None, max_length=100, description="One of `GET /v1/workers`; absent: as is best"
    )


class PlaceObject(BaseModel):
    """One model at one worker. `source`: where its weights lie; `detail`: why it failed."""

    model: str
    worker: str
    device: str
    state: ModelState
    weights_bytes: int
    source: str
    detail: str


class ModelPlaces(BaseModel):
    """Where one model is, and where it could be."""

    id: str
    object: Literal["model.places"] = "model.places"
    loaded: bool
    places: list[PlaceObject]

    @classmethod
    def of(cls, model: str, fleet: Fleet) -> "ModelPlaces":
        """Those of one model."""
        everywhere = [place for one in fleet.standings for place in _places(one)]
        places = [place for place in everywhere if place.model == model]
        return cls(id=model, loaded=fleet.has(model, ModelState.LOADED), places=places)


class WorkerObject(BaseModel):
    """One worker: its device, the memory left there, and its models.

    `budget_bytes` is the most of weights that it keeps loaded; null: what its device has room for.
    """

    id: str
    object: Literal["worker"] = "worker"
    device: str
    free_bytes: int
    budget_bytes: int | None
    models: list[PlaceObject]

    @classmethod
    def of(cls, standing: Standing) -> "WorkerObject":
        """The wire form of what a worker wrote."""
        return cls(
            id=standing.worker,
            device=standing.device,
            free_bytes=standing.free_bytes,
            budget_bytes=standing.budget_bytes,
            models=_places(standing),
        )


class WorkerList(BaseModel):
    """All live workers, by name."""

    object: Literal["list"] = "list"
    data: list[WorkerObject]


def _places(standing: Standing) -> list[PlaceObject]:
    return [
        PlaceObject(
            worker=standing.worker, device=standing.device, **one.model_dump(exclude={"since"})
        )
        for one in standing.models
    ]
