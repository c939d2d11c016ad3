"""Batches: reproducible, true to their captions, and free of what is held out."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.errors import DatasetError
from models.train.batches import Batches, Mix
from models.train.captions import article, dress, subject
from models.train.colour import COLOURS as WORDS
from models.train.colour import colour_word, dominant_hue, recolour, to_hsv, to_rgb
from models.train.data import Captions, load_pictures
from models.train.heldout import HeldOut, content_words, read_heldout
from models.train.scenes import PLACEMENTS, compose, pair, plural, several, trio
from tests.models.conftest import COLOURS, draw

HELDOUT = HeldOut(
    tuple(
        content_words(prompt)
        for prompt in ("a cat inside an avocado", "a blue disc", "a heart-shaped cookie")
    )
)


@pytest.fixture
def batches(folder: Path) -> Batches:
    return Batches(load_pictures(folder, 24, progress=False), HELDOUT, 3, Mix(0.4, 0.4))


def test_same_seed_and_step_same_batch(batches: Batches) -> None:
    x, captions, swapped, things = batches.draw(5, 16)
    again = batches.draw(5, 16)
    assert torch.equal(x, again.pictures)
    assert captions == again.captions
    assert swapped == again.swapped
    assert things == again.things
    assert batches.draw(6, 16).captions != captions
    assert x.shape == (16, 4, 24, 24)
    assert float(x.min()) >= -1
    assert float(x.max()) <= 1


def test_loaders_draw_the_same_batches_ahead(folder: Path) -> None:
    data = load_pictures(folder, 24, progress=False)
    alone, ahead = (Batches(data, HELDOUT, 0, loaders=n).stream(4, 3, 2) for n in (0, 2))
    for step in (3, 5, 7):
        (number, one), (_, other) = next(alone), next(ahead)
        assert number == step
        assert torch.equal(one.pictures, other.pictures)
        assert one.captions == other.captions


def test_favoured_styles_come_ten_times_as_often(folder: Path) -> None:
    data = load_pictures(folder, 24, progress=False)
    data.captions = [
        replace(entry, style="flat" if i % 2 else "round") for i, entry in enumerate(data.captions)
    ]
    weights = Batches(data, HELDOUT, 0, Mix(favoured=("round",))).weights
    assert (weights / weights[0]).tolist() == pytest.approx([1, 0.1] * 3)


def test_no_batch_shows_what_is_held_out(batches: Batches) -> None:
    made = [caption for step in range(60) for caption in batches.draw(step, 16).captions]
    assert any("green" in caption for caption in made)
    assert not [caption for caption in made if HELDOUT.forbids(caption)]


@pytest.mark.parametrize(
    ("caption", "forbidden"),
    [
        ("an avocado next to a cat", True),
        ("a cat on top of a car", False),
        ("a BLUE disc, flat style", True),
        ("a blue square", False),
        ("a cookie", False),
        ("a heart-shaped cookie, flat style", True),
    ],
)
def test_held_out_compositions_are_known_in_any_wording(caption: str, forbidden: bool) -> None:
    assert HELDOUT.forbids(caption) is forbidden


def test_words_of_any_script_are_held_out() -> None:
    assert content_words("ein übel Ärger, 猫") == {"ein", "übel", "ärger", "猫"}


@pytest.mark.parametrize("row", ["prompt", "prompt\t", "prompt\ta the", "prompt a pink cat"])
def test_a_held_out_prompt_without_words_is_one_sentence(tmp_path: Path, row: str) -> None:
    file = tmp_path / "heldout.txt"
    file.write_text(f"# comment\n{row}\n")
    with pytest.raises(DatasetError, match=r"heldout\.txt', line 2: the prompt names nothing"):
        read_heldout(file)


def test_a_held_out_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"prompt\tcaf\xe9\n")
    for file in (tmp_path, tmp_path / "latin.txt"):
        with pytest.raises(DatasetError, match="cannot be read"):
            read_heldout(file)


def test_a_keyword_does_not_hide_what_is_held_out(folder: Path) -> None:
    data = load_pictures(folder, 24, progress=False)
    data.captions = [replace(entry, keywords=("plate",)) for entry in data.captions]
    heldout = HeldOut((content_words("a blue disc"),))
    batches, rng = Batches(data, heldout, 0, Mix(0.6, 0)), random.Random(0)
    discs = [i for i, entry in enumerate(data.captions) if entry.name == "disc"]
    drawn = {batches._sample(i, rng).caption.lower() for i in discs * 400}
    assert any("green plate" in caption for caption in drawn)
    assert not [caption for caption in drawn if "blue" in caption]


def test_heldout_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "heldout.txt"
    file.write_text(
        "\ufeff# comment\n\nemoji\tU+1F431\tcat face\tanimals\nprompt\ta pink elephant\n"
    )
    assert read_heldout(file).prompts == (frozenset({"pink", "elephant"}),)
    assert read_heldout(None).prompts == ()


def tensor(colour: str, shape: str = "disc") -> torch.Tensor:
    picture = draw(COLOURS[colour], shape)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).float() / 255
    return pixels.reshape(24, 24, 4).permute(2, 0, 1)


@pytest.mark.parametrize("colour", COLOURS)
def test_the_dominant_colour_is_named(colour: str) -> None:
    assert colour_word(tensor(colour)) == colour


@pytest.mark.parametrize("word", WORDS)
def test_a_recoloured_picture_has_the_colour_of_its_word(word: str) -> None:
    painted = recolour(tensor("green"), word)
    assert colour_word(painted) == word
    assert torch.equal(painted[3], tensor("green")[3])


def test_hsv_round_trip() -> None:
    rgb = torch.rand(3, 8, 8)
    assert torch.allclose(to_rgb(to_hsv(rgb)), rgb, atol=1e-5)


def test_a_grey_picture_has_no_hue() -> None:
    assert dominant_hue(torch.full((4, 8, 8), 0.5))[1] == 0.0


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: p.words[0])
def test_scenes_show_both_things_where_the_words_say(placement: object) -> None:
    scene = compose(tensor("red"), tensor("blue", "square"), placement)  # type: ignore[arg-type]
    red = (scene[0] > 0.6) & (scene[2] < 0.4)
    blue = (scene[2] > 0.6) & (scene[0] < 0.4)
    assert red.sum() > 20
    assert blue.sum() > 20
    assert (scene[:3] <= scene[3:] + 1e-5).all()
    word = placement.words[0]  # type: ignore[attr-defined]
    rows = torch.arange(24.0)[:, None].expand(24, 24)
    if word == "on top of":
        assert rows[red].mean() < rows[blue].mean()
    if word == "under":
        assert rows[red].mean() > rows[blue].mean()


def blobs(picture: torch.Tensor, channel: int) -> int:
    """How many separate things of a colour a scene holds."""
    left = (picture[channel] > 0.5) & (picture[3] > 0.5)
    count = 0
    while left.any():
        count += 1
        spread = torch.zeros_like(left)
        spread[tuple(left.nonzero()[0])] = True
        while True:
            grown = torch.nn.functional.max_pool2d(spread[None].float(), 3, 1, 1)[0].bool() & left
            if torch.equal(grown, spread):
                break
            spread = grown
        left &= ~spread
    return count


@pytest.mark.parametrize(("count", "phrase"), [(2, "two discs"), (3, "three discs")])
def test_several_are_as_many_as_the_words_say(count: int, phrase: str) -> None:
    scene = several(tensor("red"), "disc", count)
    assert scene.phrase == phrase
    assert blobs(scene.picture, 0) == count


def test_a_trio_names_and_shows_three() -> None:
    pictures = [tensor(colour) for colour in ("red", "green", "blue")]
    scene = trio(pictures, ["apple", "egg", "fox"])
    assert scene.phrase == "apple, an egg and a fox"
    assert [blobs(scene.picture, channel) for channel in range(3)] == [1, 1, 1]


def test_only_a_relation_with_an_order_has_a_swap() -> None:
    pictures = tensor("red"), tensor("blue", "square")
    scenes = [pair(pictures, ["cat", "avocado"], random.Random(seed)) for seed in range(60)]
    swaps = {scene.phrase: scene.swapped for scene in scenes}
    assert swaps["cat inside an avocado"] == "avocado inside a cat"
    assert swaps["cat next to an avocado"] is None


@pytest.mark.parametrize(
    ("one", "many"), [("fox", "foxes"), ("cherry", "cherries"), ("key", "keys"), ("bus", "bus")]
)
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many


def test_captions_vary_and_keep_their_subject() -> None:
    entry = Captions("cat face", ("cat", "pet"), "noto", "animals & nature")
    rng = random.Random(0)
    made = {dress(subject(entry, rng), entry.style, rng) for _ in range(200)}
    assert len(made) > 40
    assert sum("cat" in caption or "pet" in caption for caption in made) > 0.9 * len(made)
    assert article("avocado") == "an avocado"
    assert article("cat") == "a cat"


def test_a_whole_caption_stays_as_it_is_written(folder: Path) -> None:
    data = load_pictures(folder, 24, progress=False)
    text = "a house stands on an apple"
    data.captions = [Captions(text, style="flat", group="objects", whole=True)] * len(data)
    batches = Batches(data, HELDOUT, 0, Mix(0.5, 0.3))
    made = [caption.lower() for step in range(20) for caption in batches.draw(step, 16).captions]
    right = [caption in (text, f"{text}, flat style") for caption in made]
    assert sum(right) > 0.95 * len(made)  # but for a typo


REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "emoji"


@pytest.mark.skipif(not REAL.exists(), reason="the training pictures are not here")
@pytest.mark.slow
def test_no_held_out_pair_in_the_real_data() -> None:
    heldout = read_heldout(REAL / "heldout.txt")
    assert len(heldout.prompts) == 20
    data = load_pictures(REAL / "shard-000.tar", 24, progress=False)
    batches = Batches(data, heldout, 0, Mix(0.5, 0.5))
    made = [caption for step in range(40) for caption in batches.draw(step, 64).captions]
    assert not [caption for caption in made if heldout.forbids(caption)]
    batches.mix, rng = Mix(1, 0), random.Random(0)
    cats = [i for i, entry in enumerate(data.captions) if "cat" in content_words(entry.name)]
    coloured = [batches._sample(i, rng).caption for i in cats * 200]
    assert any("green" in caption for caption in coloured)
    assert not [caption for caption in coloured if "blue" in caption]  # "a blue kitten"


@pytest.mark.parametrize("start", range(0, 14, 2))
def test_an_echoed_batch_comes_again_under_the_next_number(folder: Path, start: int) -> None:
    """Rank 0 of two, each batch three times; begun anywhere, also amid the echoes."""
    data = load_pictures(folder, 24, progress=False)
    once, thrice = (Batches(data, HELDOUT, 0, echo=n) for n in (1, 3))
    stream = thrice.stream(4, start, 2)
    for step in range(start, 20, 2):
        number, batch = next(stream)
        assert number == step
        assert batch.captions == once.draw(step // 2 // 3 * 2, 4).captions
