"""The models of one worker: which are loaded, which are loaded next, and which leave for them.

A model is loaded when jobs of it wait and no worker has it. Where memory allows that beside the
others, it is at once. Else those leave that have nothing to do, and have had nothing for as long as
they took to load; and once the jobs have waited for the worker's patience, also those that have, as
soon as what they are drawing is done. So models do not chase each other out, and none waits for
ever. A model that another worker has is loaded only where that costs nobody anything.
"""

import gc
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog
from redis import Redis

from app import keys
from app.jobs.fleet import Fleet, ModelState, Placement, Standing
from app.jobs.fleet_reader import read_fleet
from worker.announcements import Announcements
from worker.catalogue import Catalogue, Entry
from worker.eviction import Tenant, to_leave
from worker.mail import Mail, ModelLoaded, ModelNotLoaded
from worker.memory import free_bytes, give_back, in_words
from worker.resident import Prepared, Resident

__all__ = ["Roster", "Workshop"]

_log = structlog.get_logger()
_AGAIN_S = 60.0  # before a model that could not be loaded is tried again
_HELP_S = 2.0  # before an idle worker loads what a busy one has
_ROOM = 1.2  # of the weights: what else a model takes while it is loaded and draws


class Workshop(Protocol):
    """Makes loaded models of what lies on disk."""

    @property
    def catalogue(self) -> Catalogue: ...

    def load(self, entry: Entry) -> Prepared:
        """Takes seconds to minutes; raises what says why it cannot be."""


@dataclass(frozen=True)
class _Failure:
    reason: str
    at: float  # monotonic
    since: float  # unix
    stamp: int


class Roster:
    """Holds the residents and decides who comes and goes; only its worker's main thread calls."""

    def __init__(
        self,
        redis: Redis,
        worker: str,
        first: Resident,
        mail: Mail,
        settle: Callable[[Prepared], Resident],
        workshop: Workshop | None = None,
        *,
        budget_bytes: int | None = None,
        patience_s: float = 30.0,
        lease_s: int = 15,
    ) -> None:
        """`settle` gives a prepared model its engine; without a `workshop` no other is loaded."""
        self.residents = {first.name: first}
        self._redis, self._worker, self._mail = redis, worker, mail
        self._settle, self._workshop = settle, workshop
        self._device, self._budget_bytes = first.device, budget_bytes
        self._patience_s, self._lease_s = patience_s, lease_s
        self._own = first.name
        self._waiting: dict[str, float] = {}  # models of waiting jobs, and since when they wait
        self._unserved: dict[str, float] = {}  # those that no worker has, and since when
        self._served: dict[str, float] = {}  # those that another worker has, and since when
        self._asked: set[str] = set()  # loads that an operator asked for
        self._failed: dict[str, _Failure] = {}
        self._target = ""  # what room is made for, or what is being loaded
        self._loading = self._unwanted = False  # unwanted: an operator has asked it to leave again
        self.announcements = Announcements(redis, worker)
        self.look()

    @property
    def _entries(self) -> dict[str, Entry]:
        return {} if self._workshop is None else self._workshop.catalogue.entries

    @property
    def could_load_more(self) -> bool:
        """Whether there are models that are not loaded."""
        return bool(self._entries.keys() - self.residents.keys())

    def open(self, name: str) -> Resident | None:
        """The model, if jobs of it are taken now."""
        resident = self.residents.get(name)
        return resident if resident is not None and not resident.leaving else None

    def knows(self, name: str) -> bool:
        """Whether jobs of the model will be taken, now or once it is loaded."""
        return name in self.residents or (name in self._entries and self.why_not(name) == "")

    def why_not(self, name: str) -> str:
        """Why a model of the catalogue cannot be loaded, as far as that is known; "" if it can."""
        entry, failure = self._entries.get(name), self._failed.get(name)
        if name in self.residents or entry is None:
            return ""
        if entry.fault:
            return entry.fault
        if failure is None or failure.stamp != entry.stamp:
            return ""
        return failure.reason if time.monotonic() - failure.at < _AGAIN_S else ""

    def saw(self, models: Collection[str], now: float, *, whole: bool) -> None:
        """Jobs of these models wait; of no other, where the look was a `whole` one."""
        for model in models:
            self._waiting.setdefault(model, now)
        if whole:
            self._waiting = {name: at for name, at in self._waiting.items() if name in models}
            for known in (self._unserved, self._served):
                for name in known.keys() - set(models):
                    del known[name]

    def ask_load(self, model: str) -> None:
        """An operator wants it here, whatever has to leave."""
        entry, resident = self._entries.get(model), self.residents.get(model)
        if resident is not None and resident.leaving in ("", "asked"):
            resident.leaving = ""  # what was asked last is done
            return
        if entry is not None and entry.fault and model != self._target:
            self._fail(model, entry.fault)
        elif entry is not None:
            self._unwanted = self._unwanted and model != self._target
            self._failed.pop(model, None)
            self._asked.add(model)

    def ask_unload(self, model: str) -> None:
        """An operator wants it gone; what it is drawing is finished."""
        self._asked.discard(model)
        self._unwanted = self._unwanted or (self._loading and model == self._target)
        resident = self.residents.get(model)
        if resident is not None and self._workshop and resident.leaving in ("", "room"):
            resident.leaving = "asked"

    @property
    def expects_work(self) -> bool:
        """Whether jobs wait for a model that will be loaded here."""
        return bool(self._target) or any(map(self.knows, self._waiting.keys() - self.residents))

    def close(self) -> None:
        """The worker stops: others need not count on what it has loaded."""
        for resident in self.residents.values():
            resident.leaving = "stopping"

    def look(self) -> bool:
        """See what came into the folder, left it or was changed; whether anything was."""
        if self._workshop is None or not self._workshop.catalogue.look():
            return False
        for name, resident in self.residents.items():
            entry = self._entries.get(name)
            now, gone = entry and entry.description, entry is None and name != self._own
            if gone or (now and now.sha256 != resident.model.sha256):
                resident.leaving = "changed"
                _log.info("model was changed or removed", model=name)
        return True

    def advance(self, now: float, flying: Callable[[Resident], bool]) -> bool:
        """Take the next step: unload, make room, begin to load; whether any was unloaded."""
        before = set(self.residents)
        self._advance(now, flying)
        return not before <= self.residents.keys()

    def _advance(self, now: float, flying: Callable[[Resident], bool]) -> None:
        for resident in [one for one in self.residents.values() if one.leaving]:
            if not flying(resident):
                self._unload(resident)
        if self._target:
            self._claim(self._target)
        if self._loading:
            return
        wanted = self._target in self._asked | self._waiting.keys()
        if self._target and not (wanted and self._target in self._entries):
            self._give_up()
        if not self._target:
            self._target = self._next(now, flying)
        if self._target:
            self._make_room(self._entries[self._target], flying)

    def _next(self, now: float, flying: Callable[[Resident], bool]) -> str:
        """The model to load now; "" if it is none."""
        here = set(self.residents)
        line = sorted(self._asked - here) + sorted(self._waiting, key=self._waiting.__getitem__)
        line = [n for n in line if n not in here and n in self._entries and not self.why_not(n)]
        fleet = read_fleet(self._redis) if line else Fleet(())
        for name in line:
            if self._may_load(self._entries[name], fleet, now, flying) and self._claim(name):
                return name
        return ""

    def _may_load(
        self, entry: Entry, fleet: Fleet, now: float, flying: Callable[[Resident], bool]
    ) -> bool:
        name, leaving = entry.name, self._leaving_for(entry, flying)
        if leaving is None:
            self._fail(name, self._too_large(entry))
            return False
        if name in self._asked:
            return True
        if fleet.has(name, ModelState.LOADED, but=self._worker):
            self._unserved.pop(name, None)
            waited_s = now - self._served.setdefault(name, now)
            idle = not any(map(flying, self.residents.values()))
            return idle and not leaving and waited_s >= _HELP_S
        self._served.pop(name, None)
        if fleet.has(name, ModelState.LOADING, but=self._worker):
            return False
        late = now - self._unserved.setdefault(name, now) >= self._patience_s
        return late or not any(self._is_wanted(one, now, flying) for one in leaving)

    def _is_wanted(
        self, resident: Resident, now: float, flying: Callable[[Resident], bool]
    ) -> bool:
        recently = now - resident.used_at < resident.took_s
        return recently or resident.name in self._waiting or flying(resident)

    def _leaving_for(
        self, entry: Entry, flying: Callable[[Resident], bool]
    ) -> list[Resident] | None:
        now = time.monotonic()
        tenants = [
            Tenant(one.name, one.weights_bytes, one.used_at, self._is_wanted(one, now, flying))
            for one in self.residents.values()
        ]
        leaving = to_leave(entry.weights_bytes, self._free_bytes(), tenants)
        return None if leaving is None else [self.residents[one.name] for one in leaving]

    def _free_bytes(self) -> int:
        """For further weights."""
        free = int(free_bytes(self._device) / _ROOM)
        if self._budget_bytes is None:
            return free
        used = sum(one.weights_bytes for one in self.residents.values())
        return min(free, self._budget_bytes - used)

    def _too_large(self, entry: Entry) -> str:
        loaded = sum(one.weights_bytes for one in self.residents.values())
        there = max(0, self._free_bytes() + loaded)
        budget = "" if self._budget_bytes is None else " (AVOCAT_MODEL_MEMORY_MB)"
        return (
            f"not enough memory: {entry.name!r} has {in_words(entry.weights_bytes)} of weights, "
            f"and {self._device} has room for {in_words(there)} of models{budget}"
        )

    def _make_room(self, entry: Entry, flying: Callable[[Resident], bool]) -> None:
        leaving = self._leaving_for(entry, flying)
        if leaving is None:  # memory went elsewhere meanwhile
            self._fail(entry.name, self._too_large(entry))
            return
        for resident in list(self.residents.values()):
            if resident not in leaving and resident.leaving == "room":
                resident.leaving = ""
        for resident in leaving:
            resident.leaving = resident.leaving or "room"
            if not flying(resident):
                self._unload(resident)
        if not any(one.name in self.residents for one in leaving):
            self._loading = True
            threading.Thread(target=self._load, args=(entry,), name="loading", daemon=True).start()

    def _load(self, entry: Entry) -> None:
        """In a thread of its own."""
        if self._workshop is None:
            raise ValueError("there is no workshop to load models in")
        _log.info("loading model", model=entry.name)
        try:
            resident = self._settle(self._workshop.load(entry))
            resident.loras.start()
        except BaseException as fault:  # the main thread decides; a lost one would hang the jobs
            self._mail.put(ModelNotLoaded(entry.name, _sentence(fault)))
        else:
            self._mail.put(ModelLoaded(resident))

    def loaded(self, resident: Resident) -> None:
        """It is here: take its jobs."""
        self.residents[resident.name] = resident
        self._unserved.pop(resident.name, None)
        resident.used_at = time.monotonic()
        if resident.name not in self._entries:  # it was removed meanwhile
            resident.leaving = "changed"
        elif self._unwanted and resident.name not in self._waiting:
            resident.leaving = "asked"
        resident.start()
        self._done(resident.name)

    def _fail(self, model: str, reason: str) -> None:
        self.not_loaded(ModelNotLoaded(model, reason))

    def not_loaded(self, letter: ModelNotLoaded) -> None:
        """It could not be: its jobs fail, unless another worker can."""
        _log.warning("model not loaded", model=letter.model, reason=letter.reason)
        entry = self._entries.get(letter.model)
        stamp = 0 if entry is None else entry.stamp
        self._failed[letter.model] = _Failure(letter.reason, time.monotonic(), time.time(), stamp)
        self._done(letter.model)

    def _done(self, model: str) -> None:
        self._asked.discard(model)
        if model == self._target:
            self._give_up()

    def _give_up(self) -> None:
        """No room is made any more."""
        target, self._target = self._target, ""
        self._loading = self._unwanted = False
        for resident in self.residents.values():
            if resident.leaving == "room":
                resident.leaving = ""
        with suppress(Exception):  # it expires by itself
            self._redis.delete(keys.model_claim(target))

    def _claim(self, model: str) -> bool:
        """One worker at a time loads a model; it is its own as long as it renews this."""
        key = keys.model_claim(model)
        if self._redis.set(key, self._worker, nx=True, ex=self._lease_s):
            return True
        if self._redis.get(key) != self._worker.encode():
            return False
        self._redis.expire(key, self._lease_s)
        return True

    def _unload(self, resident: Resident) -> None:
        _log.info("model unloaded", model=resident.name, reason=resident.leaving)
        resident.speed.forget()
        resident.close()
        del self.residents[resident.name]
        self.announcements.unloaded(resident)
        for known in (self._waiting, self._unserved):  # what was seen before it left
            known.pop(resident.name, None)
        gc.collect()  # a model is a knot of modules that name each other
        give_back(self._device)

    @property
    def has_news(self) -> bool:
        """Whether the API knows an older state of a loaded model."""
        return self.announcements.is_old(self.residents)

    def announce(self) -> None:
        """Tell the API of all models."""
        self.announcements.tell(self.residents, self._entries)

    def standing(self) -> Standing:
        """What others may know of this worker."""
        loading = {self._target} if self._loading else set()
        names = sorted(self._entries.keys() | self.residents.keys() | loading)
        return Standing(
            worker=self._worker,
            device=str(self._device),
            free_bytes=free_bytes(self._device),
            budget_bytes=self._budget_bytes,
            models=tuple(map(self._placement, names)),
        )

    def _placement(self, name: str) -> Placement:
        resident, entry, detail = self.residents.get(name), self._entries.get(name), ""
        if resident is not None:
            state = ModelState.LEAVING if resident.leaving else ModelState.LOADED
        elif name == self._target:
            state = ModelState.LOADING
        elif detail := self.why_not(name):
            state = ModelState.FAILED
        else:
            state = ModelState.AVAILABLE
        description = None if entry is None else entry.description
        size = resident.weights_bytes if resident is not None else 0
        return Placement(
            model=name,
            state=state,
            weights_bytes=description.weights_bytes if description is not None else size,
            source=str(description.source) if description is not None else "",
            detail=detail,
            since=self._since(name, state),
        )

    def _since(self, name: str, state: ModelState) -> float:
        if name in self.residents:
            return self.residents[name].loaded_at
        failed = state is ModelState.FAILED and name in self._failed
        return self._failed[name].since if failed else 0.0


def _sentence(fault: BaseException) -> str:
    if isinstance(fault, ModuleNotFoundError):
        return f"it needs the package {fault.name}: pip install 'avocat[sd]'"
    return (str(fault) or repr(fault)).splitlines()[0]
