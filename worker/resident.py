"""A model that is loaded in a worker, with its engine and what its jobs need."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from redis import Redis

from app.jobs.models import ModelCard
from app.storage.base import ImageStorage
from models.model import Model
from worker.background import Background
from worker.card import Smaller
from worker.engine import Engine
from worker.inputs import Inputs
from worker.loop import EngineLoop
from worker.loras import Loras
from worker.mail import Built, Mail, Shrunk
from worker.memory import has_room
from worker.progress import Speed
from worker.prompts import Prompts
from worker.reports import StepReport
from worker.results import Results
from worker.streams import Streams
from worker.turns import Turns

__all__ = ["Place", "Prepared", "Resident"]

_GIVE_UP_S = 10.0  # on an engine's thread that does not end


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model in memory, measured and executed as the settings say.

    `smaller` draws when batches have to be smaller; `weights_bytes`: what it takes of the memory;
    `took_s`: how long it was in coming. `loras`: the model's, none if None.
    `background` builds a faster runtime while the model draws already.
    """

    model: Model
    card: ModelCard
    smaller: Smaller
    slots: int
    micro_batch: int
    exact: bool
    streams: Streams
    loras: Loras | None = None
    background: Background | None = None
    weights_bytes: int = 0
    took_s: float = 0.0


@dataclass(frozen=True, eq=False)
class Place:
    """What all models of a worker share."""

    redis: Redis
    worker_key: str
    storage: ImageStorage
    mail: Mail
    turns: Turns
    stepped: Callable[[str, StepReport, float], None]  # the model, in its engine's thread


class Resident:
    """One loaded model. `leaving` says why no further job of it is taken; "" if they are."""

    def __init__(self, prepared: Prepared, place: Place) -> None:
        """Warms the engine up; nothing runs before `loop.start`.

        Raises:
            ValueError: memory ran out at that, with the sizes.
        """
        self.name = prepared.card.name
        self.model = prepared.model
        self.loras = prepared.loras or Loras(prepared.model, None)
        self._card = prepared.card
        self.weights_bytes = prepared.weights_bytes
        self.took_s = prepared.took_s
        self.loaded_at = round(time.time(), 3)  # unix
        self.used_at = time.monotonic()
        self.leaving = ""
        self._smaller, self._streams = prepared.smaller, prepared.streams
        self._background, self._mail = prepared.background, place.mail
        self._shrunk = False
        self._exact, self._micro_batch = prepared.exact, prepared.micro_batch
        engine = Engine(
            *(prepared.model, prepared.slots, prepared.micro_batch),
            exact=prepared.exact,
            smaller=prepared.smaller.model,
            streams=prepared.streams,
        )
        self.slots, self.at_once, self.device = engine.slots, engine.at_once, engine.device
        self.loop = EngineLoop(
            *(engine, place.mail, prepared.streams.threads),
            stepped=lambda report, seconds: place.stepped(self.name, report, seconds),
            model=self.name,
            turns=place.turns,
        )
        self.prompts = Prompts(prepared.model, self.loras)
        self.inputs = Inputs(prepared.model, self.prompts, place.storage)
        self.results = Results(prepared.model, self.prompts, place.storage)
        with place.turns, has_room(self.name, self.device):
            call_s = engine.warm_up()
        self.speed = Speed(
            *(place.redis, place.worker_key, self.name), *(engine.slots, engine.at_once, call_s)
        )

    @property
    def card(self) -> ModelCard:
        """What the API is told of it, with the LoRAs that are there now."""
        return self._card.model_copy(update={"loras": self.loras.cards})

    def start(self) -> None:
        """Begin to draw, and to build beside it what may draw faster."""
        self.loop.start()
        if self._background is not None:
            self._background.start(self._mail)

    def switch(self, letter: Built) -> bool:
        """Draw with a faster runtime what is taken from now on; all else ends as it began.

        False where batches are smaller now than what it was built for.
        """
        if self._shrunk:
            return False
        self._card = letter.card
        self.results.switch(letter.model, letter.card)
        self.loop.switch(letter.model)
        return True

    @property
    def building(self) -> bool:
        """Whether a faster runtime is still being built."""
        return self._background is not None and self._background.running

    def wait_for_runtime(self, timeout_s: float) -> None:
        """Let what builds one end, if it does in time."""
        if self._background is not None:
            self._background.wait(timeout_s)

    def share(self, rows: int) -> Fraction:
        """What so many of its rows take of the device."""
        return Fraction(rows, self.loop.slots)

    def shrink(self, letter: Shrunk) -> bool:
        """Memory ran out; whether what it draws from now on has another card."""
        self.slots, self.at_once = letter.slots, letter.at_once
        self.speed.reshape(letter.slots, letter.at_once)
        if letter.micro_batch == self._micro_batch:
            return False
        self._micro_batch, self._shrunk = letter.micro_batch, True
        self._card = self._smaller.card(letter.micro_batch, exact=self._exact)
        return True

    def close(self) -> None:
        """End its threads."""
        self.loop.stop(_GIVE_UP_S)
        self.loras.close()
        self._streams.close()
