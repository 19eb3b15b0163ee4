"""Style transfer on a tiny random model: what seed, strength, style, solver and fit do."""

import copy
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from peft.tuners.lora import LoraLayer
from PIL import Image
from skimage.color import rgb2lab

import stylenb
from stylenb import (
    StylenbError,
    load_lora,
    open_photo,
    sample_photo,
    save_lora,
    stylize,
    stylize_folder,
    train_style,
)
from stylenb.base import SOLVER_STEPS, Base
from stylenb.inference import denoise, invert, with_colours_of
from stylenb.photos import to_pictures, to_tensor
from stylenb.training import Settings

PLAIN = Settings(rank=2, steps=3, batch_size=2, lpips_weight=0.0, style_weight=0.0)

STEPS = 4
NOISY = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
THREE = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def furthest(pictures, others):
    """The largest difference of any value, in levels of 255."""
    pairs = zip(pictures, others, strict=True)
    return max(np.abs(np.asarray(a, float) - np.asarray(b, float)).max() for a, b in pairs)


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
def styles(tiny, tmp_path_factory):
    """The files of two LoRAs of different rank, alpha and weights, "a" and "b"."""
    folder, files = tmp_path_factory.mktemp("styles"), {}
    for seed, name in enumerate("ab", 1):
        own = own_unet(tiny)
        stylenb.add_lora(own, name, rank=seed, alpha=0.7 * seed, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for layer in lora_layers(own):
            b = layer.lora_B[name].weight
            b.data = torch.randn(b.shape, generator=generator) * 0.5
        files[name] = save_lora(own, folder / f"{name}.safetensors", name)
    return files


def lora_layers(base):
    return [m for m in base.unet.modules() if isinstance(m, LoraLayer)]


@pytest.fixture(scope="module")
def photo():
    return sample_photo("chelsea", 64)


@pytest.fixture(scope="module")
def photos():
    return [sample_photo(name, 64) for name in ("chelsea", "coffee", "rocket", "brick", "moon")]


@torch.no_grad()
def predict(base):
    return base.predict_noise(NOISY, 500)


@pytest.mark.parametrize("solver", SOLVER_STEPS)
def test_the_same_seed_gives_the_same_bytes(base, photo, style, solver):
    def run(seed):
        return stylize(photo, style, solver=solver, steps=STEPS, seed=seed, base=base).tobytes()

    first = run(3)
    torch.rand(7)
    assert run(3) == first
    assert (run(4) == first) == (solver == "inversion")  # which draws no noise


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
    out = denoise(base, NOISY, strength, steps=10, solver="ddim")
    assert out.shape == NOISY.shape
    plain = DDIMScheduler.from_config(base.scheduler.config)
    plain.set_timesteps(10)
    assert seen == plain.timesteps[10 - calls :].tolist() == sorted(seen, reverse=True)
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
    denoise(base, NOISY, 1.0, steps, solver="ddim")
    assert len(seen) == steps and 950 < seen[0] <= 999 and seen[-1] >= 0


def at_level(base, monkeypatch):
    """Stand in for the UNet and record the timesteps; what it returns does not matter."""
    seen = []

    def predict_noise(latents, timestep, embedding=None):
        seen.append(int(timestep))
        return latents

    monkeypatch.setattr(base, "predict_noise", predict_noise)
    return seen


@pytest.mark.parametrize("strength", [0.001, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("steps", [1, 3, 10, 1000])
def test_dpm_starts_at_the_very_level_and_ends_near_0(base, strength, steps, monkeypatch):
    seen = at_level(base, monkeypatch)
    out = denoise(base, NOISY, strength, steps, solver="dpm")
    assert out.isfinite().all()
    assert len(seen) == len(set(seen)) == max(1, round(steps * strength))
    assert seen == sorted(seen, reverse=True) and seen[-1] >= 0
    assert seen[0] == round(1000 * strength) - 1
    assert len(seen) == 1 or seen[-1] == 0


def test_inversion_and_back_is_where_it_began(base, monkeypatch):
    seen, steps = [], 100
    whole = base.predict_noise

    def predict_noise(latents, t, embedding=None):
        seen.append(int(t))
        return whole(latents, t, embedding)

    monkeypatch.setattr(base, "predict_noise", predict_noise)
    noisy = invert(base, NOISY, 0.6, steps)
    assert len(seen) == 60 and seen == sorted(seen) and 580 < seen[-1] < 600
    back = denoise(base, NOISY, 0.6, steps, solver="inversion")
    assert seen[60:120] == seen[:60] and seen[120:] == seen[:60][::-1]
    assert (noisy - NOISY).norm() > 0.5 * NOISY.norm()
    assert (back - NOISY).norm() < 0.02 * NOISY.norm()
    known = denoise(base, torch.zeros_like(NOISY), 0.6, steps, solver="inversion", noisy=noisy)
    assert torch.equal(known, back) and len(seen) == 240  # not once more upwards


def test_inversion_finds_the_noise_of_a_case_with_a_known_answer(base):
    """Gaussian latents, a perfect UNet: going up the schedule only rescales them."""
    variance, top = 0.25, base.scheduler.alphas_cumprod[591]
    base.predict_noise = lambda latents, t, _: exact_noise(base, variance, latents, t)
    start = variance**0.5 * torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    answer = start * ((top * variance + 1 - top) / variance) ** 0.5
    assert (invert(base, start, 0.6, 100) - answer).norm() < 0.03 * answer.norm()


def test_inversion_is_by_the_base_as_it_was_loaded(base, style):
    plain = invert(base, NOISY, 0.5, 10)
    name = load_lora(base, style)
    stylenb.set_scale(base, name, 1.0)
    said = base.with_prompt("a house")
    before = {k: v.clone() for k, v in base.unet.state_dict().items()}
    assert torch.allclose(invert(said, NOISY, 0.5, 10), plain, atol=1e-5)
    assert not torch.allclose(denoise(base, NOISY, 0.5, 10, solver="inversion"), NOISY, atol=0.05)
    loud = base.predict_noise(NOISY, 500)
    stylenb.set_scale(base, None)
    assert not torch.allclose(base.predict_noise(NOISY, 500), loud, atol=1e-3)  # it was on again
    weight = base.unet.conv_in.weight  # as DreamBooth leaves it
    base.unet.originals = {"conv_in.weight": weight.detach().clone()}
    weight.data = weight.data * 1.5
    changed = weight.data
    assert torch.allclose(invert(base, NOISY, 0.5, 10), plain, atol=1e-5)
    assert weight.data is changed or torch.equal(weight.data, changed)
    weight.data = base.unet.originals.pop("conv_in.weight")
    assert all(torch.equal(v, before[k]) for k, v in base.unet.state_dict().items())
    stylenb.merge_lora(base, name)
    with pytest.raises(StylenbError, match="unmerge_lora"):
        invert(base, NOISY, 0.5, 10)


def test_an_unknown_solver_is_one_sentence(base):
    with pytest.raises(StylenbError, match="one of ddim, inversion, dpm, not 'euler'"):
        denoise(base, NOISY, 0.5, solver="euler")


def exact_noise(base, variance, latents, t):
    """What a perfect UNet predicts if latents are Gaussian with this variance: E[noise | noisy]."""
    kept = base.scheduler.alphas_cumprod[int(t)]
    return (1 - kept).sqrt() * latents / (kept * variance + 1 - kept)


@pytest.mark.parametrize("solver, steps, most", [("ddim", 30, 0.08), ("dpm", 10, 0.06)])
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_the_solvers_on_a_case_with_a_known_answer(base, solver, steps, most, strength):
    """Gaussian latents: the flow from noise to them only rescales, by a factor that is known."""
    variance, first = 0.25, []

    def predict_noise(latents, t, embedding=None):
        first.append((latents, base.scheduler.alphas_cumprod[int(t)]))
        return exact_noise(base, variance, latents, t)

    base.predict_noise = predict_noise
    start = variance**0.5 * torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    found = denoise(base, start, strength, steps, solver=solver)
    noisy, kept = first[0]
    answer = noisy * (variance / (kept * variance + 1 - kept)) ** 0.5
    assert (found - answer).norm() < most * answer.norm()


@pytest.mark.parametrize("solver", SOLVER_STEPS)
def test_a_step_is_one_call_of_the_unet_and_of_no_more_latents_than_there_are(base, solver):
    sizes = []
    base.unet.register_forward_pre_hook(lambda unet, inputs: sizes.append(len(inputs[0])))
    denoise(base, THREE, 0.5, 10, solver=solver)
    assert sizes == [3] * (10 if solver == "inversion" else 5)  # up and down again


@pytest.mark.parametrize("solver", SOLVER_STEPS)
def test_the_scheduler_of_the_base_is_left_alone(base, solver):
    before = {k: copy.copy(v) for k, v in vars(base.scheduler).items()}
    denoise(base, NOISY, 0.5, 7, solver=solver)
    assert vars(base.scheduler).keys() == before.keys()
    for key, value in vars(base.scheduler).items():
        same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
        assert same(value, before[key]), key


@pytest.mark.parametrize("solver", SOLVER_STEPS)
def test_the_same_seed_gives_the_same_latents_whatever_is_beside_them(base, solver):
    def run(latents, seed):
        return denoise(base, latents, 0.6, 5, seed, solver)

    seeds = [11, 12, 13]
    together = run(THREE, seeds)
    size = together.abs().max()
    for i, seed in enumerate(seeds):
        assert (run(THREE[i : i + 1], seed) - together[i]).abs().max() < 1e-5 * size
    back = run(THREE.flip(0), seeds[::-1]).flip(0)
    assert (back - together).abs().max() < 1e-5 * size
    others = run(THREE, [11, 14, 13])
    changed = (others - together).abs().amax((1, 2, 3)).gt(1e-3 * size).tolist()
    assert changed == [False, solver != "inversion", False]
    twice = run(NOISY.expand(2, -1, -1, -1), 11)  # one number is the same noise for all
    assert torch.allclose(twice[0], twice[1], atol=1e-5 * float(size))
    assert torch.equal(run(THREE, np.array(seeds)), together) and torch.equal(
        run(THREE, range(11, 14)), together
    )


BAD_SEEDS = [-1, 1.5, "one", None, [1, 2], [1, 2, 3, 4], [1, 2, 2**63], 2**64, torch.tensor(1.0)]


@pytest.mark.parametrize("seed", BAD_SEEDS, ids=str)
def test_a_bad_seed_is_one_sentence(base, seed):
    with pytest.raises(StylenbError, match=r"^seed is a whole number .* \(here 3\), not .*\.$"):
        denoise(base, THREE, 0.5, 2, seed)


def test_a_list_of_photos_is_a_list_of_pictures(base, photos, style):
    def run(image, seed=3, **options):
        how = {"steps": STEPS, "solver": "ddim", "base": base, **options}
        return stylize(image, style, 0.5, seed=seed, **how)

    one_by_one = [run(photo) for photo in photos]
    assert len({p.tobytes() for p in one_by_one}) == len(photos)
    for size in (None, 1, 2, 7):
        pictures = run(photos, batch_size=size)
        assert isinstance(pictures, list) and furthest(pictures, one_by_one) <= 1
    assert furthest(run(tuple(photos[::-1]))[::-1], one_by_one) <= 1
    seeds = [5, 4, 3, 2, 1]
    mixed = run(photos, seeds, batch_size=2)
    assert furthest(mixed, [run(p, s) for p, s in zip(photos, seeds, strict=True)]) <= 1
    assert furthest(mixed[:2], one_by_one[:2]) > 1 >= furthest(mixed[2:3], one_by_one[2:3])
    assert run([]) == [] and isinstance(run(photos[:1]), list)


@pytest.mark.parametrize("size, most", [(64, 64), (128, 16), (512, 1), (1024, 1)])
def test_large_pictures_are_drawn_one_at_a_time(base, photos, size, most, monkeypatch):
    from stylenb import inference

    monkeypatch.setattr(base, "image_size", size)
    assert inference._batch_size(base, None) == most
    assert inference._batch_size(base, 3) == 3


def test_several_styles_are_summed(base, photo, styles):
    """0.5 of one and -0.8 of the other, by the formula, in the bare weights."""

    def run(style, **options):
        return stylize(photo, style, 0.5, steps=STEPS, solver="ddim", base=base, **options)

    a, b = styles.values()
    both = run({a: 0.5, str(b): -0.8})
    alone = [run(None), run(a), run({a: 0.5}), run({b: -0.8})]
    assert all(furthest([both], [other]) > 3 for other in alone)
    assert run({a: 1}).tobytes() == run(a).tobytes()
    assert run({a: 0.25, b: -0.4}, scale=2).tobytes() == both.tobytes()
    assert run({}).tobytes() == run(None).tobytes()
    alphas = {"a": 0.7 * 0.5, "b": 1.4 * -0.8}
    for layer in lora_layers(base):
        for name, factor in alphas.items():
            product = layer.lora_B[name].weight @ layer.lora_A[name].weight
            layer.get_base_layer().weight.data += factor * product
    assert furthest([run(None)], [both]) <= 1


def test_scales_by_group_of_layers(base, photo, style):
    def run(**scale):
        return stylize(photo, style, steps=STEPS, base=base, scale=scale or 1.0).tobytes()

    off, full = stylize(photo, steps=STEPS, base=base).tobytes(), run()
    assert run(down=0, mid=0, up=0) == off
    assert run(self=0, cross=0) not in (off, full)  # the feed-forward layers are in neither
    assert run(self=1) == run(up=1, cross=1) == full
    parts = [run(self=0), run(cross=0), run(down=0), run(mid=0), run(up=0), off, full]
    assert len(set(parts)) == len(parts)


def test_colours_are_kept(base, photo, style):
    plain = stylize(photo, style, steps=STEPS, base=base)
    kept = stylize(photo, style, steps=STEPS, base=base, keep_colours=True)
    assert kept.tobytes() == with_colours_of(photo, plain).tobytes() != plain.tobytes()
    gray = photo.convert("L").convert("RGB")
    of_gray = stylize(gray, style, steps=STEPS, base=base, keep_colours=True)
    assert np.ptp(np.asarray(of_gray), axis=2).max() <= 2


def test_lightness_is_the_pictures_and_colour_the_photos(photo):
    muted = Image.blend(photo, photo.convert("L").convert("RGB"), 0.5)  # no colour out of reach
    picture = photo.rotate(180).point(lambda level: 60 + level // 2)
    lab = rgb2lab(np.asarray(with_colours_of(muted, picture)))
    assert np.abs(lab[..., 0] - rgb2lab(np.asarray(picture))[..., 0]).mean() < 1
    assert np.abs(lab[..., 1:] - rgb2lab(np.asarray(muted))[..., 1:]).mean() < 1
    assert np.abs(lab[..., 1:] - rgb2lab(np.asarray(picture))[..., 1:]).mean() > 3
    assert with_colours_of(photo, picture).size == photo.size


def test_defaults_are_the_bases(base, photo, monkeypatch):
    for full, strength, steps, solver in ((False, 0.8, 20, "inversion"), (True, 0.6, 30, "ddim")):
        monkeypatch.setattr(Base, "full_size", full)
        said = stylize(photo, strength=strength, steps=steps, solver=solver, base=base)
        assert stylize(photo, base=base).tobytes() == said.tobytes()
    half = stylize(photo, solver="dpm", base=base)
    assert half.tobytes() == stylize(photo, solver="dpm", steps=10, base=base).tobytes()


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


def test_the_style_is_on_for_the_way_down_and_off_afterwards(base, photo, style):
    load_lora(base, style)
    before, whole, during = predict(base), base.predict_noise, []

    def predict_noise(latents, timestep, embedding=None):
        during.append(torch.equal(whole(NOISY, 500), before))
        return whole(latents, timestep, embedding)

    base.predict_noise = predict_noise
    stylize(photo, style, 0.5, steps=4, solver="inversion", base=base)
    base.predict_noise = whole
    assert during == [True, True, False, False]
    assert torch.equal(predict(base), before)


def test_the_style_is_off_after_an_error(base, photo, style):
    load_lora(base, style)  # which looks at a prediction too
    before, whole = predict(base), base.predict_noise

    def out_of_memory(latents, timestep, embedding=None):
        base.during = whole(NOISY, 500)
        raise RuntimeError("out of memory")

    base.predict_noise = out_of_memory
    with pytest.raises(RuntimeError, match="out of memory"):
        stylize(photo, style, steps=STEPS, solver="ddim", base=base)
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
    "a group that is none": ({"scale": {"text": 1}}, "no group of layers 'text'"),
    "a group's scale": ({"scale": {"up": "high"}}, "the group 'up' must be a number"),
    "unknown solver": ({"solver": "euler"}, "one of ddim, inversion, dpm, not 'euler'"),
    "batch size 0": ({"batch_size": 0}, "batch_size is a whole number from 1 up, not 0"),
    "batch size 1.5": ({"batch_size": 1.5}, "not 1.5"),
    "a seed too many": ({"seed": [1, 2]}, "here 1"),
    "one of several styles": ({"style": {"nope": 1.0}}, "no style 'nope'"),
    "one of several photos": ({"image": ["gone.jpg"]}, "no file 'gone.jpg'"),
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


def test_the_weight_of_a_style_must_be_a_number(base, photo, styles):
    with pytest.raises(StylenbError, match="scale of the LoRA 'a' must be a number"):
        stylize(photo, {styles["a"]: "much"}, steps=STEPS, base=base)


def test_two_styles_of_one_name_are_refused(base, photo, styles, tmp_path):
    other = tmp_path / "a.safetensors"
    other.write_bytes(styles["b"].read_bytes())
    for second in (other, os.path.relpath(styles["a"])):
        with pytest.raises(StylenbError, match="Two of the styles have one name .* rename"):
            stylize(photo, {styles["a"]: 0.5, second: 0.5}, steps=STEPS, base=base)


# --- folders ---


@pytest.fixture
def folder(photos, tmp_path):
    """Three photos, two of one stem, and what else lies about in folders."""
    path = tmp_path / "photos"
    path.mkdir()
    photos[0].save(path / "cat.png")
    photos[1].save(path / "cup.jpg")
    photos[2].save(path / "cup.webp")
    (path / "cat.txt").write_text("Dear reader")
    (path / ".hidden").write_text("")
    (path / "Thumbs.db").write_text("")
    (path / "broken.jpg").write_bytes((path / "cup.jpg").read_bytes()[:300])
    (path / "more").mkdir()
    return path


NAMES = ["cat.png", "cup.jpg.png", "cup.webp.png"]


def run_folder(folder, output, style, base, **how):
    how = {"steps": STEPS, "progress": False, **how}
    return stylize_folder(folder, output, style, base=base, **how)


def listed(output):
    return sorted(path.name for path in output.iterdir())


def stamps(output):
    return {path.name: path.stat().st_mtime_ns for path in output.iterdir()}


def test_a_folder_of_photos(base, folder, style, tmp_path, capsys):
    output = tmp_path / "new" / "pictures"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    done = run_folder(folder, output, style, base, seed=5, progress=True)
    assert listed(output) == NAMES
    assert done.drawn == ["cat.png", "cup.jpg", "cup.webp"] and not done.there
    assert dict(done.skipped) == {
        ".hidden": "hidden",
        "Thumbs.db": "made by the system",
        "broken.jpg": "damaged or cut off",
        "cat.txt": "not a picture that can be read here",
        "more": "a folder",
    }
    for name, target in zip(done.drawn, NAMES, strict=True):
        alone = stylize(folder / name, style, steps=STEPS, seed=5, base=base)
        assert furthest([alone], [Image.open(output / target)]) <= 1
    assert "photos: 100%" in capsys.readouterr().err
    table = str(done)
    for line in ("    3  drawn", "    0  there already", "    1  skipped, a folder"):
        assert line in table
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_what_is_there_is_not_drawn_again(base, folder, style, tmp_path):
    output = tmp_path / "pictures"
    for name in ("cat.txt", "broken.jpg"):
        (folder / name).unlink()
    run_folder(folder, output, style, base)
    (output / "cup.jpg.png").unlink()
    first = stamps(output)
    again = run_folder(folder, output, style, base)
    assert (again.drawn, again.there) == (["cup.jpg"], ["cat.png", "cup.webp"])
    assert {k: v for k, v in stamps(output).items() if k != "cup.jpg.png"} == first
    third = run_folder(folder, output, style, base)
    assert (third.drawn, len(third.there)) == ([], 3)


OTHER = {
    "strength": {"strength": 0.3},
    "steps": {"steps": STEPS + 1},
    "scale": {"scale": {"up": 0.5}},
    "seed": {"seed": 1},
    "solver": {"solver": "dpm"},
    "fit": {"fit": "pad"},
    "keep_colours": {"keep_colours": True},
}


@pytest.mark.parametrize("case", [*OTHER, "style", "trained anew", "base"])
def test_two_looks_are_not_mixed_in_a_folder(case, base, folder, styles, tmp_path):
    output, style = tmp_path / "pictures", tmp_path / "own.safetensors"
    style.write_bytes(styles["a"].read_bytes())
    run_folder(folder, output, style, base)
    before = stamps(output)
    how = OTHER.get(case, {})
    if case == "style":
        how = {"style": {style: 1.0, styles["b"]: 0.1}}
    elif case == "trained anew":
        style.write_bytes(styles["b"].read_bytes())
    elif case == "base":
        base = copy.copy(base)
        base.name = "another"
    key = "style" if case == "trained anew" else case
    with pytest.raises(
        StylenbError, match=rf"another way \(cat.png: {key} was .* and is "
    ) as caught:
        run_folder(folder, output, how.pop("style", style), base, **how)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert stamps(output) == before


def test_overwriting_draws_all_anew(base, folder, style, tmp_path):
    output = tmp_path / "pictures"
    run_folder(folder, output, style, base)
    before = {name: (output / name).read_bytes() for name in NAMES}
    done = run_folder(folder, output, style, base, seed=1, overwrite=True)
    assert len(done.drawn) == 3 and not done.there and listed(output) == NAMES
    assert all((output / name).read_bytes() != before[name] for name in NAMES)
    assert len(run_folder(folder, output, style, base, seed=1).there) == 3


def test_a_file_that_is_no_picture_of_ours_is_never_overwritten(base, folder, photos, tmp_path):
    output = tmp_path / "pictures"
    output.mkdir()
    photos[4].save(output / "cat.png")
    mine = (output / "cat.png").read_bytes()
    done = run_folder(folder, output, None, base)
    assert dict(done.skipped)["cat.png"] == "cat.png is there and not its picture"
    assert (output / "cat.png").read_bytes() == mine and done.drawn == ["cup.jpg", "cup.webp"]
    run_folder(folder, output, None, base, overwrite=True)
    assert (output / "cat.png").read_bytes() != mine


def test_no_two_photos_share_a_picture(base, photos, tmp_path):
    folder, output = tmp_path / "photos", tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.jpg", "a.png", "A.webp", "a.png.bmp", "b.tif"):
        photos[0].save(folder / name)
    photos[0].save(folder / "b", format="PNG")
    done = run_folder(folder, output, None, base, steps=1)
    assert len(done.drawn) == len({name.casefold() for name in listed(output)}) == 6
    assert {"b.png", "a.jpg.png"} <= set(listed(output))
    told = [json.loads(Image.open(output / name).info["stylenb"]) for name in listed(output)]
    assert sorted(one["photo"] for one in told) == sorted(done.drawn)
    assert len(run_folder(folder, output, None, base, steps=1).there) == 6


def test_a_picture_that_cannot_be_written_leaves_what_was_there(
    base, folder, tmp_path, monkeypatch
):
    output, save = tmp_path / "pictures", Image.Image.save
    run_folder(folder, output, None, base, steps=1)
    before = {name: (output / name).read_bytes() for name in NAMES}

    def full(self, path, **options):
        if "cup.jpg" in str(path):
            save(self, path, **options)
            raise OSError(28, "No space left on device")
        save(self, path, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(StylenbError, match="cup.jpg.png' cannot be written .*: free disk space.$"):
        run_folder(folder, output, None, base, steps=1, seed=1, overwrite=True)
    assert listed(output) == NAMES
    changed = [(output / name).read_bytes() != before[name] for name in NAMES]
    assert changed == [True, False, False]


BAD_FOLDERS = {
    "not there": (lambda path: (path / "gone", path / "out"), "no folder"),
    "a file": (lambda path: (path / "a.txt", path / "out"), "is no folder"),
    "nothing in it": (lambda path: (path / "empty", path / "out"), "no pictures that can be used"),
    "no photo in it": (
        lambda path: (path, path / "out"),
        "1 not a picture that can be read here, 1 a folder",
    ),
    "its own output": (lambda path: (path, path / "empty" / ".."), "where the photos are"),
    "an output that is a file": (lambda path: (path, path / "a.txt"), "cannot be a folder"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_folder_is_one_sentence(case, base, tmp_path):
    (tmp_path / "a.txt").write_text("Dear reader")
    (tmp_path / "empty").mkdir()
    folders, part = BAD_FOLDERS[case]
    with pytest.raises(StylenbError) as caught:
        run_folder(*folders(tmp_path), None, base)
    message = str(caught.value)
    assert part in message and "\n" not in message and message.endswith(".")


def test_a_folder_takes_no_unknown_option(base, folder, tmp_path):
    with pytest.raises(TypeError, match="colour"):
        run_folder(folder, tmp_path / "out", None, base, colour="red")
    with pytest.raises(StylenbError, match="seed is a whole number"):
        run_folder(folder, tmp_path / "out", None, base, seed=[1, 2])
