"""What the commands say and how they end: exit codes, error sentences, settings that are wrong."""

import os
from enum import IntEnum
from typing import NoReturn

import typer
from pydantic import ValidationError

from app.settings import Settings

__all__ = ["ExitCode", "apply_overrides", "fail", "read_settings"]


class ExitCode(IntEnum):
    """What scripts may rely on; every command's --help lists those it uses."""

    OK = 0
    FAILED = 1  # anything not named below
    BAD_INPUT = 2  # a wrong option, setting or prompt; also what a shell expects for usage errors
    UNREACHABLE = 3  # no server there, or it is not ready
    JOB_FAILED = 4  # the server took the job, and it failed or was canceled
    REFUSED = 5  # the server refused for now or for this key: 401, 403, 429, 503
    INTERRUPTED = 130  # Ctrl-C


def fail(sentence: str, code: ExitCode = ExitCode.FAILED) -> NoReturn:
    """Print one sentence to stderr and end with `code`."""
    typer.echo(f"avocat: {sentence}", err=True)
    raise typer.Exit(int(code))


def apply_overrides(**values: object) -> None:
    """Put options that were given into `AVOCAT_*`, so that every part reads the same settings."""
    for name, value in values.items():
        if value is not None:
            os.environ[f"AVOCAT_{name.upper()}"] = str(value)


def read_settings() -> Settings:
    """The settings of this process; ends with one sentence if a value is wrong."""
    try:
        return Settings()
    except ValidationError as wrong:
        fail("; ".join(_sentences(wrong)), ExitCode.BAD_INPUT)


def _sentences(wrong: ValidationError) -> list[str]:
    """One clause per wrong setting, quoting its value unless that may be a secret."""
    clauses = []
    for error in wrong.errors(include_url=False):
        field = str(error["loc"][0]) if error["loc"] else ""
        name = f"AVOCAT_{field.upper()}" if field else "setting"
        secret = not field or "key" in field or "url" in field
        value = "" if secret else f"={error['input']!r}"
        message = error["msg"].removeprefix("Value error, ")
        clauses.append(f"{name}{value}: {message[:1].lower()}{message[1:]}")
    return clauses
