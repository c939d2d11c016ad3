"""`avocat`: one command line for all parts; the parts themselves run as processes of their own."""

import sys
from io import TextIOWrapper
from typing import cast

import typer

from app.commands.doctor import doctor
from app.commands.gc import gc
from app.commands.generate import generate
from app.commands.jobs import jobs
from app.commands.keys import keys
from app.commands.models import PASS_THROUGH, evaluate, import_model, train
from app.commands.models_served import models
from app.commands.serve import api, serve, worker
from app.commands.settings import settings
from app.commands.verify import verify
from app.commands.webhook_secret import webhook_secret

__all__ = ["cli", "main"]

cli = typer.Typer(
    name="avocat",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@cli.callback()
def about() -> None:
    """Self-hosted text-to-image: prompts in, pictures out.

    \b
    First steps:
      avocat serve                             # start the service
      avocat generate "a red apple" -o a.png   # in another terminal
      avocat COMMAND --help                    # what a command does, with examples
    """


cli.command(short_help="Start the whole service on this machine.")(serve)
cli.command(short_help="Draw a picture for a prompt.")(generate)
cli.command(short_help="Draw a picture again from its file, and compare.")(verify)
cli.add_typer(jobs, short_help="List, show and cancel jobs.")
cli.add_typer(models, short_help="List, load, unload and remove models.")
cli.command(short_help="Run the API alone.")(api)
cli.command(short_help="Run one worker alone.")(worker)
cli.command(context_settings=PASS_THROUGH, short_help="Train a model on your pictures.")(train)
cli.command(context_settings=PASS_THROUGH, short_help="Measure a model.")(evaluate)
cli.command(
    "import", context_settings=PASS_THROUGH, short_help="Serve a local Stable Diffusion folder."
)(import_model)
cli.command(short_help="List every setting and its value.")(settings)
cli.command(short_help="Check this set-up, and say what mends it.")(doctor)
cli.command(short_help="Remove what no job has any more.")(gc)
cli.add_typer(keys, short_help="Make, list and revoke API keys.")
cli.command(short_help="Print what receivers verify webhooks with.")(webhook_secret)


def main() -> None:
    """The `avocat` console script."""
    stdout = cast(TextIOWrapper | None, sys.stdout)  # None: it was closed
    if stdout is not None and stdout.errors == "strict":
        stdout.reconfigure(errors="backslashreplace")  # a name is told, whatever the locale
    try:
        cli(prog_name="avocat")
    except OSError as fault:  # commands tell their own: this one came from telling
        sys.exit(f"avocat: {fault.filename or 'cannot write the output'}: {fault.strerror}")


if __name__ == "__main__":
    main()
