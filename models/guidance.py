"""Classifier-free guidance (Ho & Salimans 2022), in part of the way (Kynkäänniemi et al. 2024)."""

from torch import Tensor


def acts(step: int, steps: int, interval: tuple[float, float]) -> bool:
    """Whether guidance acts in `step` (0 … steps - 1): its share of the way is in `interval`."""
    first, last = interval
    return first <= step / max(1, steps - 1) <= last


def guide(conditional: Tensor, unconditional: Tensor, guidance_scale: Tensor) -> Tensor:
    """ε = ε_uncond + w (ε_cond - ε_uncond), w per row; the same holds for v and x_0 predictions.

    Predictions: `[B, C, H, W]`; `guidance_scale`: `[B]`, 1 = the conditional prediction.
    """
    w = guidance_scale.reshape(-1, *([1] * (conditional.ndim - 1)))
    return (conditional - unconditional).mul_(w).add_(unconditional)
