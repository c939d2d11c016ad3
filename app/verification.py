"""Making a picture again from the recipe in its file, and comparing the two.

The recipe is a stranger's claim: it goes through the same door as any request, and what the
service writes into its own picture decides whether the claim holds.
"""

from collections.abc import Mapping
from io import BytesIO

from anyio import to_thread
from fastapi import Request

from app import errors
from app.admission import admit
from app.auth import Caller
from app.deps import Services
from app.image_bytes import image_bytes
from app.jobs.models import ModelCard
from app.jobs.recipe import Recipe
from app.jobs.record import JobRecord
from app.json_body import JsonBody
from app.middleware import add_header
from app.pictures import Picture, differing_pixels, read_picture
from app.resolve import Draft, resolve
from app.schemas.verification import Verdict, Verification
from app.synchronous import wait_for_pictures

__all__ = ["most_pixels", "verify"]

# What a recipe says of a job; the rest says what drew it.
_ASKED = {
    *("prompt", "negative_prompt", "seed", "steps", "sampler", "guidance_scale"),
    *("guidance_interval", "size", "background", "output_format"),
}


def most_pixels(cards: Mapping[str, ModelCard]) -> int:
    """Of the largest picture that any model draws: what has more needs no decoding."""
    sizes = [size.split("x") for card in cards.values() for size in card.sizes]
    return max((int(width) * int(height) for width, height in sizes), default=0)


async def verify(
    request: Request, services: Services, caller: Caller, picture: Picture
) -> Verification:
    """The verdict on a picture; draws it again where that can tell anything.

    Raises:
        ApiError: there is no room for the job, or it has no picture in time.
        ClientGone: the client has hung up.
    """
    recipe = picture.recipe
    if recipe is None:
        return _verdict("unverifiable", "The picture carries no recipe that can be read", None)
    cards = await services.cards.all()
    card = next((one for one in cards.values() if one.fingerprint == recipe.fingerprint), None)
    if card is None:
        return _verdict("unverifiable", _why_not_here(cards, recipe), recipe)
    draft = _draft(recipe, card)
    try:
        resolve(draft, card)
    except errors.InvalidRequest as refused:
        reason = f"The recipe is none that can be drawn here. {refused.detail}"
        return _verdict("unverifiable", reason, recipe)
    if (visible := _visible_difference(picture, recipe)) is not None:
        return _verdict("different", visible, recipe)
    made = (await admit(services, caller, draft)).record
    add_header(request, "X-Job-Id", made.id)
    ended = await wait_for_pictures(request, services, made)
    return _compare(picture, await _drawn(services, ended), recipe, made.id)


def _draft(recipe: Recipe, card: ModelCard) -> Draft:
    fields = recipe.model_dump(mode="json", include=_ASKED)
    return Draft(JsonBody(fields | {"model": card.name, "cache": False}, []))


def _verdict(
    verdict: Verdict, reason: str, recipe: Recipe | None, job_id: str | None = None
) -> Verification:
    fingerprint = recipe.fingerprint if recipe is not None else None
    return Verification(
        verdict=verdict, reason=reason, recipe=recipe, fingerprint=fingerprint, job_id=job_id
    )


def _why_not_here(cards: Mapping[str, ModelCard], recipe: Recipe) -> str:
    if any(card.bundle_sha256 == recipe.bundle_sha256 for card in cards.values()):
        return (
            "The picture's model is served here, but on another kind of device, runtime or batch, "
            "where its last bits may differ"
        )
    return "The picture's model is not served here"


def _visible_difference(picture: Picture, recipe: Recipe) -> str | None:
    """What tells without drawing that the file is not what the recipe gives."""
    size = f"{picture.width}x{picture.height}"
    if size != recipe.size:
        return f"The picture is {size}, and its recipe gives {recipe.size}"
    if picture.frames != 1:
        return f"The file has {picture.frames} pictures, and its recipe gives one"
    if picture.pixels is None:
        return f"The picture is {size}, more than any model here draws"
    return None


async def _drawn(services: Services, ended: JobRecord) -> Picture:
    [image] = ended.images
    data = await image_bytes(services, image)
    most = image.width * image.height
    return await to_thread.run_sync(read_picture, BytesIO(data), image.content_type, most)


def _compare(sent: Picture, drawn: Picture, recipe: Recipe, job_id: str) -> Verification:
    claimed, true = (
        one.model_dump(exclude={"version"}) if one is not None else {}
        for one in (recipe, drawn.recipe)
    )
    wrong = [name for name, value in claimed.items() if true.get(name) != value]
    if wrong:  # also where several kinds of workers serve the model, and another one took the job
        reason = f"What drew it again writes another recipe: {', '.join(wrong)}"
        return _verdict("unverifiable", reason, recipe, job_id)
    if sent.pixels is None or drawn.pixels is None:
        raise ValueError("pixels are compared that were not decoded")
    count = differing_pixels(sent.pixels, drawn.pixels)
    of = sent.width * sent.height
    if count:
        return _verdict("different", f"{count} of {of} pixels differ", recipe, job_id)
    return _verdict("identical", f"All {of} pixels are those its recipe gives", recipe, job_id)
