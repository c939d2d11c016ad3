"""`POST /v1/images/edits` and `/v1/images/variations`: OpenAI's Images API, from a picture on."""

from fastapi import APIRouter, Request, Response

from app import errors
from app.auth import Caller
from app.bodies import picture_form
from app.deps import Services, ServicesDep, SubmitterDep
from app.documentation import form_body, header, openai_problems
from app.event_stream import STREAM_SCHEMA
from app.generation import Kind, read_form
from app.hang_up import HUNG_UP, ClientGone
from app.openai_answers import answer, submitted
from app.request_headers import require_form
from app.schemas.openai import ImageEdit, Images, ImageVariation

__all__ = ["PATHS", "router"]

_EDITS, _VARIATIONS = "/v1/images/edits", "/v1/images/variations"
PATHS = frozenset({_EDITS, _VARIATIONS})

router = APIRouter(tags=["OpenAI"])

_RESPONSES = {
    200: {
        "description": "The images, or with `stream` events of them",
        "headers": {"X-Job-Id": header("The job behind the images")},
        "content": {"text/event-stream": {"schema": STREAM_SCHEMA}},
    },
    **openai_problems(
        *(errors.MalformedForm, errors.Unauthorized, errors.Forbidden, errors.ModelNotFound),
        *(errors.JobCanceled, errors.BodyTooLarge, errors.UnsupportedMediaType),
        *(errors.InvalidRequest, errors.PolicyViolation, errors.QuotaExceeded),
        *(errors.QueueFull, errors.JobFailed, errors.JobNotFinished),
    ),
}


@router.post(
    _EDITS,
    summary="Draw over a picture as OpenAI's API does",
    openapi_extra=form_body(ImageEdit),
    response_model=Images,
    responses=_RESPONSES,
)
async def edit_image(request: Request, services: ServicesDep, caller: SubmitterDep) -> Response:
    """Draws over the picture, with a mask only where that is transparent; waits for the images.

    Who hangs up cancels their job, which any other route knows too.
    """
    return await _answered(request, services, caller, "edit")


@router.post(
    _VARIATIONS,
    summary="Vary a picture as OpenAI's API does",
    openapi_extra=form_body(ImageVariation),
    response_model=Images,
    responses=_RESPONSES,
)
async def vary_image(request: Request, services: ServicesDep, caller: SubmitterDep) -> Response:
    """Draws pictures like the one that is given, without a prompt; waits for them."""
    return await _answered(request, services, caller, "variation")


async def _answered(request: Request, services: Services, caller: Caller, kind: Kind) -> Response:
    require_form(request.headers)
    try:
        async with picture_form(request, services) as form:
            asked = await read_form(form, kind)
            record = await submitted(request, services, caller, asked)
    except ClientGone:
        return Response(status_code=HUNG_UP)
    return await answer(request, services, asked, record, "image_edit")
