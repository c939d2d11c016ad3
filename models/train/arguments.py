"""The options of `avocat train`."""

import argparse
import math
from pathlib import Path

import torch

UNFINISHED = 75  # the exit code of a call that stopped before its run was done (sysexits.h)
PARTS = {
    "clip": "the CLIP that turns prompts into contexts",
    "denoiser": "the network that predicts the noise",
    "upscaler": "the single-pass x2 network behind the larger sizes",
    "distil": "the preset turbo: the denoiser again, in few steps of one forward each",
    "judge": "a CLIP of another form, apart from the bundle, for `avocat evaluate --judge`",
}
# Order and composition are learned from scenes alone, and a judge is to find both things of one.
_SCENES = {"clip": 0.3, "judge": 0.3}


def parser() -> argparse.ArgumentParser:
    """The command line, a subcommand per part."""
    whole = argparse.ArgumentParser(
        prog="avocat train",
        description="Train a bundle on your own captioned pictures: clip first, then denoiser, "
        "then upscaler, all into the same --out folder. A run that is killed goes on where it was.",
    )
    parts = whole.add_subparsers(dest="part", required=True)
    for name, text in PARTS.items():
        part = parts.add_parser(name, help=text, description=f"Train {text}.")
        _of_the_run(part)
        _of_the_pictures(part, name)
        _of_the_network(part, name)
    return whole


def _of_the_run(part: argparse.ArgumentParser) -> None:
    part.add_argument("--data", type=Path, required=True, help="folder or shard-*.tar folder")
    part.add_argument("--out", type=Path, required=True, help="the bundle folder to write")
    length = part.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=positive, help="length of the run in steps")
    length.add_argument("--minutes", type=_minutes, help="length of the run in minutes")
    part.add_argument(
        "--call-minutes",
        type=_minutes,
        help=f"stop this call after so long, with exit code {UNFINISHED}; the next one goes on",
    )
    part.add_argument("--batch-size", type=positive, help="pictures per step and process")
    part.add_argument(
        "--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu"
    )
    part.add_argument("--threads", type=_count, default=0, help="CPU threads (0: all cores)")
    part.add_argument(
        "--loaders", type=_count, default=0, help="processes that draw batches ahead (for a GPU)"
    )
    part.add_argument(
        "--echo",
        type=positive,
        default=1,
        help="updates per batch drawn, each with fresh noise (where a GPU outruns the loaders)",
    )


def _of_the_pictures(part: argparse.ArgumentParser, name: str) -> None:
    part.add_argument("--heldout", type=Path, help="heldout.txt: compositions never to show")
    part.add_argument("--recolour", type=_share, default=0.12, help="share of recoloured pictures")
    part.add_argument(
        "--scenes",
        type=_share,
        default=_SCENES.get(name, 0.1),
        help="share of scenes of two or three pictures",
    )
    part.add_argument(
        "--favour", nargs="+", default=[], metavar="STYLE", help="styles drawn ten times as often"
    )
    part.add_argument("--seed", type=seed, default=1 if name == "judge" else 0)


def _of_the_network(part: argparse.ArgumentParser, name: str) -> None:
    if name in ("clip", "judge", "denoiser"):
        part.add_argument("--image-size", type=positive, default=48, help="side in pixels")
    if name == "clip":
        part.add_argument(
            "--width", type=_width_of_clip, default=192, help="of the text tower and contexts"
        )
        part.add_argument(
            "--teacher", default="auto", help="sentence-transformers folder, auto or none"
        )
    if name == "distil":
        part.add_argument("--turbo-steps", type=positive, default=6, help="steps of the preset")
        part.add_argument(
            "--guidance-share",
            type=_share,
            default=0.5,
            help="share of the run that distils guidance; the rest distils steps",
        )
        part.add_argument("--guidance-scale", type=guidance, help="default: the bundle's")
        part.add_argument("--learning-rate", type=_rate, default=3e-4)
    if name == "denoiser":
        part.add_argument("--width", type=int, default=64, help="channels of the first level")
        part.add_argument("--patch", type=int, default=3, help="pixel-unshuffle factor")
        part.add_argument("--multipliers", type=int, nargs="+", default=[1, 2, 4])
        part.add_argument("--blocks", type=int, default=1, help="residual blocks per level")
        part.add_argument("--parameterisation", choices=("eps", "v", "denoised"), default="v")
        part.add_argument(
            "--schedule", choices=("cosine", "linear", "scaled_linear"), default="cosine"
        )
        part.add_argument(
            "--zero-terminal-snr", action="store_true", help="end the schedule in pure noise"
        )
        part.add_argument("--learning-rate", type=_rate, default=1e-3)
        part.add_argument("--compile", action="store_true", help="train through torch.compile")
        part.add_argument("--clip", default="local-dir:clip", help="open_clip model name")
        part.add_argument("--pretrained", help="open_clip pretrained tag or weight file")
        part.add_argument("--name", default="custom", help="the model's name in requests")
        part.add_argument(
            "--composes",
            action="store_true",
            help="serve it so that things which a prompt names are painted one by one; for "
            "drawings of single things on nothing",
        )


def positive(text: str) -> int:
    """A whole number from 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} should be at least 1")
    return number


def seed(text: str) -> int:
    """A seed: steps are counted up from a million times it, and generators end at 2^63."""
    if not 0 <= (number := int(text)) < 2**32:
        raise argparse.ArgumentTypeError(f"{text} should be from 0 to {2**32 - 1}")
    return number


def guidance(text: str) -> float:
    """A guidance scale, as requests may have it."""
    if not 0 <= (number := float(text)) <= 20:
        raise argparse.ArgumentTypeError(f"{text} should be between 0 and 20")
    return number


def _count(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} should be at least 0")
    return number


def _minutes(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} should be above 0")
    return number


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return value


def _rate(text: str) -> float:
    if not 0 < (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} should be above 0 and at most 1")
    return number


def _device(text: str) -> str:
    cards = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    usable = ["cpu", *(["cuda"] if cards else []), *cards]
    if text not in usable:
        raise argparse.ArgumentTypeError(f"{text!r} is not there; there is {', '.join(usable)}")
    return text


def _width_of_clip(text: str) -> int:
    if (number := int(text)) % 32 or not 32 <= number <= 1024:
        raise argparse.ArgumentTypeError(f"{text} should be a multiple of 32 from 32 to 1024")
    return number
