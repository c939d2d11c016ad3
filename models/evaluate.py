"""Measure a bundle's pictures, write evaluation.json into it, and lay out a sheet of them.

The judge is a CLIP. Name one that was trained apart with --judge; without it the bundle's own is
used, which knows the contexts that the denoiser was trained on and so flatters.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from models import clip_figures, figures
from models.bundle import Bundle, load_bundle
from models.errors import ModelError
from models.judge import Judge
from models.layout import Scene, lay
from models.pictures import sheet, to_picture
from models.sampling import layer_seed, sample
from models.train.arguments import guidance, positive, seed
from models.train.data import Captions, PictureSet, load_pictures
from models.train.heldout import held_out_prompts

_AT_ONCE = 16


# A prompt and the styles that the model knows → its things, to be painted one by one; None where it
# is painted as it stands.
ReadScene = Callable[[str, Collection[str]], Scene | None]


class Painter:
    """Paints prompts with a bundle's defaults, as the service does in native size.

    `read`: how prompts of several things are taken apart; None: all are painted whole.
    """

    def __init__(
        self,
        bundle: Bundle,
        steps: int | None = None,
        guidance: float | None = None,
        read: ReadScene | None = None,
    ) -> None:
        self.bundle = bundle
        self.read = read
        self.steps = steps or bundle.config.default_steps
        self.guidance = bundle.config.default_guidance_scale if guidance is None else guidance

    def __call__(self, prompts: Sequence[str], seed: int) -> Tensor:
        """Pictures float32 `[B, C, H, W]` in [-1, 1]; the i-th with `seed + i`."""
        styles = self.bundle.config.styles
        scenes = [self.read(one, styles) if self.read is not None else None for one in prompts]
        asked = [
            (text, layer_seed(seed + i, layer))
            for i, (prompt, scene) in enumerate(zip(prompts, scenes, strict=True))
            for layer, text in enumerate([prompt] if scene is None else scene.layers)
        ]
        rows = iter(self._rows(asked))
        return torch.stack(
            [
                next(rows) if scene is None else lay(scene, [next(rows) for _ in scene.layers])
                for scene in scenes
            ]
        )

    def _rows(self, asked: Sequence[tuple[str, int]]) -> Tensor:
        """A picture for each prompt and its seed."""
        config = self.bundle.config
        shape = (config.channels, config.image_size, config.image_size)
        rows = []
        for start in tqdm(range(0, len(asked), _AT_ONCE), desc="pictures", unit="batch"):
            texts, seeds = zip(*asked[start : start + _AT_ONCE], strict=True)
            rows.append(
                sample(
                    self.bundle.denoiser,
                    self.bundle.schedule,
                    self.bundle.context.encode(texts),
                    self.bundle.context.empty,
                    seeds,
                    shape,
                    sampler=config.default_sampler,
                    steps=self.steps,
                    guidance_scale=self.guidance,
                    guidance_interval=config.default_guidance_interval,
                    parameterisation=config.parameterisation,
                )
            )
        return torch.cat(rows)


def evaluate(
    paint: Painter, judge: Judge, data: Path | None, seed: int = 0
) -> tuple[dict[str, Any], Tensor]:
    """All figures, and the pictures of the hundred subjects.

    `data` is the folder that the bundle was trained on: its pictures are needed for diversity and
    copies, its `heldout.txt` and held-out tar, where there are any, for unseen combinations.
    """
    # Before hours of painting: what is damaged, or a folder without pictures, ends it here.
    given = None if data is None else _read(data, paint.bundle.config.image_size)
    captions = figures.subjects()
    started = time.monotonic()
    pictures = paint(captions, seed)
    seconds = (time.monotonic() - started) / len(captions)
    measured: dict[str, Any] = {
        "bundle_sha256": paint.bundle.sha256,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "judge": judge.name,
        "seed": seed,
        "steps": paint.steps,
        "guidance_scale": paint.guidance,
        "guidance_interval": paint.bundle.config.default_guidance_interval,
        "compose": paint.read is not None,
        "seconds_per_picture_in_16s": seconds,
        "subjects": judge.recall(pictures, captions, range(len(captions))),
        "scenes": figures.composed(paint, judge, figures.scenes(), seed),
    }
    if given is not None:
        measured |= _unseen(paint, judge, given, seed, pictures)
    return measured, pictures


@dataclass(frozen=True)
class _Given:
    """What lies in a training folder: pictures, held-out prompts, and tars with their captions."""

    known: PictureSet
    prompts: list[str]
    heldout: dict[Path, list[Captions]]


def _read(data: Path, size: int) -> _Given:
    tars = sorted(data.glob("heldout-*.tar"))
    heldout = {tar: load_pictures(tar, size).captions for tar in tars}
    return _Given(load_pictures(data, size), held_out_prompts(data / "heldout.txt"), heldout)


def _unseen(
    paint: Painter, judge: Judge, given: _Given, seed: int, subjects: Tensor
) -> dict[str, Any]:
    """What needs the training pictures; copies are sought among `subjects` if nothing else was
    held out to be painted."""
    known, prompts = given.known, given.prompts
    measured: dict[str, Any] = {
        "colours": figures.coloured(paint, figures.listed(figures.COLOURED), seed),
        "diversity": figures.diversity(paint, figures.subjects()[20:30], known, seed),
    }
    painted: list[Tensor] = []

    def paint_and_keep(asked: Sequence[str], first: int) -> Tensor:
        painted.append(paint(asked, first))
        return painted[-1]

    if any(figures.parts(prompt) for prompt in prompts):
        measured["composed"] = figures.composed(paint_and_keep, judge, prompts, seed)
    for tar, unseen in given.heldout.items():
        measured["unseen_styles"] = figures.styled(paint_and_keep, judge, unseen, seed)
        measured |= _on_drawings(Judge(paint.bundle.context, "the bundle's own"), judge, tar)
    measured["copies"] = figures.copies(torch.cat(painted or [subjects])[:200], known)
    return measured


def _on_drawings(own: Judge, judge: Judge, heldout: Path) -> dict[str, Any]:
    """What the bundle's CLIP and the judge make of held-out drawings by people.

    The judge's own figures are the most that painted pictures could reach with it.
    """
    seen_by_judge = load_pictures(heldout, judge.encoder.clip.image_size, progress=False)
    seen_by_own = load_pictures(heldout, own.encoder.clip.image_size, progress=False)
    return {
        "judge_on_drawings": {
            "naming": clip_figures.naming(judge, seen_by_judge),
            "composed": clip_figures.both_found(judge, seen_by_judge),
            "order": clip_figures.order_pairs(judge, seen_by_judge),
        },
        "clip": {
            "naming": clip_figures.naming(own, seen_by_own),
            "retrieval": clip_figures.retrieval(own, seen_by_own),
            "synonyms": clip_figures.synonyms(own.encoder),
            "order": clip_figures.order_pairs(own, seen_by_own),
        },
    }


def main(arguments: list[str] | None = None, read: ReadScene | None = None) -> int:
    """Evaluate one bundle; writes `evaluation.json` into it and prints it.

    `read` takes prompts of several things apart, for bundles that compose.
    """
    args = _parser().parse_args(arguments)
    name = f"evaluation-{args.preset}.json" if args.preset else "evaluation.json"
    try:
        bundle = load_bundle(args.bundle, preset=args.preset)
        _check_writable(args.bundle / name)
        own = Judge(bundle.context, "the bundle's own CLIP")
        judge = own if args.judge is None else Judge.from_folder(args.judge)
        composes = bundle.config.composes if args.compose is None else args.compose
        paint = Painter(bundle, args.steps, args.guidance_scale, read if composes else None)
        measured, pictures = evaluate(paint, judge, args.data, args.seed)
        if args.preset:
            measured["against_default"] = against_default(measured, args.bundle / "evaluation.json")
        text = json.dumps(measured, indent=2)
        print(text)
        (args.bundle / name).write_text(text + "\n")
        if args.sheet is not None:
            _show(bundle, pictures[:64], args.sheet)
        if args.scenes is not None:
            _show(bundle, paint(figures.listed(figures.SHOWN), args.seed), args.scenes)
    except (ModelError, OSError) as fault:
        print(f"avocat evaluate: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; figures are written when all are measured", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="avocat evaluate", description=__doc__)
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument("--preset", default="", help="turbo: the bundle's network of few steps")
    parser.add_argument("--judge", type=Path, help="folder of a CLIP trained apart")
    parser.add_argument("--data", type=Path, help="training folder, for unseen combinations")
    parser.add_argument(
        "--compose",
        action=argparse.BooleanOptionalAction,
        help="paint the things that a prompt names one by one; default: the bundle's",
    )
    parser.add_argument("--steps", type=positive, help="default: the bundle's")
    parser.add_argument("--guidance-scale", type=guidance, help="default: the bundle's")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--sheet", type=_picture, help="also write 64 of the pictures to this PNG")
    parser.add_argument(
        "--scenes", type=_picture, help="paint scenes of several things into this one"
    )
    return parser


def _picture(text: str) -> Path:
    """A file that a sheet can be written to: seen to before an hour is spent on painting."""
    file = Path(text)
    if not file.parent.is_dir() or file.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in a folder that is there")
    if Image.registered_extensions().get(file.suffix.lower()) not in Image.SAVE:
        raise argparse.ArgumentTypeError(f"{text!r} should end in .png, or as another picture")
    return file


def _check_writable(file: Path) -> None:
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ModelError(f"{str(file)!r} cannot be written: the figures are kept there")


def against_default(measured: dict[str, Any], default: Path) -> float | None:
    """R@1 on subjects as a share of what the bundle's own settings had with the same judge."""
    try:
        own = json.loads(default.read_text("utf-8"))
        alike = (own["judge"], own["seed"]) == (measured["judge"], measured["seed"])
        found = measured["subjects"]["r@1"] / own["subjects"]["r@1"] if alike else None
    except (OSError, ValueError, KeyError, ZeroDivisionError):
        return None
    return found


def _show(bundle: Bundle, pictures: Tensor, file: Path) -> None:
    large = [_enlarge(bundle, row) for row in pictures]
    sheet([to_picture(row) for row in large], 8, 96).save(file)


def _enlarge(bundle: Bundle, row: Tensor) -> Tensor:
    if bundle.upscaler is None:
        return row
    with torch.inference_mode():
        return bundle.upscaler(row[None], 2)[0]  # type: ignore[no-any-return]


if __name__ == "__main__":
    raise SystemExit(main())
