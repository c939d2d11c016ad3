"""Which models there are, in OpenAI's list form."""

from collections.abc import Sequence

from fastapi import APIRouter

from app.deps import CallerDep, Services, ServicesDep
from app.documentation import problems
from app.errors import Forbidden, ModelNotFound, Unauthorized
from app.jobs.fleet import ModelState
from app.jobs.fleet_reader import read_fleet_async
from app.jobs.models import ModelCard
from app.schemas.models import ModelList, ModelObject

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["Models"])


@router.get("/models", summary="List models", responses=problems(Unauthorized, Forbidden))
async def list_models(services: ServicesDep, caller: CallerDep) -> ModelList:
    """The models that can be drawn with, with their sizes, samplers and defaults.

    One that is not `loaded` is, once a job of it comes; that job waits the longer for it.
    """
    cards = await services.cards.all()
    return ModelList(data=await _objects(services, list(cards.values())))


@router.get(
    "/models/{name}",
    summary="Look at a model",
    responses=problems(Unauthorized, Forbidden, ModelNotFound),
)
async def get_model(name: str, services: ServicesDep, caller: CallerDep) -> ModelObject:
    """One model."""
    cards = await services.cards.all()
    if name not in cards:
        known = ", ".join(repr(known) for known in cards) or "none yet"
        raise ModelNotFound(f"There is no model {name[:200]!r}; known: {known}")
    [found] = await _objects(services, [cards[name]])
    return found


async def _objects(services: Services, cards: Sequence[ModelCard]) -> list[ModelObject]:
    default, fleet = services.cards.default, await read_fleet_async(services.redis)
    return [
        ModelObject.of(
            card, is_default=card == default, loaded=fleet.has(card.name, ModelState.LOADED)
        )
        for card in cards
    ]
