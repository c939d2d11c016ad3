"""`POST /v1/images/generations`: OpenAI's Images API, in front of the same queue as every job.

An Idempotency-Key has no meaning here: a job that is canceled as its caller hangs up is no answer
to the caller's next try.
"""

import base64
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import format_sse_event

from app import errors
from app.admission import admit
from app.deps import Services, ServicesDep, SubmitterDep
from app.documentation import header, json_body, openai_problems
from app.event_stream import KEEPALIVE_COMMENT, STREAM_SCHEMA, Silence, encode_event
from app.generation import Generation, read_generation
from app.hang_up import HUNG_UP, ClientGone, StreamToClient
from app.image_bytes import image_bytes
from app.jobs.followers import Preview
from app.jobs.record import JobRecord
from app.json_body import read_json
from app.middleware import add_header
from app.openai_errors import openai_error
from app.request_headers import require_json
from app.schemas.openai import (
    CompletedEvent,
    GeneratedImage,
    ImageGeneration,
    Images,
    PartialImageEvent,
)
from app.synchronous import wait_for_pictures, with_pictures

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["OpenAI"])

_DONE = format_sse_event(data_str="[DONE]")


@router.post(
    "/images/generations",
    summary="Generate images as OpenAI's API does",
    openapi_extra=json_body(ImageGeneration),
    response_model=Images,
    responses={
        200: {
            "description": "The images, or with `stream` events of them",
            "headers": {"X-Job-Id": header("The job behind the images")},
            "content": {"text/event-stream": {"schema": STREAM_SCHEMA}},
        },
        **openai_problems(
            *(errors.MalformedJson, errors.Unauthorized, errors.Forbidden, errors.ModelNotFound),
            *(errors.JobCanceled, errors.BodyTooLarge, errors.UnsupportedMediaType),
            *(
                errors.InvalidRequest,
                errors.PolicyViolation,
                errors.QuotaExceeded,
                errors.QueueFull,
                errors.StorageFull,
                errors.JobFailed,
            ),
            errors.JobNotFinished,
        ),
    },
)
async def generate_images(
    request: Request, services: ServicesDep, caller: SubmitterDep
) -> Response:
    """Waits for the images. Who hangs up cancels their job, which any other route knows too."""
    require_json(request.headers)
    asked = read_generation(read_json(await request.body()))
    previews = asked.options.partial_images
    if services.audit.prompts:
        request.scope["state"]["prompt"] = asked.draft.fields.prompt
    admission = await admit(services, caller, asked.draft, previews=previews)
    record = admission.record
    add_header(request, "X-Job-Id", record.id)
    if asked.options.stream:
        cancel = partial(services.submitter.cancel, record)
        return StreamToClient(_events(request, services, record, previews), on_hang_up=cancel)
    try:
        ended = await wait_for_pictures(request, services, record)
    except ClientGone:
        return Response(status_code=HUNG_UP)
    answer = await _images(request, services, asked, ended)
    return JSONResponse(answer.model_dump(mode="json", exclude_none=True))


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
    request: Request, services: Services, record: JobRecord, previews: int
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
                    yield _partial(record, preview, sent)
                    silence.broken()
                    sent += 1
    try:
        ended = await with_pictures(services, record, follower.topic.record)
        for image in ended.images:
            data = _base64(await image_bytes(services, image))
            event = CompletedEvent(b64_json=data, **_look(ended))
            yield encode_event(event.type, event)
    except errors.ApiError as error:
        problem = errors.problem_details(request, errors.PROBLEMS[type(error)], error.detail)
        yield encode_event("error", openai_error(problem))
    else:
        yield _DONE


def _partial(record: JobRecord, preview: Preview, index: int) -> bytes:
    data = preview.data_url.partition(",")[2]
    event = PartialImageEvent(b64_json=data, partial_image_index=index, **_look(record))
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
