"""Colours by name: which one dominates a picture, and how to paint it another."""

import torch
from torch import Tensor

# Hue in turns (0 = red). Pink and brown are light and dark shades, so they get a value factor.
HUES: dict[str, tuple[float, float, float]] = {  # name: (hue, saturation factor, value factor)
    "red": (0.0, 1.15, 1.0),
    "orange": (0.08, 1.2, 1.0),
    "yellow": (0.145, 1.1, 1.05),
    "green": (0.36, 1.0, 0.9),
    "teal": (0.48, 1.0, 0.9),
    "blue": (0.6, 1.1, 1.0),
    "purple": (0.77, 1.0, 0.9),
    "pink": (0.92, 0.6, 1.1),
    "brown": (0.07, 0.85, 0.6),
}

# What has no hue: the values that black and full light of a drawing become.
GREYS: dict[str, tuple[float, float]] = {
    "white": (0.87, 1.0),
    "gray": (0.36, 0.8),
    "black": (0.0, 0.28),
}
COLOURS = (*HUES, *GREYS)


def to_hsv(rgb: Tensor) -> Tensor:
    """`[..., 3, H, W]` RGB in [0, 1] → hue (turns), saturation, value, all in [0, 1]."""
    value, index = rgb.max(-3)
    low = rgb.amin(-3)
    spread = (value - low).clamp(min=1e-6)
    r, g, b = rgb.unbind(-3)
    sector = torch.stack([(g - b) / spread, 2 + (b - r) / spread, 4 + (r - g) / spread], -3)
    hue = (sector.gather(-3, index.unsqueeze(-3)).squeeze(-3) / 6) % 1
    return torch.stack([hue, (value - low) / value.clamp(min=1e-6), value], -3)


def to_rgb(hsv: Tensor) -> Tensor:
    """The inverse of `to_hsv`."""
    hue, saturation, value = hsv.unbind(-3)
    offsets = torch.tensor([5.0, 3.0, 1.0], device=hsv.device).reshape(3, 1, 1)
    k = (offsets + hue.unsqueeze(-3) * 6) % 6
    tint = torch.minimum(k, 4 - k).clamp(0, 1)
    return value.unsqueeze(-3) * (1 - saturation.unsqueeze(-3) * tint)


def straight(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Premultiplied `[4, H, W]` in [0, 1] → colour `[3, H, W]` and alpha `[1, H, W]`."""
    alpha = picture[3:]
    return (picture[:3] / alpha.clamp(min=1e-4)).clamp(0, 1), alpha


def dominant_hue(picture: Tensor) -> tuple[float, float]:
    """The commonest hue (turns) and its share of the opaque pixels; share 0 where there is none."""
    colour, alpha = straight(picture)
    hue, saturation, value = to_hsv(colour).unbind(0)
    opaque = alpha[0] > 0.5
    vivid = opaque & (saturation > 0.25) & (value > 0.2)
    if not vivid.any():
        return 0.0, 0.0
    bins = torch.bincount((hue[vivid] * 24).long().clamp(max=23), minlength=24).float()
    near = bins + bins.roll(1) + bins.roll(-1)
    best = int(near.argmax())
    centre = (best + 0.5) / 24
    around = (hue[vivid] - centre + 0.5) % 1 - 0.5
    mean = float(around[around.abs() < 1 / 16].mean())
    return (centre + mean) % 1, float(near[best] / opaque.sum())


def colour_word(picture: Tensor) -> str | None:
    """The word for a picture's dominant colour, or None where no colour dominates."""
    colour, alpha = straight(picture)
    opaque = alpha[0] > 0.5
    if not opaque.any():
        return None
    hue, saturation, value = (plane[opaque] for plane in to_hsv(colour).unbind(0))
    grey = saturation < 0.18
    for word, mask in (("white", value > 0.85), ("gray", value > 0.3), ("black", value <= 0.3)):
        if (grey & mask).float().mean() > 0.6:
            return word
    best, share = dominant_hue(picture)
    if share < 0.5:
        return None
    near = ((hue - best + 0.5) % 1 - 0.5).abs() < 1 / 16
    return _hue_word(best, float(saturation[near].mean()), float(value[near].mean()))


def _hue_word(hue: float, saturation: float, value: float) -> str | None:
    if value < 0.25:
        return "black"
    if 0.02 < hue < 0.11 and value < 0.6:
        return "brown"
    if (hue > 0.86 or hue < 0.03) and saturation < 0.55 and value > 0.7:
        return "pink"
    ends = ((0.035, "red"), (0.115, "orange"), (0.19, "yellow"), (0.43, "green"), (0.53, "teal"))
    for end, word in (*ends, (0.7, "blue"), (0.84, "purple"), (0.955, "pink"), (1.01, "red")):
        if hue < end:
            return word
    return None


def recolour(picture: Tensor, word: str) -> Tensor:
    """Turn the dominant hue of a premultiplied `[4, H, W]` picture in [0, 1] into `word`'s.

    Other hues turn along, or go where it goes grey; shading stays. Raises KeyError for a word that
    is not in `COLOURS`.
    """
    if word in GREYS:
        return _greyed(picture, *GREYS[word])
    target, saturation_factor, value_factor = HUES[word]
    best, _ = dominant_hue(picture)
    colour, alpha = straight(picture)
    hue, saturation, value = to_hsv(colour).unbind(0)
    vivid = (saturation > 0.15).float()
    hue = (hue + target - best) % 1
    saturation = saturation * (1 + (saturation_factor - 1) * vivid)
    value = value * (1 + (value_factor - 1) * vivid)
    painted = to_rgb(torch.stack([hue, saturation.clamp(0, 1), value.clamp(0, 1)]))
    return torch.cat([painted * alpha, alpha])


def _greyed(picture: Tensor, darkest: float, lightest: float) -> Tensor:
    colour, alpha = straight(picture)
    value = darkest + (lightest - darkest) * colour.amax(0, keepdim=True)
    return torch.cat([value.expand(3, -1, -1) * alpha, alpha])
