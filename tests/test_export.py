"""Export: the files that diffusers, ComfyUI and A1111 read, and reading them back."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import stylenb
from stylenb import StylenbError, export_lora, load_lora, set_scale
from stylenb.inference import denoise
from stylenb.lora import adapters, add_lora, lora_layers, remove_lora
from stylenb.lora_files import about_lora, save_lora
from stylenb.weights import DATA

NOISY = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
NUMBERS = [(4, 2.0), (3, 0.3), (1, -0.5), (8, 1.0)]
ONE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def own_unet(base):
    own = copy.copy(base)
    own.unet = copy.deepcopy(base.unet)
    return own


@pytest.fixture
def base(tiny):
    return own_unet(tiny)


def fill(base, name, seed=0):
    """Weights that half precision holds exactly, in an adapter that is there."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(base, name).values():
        for part in (layer.lora_A, layer.lora_B):
            weight = part[name].weight
            weight.data = (torch.randn(weight.shape, generator=generator) * 0.3).half().float()
    base.unet.requires_grad_(False)


def uneven(base, name="mine"):
    """An adapter with ranks and alphas of their own in some layers, a convolution among them."""
    config = LoraConfig(
        r=4,
        lora_alpha=2.0,
        target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj_in"],
        rank_pattern={"attn1.to_q": 2, "attn2.to_v": 6},
        alpha_pattern={"attn1.to_q": 0.3, "to_k": 7.0, "proj_in": 1.5},
    )
    base.unet.add_adapter(config, adapter_name=name)
    fill(base, name)


@torch.no_grad()
def predict(base):
    return base.predict_noise(NOISY, 500)


@pytest.fixture
def files(base, tmp_path):
    add_lora(base, "mine", rank=4, alpha=2.0)
    fill(base, "mine")
    return export_lora(base, "mine", tmp_path / "new" / "folder", {"steps": 3})


def test_two_files_and_their_keys(base, files, tmp_path):
    assert [path.name for path in files] == ["mine.safetensors", "mine.kohya.safetensors"]
    assert sorted(files) == sorted((tmp_path / "new" / "folder").iterdir())
    plain, kohya = map(load_file, files)
    layers = lora_layers(base, "mine")
    assert f"unet.{next(iter(layers))}.lora_A.weight" in plain
    names = {f"lora_unet_{key.replace('.', '_')}" for key in layers}
    parts = ("lora_down.weight", "lora_up.weight", "alpha")
    assert set(kohya) == {f"{name}.{part}" for name in names for part in parts}
    assert {ONE, ONE.replace("to_q", "to_out_0"), ONE.replace("attn1", "attn2")} <= names
    assert kohya[f"{ONE}.lora_down.weight"].shape == (4, 16)
    assert kohya[f"{ONE}.lora_up.weight"].shape == (16, 4)
    for key, value in kohya.items():
        if key.endswith(".alpha"):
            assert value.shape == () and value.dtype == torch.float32 and value == 2.0 * 4
        else:
            assert value.dtype == torch.float16


def test_what_the_kohya_file_tells(files):
    with safe_open(files[1], "pt") as file:
        told = file.metadata()
    assert json.loads(told.pop("stylenb")) == {"base": "tiny-sd", "steps": 3}
    assert told == {
        "format": "pt",
        "ss_output_name": "mine",
        "ss_sd_model_name": "tiny-sd",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "8.0",
        "ss_base_model_version": "sd_v1",
    }
    assert about_lora(files[0]) == about_lora(files[1]) == {"base": "tiny-sd", "steps": 3}


def test_only_a_base_of_the_v1_kind_is_called_so(base, tmp_path):
    add_lora(base, "mine", rank=1)
    base.unet.register_to_config(cross_attention_dim=128)
    with safe_open(export_lora(base, "mine", tmp_path)[1], "pt") as file:
        assert "ss_base_model_version" not in file.metadata()


def read_back(base, path, tiny):
    """Another base with the file as its only LoRA, which is active; (it, the LoRA's name)."""
    other = own_unet(tiny)
    name = load_lora(other, path)
    set_scale(other, name)
    same_layers(base, "mine", other, name)
    assert torch.equal(predict(other), predict(base))
    return other, name


@pytest.mark.parametrize("rank, alpha", NUMBERS)
def test_a_round_trip_keeps_rank_alpha_and_weights(rank, alpha, base, tiny, tmp_path):
    add_lora(base, "mine", rank, alpha)
    fill(base, "mine")
    set_scale(base, "mine")
    for which, path in enumerate(export_lora(base, "mine", tmp_path)):
        other, name = read_back(base, path, tiny)
        assert name == ("mine", "mine_kohya")[which]
        config = other.unet.peft_config[name]
        assert (config.r, config.lora_alpha) == (rank, pytest.approx(alpha * rank, rel=1e-12))
        again = export_lora(other, name, tmp_path / "again")[which]
        first, second = load_file(path), load_file(again)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[k], second[k]) for k in first)


def test_the_guidance_that_a_lora_is_drawn_with_stays_with_it(base, tmp_path):
    add_lora(base, "mine", rank=4)
    fill(base, "mine")
    told = {"settings": {"guidance_scale": 2.5}}
    name = load_lora(base, save_lora(base, tmp_path / "told.safetensors", "mine", told))
    for path in export_lora(base, name, tmp_path / "again"):
        assert base.unet.peft_config[load_lora(base, path)].guidance_scale == 2.5
    for path in export_lora(base, "mine", tmp_path / "again"):
        assert "settings" not in about_lora(path)


def same_layers(base, name, other, there):
    layers, others = lora_layers(base, name), lora_layers(other, there)
    assert layers.keys() == others.keys() and layers
    for key, layer in layers.items():
        assert others[key].r[there] == layer.r[name], key
        assert others[key].lora_alpha[there] == pytest.approx(layer.lora_alpha[name], rel=1e-12)
        assert others[key].scaling[there] == pytest.approx(layer.scaling[name], rel=1e-12)
        for part in ("lora_A", "lora_B"):
            a, b = getattr(layer, part)[name].weight, getattr(others[key], part)[there].weight
            assert torch.equal(a, b), key


def test_ranks_and_alphas_of_single_layers_survive(base, tiny, tmp_path):
    uneven(base)
    set_scale(base, "mine")
    for which, path in enumerate(export_lora(base, "mine", tmp_path)):
        other, name = read_back(base, path, tiny)
        assert len({layer.scaling[name] for layer in lora_layers(other, name).values()}) > 3
        # what was read is written as it was
        read_back(base, export_lora(other, name, tmp_path / "again")[which], tiny)


def test_alpha_over_the_root_of_the_rank(base, tiny, tmp_path):
    """rsLoRA (https://arxiv.org/abs/2312.03732), as a file from elsewhere may have it."""
    config = LoraConfig(r=4, lora_alpha=3.0, target_modules=["to_q"], use_rslora=True)
    base.unet.add_adapter(config, adapter_name="mine")
    fill(base, "mine")
    expected = predict(base)
    set_scale(base, "mine")
    if not torch.equal(predict(base), expected):
        pytest.skip("this peft forgets the root when a scale is set, as 0.17 does")
    for path in export_lora(base, "mine", tmp_path):
        other = own_unet(tiny)
        set_scale(other, load_lora(other, path))
        assert (predict(other) - expected).abs().max() < 1e-6 * expected.abs().max()


@torch.no_grad()
def test_plain_diffusers_predicts_the_same(base, tiny_folder, tmp_path):
    without = predict(base)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    empty = pipe.encode_prompt("", "cpu", 1, False)[0].expand(len(NOISY), -1, -1)
    for rank, alpha in NUMBERS[:3]:
        add_lora(base, "mine", rank, alpha)
        fill(base, "mine")
        expected = predict(base)
        assert (expected - without).abs().max() > 0.05 * expected.abs().max()
        for path in export_lora(base, "mine", tmp_path):
            pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
            found = pipe.unet(NOISY, 500, encoder_hidden_states=empty).sample
            assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
            pipe.unload_lora_weights()
        remove_lora(base, "mine")


def elsewhere(path, change, metadata=None):
    """The kohya file as another program might have written it."""
    state = load_file(path)
    other = path.with_name("elsewhere.safetensors")
    save_file({k: v.contiguous() for k, v in change(state).items()}, other, metadata)
    return other


def without_alpha(state):
    return {k: v for k, v in state.items() if not k.endswith(".alpha")}


def test_without_alpha_the_courses_is_1(base, files, tiny):
    other = own_unet(tiny)
    name = load_lora(other, elsewhere(files[1], without_alpha))
    layers = lora_layers(other, name).values()
    assert {layer.scaling[name] for layer in layers} == {1.0}
    set_scale(base, "mine", 0.5)
    set_scale(other, name)
    assert torch.allclose(predict(other), predict(base), atol=1e-6)


def test_alpha_is_read_in_any_precision_and_shape(base, files, tiny):
    set_scale(base, "mine")
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64):

        def recast(state, dtype=dtype):
            alphas = {k: v.to(dtype).reshape(1) for k, v in state.items() if k.endswith(".alpha")}
            return {k: v.float() for k, v in state.items()} | alphas

        read_back(base, elsewhere(files[1], recast), tiny)


def drop(part):
    return lambda state: {k: v for k, v in state.items() if not k.startswith(ONE) or part not in k}


def put(key, *shape, value=1.0):
    return lambda state: {**state, key: torch.full(shape, value)}


SPOILT = {
    "no down": (drop("lora_down"), "not a whole LoRA", "B is (16, 4)", "expected are A and B"),
    "no up": (drop("lora_up"), "not a whole LoRA", "A is (4, 16)", "expected are A and B"),
    "only alpha": (drop(".lora_"), "not a whole LoRA (alpha is ()", "expected"),
    "two alphas": (put(f"{ONE}.alpha", 2), "alpha is (2,)"),
    "another base": (put(f"{ONE}.lora_down.weight", 4, 32), "A is (4, 32)", "W is (16, 16)"),
    "two ranks": (put(f"{ONE}.lora_up.weight", 16, 2), "A is (4, 16)", "B is (16, 2)"),
    "an unknown layer": (put("lora_unet_top.lora_up.weight", 16, 2), "1 of its 97 keys"),
    "both layouts": (
        put("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight", 4, 16),
        "1 of its 97 keys",
    ),
    "SDXL": (
        put("lora_te2_text_model_x.alpha", 1),
        "trained for Stable Diffusion XL",
        "lora_te2_text",
        "v1.5",
    ),
    "alpha 0": (
        lambda state: {k: v * (not k.endswith("alpha")) for k, v in state.items()},
        "changes nothing",
        "alpha is 0",
    ),
    "alpha NaN": (put(f"{ONE}.alpha", value=torch.nan), "NaN or infinity"),
}


def test_a_spoilt_kohya_file_is_one_sentence(base, files, tiny):
    other = own_unet(tiny)
    before = predict(other)
    for case, (change, *parts) in SPOILT.items():
        with pytest.raises(StylenbError) as caught:
            load_lora(other, elsewhere(files[1], change))
        message = str(caught.value)
        assert all(part in message for part in ["elsewhere.safetensors", *parts]), (case, message)
        assert "\n" not in message and message.endswith(".")
        assert adapters(other) == [] and torch.equal(predict(other), before)


def test_what_cannot_be_exported(base, tmp_path):
    with pytest.raises(StylenbError, match="No LoRA named 'nope' is loaded"):
        export_lora(base, "nope", tmp_path)
    add_lora(base, "mine", rank=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(StylenbError, match="cannot be written, .*choose another folder.$"):
        export_lora(base, "mine", tmp_path / "file")
    (tmp_path / "mine.kohya.safetensors").mkdir()
    with pytest.raises(StylenbError, match="cannot be written"):
        export_lora(base, "mine", tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_what_is_not_finite_is_neither_written_nor_loaded(base, tiny_folder, tmp_path):
    add_lora(base, "mine", rank=1)
    fill(base, "mine")
    next(iter(lora_layers(base, "mine").values())).lora_B["mine"].weight.data[0] = torch.nan
    with pytest.raises(StylenbError, match="mine.safetensors' was not saved, as unet.* holds NaN"):
        export_lora(base, "mine", tmp_path)
    assert not list(tmp_path.iterdir())
    for part in ("vae", "unet", "text_encoder"):
        folder = shutil.copytree(tiny_folder, tmp_path / part)
        (file,) = (folder / part).glob("*.safetensors")
        state = load_file(file)
        next(v for v in state.values() if v.is_floating_point()).view(-1)[0] = 1e30
        save_file(state, file, {"format": "pt"})
        stylenb.load(folder, device="cpu")
        with pytest.raises(StylenbError, match=f"{part}' hold NaN or infinity as torch.float16"):
            stylenb.load(folder, device="cpu", dtype=torch.float16)


# --- on the shipped model ---


@pytest.mark.pocket_model
def test_a_pipeline_redraws_the_pocket_models_picture(pocket, tmp_path):
    """Plain img2img of the same latents with the same noise, without guidance."""
    own = own_unet(pocket)
    latents = own.encode(stylenb.to_tensor(stylenb.sample_photo("coffee", own.image_size)))
    plain = denoise(own, latents, 0.5, 8, solver="ddim")
    add_lora(own, "mine", rank=3, alpha=1.7)
    fill(own, "mine")
    set_scale(own, "mine", 0.2)
    expected = denoise(own, latents, 0.5, 8, solver="ddim")
    assert (expected - plain).abs().max() > 0.1 * expected.abs().max()
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(DATA / "pocket-sd")
    pipe.set_progress_bar_config(disable=True)
    for which, path in enumerate(export_lora(own, "mine", tmp_path)):
        pipe.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name=f"their{which}")
        pipe.set_adapters([f"their{which}"], [0.2])
        found = pipe(
            "",
            image=latents,
            strength=0.5,
            num_inference_steps=8,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images
        assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
        pipe.unload_lora_weights()
