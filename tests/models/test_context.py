"""Prompts become contexts through a real open_clip model."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.bundle import Bundle
from models.clip_library import open_clip
from models.context import ClipReference, ContextEncoder, encode_text, load_clip
from models.errors import ContextError


def test_contexts_have_length_one_and_differ(tiny: Bundle) -> None:
    contexts = tiny.context.encode(["a cat", "a dog", ""])
    assert contexts.shape == (3, tiny.context.width)
    assert torch.allclose(contexts.norm(dim=1), torch.ones(3), atol=1e-5)
    assert not torch.equal(contexts[0], contexts[1])
    assert torch.equal(contexts[2], tiny.context.empty)


def test_a_context_does_not_depend_on_its_neighbours(tiny_folder: Path) -> None:
    def fresh() -> ContextEncoder:
        return ContextEncoder(load_clip(ClipReference(model="local-dir:clip"), tiny_folder))

    alone = fresh().encode(["a cat"])[0]
    among = fresh().encode(["a very long prompt about many things", "a cat", "🥑"])[1]
    assert torch.equal(alone, among)


def test_the_cache_is_bounded_and_changes_nothing(tiny: Bundle) -> None:
    encoder = ContextEncoder(tiny.context.clip, cache_size=2)
    before = encoder.encode(["a", "b", "c", "d"])
    assert len(encoder._cache) == 2
    assert torch.equal(before, encoder.encode(["a", "b", "c", "d"]))


def test_truncation_is_known(tiny: Bundle) -> None:
    assert tiny.context.context_length == 16
    assert not tiny.context.is_truncated("cat " * 14)
    assert tiny.context.is_truncated("cat " * 15)
    assert torch.equal(*tiny.context.encode(["cat " * 15, "cat " * 40]))


@pytest.mark.parametrize(
    "prompt", ["🥑" * 1000, "\u202eקוף", "\U0010fffd", "a\u0301" * 300, "<html>&amp;"]
)
def test_any_text_gets_a_context(tiny: Bundle, prompt: str) -> None:
    assert tiny.context.encode([prompt]).isfinite().all()


def test_trimmed_text_tower_equals_the_full_one(tiny: Bundle) -> None:
    prompts = ["a cat", "a dog inside a car", ""]
    tokens = tiny.context.clip.tokenizer(prompts, context_length=16)
    with torch.inference_mode():
        trimmed = encode_text(tiny.context.clip.model, tokens)
    assert torch.allclose(trimmed, tiny.context.encode(prompts), atol=1e-5)


def test_score_is_a_cosine(tiny: Bundle) -> None:
    picture = Image.new("RGBA", (40, 40), (200, 30, 30, 128))
    assert -1 <= tiny.context.score(picture, "a red square") <= 1


def test_a_pretrained_tag_with_a_local_file_loads(
    tiny: Bundle, tiny_folder: Path, tmp_path: Path
) -> None:
    """The path people take with weights of their own: an open_clip name and a weight file."""
    config = json.loads((tiny_folder / "clip" / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "avocat-test-clip.json").write_text(json.dumps(config))
    open_clip().add_model_config(tmp_path)
    weights = tiny_folder / "clip" / "open_clip_model.safetensors"
    clip = load_clip(ClipReference(model="avocat-test-clip", pretrained=str(weights)))
    assert torch.equal(ContextEncoder(clip).encode(["a cat"]), tiny.context.encode(["a cat"]))


def test_an_unknown_clip_is_a_sentence() -> None:
    with pytest.raises(ContextError, match=r"'ViT-Z-1' .* did not load"):
        load_clip(ClipReference(model="ViT-Z-1"))


def test_prompts_that_are_read_together_do_not_change_each_other(tiny: Bundle) -> None:
    """Batches of four, as on a GPU; the tower is called once for each."""
    clip, calls = tiny.context.clip, list[int]()

    def fresh(rows: int) -> ContextEncoder:
        return ContextEncoder(clip, rows=rows)

    prompts = ["a cat", "a very long prompt about many things", "🥑", "a dog", "", "a cat", "a b"]
    together = fresh(4).encode(prompts)
    for prompt, context in zip(prompts, together, strict=True):
        assert torch.equal(fresh(4).encode(["a fox", "an owl", prompt])[2], context)
    assert torch.allclose(fresh(1).encode(prompts), together, atol=1e-5)

    encoder = fresh(4)
    hook = clip.model.ln_final.register_forward_hook(lambda *_: calls.append(1))
    try:
        encoder.prepare([("a cat", None, None), ("a dog", "a blur", None), ("an owl", "", None)])
        assert len(calls) == 1  # the empty prompt is known from the start
        given = encoder.conditioning("a dog", "a blur", 3.0, (16, 16))
        assert len(calls) == 1
    finally:
        hook.remove()
    assert torch.equal(given.context[0], fresh(4).encode(["a dog"])[0])
