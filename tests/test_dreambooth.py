"""DreamBooth on a tiny real model: what is learned, what stays, and what is drawn by a prompt."""

import contextlib
import copy
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from PIL import Image
from safetensors.torch import load_file, save_file
from test_loop import full_disk, without_seconds
from test_training import stripes

import stylenb
from stylenb import StylenbError, dreambooth, loop
from stylenb.base import SOLVER_STEPS, fingerprint
from stylenb.dreambooth import (
    DreamBoothSettings,
    load_dreambooth,
    prior_set,
    save_dreambooth,
    train_dreambooth,
    trainable,
    undo_dreambooth,
)
from stylenb.inference import redraw
from stylenb.loop import NotFinite, TrainingStopped
from stylenb.lora import adapters, add_lora
from stylenb.lora_files import about_lora, load_lora, save_lora
from stylenb.photos import to_tensor
from stylenb.text_to_image import generate, save_pipeline

SETTINGS = DreamBoothSettings(
    steps=4, batch_size=2, learning_rate=0.01, warmup=2, num_class_images=6, train="attention"
)
WHOLE = replace(SETTINGS, gradient_accumulation_steps=2, text_encoder=True)
NOISY = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


PRIOR = stripes(6, (20, 60, 220))


def train(base, settings=SETTINGS, prior=PRIOR, **how):
    return train_dreambooth(
        base, stripes(4), settings, "mine", prior_pictures=prior, progress=False, **how
    )


def weights(base) -> dict:
    """Everything in the base, by name."""
    parts = {"unet": base.unet, "text_encoder": base.text_encoder, "vae": base.vae}
    return {
        f"{part}.{name}": p.detach().clone()
        for part, module in parts.items()
        for name, p in module.named_parameters()
    }


def changed(before: dict, after: dict) -> set:
    assert before.keys() == after.keys()
    return {k for k in before if not torch.equal(before[k], after[k])}


def fresh(tiny):
    own = copy.copy(tiny)
    own.unet, own.text_encoder = copy.deepcopy(tiny.unet), copy.deepcopy(tiny.text_encoder)
    own.tokenizer, own.originals = copy.deepcopy(tiny.tokenizer), {}
    return own


@pytest.fixture(autouse=True)
def _few_steps_of_drawing(monkeypatch):
    monkeypatch.setitem(SOLVER_STEPS, "inversion", 3)
    monkeypatch.setitem(SOLVER_STEPS, "ddim", 3)


@pytest.fixture
def base(tiny):
    """The tiny model with a UNet and a text encoder of its own."""
    return fresh(tiny)


# --- the losses ---


@pytest.mark.parametrize("snr_gamma", [None, 5.0])
def test_each_half_of_the_batch_has_its_own_caption_weight_and_timesteps(
    snr_gamma, base, monkeypatch
):
    """The first update, computed once more by hand: two batches, each two instance pictures and
    two of the prior."""
    monkeypatch.setattr(loop, "autocast", lambda device: contextlib.nullcontext())
    settings = replace(
        SETTINGS,
        steps=1,
        gradient_accumulation_steps=2,
        snr_gamma=snr_gamma,
        prior_loss_weight=0.7,
        flip=False,
        seed=3,
    )
    own = copy.deepcopy(base.unet)
    chosen = [p.requires_grad_() for p in trainable(own, "attention").values()]
    expected = {"noise": 0.0, "prior": 0.0}
    total = 0.0
    for batch in range(2):
        random = loop.generator_at(3, batch)
        t = {key: loop.spread_timesteps(2, 1000, random) for key in expected}
        noise = torch.randn(4, 4, 8, 8, generator=random)
        for part, (key, pictures, prompt, weight) in enumerate(
            [
                ("noise", stripes(4), settings.prompt, 1.0),
                ("prior", PRIOR, settings.class_prompt, 0.7),
            ]
        ):
            order = loop.order_at(3 + part, len(pictures), batch * 2, 2)
            latents = base.encode(to_tensor([pictures[i] for i in order]))
            its_noise = noise[2 * part : 2 * part + 2]
            noisy = base.scheduler.add_noise(latents, its_noise, t[key])
            states = base.embed([prompt] * 2)
            found = own(noisy, t[key], encoder_hidden_states=states).sample
            error = (found - its_noise).square().mean((1, 2, 3))
            if snr_gamma:
                ratio = compute_snr(base.scheduler, t[key])
                error = error * ratio.clamp(max=snr_gamma) / ratio
            expected[key] += error.mean().item() / 2
            total = total + weight * error.mean() / 2
    gradients = torch.autograd.grad(total, chosen)
    row = train(base, settings).rows[0]
    for key, value in expected.items():
        assert row[key] == pytest.approx(value, rel=1e-4)
    assert row["noise"] != pytest.approx(row["prior"], rel=0.01)
    assert row["loss"] == pytest.approx(total.item(), rel=1e-4)
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    assert row["gradient"] == pytest.approx(norm, rel=1e-3)


def test_without_prior_preservation_nothing_is_drawn(base, tmp_path, monkeypatch):
    monkeypatch.setattr(dreambooth, "generate", None)
    history = train(base, replace(SETTINGS, prior_loss_weight=0), None, folder=tmp_path)
    assert history.values("prior") == ([], []) and len(history.values("noise")[0]) == 4
    assert not (tmp_path / "prior").exists()


def test_prior_preservation_is_felt(tiny):
    found = []
    for weight in (0.0, 1.0, 3.0):
        own = fresh(tiny)
        train(own, replace(SETTINGS, prior_loss_weight=weight))
        found.append(weights(own))
    assert changed(found[0], found[1]) and changed(found[1], found[2])


# --- what is trained, and what is not ---

PARTS = {
    "unet": (lambda name: name.startswith("unet."), False),
    "attention": (lambda name: ".attn1." in name or ".attn2." in name, False),
    "transformer": (lambda name: ".attentions." in name, False),
    "attention and text": (lambda name: ".attn" in name or name.startswith("text_encoder."), True),
}


@pytest.mark.parametrize("part", PARTS)
def test_what_is_frozen_stays_bit_for_bit_and_all_can_be_undone(part, base):
    belongs, text_encoder = PARTS[part]
    before, empty = weights(base), base.empty
    train(base, replace(SETTINGS, train=part.split()[0], text_encoder=text_encoder))
    after = weights(base)
    expected = {name for name in before if belongs(name) and not name.startswith("vae.")}
    found = changed(before, after)
    assert found <= expected and len(found) > 0.9 * len(expected)
    assert not any(p.requires_grad for p in [*base.unet.parameters(), *base.vae.parameters()])
    assert torch.equal(base.empty, empty) != text_encoder  # what "" means is looked up again
    undo_dreambooth(base)
    assert not changed(before, weights(base)) and torch.equal(base.empty, empty)
    undo_dreambooth(base)  # nothing to undo: nothing happens
    assert not changed(before, weights(base))


def test_the_counts_are_those_of_stable_diffusion():
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)

    def count(train):
        return sum(p.numel() for p in trainable(unet, train).values())

    assert count("unet") == 859_520_964
    assert count("attention") == 93_536_640
    assert count("transformer") == 267_239_360


def test_a_half_precision_base_is_trained_in_float32(tiny_folder, tmp_path, monkeypatch):
    # as on a GPU without bfloat16: fp16 autocast around fp16 parts, and a scaler
    monkeypatch.setattr(loop, "autocast", lambda device: contextlib.nullcontext())
    own = stylenb.load(tiny_folder, device="cpu", dtype=torch.float16)
    before, seen = weights(own), {}

    def set_losses(base, *args, set_losses=dreambooth.set_losses):
        seen.update({name: p.dtype for name, p in base.parameters().items() if p.requires_grad})
        return set_losses(base, *args)

    monkeypatch.setattr(dreambooth, "set_losses", set_losses)
    settings = replace(SETTINGS, train="transformer", text_encoder=True, steps=3)
    history = train(own, settings, folder=tmp_path, validation=stripes(1), validate_every=2)
    assert history.finished and history.pictures[2]
    assert set(seen.values()) == {torch.float32}
    after = weights(own)
    assert {v.dtype for v in after.values()} == {torch.float16}
    found = changed(before, after)
    assert all(".attentions." in n or n.startswith("text_encoder.") for n in found)
    assert found and len(found) <= len(seen)
    generate(own, "a", num_inference_steps=2)  # all of one precision again
    undo_dreambooth(own)
    assert not changed(before, weights(own))
    load_dreambooth(own, tmp_path / "mine.safetensors")
    assert not changed(after, weights(own))


def test_the_same_losses_train_a_lora(base, tmp_path):
    before = weights(base)
    history = train(base, replace(SETTINGS, train="lora", rank=2), folder=tmp_path)
    assert len(history.values("prior")[0]) == 4 and adapters(base) == ["mine"]
    after = {k.replace(".base_layer", ""): v for k, v in weights(base).items()}
    assert not changed(before, {k: v for k, v in after.items() if ".lora_" not in k})
    assert about_lora(tmp_path / "mine.safetensors")["settings"]["prior_loss_weight"] == 1
    stylenb.remove_lora(base, "mine")
    assert load_lora(base, tmp_path / "mine.safetensors") == "mine"


def test_a_second_training_begins_with_the_base_as_it_was_loaded(tiny):
    found = []
    for first in (False, True):
        own = fresh(tiny)
        if first:
            train(own, replace(SETTINGS, train="unet", learning_rate=0.02))
        train(own)
        found.append(weights(own))
    assert not changed(*found)


# --- drawing ---


def test_a_picture_is_a_function_of_its_seed_and_number(base):
    scheduler, state = dict(vars(base.scheduler)), torch.get_rng_state()
    pictures = generate(base, "a b", 6, num_inference_steps=3)
    assert len({p.tobytes() for p in pictures}) == 6 and pictures[0].size == (64, 64)
    part = generate(base, "a b", 2, num_inference_steps=3, first=4)
    assert [p.tobytes() for p in part] == [p.tobytes() for p in pictures[4:]]
    for other in (
        generate(base, "z", num_inference_steps=3),
        generate(base, "a b", num_inference_steps=3, seed=1),
        generate(base, "a b", num_inference_steps=3, guidance_scale=1),
    ):
        assert other[0].tobytes() != pictures[0].tobytes()
    assert vars(base.scheduler) == scheduler and torch.equal(torch.get_rng_state(), state)


def test_a_picture_has_the_size_that_was_asked_for(base):
    (plain,) = generate(base, "a b", num_inference_steps=2)
    for size, expected in ((64, (64, 64)), (32, (32, 32)), ((96, 64), (96, 64))):
        (picture,) = generate(base, "a b", num_inference_steps=2, size=size)
        assert picture.size == expected
        assert (picture.tobytes() == plain.tobytes()) == (size == 64)
    base.image_size = 32
    assert generate(base, "a b", num_inference_steps=2)[0].size == (32, 32)


def spoil(base, part):
    """The base with NaN among the weights of a part of it."""
    module = copy.deepcopy(getattr(base, part))
    with torch.no_grad():
        for p in module.parameters():
            p.view(-1)[0] = float("nan")
    setattr(base, part, module)
    base.forget_empty()
    return base


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_nan_is_a_sentence_and_no_black_picture(part, base, tmp_path):
    with pytest.raises(StylenbError, match="NaN or infinity: use float32"):
        generate(spoil(base, part), "a", num_inference_steps=2)
    with pytest.raises(StylenbError, match="NaN or infinity"):
        prior_set(base, SETTINGS, tmp_path, progress=False)
    assert not list(tmp_path.rglob("*.png"))
    with pytest.raises(StylenbError, match="not saved, as .* holds NaN.*lower learning rate"):
        save_pipeline(base, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    if part == "vae":
        with pytest.raises(StylenbError, match="autoencoder gives NaN.*dtype=torch.float32"):
            train(base)


def test_with_a_prompt_the_base_takes_it_where_it_is_given_none(base):
    said = base.with_prompt("b c")
    assert said.prompt == "b c" and base.prompt is None
    assert said.unet is base.unet and said.text_encoder is base.text_encoder
    with torch.no_grad():
        expected = base.predict_noise(NOISY, 500, base.embed("b c"))
        assert torch.equal(said.predict_noise(NOISY, 500), expected)
        assert torch.equal(
            base.predict_noise(NOISY, 500), base.predict_noise(NOISY, 500, base.empty)
        )
        assert not torch.equal(base.predict_noise(NOISY, 500), expected)
    assert torch.equal(said.empty, base.empty)


def test_validation_photos_are_redrawn_with_the_prompt_of_now(base):
    photo = stripes(1, (90, 90, 90))
    settings = replace(SETTINGS, text_encoder=True)
    history = train(base, settings, validation=photo, validate_every=2)
    assert list(history.pictures) == [2, 4]
    said, plain = redraw(base.with_prompt(settings.prompt), photo), redraw(base, photo)
    assert said[0].tobytes() == history.pictures[4][0].tobytes() != plain[0].tobytes()


# --- the prior set ---


def test_the_prior_set_is_drawn_once(base, tmp_path, monkeypatch):
    drawn = []

    def counting(*args, generate=generate, **options):
        drawn.append((options["first"], args[2]))
        return generate(*args, num_inference_steps=2, **options)

    monkeypatch.setattr(dreambooth, "generate", counting)
    first = prior_set(base, SETTINGS, tmp_path, progress=False)
    assert len(first) == 6 and drawn == [(0, 4), (4, 2)]
    data = [p.tobytes() for p in first]
    folder = tmp_path / "prior"
    assert len(list(folder.glob("*.png"))) == 6 and not list(folder.glob("*.tmp"))

    def again(settings=SETTINGS, base=base):
        drawn.clear()
        return [p.tobytes() for p in prior_set(base, settings, tmp_path, progress=False)]

    assert again() == data and drawn == []
    (folder / "00005.png").unlink()  # cut before the last
    (folder / "00001.png").write_bytes((folder / "00001.png").read_bytes()[:100])  # damaged
    (folder / "mine.png").write_bytes(b"not of the set")
    assert again() == data and drawn == [(0, 4), (4, 2)]
    for spoilt in (Image.new("RGB", (64, 64)), Image.new("RGB", (32, 32), "red")):
        spoilt.save(folder / "00002.png")  # black, as NaN once became, or of another size
        assert again() == data and drawn == [(0, 4)]
    for changed in ({"ddim": 4}, {"ddim": 3}):
        monkeypatch.setitem(SOLVER_STEPS, *changed.popitem())
        assert again() and drawn == [(0, 4), (4, 2)]  # the number of steps decides, too
    for settings in (
        replace(SETTINGS, class_prompt="z"),
        replace(SETTINGS, seed=1),
        replace(SETTINGS, num_class_images=4),
    ):
        found = again(settings)
        assert drawn and found != data and len(found) == settings.num_class_images
        assert len(list(folder.glob("0*.png"))) == settings.num_class_images
    with torch.no_grad():
        base.unet.conv_in.weight.mul_(-1)
    assert again(settings) != found and drawn
    assert (folder / "mine.png").exists()


def test_the_prior_set_is_of_the_base_as_it_was_loaded(base, monkeypatch):
    seen = []
    before = weights(base)

    def spying(base, *args, generate=generate, **options):
        seen.append(changed(before, weights(base)))
        return generate(base, *args, **{**options, "num_inference_steps": 1})

    monkeypatch.setattr(dreambooth, "generate", spying)
    for _ in range(2):
        train(base, replace(SETTINGS, num_class_images=2, steps=1), None)
    assert seen == [set(), set()]


# --- cut and resumed ---

SCRIPT = """
import os, signal, sys
sys.path[:0] = {path!r}
import torch
torch.set_num_threads({threads})
from test_dreambooth import *

def killing(call, at):
    count = [0]
    def counted(*args, **options):
        count[0] += 1
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)
    return counted

def run(kill_at):
    SOLVER_STEPS["ddim"] = 3
    base = stylenb.load({tiny!r}, device="cpu")
    if kill_at == "prior":
        dreambooth.generate = killing(generate, 2)
    else:
        type(base).predict_noise = killing(type(base).predict_noise, kill_at)
    train(base, WHOLE, None, folder={folder!r}, checkpoint_every=1)

for kill_at in ("prior", 6):  # the packages are imported once for both
    child = os.fork()
    if not child:
        run(kill_at)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    print(len(list(Path({folder!r}).glob("prior/*.png"))), end=" ")
"""


def test_a_run_killed_while_it_draws_and_while_it_trains_ends_with_the_same_weights(
    tiny, tiny_folder, tmp_path
):
    whole, base, folder = fresh(tiny), fresh(tiny), tmp_path / "run"
    expected = train(whole, WHOLE, prior=None)
    script = SCRIPT.format(
        path=[str(Path(__file__).parent), str(Path(__file__).parent.parent)],
        threads=torch.get_num_threads(),
        tiny=str(tiny_folder),
        folder=str(folder),
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "6"]  # pictures of the prior set
    assert len(list(folder.glob("checkpoint-*"))) == 2
    assert not (folder / "mine.safetensors").exists()
    history = train(base, WHOLE, None, folder=folder, checkpoint_every=1)
    assert not changed(weights(base), weights(whole))
    assert without_seconds(history) == without_seconds(expected)
    assert (folder / "mine.safetensors").exists()


@pytest.mark.parametrize("part", ["attention", "lora"])
def test_what_was_learned_stays_in_the_base_when_it_cannot_be_saved(part, tiny, tmp_path):
    settings, whole, base = replace(SETTINGS, train=part), fresh(tiny), fresh(tiny)
    train(whole, settings)
    sentence = "mine.safetensors' cannot be written.*still in the base: save it with .*dreambooth"
    with pytest.warns(UserWarning, match="was not saved"), full_disk():
        with pytest.raises(TrainingStopped, match=sentence):
            train(base, settings, folder=tmp_path)
    assert not changed(weights(base), weights(whole))
    assert not any(p.requires_grad for p in base.unet.parameters())
    if part == "attention":
        assert save_dreambooth(base, tmp_path / "elsewhere.safetensors").is_file()
    else:
        assert save_lora(base, tmp_path / "elsewhere.safetensors", "mine").is_file()


def test_other_settings_are_refused_before_anything_is_drawn(base, tmp_path):
    train(base, replace(SETTINGS, num_class_images=2, steps=1), None, folder=tmp_path)
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    before = weights(base)
    undo_dreambooth(base)
    for settings, message in (
        (replace(SETTINGS, num_class_images=3, steps=1), "num_class_images was 2 and is 3"),
        (
            replace(SETTINGS, num_class_images=2, steps=1, class_prompt="z"),
            "class_prompt was 'a pain",
        ),
    ):
        with pytest.raises(StylenbError, match=message):
            train(base, settings, None, folder=tmp_path)
    with pytest.raises(StylenbError, match="prior pictures was"):
        train(base, replace(SETTINGS, num_class_images=2, steps=1), PRIOR, folder=tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files
    train(base, replace(SETTINGS, num_class_images=2, steps=1), None, folder=tmp_path)
    assert not changed(before, weights(base))


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is there")
def test_what_cannot_be_trained_leaves_the_base_as_it_was(base):
    before = weights(base)
    for part in ("lora", "attention"):
        with pytest.raises(StylenbError, match="pip install bitsandbytes"):
            train(base, replace(SETTINGS, train=part, optimizer="adamw8bit"))
        with pytest.raises(StylenbError, match="nothing to save"):
            save_dreambooth(base, "x")
        assert adapters(base) == []
    assert not changed(before, weights(base))


def test_the_last_good_weights_survive_a_loss_that_is_not_finite(base, tmp_path, monkeypatch):
    calls = []

    def poisoned(*args, noise_loss=dreambooth.noise_loss):
        calls.append(1)
        return noise_loss(*args) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(dreambooth, "noise_loss", poisoned)
    with pytest.raises(NotFinite, match="at step 2; the weights of step 1 are kept"):
        train(base, folder=tmp_path, checkpoint_every=1)
    assert not any(p.requires_grad for p in base.unet.parameters())
    kept = load_file(tmp_path / "checkpoint-000001.safetensors")
    found = {f"weights/unet.{name}": p for name, p in trainable(base.unet, "attention").items()}
    assert all(torch.equal(kept[key], p) for key, p in found.items())


# --- files ---


def test_saved_and_loaded_it_is_the_same(tiny, base, tmp_path):
    for text_encoder in (False, True):
        settings = replace(SETTINGS, text_encoder=text_encoder)
        train(base, settings, folder=tmp_path / str(text_encoder))
        trained = weights(base)
        exact = save_dreambooth(base, tmp_path / "exact.safetensors", dtype=torch.float32)
        half = tmp_path / str(text_encoder) / "mine.safetensors"
        assert half.stat().st_size < 0.6 * exact.stat().st_size
        own = fresh(tiny)
        assert load_dreambooth(own, exact)["base"] == tiny.name
        assert not changed(weights(own), trained)
        about = load_dreambooth(own, half)  # takes the place of the one before
        assert about["settings"]["prompt"] == settings.prompt and about_lora(half) == about
        for name, value in weights(own).items():
            assert torch.allclose(value, trained[name], atol=1e-3), name
        undo_dreambooth(own)
        assert not changed(weights(own), weights(tiny))
        names = load_file(exact).keys()
        assert all(".attn" in n or n.startswith("text_encoder.") for n in names)
        assert any(n.startswith("text_encoder.") for n in names) == text_encoder
    assert not list(tmp_path.rglob("*.tmp"))


def test_weights_that_half_precision_cannot_hold_are_not_written_nor_read(tiny, base, tmp_path):
    train(base, replace(SETTINGS, steps=1))
    path = tmp_path / "mine.safetensors"
    with torch.no_grad():
        next(iter(base.replaced().values()))[0] = 1e5
    with pytest.raises(StylenbError, match="not saved, as unet.* numbers above the 65,504"):
        save_dreambooth(base, path)
    assert not list(tmp_path.iterdir())
    save_dreambooth(base, path, dtype=torch.float32)
    load_dreambooth(fresh(tiny), path)
    half = fresh(tiny)
    half.unet.half(), half.text_encoder.half()
    half.dtype = torch.float16
    with pytest.raises(StylenbError, match="holds NaN or infinity"):
        load_dreambooth(half, path)


def edited(source: Path, target: Path, **metadata):
    """A copy of a file with a part of its metadata, or with its tensors, replaced."""
    change = metadata.pop("tensors", lambda tensors: tensors)
    about = {**about_lora(source), **metadata}
    save_file(change(load_file(source)), target, {"stylenb": json.dumps(about)})
    return target


def test_a_file_that_does_not_fit_is_refused_and_leaves_the_base(base, tmp_path):
    train(base, replace(SETTINGS, steps=1))
    good = save_dreambooth(base, tmp_path / "good.safetensors")
    undo_dreambooth(base)
    lora = save_lora(with_lora(base), tmp_path / "lora.safetensors", "style")
    stylenb.remove_lora(base, "style")
    before = weights(base)
    first = next(iter(load_file(good)))
    to = partial(edited, good)
    nan = {"tensors": lambda t: {**t, first: t[first] * float("nan")}}
    shape = {"tensors": lambda t: {**t, first: t[first][:3].clone()}}
    unknown = {"tensors": lambda t: {**t, "unet.other.weight": torch.zeros(2)}}
    (tmp_path / "pickled.safetensors").write_bytes(b"\x80\x02}q\x00.")
    cases = {
        "lora": (lora, "was not written by save_dreambooth: load_lora reads"),
        "nan": (to(tmp_path / "n.safetensors", **nan), "holds NaN or infinity"),
        "shape": (to(tmp_path / "s.safetensors", **shape), "has the shape .* there and .* here"),
        "unknown": (to(tmp_path / "u.safetensors", **unknown), "no such weight here"),
        "other weights": (
            to(tmp_path / "o.safetensors", fingerprint="0" * 16),
            "trained on other weights than those",
        ),
        "pickled": (tmp_path / "pickled.safetensors", "pickled file"),
        "missing": (tmp_path / "missing.safetensors", "cannot be read"),
    }
    for case, (path, message) in cases.items():
        with pytest.raises(StylenbError, match=message):
            load_dreambooth(base, path)
        assert not changed(before, weights(base)), case
    load_dreambooth(base, good)
    assert changed(before, weights(base))


def test_the_fingerprint_is_of_the_weights_and_of_no_precision(base, tiny_folder):
    expected = fingerprint(base)
    for dtype in (torch.float16, torch.bfloat16):
        assert fingerprint(stylenb.load(tiny_folder, device="cpu", dtype=dtype)) == expected
    train(base)
    assert fingerprint(base) == expected  # of the base as it was loaded
    undo_dreambooth(base)
    with torch.no_grad():
        base.unet.mid_block.resnets[0].conv1.weight.neg_()
    assert fingerprint(base) != expected


def test_plain_diffusers_opens_the_whole_pipeline(base, tiny_folder, tmp_path):
    train(base, replace(SETTINGS, text_encoder=True))
    stylenb.remove_lora(with_lora(base), "style")  # leaves its layers around the weights
    folder = tmp_path / "whole"
    for _ in range(2):  # the second takes the place of the first
        assert save_pipeline(base, folder) == folder
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 4, "guidance_scale": 5.0}
    picture = pipe("a sks b", generator=loop.generator_at(0, 0), **options).images[0]
    mine = generate(base, "a sks b", num_inference_steps=4, guidance_scale=5.0)[0]
    assert picture.tobytes() == mine.tobytes()
    own = stylenb.load(folder, device="cpu")
    assert not changed(weights(own), weights(base))
    half = stylenb.load(tiny_folder, device="cpu", dtype=torch.float16)
    pipe = StableDiffusionPipeline.from_pretrained(save_pipeline(half, tmp_path / "half"))
    pipe.set_progress_bar_config(disable=True)
    pipe("a", num_inference_steps=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    for path in (tmp_path / "other", tmp_path / "other" / "letter.txt"):
        with pytest.raises(StylenbError, match="holds something else"):
            save_pipeline(base, path)
    assert (tmp_path / "other" / "letter.txt").read_text() == "dear"


# --- what suits which base; bad calls ---


def test_the_usual_settings_follow_the_base_and_the_method(base):
    assert DreamBoothSettings.for_base(base).learning_rate == DreamBoothSettings().learning_rate
    assert (
        DreamBoothSettings.for_base(base, train="lora").learning_rate == 3e-3
        and base.default_guidance_scale == 3
    )
    base.image_size = 512
    large = DreamBoothSettings.for_base(base, steps=7)
    assert (large.learning_rate, large.steps, large.batch_size) == (5e-6, 7, 1)
    assert large.optimizer == "adamw" and base.default_guidance_scale == 7.5  # on this device


def drop(base):
    base.drop_text_encoder()
    return base


def with_lora(base):
    add_lora(base, "style", 2)
    return base


def with_trained_encoder(base):
    train(base, replace(SETTINGS, text_encoder=True, steps=1))
    return base


few = stripes(2)
BAD = {
    "few pictures": (lambda b: train_dreambooth(b, few, SETTINGS), "needs at least 3 pictures"),
    "no prior": (lambda b: train(b, prior=[]), "prior_pictures is empty"),
    "part": (lambda b: replace(SETTINGS, train="vae"), "train is one of 'unet', 'attention', "),
    "lora and text": (lambda b: replace(SETTINGS, train="lora", text_encoder=True), "leave text"),
    "prior count": (
        lambda b: replace(SETTINGS, num_class_images=0),
        "num_class_images is a whole number",
    ),
    "prior weight": (
        lambda b: replace(SETTINGS, prior_loss_weight=-1),
        "prior_loss_weight is a number from 0",
    ),
    "no words": (lambda b: replace(SETTINGS, prompt=" "), "prompt must be some words"),
    "one prompt": (lambda b: replace(SETTINGS, prompt="a painting"), "put a rare token into"),
    "no text encoder": (lambda b: train(drop(b)), "The text encoder was dropped"),
    "none to draw": (lambda b: generate(drop(b), "a"), "The text encoder was dropped"),
    "a LoRA": (lambda b: train(with_lora(b)), "'style' is in the UNet: keep it with"),
    "a LoRA to save": (lambda b: save_pipeline(with_lora(b), "x"), "'style' is in the UNet"),
    "a LoRA to draw": (lambda b: prior_set(with_lora(b), SETTINGS), "'style' is in the UNet"),
    "trained to draw": (lambda b: prior_set(with_trained_encoder(b), SETTINGS), "undo_dream"),
    "nothing to save": (lambda b: save_dreambooth(b, "x"), "nothing to save"),
    "steps": (
        lambda b: generate(b, "a", num_inference_steps=0),
        "num_inference_steps is a whole number from 1 to 999",
    ),
    "count": (lambda b: generate(b, "a", 0), "count is a whole number from 1"),
    "guidance": (
        lambda b: generate(b, "a", guidance_scale=0.5),
        "guidance_scale is a number from 1 up",
    ),
    "size": (lambda b: generate(b, "a", size=(64, 72)), "multiples of 16 pixels, not 64 x 72"),
    "no size": (lambda b: generate(b, "a", size="big"), "size must be a number of pixels or"),
    "prompt": (lambda b: generate(b, None), "prompt is text, not None"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_call_is_one_sentence(case, base):
    call, message = BAD[case]
    with pytest.raises(StylenbError, match=message):
        call(base)
    assert "mine" not in adapters(base)


# --- the pocket model ---


@pytest.mark.pocket_model
def test_the_pocket_model_draws_as_in_plain_diffusers(pocket):
    pipe = StableDiffusionPipeline.from_pretrained(pocket.folder)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 4, "guidance_scale": pocket.default_guidance_scale}
    picture = pipe("an oil painting", generator=loop.generator_at(0, 0), **options).images[0]
    mine = generate(pocket, "an oil painting", num_inference_steps=4)[0]
    assert np.abs(np.asarray(mine, float) - np.asarray(picture, float)).max() <= 1
    # one token that no caption used, the same that SD v1.5's tokenizer knows
    assert len(pocket.tokenizer("sks", add_special_tokens=False)["input_ids"]) == 1
