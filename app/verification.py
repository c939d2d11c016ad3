"""Making a picture again from the recipe in its file, and comparing the two.

The recipe is a stranger's claim: it goes through the same door as any request, and what the
service writes into its own picture decides whether the claim holds.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import IO

from anyio import to_thread
from fastapi import Request

from app import errors, keys
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
from app.storage.base import StorageError
from app.synchronous import wait_for_pictures

__all__ = ["PictureFile", "verify"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
# What a recipe says of a job; the rest says what drew it.
_ASKED = {
    *("prompt", "negative_prompt", "seed", "steps", "sampler", "guidance_scale"),
    *("guidance_interval", "size", "background", "output_format", "compose"),
}
_ASKED_OF_A_PICTURE = {"strength"}


@dataclass(frozen=True)
class PictureFile:
    """A picture as it was sent, decoded only when looked at: many may wait for their jobs."""

    file: IO[bytes]
    media_type: str

    async def look(self, services: Services, most_pixels: int) -> Picture:
        """Decode it.

        Raises:
            UnreadablePicture: it cannot be.
        """
        async with services.decoding:
            return await to_thread.run_sync(read_picture, self.file, self.media_type, most_pixels)


@dataclass(frozen=True)
class _Claim:
    recipe: Recipe
    draft: Draft


async def verify(
    request: Request, services: Services, caller: Caller, sent: PictureFile
) -> Verification:
    """The verdict on a picture; draws it again where that can tell anything.

    Raises:
        UnreadablePicture: the file is no whole picture.
        ApiError: there is no room for the job, or it has no picture in time.
        ClientGone: the client has hung up.
    """
    claim = await _claim(services, caller, sent)
    if isinstance(claim, Verification):
        return claim
    made = (await admit(services, caller, claim.draft)).record
    add_header(request, "X-Job-Id", made.id)
    ended = await wait_for_pictures(request, services, made)
    return await _compare(services, sent, ended, claim.recipe)


async def _claim(services: Services, caller: Caller, sent: PictureFile) -> _Claim | Verification:
    """What is to be drawn, or the verdict where nothing has to be."""
    cards = await services.cards.all()
    picture = await sent.look(services, _most_pixels(cards))
    recipe = picture.recipe
    if recipe is None:
        return _verdict("unverifiable", "The picture carries no recipe that can be read", None)
    card = next((one for one in cards.values() if one.fingerprint == recipe.fingerprint), None)
    if card is None:
        return _verdict("unverifiable", _why_not_here(cards, recipe), recipe)
    if not card.exact:
        reason = "Its worker ran with AVOCAT_EXACT=0: last bits depend on what else was drawn"
        return _verdict("unverifiable", reason, recipe)
    files = await _inputs(services, caller, recipe)
    if isinstance(files, str):
        return _verdict("unverifiable", files, recipe)
    draft = _draft(recipe, card, files)
    try:
        resolve(draft, card)
    except errors.InvalidRequest as refused:
        reason = f"The recipe is none that can be drawn here. {refused.detail}"
        return _verdict("unverifiable", reason, recipe)
    if (visible := _visible_difference(picture, recipe)) is not None:
        return _verdict("different", visible, recipe)
    return _Claim(recipe, draft)


def _most_pixels(cards: Mapping[str, ModelCard]) -> int:
    """Of the largest picture that any model draws: what has more needs no decoding."""
    sizes = [size.split("x") for card in cards.values() for size in card.sizes]
    return max((int(width) * int(height) for width, height in sizes), default=0)


async def _inputs(services: Services, caller: Caller, recipe: Recipe) -> dict[str, bytes] | str:
    """The files that the recipe starts from, or the sentence that says which one is gone."""
    files: dict[str, bytes] = {}
    for role, sha256 in (("init_image", recipe.init_image), ("mask", recipe.mask)):
        if sha256 is None:
            continue
        data = await _input(services, caller, sha256)
        if data is None:
            what = "the picture that it starts from" if role == "init_image" else "its mask"
            return f"Of {what} (sha256 {sha256[:80]}) no job of yours has the file any more"
        files[role] = data
    return files


async def _input(services: Services, caller: Caller, sha256: str) -> bytes | None:
    if _SHA256.fullmatch(sha256) is None:
        return None
    key = keys.stored_input(caller.owner, sha256)
    name: bytes | None = await services.redis.get(key)  # type: ignore[assignment]
    if name is None:
        return None
    try:
        data = await to_thread.run_sync(services.storage.read, name.decode())
    except (StorageError, OSError):
        return None
    return data if hashlib.sha256(data).hexdigest() == sha256 else None


def _draft(recipe: Recipe, card: ModelCard, files: Mapping[str, bytes]) -> Draft:
    asked = _ASKED | _ASKED_OF_A_PICTURE if files else _ASKED
    fields = recipe.model_dump(mode="json", include=asked)
    fields["lora"] = [{"name": one.name, "weight": one.weight} for one in recipe.lora]
    variation = bool(files) and not recipe.prompt
    if variation:
        del fields["prompt"]
    body = JsonBody(fields | {"model": card.name, "cache": False}, [])
    return Draft(body, files, variation=variation)


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
    return None


async def _compare(
    services: Services, sent: PictureFile, ended: JobRecord, recipe: Recipe
) -> Verification:
    [image] = ended.images
    file = BytesIO(await image_bytes(services, image))
    pixels = image.width * image.height
    drawn = await PictureFile(file, image.content_type).look(services, pixels)
    if wrong := _untrue(recipe, drawn.recipe):
        # Also where several kinds of workers serve the model, and another one took the job.
        reason = f"What drew it again writes another recipe: {', '.join(wrong)}"
        return _verdict("unverifiable", reason, recipe, ended.id)
    count = differing_pixels(await sent.look(services, pixels), drawn)
    if count:
        return _verdict("different", f"{count} of {pixels} pixels differ", recipe, ended.id)
    return _verdict("identical", f"All {pixels} pixels are as its recipe has it", recipe, ended.id)


def _untrue(claimed: Recipe, drawn: Recipe | None) -> list[str]:
    """Names of what the picture's own recipe has otherwise; the version does not matter."""
    true = drawn.model_dump() if drawn is not None else {}
    claims = claimed.model_dump(exclude={"version"})
    return [name for name, value in claims.items() if true.get(name) != value]
