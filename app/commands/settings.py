"""`avocat settings`: every setting, its value and what it means."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.commands.console import read_settings
from app.settings import Settings, default_bundle

__all__ = ["describe", "markdown", "settings"]

ENV_PREFIX = "AVOCAT_"
MASK = "********"
_SECRET_PARAMETER = re.compile(r"((?:password|token|secret|key)=)[^&#]+", re.IGNORECASE)


def settings(
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON list.")] = False,
) -> None:
    """List every setting: environment variable, value now, meaning. Secrets are masked.

    \b
    Examples:
      avocat settings
      AVOCAT_PORT=9000 avocat settings --json | jq '.[] | select(.name == "port")'
    """
    rows = describe(read_settings())
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("Variable", "Value (bold: changed)", "Meaning")
    for row in rows:
        value = "" if row["value"] is None else str(row["value"])
        style = "bold" if row["value"] != row["default"] else ""
        table.add_row(row["variable"], Text(value, style), Text(row["description"]))
    Console().print(table)


def describe(found: Settings) -> list[dict[str, Any]]:
    """One entry per setting, in the order they are declared; values as JSON has them."""
    rows = []
    for name, field in Settings.model_fields.items():
        rows.append(
            {
                "name": name,
                "variable": ENV_PREFIX + name.upper(),
                "value": _shown(name, getattr(found, name)),
                "default": _shown(name, field.get_default(call_default_factory=True)),
                "description": field.description,
            }
        )
    return rows


def markdown() -> str:
    """The README's table of settings and defaults."""
    lines = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if default == default_bundle():
            shown = "`bundles/emoji` of this repository"
        else:
            text = _shown(name, default)
            shown = "" if text in (None, "") else f"`{json.dumps(text).strip(chr(34))}`"
        lines.append(f"| `{ENV_PREFIX}{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"


def _shown(name: str, value: object) -> Any:
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    if isinstance(value, str):
        return _without_password(value)
    return str(value) if isinstance(value, Path) else value


def _without_password(text: str) -> str:
    """The text, without what is secret in it if it is a URL."""
    scheme, found, rest = text.partition("://")
    if not found:
        return text
    rest = _SECRET_PARAMETER.sub(rf"\1{MASK}", rest)
    credentials, at, place = rest.rpartition("@")
    return f"{scheme}://{MASK}@{place}" if at and credentials else f"{scheme}://{rest}"
