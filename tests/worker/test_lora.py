"""LoRAs in the engine, against diffusers' own with the same noise."""

import hashlib
import json
import math
import os
import re
import shutil
import threading
from collections import OrderedDict
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.jobs.models import LoraCard
from models.loading import load_model
from models.model import LoraFolder, Model, Wanted
from models.stable_diffusion import lora_folder
from models.stable_diffusion.loading import import_folder
from models.stable_diffusion.lora_file import LoraError, read_lora
from models.stable_diffusion.settle import Wishes
from models.stable_diffusion.text import TextEncoders
from tests.models.lora_files import save_kohya, save_peft
from tests.models.original_layout import ATTENDS, build_both, unet_name
from tests.models.tiny_diffusers import build_pipeline, reference
from tests.worker.test_imported import drawn, row, theirs

pytestmark = pytest.mark.filterwarnings("ignore")
USES = {
    "none": {},
    "kohya": {"kohya": 1.0},
    "weaker": {"kohya": 0.4},
    "peft": {"peft": 0.8},
    "both": {"kohya": 0.7, "old": -0.5},
    "zero": {"peft": 0.0},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@cache
def _built(place: Path, family: str) -> tuple[Model, Any, LoraFolder]:
    source = build_pipeline(place / family, family)
    import_folder(source, place / "models" / family, family)
    pipeline, model = reference(source), load_model(place / "models" / family)
    files = place / f"{family}-loras"
    files.mkdir()
    save_kohya(files / "kohya.safetensors", pipeline, seed=1)
    save_peft(files / "peft.safetensors", pipeline, seed=2)
    save_peft(files / "old.safetensors", pipeline, seed=3, ends=("down", "up"))
    found = model.lora_folder(files)
    assert found is not None
    assert [(one.name, one.fault) for one in found.scan()] == [
        ("kohya", ""), ("old", ""), ("peft", "")
    ]  # fmt: skip
    return model, pipeline, found


def _adapted(model: Model, loras: LoraFolder, uses: dict[str, float], **changes: Any) -> Any:
    hashes = {one.name: one.sha256 for one in loras.scan()}
    adapters = loras.adapters([(name, weight, hashes[name]) for name, weight in uses.items()])
    return row(model, changes.pop("job"), adapters=adapters, **changes)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_each_row_is_drawn_with_its_own_and_equals_the_reference(place: Path, family: str) -> None:
    model, pipeline, loras = _built(place, family)
    specs = [_adapted(model, loras, uses, job=job, steps=3) for job, uses in USES.items()]
    mixed = drawn(model, specs)
    plain = theirs(pipeline, steps=3)
    for spec, (job, uses) in zip(specs, USES.items(), strict=True):
        pipeline.unload_lora_weights()
        for name in uses:
            file = place / f"{family}-loras" / f"{name}.safetensors"
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
        if uses:
            pipeline.set_adapters(list(uses), list(uses.values()))
        expected = theirs(pipeline, steps=3)
        assert float((mixed[job] - expected).abs().max()) <= 1e-3, job
        assert torch.equal(drawn(model, [spec])[job], mixed[job]), job
        # The test would be worth nothing if nothing changed.
        changed = float((expected - plain).abs().max()) > 0.02
        assert changed is any(uses.values()), job
    pipeline.unload_lora_weights()


def test_names_of_the_original_unet_are_known(place: Path, tmp_path: Path) -> None:
    """As kohya's trainer names the layers of SDXL."""
    folder, _ = build_both(tmp_path / "xl", "sdxl")
    import_folder(folder, tmp_path / "m", "xl", Wishes(sizes=((64, 64),)))
    model, pipeline = load_model(tmp_path / "m"), reference(folder)
    layers = [name for name, _ in pipeline.unet.named_modules()]
    attends = ATTENDS["sdxl"][::-1]
    names = {one: re.sub(r"\.$", "", unet_name(f"{one}.", attends)) for one in layers}
    (tmp_path / "l").mkdir()
    file = save_kohya(tmp_path / "l" / "sgm.safetensors", pipeline, seed=4, **names)
    assert any("input_blocks_4_1_transformer" in key for key in load_file(file))
    assert not any("down_blocks" in key for key in load_file(file))
    loras = model.lora_folder(tmp_path / "l")
    assert loras is not None
    spec = _adapted(model, loras, {"sgm": 0.6}, job="0", steps=2)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="sgm")
    pipeline.set_adapters(["sgm"], [0.6])
    expected = theirs(pipeline, steps=2)
    assert float((drawn(model, [spec])["0"] - expected).abs().max()) <= 1e-3


def test_the_added_embedding_is_known_by_either_of_its_names(place: Path, tmp_path: Path) -> None:
    """diffusers knows it by the original one, and leaves out a file's two by its own."""
    _, pipeline, _ = _built(place, "sdxl")
    network, found = pipeline.unet, []
    for name in ("add_embedding_linear_{}", "label_emb_0_{}"):
        state = {}
        for i, layer in enumerate((network.add_embedding.linear_1, network.add_embedding.linear_2)):
            stem = "lora_unet_" + name.format(i + 1 if "linear" in name else 2 * i)
            state[f"{stem}.lora_down.weight"] = torch.full((2, layer.in_features), 1.0 + i)
            state[f"{stem}.lora_up.weight"] = torch.ones(layer.out_features, 2)
            state[f"{stem}.alpha"] = torch.tensor(1.0)
        save_file(state, tmp_path / "a.safetensors")
        lora = read_lora(tmp_path / "a.safetensors", {"unet": network}, torch.device("cpu"))
        layers = lora.parts["unet"].items()
        found.append({layer: (float(one.down[0, 0]), one.scale) for layer, one in layers})
    assert found[0] == {"add_embedding.linear_1": (1.0, 0.5), "add_embedding.linear_2": (2.0, 0.5)}
    assert found[1] == found[0]


@pytest.mark.parametrize(("ranked", "strength"), [(False, 2.0), (True, 4.0)])
def test_alpha_of_the_metadata_is_over_the_rank_or_its_root(
    place: Path, tmp_path: Path, ranked: bool, strength: float
) -> None:
    _, pipeline, _ = _built(place, "sd1")
    file = save_peft(tmp_path / "a.safetensors", pipeline, seed=5)
    about = {"unet.lora_alpha": 8, "unet.use_rslora": ranked}
    save_file(load_file(file), file, {"lora_adapter_metadata": json.dumps(about)})
    networks = {part: getattr(pipeline, part) for part in ("unet", "text_encoder")}
    found = read_lora(file, networks, torch.device("cpu"))
    assert {delta.scale for delta in found.parts["unet"].values()} == {strength}  # of rank 4


def test_a_loaded_lora_does_not_change_with_its_file(place: Path, tmp_path: Path) -> None:
    _, pipeline, _ = _built(place, "sd1")
    file = save_peft(tmp_path / "a.safetensors", pipeline, seed=5)
    networks = {part: getattr(pipeline, part) for part in ("unet", "text_encoder")}
    [delta, *_] = read_lora(file, networks, torch.device("cpu")).parts["unet"].values()
    before = delta.down.clone()
    with file.open("r+b") as handle:
        handle.write(bytes(file.stat().st_size))
    assert torch.equal(delta.down, before)


def _renamed(old: str, new: str) -> Any:
    return lambda state: {key.replace(old, new): one for key, one in state.items()}


def _wider(state: dict[str, Any]) -> dict[str, Any]:
    """As of a model whose text encoder is wider."""
    key = next(key for key in state if "attn2.to_k.lora_A" in key)
    return {**state, key: torch.zeros(4, 48)}


def _with_alphas(state: dict[str, Any]) -> dict[str, Any]:
    """With an α for each output of a layer."""
    key = next(key for key in state if "attn2.to_k.lora_A" in key)
    return {**state, key.replace("lora_A.weight", "alpha"): torch.ones(16)}


def _of_rank_zero(state: dict[str, Any]) -> dict[str, Any]:
    return {k: (v[:0] if "lora_A" in k else v[:, :0]).contiguous() for k, v in state.items()}


FAULTS: dict[str, tuple[Any, str]] = {
    "a width": (_wider, r"another architecture: it updates \S*attn2.to_k of the unet by 16x4 times "
                r"4x48, and that is 16x32 in this model"),
    "a layer": (_renamed("down_blocks.0", "down_blocks.7"), r"updates down_blocks.7\S+ of the unet,"
                " which this model does not have: it is made for another architecture"),
    "a tower": (_renamed("text_encoder.", "text_encoder_2."), r"of the text_encoder_2, which this"),
    "a kind": (_renamed("lora_A.weight", "hada_w1_a"), r"is of the kind LoHa; plain LoRAs are"),
    "no factor": (lambda s: {k: v for k, v in s.items() if "lora_B" not in k}, r"has no up weight"),
    "no LoRA": (lambda s: {"conv.weight": torch.zeros(1)}, r"'conv.weight', which is none of a"),
    "nothing": (lambda s: {}, r"holds no update"),
    "alphas": (_with_alphas, r"an α of several numbers for \S*attn2.to_k of the unet"),
    "no rank": (_of_rank_zero, r"another architecture: it updates \S+ of the \w+ by 64x0 times"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_known_with_its_reason(
    place: Path, tmp_path: Path, fault: str
) -> None:
    _, _, loras = _built(place, "sd1")
    change, message = FAULTS[fault]
    state = load_file(place / "sd1-loras" / "peft.safetensors")
    save_file(change(state), tmp_path / "bad.safetensors")
    folder = lora_folder.LoraFolder(tmp_path, {**loras.networks}, torch.device("cpu"))  # type: ignore[attr-defined]
    [known] = folder.scan()
    assert re.search(message, known.fault), known.fault
    with pytest.raises(LoraError, match=message):
        folder.adapters([("bad", 1.0, known.sha256)])


@pytest.mark.parametrize(
    "said",
    ['{"unet.lora_alpha": "four"}', '{"unet.alpha_pattern": {"(": 4}}', '{"unet.lora_alpha": [4]}'],
)
def test_a_file_with_nonsense_in_its_metadata_hides_no_other(
    place: Path, tmp_path: Path, said: str
) -> None:
    _, _, loras = _built(place, "sd1")
    state = load_file(place / "sd1-loras" / "peft.safetensors")
    save_file(state, tmp_path / "bad.safetensors", metadata={"lora_adapter_metadata": said})
    save_file(state, tmp_path / "good.safetensors")
    folder = lora_folder.LoraFolder(tmp_path, {**loras.networks}, torch.device("cpu"))  # type: ignore[attr-defined]
    bad, good = folder.scan()
    assert (good.fault, "'bad' is damaged" in bad.fault) == ("", True)
    with pytest.raises(LoraError, match="'bad' is damaged"):
        folder.adapters([("bad", 1.0, bad.sha256)])


def test_a_name_that_is_not_utf8_is_told_as_far_as_it_can_be(place: Path, tmp_path: Path) -> None:
    _, _, loras = _built(place, "sd1")
    file = os.fsencode(tmp_path) + b"/caf\xe9.safetensors"
    shutil.copy(os.fsencode(place / "sd1-loras" / "peft.safetensors"), file)
    folder = lora_folder.LoraFolder(tmp_path, {**loras.networks}, torch.device("cpu"))  # type: ignore[attr-defined]
    [known] = folder.scan()
    assert known.name == "caf\ufffd"
    assert LoraCard(name=known.name, sha256=known.sha256, fault=known.fault).model_dump_json()
    assert "is not UTF-8; rename it" in known.fault


def test_files_may_come_change_and_go(place: Path, tmp_path: Path) -> None:
    _, _, loras = _built(place, "sd1")
    folder = lora_folder.LoraFolder(tmp_path / "later", loras.networks, torch.device("cpu"))  # type: ignore[attr-defined]
    assert folder.scan() == ()
    (tmp_path / "later").mkdir()
    file = Path(shutil.copy(place / "sd1-loras" / "peft.safetensors", tmp_path / "later"))
    [known] = folder.scan()
    assert known.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    shutil.copy(place / "sd1-loras" / "kohya.safetensors", file)
    assert folder.scan()[0].sha256 != known.sha256
    with pytest.raises(LoraError, match="'peft' has changed since it was asked for"):
        folder.adapters([("peft", 1.0, known.sha256)])
    file.write_bytes(file.read_bytes()[:3000])
    assert "damaged or truncated" in folder.scan()[0].fault
    file.unlink()
    with pytest.raises(LoraError, match="'peft' is gone"):
        folder.adapters([("peft", 1.0, known.sha256)])
    assert folder.scan() == ()


def test_what_cannot_be_read_is_said_and_tried_again(place: Path, tmp_path: Path) -> None:
    _, _, loras = _built(place, "sd1")
    folder = lora_folder.LoraFolder(tmp_path, loras.networks, torch.device("cpu"))  # type: ignore[attr-defined]
    file = Path(shutil.copy(place / "sd1-loras" / "peft.safetensors", tmp_path))
    [known] = folder.scan()
    file.unlink()
    file.symlink_to("/proc/self/mem")  # which can be opened, and not be read, by root neither
    with pytest.raises(LoraError, match="'peft' cannot be read: Input/output error"):
        folder.adapters([("peft", 1.0, known.sha256)])
    [unread] = folder.scan()
    assert unread.fault == "LoRA 'peft' cannot be read: Input/output error"
    file.unlink()
    shutil.copy(place / "sd1-loras" / "peft.safetensors", tmp_path)
    assert folder.scan() == (known,)


def test_what_is_no_file_is_passed_over(place: Path, tmp_path: Path) -> None:
    """A pipe above all, whose other end may never be opened."""
    _, _, loras = _built(place, "sd1")
    folder = lora_folder.LoraFolder(tmp_path, loras.networks, torch.device("cpu"))  # type: ignore[attr-defined]
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    shutil.copy(place / "sd1-loras" / "peft.safetensors", tmp_path)
    found: list[str] = []
    look = threading.Thread(target=lambda: found.extend(o.name for o in folder.scan()), daemon=True)
    look.start()
    look.join(30)
    assert found == ["peft"]


def test_what_was_used_least_lately_is_forgotten(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, loras = _built(place, "sd1")
    folder = lora_folder.LoraFolder(loras.path, loras.networks, torch.device("cpu"))  # type: ignore[attr-defined]
    known = {one.name: one.sha256 for one in folder.scan()}
    [first] = folder.adapters([("old", 1.0, known["old"])]).loras  # type: ignore[union-attr]
    monkeypatch.setattr(lora_folder, "_CACHED_BYTES", 2 * first[0].size_bytes + 100)
    for name in ("peft", "old", "kohya"):
        folder.adapters([(name, 1.0, known[name])])
    assert list(folder._loaded) == [known["old"], known["kohya"]]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_prompts_that_are_read_together_have_their_own_loras(place: Path, family: str) -> None:
    """Batches of three, as on a GPU, of prompts of one and two chunks."""
    model, _, loras = _built(place, family)
    hashes = {one.name: one.sha256 for one in loras.scan()}
    kohya, peft = (loras.adapters([(name, 0.9, hashes[name])]) for name in ("kohya", "peft"))
    wanted: list[Wanted] = [
        ("a red apple", None, None),
        ("a red apple", "blurry", kohya),
        ("apple " * 100, "", peft),
        ("a red apple", "", peft),
    ]

    def fresh(rows: int) -> TextEncoders:
        assert isinstance(model.context, TextEncoders)
        return replace(model.context, rows=rows, _cache=OrderedDict())

    together, calls = fresh(3), list[int]()
    first = together.towers[0].model
    hook = first.register_forward_hook(lambda *_: calls.append(1))
    try:
        together.prepare(wanted)
        prepared = len(calls)
        long = len(together.towers[0].chunks(wanted[2][0]))
        assert long > 1
        assert prepared == math.ceil((6 + 2 * long) / 3)
        given = [
            together.conditioning(prompt, negative, 5.0, model.sizes[0], adapters)
            for prompt, negative, adapters in wanted
        ]
        assert len(calls) == prepared
    finally:
        hook.remove()
    for (prompt, negative, adapters), one in zip(wanted, given, strict=True):
        for rows, tolerance in ((3, 0.0), (1, 1e-4)):
            other = fresh(rows).conditioning(prompt, negative, 5.0, model.sizes[0], adapters)
            for ours, others in (
                (one.context, other.context),
                (one.unconditional, other.unconditional),
            ):
                for a, b in zip(ours, others, strict=True):
                    assert torch.allclose(a, b, rtol=0, atol=tolerance)
    assert not torch.equal(given[0].context[0], given[1].context[0])
