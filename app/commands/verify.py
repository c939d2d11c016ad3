"""`avocat verify`: is a picture what the recipe in its file gives?"""

import json
from pathlib import Path
from typing import Annotated

import typer

from app.client import BadRequest
from app.client.connection import DEFAULT_SERVER
from app.commands.asking import ApiKey, AsJson, Server, asking
from app.commands.console import ExitCode

__all__ = ["verify"]

_File = typer.Argument(metavar="FILE…", exists=True, dir_okay=False, help="PNG or WebP files.")


def verify(
    files: Annotated[list[Path], _File],
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Let the service draw pictures again from the recipes in their files, and compare the pixels.

    \b
    Examples:
      avocat verify cat.png
      avocat verify out/*.png --json | jq -r 'select(.verdict == "identical") | .file'

    \b
    Exit codes: 0 all are identical, 1 one is different or cannot be verified, or
    anything not named here, 2 no such file or no picture, 3 no service there,
    5 the service refused for now or for this key.
    A file that is wrong does not stop the others.
    """
    code = ExitCode.OK
    with asking(server, api_key) as client:
        for file in files:
            try:
                said = client.verify(file)
            except (BadRequest, OSError) as wrong:
                typer.echo(f"avocat: {file}: {wrong}", err=True)
                code = ExitCode.BAD_INPUT
                continue
            if said.verdict != "identical":
                code = code or ExitCode.FAILED
            if as_json:
                typer.echo(json.dumps({"file": str(file), **said.model_dump(mode="json")}))
            else:
                typer.echo(f"{said.verdict:<12} {file}: {said.reason}")
    raise typer.Exit(int(code))
