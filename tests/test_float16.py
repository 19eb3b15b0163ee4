"""The pocket model in float16, which is what a T4 picks: no activation comes near the end of its
range, and all that the course does comes out as in float32.

float16 ends at 65,504. A CPU is slow in it, so what is run in it is run on 64 x 64 pixels.
"""

import contextlib
import copy
from functools import partial

import numpy as np
import pytest
import torch

import stylenb
from stylenb import SAMPLE_PHOTOS, loop, sample_photo, to_tensor
from stylenb.base import SOLVER_STEPS
from stylenb.dreambooth import DreamBoothSettings, prior_set, train_dreambooth
from stylenb.inference import redraw
from stylenb.lora import set_scale
from stylenb.lora_files import load_lora
from stylenb.pocket.scenes import draw_scene
from stylenb.pocket.styles import PHRASES, STYLES, apply_style
from stylenb.scores import noise_predictions, prior_drift, sweep
from stylenb.text_to_image import generate
from stylenb.textual_inversion import EmbeddingSettings, embeddings, train_embedding
from stylenb.training import Settings, train_style

pytestmark = pytest.mark.pocket_model
LIMIT = 20_000  # of an activation; 1,642 was measured, and 417,000 where float16 overflowed
TIMESTEPS = torch.tensor([0, 250, 500, 750, 999])
LEVELS = 0.5  # of 255, by which a picture may differ on average; at most 0.2 was measured


def of_64(base):
    """A base of its own for pictures of 64 x 64, which only its autoencoder shares."""
    own = copy.copy(base)
    own.unet, own.text_encoder = copy.deepcopy(base.unet), copy.deepcopy(base.text_encoder)
    own.tokenizer, own.originals, own.image_size = copy.deepcopy(base.tokenizer), {}, 64
    return own


@pytest.fixture(scope="module")
def half_pocket():
    return stylenb.load("pocket", device="cpu", dtype=torch.float16)


@pytest.fixture
def pair(pocket, half_pocket, monkeypatch):
    """The base in float32 and in float16, trained and drawn with as on a T4: without autocast."""
    monkeypatch.setattr(loop, "autocast", lambda device: contextlib.nullcontext())
    monkeypatch.setitem(SOLVER_STEPS, "ddim", 2)
    return of_64(pocket), of_64(half_pocket)


@pytest.fixture(scope="module")
def photos():
    return [sample_photo(name, 64) for name in ("coffee", "chelsea", "rocket", "astronaut")]


def levels(pictures, others) -> float:
    """By how many of 255 levels two lists of pictures differ on average, at most."""
    pairs = zip(pictures, others, strict=True)
    return max(np.abs(np.subtract(*(np.asarray(p, float) for p in pair))).mean() for pair in pairs)


def same_rows(full, half, **tolerances):
    """Every update of two histories has the same terms, but for a share of each."""
    for name, tolerance in tolerances.items():
        a, b = (torch.tensor([row[name] for row in history.rows]) for history in (full, half))
        assert len(a) == 2 and torch.allclose(b, a, rtol=tolerance, atol=1e-4), (name, a, b)


# --- the range ---


@contextlib.contextmanager
def peaks(*parts):
    """Inside, the largest number that goes into or comes out of each module: name -> number.

    What goes in is counted too, since a sum of a residual stream is no module's output.
    """
    found, hooks = {}, []

    def look(name, module, given, out):
        for tensor in (*given, *(out if isinstance(out, tuple) else [out])):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                found[name] = max(found.get(name, 0.0), tensor.abs().max().item())

    for part in parts:
        for name, module in part.named_modules():
            name = f"{type(part).__name__}.{name}"
            hooks.append(module.register_forward_hook(partial(look, name)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def test_no_activation_comes_near_the_end_of_the_range(pocket):
    """In float32, which shows how large they are where float16 would show infinity."""
    pictures = [sample_photo(name, 128) for name in SAMPLE_PHOTOS]
    pictures += [apply_style(s, draw_scene(i).picture, i) for i, s in enumerate(STYLES)]
    large = [sample_photo("hubble_deep_field", 256)]
    random = torch.Generator().manual_seed(0)
    parts = pocket.vae, pocket.unet, pocket.text_encoder
    with peaks(*parts) as found:
        states = pocket.embed(["", *PHRASES.values()])
        for images in (to_tensor(pictures), to_tensor(large)):
            latents = pocket.encode(images)
            pocket.decode(latents)
            noise = torch.randn(latents.shape, generator=random)
            for shift in (0, 2):  # every group of five pictures goes through all timesteps
                which = torch.arange(len(latents)) + shift
                t = TIMESTEPS[which % len(TIMESTEPS)]
                noisy = pocket.scheduler.add_noise(latents, noise, t)
                pocket.predict_noise(noisy, t, states[which % len(states)])
    modules = {type(p).__name__: len(list(p.modules())) for p in parts}
    for part, count in modules.items():  # those that were not run only hold some
        assert sum(name.startswith(part) for name in found) > 0.7 * count, part
    assert max(found.values()) < LIMIT, max(found, key=found.get)


@torch.no_grad()
def test_each_part_gives_what_it_gives_in_float32(pair, photos):
    full, half = pair
    images, prompts = to_tensor(photos[:2]), ["", "an oil painting of a house by a lake"]
    latents, states = full.encode(images), full.embed(prompts)

    def same(call, error):
        expected, found = call(full).float(), call(half).float()
        assert found.isfinite().all()
        assert (found - expected).abs().max() < error * expected.std()

    same(lambda base: base.encode(images), 0.01)
    same(lambda base: base.decode(latents), 0.02)
    same(lambda base: base.embed(prompts), 0.03)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    for t in TIMESTEPS[[0, 2, 4]]:
        noisy = full.scheduler.add_noise(latents, noise, t[None])
        same(lambda base, noisy=noisy, t=t: base.predict_noise(noisy, t, states), 0.02)


# --- drawing ---


def test_pictures_are_those_of_float32(pair, photos):
    def drawn(base):
        style = load_lora(base, "ink")
        for solver in ("ddim", "inversion", "dpm"):
            set_scale(base, None if solver == "dpm" else style)
            yield redraw(base, photos[:1], 0.8, 3, solver=solver)
        set_scale(base, None)
        yield generate(base, "an oil painting of a house", num_inference_steps=3)

    for found, expected in zip(*map(drawn, pair), strict=True):
        assert levels(found, expected) < LEVELS
        assert np.asarray(found[0]).std() > 10


def test_scores_of_the_model_are_those_of_float32(pair, photos):
    full, half = (noise_predictions(b, photos[:1], "a house", (100, 800)) for b in pair)
    assert prior_drift(full, half).max() < 1e-4
    how = {"strengths": [0.3], "num_inference_steps": 3, "judged_as": "ink"}
    (full,), (half,) = (sweep(base, photos[:1], None, **how) for base in pair)
    for name in ("lpips", "ssim", "edges", "judge"):
        assert torch.allclose(half[name], full[name], rtol=0.05, atol=0.01), name


# --- training ---

STEPS = {"steps": 2, "batch_size": 1, "warmup": 0, "flip": False}


def drift(full, half, photos) -> float:
    return prior_drift(*(noise_predictions(b, photos[:1], "", (300, 700)) for b in (full, half)))


def test_a_lora_learns_as_in_float32(pair, photos):
    settings = Settings(**STEPS, picture_batch=1, picture_from=0.0)
    full, half = (train_style(b, photos, settings=settings, progress=False) for b in pair)
    # LPIPS has kinks: its gradient differs as much where a picture in float32 gets as much noise
    same_rows(full, half, noise=0.01, lpips=0.02, style=0.1, gradient=0.25)
    assert drift(*pair, photos) < 1e-3  # and 0.01 from what it was


def test_dreambooth_learns_as_in_float32(pair, photos):
    settings = DreamBoothSettings(**STEPS, num_class_images=1)
    prior = [prior_set(base, settings, progress=False) for base in pair]
    assert levels(*prior) < LEVELS
    how = {"settings": settings, "prior_pictures": prior[0], "progress": False}
    full, half = (train_dreambooth(base, photos, **how) for base in pair)
    same_rows(full, half, noise=0.01, prior=0.01, gradient=0.02)
    assert drift(*pair, photos) < 1e-4  # and 0.2 from what it was


def test_a_token_is_learned_as_in_float32(pair, photos):
    settings = EmbeddingSettings(**STEPS)
    full, half = (train_embedding(b, photos, "<style>", settings, progress=False) for b in pair)
    same_rows(full, half, noise=0.01, gradient=0.05)
    full, half = (embeddings(base)["<style>"].float() for base in pair)
    assert (full - half).abs().max() < 0.1 * settings.learning_rate
