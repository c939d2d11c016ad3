"""How the routes of OpenAI's form answer: a job, and its pictures when they are there."""

import base64
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Literal

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import format_sse_event

from app import errors
from app.admission import admit
from app.auth import Caller
from app.deps import Services
from app.event_stream import KEEPALIVE_COMMENT, Silence, encode_event
from app.generation import Generation
from app.hang_up import HUNG_UP, ClientGone, StreamToClient
from app.image_bytes import image_bytes
from app.jobs.followers import Preview
from app.jobs.record import JobRecord
from app.middleware import add_header
from app.openai_errors import openai_error
from app.schemas.openai import CompletedEvent, GeneratedImage, Images, PartialImageEvent
from app.synchronous import wait_for_pictures, with_pictures

__all__ = ["EventKind", "answer", "submitted"]

EventKind = Literal["image_generation", "image_edit"]

_DONE = format_sse_event(data_str="[DONE]")


async def submitted(
    request: Request, services: Services, caller: Caller, asked: Generation
) -> JobRecord:
    """The job of a request, just made; the answer names it.

    Raises:
        ApiError: something is wrong with the request, or there is no room for it.
    """
    if services.audit.prompts:
        request.scope["state"]["prompt"] = asked.draft.fields.prompt
    previews = asked.options.partial_images
    record = (await admit(services, caller, asked.draft, previews=previews)).record
    add_header(request, "X-Job-Id", record.id)
    return record


async def answer(
    request: Request,
    services: Services,
    asked: Generation,
    record: JobRecord,
    kind: EventKind = "image_generation",
) -> Response:
    """The pictures, once they are there, or a stream of events; who hangs up cancels the job."""
    if asked.options.stream:
        cancel = partial(services.submitter.cancel, record)
        previews = asked.options.partial_images
        events = _events(request, services, record, previews, kind)
        return StreamToClient(events, on_hang_up=cancel)
    try:
        ended = await wait_for_pictures(request, services, record)
    except ClientGone:
        return Response(status_code=HUNG_UP)
    images = await _images(request, services, asked, ended)
    return JSONResponse(images.model_dump(mode="json", exclude_none=True))


async def _images(
    request: Request, services: Services, asked: Generation, record: JobRecord
) -> Images:
    if asked.options.response_format == "url":
        base = str(request.base_url).rstrip("/")  # OpenAI's URLs are whole ones
        data = [GeneratedImage(url=base + path) for path in await services.signer.urls(record)]
    else:
        data = [
            GeneratedImage(b64_json=_base64(await image_bytes(services, image)))
            for image in record.images
        ]
    return Images(created=int(record.created_at), data=data, **_look(record))


async def _events(
    request: Request,
    services: Services,
    record: JobRecord,
    previews: int,
    kind: EventKind,
) -> AsyncIterator[bytes]:
    hub, silence = services.events, Silence()
    with hub.follow(record.id, previews=previews, known=record) as follower:
        sent, over = 0, False
        while not over:
            if not await follower.wait(silence.left_s) or not silence.left_s:
                yield KEEPALIVE_COMMENT
                silence.broken()
            over = hub.closed or follower.topic.ended
            # The first picture stands for all: these events have no place for another index.
            for preview in [one for one in follower.take_previews() if one.index == 0]:
                if sent < previews:
                    yield _partial(record, preview, sent, kind)
                    silence.broken()
                    sent += 1
    try:
        ended = await with_pictures(services, record, follower.topic.record)
        for image in ended.images:
            data = _base64(await image_bytes(services, image))
            event = CompletedEvent(type=f"{kind}.completed", b64_json=data, **_look(ended))
            yield encode_event(event.type, event)
    except errors.ApiError as error:
        problem = errors.problem_details(request, errors.PROBLEMS[type(error)], error.detail)
        yield encode_event("error", openai_error(problem))
    else:
        yield _DONE


def _partial(record: JobRecord, preview: Preview, index: int, kind: EventKind) -> bytes:
    data = preview.data_url.partition(",")[2]
    event = PartialImageEvent(
        type=f"{kind}.partial_image",
        b64_json=data,
        partial_image_index=index,
        **_look(record),
    )
    return encode_event(event.type, event)


def _look(record: JobRecord) -> dict[str, Any]:
    """What answers and events say of their pictures."""
    request = record.request
    return {
        "created_at": int(record.created_at),
        "size": request.size,
        "background": "transparent" if request.background == "transparent" else "opaque",
        "output_format": request.output_format,
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
