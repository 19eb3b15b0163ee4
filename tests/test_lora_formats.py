"""LoRA files of other programs: their names and kinds, against weights that are changed by hand."""

import json

import pytest
import torch
from safetensors.torch import save_file

from stylenb import StylenbError, generate, load, load_lora, remove_lora, save_lora, set_scale
from stylenb.lora import adapters
from stylenb.lora_formats import as_lora, flat, split_key, unet_names
from stylenb.text_to_image import pipeline

WANTED = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.0.proj")
RANK, ALPHA = 2, 3.0


@pytest.fixture
def base(tiny_folder):
    return load(tiny_folder, device="cpu")


def layers(base, wanted=WANTED):
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    modules = base.unet.named_modules()
    return {k: m for k, m in modules if isinstance(m, kinds) and k.endswith(wanted)}


def randn(*shape, seed=0):
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrices(base, wanted=WANTED):
    """A and B of every layer, as files hold them."""
    found = {}
    for i, (key, module) in enumerate(layers(base, wanted).items()):
        out, *rest = module.weight.shape
        a = randn(RANK, *rest, seed=2 * i)
        found[key] = a, randn(out, RANK, *(1 for _ in rest[1:]), seed=2 * i + 1)
    return found


def predict(base):
    with torch.no_grad():
        return base.predict_noise(torch.randn(1, 4, 8, 8, generator=torch.manual_seed(5)), 400)


def by_hand(base, differences, part="unet"):
    """What is predicted when W + difference stands in the weights, which are put back."""
    modules = dict(getattr(base, part).named_modules())
    kept = {key: modules[key].weight.data for key in differences}
    for key, difference in differences.items():
        modules[key].weight.data = kept[key] + difference.reshape(kept[key].shape)
    out = predict(base)
    for key, weight in kept.items():
        modules[key].weight.data = weight
    return out


def product(a, b, scale=1.0):
    return scale * b.flatten(1) @ a.flatten(1)


def loaded(base, path, scale=1.0):
    """What is predicted with a file; the base is afterwards as it was."""
    name = load_lora(base, path)
    set_scale(base, name, scale)
    out = predict(base)
    remove_lora(base, name)
    base.unet.unload_lora()
    return out


def close(a, b, plain):
    assert (b - plain).abs().max() > 1e-3
    assert (a - b).abs().max() < 1e-4 * (b - plain).abs().max() + 1e-5


def kohya(key):
    return "lora_unet_" + key.replace(".", "_")


OF_2023 = {f"to_{x}": f"to_{x}_lora" for x in "qkv"} | {"to_out.0": "to_out_lora"}


def processor(key):
    attention, _, part = key.partition(".to_")
    return f"{attention}.processor.{OF_2023['to_' + part]}"


# how a program calls A and B of a layer, and its alpha where it writes one
NAMES = {
    "diffusers": ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", None),
    "diffusers of 2024": ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight", None),
    "save_lora_adapter": ("{}.lora_A.weight", "{}.lora_B.weight", None),
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight", None),
    "peft, nested": ("unet.base_model.model.{}.lora_A.weight",) * 2 + (None,),
    "its adapter's name": ("unet.{}.lora_A.mine.weight", "unet.{}.lora_B.mine.weight", None),
    "dots": ("unet.{}.lora_down.weight", "unet.{}.lora_up.weight", "unet.{}.alpha"),
    "kohya with dots": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", None),
}
NAMES["peft, nested"] = tuple(f"unet.base_model.model.{{}}.lora_{part}.weight" for part in "AB") + (
    None,
)


@pytest.mark.parametrize("style", NAMES)
def test_whatever_a_program_calls_the_layers(style, base, tmp_path):
    first, second, alpha = NAMES[style]
    plain, found = predict(base), matrices(base)
    state = {first.format(k): a for k, (a, _) in found.items()}
    state |= {second.format(k): b for k, (_, b) in found.items()}
    if alpha:
        state |= {alpha.format(k): torch.tensor(ALPHA) for k in found}
    scale = ALPHA / RANK if alpha else 1.0  # where no alpha is told, the course's is 1
    expected = by_hand(base, {k: product(*ab, scale) for k, ab in found.items()})
    save_file(state, tmp_path / "x.safetensors")
    close(loaded(base, tmp_path / "x.safetensors"), expected, plain)


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_attention_processors_of_2023(prefix, base, tmp_path):
    plain, found = predict(base), matrices(base, tuple(OF_2023))
    state = {f"{prefix}{processor(k)}.down.weight": a for k, (a, _) in found.items()}
    state |= {f"{prefix}{processor(k)}.up.weight": b for k, (_, b) in found.items()}
    save_file(state, tmp_path / "x.safetensors")
    expected = by_hand(base, {k: product(*ab) for k, ab in found.items()})
    close(loaded(base, tmp_path / "x.safetensors"), expected, plain)


ORIGINAL = {  # of SD v1.5 with two ResNets in a block, from its config v1-inference.yaml
    "conv_in": "input_blocks_0_0",
    "down_blocks.0.resnets.0.conv1": "input_blocks_1_0_in_layers_2",
    "down_blocks.0.attentions.0.proj_in": "input_blocks_1_1_proj_in",
    "down_blocks.0.attentions.1.proj_in": "input_blocks_2_1_proj_in",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks_4_0_skip_connection",
    "down_blocks.2.attentions.1.proj_out": "input_blocks_8_1_proj_out",
    "down_blocks.3.resnets.1.time_emb_proj": "input_blocks_11_0_emb_layers_1",
    "mid_block.resnets.0.conv2": "middle_block_0_out_layers_3",
    "mid_block.attentions.0.proj_in": "middle_block_1_proj_in",
    "mid_block.resnets.1.conv1": "middle_block_2_in_layers_2",
    "up_blocks.0.resnets.2.conv1": "output_blocks_2_0_in_layers_2",
    "up_blocks.0.upsamplers.0.conv": "output_blocks_2_1_conv",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "output_blocks_3_1_transformer_"
    "blocks_0_attn1_to_q",
    "up_blocks.1.upsamplers.0.conv": "output_blocks_5_2_conv",
    "up_blocks.3.attentions.2.proj_in": "output_blocks_11_1_proj_in",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "conv_out": "out_2",
}


def test_block_names_of_the_original_code():
    names = unet_names(ORIGINAL, per_block=2)
    assert {layer: names[name] for layer, name in ORIGINAL.items()} == {k: k for k in ORIGINAL}
    assert flat("model.diffusion_model.input_blocks.1.1.proj_in") == "input_blocks_1_1_proj_in"


@pytest.mark.parametrize("start", ["lora_unet_", "diffusion_model."])
def test_a_file_in_the_original_names(start, base, tmp_path):
    """This base has one ResNet in a block, and attention in the first block alone."""
    plain = predict(base)
    wanted = ("down_blocks.0.attentions.0.proj_in", "up_blocks.1.attentions.1.proj_in")
    found = matrices(base, wanted)
    names = dict(
        zip(wanted, ("input_blocks.1.1.proj_in", "output_blocks.3.1.proj_in"), strict=True)
    )
    if start == "lora_unet_":
        names = {key: name.replace(".", "_") for key, name in names.items()}
    state = {f"{start}{names[k]}.lora_down.weight": a for k, (a, _) in found.items()}
    state |= {f"{start}{names[k]}.lora_up.weight": b for k, (_, b) in found.items()}
    save_file(state, tmp_path / "x.safetensors")
    expected = by_hand(base, {k: product(*ab) for k, ab in found.items()})
    close(loaded(base, tmp_path / "x.safetensors"), expected, plain)


def test_1_x_1_convolutions_as_matrices_and_the_reverse(base, tmp_path):
    plain, found = predict(base), matrices(base)
    state = {}
    for key, pair in found.items():
        for part, value in zip(("down", "up"), pair, strict=True):
            other = value.flatten(1) if value.ndim == 4 else value[:, :, None, None]
            state[f"{kohya(key)}.lora_{part}.weight"] = other.contiguous()
    save_file(state, tmp_path / "x.safetensors")
    expected = by_hand(base, {k: product(*ab) for k, ab in found.items()})
    close(loaded(base, tmp_path / "x.safetensors"), expected, plain)


# ------------------------------------------------------------------------------------ other kinds


def loha(weight, i):
    out, wide = weight.flatten(1).shape
    parts = {
        "hada_w1_a": randn(out, RANK, seed=i),
        "hada_w1_b": randn(RANK, wide, seed=i + 1),
        "hada_w2_a": randn(out, RANK, seed=i + 2),
        "hada_w2_b": randn(RANK, wide, seed=i + 3),
    }
    one, two = (parts[f"hada_w{n}_a"] @ parts[f"hada_w{n}_b"] for n in "12")
    return {**parts, "alpha": torch.tensor(ALPHA)}, one * two * ALPHA / RANK


def lokr(weight, i):
    out, wide = weight.flatten(1).shape
    small, one, two = randn(4, 4, seed=i), randn(out // 4, RANK, seed=i), randn(RANK, wide // 4)
    parts = {"lokr_w1": small, "lokr_w2_a": one, "lokr_w2_b": two, "alpha": torch.tensor(ALPHA)}
    return parts, torch.kron(small, one @ two) * ALPHA / RANK


def whole_lokr(weight, i):
    out, wide = weight.flatten(1).shape
    small, large = randn(4, 4, seed=i), randn(out // 4, wide // 4, seed=i)
    # LyCORIS leaves alpha out of account where both are whole
    return {"lokr_w1": small, "lokr_w2": large, "alpha": torch.tensor(7.0)}, torch.kron(
        small, large
    )


def difference(weight, i):
    return {"diff": randn(*weight.shape, seed=i)}, randn(*weight.shape, seed=i)


def dora(weight, i, axis=0):
    out, wide = weight.flatten(1).shape
    a, b = randn(RANK, wide, seed=i), randn(out, RANK, seed=i + 1)
    whole = weight.flatten(1) + product(a, b, ALPHA / RANK)
    lengths = 1 + torch.rand(weight.shape[axis], generator=torch.manual_seed(i))
    lengths = lengths[:, None] if axis == 0 else lengths[None]
    parts = {"lora_down.weight": a, "lora_up.weight": b, "dora_scale": lengths}
    turned = lengths * whole / whole.norm(dim=1 - axis, keepdim=True)
    return {**parts, "alpha": torch.tensor(ALPHA)}, turned - weight.flatten(1)


def dora_of_columns(weight, i):
    return dora(weight, i, axis=1)


def oft(weight, i):
    """The rotations one by one; alpha limits the length of all of their generators."""
    blocks = randn(4, len(weight) // 4, len(weight) // 4, seed=i)
    skew = blocks - blocks.transpose(1, 2)
    alpha = 0.01 * skew.norm().item()
    skew = skew * min(1.0, alpha * len(weight) / skew.norm().item())
    rows = []
    for one, part in zip(skew, weight.flatten(1).chunk(4), strict=True):
        eye = torch.eye(len(one))
        rows.append(((eye + one) @ torch.linalg.inv(eye - one)).T @ part)
    parts = {"oft_blocks": blocks, "alpha": torch.tensor(alpha)}
    return parts, torch.cat(rows) - weight.flatten(1)


KINDS = [loha, lokr, whole_lokr, difference, dora, dora_of_columns, oft]


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_exact_as_a_lora(kind, base, tmp_path):
    plain, state, expected = predict(base), {}, {}
    for i, (key, module) in enumerate(layers(base, ("to_q", "ff.net.0.proj")).items()):
        parts, expected[key] = kind(module.weight.detach(), 10 * i)
        state |= {f"{kohya(key)}.{part}": value for part, value in parts.items()}
    save_file(state, tmp_path / "x.safetensors")
    close(loaded(base, tmp_path / "x.safetensors"), by_hand(base, expected), plain)
    half = by_hand(base, {key: value / 2 for key, value in expected.items()})
    close(loaded(base, tmp_path / "x.safetensors", 0.5), half, plain)


def test_a_middle_matrix_goes_into_a():
    """LoCon: a 1 x 1 convolution, a 3 x 3 one and a 1 x 1 one, one after the other."""
    down, middle, up = randn(2, 6, 1, 1), randn(2, 2, 3, 3, seed=1), randn(8, 2, 1, 1, seed=2)
    a, b, alpha = as_lora({"A": down, "mid": middle, "B": up}, torch.zeros(8, 6, 3, 3))
    assert (a.shape, b.shape, alpha) == ((2, 6, 3, 3), (8, 2, 1, 1), None)
    conv, x = torch.nn.functional.conv2d, randn(1, 6, 5, 5, seed=3)
    expected = conv(conv(conv(x, down), middle), up)
    assert torch.allclose(conv(conv(x, a), b), expected, atol=1e-6)


def test_a_core_between_the_matrices():
    """The Tucker form of LoHa and LoKr for convolutions, summed out number by number."""
    core, a, b = randn(2, 2, 3, 3), randn(2, 8, seed=1), randn(2, 6, seed=2)
    names = {"hada_w1_a": a, "hada_w1_b": b, "hada_t1": core}
    names |= {"hada_w2_a": a, "hada_w2_b": b, "hada_t2": core}
    one = sum(
        core[i, j] * a[i, :, None, None, None] * b[j, None, :, None, None]
        for i in range(2)
        for j in range(2)
    )
    found = as_lora(names, torch.zeros(8, 6, 3, 3))
    assert torch.allclose(product(*found[:2]).reshape(8, 6, 3, 3), one * one, atol=1e-6)


def test_alpha_that_the_metadata_tells_counts_for_dora_too(base, tmp_path):
    plain, state, expected = predict(base), {}, {}
    for i, (key, module) in enumerate(layers(base, ("to_q",)).items()):
        parts, expected[key] = dora(module.weight.detach(), 10 * i)
        state[f"unet.{key}.lora_A.weight"] = parts["lora_down.weight"]
        state[f"unet.{key}.lora_B.weight"] = parts["lora_up.weight"]
        state[f"unet.{key}.lora_magnitude_vector"] = parts["dora_scale"].flatten()
    config = {"unet.r": RANK, "unet.lora_alpha": ALPHA, "unet.target_modules": ["to_q"]}
    save_file(state, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    close(loaded(base, tmp_path / "x.safetensors"), by_hand(base, expected), plain)


REFUSED = {
    "IA3": ("lora_unet_a.on_input", "is IA3"),
    "cloneofsimo": ("unet:0:up", "first LoRA scripts"),
    "checkpoint": ("model.diffusion_model.input_blocks.0.0.weight", "a whole model in a single"),
    "bias": ("lora_unet_conv_in.diff_b", "changes biases"),
    "GLoRA": ("lora_unet_conv_in.a1.weight", "another kind"),
    "peft's OFT": ("base_model.model.conv_in.oft_R.weight", "another kind"),
    "SDXL": ("lora_te2_text_model_x.alpha", "Stable Diffusion XL"),
    "nothing known": ("model.layers.0.weight", "made for another model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_lora_is_refused_by_its_name(case, base, tmp_path):
    key, part = REFUSED[case]
    save_file({key: torch.ones(4, 4)}, tmp_path / "x.safetensors")
    with pytest.raises(StylenbError, match=part) as caught:
        load_lora(base, tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert adapters(base) == []


def test_a_kind_of_peft_that_is_not_read_is_named(base, tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    save_file({"base_model.model.conv_in.hada_w1_a": torch.ones(2, 2)}, path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LOHA", "r": 2, "alpha": 4}')
    with pytest.raises(StylenbError, match="is a LOHA of peft"):
        load_lora(base, path)


@pytest.mark.parametrize("method", ["dreambooth", "textual inversion"])
def test_what_this_course_saved_otherwise_is_named(method, base, tmp_path):
    told = {"stylenb": json.dumps({"method": method})}
    save_file({"unet.conv_in.weight": torch.ones(2)}, tmp_path / "x.safetensors", told)
    with pytest.raises(StylenbError, match=f"is a {method}, no LoRA: load_"):
        load_lora(base, tmp_path / "x.safetensors")


def test_a_key_says_its_layer_and_its_part():
    assert split_key("lora_unet_mid_block_x.lora_down.weight") == ("mid_block_x", "A")
    assert split_key("unet.a.b.lora_magnitude_vector.default.weight") == ("a_b", "dora_scale")
    assert split_key("text_encoder.a.fc1.lora_linear_layer.up.weight") == ("a_fc1", "B")
    assert split_key("unet.conv_in.weight") is None


# ------------------------------------------------------------------------------- the text encoder


def text_layers(base):
    modules = base.text_encoder.named_modules()
    return {k: m for k, m in modules if isinstance(m, torch.nn.Linear)}


def write_both(base, path, rank=RANK):
    """A file of kohya's scripts that changes the text encoder too, and what it adds there."""
    state, text = {}, {}
    for key, (a, b) in matrices(base).items():
        state |= {f"{kohya(key)}.lora_down.weight": a, f"{kohya(key)}.lora_up.weight": b}
        state[f"{kohya(key)}.alpha"] = torch.tensor(ALPHA)
    for i, (key, module) in enumerate(text_layers(base).items()):
        a, b = randn(rank, module.in_features, seed=i), randn(module.out_features, rank, seed=i + 9)
        name = "lora_te_text_model_" + key.removeprefix("text_model.").replace(".", "_")
        state |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}
        state[f"{name}.alpha"] = torch.tensor(ALPHA)
        text[key] = product(a, b, ALPHA / rank)
    save_file(state, path)
    return text


def embedded(base, text, scale):
    modules, kept = text_layers(base), {}
    for key, added in text.items():
        kept[key] = modules[key].weight.data
        modules[key].weight.data = kept[key] + scale * added
    with torch.no_grad():
        found = base.embed("a house")
    for key, weight in kept.items():
        modules[key].weight.data = weight
    return found


def test_the_text_encoder_s_part_counts_where_a_prompt_is_embedded(base, tmp_path, gradient):
    text = write_both(base, tmp_path / "both.safetensors")
    plain = base.empty.clone()
    with pytest.warns(UserWarning, match="text encoder too: that is used where a prompt is emb"):
        name = load_lora(base, tmp_path / "both.safetensors")
    weights = {key: module.weight.clone() for key, module in text_layers(base).items()}
    how = {"num_inference_steps": 2, "guidance_scale": 1.0}
    set_scale(base, name, 0.5)
    drawn = generate(base, "a house", **how)
    (latents,) = [
        pipeline(base)(
            prompt_embeds=embedded(base, text, 0.5),
            generator=[torch.Generator().manual_seed(0)],
            output_type="latent",
            width=64,
            height=64,
            **how,
        ).images
    ]
    from stylenb.photos import to_pictures

    with torch.no_grad():
        assert drawn == to_pictures(base.decode(latents))
    assert torch.equal(base.embed("a house"), base.with_prompt("a house")._embedding)
    set_scale(base, None)
    assert generate(base, "a house", **how) != drawn
    assert torch.equal(base.empty, plain)  # "no prompt" stays what it was
    assert all(torch.equal(m.weight, weights[k]) for k, m in text_layers(base).items())
    with pytest.warns(UserWarning, match="adds to the text encoder is not saved"):
        save_lora(base, tmp_path / "again.safetensors", name)


def test_stylize_with_a_prompt_reads_it_with_the_text_encoder_s_part(base, tmp_path, gradient):
    from stylenb import stylize

    text = write_both(base, tmp_path / "both.safetensors")
    how = {"num_inference_steps": 2, "strength": 1.0, "solver": "ddim"}
    with pytest.warns(UserWarning, match="text encoder too"):
        prompted = base.with_prompt("a house")
        before = prompted._embedding
        drawn = stylize(gradient, tmp_path / "both.safetensors", base=prompted, **how)
    assert prompted._embedding is before
    expected = base.with_prompt("a house")
    expected._embedding = embedded(base, text, 1.0)
    base.unet.peft_config["both"].text = {}
    assert drawn == stylize(gradient, tmp_path / "both.safetensors", base=expected, **how)
    assert drawn != stylize(gradient, tmp_path / "both.safetensors", base=prompted, **how)


def test_a_text_encoder_of_another_kind_leaves_its_part_out(base, tmp_path):
    write_both(base, tmp_path / "both.safetensors")
    base.drop_text_encoder()
    with pytest.warns(UserWarning, match="left out, as this base has another text encoder, or"):
        load_lora(base, tmp_path / "both.safetensors")


# ---------------------------------------------------------------------------------- names of files


def test_two_files_of_one_name_are_two_loras(base, tmp_path):
    state = {
        f"unet.{k}.lora_{p}.weight": m
        for k, ab in matrices(base).items()
        for p, m in zip("AB", ab, strict=True)
    }
    outputs = []
    for folder, sign in (("one", 1), ("two", -1)):
        path = tmp_path / folder / "pytorch_lora_weights.safetensors"
        path.parent.mkdir()
        save_file({k: (sign if ".lora_A." in k else 1) * v for k, v in state.items()}, path)
        set_scale(base, load_lora(base, path))
        outputs.append(predict(base))
    assert adapters(base) == ["pytorch_lora_weights", "pytorch_lora_weights_2"]
    for folder, expected in zip(("one", "two"), outputs, strict=True):
        path = tmp_path / folder / "pytorch_lora_weights.safetensors"
        set_scale(base, load_lora(base, path))
        assert torch.equal(predict(base), expected)
    assert len(adapters(base)) == 2
    save_file({k: 2 * v for k, v in state.items()}, path)  # written since: it is read again
    set_scale(base, load_lora(base, path))
    assert len(adapters(base)) == 2 and not torch.allclose(predict(base), outputs[1])


def test_a_path_as_a_shell_reads_it(base, tmp_path, monkeypatch):
    state = {
        f"unet.{k}.lora_{p}.weight": m
        for k, ab in matrices(base).items()
        for p, m in zip("AB", ab, strict=True)
    }
    save_file(state, tmp_path / "MINE.SAFETENSORS")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LORAS", str(tmp_path))
    assert (
        load_lora(base, "~/MINE.SAFETENSORS")
        == "MINE"
        == load_lora(base, "$LORAS/MINE.SAFETENSORS")
    )
