"""`python -m models.evaluate BUNDLE`: measure a bundle's pictures and lay out sheets of them.

The judge is the bundle's own CLIP, which knows the contexts that the denoiser was trained on: its
figures flatter, and are for comparing one bundle of a CLIP with the next, not for boasting.
"""

import argparse
import json
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from models.bundle import Bundle, load_bundle
from models.errors import ModelError
from models.pictures import sheet, to_picture
from models.sampling import sample

SUBJECTS = """red apple, banana, strawberry, lemon, cherries, watermelon, grapes, pineapple,
carrot, mushroom, bread, pizza, hamburger, cheese wedge, doughnut, cookie, birthday
cake, ice cream, hot beverage, beer mug, cat face, dog face, mouse face, rabbit
face, fox, bear, panda, koala, tiger face, lion, cow face, pig face, frog, monkey
face, chicken, penguin, bird, owl, bat, horse face, bee, butterfly, snail, ladybug,
spider, fish, octopus, crab, dolphin, whale, turtle, snake, elephant, tulip,
sunflower, cherry blossom, cactus, palm tree, four leaf clover, maple leaf, sun,
crescent moon, star, cloud, rainbow, snowflake, fire, droplet, earth globe, volcano,
house, castle, tent, automobile, bus, bicycle, airplane, rocket, ship, train,
traffic light, alarm clock, umbrella, balloon, wrapped gift, trophy, basketball,
guitar, drum, camera, television, laptop, light bulb, book, key, hammer, scissors,
pencil, red heart, crown, ghost, robot, skull"""


def subjects() -> list[str]:
    """A hundred common things, as captions."""
    return [" ".join(name.split()) for name in SUBJECTS.split(",")][:100]


def paint(bundle: Bundle, prompts: list[str], seeds: list[int], steps: int | None = None) -> Tensor:
    """Pictures of `prompts` with the bundle's defaults, float32 `[B, C, H, W]` in [-1, 1]."""
    config = bundle.config
    shape = (config.channels, config.image_size, config.image_size)
    rows = []
    for start in tqdm(range(0, len(prompts), 16), desc="pictures", unit="batch"):
        part = slice(start, start + 16)
        rows.append(
            sample(
                bundle.denoiser,
                bundle.schedule,
                bundle.context.encode(prompts[part]),
                bundle.context.empty,
                seeds[part],
                shape,
                sampler=config.default_sampler,
                steps=steps or config.default_steps,
                guidance_scale=config.default_guidance_scale,
            )
        )
    return torch.cat(rows)


def recall(bundle: Bundle, pictures: Tensor, captions: list[str]) -> dict[str, float]:
    """How often a picture's own caption is the first, or among the first five, of all captions."""
    unit = (pictures + 1) / 2
    rgb = unit[:, :3] + (1 - unit[:, 3:]) if unit.shape[1] == 4 else unit
    size = bundle.context.clip.image_size
    if rgb.shape[-1] != size:
        rgb = F.interpolate(rgb, size=(size, size), mode="bicubic", antialias=True)
    with torch.inference_mode():
        image = F.normalize(bundle.context.encode_pictures(rgb.clamp(0, 1)), dim=-1)
    ranked = (image @ bundle.context.encode(captions).T).argsort(dim=1, descending=True)
    own = torch.arange(len(captions))[:, None]
    place = (ranked == own).float().argmax(dim=1)
    return {"r@1": float((place < 1).float().mean()), "r@5": float((place < 5).float().mean())}


def diversity(bundle: Bundle, prompts: list[str], count: int = 4) -> float:
    """Mean RMS distance between pictures of one prompt over seeds, as a share of the full range."""
    names = [prompt for prompt in prompts for _ in range(count)]
    x = paint(bundle, names, list(range(len(names))))
    x = x.reshape(len(prompts), count, *x.shape[1:])
    distances = [
        (x[:, i] - x[:, j]).square().mean((1, 2, 3)).sqrt() / 2
        for i in range(count)
        for j in range(i)
    ]
    return float(torch.stack(distances).mean())


def evaluate(bundle: Bundle, seed: int = 0) -> tuple[dict[str, Any], Tensor, list[str]]:
    """All figures, the pictures they were taken on, and those pictures' captions."""
    captions = subjects()
    started = time.monotonic()
    pictures = paint(bundle, captions, [seed + i for i in range(len(captions))])
    seconds = (time.monotonic() - started) / len(captions)
    figures = {
        "bundle_sha256": bundle.sha256,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "judge": "the bundle's own CLIP",
        "captions": len(captions),
        "seed": seed,
        "retrieval_among_100": recall(bundle, pictures, captions),
        "diversity_rms": diversity(bundle, captions[20:30]),
        "seconds_per_picture_in_16s": seconds,
    }
    return figures, pictures, captions


def main(arguments: list[str] | None = None) -> int:
    """Evaluate one bundle; writes `evaluation.json` into it and prints it."""
    parser = argparse.ArgumentParser(prog="avocat evaluate", description=__doc__)
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="also write 64 of the pictures to this PNG")
    args = parser.parse_args(arguments)
    try:
        bundle = load_bundle(args.bundle)
    except ModelError as fault:
        print(f"avocat evaluate: {fault}", file=sys.stderr)
        return 1
    figures, pictures, _ = evaluate(bundle, args.seed)
    (args.bundle / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    if args.sheet is not None:
        large = [_enlarge(bundle, row) for row in pictures[:64]]
        sheet([to_picture(row) for row in large], 8, 96).save(args.sheet)
    return 0


def _enlarge(bundle: Bundle, row: Tensor) -> Tensor:
    if bundle.upscaler is None:
        return row
    with torch.inference_mode():
        return bundle.upscaler(row[None], 2)[0]  # type: ignore[no-any-return]


if __name__ == "__main__":
    raise SystemExit(main())
