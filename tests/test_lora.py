"""LoRA on a tiny random model: what training touches, what a file keeps, and what is refused."""

import copy
import json
import pickle

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import stylenb
from stylenb import StylenbError
from stylenb.lora import (
    adapters,
    add_lora,
    lora_layers,
    merge_lora,
    merged,
    remove_lora,
    set_alpha,
    set_scale,
    switched,
    unmerge_lora,
)
from stylenb.lora_files import about_lora, load_lora, save_lora

NOISY = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def random_lora(base, name="mine", rank=4, alpha=1.0, seed=0, size=0.3):
    """An active LoRA that changes the output, for no training."""
    add_lora(base, name, rank, alpha, seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in layers_of(base):
        b = layer.lora_B[name].weight
        b.data = torch.randn(b.shape, generator=generator) * size
    base.unet.requires_grad_(False)


def two_loras(base):
    """Two that change the output; the second one is active."""
    random_lora(base, "a", rank=2, alpha=0.5, seed=1)
    random_lora(base, "b", rank=4, alpha=2.0, seed=2)


@torch.no_grad()
def predict(base):
    return base.predict_noise(NOISY, 500)


def layers_of(base):
    return list(lora_layers(base).values())


def weights(base):
    """The attention's own weights, copied."""
    return [layer.get_base_layer().weight.detach().clone() for layer in layers_of(base)]


def equal(some, others):
    return all(torch.equal(*pair) for pair in zip(some, others, strict=True))


def near(output, other):
    return (output - other).abs().max() < 1e-5 * other.abs().max()


def like_saved(output, saved):
    """A file is in half precision."""
    return (output - saved[1]).abs().max() < 1e-2 * saved[1].abs().max()


def own_unet(base):
    own = copy.copy(base)
    own.unet = copy.deepcopy(base.unet)
    return own


@pytest.fixture
def base(tiny):
    return own_unet(tiny)


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """(file of a LoRA of rank 4 and alpha 2, what the UNet predicted with it)."""
    own = own_unet(tiny)
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
    random_lora(base, "a", rank=2)
    set_scale(base, "a", 1.5)
    scaled = predict(base)
    set_scale(base, "a")
    assert not near(predict(base), scaled)
    set_alpha(base, "a", 1.5)
    assert near(predict(base), scaled)
    for name, alpha, said in (("b", 1.0, "No LoRA named 'b'"), ("a", float("nan"), "number")):
        with pytest.raises(StylenbError, match=said):
            set_alpha(base, name, alpha)


def test_a_lora_is_trained_after_everything_was_switched_off(base):
    off = predict(base)
    for name, removed in (("first", ()), ("second", ("first", "second")), ("third", ())):
        optimizer = torch.optim.SGD(add_lora(base, name, rank=2), 1.0)
        base.predict_noise(NOISY, 500).square().mean().backward()
        optimizer.step()
        assert not torch.equal(predict(base), off)
        set_scale(base, None)
        for one in removed:
            remove_lora(base, one)


def test_a_name_that_torch_or_peft_would_stumble_over_is_one_sentence(base):
    random_lora(base, "other")
    for name in ["a.b", ".", "", "keys", "type", "0", "attn1", "weight", "lora_A", 7, None]:
        with pytest.raises(StylenbError, match="cannot be the name of a LoRA") as caught:
            add_lora(base, name)
        message = str(caught.value)
        assert "\n" not in message and message.endswith(", for example.")
        assert adapters(base) == ["other"]
        proposed = message.split("'")[-2]
        add_lora(base, proposed)
        remove_lora(base, proposed)


def test_a_file_may_have_any_name(base, saved, tmp_path):
    names = ["my style v1.5", "keys", "0", "attn1"]
    for name in names:
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(saved[0].read_bytes())
        set_scale(base, load_lora(base, path))
        assert like_saved(predict(base), saved)
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
    assert 0 < (predict(base) - before).abs().mean() < (full - before).abs().mean()
    for args, expected in ((("mine", 0), before), (("mine",), full), ((None,), before)):
        set_scale(base, *args)
        assert torch.equal(predict(base), expected)
    set_scale(base, "mine", 1.0)  # on again
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
    two_loras(base)
    remove_lora(base, "b")
    assert torch.equal(predict(base), before)


@pytest.mark.parametrize("rest, scale", [({"a": 0.7}, 1.0), ({"a": 0.35}, 2.0)])
def test_several_loras_are_summed_exactly(base, rest, scale):
    """Three at once, by the formula: W + 0.7 alpha A B of each, laid into the bare weights."""
    two_loras(base)
    random_lora(base, "c", rank=1, alpha=1.0, seed=3)
    set_scale(base, {**rest, "b": -0.4 / scale, "c": 0.3 / scale}, scale)
    assert all(layer.active_adapters == ["a", "b", "c"] for layer in layers_of(base))
    assert not any(p.requires_grad for p in base.unet.parameters())
    together = predict(base)
    set_scale(base, None)
    off = predict(base)
    for layer in layers_of(base):
        for name, factor in (("a", 0.7 * 0.5), ("b", -0.4 * 2.0), ("c", 0.3)):
            product = layer.lora_B[name].weight @ layer.lora_A[name].weight
            layer.get_base_layer().weight.data += factor * product
    by_hand = predict(base)
    assert (together - off).abs().max() > 0.01 and near(together, by_hand)


@pytest.mark.filterwarnings("error")
def test_of_several_active_ones_the_others_stay(base):
    two_loras(base)
    set_scale(base, "a", 0.7)
    alone = predict(base)
    set_scale(base, {"a": 0.7, "b": 0.5})
    assert not torch.equal(predict(base), alone)
    remove_lora(base, "b")
    assert torch.equal(predict(base), alone)
    assert not any(p.requires_grad for p in base.unet.parameters())


GROUPED = {
    "self": ("attn1", 0.5),
    "cross": ("attn2", -1.0),
    "down": ("down_blocks", 2.0),
    "mid": ("mid_block", 0.0),
    "up": ("up_blocks", 1.5),
}


@pytest.mark.parametrize("groups", [("self",), ("cross", "mid"), ("down", "up"), tuple(GROUPED)])
@pytest.mark.parametrize("name", ["a", {"a": 0.7, "b": -0.4}], ids=str)
def test_scales_by_group_are_laid_into_weights_by_hand(base, groups, name):
    """Each layer's update times the product of the factors that it falls under."""
    two_loras(base)
    set_scale(base, name, {group: GROUPED[group][1] for group in groups})
    assert not any(p.requires_grad for p in base.unet.parameters())
    grouped = predict(base)
    set_scale(base, name)
    assert not torch.allclose(predict(base), grouped)
    set_scale(base, None)
    off = predict(base)
    scales = {"a": 1.0} if name == "a" else name
    factors = set()
    for key, layer in lora_layers(base).items():
        factor = 1.0
        for part, its_factor in (GROUPED[group] for group in groups):
            factor *= its_factor if f"{part}." in key else 1.0
        factors.add(factor)
        for one, alpha in (("a", 0.5), ("b", 2.0)):
            product = layer.lora_B[one].weight @ layer.lora_A[one].weight
            layer.get_base_layer().weight.data += scales.get(one, 0) * alpha * factor * product
    assert len(factors) > 1
    by_hand = predict(base)
    assert (by_hand - off).abs().max() > 0.01 and near(grouped, by_hand)


# --- merging ---


def test_merging_lays_the_active_lora_into_the_weights(base):
    off = predict(base)
    random_lora(base, rank=2, alpha=2.0)
    before = weights(base)
    set_scale(base, "mine", 0.7)
    active = predict(base)
    merge_lora(base, "mine", 0.7)
    assert merged(base) == ["mine"] and near(predict(base), active)
    for layer, old in zip(layers_of(base), before, strict=True):
        added = 0.7 * 2.0 * layer.lora_B["mine"].weight @ layer.lora_A["mine"].weight
        assert torch.allclose(layer.get_base_layer().weight, old + added, atol=1e-6)
    set_scale(base, None)  # which takes nothing out of the weights
    assert near(predict(base), active) and (off - active).abs().max() > 0.01
    unmerge_lora(base)
    assert merged(base) == [] and adapters(base) == ["mine"] and near(predict(base), off)
    set_scale(base, "mine", 0.7)
    assert near(predict(base), active)


@pytest.mark.parametrize("name, scale", [({"a": 0.5, "b": -0.5}, 1.0), ("a", {"self": 0, "up": 2})])
def test_several_are_merged_and_by_group(name, scale, base):
    off = predict(base)
    two_loras(base)
    set_scale(base, name, scale)
    active = predict(base)
    merge_lora(base, name, scale)
    assert merged(base) == list(name) and near(predict(base), active)
    unmerge_lora(base)
    assert merged(base) == [] and near(predict(base), off)


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
        assert not equal(before, weights(base))
        unmerge_lora(base)
        for old, new, size in zip(before, weights(base), largest, strict=True):
            assert ((new - old).abs() <= 2 * DTYPES[dtype] * size).all()
        before = weights(base)


@pytest.mark.filterwarnings("error")
def test_a_merged_lora_that_covers_a_few_layers_comes_out_again(base, saved, tmp_path):
    random_lora(base, "other")
    path = tmp_path / "few.safetensors"
    save_file({k: v for k, v in load_file(saved[0]).items() if ".mid_block." in k}, path)
    off = weights(base)
    merge_lora(base, load_lora(base, path))
    changed = [not torch.equal(a, b) for a, b in zip(off, weights(base), strict=True)]
    assert any(changed) and not all(changed)
    unmerge_lora(base)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(off, weights(base), strict=True))


SWITCHED = [  # name, scale and merge
    (None,),
    ("b", 2.0),
    ({"a": 0.5, "b": -0.5}, {"up": 2.0}),
    ("b", 2.0, True),
    ({"a": 0.5, "b": -0.5}, {"up": 2.0}, True),
]
BEFORE = {
    "none": lambda base: set_scale(base, None),
    "one, by group": lambda base: set_scale(base, "a", {"self": 1 / 3, "up": -2}),
    "two": lambda base: set_scale(base, {"b": 1 / 3, "a": -0.7}),
    "one in training": lambda base: add_lora(base, "c", rank=1),
}


def state_of(base):
    """All that `switched` promises to give back, and what comes of it."""
    layers = lora_layers(base)
    return {
        "numbers": [x.numpy().tobytes() for x in (predict(base), *weights(base))],
        "active": {k: m.active_adapters for k, m in layers.items() if not m.disable_adapters},
        "scaling": {k: dict(m.scaling) for k, m in layers.items()},
        "trained": [name for name, p in base.unet.named_parameters() if p.requires_grad],
        "merged": merged(base),
    }


@pytest.mark.parametrize("before", BEFORE)
def test_switched_gives_everything_back(before, base):
    two_loras(base)
    for case in SWITCHED:
        set_scale(base, *case[:2])
        inside = predict(base)
        if "c" in adapters(base):
            remove_lora(base, "c")
        BEFORE[before](base)
        expected = state_of(base)
        with switched(base, *case):
            assert near(predict(base), inside) and bool(merged(base)) == (True in case)
        assert state_of(base) == expected
        with pytest.raises(KeyboardInterrupt), switched(base, *case):
            raise KeyboardInterrupt
        assert state_of(base) == expected


@pytest.mark.parametrize("merge", [False, True])
def test_what_cannot_be_switched_on_changes_nothing(merge, base):
    two_loras(base)
    layers_of(base)[-1].lora_B["b"].weight.data[0, 0] = torch.nan
    set_scale(base, "a", 0.3)
    expected = state_of(base)
    wrong = [("a", None, "must be a number"), ("nope", 1.0, "No LoRA named 'nope'")]
    for name, scale, said in wrong + [("b", 1.0, "NaN or infinity, .* was not merged")] * merge:
        with pytest.raises(StylenbError, match=said), switched(base, name, scale, merge):
            pass
        assert state_of(base) == expected


def test_a_lora_that_is_removed_while_another_is_switched_on(base):
    two_loras(base)
    set_scale(base, "b", 0.5)
    alone = predict(base)
    set_scale(base, {"a": 0.3, "b": 0.5})
    with switched(base, None):
        remove_lora(base, "a")
    assert adapters(base) == ["b"] and torch.equal(predict(base), alone)


def test_what_cannot_be_done_while_one_is_merged(base, saved, tmp_path):
    file = tmp_path / "file.safetensors"
    file.write_bytes(saved[0].read_bytes())
    random_lora(base, "other", seed=5)
    random_lora(base)
    merge_lora(base, "mine")
    output = predict(base)
    for call in (
        lambda: merge_lora(base, "mine"),
        lambda: merge_lora(base, "other"),
        lambda: set_scale(base, "mine", 0.5),
        lambda: set_scale(base, "other"),
        lambda: set_alpha(base, "mine", 2.0),
        lambda: add_lora(base, "new"),
        lambda: load_lora(base, file),
        lambda: remove_lora(base, "mine"),
        lambda: switched(base, "other").__enter__(),
        lambda: switched(base, None).__enter__(),
    ):
        with pytest.raises(StylenbError, match="'mine' is merged .* unmerge_lora.base. first.$"):
            call()
        assert adapters(base) == ["other", "mine"] and merged(base) == ["mine"]
        assert torch.equal(predict(base), output)


def test_a_merged_lora_is_saved_as_one_that_is_not(base, tmp_path):
    random_lora(base)
    plain = save_lora(base, tmp_path / "plain.safetensors", "mine")
    merge_lora(base, "mine", 0.5)
    after = save_lora(base, tmp_path / "merged.safetensors", "mine")
    a, b = load_file(plain), load_file(after)
    assert a.keys() == b.keys() and equal(a.values(), b.values())


def test_a_lora_that_is_not_finite_is_not_merged(base):
    off = predict(base)
    random_lora(base)
    layers_of(base)[-1].lora_B["mine"].weight.data[0, 0] = torch.nan
    with pytest.raises(StylenbError, match="NaN or infinity, .* was not merged"):
        merge_lora(base, "mine")
    assert merged(base) == [] and near(predict(base), off)


# --- files ---


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
    own = own_unet(tiny)
    name = load_lora(own, path)
    assert name == "mine"
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name="theirs")
    expected = lora_layers(base)
    for unet, there in ((own.unet, name), (pipe.unet, "theirs")):
        read = unet.peft_config[there]
        assert (read.r, read.lora_alpha) == (rank, alpha * rank)
        own.unet = unet
        assert lora_layers(own).keys() == expected.keys() and expected
        for key, layer in lora_layers(own).items():
            assert (layer.r[there], layer.scaling[there]) == (rank, expected[key].scaling["mine"])
            for part in ("lora_A", "lora_B"):
                weight = getattr(expected[key], part)["mine"].weight.half().float()
                assert torch.equal(getattr(layer, part)[there].weight.float(), weight)


def test_of_two_loras_each_is_saved_alone(base, tmp_path):
    for seed, name in enumerate(("ink", "ink2")):
        random_lora(base, name, rank=seed + 1, seed=seed)
    for rank, name in enumerate(("ink", "ink2"), 1):
        state = load_file(save_lora(base, tmp_path / f"{name}.safetensors", name))
        assert len(state) == 2 * len(layers_of(base))
        assert {v.shape[0 if ".lora_A." in k else 1] for k, v in state.items()} == {rank}


@pytest.mark.parametrize("before", BEFORE)
def test_loading_leaves_what_was_active(before, base, saved):
    two_loras(base)
    BEFORE[before](base)
    expected, random = state_of(base), torch.get_rng_state()
    name = load_lora(base, saved[0])
    assert torch.equal(torch.get_rng_state(), random)
    found = state_of(base)
    for scaling in found["scaling"].values():
        del scaling[name]
    assert found == expected


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=repr)
def test_what_is_not_the_files_fault_is_not_said_to_be(error, base, saved, monkeypatch):
    random_lora(base, "other")
    expected = state_of(base)

    def fail(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises(type(error)) as caught:
        patch.setattr(base, "predict_noise", fail, raising=False)
        load_lora(base, saved[0])
    assert caught.value is error and adapters(base) == ["other"]
    assert state_of(base) == expected


def test_the_names_of_older_files_are_read(base, saved, tmp_path):
    set_scale(base, load_lora(base, saved[0]), 0.5)  # without metadata, alpha is 1
    expected = predict(base)
    path = tmp_path / "old.safetensors"
    state = load_file(saved[0]).items()
    older = {k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in state}
    save_file(older, path)
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
    with pytest.raises(StylenbError, match="expected are A and B of one rank"):
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
    # which loads in inference mode
    stylenb.stylize(gradient, saved[0], num_inference_steps=2, base=base)
    set_scale(base, "mine")
    noisy = NOISY.clone().requires_grad_()
    base.predict_noise(noisy, 500).sum().backward()
    assert noisy.grad.abs().sum() > 0


def spoil(change=dict, **config):
    """A writer of the good file with its tensors changed, or something else in its metadata."""

    def write(good, path):
        with safe_open(good, "pt") as file:
            kept = json.loads(file.metadata()["lora_adapter_metadata"])
        kept |= {f"unet.{key}": value for key, value in config.items()}
        state = {k: v.contiguous() for k, v in change(load_file(good)).items()}
        save_file(state, path, {"lora_adapter_metadata": json.dumps(kept)})

    return write


def each(change, part=""):
    """The same of every tensor in whose name `part` stands."""
    return spoil(lambda state: {k: change(v) if part in k else v for k, v in state.items()})


def both(a, b):
    return spoil(lambda state: {k: (a if ".lora_A." in k else b)(v) for k, v in state.items()})


def rename(old, new):
    return spoil(lambda state: {k.replace(old, new): v for k, v in state.items()})


def instead(*keys, more=False):
    return spoil(lambda state: (state if more else {}) | {k: torch.ones(4, 16) for k in keys})


def pickled(**options):
    return lambda good, path: torch.save(load_file(good), path, **options)


KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight"
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
    "a bare pickle": (
        lambda good, path: path.write_bytes(pickle.dumps([1.0], 4)),
        "a pickled file",
    ),
    "no weights": (spoil(lambda state: {}), "no weights", "two matrices per layer"),
    "a wider base": (
        both(lambda a: torch.cat([a, a], 1), lambda b: torch.cat([b, b])),
        "does not fit",
        "A is (4, 32)",
        "W is (16, 16)",
    ),
    "flat": (each(torch.flatten), "does not fit", "A is (64,)", "W is (16, 16)"),
    "a deeper base": (rename("mid_block", "down_blocks.7"), "16 of its 64 keys", "_blocks.7"),
    "a text encoder's": (rename("unet.", "text_encoder."), "the text encoder alone", "the UNet"),
    "no LoRA": (rename(".lora_A.", "."), "32 of its 64 keys", "to_k.weight'", "expected"),
    "one key more": (
        instead("unet.conv_norm_out.lora_A.weight", more=True),
        "1 of its 65 keys",
        "conv_norm_out",
        "expected",
    ),
    "another family": (instead(FLUX), "1 of its 1 keys", FLUX),
    "SDXL, deep": (instead(DEEP), "Stable Diffusion XL", DEEP, "v1.5"),
    "SDXL, kohya": (instead(KOHYA, DEEP_KOHYA), "XL", DEEP_KOHYA, "v1.5"),
    "SDXL, diffusers": (instead("text_encoder_2.a.lora_A.weight"), "XL", "text_encoder_2", "v1.5"),
    "SDXL, size": (instead("unet.add_embedding.linear_1.lora_A.weight"), "XL", "add_emb", "v1.5"),
    "two ranks": (
        each(lambda b: b[:, :2], ".lora_B."),
        "A is (4, 16), B is (16, 2)",
        "of one rank",
    ),
    "half of each": (
        spoil(lambda state: {k: v for k, v in state.items() if ".lora_A." not in k}),
        "(B is (16, 4)",
        "expected are A and B",
    ),
    "another rank told": (
        both(lambda a: a[:2], lambda b: b[:, :2]),
        "not a whole LoRA",
        "size mismatch",
    ),
    "metadata that is none": (spoil(nonsense=1), "not a whole LoRA"),
    "no story": (
        lambda good, path: save_file(load_file(good), path, {"stylenb": "{"}),
        "not a whole LoRA",
    ),
    "B is zero": (each(torch.zeros_like, ".lora_B."), "changes nothing", "B is zero", "0 steps"),
    "A is zero": (
        each(torch.zeros_like, ".lora_A."),
        "changes nothing",
        "the largest number in A 0 and",
    ),
    "alpha is zero": (spoil(lora_alpha=0), "changes nothing", "alpha is 0"),
    "not finite": (each(lambda b: b * torch.nan, ".lora_B."), "predicts NaN or infinity"),
}


@pytest.fixture(scope="module")
def active(tiny):
    """A base with an active LoRA."""
    own = own_unet(tiny)
    random_lora(own, "other", seed=3)
    set_scale(own, "other", 0.7)
    return own


def refused(base, case, saved, folder):
    """The sentence about a spoilt file, which leaves the base as it was."""
    before, loaded = predict(base), adapters(base)
    write, *parts = SPOILT[case]
    write(saved[0], folder / "mine.safetensors")
    with pytest.raises(StylenbError) as caught:
        load_lora(base, folder / "mine.safetensors")
    message = str(caught.value)
    assert all(part in message for part in parts) and "mine.safetensors" in message, message
    assert "\n" not in message and message.endswith(".")
    assert adapters(base) == loaded and torch.equal(predict(base), before)
    assert not lora_layers(base, "mine")


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_file_is_one_sentence_and_leaves_what_is_active(case, active, saved, tmp_path):
    refused(active, case, saved, tmp_path)


def test_a_spoilt_file_leaves_a_base_without_any(base, saved, tmp_path):
    for case in ("two ranks", "another rank told", "B is zero"):  # before, in and after peft
        refused(base, case, saved, tmp_path)
        set_scale(base, load_lora(base, saved[0]))  # the good file of that name
        assert like_saved(predict(base), saved)
        remove_lora(base, "mine")


def test_files_of_another_kind_are_refused(base, tmp_path):
    for suffix in (".pt", ".bin", ".ckpt"):
        torch.save({}, tmp_path / f"style{suffix}")
        with pytest.raises(
            StylenbError, match=f"style{suffix} is not a .safetensors file, it is pi"
        ):
            load_lora(base, tmp_path / f"style{suffix}")
    (tmp_path / "style.txt").write_text("Dear reader")
    with pytest.raises(StylenbError, match="style.txt is not a .safetensors file: find"):
        load_lora(base, tmp_path / "style.txt")


BAD_CALLS = [
    (lambda b: load_lora(b, {"ink": 1}), "given as {style: weight"),
    (lambda b: load_lora(b, "nope"), "no style 'nope'"),
    (lambda b: load_lora(b, "gone/x.safetensors"), "no style 'gone"),
    (lambda b: add_lora(b, "new", rank=0), "from 1 up, not 0"),
    (lambda b: add_lora(b, "new", rank=2.5), "not 2.5"),
    (lambda b: add_lora(b, "new", alpha=float("nan")), "alpha is a number"),
    (lambda b: add_lora(b, "taken"), "'taken' already"),
    (lambda b: set_scale(b, "nope", 1.0), "'nope'"),
    (lambda b: add_lora(b, "v1.5"), "'v1_5'"),
    (lambda b: set_scale(b, {"taken": 1, "nope": 1}), "'nope'"),
    (lambda b: set_scale(b, "taken", float("nan")), "it is 1.0 x nan"),
    (lambda b: set_scale(b, {"taken": "much"}), "it is 'much' x 1.0"),
    (lambda b: set_scale(b, "taken", None), "it is 1.0 x None"),
    (lambda b: set_scale(b, "taken", {"text": 1}), "choose self, cross, down, mid"),
    (lambda b: set_scale(b, "taken", {"up": float("nan")}), "group 'up' must be a"),
    (lambda b: merge_lora(b, "nope"), "'nope'"),
    (lambda b: merge_lora(b, None), "needs the name"),
    (lambda b: merge_lora(b, "taken", float("inf")), "it is 1.0 x inf"),
    (lambda b: unmerge_lora(b), "nothing to unmerge"),
    (lambda b: save_lora(b, "x.safetensors", "nope"), "'nope'"),
]


def test_a_bad_call_is_one_sentence(base):
    add_lora(base, "taken", rank=1)
    for call, part in BAD_CALLS:
        with pytest.raises(StylenbError) as caught:
            call(base)
        message = str(caught.value)
        assert part in message and "\n" not in message and message.endswith("."), message
        assert adapters(base) == ["taken"] and merged(base) == []


def test_an_unknown_style_names_the_choices(base, tmp_path, monkeypatch, saved):
    monkeypatch.setattr("stylenb.weights.DATA", tmp_path)
    assert stylenb.available_styles() == {}
    (tmp_path / "loras").mkdir()
    for name in ("ink", "neon"):
        (tmp_path / "loras" / f"{name}.safetensors").write_bytes(saved[0].read_bytes())
    assert list(stylenb.available_styles()) == ["ink", "neon"]
    with pytest.raises(StylenbError, match="no style 'inc': choose ink, neon or give"):
        load_lora(base, "inc")
    assert load_lora(base, "neon") == "neon"
