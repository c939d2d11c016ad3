"""Bodies with pictures inside: larger than others may be, and so a few at a time.

JSON takes many times its size once it is read. So pictures are taken out of the text before, and
what is left of it must be as small as any other body.
"""

import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from app.deps import Services
from app.errors import BodyTooLarge, MalformedForm
from app.hang_up import ClientGone
from app.json_body import JsonBody, read_json
from app.settings import Settings

__all__ = ["job_body", "picture_form", "read_job", "uploads"]

# A client that sends too much gets its answer only once it has been listened to, up to this much
# more than any body may have: a gateway that cannot send all it has says that we are unavailable.
_DRAINED_BYTES = 1 << 20
_MOST_FILES, _MOST_FIELDS = 17, 64  # OpenAI's API takes 16 pictures and a mask
# A member with a data URL, whose slashes may be escaped; a short one may stay in the text.
_PICTURE = re.compile(
    rb'("(?:init_image|mask)"[ \t\r\n]*:[ \t\r\n]*)"(data:[^",]{1,100},[A-Za-z0-9+/=\\]{1024,})"'
)


def largest(settings: Settings) -> int:
    """Bytes of a body with two pictures in base64, and all else."""
    return settings.max_body_bytes + -(-8 * settings.max_input_bytes // 3)


@asynccontextmanager
async def job_body(request: Request, services: Services) -> AsyncIterator[bytes]:
    """The body whole; one that is large holds a place among few until this is left.

    Raises:
        BodyTooLarge: it has more bytes than two pictures need.
        ClientGone: its sender has.
    """
    small = most = services.settings.max_body_bytes
    if "json" in request.headers.get("content-type", ""):  # what else it may be has no pictures
        most = largest(services.settings)
    chunks, size, holding = list[bytes](), 0, False
    try:
        async for chunk in _counted(request, most, largest(services.settings)):
            size += len(chunk)
            chunks.append(chunk)
            if size > small and not holding:
                holding = await services.uploads.acquire()
        yield b"".join(chunks)
    finally:
        if holding:
            services.uploads.release()


async def _counted(request: Request, most: int, drained: int) -> AsyncIterator[bytes]:
    """The body's chunks, up to `most` bytes of them; listens to somewhat more than `drained`."""
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= most:
                yield chunk
            elif size > drained + _DRAINED_BYTES:
                break
    except ClientDisconnect:
        raise ClientGone from None
    if size > most:
        raise _too_large(most)


def _too_large(most: int) -> BodyTooLarge:
    detail = f"The body is over {most} bytes, which is the most"
    return BodyTooLarge(detail, headers={"Connection": "close"})


def read_job(raw: bytes, max_bytes: int) -> JsonBody:
    """Parse a job; all but its pictures has at most `max_bytes`.

    Raises:
        BodyTooLarge: it has more.
        MalformedJson: see `read_json`.
    """
    if len(raw) <= max_bytes:
        return read_json(raw)
    lifted: dict[str, str] = {}
    mark = secrets.token_hex(8)  # nobody can have written it

    def lift(found: re.Match[bytes]) -> bytes:
        place = f"{mark}-{len(lifted)}"
        lifted[place] = found[2].decode("ascii", "replace").replace("\\/", "/")
        return b'%s"%s"' % (found[1], place.encode())

    left = _PICTURE.sub(lift, raw)
    if len(left) > max_bytes:
        raise _too_large(max_bytes)
    body = read_json(left)
    if not isinstance(body.value, dict):
        return body
    put_back = {
        name: lifted.pop(value, value) if isinstance(value, str) else value
        for name, value in body.value.items()
    }
    if lifted:  # they lie deeper, where no field is that large
        raise _too_large(max_bytes)
    return JsonBody(put_back, body.surrogates)


@asynccontextmanager
async def picture_form(request: Request, services: Services) -> AsyncIterator[FormData]:
    """The parts of a multipart/form-data body, its files on disk where they are large.

    Raises:
        BodyTooLarge: as `job_body`.
        MalformedForm: it is no such body, or has too many parts.
        ClientGone: its sender has.
    """
    most = largest(services.settings)
    async with services.uploads:
        parser = MultiPartParser(
            request.headers,
            _counted(request, most, most),  # type: ignore[arg-type]
            max_files=_MOST_FILES,
            max_fields=_MOST_FIELDS,
            max_part_size=services.settings.max_body_bytes,
        )
        try:
            form = await parser.parse()
        except MultiPartException as fault:
            raise MalformedForm(f"The body is not a form: {fault.message}") from None
        try:
            yield form
        finally:
            await form.close()


def uploads(form: FormData, name: str) -> list[UploadFile]:
    """The files under a name, also where it is that of a list."""
    parts = [*form.getlist(name), *form.getlist(f"{name}[]")]
    return [part for part in parts if isinstance(part, UploadFile)]
