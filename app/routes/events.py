"""`GET /v1/jobs/{job_id}/events`: a job as server-sent events, until its end."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response

from app.deps import CallerDep, Services, ServicesDep, own_record
from app.documentation import problems
from app.errors import Forbidden, InvalidRequest, JobNotFound, Unauthorized
from app.event_stream import KEEPALIVE_COMMENT, STREAM_SCHEMA, EventStream, Silence, encode_event
from app.examples import EVENTS
from app.jobs.followers import Follower
from app.present import job_objects
from app.schemas.events import MAX_PREVIEWS, PreviewEvent, StatusEvent
from app.schemas.jobs import Progress
from app.seen import END, Seen

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["Jobs"])


@router.get(
    "/jobs/{job_id}/events",
    status_code=200,
    summary="Follow a job by events",
    response_class=EventStream,
    responses={
        200: {
            "description": "Server-sent events; the stream ends with the job",
            "content": {"text/event-stream": {"schema": STREAM_SCHEMA, "example": EVENTS}},
        },
        204: {"description": "`Last-Event-ID` was that of the end: nothing will follow"},
        **problems(Unauthorized, Forbidden, JobNotFound, InvalidRequest),
    },
)
async def follow_job(
    request: Request,
    job_id: Annotated[str, Path(description="The job's id")],
    services: ServicesDep,
    caller: CallerDep,
    previews: Annotated[
        int,
        Query(ge=0, le=MAX_PREVIEWS, description="Previews of each picture, spread over its way"),
    ] = 0,
    last_event_id: Annotated[
        str | None,
        Header(alias="Last-Event-ID", description="Where to go on: nothing seen is sent again"),
    ] = None,
) -> Response:
    """`status`, `progress`, `preview`; at last `succeeded`, `failed` or `canceled` with the job.

    Events tell the newest state, not each one in between. A comment comes every 15 s.
    """
    record = await own_record(services, caller, job_id, services.events.record)
    if last_event_id == END and record.status.terminal:
        return Response(status_code=204)  # tells an EventSource not to come again
    if request.scope["state"].get("head"):
        return EventStream(())  # the headers alone, and at once
    return EventStream(_events(services, job_id, previews, Seen.read(last_event_id)))


async def _events(
    services: Services, job_id: str, previews: int, seen: Seen | None
) -> AsyncIterator[bytes]:
    hub, silence = services.events, Silence()
    with hub.follow(job_id, previews=previews) as follower:
        while hub.streaming and not follower.topic.ended:
            await follower.wait(silence.left_s)
            now = Seen.of(follower.topic) or seen
            news = _news(follower, now, seen)
            seen = now  # and not what it is when a slow client has taken all this
            if not news and not silence.left_s:
                news = [KEEPALIVE_COMMENT]
            for event in news:
                yield event
                silence.broken()
        record = follower.topic.record
    if record is not None and record.status.terminal:
        [job] = await job_objects(services, [record])
        yield encode_event(job.status, job, END)


def _news(follower: Follower, now: Seen | None, seen: Seen | None) -> list[bytes]:
    """What has happened since `seen`; the end is not told here."""
    record, outlook = follower.topic.record, follower.topic.outlook
    events: list[bytes] = []
    if record is None or now is None:
        return events
    if now.in_another_state(seen):
        status = StatusEvent(
            status=record.status,
            attempts=record.attempts,
            queue_position=outlook.queue_position,
            eta_seconds=outlook.eta_s,
        )
        events.append(encode_event("status", status, str(now.begun)))
    for preview in follower.take_previews():
        fields = PreviewEvent(index=preview.index, step=preview.step, data_url=preview.data_url)
        events.append(encode_event("preview", fields))  # no id: previews do not come again
    if now.progressed(seen):
        done = Progress.of(record.step, record.total_steps)
        events.append(encode_event("progress", done, str(now)))
    return events
