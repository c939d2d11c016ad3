"""Let torchvision import beside a torch build that lacks its compiled operators."""

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_LIBRARIES: list[torch.library.Library] = []  # a library's definitions live as long as it does


def declare_missing_operators() -> None:
    """Declare `torchvision::nms` and `::qnms` where torchvision brings no compiled ones.

    torchvision's import refers to both; open_clip imports torchvision for its picture transforms
    and calls neither. Does nothing where they exist. Call before `import open_clip`.
    """
    spec = importlib.util.find_spec("torchvision")
    if _LIBRARIES or spec is None or spec.origin is None or _compiled(Path(spec.origin).parent):
        return
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]
    _LIBRARIES.append(library)


def _compiled(folder: Path) -> bool:
    """Whether torchvision's own operators load, as they do beside the torch they were built for."""
    try:
        for binary in folder.glob("_C*.so"):
            torch.ops.load_library(str(binary))  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError):
        return False
    return hasattr(torch.ops.torchvision, "nms")
