"""`avocat doctor`: what may be wrong with this set-up, and what to do about it."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from app.commands.console import ExitCode, read_settings
from app.doctor import Finding, Verdict, examine

__all__ = ["doctor"]

MARKS = {Verdict.OK: "ok     ", Verdict.WARNING: "WARNING", Verdict.FAULT: "FAULT  "}


def doctor(
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as faults.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON list.")] = False,
) -> None:
    """Check bundle, storage, disk, runtime, port, Redis, its persistence and its clock.

    Each fault comes with what mends it. Exit code 0: all well, or warnings only; 1: a fault.

    \b
    Examples:
      avocat doctor
      AVOCAT_REDIS_URL=redis://redis:6379/0 avocat doctor --strict --json
    """
    found: list[Finding] = []
    for one in examine(read_settings()):
        found.append(one)
        if not as_json:
            typer.echo(f"{MARKS[one.verdict]}  {one.check}: {one.found}")
            if one.fix:
                typer.echo(f"         fix: {one.fix}")
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
    bad = {Verdict.FAULT, Verdict.WARNING} if strict else {Verdict.FAULT}
    if any(one.verdict in bad for one in found):
        raise typer.Exit(int(ExitCode.FAILED))
