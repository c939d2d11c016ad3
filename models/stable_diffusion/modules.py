"""Weights into the networks of diffusers and transformers, every tensor accounted for."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from models.errors import BundleError
from models.stable_diffusion.folder import Component, Folder
from models.stable_diffusion.mistaken import mistaken_for
from models.stable_diffusion.single_file import PREFIXES, converted
from models.torchvision_ops import declare_missing_operators

__all__ = [
    "build",
    "check_finite",
    "check_shapes",
    "load_weights",
    "read_metadata",
    "read_shapes",
    "weight_bytes",
]

# Names that older files have for the same weights, as (old, new) ends of a name.
_RENAMED: Final[Mapping[str, str]] = {
    ".query.weight": ".to_q.weight",
    ".query.bias": ".to_q.bias",
    ".key.weight": ".to_k.weight",
    ".key.bias": ".to_k.bias",
    ".value.weight": ".to_v.weight",
    ".value.bias": ".to_v.bias",
    ".proj_attn.weight": ".to_out.0.weight",
    ".proj_attn.bias": ".to_out.0.bias",
}
_SERVED: Final[Mapping[str, str]] = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_IDLE = "position_ids"  # a counter that older files carry; it is computed


def build(folder: Folder, name: str) -> nn.Module:
    """The network of a component on the meta device: shapes, and no memory.

    Raises:
        BundleError: its config.json describes no such network.
    """
    config = dict(folder.config(name))
    served = _SERVED.get(name)
    kind = str(config.get("_class_name", served)).removeprefix("Flax")
    if served is not None and kind != served:
        raise BundleError(f"{name} is of the kind {kind}; {served} is served")
    try:
        with torch.device("meta"):
            return _CLASSES[name.removesuffix("_2")](config, name.endswith("_2"))
    except ImportError as fault:
        raise BundleError(
            f"imported models need another package ({fault.name}): pip install 'avocat[sd]'"
        ) from None
    except Exception as fault:  # the libraries raise many kinds; all mean that they refuse it
        raise BundleError(f"{name}/config.json describes no network: {fault}") from None


def _unet(config: dict[str, Any], second: bool) -> nn.Module:
    declare_missing_operators()
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(config)  # type: ignore[no-any-return, no-untyped-call]


def _autoencoder(config: dict[str, Any], second: bool) -> nn.Module:
    declare_missing_operators()
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(config)  # type: ignore[no-any-return, no-untyped-call]


def _text_encoder(config: dict[str, Any], second: bool) -> nn.Module:
    declare_missing_operators()
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if second else CLIPTextModel
    return kind(CLIPTextConfig.from_dict(config))


_CLASSES: Final[Mapping[str, Callable[[dict[str, Any], bool], nn.Module]]] = {
    "unet": _unet,
    "vae": _autoencoder,
    "text_encoder": _text_encoder,
}


def check_shapes(module: nn.Module, name: str, component: Component) -> None:
    """Hold the headers of the files against the network, without reading a weight.

    Raises:
        BundleError: a file is damaged, a weight is missing, too many, or of another shape.
    """
    expected = {key: tuple(one.shape) for key, one in module.state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    for key, shape in _shapes(name, component).items():
        if (known := _known_as(key, expected)) is not None:
            found[known] = shape
    for key, shape in expected.items():
        if key not in found:
            raise BundleError(f"{name}: the weight {key} is missing from {_names(component)}")
        if not _fits(found[key], shape):
            raise BundleError(
                f"{name}: {key} is {_sides(found[key])} in {_names(component)}, and "
                f"{_sides(shape)} by its config.json"
            )


def check_finite(module: nn.Module, name: str, component: Component) -> None:
    """Read each weight that the network has, one after the other.

    Raises:
        BundleError: one holds NaN or an infinite number, with which no picture could be computed.
    """
    expected = module.state_dict()
    for key, weight in _weights(name, component):
        if _known_as(key, expected) is None:
            continue
        numbers = weight.float() if weight.itemsize == 1 else weight  # torch cannot search float8
        # Both are NaN if one number is; a tenth of the time of isfinite.
        least, most = numbers.aminmax()
        if not (least.isfinite() and most.isfinite()):
            raise BundleError(
                f"{name}: {key} in {_names(component)} holds numbers that are NaN or infinite; "
                "fetch the file again, or take another"
            )


def weight_bytes(name: str, component: Component, dtype: torch.dtype) -> list[int]:
    """Memory that each of a component's weights takes."""
    shapes = _shapes(name, component).values()
    return [dtype.itemsize * torch.Size(shape).numel() for shape in shapes]


def load_weights(
    module: nn.Module, name: str, component: Component, device: torch.device, dtype: torch.dtype
) -> None:
    """Fill a network from the meta device with its weights as `dtype` on `device`, frozen.

    Raises:
        BundleError: as `check_shapes`.
    """
    check_shapes(module, name, component)
    expected = module.state_dict()
    state: dict[str, Tensor] = {}
    for key, weight in _weights(name, component):
        if (known := _known_as(key, expected)) is not None:
            # A copy: what is mapped changes with the file, and ends the process where that is cut.
            state[known] = weight.to(device, dtype, copy=True).reshape(expected[known].shape)
    module.load_state_dict(state, assign=True)
    for key, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            _count_positions(module, key, buffer, device)
    module.eval().requires_grad_(False)


def _count_positions(module: nn.Module, key: str, buffer: Tensor, device: torch.device) -> None:
    """Fill in the one buffer that no file needs to carry."""
    if not key.endswith(_IDLE):
        raise BundleError(f"the buffer {key} is in no file, and its value is not known")
    owner = module.get_submodule(key.removesuffix(_IDLE).rstrip("."))
    counted = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
    owner.register_buffer(_IDLE, counted, persistent=False)


def read_shapes(file: Path, name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights in a file by their names; its header alone is read.

    Raises:
        BundleError: it is damaged, may not be read, or is no such file; says so of `name`.
    """
    try:
        file.open("rb").close()  # safetensors says of whatever it may not open that it is not there
    except OSError as fault:
        raise BundleError(f"{name} cannot be read: {fault.strerror}") from None
    try:
        with safe_open(file, "pt") as tensors:
            keys = tensors.keys()
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in keys}
    except (SafetensorError, OSError) as fault:
        what = mistaken_for(file) or f"damaged or truncated: {fault}"
        raise BundleError(f"{name} is {what}") from None


def read_metadata(file: Path) -> dict[str, str]:
    """What a file that can be read says of itself."""
    with safe_open(file, "pt") as tensors:
        return tensors.metadata() or {}


def _shapes(name: str, component: Component) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for file in component.weights:
        shown = file.name if component.generation else f"{name}/{file.name}"
        found |= read_shapes(file, shown)
    if component.generation is None:
        return found
    prefix = PREFIXES[component.generation][name]
    with torch.device("meta"):
        tensors = {key: torch.empty(one) for key, one in found.items() if key.startswith(prefix)}
    renamed = converted(name, component.generation, component.config, tensors)
    return {key: tuple(one.shape) for key, one in renamed.items()}


def _weights(name: str, component: Component) -> Iterator[tuple[str, Tensor]]:
    """Weights one after the other, by the names in a folder's files."""
    for file in component.weights:
        with safe_open(file, "pt") as tensors:
            if component.generation is None:
                yield from ((key, tensors.get_tensor(key)) for key in tensors.keys())  # noqa: SIM118 - not a mapping
                continue
            prefix = PREFIXES[component.generation][name]
            own = [key for key in tensors.keys() if key.startswith(prefix)]  # noqa: SIM118
            given = {key: tensors.get_tensor(key) for key in own}
            yield from converted(name, component.generation, component.config, given).items()


def _known_as(key: str, expected: Mapping[str, object]) -> str | None:
    """The name by which the network knows a file's weight; None for what it has no use for."""
    for old, new in _RENAMED.items():
        if key.endswith(old) and key not in expected:
            key = key.removesuffix(old) + new
    # Releases of transformers differ in whether the text tower is a part of the text model.
    for known in (key, key.removeprefix("text_model."), f"text_model.{key}"):
        if known in expected:
            return known
    return None


def _fits(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Equal, but for 1x1 convolutions, which are linear layers in newer networks."""
    return found == shape or (found == (*shape, 1, 1))


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _names(component: Component) -> str:
    return ", ".join(file.name for file in component.weights)
