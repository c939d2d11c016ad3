"""A bundle is read whole or refused with a sentence that names the file and the fault."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.bundle import Bundle, load_bundle, read_config, save_config
from models.errors import BundleError, ModelError


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def edit(folder: Path, **changes: object) -> None:
    file = folder / "bundle.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_loaded_bundle_predicts_noise_of_the_picture_s_shape(tiny: Bundle) -> None:
    x = torch.randn(2, 4, 16, 16)
    eps = tiny.denoiser(x, torch.tensor([3, 900]), tiny.context.encode(["a cat", "a dog"]))
    assert eps.shape == x.shape
    assert eps.dtype == torch.float32
    assert not torch.equal(eps[0], eps[1])


def test_loading_twice_gives_the_same_weights(tiny: Bundle, tiny_folder: Path) -> None:
    again = load_bundle(tiny_folder)
    assert again.sha256 == tiny.sha256
    for a, b in zip(again.denoiser.parameters(), tiny.denoiser.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_config_names_every_file_s_hash(tiny_folder: Path) -> None:
    assert set(read_config(tiny_folder).files) == {
        "denoiser.safetensors",
        "upscaler.safetensors",
        "clip/open_clip_config.json",
        "clip/open_clip_model.safetensors",
    }


def test_sizes_come_from_the_upscaler(tiny_folder: Path) -> None:
    assert read_config(tiny_folder).upscales == [1, 2, 4]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle at .* has no bundle.json"):
        load_bundle(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["denoiser.safetensors", "clip/open_clip_model.safetensors"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(copy)


@pytest.mark.parametrize("name", ["denoiser.safetensors", "upscaler.safetensors"])
def test_one_flipped_bit_is_found(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        load_bundle(copy)


def test_a_truncated_file_without_a_hash_is_refused(copy: Path) -> None:
    edit(copy, files={})
    file = copy / "denoiser.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"denoiser.safetensors is damaged or truncated"):
        load_bundle(copy)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    shape = {**json.loads((copy / "bundle.json").read_text())["denoiser"], "width": 8}
    edit(copy, denoiser=shape)
    with pytest.raises(BundleError, match=r"denoiser.safetensors does not fit bundle.json"):
        load_bundle(copy)


def test_a_clip_of_another_width_is_refused(copy: Path) -> None:
    shape = {**json.loads((copy / "bundle.json").read_text())["denoiser"], "context_width": 99}
    edit(copy, denoiser=shape)
    with pytest.raises(BundleError):
        load_bundle(copy)


def test_a_newer_format_is_refused(copy: Path) -> None:
    edit(copy, format=2)
    with pytest.raises(BundleError, match="format 2; this version of avocat reads up to 1"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "cannot be read"), ("[1]", "JSON object"), ("{}", "name"), ("\xff", "cannot be read")],
)
def test_a_broken_config_is_refused(copy: Path, text: str, message: str) -> None:
    (copy / "bundle.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=message):
        load_bundle(copy)


def test_an_unknown_field_is_refused(copy: Path) -> None:
    edit(copy, colour="blue")
    with pytest.raises(BundleError, match="colour"):
        load_bundle(copy)


def test_a_file_outside_the_bundle_is_refused(copy: Path) -> None:
    (copy.parent / "secret").write_text("x")
    edit(copy, files={"../secret": "0" * 64})
    with pytest.raises(BundleError, match="outside the bundle"):
        load_bundle(copy)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_a_file_that_cannot_be_one_is_refused(copy: Path, name: str) -> None:
    edit(copy, files={name: "0" * 64})
    with pytest.raises(BundleError, match="is no file"):
        load_bundle(copy)


def test_a_config_of_endless_depth_is_refused(copy: Path) -> None:
    (copy / "bundle.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match="cannot be read"):
        load_bundle(copy)


@pytest.mark.parametrize(
    "shape",
    [{"width": 65536}, {"width": 8 * 10**9}, {"blocks": 10**9}, {"multipliers": [0, -1]}],
    ids=str,
)
def test_no_configuration_takes_memory_that_its_file_has_not(
    copy: Path, shape: dict[str, Any]
) -> None:
    """A network of this width has a terabyte; it is refused before anything is allocated."""
    edit(
        copy,
        files={},
        denoiser={**json.loads((copy / "bundle.json").read_text())["denoiser"], **shape},
    )
    with pytest.raises(BundleError, match=r"denoiser|does not fit"):
        load_bundle(copy)


def test_a_clip_of_pickled_weights_is_refused(copy: Path) -> None:
    """open_clip would take them where there are no others."""
    weights = load_file(copy / "clip" / "open_clip_model.safetensors")
    torch.save(weights, copy / "clip" / "open_clip_pytorch_model.bin")
    (copy / "clip" / "open_clip_model.safetensors").unlink()
    edit(copy, files={})
    with pytest.raises(BundleError, match=r"has no open_clip_model.safetensors"):
        load_bundle(copy)


def edit_clip(folder: Path, tower: str, **changes: object) -> None:
    file = folder / "clip" / "open_clip_config.json"
    entry = json.loads(file.read_text())
    entry["model_cfg"][tower] |= changes
    file.write_text(json.dumps(entry))
    edit(folder, files={})


@pytest.mark.parametrize("text", ["1", "[]", "null", '"x"', "{}", '{"model_cfg": 3}'])
def test_a_clip_without_a_description_is_refused(copy: Path, text: str) -> None:
    """The fuzzer's first find."""
    (copy / "clip" / "open_clip_config.json").write_text(text)
    edit(copy, files={})
    with pytest.raises(BundleError, match="CLIP"):
        load_bundle(copy)


@pytest.mark.parametrize("mean", [3, [0.5], ["a", "b", "c"]])
def test_a_clip_with_an_odd_normalisation_is_refused(copy: Path, mean: object) -> None:
    """The fuzzer's second find."""
    file = copy / "clip" / "open_clip_config.json"
    entry = json.loads(file.read_text())
    file.write_text(json.dumps(entry | {"preprocess_cfg": {"mean": mean, "std": [0.5] * 3}}))
    edit(copy, files={})
    with pytest.raises(BundleError, match="CLIP"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("tower", "changes", "message"),
    [
        ("text_cfg", {"vocab_size": 2**34}, "describes"),
        ("text_cfg", {"layers": 10**9}, "layers"),
        ("vision_cfg", {"layers": [10**9] * 4}, "layers"),
        ("vision_cfg", {"width": 2**20}, "describes"),
    ],
)
def test_no_clip_takes_memory_that_its_file_has_not(
    copy: Path, tower: str, changes: dict[str, Any], message: str
) -> None:
    edit_clip(copy, tower, **changes)
    with pytest.raises(BundleError, match=message):
        load_bundle(copy)


@pytest.mark.parametrize("weights", ["clip.pt", "weights/clip.bin", "./clip"])
def test_a_clip_named_by_a_file_of_pickles_is_refused(copy: Path, weights: str) -> None:
    edit(copy, clip={"model": "ViT-B-32", "pretrained": weights})
    with pytest.raises(BundleError, match="not safetensors"):
        load_bundle(copy)


def test_a_clip_outside_the_bundle_is_refused(copy: Path) -> None:
    (copy / "clip").rename(copy.parent / "elsewhere")
    edit(copy, files={}, clip={"model": "local-dir:../elsewhere"})
    with pytest.raises(BundleError, match="outside the bundle"):
        load_bundle(copy)


def test_a_tokenizer_that_brings_code_is_refused(copy: Path) -> None:
    """transformers runs what the tokenizer's folder holds where its arguments say that it may."""
    (copy / "clip" / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["tokenizer.Mine", None]}})
    )
    (copy / "clip" / "tokenizer.py").write_text(f"open({str(copy / 'ran')!r}, 'w')\n")
    kwargs = {"trust_remote_code": True}
    edit_clip(copy, "text_cfg", hf_tokenizer_name="x", tokenizer_kwargs=kwargs)
    with pytest.raises(BundleError, match="hf_tokenizer_name"):
        load_bundle(copy)
    assert not (copy / "ran").exists()


def test_saving_the_config_refreshes_the_hashes(copy: Path) -> None:
    config = read_config(copy)
    file = copy / "denoiser.safetensors"
    file.write_bytes(file.read_bytes() + b"\0")
    assert (
        save_config(copy, config).files["denoiser.safetensors"]
        != config.files["denoiser.safetensors"]
    )


def test_a_file_that_may_not_be_read_is_one_sentence(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hashlib.file_digest", refuse)  # these tests may run as root
    with pytest.raises(BundleError, match=r"denoiser.safetensors of .* cannot be read: Permission"):
        load_bundle(copy)


def test_bundle_json_is_replaced_and_never_half(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (copy / "bundle.json").read_bytes()

    def die(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", die)
    with pytest.raises(ModelError, match=r"bundle.json' cannot be written: No space left"):
        save_config(copy, read_config(copy).model_copy(update={"name": "other"}))
    assert (copy / "bundle.json").read_bytes() == before
    assert not list(copy.glob("*.partial"))
