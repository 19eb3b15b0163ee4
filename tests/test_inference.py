"""Style transfer on a tiny random model: what seed, strength, style, solver and fit do."""

import copy
import os

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from peft.tuners.lora import LoraLayer
from PIL import Image
from skimage.color import rgb2lab

import stylenb
from stylenb import StylenbError, load_lora, open_photo, sample_photo
from stylenb.base import SOLVER_STEPS, Base
from stylenb.inference import (
    StylizeSettings,
    batch_size_for,
    denoise,
    invert,
    redraw,
    with_colours_of,
)
from stylenb.lora import set_scale, switched
from stylenb.lora_files import save_lora
from stylenb.photos import to_pictures, to_tensor

FEW = {"num_inference_steps": 2, "solver": "ddim"}
NOISY = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
BROWN = Image.new("RGB", (64, 64), "brown")
THREE = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def stylize(*given, **how):
    """At 64 pixels, for which the tiny model is, unless another size is given."""
    return stylenb.stylize(*given, **{"size": 64, **how})


def furthest(pictures, others):
    """The largest difference of any value, in levels of 255."""
    pairs = zip(pictures, others, strict=True)
    return max(np.abs(np.asarray(a, float) - np.asarray(b, float)).max() for a, b in pairs)


@pytest.fixture
def base(tiny):
    own = copy.copy(tiny)
    own.unet = copy.deepcopy(tiny.unet)
    return own


@pytest.fixture(scope="module")
def style(lora_files):
    return lora_files["c"]


def lora_layers(base):
    return [m for m in base.unet.modules() if isinstance(m, LoraLayer)]


@pytest.fixture(scope="module")
def photo():
    return sample_photo("chelsea", 64)


@pytest.fixture(scope="module")
def photos():
    return [sample_photo(name, 64) for name in ("chelsea", "coffee", "rocket")]


@torch.no_grad()
def predict(base):
    return base.predict_noise(NOISY, 500)


def spy(base, answer=None):
    """The list that every call of the UNet is noted in from now on, as (latents, timestep);
    `answer` stands in for the UNet."""
    calls, answer = [], answer or base.predict_noise

    def predict_noise(latents, timestep, encoder_hidden_states=None):
        calls.append((latents, int(timestep)))
        return answer(latents, timestep, encoder_hidden_states)

    base.predict_noise = predict_noise
    return calls


def timesteps(calls):
    return [timestep for _, timestep in calls]


def test_the_same_seed_gives_the_same_bytes(base, photo, style):
    for solver in SOLVER_STEPS:
        how = {"solver": solver, "num_inference_steps": 4, "base": base}
        first = stylize(photo, style, seed=3, **how).tobytes()
        torch.rand(7)
        assert stylize(photo, style, seed=3, **how).tobytes() == first
        other = stylize(photo, style, seed=4, **how).tobytes()
        assert (other == first) == (solver == "inversion")  # which draws no noise


def test_the_more_strength_the_further_from_the_photo(base, photo):
    with torch.no_grad():
        start = np.asarray(to_pictures(base.decode(base.encode(to_tensor(photo))))[0], float)
    pictures = [stylize(photo, None, s, num_inference_steps=10, base=base) for s in (0.1, 0.4, 0.9)]
    distance = [np.abs(np.asarray(picture, float) - start).mean() for picture in pictures]
    assert 0 < distance[0] < distance[1] < distance[2]


@pytest.mark.parametrize("strength, runs", [(1.0, 10), (0.5, 5), (0.26, 3), (0.001, 1)])
def test_strength_is_the_share_of_the_steps_that_are_run(base, strength, runs):
    calls = spy(base)
    assert denoise(base, NOISY, strength, 10, solver="ddim").shape == NOISY.shape
    plain = DDIMScheduler.from_config(base.scheduler.config)
    plain.set_timesteps(10)
    seen = timesteps(calls)
    assert seen == plain.timesteps[10 - runs :].tolist() == sorted(seen, reverse=True)
    assert 100 * (runs - 1) < seen[0] <= 100 * runs
    kept = base.scheduler.alphas_cumprod[seen[0]]  # and the noise is that of the first of them
    noise = torch.randn(NOISY.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(calls[0][0], kept.sqrt() * NOISY + (1 - kept).sqrt() * noise, atol=1e-5)


@pytest.mark.parametrize("steps", [30, 999, 1000])
def test_strength_1_starts_at_the_end_of_the_schedule(base, steps):
    calls = spy(base, lambda latents, *_: latents)
    denoise(base, NOISY, 1.0, steps, solver="ddim")
    seen = timesteps(calls)
    assert len(seen) == steps and 950 < seen[0] <= 999 and seen[-1] >= 0


@pytest.mark.parametrize("strength", [0.001, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("steps", [1, 3, 10, 1000])
def test_dpm_starts_at_the_very_level_and_ends_near_0(base, strength, steps):
    calls = spy(base, lambda latents, *_: latents)  # what it returns does not matter
    assert denoise(base, NOISY, strength, steps, solver="dpm").isfinite().all()
    seen = timesteps(calls)
    assert len(seen) == len(set(seen)) == max(1, round(steps * strength))
    assert seen == sorted(seen, reverse=True) and seen[-1] >= 0
    assert seen[0] == round(1000 * strength) - 1
    assert len(seen) == 1 or seen[-1] == 0


def test_inversion_and_back_is_where_it_began(base):
    calls, steps = spy(base), 100
    noisy = invert(base, NOISY, 0.6, steps, attention := [], path := [])
    up = timesteps(calls)
    assert [t for t, _ in path] == up and torch.equal(path[-1][1], noisy)
    assert (path[0][1] - NOISY).abs().max() < 0.1 < (path[9][1] - NOISY).abs().max()
    assert len(up) == 60 and up == sorted(up) and 580 < up[-1] < 600
    back = denoise(base, NOISY, 0.6, steps, solver="inversion")
    assert timesteps(calls[60:]) == up + up[::-1]
    assert (noisy - NOISY).norm() > 0.5 * NOISY.norm()
    assert (back - NOISY).norm() < 0.02 * NOISY.norm()
    how = {"solver": "inversion", "noisy": noisy, "attention": attention}
    known = denoise(base, torch.zeros_like(NOISY), 0.6, steps, **how)
    assert torch.equal(known, back) and len(calls) == 240  # not once more upwards


def test_the_photo_is_held_by_its_own_attention(base, style):
    """Queries and keys of the way up, step by step, stand in for those of the way down."""
    asked = [
        module
        for name, module in base.unet.named_modules()
        if name.startswith("up_blocks") and name.endswith(("attn1.to_q", "attn1.to_k"))
    ]
    noisy, how = invert(base, NOISY, 1.0, 4, kept := []), {"solver": "inversion"}
    assert len(kept) == 4 and all(len(step) == len(asked) > 0 for step in kept)
    with stylenb.lora.switched(base, load_lora(base, style), 3.0):
        found = {s: denoise(base, NOISY, 1.0, 4, injection=s, **how) for s in (0.0, 0.5, 1.0)}
        free = denoise(base, NOISY, 1.0, 4, noisy=noisy, **how)
        assert torch.equal(found[0.0], free)
        assert not torch.equal(found[0.5], free) and not torch.equal(found[1.0], found[0.5])
        zeros = [dict.fromkeys(step, 0 * next(iter(step.values()))) for step in kept]
        half = zeros[:2] + kept[2:]  # of the way up: its last steps are the first of the way down
        how |= {"noisy": noisy, "injection": 0.5}
        assert torch.equal(denoise(base, NOISY, 1.0, 4, attention=half, **how), found[0.5])
    assert not any(module._forward_hooks for module in base.unet.modules())
    with pytest.raises(StylenbError, match="injection is a number from 0 to 1"):
        stylize(BROWN, base=base, injection=1.5)


def test_the_first_steps_of_an_inversion_may_add_random_noise(base):
    calls, two = spy(base), torch.cat([NOISY, NOISY])
    how = {"attention": (kept := []), "path": (path := []), "forward_steps": 2}
    noisy = invert(base, two, 0.8, 11, seed=[3, 4], **how)
    assert len(calls) == len(kept) == len(path) == 7 and not torch.equal(*noisy)
    alone = invert(base, NOISY, 0.8, 11, forward_steps=2, seed=3)
    assert torch.allclose(noisy[:1], alone, atol=1e-4)
    # As if what was given were the latents with the noise of the second timestep.
    second = int(timesteps(calls)[0]) - (path[1][0] - path[0][0])
    noise = torch.randn(NOISY.shape, generator=torch.Generator().manual_seed(3))
    began = base.scheduler.add_noise(NOISY, noise, torch.tensor([second]))
    spy(base, lambda latents, t, condition: began.new_zeros(latents.shape))
    ratio = base.scheduler.alphas_cumprod[path[-1][0]] / base.scheduler.alphas_cumprod[second]
    found = invert(base, NOISY, 0.8, 11, forward_steps=2, seed=3)
    assert torch.allclose(found, began * ratio**0.5, atol=1e-5)
    # On the way down, the photo's attention is there for the steps that have kept some.
    assert torch.equal(*(denoise(base, NOISY, 0.8, 11, solver="inversion", noisy=noisy[:1],
        attention=[{k: v[:1] for k, v in step.items()} for step in kept], injection=share)
        for share in (7 / 9, 1.0)))  # fmt: skip


@pytest.mark.parametrize("solver", SOLVER_STEPS)
def test_guidance_goes_from_the_base_beyond_the_lora(solver, base, style):
    set_scale(base, load_lora(base, style))
    how = {"strength": 1.0, "num_inference_steps": 3, "solver": solver, "injection": 0}
    plain = denoise(base, NOISY, **how)
    assert torch.equal(denoise(base, NOISY, guidance_scale=1, **how), plain)
    found = denoise(base, NOISY, guidance_scale=2.5, **how)
    real = base.predict_noise

    def beyond(latents, t, condition):
        if condition is not None:  # a step of the inversion
            return real(latents, t, condition)
        with switched(base, None):
            without = real(latents, t)
        return without + 2.5 * (real(latents, t) - without)

    spy(base, beyond)
    assert torch.allclose(denoise(base, NOISY, **how), found, atol=1e-4)
    assert not torch.allclose(plain, found, atol=1e-2)


def test_guidance_leaves_the_base_s_own_prediction_alone(base, photo):
    how = {"base": base, "num_inference_steps": 3}
    assert furthest([stylize(photo, guidance_scale=3, **how)], [stylize(photo, **how)]) <= 1


def test_a_lora_says_with_which_guidance_it_is_drawn(base, style, tmp_path):
    name = load_lora(base, style)
    told = {"settings": {"guidance_scale": 2.5}}
    own = save_lora(base, tmp_path / "own.safetensors", name, told)
    how = {"base": base, "strength": 1.0, "num_inference_steps": 3}
    drawn = {g: stylize(BROWN, own, guidance_scale=g, **how) for g in (None, 2.5, 1)}
    assert drawn[None] == drawn[2.5] != drawn[1] == stylize(BROWN, style, **how)
    assert drawn[None] == stylize(BROWN, {own: 1.0, style: 0.0}, **how)
    ddim = {**how, "solver": "ddim"}
    assert stylize(BROWN, own, **ddim) == stylize(BROWN, own, guidance_scale=1, **ddim)
    assert stylize(BROWN, own, **ddim) != stylize(BROWN, own, guidance_scale=2.5, **ddim)
    assert stylize(BROWN, own, scale=0, **how) == stylize(BROWN, **how)
    with pytest.raises(
        StylenbError, match="guidance_scale is a number from 1 up, or None, not 0.5"
    ):
        stylize(BROWN, base=base, guidance_scale=0.5)
    with pytest.raises(
        StylenbError, match="guidance_scale is a number from 1 up, or None, not 0.5"
    ):
        denoise(base, NOISY, guidance_scale=0.5, **FEW)
    loud = save_lora(base, tmp_path / "loud.safetensors", name, {"settings": {"guidance_scale": 0}})
    with pytest.raises(StylenbError, match="guidance_scale is a number from 1 up, not 0"):
        load_lora(base, loud)
    stylenb.merge_lora(base, name)
    with pytest.raises(StylenbError, match="merged, and inversion and guidance need the base with"):
        denoise(base, NOISY, guidance_scale=2, **FEW)


def test_inversion_finds_the_noise_of_a_case_with_a_known_answer(base):
    """Gaussian latents, a perfect UNet: going up the schedule only rescales them."""
    variance, top = 0.25, base.scheduler.alphas_cumprod[591]
    spy(base, lambda latents, t, _: exact_noise(base, variance, latents, t))
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
    base.keep_originals(["unet.conv_in.weight"])
    weight = base.unet.conv_in.weight  # as DreamBooth leaves it
    weight.data = weight.data * 1.5
    changed = weight.data
    assert torch.allclose(invert(base, NOISY, 0.5, 10), plain, atol=1e-5)
    assert weight.data is changed or torch.equal(weight.data, changed)
    base.restore_originals()
    assert all(torch.equal(v, before[k]) for k, v in base.unet.state_dict().items())
    stylenb.merge_lora(base, name)
    with pytest.raises(StylenbError, match="unmerge_lora"):
        invert(base, NOISY, 0.5, 10)


@pytest.mark.parametrize(
    "strength, steps, solver, part",
    [
        (0.5, 2, "euler", "solver is one of 'ddim', 'inversion', 'dpm', or None, not 'euler'"),
        (0, 2, "ddim", "strength is a number above 0 and up to 1, or None, not 0"),
        (0.5, 1001, "ddim", "num_inference_steps is a whole number from 1 to 1000, or None, not"),
    ],
)
def test_denoise_looks_at_its_arguments(base, strength, steps, solver, part):
    for call in (denoise, lambda *given, **how: redraw(given[0], [BROWN], *given[2:], **how)):
        with pytest.raises(StylenbError, match=part):
            call(base, NOISY, strength, steps, solver=solver)


def exact_noise(base, variance, latents, t):
    """What a perfect UNet predicts if latents are Gaussian with this variance: E[noise | noisy]."""
    kept = base.scheduler.alphas_cumprod[int(t)]
    return (1 - kept).sqrt() * latents / (kept * variance + 1 - kept)


@pytest.mark.parametrize("solver, steps, most", [("ddim", 30, 0.08), ("dpm", 10, 0.06)])
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_the_solvers_on_a_case_with_a_known_answer(base, solver, steps, most, strength):
    """Gaussian latents: the flow from noise to them only rescales, by a factor that is known."""
    variance = 0.25
    calls = spy(base, lambda latents, t, _: exact_noise(base, variance, latents, t))
    start = variance**0.5 * torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    found = denoise(base, start, strength, steps, solver=solver)
    noisy, kept = calls[0][0], base.scheduler.alphas_cumprod[calls[0][1]]
    answer = noisy * (variance / (kept * variance + 1 - kept)) ** 0.5
    assert (found - answer).norm() < most * answer.norm()


@pytest.mark.parametrize("solver", SOLVER_STEPS)
def test_a_step_is_one_call_of_the_unet_and_the_schedule_is_left_alone(base, solver):
    sizes, before = [], {k: copy.copy(v) for k, v in vars(base.scheduler).items()}
    base.unet.register_forward_pre_hook(lambda unet, inputs: sizes.append(len(inputs[0])))
    denoise(base, THREE, 0.5, 10, solver=solver)
    assert sizes == [3] * (10 if solver == "inversion" else 5)  # up and down again
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
        return stylize(image, style, 0.5, seed=seed, base=base, **{**FEW, **options})

    one_by_one = [run(photo) for photo in photos]
    assert len({p.tobytes() for p in one_by_one}) == len(photos)
    for size in (None, 1, 2, 7):
        pictures = run(photos, batch_size=size)
        assert isinstance(pictures, list) and furthest(pictures, one_by_one) <= 1
    assert furthest(run(tuple(photos[::-1]))[::-1], one_by_one) <= 1
    seeds = [5, 4, 3]
    mixed = run(photos, seeds, batch_size=2)
    assert furthest(mixed, [run(p, s) for p, s in zip(photos, seeds, strict=True)]) <= 1
    assert furthest(mixed[:2], one_by_one[:2]) > 1 >= furthest(mixed[2:], one_by_one[2:])
    assert run([]) == [] and isinstance(run(photos[:1]), list)


def test_large_pictures_are_drawn_one_at_a_time(base, photos):
    assert [batch_size_for(size**2) for size in (64, 128, 512, 1024)] == [64, 16, 1, 1]
    assert batch_size_for(64**2, 3) == 3
    calls = spy(base)
    redraw(base, photos, num_inference_steps=1, solver="ddim", batch_size=2)
    assert [len(latents) for latents, _ in calls] == [2, 1]


def test_several_styles_are_summed(base, photo, lora_files):
    """0.5 of one and -0.8 of the other, by the formula, in the bare weights."""

    def run(style, **options):
        return stylize(photo, style, 0.5, base=base, **FEW, **options)

    a, b = lora_files["a"], lora_files["b"]
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
        return stylize(photo, style, num_inference_steps=2, base=base, scale=scale or 1.0).tobytes()

    off, full = stylize(photo, num_inference_steps=2, base=base).tobytes(), run()
    assert run(down=0, mid=0, up=0) == off
    assert run(self=0, cross=0) not in (off, full)  # the feed-forward layers are in neither
    assert run(self=1) == run(up=1, cross=1) == full
    parts = [run(self=0), run(cross=0), run(down=0), run(mid=0), run(up=0), off, full]
    assert len(set(parts)) == len(parts)


def test_colours_are_kept(base, photo, style):
    plain = stylize(photo, style, num_inference_steps=2, base=base)
    kept = stylize(photo, style, num_inference_steps=2, base=base, keep_colours=True)
    assert kept.tobytes() == with_colours_of(photo, plain).tobytes() != plain.tobytes()
    gray = photo.convert("L").convert("RGB")
    of_gray = stylize(gray, style, num_inference_steps=2, base=base, keep_colours=True)
    assert np.ptp(np.asarray(of_gray), axis=2).max() <= 2


def test_lightness_is_the_pictures_and_colour_the_photos(photo):
    muted = Image.blend(photo, photo.convert("L").convert("RGB"), 0.5)  # no colour out of reach
    picture = photo.rotate(180).point(lambda level: 60 + level // 2)
    lab = rgb2lab(np.asarray(with_colours_of(muted, picture)))
    assert np.abs(lab[..., 0] - rgb2lab(np.asarray(picture))[..., 0]).mean() < 1
    assert np.abs(lab[..., 1:] - rgb2lab(np.asarray(muted))[..., 1:]).mean() < 1
    assert np.abs(lab[..., 1:] - rgb2lab(np.asarray(picture))[..., 1:]).mean() > 3
    assert with_colours_of(photo, picture).size == photo.size


@pytest.mark.parametrize(
    "full, strength, steps, solver, calls_of_one",
    [(False, 0.8, 11, "inversion", 18), (True, 0.6, 30, "ddim", 18)],
)
def test_defaults_are_the_bases(
    base, photo, monkeypatch, full, strength, steps, solver, calls_of_one
):
    monkeypatch.setattr(Base, "full_size", full)
    calls = spy(base)
    (picture,) = redraw(base, [photo])
    assert len(calls) == calls_of_one
    with torch.no_grad():
        latents = denoise(base, base.encode(to_tensor(photo)), strength, steps, 0, solver)
        assert picture.tobytes() == to_pictures(base.decode(latents))[0].tobytes()
    assert stylize(photo, base=base).tobytes() == picture.tobytes()
    calls.clear()
    stylize(photo, solver="dpm", base=base)
    assert len(calls) == round(strength * 10)


def test_redraw_is_by_the_base_as_it_is_now(base, photos, style):
    """And gives one noise to all photos, or each its own."""
    expected = stylize(photos[:2], style, 0.5, scale=0.7, seed=[4, 5], base=base, **FEW)
    stylenb.set_scale(base, load_lora(base, style), 0.7)
    before = predict(base)
    assert furthest(redraw(base, photos[:2], 0.5, seed=range(4, 6), **FEW), expected) <= 1
    same, other = redraw(base, [BROWN, BROWN], 0.5, seed=5, **FEW), [BROWN, BROWN]
    assert furthest(same[:1], same[1:]) <= 1
    assert furthest(same, redraw(base, other, 0.5, seed=[5, 6], **FEW)) > 1
    assert torch.equal(predict(base), before)  # the LoRA is still on


def test_numbers_may_be_of_any_kind(base, photo):
    def run(*given, **how):
        return stylize(photo, None, *given, solver="ddim", base=base, **how).tobytes()

    plain = run(0.5, 1.0, 4, 3, batch_size=1)
    numpy = np.float32(0.5), np.float64(1), np.int64(4), np.int64(3)
    assert run(*numpy, batch_size=np.int32(1)) == plain == run("0.5", 1, "4", 3, batch_size=1.0)


def test_style_and_scale(base, photo, style):
    def run(*style, **options):
        return stylize(photo, *style, num_inference_steps=2, base=base, **options)

    plain = run()
    assert plain.size == (64, 64) and plain.mode == "RGB"
    styled = run(style)
    assert styled.tobytes() != plain.tobytes()
    assert run(str(style)).tobytes() == styled.tobytes()
    assert run(style, scale=0).tobytes() == plain.tobytes()
    assert run(style, scale=0.5).tobytes() not in (plain.tobytes(), styled.tobytes())
    assert run(None).tobytes() == plain.tobytes()  # a style that was loaded plays no part


def test_a_base_by_its_folder(photo, tiny_folder):
    assert stylize(photo, base=tiny_folder, **FEW).size == (64, 64)


def test_any_kind_of_photo_is_cropped_or_padded(base, gradient):
    def run(photo, **fit):
        return stylize(photo, base=base, **FEW, **fit).tobytes()

    crop, pad = (run(open_photo(gradient, 64, fit)) for fit in ("crop", "pad"))
    assert crop != pad == run(gradient, fit="pad")
    assert run(np.asarray(gradient), fit="crop") == run(gradient, fit="crop") == crop
    assert run(np.asarray(gradient)) == run(gradient) == run(gradient, fit="whole") != crop


# --- any shape, any size ---


def test_a_photo_is_drawn_whole_in_its_own_shape(base, gradient):
    def drawn(photo, **how):
        return stylenb.stylize(photo, base=base, num_inference_steps=1, solver="ddim", **how).size

    assert drawn(gradient) == (128, 85)
    upright = gradient.transpose(Image.Transpose.ROTATE_90)
    assert drawn(upright, size=64) == (43, 64)
    assert drawn(gradient, size=100) == (100, 67)
    assert drawn(Image.new("RGB", (400, 20)), size=128) == (128, 16)
    assert drawn(Image.new("RGB", (16, 16)), size=40) == (40, 40)
    for fit in ("crop", "pad"):
        assert drawn(gradient, size=48, fit=fit) == (48, 48)
        assert drawn(gradient, fit=fit) == (128, 128)


def test_the_size_is_one_that_the_base_knows(base):
    def sizes(fit, *shapes):
        how = StylizeSettings(fit=fit)
        assert how.with_defaults(base).size == (None if fit == "whole" else sizes_of[fit])
        return [how.size_for(shape, base) for shape in shapes]

    shapes = ((900, 900), (400, 300), (100, 400), (160, 1600), (1600, 80))
    sizes_of = {"crop": 128, "pad": 128}
    assert sizes("whole", *shapes) == [128, 128, 256, 256, 256]
    assert sizes("crop", *shapes) == sizes("pad", *shapes) == [128] * 5
    base.image_size, sizes_of = 128, {"crop": 256, "pad": 256}  # as the pocket base
    assert sizes("whole", *shapes) == [256, 256, 512, 512, 512]
    assert sizes("crop", *shapes) == sizes("pad", *shapes) == [256] * 5
    base.image_size, sizes_of = 512, {"crop": 512, "pad": 512}
    assert sizes("whole", *shapes, (160, 90)) == [768, 768, 1536, 1536, 1536, 911]
    assert round(911 * 90 / 160) == 512
    assert sizes("crop", *shapes) == sizes("pad", *shapes) == [512] * 5


@pytest.mark.parametrize("size", [None, 64, 100])
def test_a_square_photo_is_the_same_whole_and_cropped(base, size):
    for photo in (sample_photo("chelsea", 256), sample_photo("chelsea", 70)):
        how = {"base": base, "size": size, "num_inference_steps": 1, "solver": "ddim"}
        whole, crop = (stylenb.stylize(photo, fit=fit, **how) for fit in ("whole", "crop"))
        assert whole.tobytes() == crop.tobytes()


@pytest.mark.parametrize("shape", [(45, 70), (48, 80), (17, 33), (48, 3), (1, 20)])
def test_a_photo_of_any_size_is_drawn_mirrored_out_and_cut_again(base, gradient, shape):
    """At the right and at the bottom, where it is narrow several times to and fro."""
    high, wide = shape
    array = np.asarray(gradient.resize((80, 48)))[:high, :wide]
    turned = np.concatenate([array, array[::-1]] * 16)[: high + -high % 16]
    turned = np.concatenate([turned, turned[:, ::-1]] * 16, axis=1)[:, : wide + -wide % 16]
    (picture,) = redraw(base, [Image.fromarray(array)], **FEW)
    (larger,) = redraw(base, [Image.fromarray(turned)], **FEW)
    assert picture.size == (wide, high)
    assert np.array_equal(np.asarray(picture), np.asarray(larger)[:high, :wide])
    calls = spy(base)
    (kept,) = redraw(base, Image.fromarray(array), keep_colours=True, **FEW)
    assert kept.size == (wide, high)
    assert calls[0][0].shape[2:] == tuple((side + -side % 16) // 8 for side in shape)


def test_a_list_may_hold_photos_of_all_shapes(base, gradient, photos, style):
    """Those of one shape are drawn together; each is what it is alone, by its own seed."""
    upright = gradient.transpose(Image.Transpose.ROTATE_270)
    mixed = [gradient, photos[0], upright, gradient.rotate(180), photos[1].resize((96, 66))]
    how = {"base": base, "strength": 0.5, **FEW}
    seeds = [3, 4, 5, 6, 7]
    calls = spy(base)
    together = stylize(mixed, style, seed=seeds, **how)
    assert [len(latents) for latents, _ in calls[-3:]] == [3, 1, 1]  # 43 and 44 high are 48
    assert [p.size for p in together] == [(64, 43), (64, 64), (43, 64), (64, 43), (64, 44)]
    alone = [stylize(one, style, seed=s, **how) for one, s in zip(mixed, seeds, strict=True)]
    assert furthest(together, alone) <= 1
    assert furthest(stylize(mixed, style, seed=seeds, batch_size=2, **how), alone) <= 1
    assert furthest(stylize(mixed[::-1], style, seed=seeds[::-1], **how)[::-1], alone) <= 1
    others = stylize(mixed, style, seed=[3, 4, 5, 60, 7], **how)
    pairs = zip(others, alone, strict=True)
    assert [furthest([a], [b]) > 1 for a, b in pairs] == [False] * 3 + [True, False]


def test_the_original_size(base, gradient, photos):
    how = {"base": base, **FEW}
    mixed = [gradient.resize((150, 100)), photos[0].resize((20, 30))]
    drawn = stylize(mixed, **how)
    whole = stylize(mixed, original_size=True, **how)
    assert [p.size for p in whole] == [p.size for p in mixed]
    for picture, small in zip(whole, drawn, strict=True):
        again = small.resize(picture.size, Image.Resampling.LANCZOS)
        assert picture.tobytes() == again.tobytes()


def test_the_style_is_on_for_the_way_down_and_off_afterwards(base, photo, style):
    load_lora(base, style)
    before, whole, during = predict(base), base.predict_noise, []
    spy(base, lambda *given: during.append(torch.equal(whole(NOISY, 500), before)) or whole(*given))
    stylize(photo, style, 0.5, num_inference_steps=4, solver="inversion", base=base)
    base.predict_noise = whole
    assert during == [True, True, False, False]
    assert torch.equal(predict(base), before)
    stylize(photo, style, base=base, **FEW)  # by merging it
    assert torch.equal(predict(base), before)


def test_the_style_is_off_after_an_error(base, photo, style):
    load_lora(base, style)  # which looks at a prediction too
    before, whole = predict(base), base.predict_noise

    def out_of_memory(*given):
        base.during = whole(NOISY, 500)
        raise RuntimeError("out of memory")

    spy(base, out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        stylize(photo, style, base=base, **FEW)
    base.predict_noise = whole
    assert not torch.equal(base.during, before)  # it was on
    assert torch.equal(predict(base), before)


def test_a_photo_can_be_stylised_before_a_style_is_trained(base, photo, style):
    stylize(photo, style, base=base, **FEW)
    photos, before = [photo.rotate(90 * i) for i in range(4)], predict(base)
    settings = stylenb.Settings(rank=2, steps=2, batch_size=2, lpips_weight=0, style_weight=0)
    stylenb.train_style(base, photos, name="mine", settings=settings, progress=False)
    assert not torch.equal(predict(base), before)


BAD_VALUES = {
    "strength 0": ({"strength": 0}, "strength is a number above 0 and up to 1, or None, not "),
    "strength -1": ({"strength": -1}, "strength is a number above 0 and up to 1, or None, not "),
    "strength 1.1": ({"strength": 1.1}, "up to 1, or None, not 1.1"),
    "strength NaN": ({"strength": float("nan")}, "not nan"),
    "no steps": ({"num_inference_steps": 0}, "a whole number from 1 to 1000, or None, not 0"),
    "steps -3": ({"num_inference_steps": -3}, "not -3"),
    "1001 steps": ({"num_inference_steps": 1001}, "not 1001"),
    "2.5 steps": ({"num_inference_steps": 2.5}, "not 2.5"),
    "unknown style": ({"style": "nope"}, "no style 'nope'"),
    "unknown base": ({"base": "nope"}, "no base 'nope'"),
    "unknown fit": ({"fit": "stretch"}, "one of 'crop', 'pad', 'whole', not 'stretch'"),
    "a photo that is not there": ({"image": "gone.jpg"}, "no file 'gone.jpg'"),
    "a photo that is none": ({"image": b"Dear reader"}, "not a picture"),
    "a scale that is no number": ({"scale": float("nan")}, "NaN"),
    "a group that is none": ({"scale": {"text": 1}}, "'text' is not a group of layers"),
    "a group's scale": ({"scale": {"up": "high"}}, "the group 'up' must be a number"),
    "unknown solver": ({"solver": "euler"}, "one of 'ddim', 'inversion', 'dpm', or None, not"),
    **{
        f"size {size!r}": ({"size": size}, "size is a whole number from 16 to 4096, or None, not ")
        for size in ("big", 0, -5, 3.5, True, 15, 10**9, (64, 64), float("nan"))
    },
    "the original size of a square": (
        {"original_size": True, "fit": "crop"},
        "original_size needs the whole photo, and fit='crop' makes it square",
    ),
    "original_size 1": ({"original_size": 1}, "original_size is True or False, not 1"),
    "batch size 0": ({"batch_size": 0}, "batch_size is a whole number from 1 up, or None, not 0"),
    "batch size 1.5": ({"batch_size": 1.5}, "not 1.5"),
    "a seed too many": ({"seed": [1, 2]}, "here 1"),
    "a list of styles": ({"style": ["ink", "neon"]}, "{style: weight, ...}"),
    "one of several styles": ({"style": {"nope": 1.0}}, "no style 'nope'"),
    "one of several photos": ({"image": ["gone.jpg"]}, "no file 'gone.jpg'"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_bad_value_is_one_sentence(case, base, photo, style):
    values, part = BAD_VALUES[case]
    before = predict(base)
    options = {"image": photo, "style": style, "base": base, **FEW, **values}
    with pytest.raises(StylenbError) as caught:
        stylize(**options)
    message = str(caught.value)
    assert part in message and "\n" not in message and message.endswith(".")
    assert torch.equal(predict(base), before)


def test_an_unknown_style_is_found_before_a_base_is_loaded(photo, monkeypatch):
    monkeypatch.setattr("stylenb.inference._load_once", lambda base: pytest.fail("loaded in vain"))
    with pytest.raises(StylenbError, match="no style"):
        stylenb.stylize(photo, "nope", base="sd15")


def test_the_weight_of_a_style_must_be_a_number(base, photo, lora_files):
    with pytest.raises(StylenbError, match="scale of the LoRA 'a' must be a number"):
        stylize(photo, {lora_files["a"]: "much"}, num_inference_steps=2, base=base)


def test_two_files_of_one_name_are_two_styles_and_one_file_is_one(
    base, photo, lora_files, tmp_path
):
    other = tmp_path / "a.safetensors"
    other.write_bytes(lora_files["b"].read_bytes())
    how = {"num_inference_steps": 2, "base": base}
    mixed = stylize(photo, {lora_files["a"]: 0.5, lora_files["b"]: 0.5}, **how)
    assert stylize(photo, {lora_files["a"]: 0.5, other: 0.5}, **how) == mixed
    with pytest.raises(StylenbError, match="Two styles are one file .a.: give each once"):
        stylize(photo, {lora_files["a"]: 0.5, os.path.relpath(lora_files["a"]): 0.5}, **how)
