"""Classifier-free guidance (Ho & Salimans 2022)."""

from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, guidance_scale: Tensor) -> Tensor:
    """ε = ε_uncond + w (ε_cond - ε_uncond), w per row; the same holds for v and x_0 predictions.

    Predictions: `[B, C, H, W]`; `guidance_scale`: `[B]`, 1 = the conditional prediction.
    """
    w = guidance_scale.reshape(-1, *([1] * (conditional.ndim - 1)))
    return unconditional + w * (conditional - unconditional)
