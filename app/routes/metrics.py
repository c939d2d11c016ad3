"""`GET /metrics`, for Prometheus."""

import hmac

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from redis.exceptions import RedisError

from app import errors
from app.deps import Services, ServicesDep
from app.documentation import problems
from app.jobs.queues import Queues, read_queues

__all__ = ["PATH", "router"]

PATH = "/metrics"
router = APIRouter(tags=["Health"])


@router.get(
    PATH,
    summary="Figures for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Prometheus' text format", "content": {"text/plain": {}}},
        **problems(errors.Unauthorized),
    },
)
async def metrics(request: Request, services: ServicesDep) -> Response:
    """Counts and durations of this API process, and what waits and runs in the whole service."""
    _check_token(request, services)
    accept = request.headers.get("accept", "")
    queues = await _queues(services)
    text, content_type = await to_thread.run_sync(services.metrics.exposition, accept, queues)
    return Response(text, headers={"Content-Type": content_type})


def _check_token(request: Request, services: Services) -> None:
    """Raise Unauthorized where a token is set and was not sent."""
    token = services.settings.metrics_token
    if token is None:
        return
    wanted = f"Bearer {token.get_secret_value()}".encode()
    given = request.headers.get("authorization", "").encode("latin-1")  # as it came
    if not hmac.compare_digest(given, wanted):
        raise errors.Unauthorized("AVOCAT_METRICS_TOKEN is needed: `Authorization: Bearer TOKEN`")


async def _queues(services: Services) -> Queues | None:
    try:
        return await read_queues(services.redis)
    except RedisError:
        return None
