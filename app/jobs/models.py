"""Model cards: what workers announce about the models they serve."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.jobs.record import Sampler

__all__ = ["FreeSizes", "LoraCard", "ModelCard"]


class FreeSizes(BaseModel):
    """Sizes beside the listed ones: sides in pixels, and the most pixels of a picture."""

    model_config = ConfigDict(frozen=True)

    multiple_of: int
    smallest_side: int
    largest_side: int
    most_pixels: int

    def allow(self, size: str) -> bool:
        """Whether a picture may have the size "WxH"."""
        width, height = (int(side) for side in size.split("x"))
        return width * height <= self.most_pixels and all(
            side % self.multiple_of == 0 and self.smallest_side <= side <= self.largest_side
            for side in (width, height)
        )


class LoraCard(BaseModel):
    """A LoRA that a model's worker has found; `fault` says why it does not fit the model."""

    model_config = ConfigDict(frozen=True)

    name: str
    sha256: str
    fault: str = ""


class ModelCard(BaseModel):
    """One model as the API needs to know it; the value of a field of the hash `MODELS`."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str = ""
    license: str = ""
    bundle_sha256: str
    fingerprint: str = ""  # bundle, batch shape, dtype, runtime, device class
    runtime: str = ""  # what executes the network, with its version
    dtype: str = "float32"  # that it computes in
    forward_ms: float | None = None  # of one round of calls, as measured where it was chosen
    difference: float | None = None  # largest, absolute, of an output to plain torch in float32
    exact: bool = True  # a picture's bytes do not depend on who is drawn beside it
    native_size: tuple[int, int]  # width, height in pixels
    sizes: tuple[str, ...]  # "WxH", native one first
    free_sizes: FreeSizes | None = None  # None: only those
    channels: Literal[3, 4] = 4  # 4: RGBA
    samplers: tuple[Sampler, ...] = ("ddpm", "ddim", "dpmpp_2m")
    default_sampler: Sampler
    default_steps: int
    default_guidance_scale: float
    default_guidance_interval: tuple[float, float] = (0.0, 1.0)
    default_background: str = "transparent"
    composes: bool = False  # paints the things that a prompt names one by one
    styles: tuple[str, ...] = ()  # that prompts may name
    max_steps: int  # the training length
    lcm_steps: int | None = None  # the most with lcm; None: it is not served
    context_length: int = 77  # tokens of a prompt that are read
    loras: tuple[LoraCard, ...] = ()  # that jobs may name
    is_default: bool = False
    created_at: float = 0.0  # unix seconds, of the bundle

    @property
    def native(self) -> str:
        """The native size as "WxH"."""
        return f"{self.native_size[0]}x{self.native_size[1]}"
