"""Where things come to stand, read off the pixels."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from app.jobs.scene import Relation, Scene
from models.layout import lay

SIDE = 64
RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def thing(colour: tuple[float, float, float], *, shape: tuple[int, int] = (40, 40)) -> Tensor:
    """A rectangle of one colour on nothing, premultiplied, in [-1, 1]."""
    picture = torch.zeros(4, SIDE, SIDE)
    height, width = shape
    top, left = 10, 5  # not in the middle: what is shown counts, not the canvas
    rectangle = torch.tensor([*colour, 1.0])[:, None, None]
    picture[:, top : top + height, left : left + width] = rectangle
    return picture * 2 - 1


def where(picture: Tensor, colour: tuple[float, float, float]) -> tuple[float, float, float]:
    """Middle (x, y) and area of what has this colour, as shares of the side and the picture."""
    unit = (picture + 1) / 2
    wanted = torch.tensor(colour)[:, None, None]
    seen = ((unit[:3] - wanted).abs().amax(0) < 0.1) & (unit[3] > 0.9)
    assert seen.any(), f"nothing of {colour} is seen"
    y, x = seen.nonzero().float().mean(0).tolist()
    return x / SIDE, y / SIDE, float(seen.float().mean())


def laid(relation: Relation, second: str = "a second") -> tuple[Tensor, Tensor]:
    picture = lay(Scene(relation=relation, parts=("a first", second)), [thing(RED), thing(BLUE)])
    assert picture.shape == (4, SIDE, SIDE)
    assert picture.dtype == torch.float32
    assert -1 <= float(picture.min()) <= float(picture.max()) <= 1
    unit = (picture + 1) / 2
    assert bool((unit[:3] <= unit[3:] + 1e-6).all())  # still premultiplied
    return torch.tensor(where(picture, RED)), torch.tensor(where(picture, BLUE))


def test_inside_is_in_the_middle_of_the_other_and_smaller() -> None:
    first, second = laid("inside")
    assert (first[:2] - second[:2]).abs().max() < 0.03
    picture = lay(Scene(relation="inside", parts=("a", "b")), [thing(RED), thing(BLUE)])
    seen = ((picture[3] > 0).float().mean().item(), first[2], second[2])
    assert seen[0] > 1.5 * seen[1]  # something is left around it
    assert seen[1] > 0.3


def test_on_top_stands_on_the_other() -> None:
    first, second = laid("on")
    assert first[1] < second[1] - 0.3
    assert abs(first[0] - second[0]) < 0.03
    picture = (lay(Scene(relation="on", parts=("a", "b")), [thing(RED), thing(BLUE)]) + 1) / 2
    column = picture[3, :, SIDE // 2]
    shown = (column > 0.5).nonzero()[:, 0]
    assert bool((column[shown[0] : shown[-1] + 1] > 0.5).all())  # no gap between them


def test_under_is_the_other_way_round() -> None:
    first, second = laid("under")
    assert first[1] > second[1] + 0.3


def test_beside_stands_on_one_ground_from_left_to_right() -> None:
    first, second = laid("beside")
    assert first[0] < second[0] - 0.4
    assert abs(first[1] - second[1]) < 0.02


@pytest.mark.parametrize(("relation", "hidden"), [("behind", 0), ("before", 1)])
def test_behind_and_in_front_tell_who_is_hidden(relation: Relation, hidden: int) -> None:
    both = laid(relation)
    assert both[hidden][1] < both[1 - hidden][1]  # what is behind stands higher
    picture = lay(Scene(relation=relation, parts=("a", "b")), [thing(RED), thing(RED)])
    alone = lay(Scene(relation="beside", parts=("a", "b")), [thing(RED), thing(BLUE)])
    assert picture.shape == alone.shape


@pytest.mark.parametrize(
    ("place", "low", "high"),
    [
        ("on_head", -1.0, -0.25),
        ("on_eyes", -0.12, 0.05),
        ("on_neck", 0.05, 0.4),
        ("on_body", 0.1, 0.4),
        ("on_feet", 0.3, 0.6),
    ],
)
def test_what_is_worn_is_where_it_is_worn(place: Relation, low: float, high: float) -> None:
    flat = thing(BLUE, shape=(15, 40))
    picture = lay(Scene(relation=place, parts=("a bear", "a thing")), [thing(RED), flat])
    bear, worn = where(picture, RED), where(picture, BLUE)
    assert abs(worn[0] - bear[0]) < 0.05
    extent = ((picture[0] > 0) & (picture[3] > 0.8)).any(1).sum().item() / SIDE
    assert low < (worn[1] - bear[1]) / extent < high


def test_several_are_one_more_than_once() -> None:
    apple = thing(RED, shape=(20, 20))
    several = (Scene(relation="two", parts=("a",)), Scene(relation="three", parts=("a",)))
    two, three = (lay(scene, [apple]) for scene in several)
    pair = lay(Scene(relation="beside", parts=("a", "b")), [apple] * 2)
    assert torch.equal(two, pair)
    assert where(three, RED)[2] > where(two, RED)[2] + 0.05


def test_a_scene_in_a_scene() -> None:
    crowned = Scene(relation="on_head", parts=("a cat", "a crown"))
    picture = lay(
        Scene(relation="inside", parts=(crowned, "a box")), [thing(RED), thing(BLUE), thing(GREEN)]
    )
    cat, crown, box = (where(picture, colour) for colour in (RED, BLUE, GREEN))
    assert crown[1] < cat[1]
    assert box[2] > cat[2] > 0.05


def test_what_shows_nothing_is_laid_too() -> None:
    nothing = torch.full((4, SIDE, SIDE), -1.0)
    picture = lay(Scene(relation="inside", parts=("a", "b")), [nothing, thing(BLUE)])
    assert where(picture, BLUE)[2] > 0.5
    assert float(lay(Scene(relation="two", parts=("a",)), [nothing]).max()) == -1.0


def test_larger_pictures_are_laid_in_their_own_size() -> None:
    large = torch.nn.functional.interpolate(thing(RED)[None], scale_factor=4)[0]
    assert lay(Scene(relation="two", parts=("a",)), [large]).shape == (4, 4 * SIDE, 4 * SIDE)


@pytest.mark.parametrize(
    "pictures", [[], [thing(RED)], [thing(RED)] * 3, [thing(RED)[:3]] * 2, [thing(RED)[:, :9]] * 2]
)
def test_other_pictures_are_refused(pictures: list[Tensor]) -> None:
    with pytest.raises(ValueError, match=r"the scene takes 2 pictures \[4, S, S\]"):
        lay(Scene(relation="inside", parts=("a", "b")), pictures)


def test_all_relations_are_known() -> None:
    for relation in get_args(Relation):
        alone = relation in ("two", "three", "alone")
        scene = Scene(relation=relation, parts=("a",) if alone else ("a", "b"))
        picture = lay(scene, [thing(RED)] * len(scene.parts))
        assert where(picture, RED)[2] > 0.1


def test_an_unknown_relation_is_refused() -> None:
    scene = Scene.model_construct(relation="around", parts=("a", "b"))
    with pytest.raises(ValueError, match="there is no relation 'around'"):
        lay(scene, [thing(RED)] * 2)
