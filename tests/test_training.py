"""stylenb.training on a tiny real model: the pipeline, the loop, and that nothing is ever lost."""

import contextlib
import copy
import json
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

import stylenb
import stylenb.base
from stylenb import StylenbError, losses, to_tensor, training
from stylenb.lora import LAYERS, about_lora, adapters, add_lora, load_lora, set_alpha, set_scale
from stylenb.training import NotFinite, Settings, train_style

SETTINGS = Settings(
    rank=4,
    steps=6,
    batch_size=2,
    learning_rate=0.01,
    warmup=2,
    picture_batch=1,
    picture_from=0.0,
    lpips_weight=0.01,
    style_weight=0.1,
)
PLAIN = replace(SETTINGS, lpips_weight=0.0, style_weight=0.0)
NOISY = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def stripes(count=5, colour=(200, 90, 20)):
    """Stripes of two colours, at a slant of their own."""
    y, x = np.mgrid[0:64, 0:64]
    dark = [(x * i + y * (count - i)) // 32 % 2 for i in range(count)]
    return [Image.fromarray(np.uint8(d[..., None] * colour + 20)) for d in dark]


def train(base, settings=SETTINGS, pictures=None, content=None, **how):
    return train_style(
        base, pictures or stripes(), content, "mine", settings, progress=False, **how
    )


def weights(base) -> dict:
    return {k: v.clone() for k, v in base.unet.state_dict().items() if ".mine." in k}


def without_seconds(history) -> list[dict]:
    return [{**row, "seconds": 0} for row in history.rows]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@torch.no_grad()
def predict(base):
    return base.predict_noise(NOISY, 500)


def fresh(tiny):
    own = copy.copy(tiny)
    own.unet = copy.deepcopy(tiny.unet)
    return own


def crude_decoder(latents):
    """Stands in for TAESD: three of the latents' channels, enlarged."""
    return torch.nn.functional.interpolate(latents[:, :3], scale_factor=8).tanh()


@pytest.fixture
def base(tiny):
    """The tiny model with a UNet of its own."""
    return fresh(tiny)


@pytest.fixture(scope="module")
def whole_run(tiny):
    """Weights and history of a run that nothing cut."""
    own = fresh(tiny)
    history = train(own, replace(SETTINGS, accumulate=2))
    return weights(own), history


# --- the functions of (seed, step) ---


def test_every_epoch_shows_each_picture_once_in_an_order_of_its_own():
    order = training.order_at(7, 10, 0, 30).tolist()
    epochs = [order[0:10], order[10:20], order[20:30]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    pieces = [training.order_at(7, 10, first, 3).tolist() for first in range(0, 30, 3)]
    assert sum(pieces, []) == order  # wherever a batch begins
    assert training.order_at(8, 10, 0, 30).tolist() != order


def test_timesteps_are_spread_over_the_schedule():
    t = training.spread_timesteps(8, 1000, torch.Generator().manual_seed(0))
    assert [int(x) // 125 for x in t] == list(range(8))


def test_the_rate_warms_up_and_falls():
    settings = Settings(steps=100, warmup=10, learning_rate=1.0)
    rates = [training.rate_at(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(0.98, abs=0.01)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5, abs=0.1) and 0 < rates[-1] < 0.001


# --- the pipeline ---


def test_gradients_reach_the_lora_alone_and_all_of_it(base):
    parameters = {id(p) for p in base.unet.parameters()}
    train(base, replace(SETTINGS, steps=2))  # B is zero at first, and with it A's gradient
    trained = [n for n, p in base.unet.named_parameters() if id(p) not in parameters]
    names = tuple(f".{layer}" for layer in LAYERS["transformer"])
    modules = [n for n, _ in base.unet.named_modules() if n.endswith(names)]
    assert len(trained) == 2 * len(modules) > 0
    after = weights(base)
    add_lora(base, "untrained", 4, 1.0, 0, "transformer")
    for name, value in after.items():
        start = base.unet.state_dict()[name.replace(".mine.", ".untrained.")]
        assert not torch.equal(start, value), name
    others = [p for part in (base.vae, base.unet) for p in part.parameters()]
    assert all(p.grad is None or not p.grad.any() for p in others)


def test_alpha_is_turned_up_when_the_training_is_over(base, tmp_path):
    """The weights are those of a training at alpha; the LoRA, its file and what is drawn on the way
    have final_alpha."""
    photos = [Image.new("RGB", (64, 64), (90, 150, 30))]
    seen = {}
    for final in (1.0, 2.5):
        settings = replace(PLAIN, steps=4, learning_rate=0.1, final_alpha=final)
        history = train(
            base, settings, folder=tmp_path / f"{final}", validation=photos, validate_every=4
        )
        drawn = np.int16(training.redraw(base, photos)[0])
        assert np.abs(np.int16(history.pictures[4][0]) - drawn).max() <= 1  # by rounding
        stylenb.set_scale(base, "mine", 1.0 / final)
        cautious = np.int16(training.redraw(base, photos)[0])
        assert (np.abs(cautious - drawn).max() > 2) == (final > 1)
        stylenb.set_scale(base, "mine")
        seen[final] = weights(base), base.predict_noise(NOISY, 500)
        set_alpha(base, "mine", 2.5)
        seen["loud"] = base.predict_noise(NOISY, 500)
        stylenb.remove_lora(base, "mine")
    assert same(seen[1.0][0], seen[2.5][0])
    assert not torch.allclose(seen[1.0][1], seen[2.5][1], atol=1e-4)
    assert torch.equal(seen["loud"], seen[2.5][1])
    name = load_lora(base, tmp_path / "2.5" / "mine.safetensors")
    set_scale(base, name)
    assert torch.allclose(base.predict_noise(NOISY, 500), seen["loud"], atol=1e-2)
    assert base.unet.peft_config[name].lora_alpha == 2.5 * PLAIN.rank


def test_training_lowers_the_loss(base):
    history = train(base, replace(PLAIN, steps=25, batch_size=4, learning_rate=0.02))
    at, values = history.values("noise")
    assert at == list(range(25)) and np.isfinite(values).all()
    assert np.mean(values[-5:]) < 0.97 * np.mean(values[:5])
    assert history.finished and history.seconds > 0
    assert not any(p.requires_grad for p in base.unet.parameters())


def test_every_term_teaches_something_else(tiny):
    found = []
    for lpips, style in ((0, 0), (1, 0), (0, 1), (1, 1)):
        own = fresh(tiny)
        train(own, replace(SETTINGS, lpips_weight=lpips, style_weight=style))
        found.append(weights(own))
    assert not any(same(a, b) for i, a in enumerate(found) for b in found[:i])


def test_the_frozen_weights_stay_bit_for_bit(base, tiny):
    before, output = {k: v.clone() for k, v in tiny.unet.state_dict().items()}, predict(tiny)
    train(base)
    after = {k.replace(".base_layer", ""): v for k, v in base.unet.state_dict().items()}
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert not torch.allclose(predict(base), output)
    set_scale(base, None)
    assert torch.equal(predict(base), output)


def test_picture_losses_come_at_every_kth_step(base):
    history = train(base, replace(SETTINGS, steps=7, picture_every=3))
    assert history.values("style")[0] == history.values("lpips")[0] == [0, 3, 6]
    assert history.values("noise")[0] == list(range(7))


def test_picture_losses_wait_until_the_marks_are_learned(base):
    history = train(base, replace(SETTINGS, steps=8, picture_from=0.5))
    assert history.values("style")[0] == history.values("lpips")[0] == [4, 5, 6, 7]


def test_picture_losses_come_and_wait_by_updates_not_by_batches(base):
    calls = []
    base.tiny_decoder = lambda latents: calls.append(1) or crude_decoder(latents)
    settings = replace(SETTINGS, steps=8, accumulate=2, picture_every=2, picture_from=0.5)
    history = train(base, settings)
    assert history.values("style")[0] == history.values("lpips")[0] == [4, 6]
    assert len(calls) == 4  # both batches of these updates


def test_picture_losses_look_through_the_quick_decoder(base, monkeypatch):
    monkeypatch.setattr(type(base), "decode", None)
    base.tiny_decoder = crude_decoder
    assert len(train(base, replace(SETTINGS, steps=2)).values("style")[0]) == 2


@pytest.mark.parametrize("snr_gamma, flip", [(None, True), (5.0, False)])
def test_the_first_update_computed_once_more_by_hand(snr_gamma, flip, base, monkeypatch):
    """Two batches, each two style pictures for the noise and a content picture for LPIPS and style;
    with `flip` some of them are mirror images."""
    monkeypatch.setattr(training, "autocast", lambda device: contextlib.nullcontext())
    changes = dict(steps=1, accumulate=2, lpips_weight=0.5, style_weight=0.3, timesteps=600, seed=3)
    settings = replace(SETTINGS, snr_gamma=snr_gamma, flip=flip, **changes)
    own = fresh(base)
    add_lora(own, "mine", settings.rank, settings.alpha, 3, settings.layers)
    style, content = stripes(), stripes(6, (20, 200, 90))
    if flip:
        style, content = ([*p, *map(ImageOps.mirror, p)] for p in (style, content))
    looks = losses.PictureLosses(to_tensor(style))
    expected = dict.fromkeys(("noise", "lpips", "style"), 0.0)
    mirrored = []
    for batch in range(2):
        random = training.generator_at(3, batch)
        chosen = [
            *training.order_at(3, len(style), batch * 2, 2),
            len(style) + training.order_at(4, len(content), batch, 1)[0],
        ]
        mirrored += [i >= 5 for i in chosen[:2]]
        images = to_tensor([[*style, *content][i] for i in chosen])
        spread = training.spread_timesteps
        t = torch.cat([spread(2, 600, random), spread(1, settings.picture_timesteps, random)])
        noise = torch.randn(3, 4, 8, 8, generator=random)
        noisy = own.scheduler.add_noise(own.encode(images), noise, t)
        found = own.predict_noise(noisy, t)
        error = (found - noise).square().mean((1, 2, 3))
        ratio = losses.snr(own.scheduler, t)
        if snr_gamma:
            assert ratio[0] > snr_gamma  # or the weight could be left out
            error = error * ratio.clamp(max=snr_gamma) / ratio
        x0 = losses.estimate_x0(own.scheduler, noisy[2:], found[2:], t[2:])
        lpips, distance = looks(own.decode(x0), images[2:])
        expected["noise"] += error[:2].mean() / 2
        expected["lpips"] += lpips[0] * ratio[2].clamp(max=1) / 2
        expected["style"] += distance[0] * ratio[2].clamp(max=1) / 2
    assert any(mirrored) == flip
    total = expected["noise"] + 0.5 * expected["lpips"] + 0.3 * expected["style"]
    total.backward()
    gradients = [p.grad.flatten() for p in own.unet.parameters() if p.grad is not None]

    row = train(base, settings, content=stripes(6, (20, 200, 90))).rows[0]
    for key, value in {**expected, "loss": total}.items():
        assert row[key] == pytest.approx(value.item(), rel=1e-3), key
    assert row["gradient"] == pytest.approx(torch.cat(gradients).norm().item(), rel=1e-2)


def test_a_base_of_full_size_begins_with_settings_of_its_own(base):
    assert Settings.for_base(base) == Settings()
    assert Settings.for_base(base, steps=7) == Settings(steps=7)
    base.image_size = 512
    large = Settings.for_base(base, steps=7)
    assert (large.steps, large.batch_size, large.accumulate, large.picture_every) == (7, 1, 4, 4)
    assert large.gradient_checkpointing and large.layers == "attention"
    assert large.learning_rate < Settings().learning_rate and large.timesteps == 1000


def test_without_their_weights_no_picture_is_decoded(base, monkeypatch):
    monkeypatch.setattr(type(base), "decode", None)
    assert train(base, PLAIN).values("style") == ([], [])


def test_content_and_style_pictures_may_differ(tiny):
    found = []
    for content in (None, stripes(7, (20, 200, 90)), stripes()):
        own = fresh(tiny)
        train(own, content=content)
        found.append(weights(own))
    assert not same(found[0], found[1])
    assert same(found[0], found[2])  # the style pictures are the content where none is given


def test_what_the_prompt_needs_is_dropped(base):
    train(base, replace(PLAIN, steps=1))
    assert base.text_encoder is None and base.tokenizer is None


def test_accumulation_is_a_larger_batch(tiny, monkeypatch):
    noisy = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([100, 300, 600, 900])
    monkeypatch.setattr(training, "autocast", lambda device: contextlib.nullcontext())
    found = []
    for size, accumulate in ((4, 1), (2, 2), (1, 4)):
        own = fresh(tiny)
        add_lora(own, "mine", 4)

        def losses_of(batch, own=own, size=size):
            part = slice(batch * size % 4, batch * size % 4 + size)
            error = own.predict_noise(noisy[part], t[part]) - noisy[part]
            return {"noise": error.square().mean()}

        settings = replace(PLAIN, steps=2, accumulate=accumulate)
        history = training.fit(own, losses_of, settings, {}, progress=False)
        found.append((weights(own), history.rows))
    (expected, rows), *others = found
    for state, other_rows in others:
        for mine, theirs in zip(other_rows, rows, strict=True):
            assert mine["noise"] == pytest.approx(theirs["noise"], rel=1e-3)
            assert mine["gradient"] == pytest.approx(theirs["gradient"], rel=1e-2)
        for key, value in state.items():
            assert torch.allclose(value, expected[key], atol=1e-3), key


def test_clipping_clips(tiny):
    found = {}
    for clip in (1e9, 1e-3):
        own = fresh(tiny)
        seen = []
        original = torch.optim.AdamW.step

        def step(self, *args, seen=seen, original=original, **more):
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            seen.append(torch.cat([g.flatten() for g in gradients]).norm().item())
            return original(self, *args, **more)

        torch.optim.AdamW.step = step
        try:
            history = train(own, replace(PLAIN, clip=clip, steps=2))
        finally:
            torch.optim.AdamW.step = original
        found[clip] = seen, [row["gradient"] for row in history.rows]
    free, measured = found[1e9]
    clipped, _ = found[1e-3]
    assert min(free) > 1e-3 and free == pytest.approx(measured, rel=1e-3)
    assert clipped == pytest.approx([1e-3] * 2, rel=1e-3)


def test_the_same_seed_trains_the_same_weights(tiny):
    found = []
    for seed in (5, 5, 6):
        own = fresh(tiny)
        torch.rand(len(found))  # whatever was drawn before plays no part
        state = torch.get_rng_state()
        train(own, replace(SETTINGS, seed=seed))
        assert torch.equal(torch.get_rng_state(), state)
        found.append(weights(own))
    assert same(found[0], found[1]) and not same(found[0], found[2])


def test_gradient_checkpointing_changes_the_memory_only(tiny):
    found = []
    for checkpointing in (False, True):
        own = fresh(tiny)
        train(own, replace(SETTINGS, gradient_checkpointing=checkpointing))
        found.append(weights(own))
        assert not own.unet.training and not own.unet.is_gradient_checkpointing
    for key, value in found[0].items():
        assert torch.allclose(value, found[1][key], atol=1e-4), key


def test_gradient_checkpointing_keeps_less_for_the_way_back(tiny, monkeypatch):
    predicted = stylenb.base.Base.predict_noise
    sizes = []

    def predict_noise(self, *args):
        with training.kept_activations(self.unet) as kept:
            out = predicted(self, *args)
        sizes.append(sum(kept.values()))
        return out

    monkeypatch.setattr(stylenb.base.Base, "predict_noise", predict_noise)
    for checkpointing in (False, True):
        train(fresh(tiny), replace(PLAIN, steps=1, gradient_checkpointing=checkpointing))
    assert 0 < sizes[1] < 0.5 * sizes[0]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_kept_activations_are_counted_once_and_without_the_weights(device):
    layers = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2), torch.nn.Tanh()
    ).to(device)
    pictures, float32 = torch.zeros(5, 3, device=device), 4

    def counted() -> int:
        with training.kept_activations(layers) as kept:
            out = layers(pictures)  # its graph has to live while it is counted
        assert out.requires_grad
        return sum(kept.values())

    # the input, and what each tanh made: the first of these is also the second layer's input
    assert counted() == float32 * (5 * 3 + 5 * 4 + 5 * 2)
    layers[0].requires_grad_(False)  # then its input is not needed, nor the first tanh's output
    layers[2].weight.requires_grad_(False)
    assert counted() == float32 * 5 * 2  # the bias still wants the gradient of the last tanh


@pytest.fixture
def half(tiny_folder, monkeypatch):
    """As on a GPU without bfloat16: no autocast, and a scaler."""
    monkeypatch.setattr(training, "autocast", lambda device: contextlib.nullcontext())
    return stylenb.load(tiny_folder, device="cpu", dtype=torch.float16)


def watch_gradients(monkeypatch, factors):
    """Multiply the gradient that comes to the loss by factors(step); return the list of those."""
    original = training.noise_loss
    seen = []

    def noise_loss(*args):
        def watch(gradient):
            seen.append(gradient.sum().item())
            return gradient * factors(len(seen) - 1)

        loss = original(*args)
        loss.register_hook(watch)
        return loss

    monkeypatch.setattr(training, "noise_loss", noise_loss)
    return seen


def test_half_precision_bases_train_too(half):
    history = train(half, replace(SETTINGS, steps=3))
    assert history.finished and all(v.dtype == torch.float32 for v in weights(half).values())


def test_the_loss_of_a_half_precision_base_is_scaled_up_and_the_gradient_down(
    half, tiny, monkeypatch
):
    seen = watch_gradients(monkeypatch, lambda step: 1)
    scaled = train(half, replace(PLAIN, steps=1)).rows[0]
    plain = train(fresh(tiny), replace(PLAIN, steps=1)).rows[0]
    assert seen[0] > 1000 and seen[1] == 1
    assert scaled["noise"] == pytest.approx(plain["noise"], rel=0.01)
    assert scaled["gradient"] == pytest.approx(plain["gradient"], rel=0.05)


def test_an_update_that_overflows_in_half_precision_is_left_out(half, monkeypatch):
    seen = watch_gradients(monkeypatch, lambda step: float("inf") if step == 0 else 1)
    assert train(half, replace(PLAIN, steps=1)).finished
    for key, value in weights(half).items():
        assert value.isfinite().all() and not (".lora_B." in key and value.any()), key
    stylenb.remove_lora(half, "mine")
    seen.clear()
    history = train(half, replace(PLAIN, steps=3))
    assert history.finished and seen[1] == seen[0] / 2  # the scale is halved
    assert [np.isfinite(row["gradient"]) for row in history.rows] == [False, True, True]
    after = weights(half)
    assert all(value.isfinite().all() for value in after.values())
    assert any(value.any() for key, value in after.items() if ".lora_B." in key)


def test_half_precision_stops_when_no_scale_helps(half, monkeypatch):
    seen = watch_gradients(monkeypatch, lambda step: float("nan"))
    with pytest.raises(NotFinite, match="gradient is not finite"):
        train(half, replace(PLAIN, steps=40, batch_size=1))
    assert 1 < len(seen) < 30 and seen[-1] == 1
    assert all(v.isfinite().all() for v in weights(half).values())


def test_batches_are_computed_in_the_precision_of_the_hardware(base, monkeypatch):
    monkeypatch.setattr(stylenb.base, "autocast_dtype", lambda device: torch.bfloat16)
    predicted = type(base).predict_noise
    seen = []

    def predict_noise(self, *args):
        seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return predicted(self, *args)

    monkeypatch.setattr(type(base), "predict_noise", predict_noise)
    assert train(base, replace(SETTINGS, steps=2)).finished
    assert seen == [torch.bfloat16] * 2
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in weights(base).values())


def test_the_progress_bar_shows_smoothed_losses(base, capsys):
    add_lora(base, "mine", 4)
    one = next(p for p in base.unet.parameters() if p.requires_grad)

    def losses_of(batch):
        return {"noise": 0 * one.sum() + (10 if batch == 0 else 0)}

    training.fit(base, losses_of, replace(PLAIN, steps=3), {})
    bar = capsys.readouterr().err
    assert "3/3" in bar and "noise=9.025" in bar  # 10 * 0.95 ** 2


def test_eight_bit_adamw_or_a_sentence_about_it(base):
    settings = replace(PLAIN, optimizer="adamw8bit", steps=2)
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(StylenbError, match="pip install bitsandbytes"):
            train(base, settings)
        assert adapters(base) == []
    else:
        assert train(base, settings).finished


def test_validation_pictures(base, tmp_path):
    photos = stripes(2)
    seen = []
    how = dict(validation=photos, validate_every=2, watch=seen.append)
    history = train(base, folder=tmp_path, **how)
    assert list(history.pictures) == [2, 4, 6]
    assert [list(pictures) for pictures in seen] == [[2], [2, 4], [2, 4, 6]]
    assert seen[-1] == history.pictures
    assert all(len(p) == 2 and p[0].size == (64, 64) for p in history.pictures.values())
    assert history.pictures[2][0].tobytes() != history.pictures[6][0].tobytes()
    files = sorted(p.name for p in (tmp_path / "validation").iterdir())
    assert files[:2] == ["000002-0.png", "000002-1.png"] and len(files) == 6


def test_validation_does_not_change_the_run(tiny, whole_run):
    own = fresh(tiny)
    train(own, replace(SETTINGS, accumulate=2), validation=stripes(1), validate_every=1)
    assert same(weights(own), whole_run[0])


# --- what is written ---


def test_the_folder_holds_the_lora_its_history_and_the_last_checkpoints(base, tmp_path):
    folder = tmp_path / "run"
    history = train(base, folder=folder, checkpoint_every=1, keep=2)
    names = sorted(p.name for p in folder.iterdir())
    assert names == [
        "checkpoint-000005.safetensors",
        "checkpoint-000006.safetensors",
        "history.json",
        "mine.safetensors",
    ]
    assert json.loads((folder / "history.json").read_text())["rows"] == history.rows
    about = about_lora(folder / "mine.safetensors")
    assert about["settings"]["learning_rate"] == 0.01 and about["base"] == base.name
    trained = predict(base)
    stylenb.remove_lora(base, "mine")
    set_scale(base, load_lora(base, folder / "mine.safetensors"))
    assert torch.allclose(predict(base), trained, atol=2e-3)  # half precision on the way


def test_a_full_disk_loses_nothing(base, whole_run, tmp_path):
    """The third checkpoint does not fit: the run ends, and what was saved before is whole."""
    limited = """
from pathlib import Path
Path({folder!r}).mkdir()
original = training.Checkpoints.save
def save(self, history):
    if len(history.rows) == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    original(self, history)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
training.Checkpoints.save = save
train(load(), replace(SETTINGS, accumulate=2), folder={folder!r}, checkpoint_every=2, keep=9)
"""
    folder = tmp_path / "run"
    done = run_script(limited.format(folder=str(folder)))
    assert done.returncode == 0, done.stderr
    assert "could not be saved" in done.stderr and "Free some disk space" in done.stderr
    names = sorted(p.name for p in folder.glob("checkpoint*"))
    assert names == [f"checkpoint-00000{i}.safetensors" for i in (0, 2, 6)]
    assert not list(folder.glob("*.tmp"))
    rows = json.loads((folder / "history.json").read_text())["rows"]
    for step in (2, 6):  # with each of them alone the run goes on to the same end
        alone = tmp_path / str(step)
        alone.mkdir()
        name = f"checkpoint-00000{step}.safetensors"
        (alone / name).write_bytes((folder / name).read_bytes())
        history = train(base, replace(SETTINGS, accumulate=2), folder=alone)
        assert history.rows[:step] == rows[:step]  # with their seconds: these were not run again
        assert without_seconds(history) == without_seconds(whole_run[1])
        assert same(weights(base), whole_run[0])
        stylenb.remove_lora(base, "mine")


# --- cut and resumed ---

SCRIPT = """
import resource, sys
sys.path[:0] = {path!r}
import torch
torch.set_num_threads({threads})
import stylenb
from test_training import *
def load():
    return stylenb.load({tiny!r}, device="cpu")
"""


@pytest.fixture(autouse=True)
def _script(tiny_folder):
    run_script.head = SCRIPT.format(
        path=[str(Path(__file__).parent), str(Path(__file__).parent.parent)],
        threads=torch.get_num_threads(),
        tiny=str(tiny_folder),
    )


def run_script(body: str, **options):
    return subprocess.run(
        [sys.executable, "-c", run_script.head + body], capture_output=True, text=True, **options
    )


def test_a_run_killed_at_random_moments_ends_with_the_same_weights(base, whole_run, tmp_path):
    """Between two batches, then with a checkpoint half written, then between two batches again.
    Checkpoints are two updates apart, so finished ones are redone."""
    folder = tmp_path / "run"
    seed = random.SystemRandom().randrange(10**6)
    print("random seed", seed)  # seen where this fails
    chance = random.Random(seed)
    moments = [
        ("batch", chance.randint(3, 8)),  # in the second, third or fourth update
        ("save", chance.randint(1, 2)),
        ("batch", chance.randint(3, 8)),
    ]
    print(moments)
    body = f"""
import os, signal, traceback
from safetensors.torch import save_file
folder, settings = Path({str(folder)!r}), replace(SETTINGS, accumulate=2)

def run(what, number):
    left = [number]
    def passed():  # by the moment at which the process is to be killed
        left[0] -= 1
        return left[0] == 0
    def kill():
        os.kill(os.getpid(), signal.SIGKILL)
    predicted = stylenb.base.Base.predict_noise
    def predict_noise(self, *args):  # once a batch: inside an accumulation window too
        if what == "batch" and passed():
            kill()
        return predicted(self, *args)
    def save(tensors, path, *more):
        save_file(tensors, path, *more)
        if what == "save" and passed():
            os.truncate(path, path.stat().st_size // 2)
            kill()
    stylenb.base.Base.predict_noise, training.save_file = predict_noise, save
    train(load(), settings, folder=folder, checkpoint_every=2)

for moment in {moments!r}:
    process = os.fork()  # importing once, and nothing has been computed yet
    if process == 0:
        try:
            run(*moment)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    _, status = os.waitpid(process, 0)
    files = sorted(folder.glob("checkpoint*.safetensors"))
    [load_file(file) for file in files]  # raises where one is damaged
    print(json.dumps([os.WIFSIGNALED(status) and os.WTERMSIG(status), [f.name for f in files]]))
"""
    done = run_script(body)
    print(done.stderr)
    assert done.returncode == 0
    ended = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [signal_ for signal_, _ in ended] == [signal.SIGKILL] * 3
    kept = 0
    for (what, number), (_, names) in zip(moments, ended, strict=True):
        newest = int(names[-1][len("checkpoint-") : -len(".safetensors")])
        lost = kept + (number - 1) // 2 - newest if what == "batch" else kept - newest
        assert newest >= kept and lost <= 2  # updates, and nothing that was there before
        kept = newest
    assert not (folder / "mine.safetensors").exists()
    history = train(base, replace(SETTINGS, accumulate=2), folder=folder, checkpoint_every=2)
    assert same(weights(base), whole_run[0]) and not list(folder.glob("*.tmp"))
    assert without_seconds(history) == without_seconds(whole_run[1])


def test_a_run_that_was_stopped_by_its_time_goes_on(base, whole_run, tmp_path, capsys):
    settings = replace(SETTINGS, accumulate=2)
    history = train(base, settings, folder=tmp_path, minutes=0)
    assert len(history.rows) == 1 and not history.finished
    assert "at step 1 of 6; run it again to go on" in capsys.readouterr().out
    stylenb.remove_lora(base, "mine")
    assert train(base, settings, folder=tmp_path).finished
    assert same(weights(base), whole_run[0])


def test_the_time_is_in_minutes(base, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now[0]))
    predicted = type(base).predict_noise

    def predict_noise(self, *args):  # 50 seconds for every update
        now[0] += 50
        return predicted(self, *args)

    monkeypatch.setattr(type(base), "predict_noise", predict_noise)
    history = train(base, PLAIN, minutes=2)
    assert len(history.rows) == 3 and history.seconds == 150


def test_a_finished_run_is_not_run_again(base, tmp_path):
    first = train(base, folder=tmp_path)
    trained = weights(base)
    stylenb.remove_lora(base, "mine")
    began = time.monotonic()
    again = train(base, folder=tmp_path)
    assert again.rows == first.rows and same(weights(base), trained)
    assert time.monotonic() - began < first.seconds + 5


def test_a_damaged_last_checkpoint_costs_only_itself(base, whole_run, tmp_path):
    settings = replace(SETTINGS, accumulate=2)
    train(base, settings, folder=tmp_path, checkpoint_every=1, keep=3)
    last = sorted(tmp_path.glob("checkpoint*"))[-1]
    last.write_bytes(last.read_bytes()[:1000])
    (tmp_path / "checkpoint-000009.tmp").write_bytes(b"half written")
    stylenb.remove_lora(base, "mine")
    history = train(base, settings, folder=tmp_path, checkpoint_every=1, keep=3)
    assert history.finished and same(weights(base), whole_run[0])
    assert not list(tmp_path.glob("*.tmp"))


DIFFERENT = {
    "learning rate": (replace(SETTINGS, learning_rate=0.02), None, "learning_rate was 0.01 and is"),
    "rank": (replace(SETTINGS, rank=2), None, "rank was 4 and is 2"),
    "two": (replace(SETTINGS, steps=9, seed=1), None, "steps was 6 and is 9; seed was 0 and is 1"),
    "pictures": (SETTINGS, stripes(5, (1, 2, 3)), "style pictures was"),
}


def test_other_content_or_another_base_is_refused_too(base, tmp_path):
    train(base, PLAIN, folder=tmp_path)
    stylenb.remove_lora(base, "mine")
    other = fresh(base)
    other.name = "other"
    for own, content, message in (
        (base, stripes(5, (1, 2, 3)), r"\(content pictures was '\w+' and is '\w+'\)"),
        (other, None, rf"\(base was '{re.escape(base.name)}' and is 'other'\)"),
    ):
        with pytest.raises(StylenbError, match=message):
            train(own, PLAIN, content=content, folder=tmp_path)
        assert adapters(own) == []
    assert train(base, PLAIN, content=stripes(), folder=tmp_path).finished  # as it was


@pytest.mark.parametrize("case", DIFFERENT)
def test_other_settings_are_refused_and_named(case, base, tmp_path):
    train(base, folder=tmp_path)
    stylenb.remove_lora(base, "mine")
    files = {p: p.read_bytes() for p in tmp_path.iterdir()}
    settings, pictures, message = DIFFERENT[case]
    with pytest.raises(StylenbError, match=message):
        train(base, settings, pictures, folder=tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == files
    assert adapters(base) == []


# --- not a number ---


def poison(monkeypatch, at, value):
    original = training.noise_loss
    calls = []

    def noise_loss(*args):
        calls.append(1)
        loss = original(*args)
        return loss * value if len(calls) == at + 1 else loss

    monkeypatch.setattr(training, "noise_loss", noise_loss)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_loss_that_is_not_finite_stops_it(value, base, tmp_path, monkeypatch):
    poison(monkeypatch, 4, value)
    with pytest.raises(
        NotFinite, match=r"loss is not finite at step 4; the weights of step 3 are "
    ):
        train(base, PLAIN, folder=tmp_path, checkpoint_every=3)
    good = weights(base)
    assert good and all(v.isfinite().all() for v in good.values())
    newest = sorted(tmp_path.glob("checkpoint*"))[-1]
    assert newest.name == "checkpoint-000003.safetensors"
    kept = {k: v for k, v in load_file(newest).items() if k.startswith("weights/")}
    assert same(good, {k.removeprefix("weights/unet."): v for k, v in kept.items()})
    monkeypatch.undo()
    stylenb.remove_lora(base, "mine")
    history = train(base, PLAIN, folder=tmp_path, checkpoint_every=3)  # it can go on from there
    assert history.finished


def test_a_gradient_that_is_not_finite_stops_it(base, monkeypatch):
    original = training.noise_loss

    def noise_loss(prediction, *args):
        loss = original(prediction, *args)
        loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    monkeypatch.setattr(training, "noise_loss", noise_loss)
    with pytest.raises(NotFinite, match="gradient is not finite at step 0; .* half the learning"):
        train(base, PLAIN)


def test_weights_that_are_not_finite_are_never_saved(base, tmp_path):
    """A weight that no loss looks at: figures are good, and the weights are not."""
    add_lora(base, "mine", 4)
    one, other, *_ = (p for p in base.unet.parameters() if p.requires_grad)

    def losses_of(batch):
        if batch == 2:
            with torch.no_grad():
                other[0, 0] = float("nan")
        return {"noise": (one - 1).square().mean()}

    with contextlib.suppress(NotFinite):  # whether or not it is told in the end
        training.fit(
            base, losses_of, PLAIN, {}, folder=tmp_path, checkpoint_every=1, progress=False
        )
    files = sorted(tmp_path.glob("checkpoint*"))
    assert files[-1].name == "checkpoint-000001.safetensors"
    assert all(v.isfinite().all() for file in files for v in load_file(file).values())


def test_a_rate_that_is_far_too_high_keeps_good_weights(base):
    with pytest.raises(NotFinite, match="Try half the learning rate"):
        train(base, replace(PLAIN, learning_rate=1e30, warmup=0))
    assert all(v.isfinite().all() for v in weights(base).values())


def test_after_a_restart_the_last_checkpoint_is_the_good_one(base, tmp_path, monkeypatch):
    train(base, PLAIN, folder=tmp_path, minutes=0)  # one step
    stylenb.remove_lora(base, "mine")
    train(base, PLAIN, folder=tmp_path, minutes=0)
    good = weights(base)
    stylenb.remove_lora(base, "mine")
    poison(monkeypatch, 2, float("nan"))
    with pytest.raises(NotFinite, match="at step 4; the weights of step 2 are kept.*other folder"):
        train(base, PLAIN, folder=tmp_path)
    assert same(weights(base), good)


def test_what_is_kept_of_a_run_gone_wrong_can_be_used(base, monkeypatch):
    poison(monkeypatch, 3, float("nan"))
    with pytest.raises(NotFinite):
        train(base, replace(PLAIN, final_alpha=1.7))
    layers = [m for m in base.unet.modules() if hasattr(m, "lora_A")]
    assert {layer.scaling["mine"] for layer in layers} == {1.7}
    assert not any(p.requires_grad for p in base.unet.parameters())


def test_the_last_update_is_looked_at_too(base, tmp_path, monkeypatch):
    class Overflowing(torch.optim.AdamW):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.fill_(float("inf"))

    settings = replace(PLAIN, steps=1, warmup=0, learning_rate=1e30)
    with pytest.raises(StylenbError, match="above the 65,504 of half precision.*lower learning"):
        train(base, settings, folder=tmp_path)
    stylenb.remove_lora(base, "mine")
    monkeypatch.setattr(training, "make_optimizer", lambda ps, _: Overflowing(ps))
    with pytest.raises(NotFinite, match="weight is not finite at step 1; the weights of step 0"):
        train(base, settings, folder=tmp_path / "other")
    assert all(v.isfinite().all() for v in weights(base).values())
    assert not list(tmp_path.glob("**/mine.safetensors"))


# --- stopped by hand, and errors on the way ---


def interrupted(base, at, error):
    calls = iter(range(at))

    def hook(*_):
        if next(calls, None) is None:
            raise error

    return base.unet.register_forward_pre_hook(hook)


def test_stopped_by_hand_the_same_call_goes_on(base, whole_run, tmp_path):
    settings = replace(SETTINGS, accumulate=2)
    hook = interrupted(base, 7, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train(base, settings, folder=tmp_path, checkpoint_every=1)
    hook.remove()
    assert train(base, settings, folder=tmp_path, checkpoint_every=1).finished
    assert same(weights(base), whole_run[0])


def test_stopped_by_hand_without_a_folder_keeps_what_was_learned(base):
    hook = interrupted(base, 4, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train(base)
    hook.remove()
    assert any(v.any() for k, v in weights(base).items() if "lora_B" in k)
    assert not any(p.requires_grad for p in base.unet.parameters())


def test_any_other_error_leaves_the_base_as_it_was(base, tmp_path):
    hook = interrupted(base, 2, RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        train(base, folder=tmp_path)
    hook.remove()
    assert adapters(base) == []


def test_damaged_checkpoints_do_not_push_out_good_ones(base, whole_run, tmp_path):
    settings = replace(SETTINGS, accumulate=2)
    train(base, settings, folder=tmp_path, checkpoint_every=1, keep=1)
    (last,) = tmp_path.glob("checkpoint*")
    last.write_bytes(last.read_bytes()[:1000])
    for _ in range(2):  # it has to start afresh, and then goes on from what it saved
        stylenb.remove_lora(base, "mine")
        train(base, settings, folder=tmp_path, checkpoint_every=1, keep=1, minutes=0)
    (kept,) = tmp_path.glob("checkpoint*")
    assert kept.name == "checkpoint-000002.safetensors"


def test_validation_pictures_are_there_again_after_a_restart(base, tmp_path):
    photos = stripes(2)
    how = dict(folder=tmp_path, validation=photos, validate_every=2)
    first = train(base, **how)
    stylenb.remove_lora(base, "mine")
    again = train(base, **how)
    assert list(again.pictures) == list(first.pictures) == [2, 4, 6]
    for step, pictures in first.pictures.items():
        for one, other in zip(pictures, again.pictures[step], strict=True):
            assert np.array_equal(one, other)


def test_the_history_file_may_fail_alone(base, tmp_path, recwarn):
    (tmp_path / "history.json").mkdir()  # so that it cannot be written
    train(base, folder=tmp_path)
    assert sorted(tmp_path.glob("checkpoint*")) and (tmp_path / "mine.safetensors").exists()
    assert not [w for w in recwarn if "could not be saved" in str(w.message)]


@pytest.mark.parametrize("what", ["name", "weights", "prompt"])
def test_a_run_is_of_one_name_and_one_base(what, base, tmp_path):
    train(base, folder=tmp_path)
    stylenb.remove_lora(base, "mine")
    name, other, message = "mine", contextlib.nullcontext(), f"{what} was"
    if what == "name":
        name = "yours"
    elif what == "weights":
        message = "fingerprint was"
        with torch.no_grad():
            base.unet.conv_in.weight.neg_()
    else:
        base.prompt, base._embedding = "another", base.empty
    with other, pytest.raises(StylenbError, match=message):
        train_style(base, stripes(), None, name, SETTINGS, progress=False, folder=tmp_path)
    assert adapters(base) == []


# --- bad calls ---

BAD = {
    "few pictures": (lambda base: train(base, pictures=stripes(3)), "at least 4 pictures"),
    "no content": (lambda base: train(base, content=[]), "content_pictures is empty"),
    "rank": (lambda base: Settings(rank=0), "rank is a whole number from 1 up, not 0"),
    "layers": (
        lambda base: Settings(layers="resnets"),
        "layers is attention or transformer, not 'resnets'",
    ),
    "steps": (lambda base: Settings(steps=2.5), "steps is a whole number"),
    "rate": (lambda base: Settings(learning_rate=0), "learning_rate must be above 0"),
    "weight": (lambda base: Settings(style_weight=-1), "style_weight must be 0 or more"),
    "optimizer": (lambda base: Settings(optimizer="sgd"), "'adamw' or 'adamw8bit', not 'sgd'"),
    "features": (
        lambda base: train(base, replace(SETTINGS, features="resnet")),
        "features is one of",
    ),
    "min-SNR": (lambda base: Settings(snr_gamma=-1.0), "snr_gamma is above 0, or None, not -1.0"),
    "no min-SNR": (lambda base: Settings(snr_gamma=0), "snr_gamma is above 0, or None, not 0"),
    "no alpha": (lambda base: Settings(alpha=0), "alpha is a number other than 0, not 0"),
    "NaN": (lambda base: Settings(final_alpha=float("nan")), "final_alpha is a number other than"),
    "share": (lambda base: Settings(picture_from=7), "picture_from is a share of the steps, 0 to"),
    "endless": (lambda base: Settings(learning_rate=float("inf")), "learning_rate must be above 0"),
    "seed": (lambda base: Settings(seed="x"), "seed is a whole number, not 'x'"),
    "sizes": (
        lambda base: train(base, content=[picture.resize((32, 32)) for picture in stripes()]),
        r"must have one size, these have \[\(32, 32\), \(64, 64\)\]",
    ),
    "file": (lambda base: train(base, folder=__file__), "cannot be a folder .* choose another"),
    "never saved": (lambda base: train(base, checkpoint_every=0), "checkpoint_every is a whole"),
    "never drawn": (lambda base: train(base, validate_every=0), "validate_every is a whole num"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_call_is_one_sentence_and_leaves_the_base(case, base):
    call, message = BAD[case]
    with pytest.raises(StylenbError, match=message):
        call(base)
    assert adapters(base) == []
