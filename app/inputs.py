"""From what a request gives to start from to files in storage, bound to the job."""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import structlog
from anyio import to_thread
from PIL import Image, ImageChops

from app import errors
from app.auth import Caller
from app.deps import Services, own_record
from app.image_bytes import image_bytes
from app.jobs.inputs import InputError, open_picture, suffix_of
from app.jobs.record import StoredInput
from app.resolve import Draft
from app.storage.base import ImageStorage, StorageError

__all__ = ["Input", "Role", "discard_inputs", "read_inputs", "store_inputs", "stored_inputs"]

_log = structlog.get_logger()

Role = Literal["init_image", "mask"]
_ROLES: tuple[Role, ...] = ("init_image", "mask")
_DATA_URL = re.compile(r"data:image/(png|webp|jpeg);base64,", re.IGNORECASE)
_REFERENCE = re.compile(
    r"(?:https?://[^/]+)?/v1/images/(([0-9A-Z]{26})_[A-Za-z0-9_-]{1,150}\.(?:png|webp|jpg))(?:\?.*)?"
)


@dataclass(frozen=True, eq=False)
class Input:
    """A file that a job starts from, looked at."""

    data: bytes
    suffix: str
    sha256: str
    size: tuple[int, int]  # upright


async def read_inputs(services: Services, caller: Caller, draft: Draft) -> dict[Role, Input]:
    """The files that a draft names or brings; what is wrong with them is noted in it."""
    found: dict[Role, Input] = {}
    for role in _ROLES:
        try:
            data = await _bytes(services, caller, draft, role)
            if data is not None:
                found[role] = await _looked_at(services, data, role, draft)
        except InputError as fault:
            draft.refuse(role, f"The picture cannot be used: {fault}")
    picture, mask = found.get("init_image"), found.get("mask")
    if picture is not None and mask is not None and picture.size != mask.size:
        sizes = ["x".join(map(str, one.size)) for one in (mask, picture)]
        draft.refuse("mask", f"The mask is {sizes[0]}; it should be {sizes[1]}, as init_image is")
    return found


async def _bytes(services: Services, caller: Caller, draft: Draft, role: Role) -> bytes | None:
    most = services.settings.max_input_bytes
    data = draft.files.get(role)
    given: str | None = getattr(draft.fields, role)
    if data is None and given is not None:
        if (named := _REFERENCE.fullmatch(given)) is not None:
            return await _stored(services, caller, named[1], named[2])
        data = await to_thread.run_sync(_decoded, given)
    if data is not None and len(data) > most:
        raise InputError(f"it has {len(data)} bytes; the most is {most}")
    return data


def _decoded(given: str) -> bytes:
    announced = _DATA_URL.match(given)
    if announced is None:
        raise InputError(
            "it is no PNG, WebP or JPEG; give a data URL (data:image/png;base64,…, image/webp or "
            "image/jpeg) or the url of an image of a job of yours (/v1/images/…)"
        )
    try:
        data = base64.b64decode(given[announced.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise InputError("what follows base64, is not base64") from None
    said = announced[1].lower().replace("jpeg", "jpg")
    if (found := suffix_of(data)) != said:
        raise InputError(f"the data URL says {said}, and the file is {found}")
    return data


async def _stored(services: Services, caller: Caller, name: str, job_id: str) -> bytes:
    """The bytes of an image of a job of the caller's."""
    try:
        record = await own_record(services, caller, job_id)
        [image] = [image for image in record.images if image.name == name]
        return await image_bytes(services, image)
    except (errors.JobNotFound, errors.ImageNotFound, ValueError):
        raise InputError(f"there is no image {name!r} of yours; it may have expired") from None


async def _looked_at(services: Services, data: bytes, role: Role, draft: Draft) -> Input:
    async with services.decoding:
        return await to_thread.run_sync(_look, data, role, draft.transparent_mask)


def _look(data: bytes, role: Role, transparent_mask: bool) -> Input:
    """Decode the whole file, so that no worker meets a broken one."""
    picture = open_picture(data)
    size = picture.size
    if role == "mask":
        alpha = picture.getchannel("A")
        opaque = alpha.getextrema() == (255, 255)
        if transparent_mask and opaque:
            raise InputError("nothing of the mask is transparent, and that is what is drawn anew")
        if transparent_mask:
            data = _written(ImageChops.invert(alpha))
        elif not opaque:
            raise InputError(
                "the mask has transparency; white is what a mask draws anew, black what it keeps"
            )
    return Input(data, suffix_of(data), hashlib.sha256(data).hexdigest(), size)


def _written(mask: Image.Image) -> bytes:
    out = BytesIO()
    mask.save(out, "PNG")
    return out.getvalue()


def stored_inputs(job_id: str, inputs: Mapping[Role, Input]) -> tuple[StoredInput, ...]:
    """The inputs as the job's record has them: under names that are bound to the job."""
    return tuple(
        StoredInput(
            role=role,
            name=f"{job_id}_input_{role}.{one.suffix}",
            sha256=one.sha256,
            bytes=len(one.data),
        )
        for role, one in inputs.items()
    )


async def store_inputs(
    services: Services, stored: tuple[StoredInput, ...], inputs: Mapping[Role, Input]
) -> None:
    """Write them, before any worker can know of the job.

    Raises:
        Unavailable: the storage does not take them; none is left.
    """
    files = {one.name: inputs[one.role].data for one in stored}
    try:
        await to_thread.run_sync(_write, services.storage, files)
    except StorageError as fault:
        _log.error("input not stored", reason=str(fault))
        await discard_inputs(services, stored)
        raise errors.Unavailable(
            "The storage of images does not answer; try again soon", headers={"Retry-After": "5"}
        ) from None


def _write(storage: ImageStorage, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        storage.write(name, data)


async def discard_inputs(services: Services, stored: tuple[StoredInput, ...]) -> None:
    """Delete the files of a job that never came to be; `avocat gc` finds what stays."""
    await to_thread.run_sync(_delete, services.storage, stored)


def _delete(storage: ImageStorage, stored: tuple[StoredInput, ...]) -> None:
    for one in stored:
        try:
            storage.delete(one.name)
        except StorageError as fault:
            _log.warning("input stays", reason=str(fault))
