"""A checkpoint in the layout of the original code, and what else is found in a single file."""

import re
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

import stylenb
from stylenb import StylenbError, load
from stylenb.lora_formats import _original
from stylenb.single_file import CLIP_HUB_ID, NoPrompt, load_single_file

VAE_NAMES = (
    (r"(en|de)coder\.(down|up)_blocks\.(\d)\.resnets\.(\d)", r"\1coder.\2.\3.block.\4"),
    (r"(en|de)coder\.(down|up)_blocks\.(\d)\.(down|up)samplers\.0", r"\1coder.\2.\3.\4sample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
)
RESNET_NORMS = {"norm1": "in_layers.0", "norm2": "out_layers.0"}


def unet_name(layer, layers):
    if layer == "conv_norm_out":
        return "out.0"
    above, _, last = layer.rpartition(".")
    if ".resnets." in layer and last in RESNET_NORMS:
        conv = _original(f"{above}.conv1", 2, layers)
        return conv.replace("in_layers.2", RESNET_NORMS[last])
    return _original(layer, 2, layers)


def checkpoint(base):
    """The weights of a base as the original code keeps them."""
    layers, state = [key for key, _ in base.unet.named_modules()], {}
    for key, value in base.unet.state_dict().items():
        layer, _, kind = key.rpartition(".")
        state[f"model.diffusion_model.{unet_name(layer, layers)}.{kind}"] = value
    for key, value in base.vae.state_dict().items():
        for pattern, name in VAE_NAMES:
            key = re.sub(pattern, name, key)
        found = re.match(r"decoder\.up\.(\d)", key)  # counted from the other end
        if found:
            key = key.replace(found[0], f"decoder.up.{3 - int(found[1])}", 1)
        if "attn_1" in key and value.ndim == 2:
            value = value[:, :, None, None]
        state[f"first_stage_model.{key}"] = value
    for key, value in base.text_encoder.state_dict().items():
        key = key.removeprefix("text_model.")
        state[f"cond_stage_model.transformer.text_model.{key}"] = value
    return {key: value.clone().contiguous() for key, value in state.items()}


@pytest.fixture(scope="module")
def sizes(tiny_folder):
    base = load(tiny_folder, device="cpu")
    own = {"unet": dict(base.unet.config), "vae": dict(base.vae.config)}
    own = {part: {k: v for k, v in c.items() if k[0] != "_"} for part, c in own.items()}
    return {**own, "text": base.text_encoder.config.to_dict()}


@pytest.fixture(scope="module")
def saved(tiny_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "v1-5-pruned-emaonly.safetensors"
    state = checkpoint(load(tiny_folder, device="cpu"))
    # what such files hold besides: the schedule, and positions as numbers
    state["alphas_cumprod"] = torch.ones(1000)
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    state[positions] = torch.arange(77)[None]
    save_file(state, path)
    return path


def test_a_checkpoint_holds_the_same_model(saved, sizes, tiny_folder, monkeypatch):
    monkeypatch.setattr("stylenb.base.load_single_file", partial(load_single_file, sizes=sizes))
    folder, single = load(tiny_folder, device="cpu"), load(saved, device="cpu")
    assert single.name == "v1-5-pruned-emaonly" and single.image_size == folder.image_size
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = (getattr(base, part).state_dict() for base in (single, folder))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), part
    assert torch.equal(single.scheduler.alphas_cumprod, folder.scheduler.alphas_cumprod)
    assert torch.equal(single.empty, folder.empty)
    with pytest.raises(StylenbError, match="no vocabulary for prompts.*switch the internet on"):
        single.embed("a house")
    picture = stylenb.stylize(stylenb.sample_photo("chelsea"), base=single, num_inference_steps=2)
    assert picture.size == (64, 48) or max(picture.size) == 64 * 2


def test_half_precision_is_what_was_asked_for(saved, sizes):
    parts = load_single_file(saved, torch.device("cpu"), torch.float16, sizes)
    for part in ("unet", "vae", "text_encoder"):
        assert {p.dtype for p in parts[part].parameters()} == {torch.float16}


def test_the_tokenizer_comes_from_a_folder_of_sd15(saved, sizes, tiny_folder, monkeypatch):
    monkeypatch.setenv("STYLENB_SD15", str(tiny_folder))
    tokenizer = load_single_file(saved, torch.device("cpu"), torch.float32, sizes)["tokenizer"]
    assert not isinstance(tokenizer, NoPrompt)
    expected = load(tiny_folder, device="cpu").tokenizer(["a house"])["input_ids"]
    assert tokenizer(["a house"])["input_ids"] == expected


def drop(start):
    return lambda state: {k: v for k, v in state.items() if not k.startswith(start)}


def instead(key, *shape):
    return lambda state: {key: torch.ones(shape or (2, 2))}


def nine(state):
    key = "model.diffusion_model.input_blocks.0.0.weight"
    return state | {key: torch.cat([state[key], state[key], state[key][:, :1]], 1)}


def spoilt(state):
    return state | {"model.diffusion_model.out.2.bias": torch.full((4,), torch.nan)}


def shorter(state):
    return state | {"first_stage_model.quant_conv.bias": torch.ones(3)}


OTHERS = {
    "SDXL": (instead("conditioner.embedders.0.x"), "is Stable Diffusion XL"),
    "SD 2": (instead("cond_stage_model.model.transformer.x"), "is Stable Diffusion 2"),
    "SD 3": (instead("model.diffusion_model.joint_blocks.0.x"), "is Stable Diffusion 3"),
    "Flux": (instead("double_blocks.0.img_attn.x"), "is Flux"),
    "a LoRA": (instead("lora_unet_conv_in.lora_down.weight"), "is a LoRA, not a base"),
    "a part": (instead("conv_in.weight"), "no UNet and no autoencoder and no text encoder"),
    "no VAE": (drop("first_stage_model"), "has no autoencoder"),
    "inpainting": (nine, r"an inpainting model \(its UNet takes 9 channels\)"),
    "NaN": (spoilt, "unet in .* holds NaN"),
    "other shape": (shorter, "cannot be loaded as Stable Diffusion v1"),
    "no layer": (drop("model.diffusion_model.middle_block"), "cannot be loaded as Stable"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_file_is_refused_by_its_name(case, tiny_folder, sizes, tmp_path):
    change, part = OTHERS[case]
    save_file(change(checkpoint(load(tiny_folder, device="cpu"))), tmp_path / "x.safetensors")
    with pytest.raises(StylenbError, match=part) as caught:
        load_single_file(tmp_path / "x.safetensors", "cpu", torch.float32, sizes)
    message = str(caught.value)
    assert "x.safetensors" in message and "\n" not in message and message.endswith(".")


def test_a_pickle_or_a_pointer_is_no_base(tmp_path):
    (tmp_path / "old.ckpt").write_bytes(b"PK")
    with pytest.raises(StylenbError, match=r"pickled one \(.ckpt\)"):
        load(tmp_path / "old.ckpt", device="cpu")
    (tmp_path / "x.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 4")
    with pytest.raises(StylenbError, match="pointer of git LFS"):
        load(tmp_path / "x.safetensors", device="cpu")


def test_the_hub_s_own_folder_stands_for_its_snapshot(tiny_folder, tmp_path, monkeypatch):
    cache = tmp_path / "models--someone--sd"
    (cache / "snapshots").mkdir(parents=True)
    with pytest.raises(StylenbError, match="without a snapshot"):
        load(cache, device="cpu")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("bbb\n")
    for name in ("aaa", "bbb", "ccc"):
        (cache / "snapshots" / name).symlink_to(tiny_folder)
    assert load(cache, device="cpu").folder == cache / "snapshots/bbb"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MODELS", str(tmp_path))
    assert load("~/models--someone--sd", device="cpu").folder == cache / "snapshots/bbb"
    assert load("$MODELS/models--someone--sd", device="cpu").folder == cache / "snapshots/bbb"
    monkeypatch.setenv("STYLENB_SD15", f'"~/{cache.name}"')
    assert load("sd15", device="cpu").folder == cache / "snapshots/bbb"


def test_what_stands_in_for_a_tokenizer_knows_no_prompt_alone(tiny_folder):
    base = load(tiny_folder, device="cpu")
    expected = base.tokenizer(["", ""], padding="max_length", max_length=77)["input_ids"]
    assert NoPrompt(base.text_encoder.config)(["", ""]) == {"input_ids": expected}
    with pytest.raises(StylenbError, match=CLIP_HUB_ID):
        NoPrompt(base.text_encoder.config)(["", "a house"])
