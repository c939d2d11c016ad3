"""Probes: is the process up, can it serve."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from redis.exceptions import RedisError

from app.deps import ServicesDep
from app.documentation import problems
from app.errors import NotReady
from app.jobs.reader import live_workers

__all__ = ["router"]

router = APIRouter(tags=["Health"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Jobs can be taken and run."""

    status: Literal["ready"] = "ready"
    workers: int


@router.get("/healthz", summary="Is the process up")
async def healthz() -> Health:
    """Always the same while the process lives."""
    return Health()


@router.get("/readyz", summary="Can jobs be served", responses=problems(NotReady))
async def readyz(request: Request, services: ServicesDep) -> Readiness:
    """Whether Redis is reachable, a worker lives, and the process is to go on; says what is not."""
    if request.app.state.stopping:
        raise _not_ready("process", "This process is about to end")
    try:
        workers = await live_workers(services.redis)
    except RedisError:
        raise _not_ready("redis", "Redis cannot be reached") from None
    if workers == 0:
        raise _not_ready("worker", "Redis is there, but no worker lives")
    return Readiness(workers=workers)


def _not_ready(missing: str, detail: str) -> NotReady:
    return NotReady(detail, headers={"Retry-After": "2"}, extra={"missing": [missing]})
