"""`avocat generate`: prompts through a running service, or through one started for them."""

import contextlib
import json
import math
import sys
from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast

import typer

from app.client import (
    Avocat,
    AvocatError,
    BadRequest,
    Job,
    JobCanceled,
    JobFailed,
    JobFields,
    Lora,
    Picture,
)
from app.client.connection import DEFAULT_SERVER
from app.commands.asking import ApiKey, AsJson, Server, asking, exit_code, sentence
from app.commands.console import ExitCode, fail
from app.commands.own_service import own_service
from app.commands.targets import Target
from app.commands.watching import Watch

__all__ = ["generate"]

# Enough to keep a worker's batch full; the rest waits here, not in the service's queue.
IN_FLIGHT = 16


class PictureFormat(StrEnum):
    """The formats a service writes."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"


Output = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE|FOLDER/",
        help="File to write, its ending chooses png, webp or jpeg; or a folder, ending in /.",
    ),
]
Format = Annotated[PictureFormat | None, typer.Option("--format", help="For a folder.")]
Serve = Annotated[bool, typer.Option("--serve", help="Start a service of one's own for this.")]
Count = Annotated[int, typer.Option("-n", min=1, max=8, help="Pictures to draw.")]
BestOf = Annotated[
    int | None,
    typer.Option(min=1, max=8, help="Candidates; those nearest to the prompt are kept."),
]
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed draws the same picture.")]
Steps = Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising steps.")]
Size = Annotated[
    str | None,
    typer.Option(help="WxH, one of the model's sizes.", show_default="the model's largest"),
]
Sampler = Annotated[str | None, typer.Option(help="One of the model's samplers, as dpmpp_2m.")]
Guidance = Annotated[
    float | None, typer.Option(min=0, max=20, help="0 to 20: how closely to follow the prompt.")
]
Negative = Annotated[str | None, typer.Option(help="What to steer away from.")]
Background = Annotated[str | None, typer.Option(help="transparent, white or #rrggbb.")]
Model = Annotated[str | None, typer.Option(help="Name of the model, if there are several.")]
Loras = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="NAME[:WEIGHT]", help="A LoRA of the model; may be repeated."),
]
InitImage = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", exists=True, dir_okay=False, help="Picture to start from: PNG, WebP, JPEG."
    ),
]
Mask = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="White where to draw over that, else black.",
    ),
]
Strength = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="0 to 1: how far to go from that picture.", show_default="0.8, masked 1"
    ),
]
Compose = Annotated[
    bool | None,
    typer.Option(
        "--compose/--whole",
        help="Paint the things that PROMPT names one by one and lay them together, or not.",
        show_default="by model",
    ),
]
Cache = Annotated[
    bool, typer.Option("--cache/--no-cache", help="Whether pictures drawn before may be given.")
]
Preview = Annotated[
    bool, typer.Option("--preview/--no-preview", help="Show pictures in a terminal with colours.")
]


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw; -: see below.")],
    output: Output = "avocat.png",
    picture_format: Format = None,
    n: Count = 1,
    best_of: BestOf = None,
    seed: Seed = None,
    steps: Steps = None,
    size: Size = None,
    sampler: Sampler = None,
    guidance_scale: Guidance = None,
    negative_prompt: Negative = None,
    background: Background = None,
    model: Model = None,
    lora: Loras = None,
    init_image: InitImage = None,
    mask: Mask = None,
    strength: Strength = None,
    compose: Compose = None,
    cache: Cache = True,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    serve: Serve = False,
    preview: Preview = True,
    as_json: AsJson = False,
) -> None:
    """Draw a picture for PROMPT, and print the names of the files.

    What is not given is chosen by the model. With -n above 1 the files are numbered.
    PROMPT - reads prompts from standard input, one a line, and needs a folder to write to.

    \b
    Examples:
      avocat generate "a cat inside an avocado" -o cat.png
      avocat generate "a red apple" -n 4 --seed 7 -o out/
      avocat generate - -o out/ --format webp < prompts.txt
      avocat generate "a blue star" --json | jq -r '.files[]'
      avocat generate --serve "a fox"        # no service needed beforehand
      avocat generate "a green apple" --init-image apple.png --strength 0.6

    \b
    Exit codes: 0 done, 2 wrong input, 3 no service there, 4 a job failed,
    5 the service refused for now or for this key, 130 Ctrl-C (cancels), 1 anything else.
    Of several prompts, one that is wrong or fails does not stop the others.
    """
    prompts = read_prompts(prompt)
    target = Target(output, picture_format, len(prompts))
    given = {
        "n": n,
        "best_of": best_of,
        "seed": seed,
        "steps": steps,
        "size": size,
        "sampler": sampler,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "background": background,
        "model": model,
        "lora": [read_lora(one) for one in lora or ()] or None,
        "init_image": init_image,
        "mask": mask,
        "strength": strength,
        "compose": compose,
        "cache": None if cache else False,
        "output_format": target.picture_format,
    }
    fields = cast(JobFields, {name: value for name, value in given.items() if value is not None})
    with contextlib.ExitStack() as stack:
        if serve:
            server, api_key = stack.enter_context(own_service()), None
        client = stack.enter_context(asking(server, api_key))
        if size is None:
            fields["size"] = largest_size(client, model)
        watch = stack.enter_context(Watch(pictures=preview))
        run = Run(client, fields, target, watch, server=server, as_json=as_json)
        code = run.draw(prompts)
    if code is not ExitCode.OK:
        raise typer.Exit(int(code))


def read_prompts(prompt: str) -> list[str]:
    """The prompts: the one given, or with "-" the lines of standard input that are not blank."""
    if prompt != "-":
        return [prompt]
    try:
        lines = list(sys.stdin or ())  # None: it was closed
        "".join(lines).encode()
    except UnicodeError:
        fail("standard input is not text in UTF-8", ExitCode.BAD_INPUT)
    except OSError as fault:
        fail(f"standard input cannot be read: {fault.strerror}", ExitCode.BAD_INPUT)
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        fail("standard input has no prompt: one a line", ExitCode.BAD_INPUT)
    return prompts


def read_lora(text: str) -> Lora:
    """A LoRA of the form NAME or NAME:WEIGHT."""
    name, colon, weight = text.rpartition(":")
    if not colon:
        return {"name": text}
    try:
        read = float(weight)
    except ValueError:
        read = math.nan
    if not math.isfinite(read):
        fail(f"--lora {text!r} should be NAME or NAME:WEIGHT, as style:0.8", ExitCode.BAD_INPUT)
    return {"name": name, "weight": read}


def largest_size(client: Avocat, model: str | None) -> str:
    """The largest of a model's sizes; the default model's if `model` is None.

    The native one of a model that draws any size: beyond it such models repeat themselves.
    """
    models = client.models()
    chosen = [card for card in models if (card.is_default if model is None else card.id == model)]
    if not chosen:
        names = ", ".join(repr(card.id) for card in models) or "none"
        fail(f"the service has no model {model!r}; it has {names}", ExitCode.BAD_INPUT)
    if chosen[0].free_sizes is not None:
        return chosen[0].native_size
    return max(chosen[0].sizes, key=lambda size: int(size.partition("x")[0]))


class Run:
    """Some prompts on their way through a service."""

    def __init__(
        self,
        client: Avocat,
        fields: JobFields,
        target: Target,
        watch: Watch,
        *,
        server: str,
        as_json: bool,
    ) -> None:
        self._client = client
        self._fields = fields
        self._target = target
        self._watch = watch
        self._server = server
        self._as_json = as_json
        self._jobs: deque[tuple[int, Job]] = deque()
        self._code = ExitCode.OK

    def draw(self, prompts: Sequence[str]) -> ExitCode:
        """Draw all; what is under way when this is cut short is canceled."""
        todo = deque(enumerate(prompts, start=1))
        try:
            while todo or self._jobs:
                while todo and len(self._jobs) < IN_FLIGHT:
                    self._submit(*todo.popleft())
                if self._jobs:
                    number, job = self._jobs[0]
                    note = f"{number}/{len(prompts)} " if len(prompts) > 1 else ""
                    self._deliver(number, self._watch.follow(self._client, job, note))
                    self._jobs.popleft()
        except KeyboardInterrupt:
            names = ", ".join(job.id for _, job in self._jobs)
            self._cancel_all()
            fail(f"canceled {names}" if names else "canceled", ExitCode.INTERRUPTED)
        except BaseException:
            self._cancel_all()
            raise
        return self._code

    def _submit(self, number: int, prompt: str) -> None:
        try:
            self._jobs.append((number, self._client.submit(prompt, **self._fields)))
        except BadRequest as wrong:
            self._note(wrong)

    def _deliver(self, number: int, job: Job) -> None:
        if job.status != "succeeded":
            self._note(JobCanceled(job) if job.status == "canceled" else JobFailed(job))
            return
        pictures = [Picture(self._client.download(image), image, job) for image in job.images]
        files = [str(file) for file in self._target.save(pictures, number)]
        for warning in () if self._as_json else job.warnings:
            typer.echo(f"avocat: {warning}", err=True)
        if self._as_json:
            typer.echo(json.dumps(job.model_dump(mode="json") | {"files": files}))
        else:
            typer.echo("\n".join(files))

    def _note(self, fault: AvocatError) -> None:
        """One prompt's fault: said, and kept for the exit code; the first one decides."""
        typer.echo(f"avocat: {sentence(fault, self._server)}", err=True)
        if self._code is ExitCode.OK:
            self._code = exit_code(fault)

    def _cancel_all(self) -> None:
        for _, job in self._jobs:
            with contextlib.suppress(AvocatError):
                self._client.cancel(job)
