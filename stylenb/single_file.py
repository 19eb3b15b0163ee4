"""A base in a single file: a checkpoint of Stable Diffusion v1 in the layout of the original code,
such as v1-5-pruned-emaonly.safetensors and what people made of it.

diffusers converts the UNet and the autoencoder. Their configs are known, so no network is needed,
except for the tokenizer's vocabulary, which such a file does not hold.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch

from .errors import StylenbError
from .lora_formats import split_key
from .weights import SD15_SIZES, find_sd15, offline, open_safetensors

CLIP_HUB_ID = "openai/clip-vit-large-patch14"
_TEXT = "cond_stage_model.transformer."
_FIRST = "model.diffusion_model.input_blocks.0.0.weight"
_OTHERS = (  # a key of another model, and its name
    (r"conditioner\.embedders\.", "Stable Diffusion XL"),
    (r"cond_stage_model\.model\.", "Stable Diffusion 2"),
    (r"(model\.diffusion_model\.)?joint_blocks\.", "Stable Diffusion 3"),
    (r"(model\.diffusion_model\.)?double_blocks\.", "Flux"),
    (r"control_model\.", "a ControlNet"),
)


def load_single_file(path: Path, device, dtype, sizes: dict = SD15_SIZES) -> dict:
    """The parts of the model in a checkpoint: vae, unet, text_encoder, tokenizer, scheduler.

    sizes: of their configs, those of SD v1.5. Where the tokenizer's vocabulary cannot be had, only
    "" can be embedded, which is all that "no prompt" needs.

    Raises StylenbError, with the true name of what was found, for anything else.
    """
    if path.suffix.lower() != ".safetensors":
        raise StylenbError(
            f"'{path}' is not a .safetensors file: a base is a folder, or a single file of that "
            "kind; a pickled one (.ckpt) can run any code when it is opened."
        )
    with open_safetensors(path) as file:
        keys = list(file.keys())
        _check_keys(path, keys)
        channels = file.get_slice(_FIRST).get_shape()[1]
        if channels != 4:
            raise StylenbError(
                f"{path.name} is an inpainting model (its UNet takes {channels} channels): this "
                "course works with those that take 4."
            )
        text = {k.removeprefix(_TEXT): file.get_tensor(k) for k in keys if k.startswith(_TEXT)}
    try:
        parts = _converted(path, dtype, sizes)
        parts["text_encoder"] = _text_encoder(text, sizes["text"]).to(dtype)
    except Exception as error:
        first = str(error).strip().split("\n")[0][:200]
        raise StylenbError(
            f"{path.name} cannot be loaded as Stable Diffusion v1 ({type(error).__name__}: {first})"
            ": download it again, or choose another."
        ) from error
    parts["tokenizer"] = _tokenizer(parts["text_encoder"].config)
    for part in ("vae", "unet", "text_encoder"):
        parts[part] = parts[part].to(device)
        if not all(p.isfinite().all() for p in parts[part].parameters()):
            raise StylenbError(f"The {part} in {path.name} holds NaN or infinity as {dtype}.")
    return parts


def _check_keys(path: Path, keys: list[str]) -> None:
    for pattern, name in _OTHERS:
        if any(re.match(pattern, key) for key in keys):
            raise StylenbError(
                f"{path.name} is {name}: this course works with models of the SD v1 kind."
            )
    needed = {
        "UNet": "model.diffusion_model.",
        "autoencoder": "first_stage_model.",
        "text encoder": _TEXT,
    }
    missing = [name for name, start in needed.items() if not any(k.startswith(start) for k in keys)]
    if any(split_key(key) for key in keys):
        raise StylenbError(
            f"{path.name} is a LoRA, not a base: give it as the style, stylize(photo, style=...)."
        )
    if missing:
        raise StylenbError(
            f"{path.name} has no {' and no '.join(missing)}: name a whole checkpoint in the "
            "layout of the original code, which diffusers' from_single_file reads, or the folder "
            "that holds model_index.json."
        )


def _converted(path: Path, dtype, sizes: dict) -> dict:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    parts = {}
    with tempfile.TemporaryDirectory() as folder:  # diffusers reads a config from there
        for part, one in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
            with torch.device("meta"):
                one(**sizes[part]).save_config(Path(folder, part))
            parts[part] = one.from_single_file(
                str(path), config=folder, subfolder=part, torch_dtype=dtype, local_files_only=True
            )
    parts["scheduler"] = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return parts


def _text_encoder(state: dict[str, torch.Tensor], sizes: dict):
    from transformers import CLIPTextConfig, CLIPTextModel

    model = CLIPTextModel(CLIPTextConfig(**sizes))
    names = {key.removeprefix("text_model."): key for key in model.state_dict()}
    state = {key.removeprefix("text_model."): value for key, value in state.items()}
    known = {names[key]: value for key, value in state.items() if key in names}
    model.load_state_dict(known | {k: v for k, v in model.state_dict().items() if "_ids" in k})
    return model


def _tokenizer(config):
    """CLIP's, from a folder of SD v1.5, the hub's cache or the hub; else one for "" alone."""
    from transformers import CLIPTokenizer

    found = find_sd15()
    places = [(str(found[1]), {"subfolder": "tokenizer"})] if found else []
    for place, how in [*places, (CLIP_HUB_ID, {})]:
        try:
            tokenizer = CLIPTokenizer.from_pretrained(place, local_files_only=offline(), **how)
        except Exception:  # not there, no network, half a download: the next place, or ""
            continue
        if tokenizer.eos_token_id == config.eos_token_id:  # transformers makes up one without words
            return tokenizer
    return NoPrompt(config)


class NoPrompt:
    """What stands in for a tokenizer whose vocabulary cannot be had: it knows "" alone."""

    def __init__(self, config):
        self.bos_token_id, self.eos_token_id = config.bos_token_id, config.eos_token_id
        self.model_max_length = config.max_position_embeddings

    def __call__(self, prompts, **how) -> dict[str, list[list[int]]]:
        if prompts in ("", [""]) or not any(prompts):
            ids = [self.bos_token_id] + [self.eos_token_id] * (self.model_max_length - 1)
            return {"input_ids": [ids for _ in prompts]}
        raise StylenbError(
            f"A single file holds no vocabulary for prompts, and {CLIP_HUB_ID} could not be "
            "downloaded: switch the internet on and load the base again, or leave the prompt empty."
        )
