"""`avocat jobs`: look at the jobs of a service, and cancel them."""

import itertools
import json
from enum import StrEnum
from typing import Annotated

import typer

from app.client import Job, NotFound
from app.client.connection import DEFAULT_SERVER
from app.commands.asking import ApiKey, AsJson, Server, asking
from app.commands.console import ExitCode

__all__ = ["jobs"]

jobs = typer.Typer(
    name="jobs",
    help="""List, show and cancel jobs of a running service.

    \b
    Exit codes: 0 done, 2 wrong input or no such job, 3 no service there,
    5 the service refused for now or for this key, 1 anything else.
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
)

_ROW = "{:<26}  {:<9}  {:>4}  {:>1}  {:>16}  {:<19}  {}"

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]


class Status(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


@jobs.command("list", short_help="The newest jobs.")
def list_jobs(
    status: Annotated[Status | None, typer.Option(help="Only jobs of this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs to list.")] = 20,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List your jobs, newest first.

    \b
    Examples:
      avocat jobs list --status running
      avocat jobs list --limit 500 --json | jq -r .id     # one JSON object a line
    """
    with asking(server, api_key) as client:
        found = client.list(status=status, page_size=min(limit, 100))
        listed = list(itertools.islice(found, limit))
    if as_json:
        for job in listed:
            typer.echo(job.model_dump_json())
        return
    typer.echo(_ROW.format("job", "status", "done", "n", "seed", "created", "prompt"))
    for job in listed:
        asked, created = job.request, job.created_at[:19].replace("T", " ")
        done = f"{job.progress.fraction:.0%}"
        row = (job.id, job.status.value, done, asked.n, asked.seed, created, asked.prompt)
        typer.echo(_ROW.format(*row))


@jobs.command("show", short_help="All about one job.")
def show_job(
    job_id: JobId,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show one job: what was asked, how far it is, where its pictures are.

    \b
    Example:
      avocat jobs show 01M83E76RQEB75JJK6YCCBPSR8
    """
    with asking(server, api_key) as client:
        job = client.get(job_id)
    if as_json:
        typer.echo(job.model_dump_json())
        return
    for name, value in _lines(job, server):
        typer.echo(f"{name:<10} {value}")


@jobs.command("cancel", short_help="Cancel jobs.")
def cancel_jobs(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID…", help="The jobs' ids.")],
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Cancel jobs; those that have ended stay as they are. Prints what they are then.

    One that is not there does not stop the others.

    \b
    Example:
      avocat jobs cancel $(avocat jobs list --status queued --json | jq -r .id)
    """
    code = ExitCode.OK
    with asking(server, api_key) as client:
        for job_id in job_ids:
            try:
                job = client.cancel(job_id)
            except NotFound as wrong:
                typer.echo(f"avocat: {wrong}", err=True)
                code = ExitCode.BAD_INPUT
                continue
            typer.echo(job.model_dump_json() if as_json else f"{job.id} {job.status}")
    if code is not ExitCode.OK:
        raise typer.Exit(int(code))


def _lines(job: Job, server: str) -> list[tuple[str, str]]:
    progress, asked = job.progress, job.request
    lines = [
        ("job", job.id),
        ("status", f"{job.status}, step {progress.step}/{progress.total_steps}"),
    ]
    if job.queue_position is not None:
        lines.append(("ahead", f"{job.queue_position} jobs"))
    if job.eta_seconds is not None:
        lines.append(("ready in", f"about {job.eta_seconds:.0f} s"))
    lines.append(("prompt", asked.prompt))
    kept = asked.model_dump(exclude={"prompt"}, exclude_none=True)
    lines.append(
        ("request", ", ".join(f"{name} {json.dumps(value)}" for name, value in kept.items()))
    )
    lines += [("created", job.created_at), ("expires", job.expires_at)]
    if job.error is not None:
        lines.append(("error", job.error.detail))
    lines += [("warning", warning) for warning in job.warnings]
    lines += [("picture", server.rstrip("/") + image.url) for image in job.images]
    return lines
