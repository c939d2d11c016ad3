"""Classifier-free guidance (Ho & Salimans 2022)."""

from torch import Tensor


def guide(eps_cond: Tensor, eps_uncond: Tensor, guidance_scale: Tensor) -> Tensor:
    """ε = ε_uncond + w (ε_cond - ε_uncond), w per row.

    `eps_*`: `[B, C, H, W]`; `guidance_scale`: `[B]`, 1 = the conditional prediction.
    """
    w = guidance_scale.reshape(-1, *([1] * (eps_cond.ndim - 1)))
    return eps_uncond + w * (eps_cond - eps_uncond)
