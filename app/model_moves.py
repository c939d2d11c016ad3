"""Loading and unloading models at workers, for operators: asked by RQ's command channel."""

import asyncio
import json
import time
from collections.abc import Callable, Collection, Mapping

from redis.asyncio import Redis

from app import keys
from app.errors import InvalidRequest, ModelNotFound, ModelNotLoaded, Unavailable
from app.jobs.fleet import Fleet, ModelState, Placement
from app.jobs.fleet_reader import read_fleet_async
from app.schemas.problems import FieldProblem

__all__ = ["load_model", "unload_model"]

_LOOK_S = 0.1
_HELD = (ModelState.LOADED, ModelState.LOADING, ModelState.LEAVING)


async def load_model(
    redis: Redis, model: str, worker: str | None, wait_s: float
) -> tuple[Fleet, bool]:
    """Have a model loaded at one worker: the given one, or that with most room unless one has it.

    Returns:
        The workers after `wait_s` seconds at most, and whether it is loaded by then.

    Raises:
        ModelNotFound: no live worker has its files.
        InvalidRequest: the given worker has not, or is none.
        ModelNotLoaded: it could not be loaded, and why.
        Unavailable: the worker does not listen now.
    """
    fleet = await read_fleet_async(redis)
    places = _places(fleet, model, worker)
    if any(place.state is ModelState.LOADED for place in places.values()):
        return fleet, True
    under_way = [name for name, one in places.items() if one.state is ModelState.LOADING]
    room = {one.worker: one.room_bytes for one in fleet.standings}
    sound = [name for name, one in places.items() if one.state is not ModelState.FAILED]
    [chosen] = under_way[:1] or [max(sound or places, key=room.__getitem__)]
    if not under_way:
        await _send(redis, "load-model", model, [chosen])

    def settled(now: Fleet) -> bool:
        place = now.placements(model).get(chosen)
        if place is None or place.state is ModelState.LOADED:
            return True
        return place.state is ModelState.FAILED and place != places[chosen]

    fleet = await _wait(redis, settled, wait_s)
    place = fleet.placements(model).get(chosen)
    if place is not None and place.state is ModelState.FAILED and place != places[chosen]:
        raise ModelNotLoaded(f"{model!r} could not be loaded at {chosen!r}: {place.detail}")
    return fleet, place is not None and place.state is ModelState.LOADED


async def unload_model(
    redis: Redis, model: str, worker: str | None, wait_s: float
) -> tuple[Fleet, bool]:
    """Have a model unloaded at the given worker, or at all; each finishes what it draws with it.

    Returns:
        The workers after `wait_s` seconds at most, and whether it is unloaded by then.

    Raises:
        ModelNotFound: no live worker has it.
        InvalidRequest: the given worker has not, or is none.
        Unavailable: a worker does not listen now.
    """
    fleet = await read_fleet_async(redis)
    holding = [n for n, one in _places(fleet, model, worker).items() if one.state in _HELD]
    await _send(redis, "unload-model", model, holding)

    def settled(now: Fleet) -> bool:
        places = now.placements(model)
        return all(name not in places or places[name].state not in _HELD for name in holding)

    fleet = await _wait(redis, settled, wait_s)
    return fleet, settled(fleet)


def _places(fleet: Fleet, model: str, worker: str | None) -> Mapping[str, Placement]:
    places = fleet.placements(model)
    if not places:
        known = sorted({one.model for standing in fleet.standings for one in standing.models})
        named = ", ".join(map(repr, known)) or "none"
        raise ModelNotFound(f"No live worker has a model {model[:200]!r}; they have: {named}")
    if worker is None:
        return places
    if worker not in places:
        message = f"{worker!r} should be one of {', '.join(places)}, which have the model"
        problem = FieldProblem(pointer="/worker", message=message)
        raise InvalidRequest("Not valid: /worker", errors=[problem])
    return {worker: places[worker]}


async def _send(redis: Redis, command: str, model: str, workers: Collection[str]) -> None:
    for worker in workers:
        text = json.dumps({"command": command, "model": model})
        if not await redis.publish(keys.rq_commands(worker), text):
            raise Unavailable(
                f"The worker {worker!r} does not listen now; try again soon",
                headers={"Retry-After": "2"},
            )


async def _wait(redis: Redis, settled: Callable[[Fleet], bool], wait_s: float) -> Fleet:
    until = time.monotonic() + wait_s
    while True:
        fleet = await read_fleet_async(redis)
        if settled(fleet) or time.monotonic() >= until:
            return fleet
        await asyncio.sleep(_LOOK_S)
