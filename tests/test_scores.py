"""Scores: what they are for equal pictures, for known differences, and on the shipped networks."""

import math

import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import load_file

import stylenb
from stylenb import StylenbError, judge, losses, lpips_distance, psnr, sample_photo, scores
from stylenb.pocket.scenes import draw_scene
from stylenb.pocket.styles import STYLES, apply_style


def grey(value, side=32):
    return Image.new("RGB", (side, side), (value,) * 3)


@pytest.fixture(scope="module")
def photos():
    return [sample_photo(name, 128) for name in ("chelsea", "coffee")]


def blurred(pictures, radius):
    return [p.filter(ImageFilter.GaussianBlur(radius)) for p in pictures]


def test_psnr():
    assert psnr(grey(100), grey(100)) == math.inf
    expected = 10 * math.log10(255**2 / 10**2)
    assert psnr(grey(100), grey(110)) == pytest.approx(expected)
    assert psnr([grey(100), grey(0)], [grey(110), grey(255)]) == pytest.approx(expected / 2)
    with pytest.raises(ValueError):
        psnr([grey(1), grey(2)], [grey(1)])


def test_a_missing_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(stylenb.base, "DATA", tmp_path)
    for load in (scores.load_judge, losses.load_features):
        with pytest.raises(StylenbError, match="is missing: clone the whole repository"):
            load.__wrapped__()  # past the cache


# --- with the shipped networks ---


def test_lpips_distance(photos):
    assert torch.equal(lpips_distance(photos, photos), torch.zeros(2))
    little, much = (lpips_distance(photos, blurred(photos, radius)) for radius in (0.7, 3))
    assert little.shape == (2,) and (little > 0).all() and (much > little).all()
    assert torch.allclose(lpips_distance(blurred(photos, 3), photos), much, rtol=1e-4)
    assert lpips_distance(photos[0], blurred(photos, 3)[0]).shape == (1,)
    assert torch.allclose(lpips_distance(photos[0], blurred(photos, 3)[0])[0], much[0], rtol=1e-3)
    assert (lpips_distance(photos, photos[::-1]) > much).all()


def test_lpips_runs_on_the_shipped_weights():
    network = losses.load_features()
    shipped = load_file(stylenb.base.DATA / "perceptual" / "squeezenet1_1.safetensors")
    weights = {
        name.split(".", 1)[1]: value
        for name, value in network.net.state_dict().items()  # "slice2.3.squeeze.weight"
    }
    assert weights.keys() == shipped.keys() and len(shipped) > 40
    assert all(torch.equal(weights[k], v.float()) for k, v in shipped.items())
    assert not any(p.requires_grad for p in network.parameters()) and not network.training


def test_the_judge_names_a_style_for_every_picture(photos):
    network, styles = scores.load_judge()
    assert styles == list(STYLES) and not network.training
    probabilities = scores.style_probabilities(photos)
    assert probabilities.shape == (2, len(STYLES)) and (probabilities >= 0).all()
    assert torch.allclose(probabilities.sum(1), torch.ones(2), atol=1e-5)
    names = judge(photos)
    assert len(names) == 2 and set(names) <= set(STYLES)
    assert names[0] == styles[probabilities[0].argmax()]
    assert judge(photos[0]) == names[:1]


def test_the_judge_sees_any_size():
    scene = draw_scene(0).picture
    styles = ["charcoal", "blueprint", "stained_glass", "poster"]
    pictures = [apply_style(style, scene, 0) for style in styles]
    assert judge(pictures) == styles
    assert judge([p.resize((256, 256), Image.Resampling.BICUBIC) for p in pictures]) == styles
