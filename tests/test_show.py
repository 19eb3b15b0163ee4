"""Figures: what they leave in a notebook, and the first plain picture of an interactive one."""

import base64
import io
import sys

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from stylenb.course import show


def bundle(figure):
    data, metadata = figure._repr_mimebundle_()
    kind = next(k for k in data if k.startswith("image/"))
    return Image.open(io.BytesIO(base64.b64decode(data[kind]))), data, metadata[kind]


def test_sheet_takes_every_kind_of_picture_and_keeps_the_text_alternative():
    pictures = [
        Image.new("RGB", (16, 16), "red"),
        np.zeros((16, 16, 3), np.uint8),
        torch.zeros(3, 16, 16),
        torch.zeros(1, 3, 16, 16),
        torch.rand(16, 16),
    ]
    names = ["a", "b", "c", "d", "e"]
    picture, data, metadata = bundle(
        show.sheet(pictures, names, columns=3, title="Five", alt="five squares")
    )
    assert metadata["alt"] == data["text/plain"] == "five squares"
    assert picture.width > picture.height > 100


def test_text_alternative_falls_back_on_the_titles():
    assert show.sheet([torch.zeros(3, 8, 8)] * 2, ["left", "right"], title="Two").alt == (
        "Two: left; right"
    )


def test_photographs_stay_small():
    photos = [Image.fromarray(skimage.data.astronaut()[i * 30 :][:128, :128]) for i in range(12)]
    _, data, _ = bundle(show.sheet(photos))
    assert len(next(v for k, v in data.items() if k.startswith("image/"))) < 150_000


def test_tensors_are_shown_from_minus_one_to_one():
    assert show.as_array(torch.full((3, 2, 2), -1.0)).max() == 0
    assert show.as_array(torch.full((3, 2, 2), 1.0)).min() == 1


def test_error_map_is_the_mean_difference():
    made = show.error_map(torch.full((3, 4, 4), -1.0), torch.full((3, 4, 4), 1.0), title="Error")
    shown = made.axes[2].images[0].get_array()
    assert shown.shape == (4, 4) and float(shown.min()) == 1.0
    assert "Error" in made.alt


@pytest.mark.parametrize("widgets", [True, False])
def test_interactive_shows_the_defaults_first_and_again_on_change(monkeypatch, widgets):
    displayed, drawn = [], []
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: displayed.extend(a))
    if not widgets:
        monkeypatch.setitem(sys.modules, "ipywidgets", None)

    def draw(amount, name):
        drawn.append((amount, name))
        return show.figure(2, 1, "plain")

    show.interactive(draw, amount=(0.0, 1.0, 0.5, 0.5), name=["x", "y"])
    assert drawn == [(0.5, "x")] and isinstance(displayed[0], show.Picture)
    if widgets:
        slider, choice, _ = displayed[1].children
        assert not slider.continuous_update
        slider.value = 1.0
        choice.value = "y"
        assert drawn[1:] == [(1.0, "x"), (1.0, "y")]
    else:
        assert len(displayed) == 1
