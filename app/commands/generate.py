"""`avocat generate`: one prompt through a running service, or one started for it."""

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from app.commands.client import Client
from app.commands.console import ExitCode, fail
from app.commands.own_service import own_service

__all__ = ["generate"]

FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}

Output = Annotated[
    Path,
    typer.Option("--output", "-o", help="File to write; its ending chooses png, webp or jpeg."),
]
Server = Annotated[
    str, typer.Option(envvar="AVOCAT_SERVER", help="Address of the service.", metavar="URL")
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="AVOCAT_API_KEY", help="Key, if the service asks for one.")
]
Serve = Annotated[bool, typer.Option("--serve", help="Start a service of one's own for this.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the finished job and its files.")]
Count = Annotated[int, typer.Option("-n", min=1, max=8, help="Pictures to draw.")]
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed draws the same picture.")]
Steps = Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising steps.")]
Size = Annotated[
    str | None,
    typer.Option(help="WxH, one of the model's sizes.", show_default="the model's largest"),
]
Sampler = Annotated[str | None, typer.Option(help="ddpm, ddim or dpmpp_2m.")]
Guidance = Annotated[float | None, typer.Option(help="0 to 20: how closely to follow the prompt.")]
Negative = Annotated[str | None, typer.Option(help="What to steer away from.")]
Model = Annotated[str | None, typer.Option(help="Name of the model, if there are several.")]


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.")],
    output: Output = Path("avocat.png"),
    n: Count = 1,
    seed: Seed = None,
    steps: Steps = None,
    size: Size = None,
    sampler: Sampler = None,
    guidance_scale: Guidance = None,
    negative_prompt: Negative = None,
    model: Model = None,
    server: Server = "http://127.0.0.1:8000",
    api_key: ApiKey = None,
    serve: Serve = False,
    as_json: AsJson = False,
) -> None:
    """Draw a picture for PROMPT.

    What is not given is chosen by the model. With -n above 1 the files are numbered.

    \b
    Examples:
      avocat generate "a cat inside an avocado" -o cat.png
      avocat generate "a red apple" -n 4 --seed 7 --steps 50 --sampler ddpm
      avocat generate "a blue star" --json | jq -r '.files[]'
      avocat generate --serve "a fox"        # no service needed beforehand

    \b
    Exit codes: 0 done, 2 wrong input, 3 no service there, 4 the job failed,
    5 the service refused for now or for this key, 1 anything else.
    """
    fields = {
        "seed": seed,
        "steps": steps,
        "size": size,
        "sampler": sampler,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "model": model,
    }
    body = {"prompt": prompt, "n": n, "output_format": chosen_format(output)}
    body |= {name: value for name, value in fields.items() if value is not None}
    with contextlib.ExitStack() as stack:
        if serve:
            server, api_key = stack.enter_context(own_service()), None
        client = stack.enter_context(Client(server, api_key))
        job, files = draw(client, body, output)
    if as_json:
        typer.echo(json.dumps(job | {"files": [str(file) for file in files]}))
        return
    for warning in job["warnings"]:
        typer.echo(f"avocat: {warning}", err=True)
    for file in files:
        typer.echo(file)


def chosen_format(output: Path) -> str:
    """The picture format of a file name; ends with a sentence if it cannot be written there."""
    found = FORMATS.get(output.suffix.lower())
    if found is None:
        fail(
            f"--output {str(output)!r} should end in {', '.join(FORMATS)}",
            ExitCode.BAD_INPUT,
        )
    if not output.parent.is_dir():
        fail(f"there is no folder {str(output.parent)!r} to write to", ExitCode.BAD_INPUT)
    return found


def draw(client: Client, body: dict[str, Any], output: Path) -> tuple[dict[str, Any], list[Path]]:
    """Run one job to its end and save its pictures; returns the job and the files."""
    if "size" not in body:
        body = body | {"size": client.largest_size(body.get("model"))}
    job = client.finished_job(client.submit(body))
    files = numbered(output, len(job["images"]))
    for image, file in zip(job["images"], files, strict=True):
        data = client.image(image["url"])
        try:
            file.write_bytes(data)
        except OSError as fault:
            fail(f"cannot write {str(file)!r}: {fault.strerror}")
    return job, [file.resolve() for file in files]


def numbered(output: Path, count: int) -> list[Path]:
    """`cat.png`, or `cat-1.png`, `cat-2.png`, … for more than one picture."""
    if count == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{index}") for index in range(1, count + 1)]
