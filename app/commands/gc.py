"""`avocat gc`: remove what no job has any more."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from redis.exceptions import RedisError

from app.commands.console import ExitCode, fail, read_settings
from app.garbage import Garbage, WrongRedis, collect
from app.jobs.connection import connect
from app.storage.base import StorageError
from app.storage.opening import open_storage

__all__ = ["gc"]

PATIENCE_S = 20.0


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    older_than: Annotated[
        float, typer.Option(min=0, help="Leave alone what is younger, in seconds.")
    ] = 3600.0,
    force: Annotated[
        bool, typer.Option("--force", help="Also when Redis knows none of the images.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Remove images that no job has, half-written files, and jobs that no queue holds.

    Workers delete a job's images with its record; this removes what a worker that was killed, or
    a queue that was emptied by hand, left behind. It never touches an image of a job that waits,
    runs or is kept, and may run beside the service. Exit code 1: something could not be removed.

    \b
    Examples:
      avocat gc --dry-run
      avocat gc --older-than 600 --json
    """
    settings = read_settings()
    try:
        with connect(settings.resolved_redis_url) as redis:
            storage = open_storage(settings, patience_s=PATIENCE_S)
            found = collect(redis, storage, older_than_s=older_than, dry_run=dry_run, force=force)
    except WrongRedis as wrong:
        fail(f"{wrong}; check AVOCAT_REDIS_URL and AVOCAT_DATA_DIR, or add --force")
    except StorageError as fault:
        fail(str(fault))
    except (RedisError, ValueError) as fault:
        reason = type(fault).__name__
        fail(f"Redis does not answer ({reason}): is the service running?", ExitCode.UNREACHABLE)
    _tell(found, dry_run=dry_run, as_json=as_json)
    if found.faults:
        raise typer.Exit(int(ExitCode.FAILED))


def _tell(found: Garbage, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        answer = asdict(found) | {
            "images": [image.name for image in found.images],
            "bytes": found.bytes,
            "dry_run": dry_run,
        }
        typer.echo(json.dumps(answer))
        return
    for image in found.images:
        typer.echo(f"image {image.name} ({image.bytes} bytes)")
    for job_id in found.jobs:
        typer.echo(f"job {job_id}: in no queue, failed")
    for fault in found.faults:
        typer.echo(f"avocat: {fault}", err=True)
    typer.echo(
        f"{'Would remove' if dry_run else 'Removed'} {len(found.images)} images "
        f"({found.bytes} bytes) and {found.half_written} half-written files, and "
        f"{'would fail' if dry_run else 'failed'} {len(found.jobs)} jobs that no queue holds; "
        f"{found.kept_images} images ({found.kept_bytes} bytes) stay."
    )
