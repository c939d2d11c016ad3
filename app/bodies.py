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


class job_body:  # a context manager
    """The body whole; one that is large holds a place among few until this is left.

    Raises:
        BodyTooLarge: it has more bytes than two pictures need.
        ClientGone: its sender has.
    """

    def __init__(self, request: Request, services: Services) -> None:
        self._request, self._settings, self._places = request, services.settings, services.uploads
        self._holding = False

    async def __aenter__(self) -> bytes:
        small = most = self._settings.max_body_bytes
        if "json" in self._request.headers.get("content-type", ""):  # else it has no pictures
            most = largest(self._settings)
        chunks, size = list[bytes](), 0
        try:
            async for chunk in _counted(self._request, most, largest(self._settings)):
                size += len(chunk)
                chunks.append(chunk)
                if size > small and not self._holding:
                    self._holding = await self._places.acquire()
        except BaseException:
            self._leave()
            raise
        return b"".join(chunks)

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._holding:
            self._places.release()


async def _counted(request: Request, most: int, drained: int) -> AsyncIterator[bytes]:
    """The body's chunks, up to `most` bytes of them; listens to somewhat more than `drained`."""
    size, more = 0, True
    while more and size <= drained + _DRAINED_BYTES:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(chunk)
        if chunk and size <= most:
            yield chunk
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
