"""A CLIP that says which of many captions a picture shows."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.context import LOCAL_PREFIX, ClipReference, ContextEncoder, load_clip

Recall = dict[str, float]


class Judge:
    """Ranks captions for pictures.

    A judge that was trained apart from the bundle's CLIP is fair; the bundle's own flatters, for
    the denoiser was trained on its contexts.
    """

    def __init__(self, encoder: ContextEncoder, name: str) -> None:
        self.encoder, self.name = encoder, name

    @classmethod
    def from_folder(cls, folder: Path) -> "Judge":
        """The judge in a folder that `avocat train clip --out DIR` wrote.

        Raises:
            ContextError: the folder holds no CLIP.
        """
        inner = folder / "clip" if (folder / "clip").is_dir() else folder
        clip = load_clip(ClipReference(model=f"{LOCAL_PREFIX}{inner.name}"), inner.parent)
        return cls(ContextEncoder(clip), f"a CLIP trained apart ({folder.name})")

    @torch.inference_mode()
    def similarity(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosine of pictures `[P, C, H, W]` in [-1, 1], shown on white, and captions → `[P, Q]`."""
        unit = (pictures + 1) / 2
        rgb = unit[:, :3] + (1 - unit[:, 3:]) if unit.shape[1] == 4 else unit
        side = self.encoder.clip.image_size
        if rgb.shape[-1] != side:
            rgb = F.interpolate(rgb, size=(side, side), mode="bicubic", antialias=True)
        image = F.normalize(self.encoder.encode_pictures(rgb.clamp(0, 1)), dim=-1)
        return image @ self.encoder.encode(captions).T

    def places(
        self, pictures: Tensor, captions: Sequence[str], own: Sequence[Sequence[int]]
    ) -> Tensor:
        """Rank (0 = first) that each picture gives to its `own` captions, int64 `[P, K]`."""
        ranked = self.similarity(pictures, captions).argsort(dim=1, descending=True)
        place = ranked.argsort(dim=1)
        return place.gather(1, torch.tensor([list(indices) for indices in own]))

    def recall(self, pictures: Tensor, captions: Sequence[str], own: Sequence[int]) -> Recall:
        """How often a picture's own caption is the first, or among the first five, of all."""
        place = self.places(pictures, captions, [[i] for i in own])[:, 0]
        return {
            "r@1": float((place < 1).float().mean()),
            "r@5": float((place < 5).float().mean()),
            "captions": len(captions),
            "pictures": len(pictures),
        }
