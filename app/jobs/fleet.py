"""Which worker has which models: what workers write of themselves, and the API reads."""

from collections.abc import Iterable
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

__all__ = ["Fleet", "ModelState", "Placement", "Standing"]


class ModelState(StrEnum):
    """How a worker stands with a model."""

    LOADED = "loaded"
    LOADING = "loading"
    LEAVING = "leaving"  # no further job of it is taken, and then it is unloaded
    AVAILABLE = "available"  # it can be loaded
    FAILED = "failed"  # it could not be, and `detail` says why


class Placement(BaseModel):
    """One model at one worker. `source`: the folder of its weights; `since`: when it was loaded
    or failed, in unix seconds.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    state: ModelState
    weights_bytes: int = 0
    source: str = ""
    detail: str = ""
    since: float = 0.0


class Standing(BaseModel):
    """One worker and its models, as it writes them into its hash."""

    model_config = ConfigDict(frozen=True)

    worker: str
    device: str
    free_bytes: int  # of the device, beside the models that are loaded
    budget_bytes: int | None = None  # of all weights loaded at a time; None: what is free
    models: tuple[Placement, ...] = ()

    def placement(self, model: str) -> Placement | None:
        """None for a model that this worker does not know."""
        return next((one for one in self.models if one.model == model), None)

    def state_of(self, model: str) -> ModelState | None:
        """The same, its state alone."""
        found = self.placement(model)
        return None if found is None else found.state

    @property
    def room_bytes(self) -> int:
        """For further weights."""
        if self.budget_bytes is None:
            return self.free_bytes
        held = (ModelState.LOADED, ModelState.LEAVING, ModelState.LOADING)
        used = sum(one.weights_bytes for one in self.models if one.state in held)
        return min(self.free_bytes, self.budget_bytes - used)


class Fleet:
    """The live workers."""

    def __init__(self, standings: Iterable[Standing]) -> None:
        self.standings = sorted(standings, key=lambda one: one.worker)

    def has(self, model: str, *states: ModelState, but: str = "") -> bool:
        """Whether a worker, other than `but`, has the model in one of these states."""
        return any(one.state_of(model) in states for one in self.standings if one.worker != but)

    def placements(self, model: str) -> dict[str, Placement]:
        """Where the model is known, by worker."""
        found = {one.worker: one.placement(model) for one in self.standings}
        return {worker: placement for worker, placement in found.items() if placement is not None}

    def serves(self, model: str, but: str = "") -> bool:
        """Whether a worker can draw with the model now, or after loading it."""
        states = set(ModelState) - {ModelState.FAILED}
        return self.has(model, *states, but=but)

    @property
    def served(self) -> set[str]:
        """Names of all models that some worker can draw with."""
        return {
            placement.model
            for one in self.standings
            for placement in one.models
            if placement.state is not ModelState.FAILED
        }
