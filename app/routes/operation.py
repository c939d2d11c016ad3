"""For operators: which worker has which models, and moving them."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from redis.asyncio import Redis

from app import errors
from app.deps import OperatorDep, ServicesDep
from app.documentation import header, json_body, problems, request_header
from app.field_problems import field_problem, not_valid
from app.jobs.fleet import Fleet
from app.jobs.fleet_reader import read_fleet_async
from app.json_body import read_json
from app.model_moves import load_model, unload_model
from app.request_headers import MAX_WAIT_S, preferred_wait_s, require_json
from app.schemas.models import ModelMove, ModelPlaces, WorkerList, WorkerObject

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["Operation"])

Move = Callable[[Redis, str, str | None, float], Awaitable[tuple[Fleet, bool]]]
_PREFER = request_header("Prefer", f"`wait=N`: wait up to N ≤ {MAX_WAIT_S} s until it is done")
_EXTRA = json_body(ModelMove) | {"parameters": [_PREFER]}
_APPLIED = {"Preference-Applied": header("`wait=N` where the server waited")}
_ERRORS = (
    *(errors.MalformedJson, errors.Unauthorized, errors.Forbidden, errors.ModelNotFound),
    *(errors.BodyTooLarge, errors.UnsupportedMediaType, errors.InvalidRequest),
)
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "It is so", "model": ModelPlaces, "headers": _APPLIED},
    202: {"description": "It will be", "model": ModelPlaces, "headers": _APPLIED},
}


@router.get(
    "/workers",
    summary="List workers",
    responses=problems(errors.Unauthorized, errors.Forbidden),
)
async def list_workers(services: ServicesDep, caller: OperatorDep) -> WorkerList:
    """The live workers, their memory, and which models they have or could load."""
    fleet = await read_fleet_async(services.redis)
    return WorkerList(data=[WorkerObject.of(one) for one in fleet.standings])


@router.post(
    "/models/{name}/load",
    summary="Load a model",
    response_model=ModelPlaces,
    openapi_extra=_EXTRA,
    responses={**_ANSWERS, **problems(*_ERRORS, errors.ModelNotLoaded)},
)
async def load(name: str, request: Request, services: ServicesDep, caller: OperatorDep) -> Response:
    """Have a worker load it now, others leaving for it where memory is short."""
    return await _moved(name, request, services.redis, load_model)


@router.post(
    "/models/{name}/unload",
    summary="Unload a model",
    response_model=ModelPlaces,
    openapi_extra=_EXTRA,
    responses={**_ANSWERS, **problems(*_ERRORS)},
)
async def unload(
    name: str, request: Request, services: ServicesDep, caller: OperatorDep
) -> Response:
    """Free its memory, once what is being drawn with it is done. Its next job loads it again."""
    return await _moved(name, request, services.redis, unload_model)


async def _moved(name: str, request: Request, redis: Redis, move: Move) -> Response:
    require_json(request.headers)  # which no page of another origin can send unasked
    asked = _body(await request.body())
    wait_s = preferred_wait_s(request.headers.getlist("prefer"))
    fleet, done = await move(redis, name, asked.worker, wait_s or 0)
    headers = {} if wait_s is None else {"Preference-Applied": f"wait={wait_s}"}
    places = ModelPlaces.of(name, fleet).model_dump_json()
    return Response(places, 200 if done else 202, headers, "application/json")


def _body(data: bytes) -> ModelMove:
    value = read_json(data).value
    try:
        return ModelMove.model_validate(value)
    except ValidationError as fault:
        found = [field_problem(entry) for entry in fault.errors()]
        raise errors.InvalidRequest(not_valid(found), errors=found) from None
