"""Imported models in other number formats than float32."""

from pathlib import Path

import pytest
import torch

from models.description import describe_model
from models.errors import BundleError
from models.loading import load_model
from models.stable_diffusion import loading
from models.stable_diffusion.loading import import_folder
from tests.models.lora_files import save_kohya
from tests.models.tiny_diffusers import build_pipeline, change, reference
from tests.worker.test_engine import drain
from tests.worker.test_imported import row
from worker.catalogue import Catalogue
from worker.engine import Engine
from worker.runtimes.by_torch import imported_dtype, runtime_name
from worker.runtimes.choice import dtype_of

pytestmark = pytest.mark.filterwarnings("ignore")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("precision")


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def path(folder: Path, request: pytest.FixtureRequest) -> Path:
    into: Path = folder / "models" / request.param
    import_folder(build_pipeline(folder / request.param, request.param), into, request.param)
    return into


def test_a_gpu_has_16_bits_unless_the_operator_says_otherwise() -> None:
    assert imported_dtype("auto", CPU) is torch.float32
    assert imported_dtype("auto", GPU) is torch.float16
    assert imported_dtype("bfloat16", CPU) is torch.bfloat16
    assert imported_dtype("float32", GPU) is torch.float32


def test_the_picture_is_nearly_that_of_float32(path: Path) -> None:
    pictures = []
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(path, dtype=dtype)
        engine = Engine(model, 4, 1)
        engine.admit([row(model, "0", steps=8)])
        picture = model.develop(drain(engine)["0/0"], model.sizes[0])
        assert picture.dtype is torch.float32
        pictures.append(picture)
    gap = float((pictures[0] - pictures[1]).abs().mean())
    assert 0 < gap < 0.05


def test_neighbours_change_no_bit(path: Path) -> None:
    model = load_model(path, dtype=torch.bfloat16)
    rows = [row(model, f"{i}", steps=2 + i, seed=i, sampler="euler") for i in range(3)]
    engine = Engine(model, 4, 1)
    engine.admit(rows)
    together = drain(engine)
    for one in rows:
        alone = Engine(model, 4, 1)
        alone.admit([one])
        assert torch.equal(drain(alone)[f"{one.job}/0"], together[f"{one.job}/0"])


def test_the_runtime_is_named_by_the_format(path: Path) -> None:
    named = {
        dtype: runtime_name(load_model(path, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    }
    assert [one.split(" ")[0] for one in named.values()] == ["eager", "eager-bf16", "eager-fp16"]
    assert [*map(dtype_of, named.values())] == ["float32", "bfloat16", "float16"]


@pytest.mark.parametrize(
    ("family", "overflows", "kept"),
    [
        ("sdxl", True, torch.float32),
        ("sdxl", False, torch.float16),
        ("sd1", True, torch.float16),  # diffusers writes it everywhere, and heeds it for SDXL alone
    ],
)
def test_an_autoencoder_that_overflows_stays_in_float32(
    tmp_path: Path, family: str, overflows: bool, kept: torch.dtype
) -> None:
    source = build_pipeline(tmp_path / "source", family)  # type: ignore[arg-type]
    change(source / "vae/config.json", force_upcast=overflows)
    import_folder(source, tmp_path / "m", "mine")
    formats = {}
    for dtype in (torch.float16, torch.bfloat16):
        model = load_model(tmp_path / "m", dtype=dtype)
        formats[dtype] = (model.denoiser.dtype, model.autoencoder.dtype)  # type: ignore[attr-defined]
    assert formats == {
        torch.float16: (torch.float16, kept),
        torch.bfloat16: (torch.bfloat16, torch.bfloat16),
    }


def test_loras_are_in_the_format_of_their_layers(folder: Path, tmp_path: Path) -> None:
    source = build_pipeline(tmp_path / "source", "sd1")
    import_folder(source, tmp_path / "m", "mine")
    save_kohya(tmp_path / "kohya.safetensors", reference(source), seed=1)
    model = load_model(tmp_path / "m", dtype=torch.bfloat16)
    loras = model.lora_folder(tmp_path)
    assert loras is not None
    [known] = loras.scan()
    engine = Engine(model, 4, 1)
    engine.admit(
        [
            row(model, "with", adapters=loras.adapters([(known.name, 1.0, known.sha256)])),
            row(model, "without"),
        ]
    )
    found = drain(engine)
    assert not torch.allclose(found["with/0"], found["without/0"], atol=1e-2)


def test_half_the_bits_take_half_the_memory(path: Path, folder: Path) -> None:
    whole, half = (describe_model(path, itemsize=size).weights_bytes for size in (4, 2))
    assert whole == 2 * half
    catalogue = Catalogue(path, "", folder / "nothing", itemsize=2)
    catalogue.look()
    [entry] = catalogue.entries.values()
    assert entry.description is not None
    assert entry.description.weights_bytes == half


def test_too_little_memory_names_the_format(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "free_bytes", lambda device: 1_000_000)
    with pytest.raises(BundleError, match="MB of weights in bfloat16"):
        load_model(path, dtype=torch.bfloat16)
