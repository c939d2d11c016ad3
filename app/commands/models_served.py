"""`avocat models`: which are loaded where, loading and unloading them, and forgetting imports."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from app.client import Avocat, Forbidden, Model, ModelPlaces, Worker
from app.client.connection import DEFAULT_SERVER
from app.commands.asking import ApiKey, AsJson, Server, asking
from app.commands.console import ExitCode, apply_overrides, fail, read_settings

__all__ = ["models"]

models = typer.Typer(
    name="models",
    help="""List, load, unload and remove models.

    \b
    Exit codes: 0 done, 2 wrong input or no such model, 3 no service there,
    5 the service refused for now or for this key, 1 anything else.
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
)

_ROW = "{:<20}  {:<9}  {:>9}  {:<28}  {:<8}  {}"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")]
WorkerName = Annotated[
    str | None, typer.Option("--worker", help="One worker of `avocat models list`.")
]
Wait = Annotated[float, typer.Option("--wait", min=0, max=60, help="Seconds to wait until it is.")]


@models.command("list", short_help="What can be drawn with, and where it is loaded.")
def list_models(
    server: Server = DEFAULT_SERVER, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """List models: those that are loaded and where, those that could be, and those that failed.

    \b
    Where the service has keys, workers are shown to a key with the scope admin.
    Examples:
      avocat models list
      avocat models list --json | jq -r 'select(.state == "failed") | .detail'
    """
    with asking(server, api_key) as client:
        served, workers = client.models(), _workers(client)
    rows = [place.model_dump(mode="json") for worker in workers for place in worker.models]
    placed = {row["model"] for row in rows}
    rows += [_bare(model) for model in served if model.id not in placed]
    rows.sort(key=lambda row: (row["model"], row["worker"]))
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    typer.echo(_ROW.format("model", "state", "weights", "worker", "device", "from"))
    for row in rows:
        size = f"{row['weights_bytes'] / 1e6:,.0f} MB" if row["weights_bytes"] else ""
        about = row["detail"] or row["source"]
        shown = (row["model"], row["state"], size, row["worker"], row["device"], about)
        typer.echo(_ROW.format(*shown).rstrip())
    for worker in workers:
        typer.echo(f"{worker.id}: {_memory(worker)}")


def _workers(client: Avocat) -> list[Worker]:
    try:
        return list(client.workers())
    except Forbidden as fault:
        typer.echo(f"avocat: workers are not shown: {fault}", err=True)
        return []


def _bare(model: Model) -> dict[str, Any]:
    """A model of which no worker is known."""
    state = "loaded" if model.loaded else "available"
    return {
        **{"model": model.id, "state": state, "weights_bytes": 0},
        **{"worker": "", "device": "", "source": "", "detail": ""},
    }


def _memory(worker: Worker) -> str:
    free = f"{worker.free_bytes / 1e6:,.0f} MB free on {worker.device}"
    if worker.budget_bytes is None:
        return free
    return f"{free}, at most {worker.budget_bytes / 1e6:,.0f} MB of models"


@models.command("load", short_help="Load a model now.")
def load(
    name: Name,
    worker: WorkerName = None,
    wait: Wait = 60,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Have a worker load a model, before a job asks for it; others leave where memory is short.

    \b
    Example:
      avocat models load sd15
    """
    _move(
        lambda client: client.load_model(name, worker=worker, timeout_s=wait),
        server,
        api_key,
        as_json,
    )


@models.command("unload", short_help="Free a model's memory.")
def unload(
    name: Name,
    worker: WorkerName = None,
    wait: Wait = 60,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Have workers unload a model once its jobs are drawn; its next job loads it again.

    \b
    Example:
      avocat models unload sd15
    """
    _move(
        lambda client: client.unload_model(name, worker=worker, timeout_s=wait),
        server,
        api_key,
        as_json,
    )


def _move(
    ask: Callable[[Avocat], ModelPlaces], server: str, api_key: str | None, as_json: bool
) -> None:
    with asking(server, api_key) as client:
        found = ask(client)
    if as_json:
        typer.echo(found.model_dump_json())
        return
    for place in found.places:
        typer.echo(f"{place.model} {place.state.value} at {place.worker} ({place.device})")


@models.command("remove", short_help="Forget an imported model.")
def remove(
    name: Name,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of `avocat serve`.", show_default="data")
    ] = None,
) -> None:
    """Forget a model of `avocat import`: its bundle.json goes, its weights stay where they lie.

    Workers that run let go of it within seconds, once what they draw with it is done.

    \b
    Example:
      avocat models remove sd15
    """
    apply_overrides(data_dir=data_dir)
    folder = read_settings().models_dir
    if _NAME.fullmatch(name) is None:
        fail(f"{name!r} should be letters, digits, '.', '-' or '_'", ExitCode.BAD_INPUT)
    file = folder / name / "bundle.json"
    if not file.is_file():
        found = sorted(one.parent.name for one in folder.glob("*/bundle.json"))
        said = f"no model {name!r} was imported into {str(folder)!r}"
        fail(f"{said}; these were: {', '.join(found) or 'none'}", ExitCode.BAD_INPUT)
    source = _source(file)
    try:
        file.unlink()
        shutil.rmtree(file.parent / "parts", ignore_errors=True)  # of a single file: ours, too
        if not any(file.parent.iterdir()):
            file.parent.rmdir()
    except OSError as fault:
        fail(f"{str(file)!r} cannot be removed: {fault.strerror}")
    typer.echo(f"{name} is forgotten; its files stay in {source}")


def _source(file: Path) -> str:
    """Where the weights lie; ends with a sentence if they are not elsewhere."""
    try:
        entry = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):  # damaged: there is nothing in it to lose
        return "the folder they were imported from"
    if not isinstance(entry, dict) or entry.get("kind") != "stable_diffusion":
        fail(
            f"{str(file.parent)!r} is a bundle with weights of its own, which are not deleted "
            "here; move or delete that folder yourself",
            ExitCode.BAD_INPUT,
        )
    return str(entry.get("source", "the folder they were imported from"))
