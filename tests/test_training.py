"""stylenb.training on a tiny real model: the pipeline that teaches a LoRA a style."""

import contextlib
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_snr
from PIL import Image, ImageOps
from test_loop import full_disk

import stylenb
from stylenb import StylenbError, device, loop, losses, to_tensor, training
from stylenb.base import SOLVER_STEPS
from stylenb.inference import invert, redraw
from stylenb.loop import NotFinite, TrainingStopped
from stylenb.lora import LAYERS, adapters, add_lora, set_alpha, set_scale
from stylenb.lora_files import about_lora, load_lora
from stylenb.training import Settings, train_style

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
TWICE = replace(SETTINGS, gradient_accumulation_steps=2)
NOISY = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def stripes(count=5, colour=(200, 90, 20)):
    """Stripes of two colours, at a slant of their own."""
    y, x = np.mgrid[0:64, 0:64]
    dark = [(x * i + y * (count - i)) // 32 % 2 for i in range(count)]
    return [Image.fromarray(np.uint8(d[..., None] * colour + 20)) for d in dark]


def train(base, settings=SETTINGS, pictures=None, content=None, name="mine", **how):
    how = {"progress": False, **how}
    return train_style(base, pictures or stripes(), content, name, settings, **how)


def weights(base) -> dict:
    return {k: v.clone() for k, v in base.unet.state_dict().items() if ".mine." in k}


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


@pytest.fixture(autouse=True, scope="module")
def _few_steps_of_drawing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOLVER_STEPS, "inversion", 3)
        yield


@pytest.fixture
def base(tiny):
    """The tiny model with a UNet of its own."""
    return fresh(tiny)


@pytest.fixture(scope="module")
def whole_run(tiny):
    """The weights after a run of TWICE that nothing cut."""
    own = fresh(tiny)
    train(own, TWICE)
    return weights(own)


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
        drawn = np.int16(redraw(base, photos)[0])
        assert np.abs(np.int16(history.pictures[4][0]) - drawn).max() <= 1  # by rounding
        stylenb.set_scale(base, "mine", 1.0 / final)
        cautious = np.int16(redraw(base, photos)[0])
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


def test_every_term_teaches_something_else(tiny):
    found = []
    for lpips, style in ((0, 0), (1, 0), (0, 1), (1, 1)):
        own = fresh(tiny)
        train(own, replace(SETTINGS, steps=2, lpips_weight=lpips, style_weight=style))
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


@pytest.mark.parametrize(
    "changes, taken",
    [
        ({"steps": 7, "picture_every": 3}, [0, 3, 6]),
        ({"steps": 6, "picture_from": 0.5}, [3, 4, 5]),  # when the marks are learned
        (
            {"gradient_accumulation_steps": 2, "steps": 8, "picture_from": 0.5, "picture_every": 2},
            [4, 6],
        ),
    ],
)
def test_picture_losses_come_and_wait_by_updates(changes, taken, base):
    calls = []
    base.tiny_decoder = lambda latents: calls.append(1) or crude_decoder(latents)
    history = train(base, replace(SETTINGS, **changes))
    assert history.values("style")[0] == history.values("lpips")[0] == taken
    assert history.values("noise")[0] == list(range(changes["steps"]))
    batches = changes.get("gradient_accumulation_steps", 1)
    assert len(calls) == batches * len(taken)  # all batches of these updates


def test_picture_losses_look_through_the_quick_decoder(base, monkeypatch):
    monkeypatch.setattr(type(base), "decode", None)
    base.tiny_decoder = crude_decoder
    assert len(train(base, replace(SETTINGS, steps=2)).values("style")[0]) == 2


@pytest.mark.parametrize(
    "snr_gamma, flip, picture_noise", [(None, True, "random"), (5.0, False, "inversion")]
)
def test_the_first_update_computed_once_more_by_hand(
    snr_gamma, flip, picture_noise, base, monkeypatch
):
    """Two batches, each two style pictures for the noise and a content picture for LPIPS and style;
    with `flip` some of them are mirror images."""
    monkeypatch.setattr(loop, "autocast", lambda device: contextlib.nullcontext())
    changes = dict(steps=1, lpips_weight=0.5, style_weight=0.3, timesteps=600, seed=3)
    settings = replace(
        TWICE, snr_gamma=snr_gamma, flip=flip, picture_noise=picture_noise, **changes
    )
    own = fresh(base)
    style, content = stripes(), stripes(6, (20, 200, 90))
    way = {"path": (path := []), "forward_steps": 2, "seed": range(6)}
    invert(own, own.encode(to_tensor(content)), **way)
    add_lora(own, "mine", settings.rank, settings.alpha, 3, settings.layers)
    if flip:
        style, content = ([*p, *map(ImageOps.mirror, p)] for p in (style, content))
    looks = losses.PictureLosses(to_tensor(style))
    expected = dict.fromkeys(("noise", "lpips", "style"), 0.0)
    mirrored = []
    for batch in range(2):
        random = loop.generator_at(3, batch)
        chosen = [
            *loop.order_at(3, len(style), batch * 2, 2),
            len(style) + loop.order_at(4, len(content), batch, 1)[0],
        ]
        mirrored += [i >= 5 for i in chosen[:2]]
        images = to_tensor([[*style, *content][i] for i in chosen])
        spread = loop.spread_timesteps
        inverted = picture_noise == "inversion"
        last = len(path) if inverted else settings.picture_timesteps
        t = torch.cat([spread(2, 600, random), spread(1, last, random)])
        if inverted:
            t[2], noisy_content = path[t[2]]
        noise = torch.randn(3, 4, 8, 8, generator=random)
        noisy = own.scheduler.add_noise(own.encode(images), noise, t)
        if inverted:
            noisy[2] = noisy_content[chosen[2] - len(style)]
        found = own.predict_noise(noisy, t)
        error = (found - noise).square().mean((1, 2, 3))
        ratio = compute_snr(own.scheduler, t)
        if snr_gamma:
            assert ratio[0] > snr_gamma  # or the weight could be left out
            error = error * ratio.clamp(max=snr_gamma) / ratio
        x0 = losses.estimate_x0(own.scheduler, noisy[2:], found[2:], t[2:])
        lpips, distance = looks(own.decode(x0), images[2:])
        expected["noise"] += error[:2].mean() / 2
        trust = 1 if inverted else ratio[2].clamp(max=1)
        expected["lpips"] += lpips[0] * trust / 2
        expected["style"] += distance[0] * trust / 2
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
    assert (large.steps, large.batch_size, large.picture_every) == (7, 1, 4)
    assert large.gradient_accumulation_steps == 4
    assert large.gradient_checkpointing and large.layers == "attention"
    assert large.learning_rate < Settings().learning_rate and large.timesteps == 1000


def test_without_their_weights_no_picture_is_decoded(base, monkeypatch):
    monkeypatch.setattr(type(base), "decode", None)
    assert train(base, PLAIN).values("style") == ([], [])
    assert base.text_encoder is None and base.tokenizer is None  # "" was all that was needed


def test_content_and_style_pictures_may_differ(tiny):
    found = []
    for content in (None, stripes(7, (20, 200, 90)), stripes()):
        own = fresh(tiny)
        train(own, replace(SETTINGS, steps=2), content=content)
        found.append(weights(own))
    assert not same(found[0], found[1])
    assert same(found[0], found[2])  # the style pictures are the content where none is given


def test_the_same_seed_trains_the_same_weights(tiny):
    found = []
    for seed in (5, 5, 6):
        own = fresh(tiny)
        torch.rand(len(found))  # whatever was drawn before plays no part
        state = torch.get_rng_state()
        train(own, replace(SETTINGS, steps=3, seed=seed))
        assert torch.equal(torch.get_rng_state(), state)
        found.append(weights(own))
    assert same(found[0], found[1]) and not same(found[0], found[2])


def test_gradient_checkpointing_changes_the_memory_only(tiny, monkeypatch):
    predicted, sizes, found = stylenb.Base.predict_noise, [], []

    def predict_noise(self, *args):
        with device.kept_activations(self.unet) as kept:
            out = predicted(self, *args)
        sizes.append(sum(kept.values()))
        return out

    monkeypatch.setattr(stylenb.Base, "predict_noise", predict_noise)
    for checkpointing in (False, True):
        own = fresh(tiny)
        train(own, replace(PLAIN, steps=3, gradient_checkpointing=checkpointing))
        found.append(weights(own))
        assert not own.unet.is_gradient_checkpointing
    assert 0 < max(sizes[3:]) < 0.5 * min(sizes[:3])
    for key, value in found[0].items():
        assert torch.allclose(value, found[1][key], atol=1e-4), key


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_kept_activations_are_counted_once_and_without_the_weights(where):
    layers = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2), torch.nn.Tanh()
    ).to(where)
    pictures, float32 = torch.zeros(5, 3, device=where), 4

    def counted() -> int:
        with device.kept_activations(layers) as kept:
            out = layers(pictures)  # its graph has to live while it is counted
        assert out.requires_grad
        return sum(kept.values())

    # the input, and what each tanh made: the first of these is also the second layer's input
    assert counted() == float32 * (5 * 3 + 5 * 4 + 5 * 2)
    layers[0].requires_grad_(False)  # then its input is not needed, nor the first tanh's output
    layers[2].weight.requires_grad_(False)
    assert counted() == float32 * 5 * 2  # the bias still wants the gradient of the last tanh


def test_half_precision_bases_train_too(tiny_folder, monkeypatch):
    """As on a GPU without bfloat16: no autocast, and a scaler, which finds its scale by the first
    gradient, that overflows."""
    monkeypatch.setattr(loop, "autocast", lambda device: contextlib.nullcontext())
    original, seen = training.noise_loss, []

    def noise_loss(*args):
        loss = original(*args)
        loss.register_hook(lambda gradient: seen.append(1) or gradient * (1e9 / len(seen) ** 40))
        return loss

    monkeypatch.setattr(training, "noise_loss", noise_loss)
    half = stylenb.load(tiny_folder, device="cpu", dtype=torch.float16)
    history = train(half, replace(PLAIN, steps=3))
    assert [np.isfinite(row["gradient"]) for row in history.rows] == [False, True, True]
    after = weights(half)
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in after.values())
    assert any(value.any() for key, value in after.items() if ".lora_B." in key)


# --- what is written, and what it takes to resume ---


def test_the_folder_holds_the_lora_and_the_run(base, tmp_path):
    train(base, folder=tmp_path)
    names = ["checkpoint-000000", "checkpoint-000006", "history", "mine"]
    assert sorted(p.stem for p in tmp_path.iterdir()) == names
    about = about_lora(tmp_path / "mine.safetensors")
    assert about["settings"]["learning_rate"] == 0.01 and about["base"] == base.name
    trained, output = weights(base), predict(base)
    stylenb.remove_lora(base, "mine")
    set_scale(base, load_lora(base, tmp_path / "mine.safetensors"))
    assert torch.allclose(predict(base), output, atol=2e-3)  # half precision on the way
    stylenb.remove_lora(base, "mine")
    base.predict_noise = None  # a finished run is not run again
    assert train(base, folder=tmp_path).finished and same(weights(base), trained)


def test_what_was_learned_stays_in_the_base_when_it_cannot_be_saved(base, whole_run, tmp_path):
    sentence = "mine.safetensors' cannot be written.*still in the base: save it with save_lora"
    with pytest.warns(UserWarning, match="Step [06] was not saved"), full_disk():
        with pytest.raises(TrainingStopped, match=sentence):
            train(base, TWICE, folder=tmp_path)
    assert same(weights(base), whole_run) and not list(tmp_path.glob("*.safetensors"))
    assert_usable(base, TWICE.final_alpha)


def test_validation_and_a_stop_by_the_time_do_not_change_the_run(base, whole_run, tmp_path):
    how = dict(folder=tmp_path, validation=stripes(1), validate_every=1)
    assert not train(base, TWICE, minutes=0, **how).finished
    stylenb.remove_lora(base, "mine")
    history = train(base, TWICE, **how)
    assert history.finished and list(history.pictures) == [1, 2, 3, 4, 5, 6]
    assert same(weights(base), whole_run)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError("out of memory")])
def test_stopped_with_a_folder_the_same_call_resumes(stop, base, whole_run, tmp_path):
    hook = interrupted(base, 7, stop)
    with pytest.raises(type(stop) if isinstance(stop, Exception) else stop):
        train(base, TWICE, folder=tmp_path, checkpoint_every=1)
    assert adapters(base) == []
    hook.remove()
    assert train(base, TWICE, folder=tmp_path, checkpoint_every=1).finished
    assert same(weights(base), whole_run)


def test_a_run_with_the_noise_of_inversions_resumes_too(base, tmp_path):
    settings = replace(TWICE, picture_noise="inversion", lpips_weight=0.5)
    train(base, settings)
    whole = weights(base)
    stylenb.remove_lora(base, "mine")
    hook = interrupted(base, 10, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train(base, settings, folder=tmp_path, checkpoint_every=1)
    hook.remove()
    history = train(base, settings, folder=tmp_path, checkpoint_every=1)
    assert history.finished and same(weights(base), whole)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError("out of memory")])
def test_stopped_by_hand_without_a_folder_keeps_what_was_learned(stop, base):
    hook = interrupted(base, 4, stop)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        train(base, PLAIN)
    hook.remove()
    if stop is KeyboardInterrupt:
        assert any(v.any() for k, v in weights(base).items() if "lora_B" in k)
        assert_usable(base, PLAIN.final_alpha)
    else:  # any other error leaves the base as it was
        assert adapters(base) == []


def test_what_is_kept_of_a_run_gone_wrong_can_be_used(base, tmp_path):
    settings = replace(PLAIN, learning_rate=1e30, warmup=0, final_alpha=1.7)
    with pytest.raises(NotFinite, match="Try half the learning rate"):
        train(base, settings)
    assert all(v.isfinite().all() for v in weights(base).values())
    assert_usable(base, 1.7)
    stylenb.remove_lora(base, "mine")
    with pytest.raises(TrainingStopped, match="above the 65,504 of half precision.*lower learning"):
        train(base, replace(settings, steps=1), folder=tmp_path)
    assert_usable(base, 1.7)
    assert not (tmp_path / "mine.safetensors").exists()


def interrupted(base, at, error):
    """Raise the error at a pass through the UNet; returns the hook."""
    calls = iter(range(at))

    def hook(*_):
        if next(calls, None) is None:
            raise error

    return base.unet.register_forward_pre_hook(hook)


def assert_usable(base, alpha):
    layers = [m for m in base.unet.modules() if hasattr(m, "lora_A")]
    assert {layer.scaling["mine"] for layer in layers} == {alpha}
    assert not any(p.requires_grad for p in base.unet.parameters())


def renamed(base):
    base.name = "other"


def negated(base):
    with torch.no_grad():
        base.unet.conv_in.weight.neg_()


def prompted(base):
    base.prompt, base._embedding = "another", base.empty


DIFFERENT = {
    "rank": ({"settings": replace(PLAIN, rank=2)}, None, r"\(rank was 4 and is 2\)"),
    "style": ({"pictures": stripes(5, (1, 2, 3))}, None, "style pictures was"),
    "content": (
        {"content": stripes(6)},
        None,
        r"\(content pictures was '\w+' and is '\w+'\): give",
    ),
    "name": ({"name": "yours"}, None, "name was 'mine' and is 'yours'"),
    "base": ({}, renamed, r"\(base was 'tiny-sd' and is 'other'\)"),
    "weights": ({}, negated, "fingerprint was"),
    "prompt": ({}, prompted, "prompt was None and is 'another'"),
}


@pytest.fixture(scope="module")
def run_folder(tiny, tmp_path_factory):
    """The folder of a finished run of PLAIN."""
    folder = tmp_path_factory.mktemp("run")
    train(fresh(tiny), PLAIN, folder=folder)
    return folder


@pytest.mark.parametrize("case", DIFFERENT)
def test_another_run_is_refused_and_named(case, base, run_folder):
    files = {p: p.read_bytes() for p in run_folder.iterdir()}
    given, change, message = DIFFERENT[case]
    if change:
        change(base)
    with pytest.raises(StylenbError, match=message):
        train(base, folder=run_folder, **{"settings": PLAIN, **given})
    assert {p: p.read_bytes() for p in run_folder.iterdir()} == files and adapters(base) == []


def test_the_same_pictures_are_the_same_run(base, run_folder):
    assert train(base, PLAIN, content=stripes(), folder=run_folder).finished


# --- bad calls ---


def check(**changes):
    return lambda base: Settings(**changes)


def call(**given):
    return lambda base: train(base, **given)


BAD = {
    "few pictures": (call(pictures=stripes(3)), "at least 4 pictures"),
    "no content": (call(content=[]), "content_pictures is empty"),
    "no pictures": (call(pictures=7), "a folder's path or a list of pictures, not int"),
    "one picture": (call(pictures=stripes()[0]), "a folder's path or a list of pictures, not"),
    "a tensor": (call(pictures=[torch.zeros(3, 64, 64)] * 4), "A photo is a path"),
    "file": (call(folder=__file__), "cannot be a folder .* choose another"),
    "rank": (check(rank=0), "rank is a whole number from 1 up, not 0"),
    "layers": (
        check(layers="resnets"),
        "layers is one of 'attention', 'transformer', not 'resnets'",
    ),
    "steps": (check(steps=2.5), "steps is a whole number"),
    "rate": (check(learning_rate=0), "learning_rate is a number above 0"),
    "endless": (check(learning_rate=float("inf")), "learning_rate is a number above 0"),
    "weight": (check(style_weight=-1), "style_weight is a number from 0 up, not -1"),
    "optimizer": (check(optimizer="sgd"), "one of 'adamw', 'adamw8bit', not 'sgd'"),
    "net": (check(features="resnet"), "features is one of"),
    "min-SNR": (check(snr_gamma=-1.0), "snr_gamma is a number above 0, or None, not -1.0"),
    "no min-SNR": (check(snr_gamma=0), "snr_gamma is a number above 0, or None, not 0"),
    "no alpha": (check(alpha=0), "alpha is a number other than 0, not 0"),
    "NaN": (check(final_alpha=float("nan")), "final_alpha is a number other than 0, not nan"),
    "share": (check(picture_from=7), "picture_from is a number from 0 to 1, not 7"),
    "seed": (check(seed="x"), "seed is a whole number, not 'x'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_call_is_one_sentence_and_leaves_the_base(case, base):
    call, message = BAD[case]
    with pytest.raises(StylenbError, match=message):
        call(base)
    assert adapters(base) == []
