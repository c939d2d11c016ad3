"""Tensors to pictures: range, premultiplied alpha, sheets."""

import pytest
import torch
from PIL import Image

from models.pictures import fitted, fitted_mask, sheet, to_mask, to_picture, to_tensor


def test_straight_colour_is_recovered_from_premultiplied() -> None:
    x = torch.zeros(4, 1, 2)
    x[:, 0, 0] = torch.tensor([0.5, 0.25, 0.0, 0.5]) * 2 - 1
    x[:, 0, 1] = -1
    picture = to_picture(x)
    assert picture.mode == "RGBA"
    assert picture.getpixel((0, 0)) == (254, 127, 0, 128)
    assert picture.getpixel((1, 0)) == (0, 0, 0, 0)


def test_values_outside_the_range_are_clipped() -> None:
    picture = to_picture(torch.tensor([5.0, -5.0, 0.0, 1.0]).reshape(4, 1, 1))
    assert picture.getpixel((0, 0)) == (255, 0, 128, 255)


def test_rgb_tensors_become_rgb_pictures() -> None:
    assert to_picture(torch.zeros(3, 2, 5)).size == (5, 2)
    assert to_picture(torch.zeros(3, 2, 5)).mode == "RGB"


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4, 4\)"):
        to_picture(torch.zeros(2, 4, 4))


def test_a_sheet_has_a_cell_for_each_picture() -> None:
    pictures = [to_picture(torch.ones(4, 8, 8))] * 5
    assert sheet(pictures, 3, 10).size == (30, 20)


def test_a_picture_is_the_same_after_there_and_back() -> None:
    pixels = bytes(range(256)) * 4
    there = Image.frombytes("RGBA", (16, 16), pixels)
    opaque = there.copy()
    opaque.putalpha(255)
    assert to_picture(to_tensor(opaque, 4)).tobytes() == opaque.tobytes()
    assert to_picture(to_tensor(opaque, 3)).tobytes() == opaque.convert("RGB").tobytes()
    x = to_tensor(there, 4)
    assert (x[:3] <= x[3:]).all()  # premultiplied: no colour is more than its alpha
    again = to_tensor(to_picture(x), 4)
    assert float((again - x).abs().max()) <= 2 / 255


def test_transparency_is_white_to_a_model_without_it() -> None:
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert to_picture(to_tensor(half, 3)).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ValueError, match="not 2"):
        to_tensor(half, 2)


def test_a_picture_is_fitted_in_its_own_proportions() -> None:
    wide = Image.new("RGB", (40, 20), (0, 200, 0))
    shown = fitted(wide, (16, 16))
    assert shown.size == (16, 16)
    assert [shown.getpixel((8, y))[3] for y in (0, 3, 4, 11, 12, 15)] == [0, 0, 255, 255, 0, 0]
    assert shown.getpixel((0, 8)) == (0, 200, 0, 255)
    assert fitted(shown, (16, 16)).tobytes() == shown.tobytes()
    thin = fitted(Image.new("RGB", (1000, 1)), (16, 16))
    assert thin.getchannel("A").getbbox() == (0, 7, 16, 8)


def test_nothing_shines_through_from_under_transparency() -> None:
    picture = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 16, 32))
    small = fitted(picture, (8, 8))
    assert {small.getpixel((x, 4))[0] for x in range(8) if small.getpixel((x, 4))[3]} == {0}


def test_a_mask_is_fitted_as_its_picture_and_keeps_what_it_does_not_reach() -> None:
    mask = Image.new("L", (40, 20))
    mask.paste(255, (0, 0, 20, 20))
    anew = to_mask(fitted_mask(mask, (16, 16)))
    assert anew.shape == (1, 16, 16)
    assert anew[0, 4:12, :8].all()
    assert int(anew.sum()) == 8 * 8
