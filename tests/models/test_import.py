"""Folders as people have them: what is read, what is refused, and in which words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.errors import BundleError
from models.loading import load_model
from models.stable_diffusion import loading
from models.stable_diffusion.__main__ import main
from models.stable_diffusion.loading import import_folder
from models.stable_diffusion.settle import Wishes
from tests.models.tiny_diffusers import (
    UNET,
    CLIPTextConfig,
    CLIPTextModel,
    build_pipeline,
    change,
    diffusers,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def test_an_import_points_to_the_files_and_copies_none(source: Path, tmp_path: Path) -> None:
    config = import_folder(source, tmp_path / "m", "mine")
    assert [file.name for file in (tmp_path / "m").iterdir()] == ["bundle.json"]
    assert {UNET, "scheduler/scheduler_config.json", "tokenizer/vocab.json"} < set(config.files)
    assert (config.default_sampler, config.parameterisation) == ("dpmpp_2m", "eps")  # of PNDM
    assert config.sizes[0] == (64, 64)
    model = load_model(tmp_path / "m")
    assert model.config == config
    assert model.shape((80, 48)) == (4, 6, 10)
    assert model.shape((16, 128)) == (4, 16, 2)
    for size in ((64, 84), (8, 64), (136, 64), (96, 104)):
        with pytest.raises(ValueError, match=r"draws 64x64, 80x48, .*, and multiples of 8 from 16"):
            model.shape(size)


def test_components_that_are_null_are_not_missed(source: Path, tmp_path: Path) -> None:
    """Also where the index has no pair of nulls, which diffusers itself does not read."""
    change(source / "model_index.json", safety_checker=None, text_encoder_2=None, tokenizer_2=None)
    assert import_folder(source, tmp_path / "m", "mine").family == "sd"


def test_half_precision_files_and_parts_are_read(source: Path, tmp_path: Path) -> None:
    import_folder(source, tmp_path / "whole", "whole")
    state = load_file(source / UNET)
    (source / UNET).unlink()
    names = sorted(state)
    stem = "diffusion_pytorch_model.fp16"
    for i, half in enumerate((names[::2], names[1::2])):
        part = {name: state[name].half().contiguous() for name in half}
        save_file(part, source / "unet" / f"{stem}-0000{i}-of-00002.safetensors")
    where = {name: f"{stem}-0000{i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    index = source / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": where}))
    import_folder(source, tmp_path / "parts", "parts")
    loaded = load_model(tmp_path / "parts").denoiser.network.state_dict()  # type: ignore[attr-defined]
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name].half().float()) for name in names)


def test_older_names_of_attention_weights_are_known(source: Path, tmp_path: Path) -> None:
    file = source / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, weight in state.items():
        for new, ancient in old.items():
            if f".{new}." in name:
                name = name.replace(f".{new}.", f".{ancient}.")
                weight = weight[..., None, None] if name.endswith("weight") else weight
        renamed[name] = weight.contiguous()
    assert renamed.keys() != state.keys()
    save_file(renamed, file)
    import_folder(source, tmp_path / "m", "old")
    network = load_model(tmp_path / "m").autoencoder.network  # type: ignore[attr-defined]
    assert all(torch.equal(weight, state[name]) for name, weight in network.state_dict().items())


def test_a_folder_of_the_hubs_cache_is_read_at_its_branch_main(
    source: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "models--org--name ü"
    snapshot = cache / "snapshots" / "0123abcd"
    shutil.copytree(source, snapshot)
    file, blob = snapshot / "unet" / Path(UNET).name, cache / "blobs" / "4567"
    blob.parent.mkdir()
    file.rename(blob)
    file.symlink_to(Path("../../../blobs/4567"))
    assert import_folder(cache, tmp_path / "m", "mine").source == snapshot
    assert load_model(tmp_path / "m")
    (cache / "snapshots" / "older").mkdir()
    with pytest.raises(BundleError, match=r"one folder \(0123abcd, older\): name it"):
        import_folder(cache, tmp_path / "m", "mine")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123abcd")
    assert import_folder(cache, tmp_path / "m", "mine").source == snapshot


def _refiner(source: Path) -> None:
    """As that of SDXL 1.0 is listed, which has the second text encoder alone."""
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(source / name, source / f"{name}_2")
        shutil.rmtree(source / name)
    kind = "StableDiffusionXLImg2ImgPipeline"
    empty: dict[str, Any] = {"text_encoder": [None, None], "tokenizer": [None, None]}
    second = {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
    change(source / "model_index.json", _class_name=kind, **empty, **second)


def _rename(source: Path) -> None:
    (source / UNET).rename(source / "unet" / "diffusion_pytorch_model.bin")


def _shrink(source: Path) -> None:
    state = load_file(source / UNET)
    state["conv_in.weight"] = state["conv_in.weight"][:, :3].contiguous()
    save_file(state, source / UNET)


def _drop(source: Path) -> None:
    state = load_file(source / UNET)
    del state["conv_out.bias"]
    save_file(state, source / UNET)


def _inpainting(source: Path) -> None:
    change(source / "model_index.json", _class_name="StableDiffusionInpaintPipeline")
    change(source / "unet/config.json", in_channels=9)
    state = load_file(source / UNET)
    wide = torch.zeros(16, 9, 3, 3)
    save_file({**state, "conv_in.weight": wide}, source / UNET)


def _instead(name: str, written: bytes) -> Callable[[Path], None]:
    """Other bytes in a file's place, as failed downloads leave them."""
    return lambda source: (source / name).write_bytes(written) and None


def _wider_text(source: Path) -> None:
    config = CLIPTextConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=4)
    CLIPTextModel(config).save_pretrained(source / "text_encoder")


def _pickled(source: Path) -> None:
    torch.save({"a": torch.zeros(1)}, source / UNET)


def _alone(kind: str) -> Callable[[Path], None]:
    """A folder that has nothing but one network."""

    def damage(source: Path) -> None:
        shutil.rmtree(source)
        source.mkdir()
        (source / "config.json").write_text(json.dumps({"_class_name": kind}))

    return damage


def _only_lora(source: Path) -> None:
    shutil.rmtree(source)
    source.mkdir()
    save_file({"a": torch.zeros(1)}, source / "pytorch_lora_weights.safetensors")


FAULTS = {
    "a pickle": (_rename, r"a pickle, which can run any program .* Convert it .*save_pretrained"),
    "no part": (lambda at: shutil.rmtree(at / "vae"), r"has no folder vae; a StableDiffusionPip"),
    "a shape": (
        _shrink,
        r"unet: conv_in.weight is 16x3x3x3 in .*, and 16x4x3x3 by its",
    ),
    "a weight": (_drop, r"unet: the weight conv_out.bias is missing"),
    "half a file": (
        lambda at: (at / UNET).write_bytes((at / UNET).read_bytes()[:5000]),
        r"unet/diffusion_pytorch_model.safetensors is damaged or truncated",
    ),
    "no weights": (lambda at: (at / UNET).unlink(), r"unet has no weights: diffusion_pytorch_"),
    "no config": (lambda at: (at / "vae/config.json").unlink(), r"vae/config.json is missing"),
    "another kind": (
        lambda at: change(at / "model_index.json", _class_name="FluxPipeline"),
        r"says 'FluxPipeline'; these can be imported: StableDiffusionPipeline",
    ),
    "a prediction": (
        lambda at: change(at / "scheduler/scheduler_config.json", prediction_type="flow"),
        r"prediction_type 'flow'; these are served: epsilon, v_prediction",
    ),
    "another noise": (
        lambda at: change(at / "scheduler/scheduler_config.json", _class_name="EDMEulerScheduler"),
        r"scheduler is an EDMEulerScheduler, whose noise is not served",
    ),
    "inpainting": (_inpainting, r"takes 9 channels and .* latents have 4: it is an inpainting"),
    "a refiner": (_refiner, r"is the refiner of SDXL, which only works on another's latents"),
    "a ControlNet": (
        _alone("ControlNetModel"),
        r"is a ControlNetModel, one part of a model .*ControlNets are not served",
    ),
    "a part": (
        _alone("UNet2DConditionModel"),
        r"is a UNet2DConditionModel, one part of a model; name the folder of the whole pipeline",
    ),
    "a LoRA": (_only_lora, r"holds a LoRA \(pytorch_lora_weights.safetensors\): put it into the"),
    "a header": (
        lambda at: (at / UNET).write_bytes(b"\xff" * 8 + (at / UNET).read_bytes()[8:]),
        r"unet/diffusion_pytorch_model.safetensors is damaged or truncated",
    ),
    "a pointer": (
        _instead(UNET, b"version https://git-lfs.github.com/spec/v1\noid sha256:19da\nsize 3\n"),
        r"unet/diffusion_pytorch_model.safetensors is a pointer of Git LFS .*run `git lfs pull`",
    ),
    "a page": (
        _instead("unet/config.json", b"\n<!DOCTYPE html><html><title>Sign in</title>"),
        r"unet/config.json is a web page: the download was answered with one",
    ),
    "a pickle renamed": (_pickled, r"unet/\S+ is a pickle under another name, .*ending .ckpt"),
    "another's text encoder": (
        _wider_text,
        r"unet takes text of width 32 by its config.json \(text_encoder 48\): they are parts of",
    ),
    "another autoencoder": (
        lambda at: change(at / "vae/config.json", _class_name="AutoencoderTiny"),
        r"vae is of the kind AutoencoderTiny; AutoencoderKL is served",
    ),
    "half a vocabulary": (
        lambda at: (at / "tokenizer/vocab.json").write_text('{"a": 0}'),
        r"tokenizer did not load: Error while initializing BPE: Token `\S+` out of vocabulary",
    ),
    "a size": (
        lambda at: change(at / "unet/config.json", sample_size=-5),
        r"size -40x-40 should be in multiples of 8 pixels, from 8 on",
    ),
    "no vocabulary": (lambda at: (at / "tokenizer/vocab.json").unlink(), r"tokenizer has neither"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(source: Path, tmp_path: Path, fault: str) -> None:
    damage, message = FAULTS[fault]
    damage(source)
    with pytest.raises(BundleError, match=message):
        import_folder(source, tmp_path / "m", "mine")
    assert not (tmp_path / "m").exists()


def test_a_file_that_may_not_be_read_is_not_called_damaged(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def open_(file: Path, *args: Any, **options: Any) -> Any:  # root may read anything
        if file == source / UNET:
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *args, **options)

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(BundleError, match=r"unet/\S+ cannot be read: Permission denied"):
        import_folder(source, tmp_path / "m", "mine")


IMPOSSIBLE: list[tuple[Wishes, str]] = [
    (Wishes(clip_skip=4), r"clip_skip is 4; of 4 layers 3 can be left out"),
    (Wishes(sampler="lcm", steps=60), r"lcm: .*50"),
    (Wishes(steps=5000), r"steps is 5000; it must be from 1 to 1000"),
    (Wishes(sizes=((100, 64),)), r"size 100x64 should be in multiples of 8"),
    (Wishes(sizes=((64, 64), (8192, 4096))), r"size 8192x4096 should have at most as many pixels"),
]


@pytest.mark.parametrize(("wishes", "message"), IMPOSSIBLE)
def test_wishes_that_no_job_could_be_drawn_with(
    source: Path, tmp_path: Path, wishes: Wishes, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        import_folder(source, tmp_path / "m", "mine", wishes)
    most = Wishes(clip_skip=3, sampler="lcm", steps=50)
    import_folder(source, tmp_path / "m", "mine", most)
    assert load_model(tmp_path / "m").context.conditioning("a cat", None, 1.0, (64, 64))


def test_any_variant_is_loaded_as_it_was_imported(source: Path, tmp_path: Path) -> None:
    for file in source.rglob("*.safetensors"):
        file.rename(file.with_suffix(".bf16.safetensors"))
    import_folder(source, tmp_path / "m", "mine", variant="bf16")
    assert load_model(tmp_path / "m")


def test_configurations_that_leave_things_out(source: Path, tmp_path: Path) -> None:
    change(source / "unet/config.json", sample_size=None)
    change(source / "model_index.json", text_encoder_2=[], tokenizer_2=[])
    assert import_folder(source, tmp_path / "m", "mine").sizes[0] == (512, 512)


def test_a_network_of_another_model_of_the_kind_is_refused(tmp_path: Path) -> None:
    """The U-Net of SDXL's refiner takes one number less, in a folder of the base."""
    source = build_pipeline(tmp_path / "xl", "sdxl")
    width = {"addition_time_embed_dim": 10, "projection_class_embeddings_input_dim": 5 * 10 + 32}
    unet = diffusers.UNet2DConditionModel.load_config(source / "unet") | width
    diffusers.UNet2DConditionModel.from_config(unet).save_pretrained(source / "unet")
    with pytest.raises(
        BundleError, match=r"unet takes 82 numbers beside the text, .* give 92: they"
    ):
        import_folder(source, tmp_path / "m", "mine")


def test_turbo_is_known_by_its_scheduler_and_not_taken_for_zero_snr(
    source: Path, tmp_path: Path
) -> None:
    scheduler = source / "scheduler/scheduler_config.json"
    change(scheduler, _class_name="EulerDiscreteScheduler", timestep_spacing="trailing")
    config = import_folder(source, tmp_path / "m", "mine")
    assert (config.default_steps, config.default_guidance_scale) == (4, 1.0)
    change(scheduler, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    config = import_folder(source, tmp_path / "m", "mine")
    assert (config.default_steps, config.default_guidance_scale) == (25, 7.5)


def test_what_of_a_scheduler_is_left_out_is_said(source: Path, tmp_path: Path) -> None:
    told: list[str] = []
    scheduler = source / "scheduler/scheduler_config.json"
    change(scheduler, _class_name="EulerDiscreteScheduler", use_karras_sigmas=True)
    import_folder(source, tmp_path / "m", "mine", progress=told.append)
    assert told[-1].startswith("not served, and left out: use_karras_sigmas: True")
    change(scheduler, _class_name="DPMSolverMultistepScheduler")
    config = import_folder(source, tmp_path / "m", "mine", progress=(told := []).append)
    assert config.default_sampler == "dpmpp_2m_karras"
    assert not [line for line in told if line.startswith("not served")]
    change(scheduler, solver_type="heun", final_sigmas_type="sigma_min", timestep_type="continuous")
    import_folder(source, tmp_path / "m", "mine", progress=(told := []).append)
    named = [line.split(": ")[1] for line in told if line.startswith("not served")]
    assert named == ["solver_type", "final_sigmas_type", "timestep_type"]
    usual = {"final_sigmas_type": "zero", "timestep_type": "discrete", "use_karras_sigmas": False}
    change(scheduler, _class_name="UniPCMultistepScheduler", solver_type="bh2", **usual)
    import_folder(source, tmp_path / "m", "mine", progress=(told := []).append)
    assert not [line for line in told if line.startswith("not served")]
    change(scheduler, use_karras_sigmas=True)  # which its substitute has
    config = import_folder(source, tmp_path / "m", "mine", progress=(told := []).append)
    assert config.default_sampler == "dpmpp_2m_karras"
    assert not [line for line in told if line.startswith("not served")]


def test_a_bundle_of_that_name_is_not_written_over(source: Path, tmp_path: Path) -> None:
    own = tmp_path / "m" / "bundle.json"
    own.parent.mkdir()
    own.write_text(json.dumps({"name": "mine", "format": 1}))
    with pytest.raises(BundleError, match=r"is a bundle with weights of its own: give another"):
        import_folder(source, tmp_path / "m", "mine")
    assert json.loads(own.read_text()) == {"name": "mine", "format": 1}


def test_a_loaded_model_does_not_change_with_its_files(source: Path, tmp_path: Path) -> None:
    import_folder(source, tmp_path / "m", "mine")
    state = load_model(tmp_path / "m").denoiser.network.state_dict()  # type: ignore[attr-defined]
    before = {name: weight.clone() for name, weight in state.items()}
    with (source / UNET).open("r+b") as handle:
        handle.write(bytes((source / UNET).stat().st_size))
    assert all(torch.equal(state[name], weight) for name, weight in before.items())


def test_files_that_changed_since_are_refused(source: Path, tmp_path: Path) -> None:
    import_folder(source, tmp_path / "m", "mine")
    change(source / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    with pytest.raises(BundleError, match=r"scheduler_config.json .* is not what was imported"):
        load_model(tmp_path / "m")
    shutil.rmtree(source)
    with pytest.raises(BundleError, match="the files of 'mine' are gone"):
        load_model(tmp_path / "m")


def test_too_little_memory_is_said_with_sizes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_folder(source, tmp_path / "m", "mine")
    monkeypatch.setattr(loading, "free_bytes", lambda device: 1_000_000)
    sizes = r"unet [0-9]+ MB, vae [0-9]+ MB, text_encoder [0-9]+ MB"
    message = rf"on cpu: [0-9]+ MB of weights in float32 \({sizes}\) need [0-9]+ MB, and 1 MB are"
    with pytest.raises(BundleError, match=message):
        load_model(tmp_path / "m")
    # The machine's own memory is looked at as well where the weights go elsewhere.
    free = {"cuda": 10**12, "cpu": 1_000_000}
    monkeypatch.setattr(loading, "free_bytes", lambda device: free[device.type])
    message = r"not enough memory on cpu: the largest weight, 6 MB need 13 MB, and 1 MB are free"
    with pytest.raises(BundleError, match=message):
        load_model(tmp_path / "m", "cuda")


def test_the_command_says_what_it_made(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--name", "mine", "--into", str(tmp_path), "--sampler", "euler", "--steps", "9"]
    assert main([str(source), *arguments, "--size", "96x64"]) == 0
    assert "mine: sd, predicts eps, 96x64, euler in 9 steps" in capsys.readouterr().out
    assert load_model(tmp_path / "mine").sizes == ((96, 64),)
    assert main([str(source), *arguments, "--taken=mine"]) == 1
    assert "'mine' is a model of the bundle that is served" in capsys.readouterr().err
