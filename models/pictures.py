"""Between the network's tensors and pictures on disk."""

import torch
from PIL import Image
from torch import Tensor

_LANCZOS, _BOX = Image.Resampling.LANCZOS, Image.Resampling.BOX


def fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture as RGBA in `size`: as large as fits, in its own proportions, centred on nothing."""
    return _centred(_resized(picture.convert("RGBA"), size, _LANCZOS), Image.new("RGBA", size))


def fitted_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A greyscale mask in `size` by the rule of `fitted`; what it does not reach is kept."""
    return _centred(_resized(mask.convert("L"), size, _BOX), Image.new("L", size))


def _resized(
    picture: Image.Image, size: tuple[int, int], resampling: Image.Resampling
) -> Image.Image:
    scale = min(size[0] / picture.width, size[1] / picture.height)
    sides = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture if sides == picture.size else picture.resize(sides, resampling)


def _centred(picture: Image.Image, canvas: Image.Image) -> Image.Image:
    if picture.size == canvas.size:
        return picture
    left, top = (canvas.width - picture.width) // 2, (canvas.height - picture.height) // 2
    canvas.paste(picture, (left, top))
    return canvas


def to_tensor(picture: Image.Image, channels: int) -> Tensor:
    """A picture as `[channels, H, W]` in [-1, 1]: 4 = premultiplied RGBA, 3 = RGB shown on white.

    What `to_picture` makes of the former is the picture again, but for colours that alpha rounds.

    Raises:
        ValueError: not 3 or 4 channels.
    """
    if channels not in (3, 4):
        raise ValueError(f"a picture has 3 or 4 channels, not {channels!r}")
    straight = picture.convert("RGBA")
    pixels = torch.frombuffer(bytearray(straight.tobytes()), dtype=torch.uint8)
    unit = pixels.reshape(straight.height, straight.width, 4).permute(2, 0, 1).float() / 255
    colour, alpha = unit[:3] * unit[3:], unit[3:]
    shown = torch.cat([colour, alpha]) if channels == 4 else colour + (1 - alpha)
    return (shown * 2 - 1).contiguous()


def to_mask(mask: Image.Image) -> Tensor:
    """A greyscale mask as bool `[1, H, W]`, true where it is at least half white."""
    pixels = torch.frombuffer(bytearray(mask.convert("L").tobytes()), dtype=torch.uint8)
    return pixels.reshape(1, mask.height, mask.width) >= 128


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
