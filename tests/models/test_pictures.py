"""Tensors to pictures: range, premultiplied alpha, sheets."""

import pytest
import torch

from models.pictures import sheet, to_picture


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
