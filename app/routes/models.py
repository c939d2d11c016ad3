"""Which models there are, in OpenAI's list form."""

from fastapi import APIRouter

from app.deps import CallerDep, ServicesDep
from app.documentation import problems
from app.errors import Forbidden, ModelNotFound, Unauthorized
from app.schemas.models import ModelList, ModelObject

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["Models"])


@router.get("/models", summary="List models", responses=problems(Unauthorized, Forbidden))
async def list_models(services: ServicesDep, caller: CallerDep) -> ModelList:
    """The models that workers serve, with their sizes, samplers and defaults."""
    cards = await services.cards.all()
    default = services.cards.default
    return ModelList(
        data=[ModelObject.of(card, is_default=card == default) for card in cards.values()]
    )


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
    return ModelObject.of(cards[name], is_default=cards[name] == services.cards.default)
