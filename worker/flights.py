"""Flights: the jobs a worker holds, from claim to their end in Redis."""

from dataclasses import dataclass, field
from enum import Enum, auto

from torch import Tensor

from app.jobs.models import ModelCard
from app.jobs.record import JobRecord, Problem, StoredImage
from worker.ledger import Held
from worker.prompts import Order
from worker.resident import Resident

__all__ = ["Ending", "Flight", "Times"]

# Layers of previews that wait for the others, by layer, of a picture and a step.
Glimpses = dict[tuple[int, int], dict[int, Tensor]]


class Ending(Enum):
    """How a flight ends, once that is written to Redis."""

    SUCCEED = auto()  # `images` are in storage
    FAIL = auto()  # `problem` says why
    CANCEL = auto()
    HAND_BACK = auto()  # to the queue, as if never taken
    TRY_AGAIN = auto()  # to the queue at the cost of a retry; without one left, `problem`


@dataclass
class Times:
    """When what happened to a flight, in unix seconds; 0 before it did."""

    claimed: float = 0.0
    encoded: float = 0.0  # its rows are laid out, their contexts known
    drawn: float = 0.0  # its last row is done
    stored: float = 0.0

    def phases(self) -> dict[str, tuple[float, float]]:
        """Begin and end of each phase that is over."""
        spans = {
            "encode": (self.claimed, self.encoded),
            "denoise": (self.encoded, self.drawn),
            "store": (self.drawn, self.stored),
        }
        return {name: span for name, span in spans.items() if all(span)}


@dataclass(eq=False)
class Flight:
    """One job in this worker. `token` names its rows in the engine."""

    held: Held
    record: JobRecord
    resident: Resident  # the model that draws it
    order: Order | None  # None: it cannot be drawn, and ends at once
    timeout_s: float
    deadline: float  # monotonic seconds
    rows: dict[int, Tensor] = field(default_factory=dict)  # finished ones by index
    card: ModelCard | None = None  # what its rows are drawn with, from the first step to the last
    cards: dict[int, ModelCard] = field(default_factory=dict)  # what those were drawn with
    images: tuple[StoredImage, ...] = ()
    storing: bool = False
    most_steps: int = 0  # told so far
    previews: int = 0  # of each picture, as the engine was told
    glimpses: Glimpses = field(default_factory=dict)
    ending: Ending | None = None
    problem: Problem | None = None
    times: Times = field(default_factory=Times)

    @property
    def token(self) -> str:
        """The execution's id."""
        return str(self.held.execution.id)

    @property
    def rows_in_engine(self) -> int:
        """Rows that hold or wait for a slot."""
        if self.order is None or self.ending is not None:
            return 0
        return len(self.order.rows) - len(self.rows)

    @property
    def alone(self) -> bool:
        """Whether it is on its last chance, and so keeps the engine to itself."""
        return self.held.job.retries_left == 0

    def steps_done(self, in_engine: int) -> int:
        """Steps for the job's progress, its rows averaged, never fewer than told before.

        `in_engine`: the sum over its rows there.
        """
        if self.order is None:
            return 0
        done = in_engine + len(self.rows) * self.record.request.taken
        asked = len(self.order.rows) * self.record.request.taken
        told = min(self.record.total_steps, done * self.record.total_steps // asked)
        self.most_steps = max(self.most_steps, told)  # rows may have begun anew
        return self.most_steps
