"""Style transfer on a tiny random model: what seed, strength, style and fit do."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import stylenb
from stylenb import (
    StylenbError,
    load_lora,
    open_photo,
    sample_photo,
    save_lora,
    stylize,
    train_style,
)
from stylenb.inference import denoise
from stylenb.photos import to_pictures, to_tensor
from stylenb.training import Settings

PLAIN = Settings(rank=2, steps=3, batch_size=2, lpips_weight=0.0, style_weight=0.0)

STEPS = 4
NOISY = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def own_unet(tiny):
    own = copy.copy(tiny)
    own.unet = copy.deepcopy(tiny.unet)
    return own


@pytest.fixture
def base(tiny):
    return own_unet(tiny)


@pytest.fixture(scope="module")
def style(tiny, tmp_path_factory):
    """The file of a LoRA whose effect is plain to see."""
    own = own_unet(tiny)
    photos = [sample_photo(name, 64) for name in ("coffee", "rocket", "brick", "moon")]
    train_style(
        own, photos, settings=replace(PLAIN, steps=4, learning_rate=0.1, warmup=0), progress=False
    )
    return save_lora(own, tmp_path_factory.mktemp("style") / "some.safetensors")


@pytest.fixture(scope="module")
def photo():
    return sample_photo("chelsea", 64)


@torch.no_grad()
def predict(base):
    return base.predict_noise(NOISY, 500)


def test_the_same_seed_gives_the_same_bytes(base, photo, style):
    def run(seed):
        return stylize(photo, style, steps=STEPS, seed=seed, base=base).tobytes()

    first = run(3)
    torch.rand(7)
    assert run(3) == first
    assert run(4) != first


def test_the_more_strength_the_further_from_the_photo(base, photo):
    with torch.no_grad():
        start = np.asarray(to_pictures(base.decode(base.encode(to_tensor(photo))))[0], float)
    distance = [
        np.abs(np.asarray(stylize(photo, strength=s, steps=10, base=base), float) - start).mean()
        for s in (0.1, 0.4, 0.9)
    ]
    assert 0 < distance[0] < distance[1] < distance[2]


@pytest.mark.parametrize("strength, calls", [(1.0, 10), (0.5, 5), (0.26, 3), (0.001, 1)])
def test_strength_is_the_share_of_the_steps_that_are_run(base, strength, calls):
    seen, given, whole = [], [], base.predict_noise

    def predict_noise(latents, timestep, embedding=None):
        seen.append(int(timestep))
        given.append(latents)
        return whole(latents, timestep, embedding)

    base.predict_noise = predict_noise
    out = denoise(base, NOISY, strength, steps=10)
    assert out.shape == NOISY.shape
    assert seen == base.scheduler.timesteps[10 - calls :].tolist() == sorted(seen, reverse=True)
    assert 100 * (calls - 1) < seen[0] <= 100 * calls
    kept = base.scheduler.alphas_cumprod[seen[0]]  # and the noise is that of the first of them
    noise = torch.randn(NOISY.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(given[0], kept.sqrt() * NOISY + (1 - kept).sqrt() * noise, atol=1e-5)


@pytest.mark.parametrize("steps", [30, 999, 1000])
def test_strength_1_starts_at_the_end_of_the_schedule(base, steps):
    seen = []

    def predict_noise(latents, timestep, embedding=None):
        seen.append(int(timestep))
        return latents

    base.predict_noise = predict_noise
    denoise(base, NOISY, 1.0, steps)
    assert len(seen) == steps and 950 < seen[0] <= 999 and seen[-1] >= 0


def test_defaults_are_the_bases(base, photo):
    said = stylize(photo, strength=base.default_strength, steps=base.default_steps, base=base)
    assert stylize(photo, base=base).tobytes() == said.tobytes()


def test_style_and_scale(base, photo, style):
    def run(*style, **options):
        return stylize(photo, *style, steps=STEPS, base=base, **options)

    plain = run()
    assert plain.size == (64, 64) and plain.mode == "RGB"
    styled = run(style)
    assert styled.tobytes() != plain.tobytes()
    assert run(str(style)).tobytes() == styled.tobytes()
    assert run(style, scale=0).tobytes() == plain.tobytes()
    assert run(style, scale=0.5).tobytes() not in (plain.tobytes(), styled.tobytes())
    assert run(None).tobytes() == plain.tobytes()  # a style that was loaded plays no part


def test_a_base_by_its_folder(base, photo, tiny_folder):
    plain = stylize(photo, steps=STEPS, base=base)
    assert stylize(photo, steps=STEPS, base=tiny_folder).size == plain.size


def test_any_kind_of_photo(base, gradient, tmp_path):
    path = tmp_path / "photo.png"
    gradient.save(path)
    sources = (gradient, path, str(path), path.read_bytes(), np.asarray(gradient))
    pictures = {stylize(s, steps=STEPS, base=base).tobytes() for s in sources}
    assert len(pictures) == 1


def test_crop_and_pad(base, gradient):
    results = {}
    for fit in ("crop", "pad"):
        results[fit] = stylize(gradient, steps=STEPS, base=base, fit=fit)
        square = open_photo(gradient, size=64, fit=fit)
        assert results[fit].size == (64, 64)
        assert results[fit].tobytes() == stylize(square, steps=STEPS, base=base).tobytes()
    assert results["crop"].tobytes() != results["pad"].tobytes()
    assert stylize(gradient, steps=STEPS, base=base).tobytes() == results["crop"].tobytes()


def test_the_style_is_off_afterwards(base, photo, style):
    before = predict(base)
    stylize(photo, style, steps=STEPS, base=base)
    assert torch.equal(predict(base), before)


def test_the_style_is_off_after_an_error(base, photo, style):
    load_lora(base, style)  # which looks at a prediction too
    before, whole = predict(base), base.predict_noise

    def out_of_memory(latents, timestep, embedding=None):
        base.during = whole(NOISY, 500)
        raise RuntimeError("out of memory")

    base.predict_noise = out_of_memory
    with pytest.raises(RuntimeError, match="out of memory"):
        stylize(photo, style, steps=STEPS, base=base)
    base.predict_noise = whole
    assert not torch.equal(base.during, before)  # it was on
    assert torch.equal(predict(base), before)


def test_a_photo_can_be_stylised_before_a_style_is_trained(base, photo, style):
    stylize(photo, style, steps=STEPS, base=base)
    photos = [photo.rotate(90 * i) for i in range(4)]
    before = predict(base)
    train_style(base, photos, name="mine", settings=PLAIN, progress=False)
    assert not torch.equal(predict(base), before)


BAD_VALUES = {
    "strength 0": ({"strength": 0}, "strength lies above 0"),
    "strength -1": ({"strength": -1}, "strength lies above 0"),
    "strength 1.1": ({"strength": 1.1}, "up to 1, not 1.1"),
    "strength NaN": ({"strength": float("nan")}, "not nan"),
    "no steps": ({"steps": 0}, "from 1 to 1000, not 0"),
    "steps -3": ({"steps": -3}, "from 1 to 1000, not -3"),
    "1001 steps": ({"steps": 1001}, "from 1 to 1000, not 1001"),
    "2.5 steps": ({"steps": 2.5}, "not 2.5"),
    "unknown style": ({"style": "nope"}, "no style 'nope'"),
    "unknown base": ({"base": "nope"}, "no base 'nope'"),
    "unknown fit": ({"fit": "stretch"}, "'stretch'"),
    "a photo that is not there": ({"image": "gone.jpg"}, "no file 'gone.jpg'"),
    "a photo that is none": ({"image": b"Dear reader"}, "not a picture"),
    "a scale that is no number": ({"scale": float("nan")}, "NaN"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_bad_value_is_one_sentence(case, base, photo, style):
    values, part = BAD_VALUES[case]
    before = predict(base)
    options = {"image": photo, "style": style, "base": base, "steps": STEPS, **values}
    with pytest.raises(StylenbError) as caught:
        stylize(**options)
    message = str(caught.value)
    assert part in message and "\n" not in message and message.endswith(".")
    assert torch.equal(predict(base), before)


def test_an_unknown_style_is_found_before_a_base_is_loaded(photo, monkeypatch):
    monkeypatch.setattr("stylenb.inference._load_once", lambda base: pytest.fail("loaded in vain"))
    with pytest.raises(StylenbError, match="no style"):
        stylenb.stylize(photo, "nope", base="sd15")
