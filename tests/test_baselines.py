"""Baselines: each does what its name says, and all are called alike."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from stylenb import StylenbError, lpips_distance, sample_photo, scores
from stylenb.course import baselines
from stylenb.course.baselines import BASELINES
from stylenb.inference import redraw
from stylenb.lora import add_lora, set_scale
from stylenb.losses import PictureLosses
from stylenb.photos import to_pictures, to_tensor
from stylenb.pocket.styles import apply_style


@pytest.fixture(scope="module")
def photos():
    return [sample_photo(name, 64) for name in ("chelsea", "coffee", "astronaut")]


@pytest.fixture(scope="module")
def examples():
    names = ("rocket", "brick", "coins", "retina")
    return [apply_style("blueprint", sample_photo(name, 64), 0) for name in names]


def quick(name, photos, examples, strength, base):
    more = {"steps": 4} if name == "Gatys" else {}
    return BASELINES[name].draw(photos, examples, strength, base, **more)


def distance(a, b):
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_turns_photos_into_pictures(name, tiny, photos, examples):
    pictures = quick(name, photos, examples, BASELINES[name].strengths[-1], tiny)
    assert [p.size for p in pictures] == [(64, 64)] * 3 and {p.mode for p in pictures} == {"RGB"}
    (first,) = quick(name, photos[:1], examples, BASELINES[name].strengths[-1], tiny)
    assert distance(first, pictures[0]) < 0.5  # whatever else is in the list
    if not BASELINES[name].sees_style:
        assert quick(name, photos, None, BASELINES[name].strengths[-1], tiny) == pictures


@pytest.mark.parametrize("name", [n for n in BASELINES if n != "photo as it is"])
def test_strength_is_how_far_a_baseline_goes(name, tiny, photos, examples):
    start, *further = (quick(name, photos, examples, strength, tiny) for strength in (0, 0.3, 1))
    lossy = name in ("img2img", "latent AdaIN")
    assert start == (baselines.encode_and_decode(tiny, photos) if lossy else photos)
    near, far = (np.mean([distance(*pair) for pair in zip(p, start)]) for p in further)  # noqa: B905
    assert 0 < near < far
    for wrong in (-0.1, 1.1):
        with pytest.raises(StylenbError, match=f"strength is a number from 0 to 1, not {wrong}"):
            quick(name, photos, examples, wrong, tiny)


@pytest.mark.parametrize("name", [n for n, one in BASELINES.items() if one.sees_style])
def test_what_sees_the_style_needs_pictures_of_it(name, tiny, photos):
    for none in ([], None):
        with pytest.raises(StylenbError, match="nothing to work on"):
            quick(name, photos, none, 0.5, tiny)


def test_a_curve_goes_upwards_and_ends_where_the_knob_does():
    for one in BASELINES.values():
        assert list(one.strengths) == sorted(one.strengths) and 0 <= min(one.strengths)
        assert max(one.strengths) <= 1


def test_the_photo_is_left_as_it_is(photos):
    assert baselines.photo_as_it_is(photos) == photos


def test_plain_img2img_leaves_loras_out(tiny, photos):
    base = copy.copy(tiny)
    base.unet = copy.deepcopy(tiny.unet)
    base.image_size = 512  # whose solver draws noise, of each photo its own
    assert base.default_solver == "ddim"
    plain = baselines.img2img(photos, None, 0.4, base, seed=3)
    assert plain == redraw(base, photos, 0.4, seed=(3, 4, 5))
    for p in add_lora(base, "some", rank=2):
        p.data.fill_(0.2)
    set_scale(base, "some")
    assert redraw(base, photos, 0.4, seed=(3, 4, 5)) != plain
    assert baselines.img2img(photos, None, 0.4, base, seed=3) == plain


def quantiles(pictures):
    values = np.concatenate([np.asarray(p, float).reshape(-1, 3) for p in pictures])
    return np.quantile(values, np.linspace(0.05, 0.95, 10), axis=0)


def test_matched_colours_are_those_of_all_style_pictures_together(photos):
    random = np.random.default_rng(0)
    colours = [random.normal((40 + 90 * i, 120, 200 - 60 * i), 15, (64, 64, 3)) for i in (0, 1)]
    style = [Image.fromarray(c.clip(0, 255).astype(np.uint8)) for c in colours]
    for photo in photos:
        (matched,) = baselines.match_colours([photo], style)
        assert np.abs(quantiles([matched]) - quantiles(style)).mean() < 2
        assert np.abs(quantiles([photo]) - quantiles(style)).mean() > 20
        assert scores.edge_agreement(matched, photo).item() > 0.5  # and nothing else has changed
    (half,) = baselines.match_colours(photos[:1], style, 0.5)
    (whole,) = baselines.match_colours(photos[:1], style)
    middle = (np.asarray(photos[0], float) + np.asarray(whole, float)) / 2
    assert np.abs(np.asarray(half, float) - middle).max() <= 1


@torch.no_grad()
def test_gatys_lowers_its_own_loss(photos, examples):
    looks, images = PictureLosses(to_tensor(examples)), to_tensor(photos)
    before = looks.style(images)
    half, whole = (baselines.gatys(photos, examples, s, steps=16) for s in (0.5, 1.0))
    assert half == baselines.gatys(photos, examples, steps=8)  # the way is the same
    near, far = (lpips_distance(p, photos) for p in (half, whole))
    style_then, style_now = (looks.style(to_tensor(p)) for p in (half, whole))
    assert (0.02 * near + style_then < before).all()
    assert (0.02 * far + style_now < 0.02 * near + style_then).all()
    assert (style_now < 0.85 * before).all()
    (kept,) = baselines.gatys(photos[:1], examples, 1.0, steps=16, content_weight=1.0)
    assert lpips_distance(kept, photos[0]) < 0.7 * far[0]


def test_adain_gives_the_statistics_of_the_style():
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 4, 8, 8, generator=random) * torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1)
    style = torch.randn(5, 4, 6, 6, generator=random) * 3 + torch.arange(4.0).view(4, 1, 1)
    found = baselines.adain(latents, style)
    for one in found:
        assert torch.allclose(one.mean((1, 2)), style.mean((0, 2, 3)), atol=1e-4)
        assert torch.allclose(one.std((1, 2)), style.std((0, 2, 3)), atol=1e-4)
    a, b = latents[0, 1].flatten(), found[0, 1].flatten()
    assert torch.corrcoef(torch.stack([a, b]))[0, 1].item() == pytest.approx(1)  # in their places
    flat = baselines.adain(torch.ones(1, 4, 8, 8), style)
    assert flat.isfinite().all()


@torch.no_grad()
def test_latent_adain_goes_from_the_photos_to_the_style(tiny, photos, examples):
    latents, style = (tiny.encode(to_tensor(p)) for p in (photos, examples))
    middle = (latents + baselines.adain(latents, style)) / 2
    expected = to_pictures(tiny.decode(middle))
    found = baselines.latent_adain(photos, examples, 0.5, tiny)
    assert max(distance(*pair) for pair in zip(found, expected, strict=True)) < 0.1
