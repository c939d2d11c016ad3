"""What reaches the runner from its other threads, and from signals."""

from dataclasses import dataclass
from queue import SimpleQueue

from app.jobs.models import ModelCard
from app.jobs.record import StoredImage
from models.model import Model
from worker.engine import Fault, Finished, Snapshot

__all__ = [
    "Built",
    "Cancel",
    "EngineFailed",
    "Fault",
    "Finished",
    "Letter",
    "Mail",
    "Shrunk",
    "Snapshot",
    "StopRequested",
    "StoreFailed",
    "Stored",
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
class StopRequested:
    """The worker is to end; asked again, at once."""


@dataclass(frozen=True)
class Shrunk:
    """Memory ran out: the engine has less room, and its batches may be smaller from now on."""

    slots: int
    micro_batch: int
    at_once: int  # rows that are computed together


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
    | StopRequested
    | Snapshot
    | Finished
    | Fault
    | Shrunk
    | Built
    | Stored
    | StoreFailed
    | EngineFailed
)
# A SimpleQueue may be put to from a signal handler while the same thread waits on it.
Mail = SimpleQueue[Letter]
