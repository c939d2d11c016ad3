"""Between the network's tensors and pictures on disk."""

import torch
from PIL import Image
from torch import Tensor


def to_picture(x: Tensor) -> Image.Image:
    """`[4, H, W]` premultiplied RGBA or `[3, H, W]` RGB in [-1, 1] → PIL, straight alpha.

    Values outside the range are clipped; colour under alpha 0 is black.

    Raises:
        ValueError: not 3 or 4 channels.
    """
    if x.ndim != 3 or x.shape[0] not in (3, 4):
        raise ValueError(f"picture tensor is {tuple(x.shape)}; it must be [3 or 4, H, W]")
    unit = ((x.detach().float().cpu() + 1) / 2).clamp(0, 1)
    if x.shape[0] == 4:
        alpha = (unit[3:] * 255).round() / 255
        colour = torch.where(alpha > 0, unit[:3] / alpha.clamp(min=1 / 255), torch.zeros(()))
        unit = torch.cat([colour.clamp(0, 1), alpha])
    pixels = (unit * 255).round().byte().permute(1, 2, 0).contiguous()
    return Image.frombytes(
        "RGBA" if x.shape[0] == 4 else "RGB", (x.shape[2], x.shape[1]), pixels.numpy().tobytes()
    )


def sheet(pictures: list[Image.Image], columns: int, cell: int | None = None) -> Image.Image:
    """Lay pictures out on white, row by row; `cell` is the side of one in pixels."""
    side = cell or max(max(p.size) for p in pictures)
    rows = -(-len(pictures) // columns)
    out = Image.new("RGB", (columns * side, rows * side), "white")
    for i, picture in enumerate(pictures):
        shown = picture.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
        out.paste(shown, ((i % columns) * side, (i // columns) * side), shown)
    return out
