"""LoRA on a tiny random model: what training touches, what a file keeps, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

import stylenb
from stylenb import StylenbError
from stylenb.lora import (
    about_lora,
    adapters,
    add_lora,
    available_styles,
    load_lora,
    remove_lora,
    save_lora,
    set_scale,
    train_lora,
)

NOISY = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def pictures(count=4):
    """Stripes of two colours, at a slant of their own."""
    y, x = np.mgrid[0:64, 0:64]
    dark = [(x * i + y * (count - i)) // 32 % 2 for i in range(count)]
    return [Image.fromarray(np.uint8(d[..., None] * (200, 90, 20) + 20)) for d in dark]


def train(base, name="mine", **options):
    options = {"rank": 4, "steps": 3, "batch_size": 2, "learning_rate": 0.02, **options}
    return train_lora(base, pictures(), name, progress=False, **options)


@torch.no_grad()
def predict(base):
    return base.predict_noise(NOISY, 500)


@torch.no_grad()
def loss_on_fixed_noise(base):
    x0 = base.encode(stylenb.to_tensor(pictures()))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    noisy = base.scheduler.add_noise(x0, noise, torch.tensor([100, 300, 600, 900]))
    return (base.predict_noise(noisy, torch.tensor([100, 300, 600, 900])) - noise).square().mean()


@pytest.fixture
def base(tiny):
    """The tiny model with a UNet of its own."""
    own = copy.copy(tiny)
    own.unet = copy.deepcopy(tiny.unet)
    return own


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """(file of a LoRA of rank 4 and alpha 2, what the UNet predicted with it)."""
    own = copy.copy(tiny)
    own.unet = copy.deepcopy(tiny.unet)
    train(own, alpha=2.0)
    about = {"rank": 4, "steps": 3, "pictures": "stripes"}
    path = save_lora(own, tmp_path_factory.mktemp("lora") / "mine.safetensors", "mine", about)
    return path, predict(own)


# --- adding and training ---


def test_an_untrained_lora_changes_nothing(base):
    before = predict(base)
    add_lora(base, "mine", rank=4, alpha=2.0)
    assert torch.equal(predict(base), before)


def test_gradients_reach_the_lora_alone_and_all_of_it(base):
    parameters = add_lora(base, "mine", rank=2)
    names = {name for name, p in base.unet.named_parameters() if p.requires_grad}
    attention = [n for n, m in base.unet.named_modules() if n.endswith(("attn1", "attn2"))]
    assert len(names) == len(parameters) == 2 * 4 * len(attention) > 0
    assert all(".lora_A.mine." in name or ".lora_B.mine." in name for name in names)
    optimizer = torch.optim.SGD(parameters, 1.0)
    for _ in range(2):  # B is zero at first, so A gets its first gradient in the second step
        optimizer.zero_grad()
        base.predict_noise(NOISY, 500).square().mean().backward()
        optimizer.step()
    for name, p in base.unet.named_parameters():
        assert (p.grad is not None and p.grad.abs().sum() > 0) == (name in names), name
    others = [p for part in (base.vae, base.text_encoder) for p in part.parameters()]
    assert all(p.grad is None for p in others)


def test_training_lowers_the_loss_and_leaves_the_weights(base):
    loss, output = loss_on_fixed_noise(base), predict(base)
    weights = {k: v.clone() for k, v in base.unet.state_dict().items()}
    losses = train(base, steps=25, batch_size=4)
    assert len(losses) == 25 and np.isfinite(losses).all()
    assert loss_on_fixed_noise(base) < 0.97 * loss
    assert not torch.allclose(predict(base), output)
    after = base.unet.state_dict()
    assert all(
        torch.equal(after[k.replace(".base_layer", "")], v)
        for k, v in weights.items()
        if k in after
    )
    assert not any(p.requires_grad for p in base.unet.parameters())


def test_the_same_seed_trains_the_same_lora(base, tiny):
    results = []
    for seed in (5, 5, 6):
        own = copy.copy(base)
        own.unet = copy.deepcopy(tiny.unet)
        torch.rand(len(results))  # whatever was drawn before plays no part
        state = torch.get_rng_state()
        results.append((train(own, seed=seed), predict(own)))
        assert torch.equal(torch.get_rng_state(), state)
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])
    assert results[0][0] != results[2][0] and not torch.equal(results[0][1], results[2][1])


def test_training_works_after_everything_was_switched_off(base):
    train(base, "first")
    set_scale(base, None)
    off = predict(base)
    train(base, "second")
    assert not torch.equal(predict(base), off)
    set_scale(base, None)
    remove_lora(base, "first")
    remove_lora(base, "second")
    train(base, "third")
    assert not torch.equal(predict(base), off)


def test_a_loss_that_is_not_finite_stops_and_leaves_the_base(base):
    before = predict(base)
    with pytest.raises(StylenbError, match="not finite at step .* half the learning rate"):
        train(base, learning_rate=1e30)
    assert adapters(base) == [] and torch.equal(predict(base), before)


# --- scale, off, removal ---


def test_scale(base):
    before = predict(base)
    train(base)
    full = predict(base)
    set_scale(base, "mine", 0.5)
    half = predict(base)
    assert (half - before).abs().mean() < (full - before).abs().mean()
    assert not torch.equal(half, before)
    set_scale(base, "mine", 0)
    assert torch.equal(predict(base), before)
    set_scale(base, "mine")
    assert torch.equal(predict(base), full)
    set_scale(base, None)
    assert torch.equal(predict(base), before)
    set_scale(base, "mine", 1.0)
    assert torch.equal(predict(base), full)


def test_switching_off_without_a_lora_is_no_error(base):
    set_scale(base, None)
    remove_lora(base, "mine")


def test_removal_restores_the_base(base):
    before = predict(base)
    train(base)
    remove_lora(base, "mine")
    assert adapters(base) == [] and torch.equal(predict(base), before)
    train(base)  # the name is free again
    assert adapters(base) == ["mine"]


def test_of_two_loras_only_one_is_active(base):
    train(base, "a", seed=1)
    alone = predict(base)
    train(base, "b", seed=2)
    assert adapters(base) == ["a", "b"]
    assert not torch.allclose(predict(base), alone)
    set_scale(base, "a")
    assert torch.equal(predict(base), alone)
    remove_lora(base, "b")
    assert torch.equal(predict(base), alone)


def test_removing_the_active_lora_wakes_no_other(base):
    before = predict(base)
    train(base, "a", seed=1)
    train(base, "b", seed=2)
    remove_lora(base, "b")
    assert torch.equal(predict(base), before)


# --- files ---


def test_a_file_keeps_rank_and_alpha(base, trained):
    path, expected = trained
    before = predict(base)
    assert load_lora(base, path) == "mine"
    set_scale(base, "mine")
    config = base.unet.peft_config["mine"]
    assert (config.r, config.lora_alpha) == (4, 8)  # peft's lora_alpha is alpha * rank
    change = (expected - before).abs().mean()
    assert (predict(base) - expected).abs().mean() < 0.01 * change  # the file is in fp16
    assert load_lora(base, path) == "mine"  # what is loaded stays as it is
    assert adapters(base) == ["mine"]


def test_a_file_is_small_half_precision_and_says_how_it_was_made(trained, tmp_path):
    path, _ = trained
    assert path.stat().st_size < 1_000_000
    state = load_file(path)
    assert {value.dtype for value in state.values()} == {torch.float16}
    about = {"base": "tiny-sd", "rank": 4, "steps": 3, "pictures": "stripes"}
    assert about_lora(path) == about
    save_file(state, tmp_path / "elsewhere.safetensors")
    assert about_lora(tmp_path / "elsewhere.safetensors") == {}
    assert [p.name for p in path.parent.iterdir()] == ["mine.safetensors"]


def test_plain_diffusers_opens_the_file(trained, tiny_folder):
    path, expected = trained
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    empty = pipe.encode_prompt("", "cpu", 1, False)[0].expand(len(NOISY), -1, -1)

    @torch.no_grad()
    def noise():
        return pipe.unet(NOISY, 500, encoder_hidden_states=empty).sample

    before = noise()
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    assert (noise() - expected).abs().mean() < 0.01 * (expected - before).abs().mean()


def test_two_files_of_one_name_are_two_loras(base, trained, tmp_path):
    path, _ = trained
    other = tmp_path / "mine.safetensors"
    save_file({k: -2 * v for k, v in load_file(path).items()}, other)
    outputs = []
    for file in (path, other):
        set_scale(base, load_lora(base, file))
        outputs.append(predict(base))
    assert not torch.allclose(*outputs)


def test_a_loaded_lora_can_be_scaled_and_trained_through(base, trained, gradient):
    stylenb.stylize(gradient, trained[0], steps=2, base=base)  # which loads in inference mode
    set_scale(base, "mine")
    noisy = NOISY.clone().requires_grad_()
    base.predict_noise(noisy, 500).sum().backward()
    assert noisy.grad.abs().sum() > 0


def spoil(change):
    """A writer of a LoRA file whose tensors were changed."""

    def write(good, path):
        save_file(change(load_file(good)), path)

    return write


def rename(old, new):
    return spoil(lambda state: {k.replace(old, new): v for k, v in state.items()})


def wider(state):
    return {k: torch.cat([v, v], 1 if ".lora_A." in k else 0) for k, v in state.items()}


def flat(state):
    return {k: v.flatten() for k, v in state.items()}


def lower_b(state):
    return {k: v[:, :2].contiguous() if ".lora_B." in k else v for k, v in state.items()}


SPOILT = {
    "garbage": (lambda good, path: path.write_bytes(b"PK\3\4 not a tensor" * 9), "cannot be read"),
    "empty": (lambda good, path: path.write_bytes(b""), "cannot be read"),
    "cut off": (lambda good, path: path.write_bytes(good.read_bytes()[:900]), "cannot be read"),
    "no weights": (spoil(lambda state: {}), "no weights"),
    "a wider base": (spoil(wider), "does not fit the base 'tiny-sd'"),
    "a deeper base": (rename("mid_block", "down_blocks.7"), "made for another model"),
    "a text encoder's": (rename("unet.", "text_encoder."), "made for another model"),
    "kohya's keys": (rename("unet.", "lora_unet_"), "made for another model"),
    "no prefix": (rename("unet.", ""), "made for another model"),
    "no LoRA": (rename(".lora_A.", "."), "made for another model"),
    "flat": (spoil(flat), "mine"),
    "two ranks": (spoil(lower_b), "mine"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_file_is_one_sentence_and_leaves_the_base(case, base, trained, tmp_path):
    before = predict(base)
    path = tmp_path / "mine.safetensors"
    write, part = SPOILT[case]
    write(trained[0], path)
    with pytest.raises(StylenbError) as caught:
        load_lora(base, path)
    message = str(caught.value)
    assert part in message and "mine.safetensors" in message
    assert "\n" not in message and message.endswith(".")
    assert adapters(base) == [] and torch.equal(predict(base), before)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt"])
def test_pickled_files_are_refused(suffix, base, tmp_path):
    path = tmp_path / f"style{suffix}"
    torch.save({}, path)
    with pytest.raises(StylenbError, match=f"style{suffix} is not a .safetensors file"):
        load_lora(base, path)


BAD_CALLS = {
    "unknown style": (lambda b: load_lora(b, "nope"), "no style 'nope'"),
    "a file that is not there": (lambda b: load_lora(b, "gone/x.safetensors"), "no style 'gone"),
    "three pictures": (lambda b: train_lora(b, pictures(4)[:3], progress=False), "at least 4"),
    "no pictures": (lambda b: train_lora(b, [], progress=False), "at least 4"),
    "rank 0": (lambda b: train(b, "new", rank=0), "from 1 up, not 0"),
    "rank 2.5": (lambda b: train(b, "new", rank=2.5), "not 2.5"),
    "a name that is taken": (lambda b: train(b, "taken"), "'taken' already"),
    "scale of what is not there": (lambda b: set_scale(b, "nope", 1.0), "'nope'"),
    "saving what is not there": (lambda b: save_lora(b, "x.safetensors", "nope"), "'nope'"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_is_one_sentence(case, base):
    add_lora(base, "taken", rank=1)
    call, part = BAD_CALLS[case]
    with pytest.raises(StylenbError) as caught:
        call(base)
    message = str(caught.value)
    assert part in message and "\n" not in message and message.endswith(".")
    assert adapters(base) == ["taken"]


def test_an_unknown_style_names_the_choices(base, tmp_path, monkeypatch, trained):
    monkeypatch.setattr("stylenb.lora.DATA", tmp_path)
    assert available_styles() == {}
    (tmp_path / "loras").mkdir()
    for name in ("ink", "neon"):
        (tmp_path / "loras" / f"{name}.safetensors").write_bytes(trained[0].read_bytes())
    assert list(available_styles()) == ["ink", "neon"]
    with pytest.raises(StylenbError, match="no style 'inc': choose ink, neon or give"):
        load_lora(base, "inc")
    assert load_lora(base, "neon") == "neon"
