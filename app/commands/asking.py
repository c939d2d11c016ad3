"""How the commands reach a service: common options, faults as sentences and codes."""

import contextlib
from collections.abc import Iterator
from typing import Annotated

import typer

from app.client import (
    Avocat,
    AvocatError,
    Forbidden,
    JobFailed,
    ProblemError,
    Retries,
    ServerError,
    TooManyRequests,
    Unauthorized,
    Unreachable,
)
from app.commands.console import ExitCode, fail

__all__ = ["ApiKey", "AsJson", "Server", "asking", "exit_code", "sentence"]

# Few and short, since a person waits; a Retry-After is waited for all the same.
RETRIES = Retries(count=3, first_s=0.2)

Server = Annotated[
    str, typer.Option(envvar="AVOCAT_SERVER", help="Address of the service.", metavar="URL")
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="AVOCAT_API_KEY", help="Key, if the service asks for one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@contextlib.contextmanager
def asking(server: str, api_key: str | None) -> Iterator[Avocat]:
    """A client of the service; what it raises ends the command with a sentence."""
    try:
        client = Avocat(server, api_key, retries=RETRIES)
    except ValueError as wrong:
        fail(str(wrong), ExitCode.BAD_INPUT)
    with client:
        try:
            yield client
        except AvocatError as fault:
            fail(sentence(fault, server), exit_code(fault))
        except UnicodeEncodeError:  # of arguments that a terminal gave in another encoding
            fail("what was given is not text in UTF-8", ExitCode.BAD_INPUT)


def sentence(fault: AvocatError, server: str) -> str:
    """What to tell a person."""
    if isinstance(fault, Unreachable):
        return (
            f"no Avocat service at {server} ({fault}); start one with `avocat serve`, "
            "or name it with --server"
        )
    if isinstance(fault, ProblemError) and fault.retry_after_s is not None:
        return f"{fault}; try again in {fault.retry_after_s:.0f} s"
    return str(fault)


def exit_code(fault: AvocatError) -> ExitCode:
    """What to tell a script."""
    match fault:
        case Unreachable():
            return ExitCode.UNREACHABLE
        case JobFailed():
            return ExitCode.JOB_FAILED
        case Unauthorized() | Forbidden() | TooManyRequests():
            return ExitCode.REFUSED
        case ServerError():
            return ExitCode.REFUSED if fault.status == 503 else ExitCode.FAILED
        case ProblemError():
            return ExitCode.BAD_INPUT
    return ExitCode.FAILED
