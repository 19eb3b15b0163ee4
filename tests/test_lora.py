"""LoRA on a tiny random model: what training touches, what a file keeps, and what is refused."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import stylenb
from stylenb import StylenbError
from stylenb.lora import (
    about_lora,
    adapters,
    add_lora,
    available_styles,
    load_lora,
    merge_lora,
    merged,
    merged_for_now,
    remove_lora,
    save_lora,
    set_alpha,
    set_scale,
    unmerge_lora,
)
from stylenb.training import Settings, train_style

NOISY = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def pictures(count=4):
    """Stripes of two colours, at a slant of their own."""
    y, x = np.mgrid[0:64, 0:64]
    dark = [(x * i + y * (count - i)) // 32 % 2 for i in range(count)]
    return [Image.fromarray(np.uint8(d[..., None] * (200, 90, 20) + 20)) for d in dark]


def train(base, name="mine", **options):
    """A LoRA from a few plain steps; tests/test_training.py is about the training itself."""
    options = {"rank": 4, "steps": 3, "batch_size": 2, "learning_rate": 0.02, **options}
    settings = Settings(**options, warmup=0, lpips_weight=0.0, style_weight=0.0)
    return train_style(base, pictures(), None, name, settings, progress=False)


def random_lora(base, name="mine", rank=4, alpha=1.0, seed=0, size=0.3):
    """An active LoRA that changes the output, for no training."""
    add_lora(base, name, rank, alpha, seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(base.unet):
        b = layer.lora_B[name].weight
        b.data = torch.randn(b.shape, generator=generator) * size
    base.unet.requires_grad_(False)


def lora_layers(unet):
    return [m for m in unet.modules() if isinstance(m, LoraLayer)]


def weights(base):
    """The attention's own weights, copied."""
    return [layer.get_base_layer().weight.detach().clone() for layer in lora_layers(base.unet)]


@torch.no_grad()
def predict(base):
    return base.predict_noise(NOISY, 500)


@pytest.fixture
def base(tiny):
    """The tiny model with a UNet of its own."""
    own = copy.copy(tiny)
    own.unet = copy.deepcopy(tiny.unet)
    return own


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """(file of a LoRA of rank 4 and alpha 2, what the UNet predicted with it)."""
    own = copy.copy(tiny)
    own.unet = copy.deepcopy(tiny.unet)
    random_lora(own, alpha=2.0)
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


def test_layers(base):
    """Attention alone, or every matrix of the transformer blocks."""
    for layers, count in (("attention", 8), ("transformer", 12)):
        add_lora(base, layers, rank=2, layers=layers)
        found = [n for n, m in base.unet.named_modules() if layers in getattr(m, "lora_A", {})]
        blocks = {n.split(".transformer_blocks.")[0] for n in found if ".attn1.to_q" in n}
        assert len(found) == count * len(blocks) > 0
        assert all(".attentions." in n for n in found)
    with pytest.raises(StylenbError, match="layers of a LoRA are attention or transformer, not"):
        add_lora(base, "x", layers="convolutions")


def test_alpha_can_be_changed(base):
    add_lora(base, "a", rank=2, alpha=1.0)
    for name, p in base.unet.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    set_scale(base, "a", 1.5)
    scaled = base.predict_noise(noisy, 500)
    set_scale(base, "a")
    assert not torch.allclose(base.predict_noise(noisy, 500), scaled, atol=1e-5)
    set_alpha(base, "a", 1.5)
    assert torch.allclose(base.predict_noise(noisy, 500), scaled, atol=1e-6)
    for name, alpha, said in (("b", 1.0, "No LoRA named 'b'"), ("a", float("nan"), "number")):
        with pytest.raises(StylenbError, match=said):
            set_alpha(base, name, alpha)
    merge_lora(base, "a")
    with pytest.raises(StylenbError, match="merged"):
        set_alpha(base, "a", 2.0)


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


NAMES = ["a.b", ".", "", "keys", "type", "0", "attn1", "weight", "lora_A", 7, None]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_torch_or_peft_would_stumble_over_is_one_sentence(name, base):
    random_lora(base, "other")
    with pytest.raises(StylenbError, match="cannot be the name of a LoRA") as caught:
        add_lora(base, name)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(", for example.")
    assert adapters(base) == ["other"]
    add_lora(base, message.split("'")[-2])  # the name that it proposes


def test_a_file_may_have_any_name(base, saved, tmp_path):
    names = ["my style v1.5", "keys", "0", "attn1"]
    for name in names:
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(saved[0].read_bytes())
        set_scale(base, load_lora(base, path))
        assert (predict(base) - saved[1]).abs().max() < 1e-2 * saved[1].abs().max()
        assert load_lora(base, path) in adapters(base)
    assert len(adapters(base)) == len(names)
    again = save_lora(base, tmp_path / "again.safetensors", adapters(base)[0])
    assert load_file(again).keys() == load_file(saved[0]).keys()


# --- scale, off, removal ---


def test_scale(base):
    before = predict(base)
    random_lora(base)
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
    set_scale(base, {})
    remove_lora(base, "mine")


@pytest.mark.filterwarnings("error")
def test_removal_restores_the_base(base):
    before = predict(base)
    random_lora(base)
    remove_lora(base, "mine")
    assert adapters(base) == [] and torch.equal(predict(base), before)
    random_lora(base)  # the name is free again
    assert adapters(base) == ["mine"]


def test_of_two_loras_only_one_is_active(base):
    random_lora(base, "a", seed=1)
    alone = predict(base)
    random_lora(base, "b", seed=2)
    assert adapters(base) == ["a", "b"]
    assert not torch.allclose(predict(base), alone)
    set_scale(base, "a")
    assert torch.equal(predict(base), alone)
    remove_lora(base, "b")
    assert torch.equal(predict(base), alone)


@pytest.mark.filterwarnings("error")
def test_removing_the_active_lora_wakes_no_other(base):
    before = predict(base)
    random_lora(base, "a", seed=1)
    random_lora(base, "b", seed=2)
    remove_lora(base, "b")
    assert torch.equal(predict(base), before)


@pytest.mark.parametrize("rest, scale", [({"a": 0.7}, 1.0), ({"a": 0.35}, 2.0)])
def test_several_loras_are_summed_exactly(base, rest, scale):
    """Three at once, by the formula: W + 0.7 alpha A B of each, laid into the bare weights."""
    random_lora(base, "a", rank=2, alpha=0.5, seed=1)
    random_lora(base, "b", rank=4, alpha=2.0, seed=2)
    random_lora(base, "c", rank=1, alpha=1.0, seed=3)
    set_scale(base, {**rest, "b": -0.4 / scale, "c": 0.3 / scale}, scale)
    assert all(layer.active_adapters == ["a", "b", "c"] for layer in lora_layers(base.unet))
    assert not any(p.requires_grad for p in base.unet.parameters())
    together = predict(base)
    set_scale(base, None)
    off = predict(base)
    for layer in lora_layers(base.unet):
        for name, factor in (("a", 0.7 * 0.5), ("b", -0.4 * 2.0), ("c", 0.3)):
            product = layer.lora_B[name].weight @ layer.lora_A[name].weight
            layer.get_base_layer().weight.data += factor * product
    by_hand = predict(base)
    assert (together - off).abs().max() > 0.01
    assert (together - by_hand).abs().max() < 1e-5 * by_hand.abs().max()


@pytest.mark.filterwarnings("error")
def test_of_several_active_ones_the_others_stay(base):
    random_lora(base, "a", seed=1)
    set_scale(base, "a", 0.7)
    alone = predict(base)
    random_lora(base, "b", seed=2)
    set_scale(base, {"a": 0.7, "b": 0.5})
    assert not torch.equal(predict(base), alone)
    remove_lora(base, "b")
    assert torch.equal(predict(base), alone)
    assert not any(p.requires_grad for p in base.unet.parameters())


GROUPED = {"self": 0.5, "cross": -1.0, "down": 2.0, "mid": 0.0, "up": 1.5}
HAND = {"attn1": 0.5, "attn2": -1.0, "down_blocks": 2.0, "mid_block": 0.0, "up_blocks": 1.5}


@pytest.mark.parametrize("groups", [("self",), ("cross", "mid"), ("down", "up"), tuple(GROUPED)])
@pytest.mark.parametrize("name", ["a", {"a": 0.7, "b": -0.4}], ids=str)
def test_scales_by_group_are_laid_into_weights_by_hand(base, groups, name):
    """Each layer's update times the product of the factors that it falls under."""
    random_lora(base, "a", rank=2, alpha=0.5, seed=1)
    random_lora(base, "b", rank=4, alpha=2.0, seed=2)
    set_scale(base, name, {group: GROUPED[group] for group in groups})
    assert not any(p.requires_grad for p in base.unet.parameters())
    grouped = predict(base)
    set_scale(base, name)
    assert not torch.allclose(predict(base), grouped)
    set_scale(base, None)
    off = predict(base)
    weights = {"a": 1.0} if name == "a" else name
    factors = set()
    for key, layer in base.unet.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        factor = 1.0
        for group, part in zip(GROUPED, HAND, strict=True):
            factor *= HAND[part] if group in groups and f"{part}." in key else 1.0
        factors.add(factor)
        for one, alpha in (("a", 0.5), ("b", 2.0)):
            product = layer.lora_B[one].weight @ layer.lora_A[one].weight
            layer.get_base_layer().weight.data += weights.get(one, 0) * alpha * factor * product
    assert len(factors) > 1
    by_hand = predict(base)
    assert (by_hand - off).abs().max() > 0.01
    assert (grouped - by_hand).abs().max() < 1e-5 * by_hand.abs().max()


def test_a_lora_is_merged_with_scales_by_group(base):
    random_lora(base)
    scale = {"self": 0.0, "up": 2.0}
    set_scale(base, "mine", scale)
    active = predict(base)
    merge_lora(base, "mine", scale)
    assert (predict(base) - active).abs().max() < 1e-5 * active.abs().max()


# --- merging ---


def test_merging_lays_the_active_lora_into_the_weights(base):
    off, before = predict(base), None
    random_lora(base, rank=2, alpha=2.0)
    before = weights(base)
    set_scale(base, "mine", 0.7)
    active = predict(base)
    merge_lora(base, "mine", 0.7)
    assert merged(base) == ["mine"]
    assert (predict(base) - active).abs().max() < 1e-5 * active.abs().max()
    for layer, old in zip(lora_layers(base.unet), before, strict=True):
        added = 0.7 * 2.0 * layer.lora_B["mine"].weight @ layer.lora_A["mine"].weight
        assert torch.allclose(layer.get_base_layer().weight, old + added, atol=1e-6)
    set_scale(base, None)  # which takes nothing out of the weights
    assert (predict(base) - active).abs().max() < 1e-5 * active.abs().max()
    assert (off - active).abs().max() > 0.01
    unmerge_lora(base)
    assert merged(base) == [] and adapters(base) == ["mine"]
    assert (predict(base) - off).abs().max() < 1e-5 * off.abs().max()
    set_scale(base, "mine", 0.7)
    assert (predict(base) - active).abs().max() < 1e-5 * active.abs().max()


DTYPES = {torch.float32: 1e-7, torch.float16: 1e-3, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", DTYPES)
def test_unmerging_is_as_exact_as_the_docstring_says(base, dtype):
    base.unet.to(dtype)
    random_lora(base)
    before = weights(base)
    for _ in range(3):
        merge_lora(base, "mine")
        largest = [
            torch.maximum(a.abs(), b.abs()) for a, b in zip(before, weights(base), strict=True)
        ]
        assert not all(torch.equal(a, b) for a, b in zip(before, weights(base), strict=True))
        unmerge_lora(base)
        for old, new, size in zip(before, weights(base), largest, strict=True):
            assert ((new - old).abs() <= 2 * DTYPES[dtype] * size).all()
        before = weights(base)


def test_several_are_merged_and_unmerged_together(base):
    off = predict(base)
    random_lora(base, "a", seed=1)
    random_lora(base, "b", seed=2)
    set_scale(base, {"a": 0.5, "b": -0.5})
    active = predict(base)
    merge_lora(base, {"a": 0.5, "b": -0.5})
    assert merged(base) == ["a", "b"]
    assert (predict(base) - active).abs().max() < 1e-5 * active.abs().max()
    unmerge_lora(base)
    assert merged(base) == []
    assert (predict(base) - off).abs().max() < 1e-5 * off.abs().max()


@pytest.mark.filterwarnings("error")
def test_a_merged_lora_that_covers_a_few_layers_comes_out_again(base, saved, tmp_path):
    random_lora(base, "other")
    path = tmp_path / "few.safetensors"
    save_file({k: v for k, v in load_file(saved[0]).items() if ".mid_block." in k}, path)
    off = weights(base)
    merge_lora(base, load_lora(base, path))
    assert (
        0 < sum(not torch.equal(a, b) for a, b in zip(off, weights(base), strict=True)) < len(off)
    )
    unmerge_lora(base)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(off, weights(base), strict=True))


def test_merged_for_now_is_taken_out_to_the_last_bit(base):
    random_lora(base, "a", seed=1)
    random_lora(base, "b", seed=2)
    set_scale(base, {"a": 0.5, "b": -0.5}, {"up": 2.0})
    active = predict(base)
    set_scale(base, None)
    off, before = predict(base), weights(base)
    with merged_for_now(base, {"a": 0.5, "b": -0.5}, {"up": 2.0}):
        assert merged(base) == ["a", "b"]
        assert (predict(base) - active).abs().max() < 1e-5 * active.abs().max()
    with pytest.raises(RuntimeError, match="out of memory"), merged_for_now(base, "b"):
        raise RuntimeError("out of memory")
    with pytest.raises(StylenbError, match="must be a number"), merged_for_now(base, "b", None):
        pass
    for name in (None, {}):
        with merged_for_now(base, name):
            assert torch.equal(predict(base), off)
    assert merged(base) == [] and torch.equal(predict(base), off)
    assert all(torch.equal(a, b) for a, b in zip(weights(base), before, strict=True))


def test_merged_for_now_leaves_what_was_merged_to_stay(base):
    random_lora(base, "a", seed=1)
    random_lora(base, "b", seed=2)
    merge_lora(base, "a")
    output = predict(base)
    with pytest.raises(StylenbError, match="'a' is merged"), merged_for_now(base, "b"):
        pass
    with merged_for_now(base, None):
        assert torch.equal(predict(base), output)
    assert merged(base) == ["a"] and torch.equal(predict(base), output)


WHILE_MERGED = {
    "merging again": lambda b, file: merge_lora(b, "mine"),
    "merging another": lambda b, file: merge_lora(b, "other"),
    "scaling": lambda b, file: set_scale(b, "mine", 0.5),
    "making another active": lambda b, file: set_scale(b, "other"),
    "adding": lambda b, file: add_lora(b, "new"),
    "loading": lambda b, file: load_lora(b, file),
    "removing": lambda b, file: remove_lora(b, "mine"),
}


@pytest.mark.parametrize("case", WHILE_MERGED)
def test_what_cannot_be_done_while_one_is_merged(case, base, saved, tmp_path):
    file = tmp_path / "file.safetensors"
    file.write_bytes(saved[0].read_bytes())
    random_lora(base, "other", seed=5)
    random_lora(base)
    merge_lora(base, "mine")
    output = predict(base)
    with pytest.raises(StylenbError, match="'mine' is merged .* unmerge_lora.base. first.$"):
        WHILE_MERGED[case](base, file)
    assert adapters(base) == ["other", "mine"] and merged(base) == ["mine"]
    assert torch.equal(predict(base), output)


def test_a_merged_lora_is_saved_as_one_that_is_not(base, tmp_path):
    random_lora(base)
    plain = save_lora(base, tmp_path / "plain.safetensors", "mine")
    merge_lora(base, "mine", 0.5)
    after = save_lora(base, tmp_path / "merged.safetensors", "mine")
    a, b = load_file(plain), load_file(after)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_lora_that_is_not_finite_is_not_merged(base):
    off = predict(base)
    random_lora(base)
    lora_layers(base.unet)[-1].lora_B["mine"].weight.data[0, 0] = torch.nan
    with pytest.raises(StylenbError, match="NaN or infinity, .* was not merged"):
        merge_lora(base, "mine")
    assert merged(base) == []
    assert (predict(base) - off).abs().max() < 1e-5 * off.abs().max()


# --- files ---


def test_a_file_keeps_rank_and_alpha(base, saved):
    path, expected = saved
    before = predict(base)
    assert load_lora(base, path) == "mine"
    set_scale(base, "mine")
    config = base.unet.peft_config["mine"]
    assert (config.r, config.lora_alpha) == (4, 8)  # peft's lora_alpha is alpha * rank
    change = (expected - before).abs().mean()
    assert (predict(base) - expected).abs().mean() < 0.01 * change  # the file is in fp16
    assert load_lora(base, path) == "mine"  # what is loaded stays as it is
    assert adapters(base) == ["mine"]


def test_a_file_is_small_half_precision_and_says_how_it_was_made(saved, tmp_path):
    path, _ = saved
    assert path.stat().st_size < 1_000_000
    state = load_file(path)
    assert {value.dtype for value in state.values()} == {torch.float16}
    about = {"base": "tiny-sd", "rank": 4, "steps": 3, "pictures": "stripes"}
    assert about_lora(path) == about
    save_file(state, tmp_path / "elsewhere.safetensors")
    assert about_lora(tmp_path / "elsewhere.safetensors") == {}
    assert [p.name for p in path.parent.iterdir()] == ["mine.safetensors"]


def test_plain_diffusers_opens_the_file(saved, tiny_folder):
    path, expected = saved
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    empty = pipe.encode_prompt("", "cpu", 1, False)[0].expand(len(NOISY), -1, -1)

    @torch.no_grad()
    def noise():
        return pipe.unet(NOISY, 500, encoder_hidden_states=empty).sample

    before = noise()
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    assert (noise() - expected).abs().mean() < 0.01 * (expected - before).abs().mean()


NUMBERS = [(4, 2.0), (3, 0.3), (1, -0.5)]


@pytest.mark.parametrize("rank, alpha", NUMBERS)
def test_rank_alpha_and_weights_survive_exactly(rank, alpha, base, tiny, tiny_folder, tmp_path):
    """Read by load_lora and by plain diffusers: the same numbers, not nearly the same."""
    random_lora(base, rank=rank, alpha=alpha)
    path = save_lora(base, tmp_path / "mine.safetensors", "mine")
    config = base.unet.peft_config["mine"]
    assert (config.r, config.lora_alpha) == (rank, alpha * rank)
    own = copy.copy(tiny)
    own.unet = copy.deepcopy(tiny.unet)
    name = load_lora(own, path)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name="theirs")
    for unet, there in ((own.unet, name), (pipe.unet, "theirs")):
        read = unet.peft_config[there]
        assert (read.r, read.lora_alpha) == (rank, alpha * rank)
        both = list(zip(lora_layers(base.unet), lora_layers(unet), strict=True))
        for layer, other in both:
            assert (other.r[there], other.scaling[there]) == (rank, layer.scaling["mine"])
            for part in ("lora_A", "lora_B"):
                weight = getattr(layer, part)["mine"].weight.half().float()
                assert torch.equal(getattr(other, part)[there].weight.float(), weight)
        assert len(both) == len(weights(base)) > 0


def test_of_two_loras_each_is_saved_alone(base, tmp_path):
    for seed, name in enumerate(("ink", "ink2")):
        random_lora(base, name, rank=seed + 1, seed=seed)
    for rank, name in enumerate(("ink", "ink2"), 1):
        state = load_file(save_lora(base, tmp_path / f"{name}.safetensors", name))
        assert len(state) == 2 * len(lora_layers(base.unet))
        assert {v.shape[0 if ".lora_A." in k else 1] for k, v in state.items()} == {rank}


def test_loading_leaves_what_was_active(base, saved):
    off = predict(base)
    name = load_lora(base, saved[0])
    assert torch.equal(predict(base), off)
    remove_lora(base, name)
    random_lora(base, "a", seed=1)
    random_lora(base, "b", seed=2)
    scales = {"b": 1 / 3, "a": -0.7}
    for active in ({}, {"a": 0.3}, scales):
        set_scale(base, active)
        before = predict(base)
        load_lora(base, saved[0])
        assert torch.equal(predict(base), before)
        remove_lora(base, name)
    state = torch.get_rng_state()
    load_lora(base, saved[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_the_names_of_older_files_are_read(base, saved, tmp_path):
    set_scale(base, load_lora(base, saved[0]), 0.5)  # without metadata, alpha is 1
    expected = predict(base)
    path = tmp_path / "old.safetensors"
    names = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}
    state = load_file(saved[0])
    for new, old in names.items():
        state = {k.replace(new, old): v for k, v in state.items()}
    save_file(state, path)
    set_scale(base, load_lora(base, path))
    assert torch.equal(predict(base), expected)


def test_convolutions_are_read_too(base, tmp_path):
    layer = dict(base.unet.named_modules())["mid_block.attentions.0.proj_in"]
    assert isinstance(layer, torch.nn.Conv2d)
    key = "unet.mid_block.attentions.0.proj_in"
    state = {
        f"{key}.lora_A.weight": torch.ones(2, layer.in_channels, 1, 1),
        f"{key}.lora_B.weight": torch.ones(layer.out_channels, 2, 1, 1),
    }
    before = predict(base)
    save_file(state, tmp_path / "conv.safetensors")
    set_scale(base, load_lora(base, tmp_path / "conv.safetensors"))
    assert not torch.allclose(predict(base), before)
    state[f"{key}.lora_B.weight"] = torch.ones(layer.out_channels, 2, 3, 3)
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(StylenbError, match=f"expected is .{layer.out_channels}, r, 1, 1."):
        load_lora(base, tmp_path / "wrong.safetensors")


def test_two_files_of_one_name_are_two_loras(base, saved, tmp_path):
    path, _ = saved
    other = tmp_path / "mine.safetensors"
    save_file({k: -2 * v for k, v in load_file(path).items()}, other)
    outputs = []
    for file in (path, other):
        set_scale(base, load_lora(base, file))
        outputs.append(predict(base))
    assert not torch.allclose(*outputs)


def test_a_loaded_lora_can_be_scaled_and_trained_through(base, saved, gradient):
    stylenb.stylize(gradient, saved[0], steps=2, base=base)  # which loads in inference mode
    set_scale(base, "mine")
    noisy = NOISY.clone().requires_grad_()
    base.predict_noise(noisy, 500).sum().backward()
    assert noisy.grad.abs().sum() > 0


def spoil(change):
    """A writer of a LoRA file whose tensors were changed; its metadata is kept."""

    def write(good, path):
        with safe_open(good, "pt") as file:
            metadata = file.metadata()
        save_file(change(load_file(good)), path, metadata)

    return write


def rename(old, new):
    return spoil(lambda state: {k.replace(old, new): v for k, v in state.items()})


def instead(*keys):
    return spoil(lambda state: {key: torch.ones(4, 16) for key in keys})


def wider(state):
    return {k: torch.cat([v, v], 1 if ".lora_A." in k else 0) for k, v in state.items()}


def flat(state):
    return {k: v.flatten() for k, v in state.items()}


def lower_b(state):
    return {k: v[:, :2].contiguous() if ".lora_B." in k else v for k, v in state.items()}


def lower(state):
    return {k: (v[:2] if ".lora_A." in k else v[:, :2]).contiguous() for k, v in state.items()}


def without_a(state):
    return {k: v for k, v in state.items() if ".lora_A." not in k}


def one_more(state):
    return {**state, "unet.conv_norm_out.lora_A.weight": torch.ones(4, 16)}


def times(part, factor):
    return spoil(lambda state: {k: v * (factor if part in k else 1) for k, v in state.items()})


def tell(**metadata):
    """The good file with something else in its metadata."""

    def write(good, path):
        with safe_open(good, "pt") as file:
            kept = json.loads(file.metadata()["lora_adapter_metadata"])
        kept |= {f"unet.{key}": value for key, value in metadata.items()}
        save_file(load_file(good), path, {"lora_adapter_metadata": json.dumps(kept)})

    return write


def pickled(protocol=None, **options):
    def write(good, path):
        if protocol is None:
            torch.save(load_file(good), path, **options)
        else:
            path.write_bytes(pickle.dumps({"a": [1.0] * 99}, protocol=protocol))

    return write


KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight"
KOHYA_ALPHA = KOHYA.replace("lora_down.weight", "alpha")
DEEP = "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q.lora_A.weight"
DEEP_KOHYA = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight"
FLUX = "transformer.transformer_blocks.1.attn.to_q.lora_A.weight"
# what is written -> what the sentence says was found, and what was expected
SPOILT = {
    "garbage": (lambda good, path: path.write_bytes(b"not a tensor" * 9), "cannot be read"),
    "nothing": (lambda good, path: path.write_bytes(b""), "is empty (0 bytes)"),
    "cut off": (lambda good, path: path.write_bytes(good.read_bytes()[:900]), "cannot be read"),
    "a pickle": (pickled(), "a pickled file", "safetensors"),
    "an old pickle": (pickled(_use_new_zipfile_serialization=False), "a pickled file"),
    "a bare pickle": (pickled(4), "a pickled file"),
    "no weights": (spoil(lambda state: {}), "no weights", "two matrices per layer"),
    "a wider base": (spoil(wider), "does not fit", "has the shape (4, 32)", "is (r, 16)"),
    "flat": (spoil(flat), "does not fit", "has the shape (64,)", "is (r, 16)"),
    "a deeper base": (
        rename("mid_block", "down_blocks.7"),
        "16 of its 64 keys",
        "_blocks.7",
        "expected",
    ),
    "a text encoder's": (rename("unet.", "text_encoder."), "the text encoder too", "UNet alone"),
    "no prefix": (rename("unet.", ""), "64 of its 64 keys", "keys such as 'unet."),
    "no LoRA": (rename(".lora_A.", "."), "32 of its 64 keys", "to_k.weight'", "expected"),
    "one key more": (spoil(one_more), "1 of its 65 keys", "conv_norm_out", "expected"),
    "another family": (instead(FLUX), "1 of its 1 keys", FLUX),
    "half of kohya's": (instead(KOHYA), "has A of rank 4, expected are A and B"),
    "kohya's alpha": (instead(KOHYA_ALPHA), "has alpha of the shape (4, 16), expected are A"),
    "kohya, deeper": (instead(KOHYA.replace("blocks_0", "blocks_7", 1)), "1 of its 1 keys"),
    "kohya's text": (instead("lora_te_text_model_0.lora_up.weight", KOHYA), "text encoder", "_te_"),
    "SDXL, deep": (instead(DEEP), "Stable Diffusion XL", DEEP, "v1.5"),
    "SDXL, two encoders": (instead("lora_te2_x.alpha", KOHYA), "XL", "lora_te2_x", "v1.5"),
    "SDXL, kohya": (instead(KOHYA, DEEP_KOHYA), "XL", DEEP_KOHYA, "v1.5"),
    "SDXL, diffusers": (instead("text_encoder_2.a.lora_A.weight"), "XL", "text_encoder_2", "v1.5"),
    "SDXL, size": (instead("unet.add_embedding.linear_1.lora_A.weight"), "XL", "add_emb", "v1.5"),
    "two ranks": (spoil(lower_b), "A of rank 4 and B of rank 2", "of one rank"),
    "half of each": (spoil(without_a), "has B of rank 4", "expected are A and B"),
    "another rank told": (spoil(lower), "no whole LoRA", "size mismatch"),
    "metadata that is none": (tell(nonsense=1), "no whole LoRA"),
    "B is zero": (times(".lora_B.", 0), "changes nothing", "B is zero", "0 steps"),
    "A is zero": (times(".lora_A.", 0), "changes nothing", "the largest number in A 0 and"),
    "alpha is zero": (tell(lora_alpha=0), "changes nothing", "alpha is 0"),
    "not finite": (times(".lora_B.", torch.nan), "predicts NaN or infinity"),
}


@pytest.mark.parametrize("active", [None, "other"])
@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_file_is_one_sentence_and_leaves_the_base(case, active, base, saved, tmp_path):
    if active:
        random_lora(base, "other", seed=3)
        set_scale(base, "other", 0.7)
    before = predict(base)
    path = tmp_path / "mine.safetensors"
    write, *parts = SPOILT[case]
    write(saved[0], path)
    with pytest.raises(StylenbError) as caught:
        load_lora(base, path)
    message = str(caught.value)
    assert all(part in message for part in parts) and "mine.safetensors" in message, message
    assert "\n" not in message and message.endswith(".")
    assert adapters(base) == ([active] if active else []) and torch.equal(predict(base), before)
    assert not any("mine" in layer.lora_A for layer in lora_layers(base.unet))
    set_scale(base, load_lora(base, saved[0]))  # the good file of that name
    assert (predict(base) - saved[1]).abs().max() < 1e-2 * saved[1].abs().max()


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt"])
def test_pickled_files_are_refused(suffix, base, tmp_path):
    path = tmp_path / f"style{suffix}"
    torch.save({}, path)
    with pytest.raises(
        StylenbError, match=f"style{suffix} is not a .safetensors file, it is pickled"
    ):
        load_lora(base, path)
    (tmp_path / "style.txt").write_text("Dear reader")
    with pytest.raises(StylenbError, match="style.txt is not a .safetensors file: find"):
        load_lora(base, tmp_path / "style.txt")


BAD_CALLS = {
    "unknown style": (lambda b: load_lora(b, "nope"), "no style 'nope'"),
    "a file that is not there": (lambda b: load_lora(b, "gone/x.safetensors"), "no style 'gone"),
    "rank 0": (lambda b: train(b, "new", rank=0), "from 1 up, not 0"),
    "rank 2.5": (lambda b: train(b, "new", rank=2.5), "not 2.5"),
    "a name that is taken": (lambda b: train(b, "taken"), "'taken' already"),
    "scale of what is not there": (lambda b: set_scale(b, "nope", 1.0), "'nope'"),
    "a name with a dot": (lambda b: add_lora(b, "v1.5"), "'v1_5'"),
    "scale of one that is not there": (lambda b: set_scale(b, {"taken": 1, "nope": 1}), "'nope'"),
    "scale NaN": (lambda b: set_scale(b, "taken", float("nan")), "it is 1.0 x nan"),
    "scale that is text": (lambda b: set_scale(b, {"taken": "much"}), "it is 'much' x 1.0"),
    "no scale": (lambda b: set_scale(b, "taken", None), "it is 1.0 x None"),
    "no such group": (
        lambda b: set_scale(b, "taken", {"text": 1}),
        "choose self, cross, down, mid",
    ),
    "group NaN": (lambda b: set_scale(b, "taken", {"up": float("nan")}), "group 'up' must be a"),
    "merging what is not there": (lambda b: merge_lora(b, "nope"), "'nope'"),
    "merging nothing": (lambda b: merge_lora(b, None), "needs the name"),
    "merging too much": (lambda b: merge_lora(b, "taken", float("inf")), "it is 1.0 x inf"),
    "unmerging nothing": (lambda b: unmerge_lora(b), "nothing to unmerge"),
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
    assert adapters(base) == ["taken"] and merged(base) == []


def test_an_unknown_style_names_the_choices(base, tmp_path, monkeypatch, saved):
    monkeypatch.setattr("stylenb.lora.DATA", tmp_path)
    assert available_styles() == {}
    (tmp_path / "loras").mkdir()
    for name in ("ink", "neon"):
        (tmp_path / "loras" / f"{name}.safetensors").write_bytes(saved[0].read_bytes())
    assert list(available_styles()) == ["ink", "neon"]
    with pytest.raises(StylenbError, match="no style 'inc': choose ink, neon or give"):
        load_lora(base, "inc")
    assert load_lora(base, "neon") == "neon"
