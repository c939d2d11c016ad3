"""`avocat import`: writes the bundle.json of a local folder in the layout of diffusers."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from models.errors import ModelError
from models.model import Size
from models.samplers import SAMPLERS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def main(argv: Sequence[str] | None = None) -> int:
    """Import a folder; 1, and one sentence, where that cannot be done."""
    options = _parser().parse_args(argv)
    # Not before the arguments are known to be right: these take seconds to import.
    from models.stable_diffusion.loading import import_folder
    from models.stable_diffusion.settle import Wishes

    wishes = Wishes(
        options.sampler,
        options.steps,
        options.guidance_scale,
        options.clip_skip,
        options.prediction,
        tuple(options.size),
        options.license,
        options.description,
    )
    if options.name in options.taken:
        print(
            f"avocat import: {options.name!r} is a model of the bundle that is served; give "
            "another --name",
            file=sys.stderr,
        )
        return 1
    into = options.into / options.name
    try:
        config = import_folder(
            options.path, into, options.name, wishes, variant=options.variant, progress=_tell
        )
    except (ModelError, OSError) as fault:
        print(f"avocat import: {fault}", file=sys.stderr)
        return 1
    width, height = config.sizes[0]
    print(
        f"{config.name}: {config.family}, predicts {config.parameterisation}, {width}x{height}, "
        f"{config.default_sampler} in {config.default_steps} steps, "
        f"guidance {config.default_guidance_scale:g}\n{into / 'bundle.json'}"
    )
    return 0


def _tell(what: str) -> None:
    print(what, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="avocat import",
        description="Make local Stable Diffusion weights (a folder in the layout of diffusers, or "
        "a single file in the original one; safetensors) a model that is served. They stay where "
        "they are.",
        epilog="Example: avocat import ~/stable-diffusion-v1-5 --name sd15",
    )
    parser.add_argument("path", type=Path, help="folder, or a .safetensors file")
    parser.add_argument("--name", required=True, type=_name, help="`model` of a job")
    parser.add_argument("--into", required=True, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--taken", action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--variant", help="of the weights, where there are several: fp16")
    parser.add_argument("--sampler", choices=SAMPLERS, help="default (from the scheduler's)")
    parser.add_argument("--steps", type=_positive, help="default steps")
    parser.add_argument("--guidance-scale", type=_scale, help="default guidance, 0 to 20")
    parser.add_argument(
        "--clip-skip", type=_skip, default=0, help="layers of the text encoder left out (0)"
    )
    parser.add_argument(
        "--prediction", choices=("eps", "v"), help="of the U-Net (from the scheduler's)"
    )
    parser.add_argument(
        "--size", type=_size, action="append", default=[], help="WxH, the native one first"
    )
    parser.add_argument("--license", default="unknown")
    parser.add_argument("--description", default="")
    return parser


def _name(text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} should be letters, digits, '.', '-' or '_'")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number from 1")
    return int(text)


def _skip(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number from 0")
    return int(text)


def _scale(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = -1.0
    if not 0 <= scale <= 20:
        raise argparse.ArgumentTypeError(f"{text!r} should be a number from 0 to 20")
    return scale


def _size(text: str) -> Size:
    found = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} should be WIDTHxHEIGHT, as 512x768")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    sys.exit(main())
