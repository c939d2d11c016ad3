"""Tells the API which models there are, loaded or not, and which are gone."""

from collections.abc import Mapping
from contextlib import suppress

from redis import Redis

from app.jobs.fleet import ModelState
from app.jobs.fleet_reader import read_fleet
from app.jobs.models import ModelCard
from worker.card import announce, announce_available, forget
from worker.catalogue import Entry
from worker.resident import Resident

__all__ = ["Announcements"]


class Announcements:
    """What one worker has told of models, so that it tells each once."""

    def __init__(self, redis: Redis, worker: str) -> None:
        self._redis = redis
        self._worker = worker
        self._cards: dict[str, ModelCard] = {}  # of those that are
        self._told: dict[str, str] = {}  # model -> sha256, of those that are not loaded here

    def tell(self, residents: Mapping[str, Resident], entries: Mapping[str, Entry]) -> None:
        """Write the cards of all models, and remove those of models that no worker has any more."""
        for resident in residents.values():
            card = self._cards[resident.name] = resident.card
            announce(self._redis, card)
            self._told.pop(resident.name, None)
        fleet = read_fleet(self._redis)
        for name, entry in entries.items():
            description = entry.description
            if name in residents or description is None:
                continue
            if self._told.get(name) != description.sha256:
                states = (ModelState.LOADED, ModelState.LOADING)
                loaded = fleet.has(name, *states, but=self._worker)
                with suppress(OSError):  # it is being removed
                    announce_available(self._redis, description, loaded=loaded)
                    self._told[name] = description.sha256
        for name in self._told.keys() - entries.keys() - residents.keys():
            del self._told[name]
            if not fleet.serves(name, but=self._worker):
                forget(self._redis, name)

    def is_old(self, residents: Mapping[str, Resident]) -> bool:
        """Whether a loaded model has another card than was told, as when a LoRA was added."""
        return any(self._cards.get(name) != one.card for name, one in residents.items())

    def unloaded(self, resident: Resident) -> None:
        """Its card says more than a new one would: it has a fingerprint."""
        self._told[resident.name] = resident.model.sha256

    def was_forgotten(self) -> None:
        """Redis may have lost what was told, and may not: all is told again."""
        self._told = dict.fromkeys(self._told, "")
