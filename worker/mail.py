"""What reaches the runner from its other threads, and from signals."""

from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from app.jobs.models import ModelCard
from app.jobs.record import StoredImage
from models.model import Model
from worker.prompts import Order
from worker.reports import Fault, Finished, Snapshot

if TYPE_CHECKING:  # it writes letters itself
    from worker.resident import Resident

__all__ = [
    "Built",
    "Cancel",
    "EngineFailed",
    "Fault",
    "Finished",
    "Letter",
    "LoadModel",
    "Mail",
    "ModelLoaded",
    "ModelNotLoaded",
    "Shrunk",
    "Snapshot",
    "StartFailed",
    "Started",
    "StopRequested",
    "StoreFailed",
    "Stored",
    "UnloadModel",
    "WorkArrived",
]


@dataclass(frozen=True)
class WorkArrived:
    """A job was put into a queue, or messages may have been missed."""


@dataclass(frozen=True)
class Cancel:
    """Somebody wants this job to stop."""

    job_id: str


@dataclass(frozen=True)
class LoadModel:
    """An operator wants the model loaded here."""

    model: str


@dataclass(frozen=True)
class UnloadModel:
    """An operator wants it unloaded."""

    model: str


@dataclass(frozen=True)
class ModelLoaded:
    """A model is in memory, its engine ready."""

    resident: "Resident"


@dataclass(frozen=True)
class ModelNotLoaded:
    """It could not be loaded."""

    model: str
    reason: str


@dataclass(frozen=True)
class StopRequested:
    """The worker is to end; asked again, at once."""


@dataclass(frozen=True)
class Shrunk:
    """Memory ran out: the engine has less room, and its batches may be smaller from now on."""

    slots: int
    micro_batch: int
    at_once: int  # rows that are computed together
    model: str = ""  # whose engine it is


@dataclass(frozen=True, eq=False)
class Started:
    """The rows of an execution are ready to start from its inputs."""

    execution: str
    order: Order


@dataclass(frozen=True)
class StartFailed:
    """They are not."""

    execution: str
    fault: BaseException


@dataclass(frozen=True, eq=False)
class Built:
    """A runtime that was worth waiting for is there: the model in it, and its card."""

    model: Model
    card: ModelCard


@dataclass(frozen=True)
class Stored:
    """All images of an execution are in storage."""

    execution: str
    images: tuple[StoredImage, ...]


@dataclass(frozen=True)
class StoreFailed:
    """They are not, and none is left."""

    execution: str
    fault: BaseException


@dataclass(frozen=True)
class EngineFailed:
    """The engine's thread has ended: no row will finish."""

    fault: BaseException


Letter = (
    WorkArrived
    | Cancel
    | LoadModel
    | UnloadModel
    | ModelLoaded
    | ModelNotLoaded
    | StopRequested
    | Snapshot
    | Finished
    | Fault
    | Shrunk
    | Started
    | StartFailed
    | Built
    | Stored
    | StoreFailed
    | EngineFailed
)
# A SimpleQueue may be put to from a signal handler while the same thread waits on it.
Mail = SimpleQueue[Letter]
