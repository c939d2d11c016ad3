"""`avocat train`, `evaluate` and `import`: handed on to the programs that know tensors."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import typer

from app.commands.console import fail, read_settings
from app.commands.programs import environment, program

__all__ = ["PASS_THROUGH", "evaluate", "import_model", "train"]

PASS_THROUGH = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def train(context: typer.Context) -> None:
    """Train a model on your own captioned pictures: clip, then denoiser, then upscaler."""
    _hand_on("models.train", context.args)


def evaluate(context: typer.Context) -> None:
    """Measure a bundle: retrieval, diversity, copying; writes evaluation.json and sheets."""
    _hand_on("worker.evaluate", context.args)


def import_model(context: typer.Context) -> None:
    """Serve local Stable Diffusion weights under a name; their files stay where they are."""
    settings = read_settings()
    taken = [f"--taken={name}" for name in _names_of(settings.bundle)]
    _hand_on("models.stable_diffusion", [f"--into={settings.models_dir}", *taken, *context.args])


def _names_of(bundle: Path) -> list[str]:
    """What the models of a bundle are called; none where it cannot be read."""
    try:
        entry = json.loads((bundle / "bundle.json").read_text("utf-8"))
    except (OSError, ValueError):
        return []
    name = entry.get("name") if isinstance(entry, dict) else None
    return [str(name), f"{name}-turbo"] if name else []


def _hand_on(module: str, arguments: list[str]) -> None:
    """Become `python -m module arguments…`."""
    if importlib.util.find_spec("torch") is None:
        fail("this needs torch: pip install 'avocat[worker,train]'")
    sys.stdout.flush()
    argv = program(module, *arguments)
    os.execve(argv[0], argv, environment())  # noqa: S606 - our own program, no shell
