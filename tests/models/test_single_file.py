"""Single files in the original layout: the same pictures as the folder, and clear refusals."""

import errno
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.description import describe_model
from models.errors import BundleError
from models.loading import load_model
from models.stable_diffusion.__main__ import main
from models.stable_diffusion.loading import import_folder
from models.stable_diffusion.settle import Wishes
from models.stable_diffusion.single_file import configurations, generation_of
from tests.models.original_layout import ATTENDS, build_both, diffusers, unet_weights
from tests.worker.test_imported import drawn, row

pytestmark = pytest.mark.filterwarnings("ignore")
PREDICTS: dict[str, Any] = {"sd1": None, "sd2": "v", "sdxl": None}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    at = tmp_path_factory.mktemp("single")
    return {generation: build_both(at / generation, generation) for generation in PREDICTS}


@pytest.fixture
def file(built: dict[str, tuple[Path, Path]], tmp_path: Path) -> Path:
    found = tmp_path / "one.safetensors"
    found.write_bytes(built["sd1"][1].read_bytes())
    return found


@pytest.mark.parametrize("generation", PREDICTS)
def test_pictures_equal_those_of_the_folder(
    built: dict[str, tuple[Path, Path]], tmp_path: Path, generation: str
) -> None:
    folder, file = built[generation]
    wishes = Wishes(prediction=PREDICTS[generation], sizes=((64, 64),))
    ours = import_folder(file, tmp_path / "file", "file", wishes)
    theirs = import_folder(folder, tmp_path / "folder", "folder", wishes)
    assert list(ours.files) == ["model.safetensors"]
    assert not list(tmp_path.rglob("*.safetensors"))  # nothing was copied
    settled = {"name", "source", "files", "parts", "generation"}
    assert ours.model_dump(exclude=settled) == theirs.model_dump(exclude=settled)
    found, expected = (
        _picture(tmp_path / name, sampler=ours.default_sampler) for name in ("file", "folder")
    )
    assert float((found - expected).abs().max()) <= 1e-3
    assert float(found.std()) > 0.01


def _picture(path: Path, **asked: Any) -> Tensor:
    model = load_model(path)
    return drawn(model, [row(model, "0", steps=3, **asked)])["0"]


def test_diffusers_reads_the_file_by_the_configurations_of_the_import(
    built: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    _, file = built["sd1"]
    import_folder(file, tmp_path / "m", "mine", Wishes(sizes=((64, 64),)))
    pipeline = diffusers.StableDiffusionPipeline.from_single_file(
        str(file), config=str(tmp_path / "m" / "parts"), local_files_only=True
    )
    state = load_model(tmp_path / "m").denoiser.network.state_dict()  # type: ignore[attr-defined]
    for name, weight in pipeline.unet.state_dict().items():
        assert torch.equal(weight, state[name]), name


# config.json of the public U-Nets, as far as pictures depend on it.
PUBLIC: dict[str, dict[str, Any]] = {
    "sd1": {"block_out_channels": [320, 640, 1280, 1280], "attention_head_dim": 8,
            "cross_attention_dim": 768, "use_linear_projection": False, "sample_size": 64},
    "sd2": {"block_out_channels": [320, 640, 1280, 1280], "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024, "use_linear_projection": True, "sample_size": 96},
    "sdxl": {"block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20],
             "cross_attention_dim": 2048, "use_linear_projection": True, "sample_size": 128,
             "transformer_layers_per_block": [1, 2, 10], "addition_time_embed_dim": 256,
             "projection_class_embeddings_input_dim": 2816, "addition_embed_type": "text_time"},
}  # fmt: skip


@pytest.mark.parametrize("generation", PUBLIC)
def test_the_configuration_of_the_public_networks_follows_from_their_shapes(
    built: dict[str, tuple[Path, Path]], generation: str
) -> None:
    attends = ATTENDS[generation]
    down = ["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attends]
    up = ["CrossAttnUpBlock2D" if one else "UpBlock2D" for one in attends[::-1]]
    public = {**PUBLIC[generation], "down_block_types": down, "up_block_types": up}
    with torch.device("meta"):
        network = diffusers.UNet2DConditionModel(**public)
    shapes = {key: tuple(one.shape) for key, one in load_file(built[generation][1]).items()}
    shapes = {key: one for key, one in shapes.items() if not key.startswith("model.diff")}
    pooled = "conditioner.embedders.1.model.text_projection"
    shapes |= {pooled: (1280, 1280)} if generation == "sdxl" else {}
    theirs = unet_weights(generation, network)
    shapes |= {key: tuple(one.shape) for key, one in theirs.items()}
    assert generation_of(shapes, "file") == generation
    found = configurations(shapes, generation, "file", PREDICTS[generation], {})["unet"]
    assert found.items() >= public.items()
    with torch.device("meta"):
        ours = diffusers.UNet2DConditionModel.from_config(found).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }


@pytest.mark.parametrize(("said", "expected"), [("v", "v"), ("epsilon", "eps"), ("other", None)])
def test_what_a_file_says_of_itself_is_believed(
    built: dict[str, tuple[Path, Path]], tmp_path: Path, said: str, expected: str | None
) -> None:
    metadata = {"modelspec.prediction_type": said}
    save_file(load_file(built["sd2"][1]), tmp_path / "told.safetensors", metadata)
    if expected is None:
        with pytest.raises(BundleError, match="give --prediction"):
            import_folder(tmp_path / "told.safetensors", tmp_path / "m", "mine")
        return
    config = import_folder(tmp_path / "told.safetensors", tmp_path / "m", "mine")
    assert config.parameterisation == expected
    wishes = Wishes(prediction="eps")
    config = import_folder(tmp_path / "told.safetensors", tmp_path / "other", "mine", wishes)
    assert config.parameterisation == "eps"


def test_what_predicts_v_has_to_be_said_for_sd2_and_is_read_of_sdxl(
    built: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=r"does not say what it predicts: give --prediction v"):
        import_folder(built["sd2"][1], tmp_path / "m", "mine")
    state = load_file(built["sdxl"][1]) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(state, tmp_path / "v.safetensors")
    config = import_folder(tmp_path / "v.safetensors", tmp_path / "m", "mine")
    assert config.parameterisation == "v"
    assert config.noise.zero_terminal_snr
    assert config.layout.spacing == "trailing"


@pytest.mark.parametrize(("layers", "used"), [(24, 23), (23, 23), (3, 2)])
def test_sd2_uses_23_layers_of_its_text_tower(
    built: dict[str, tuple[Path, Path]], layers: int, used: int
) -> None:
    shapes = {key: tuple(one.shape) for key, one in load_file(built["sd2"][1]).items()}
    stem = "cond_stage_model.model.transformer.resblocks."
    first = {key: one for key, one in shapes.items() if key.startswith(f"{stem}0.")}
    shapes = {key: one for key, one in shapes.items() if not key.startswith(stem)}
    for i in range(layers):
        shapes |= {key.replace(f"{stem}0.", f"{stem}{i}."): one for key, one in first.items()}
    found = configurations(shapes, "sd2", "file", "v", {})
    assert found["text_encoder"]["num_hidden_layers"] == used


def test_memory_is_that_of_the_model_and_a_link_has_it_too(file: Path, tmp_path: Path) -> None:
    """As in the hub's cache, where a file is a link to a name without an ending."""
    plain = describe_model(_imported(file, tmp_path / "plain")).weights_bytes
    assert plain > 1_000_000
    blob = file.rename(tmp_path / "0123abcd")
    file.symlink_to(blob)
    assert describe_model(_imported(file, tmp_path / "link")).weights_bytes == plain
    _with(model_ema__diffusion_model_weight=(1000, 1000))(blob)
    assert describe_model(_imported(file, tmp_path / "ema")).weights_bytes == plain


def _imported(file: Path, into: Path) -> Path:
    import_folder(file, into, "mine")
    return into


def _without(prefix: str) -> Any:
    def change(file: Path) -> None:
        save_file({k: v for k, v in load_file(file).items() if not k.startswith(prefix)}, file)

    return change


def _with(**more: Any) -> Any:
    def change(file: Path) -> None:
        added = {key.replace("__", "."): torch.zeros(shape) for key, shape in more.items()}
        save_file({**load_file(file), **added}, file)

    return change


def _only(name: str) -> Any:
    return lambda file: save_file({name: torch.zeros(4, 4)}, file)


def _long_header(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 2**40) + file.read_bytes()[8:])


FAULTS = {
    "no autoencoder": (_without("first_stage_model."), r"has no vae: no weight begins with first_"),
    "no text": (_without("cond_stage_model."), r"has no text encoder: no weight begins with"),
    "a LoRA": (_only("lora_unet_x.lora_down.weight"), r"is a LoRA: put it into the folder AVOCAT_"),
    "diffusers' LoRA": (_only("unet.mid_block.x.to_q.lora.down.weight"), r"is a LoRA: put it into"),
    "a U-Net": (_only("input_blocks.0.0.weight"), r"is a U-Net alone: a checkpoint has the auto"),
    "diffusers' U-Net": (_only("conv_in.weight"), r"is a U-Net alone: a checkpoint has the auto"),
    "an autoencoder": (_only("decoder.conv_in.weight"), r"is an autoencoder alone: name the check"),
    "an embedding": (_only("emb_params"), r"is an embedding \(textual inversion\), which is not"),
    "a ControlNet": (_with(control_model__time_embed__0__weight=(4,)), r"is a ControlNet, which"),
    "Flux": (_only("double_blocks.0.img_attn.norm.key_norm.scale"), r"is a checkpoint of Flux"),
    "another": (_only("a.weight"), r"is no checkpoint of Stable Diffusion .*weights: a.weight\)"),
    "inpainting": (
        _with(model__diffusion_model__input_blocks__0__0__weight=(32, 9, 3, 3)),
        r"takes 9 channels and the autoencoder's latents have 4: it is an inpainting",
    ),
    "a shape": (
        _with(model__diffusion_model__time_embed__2__weight=(128, 64)),
        r"unet: time_embedding.linear_2.weight is 128x64 in one.safetensors, and 128x128",
    ),
    "cut off": (lambda f: f.write_bytes(f.read_bytes()[:9000]), r"one.safetensors is damaged or"),
    "a header": (_long_header, r"one.safetensors is damaged or truncated"),
    "no header": (lambda f: f.write_bytes(b"\x80\x04"), r"one.safetensors is damaged or truncated"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(file: Path, tmp_path: Path, fault: str) -> None:
    damage, message = FAULTS[fault]
    damage(file)
    with pytest.raises(BundleError, match=message):
        import_folder(file, tmp_path / "m", "mine")
    assert not (tmp_path / "m").exists()


def test_a_file_or_configuration_that_changed_is_refused(file: Path, tmp_path: Path) -> None:
    import_folder(file, tmp_path / "m", "mine")
    config = tmp_path / "m/parts/scheduler/scheduler_config.json"
    before = config.read_text()
    config.write_text(json.dumps({**json.loads(before), "beta_end": 0.1}))
    with pytest.raises(BundleError, match=r"scheduler_config.json .* is not what was imported"):
        load_model(tmp_path / "m")
    config.write_text(before)
    _with(model__diffusion_model__extra=(1,))(file)
    with pytest.raises(BundleError, match=r"one.safetensors .* is not what was imported"):
        load_model(tmp_path / "m")


def test_an_import_that_cannot_be_written_leaves_the_one_before(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = tmp_path / "model"
    import_folder(file, into, "one")

    def full(_: Path, to: Path, **__: Any) -> None:
        to.mkdir()
        raise OSError(errno.ENOSPC, "No space left on device", str(to))

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match="No space left"):
        import_folder(file, into, "one")
    assert sorted(one.name for one in into.iterdir()) == ["bundle.json", "parts"]
    load_model(into, torch.device("cpu"))


def test_a_pickle_comes_with_the_command_that_converts_it(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickle = tmp_path / "old.ckpt"
    torch.save({"state_dict": load_file(file), "global_step": 7}, pickle)
    assert main([str(pickle), "--name", "x", "--into", str(tmp_path / "m")]) == 1
    said = capsys.readouterr().err
    command = said[said.index("python -c '") + len("python -c '") : said.rindex("'")]
    subprocess.run([sys.executable, "-c", command], check=True)
    assert main([str(pickle.with_suffix(".safetensors")), *("--name", "x", "--into", str(tmp_path)),
                 "--size", "64x64"]) == 0  # fmt: skip
    assert "x: sd, predicts eps, 64x64, dpmpp_2m" in capsys.readouterr().out
