"""Text to image: what the base draws for a prompt, and the base as a pipeline of diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from .base import SOLVER_STEPS, Base
from .errors import StylenbError, replacing
from .limits import Guidance, Within, read
from .loop import generator_at
from .lora import adapters, lora_layers
from .lora_files import refuse_not_finite, text_parts
from .photos import check_size, to_pictures

DRAWN_AT_ONCE = 4  # pictures


def pipeline(base: Base) -> StableDiffusionPipeline:
    """diffusers' own text-to-image, from the base's own parts; with a schedule of its own, since
    drawing changes that. Raises StylenbError once the text encoder was dropped."""
    if base.text_encoder is None:
        raise StylenbError(
            "The text encoder was dropped to save memory: load the base again to use prompts."
        )
    parts = base.vae, base.text_encoder, base.tokenizer, base.unet
    scheduler = type(base.scheduler).from_config(base.scheduler.config)
    without = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe = StableDiffusionPipeline(*parts, scheduler, **without)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def generate(
    base: Base,
    prompt: str,
    count: int = 1,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    first: int = 0,
    size: int | tuple[int, int] | None = None,
) -> list[Image.Image]:
    """Draw `count` pictures for a prompt with DDIM, from pure noise.

    num_inference_steps: None is 30. guidance_scale: None is the base's default; 1 draws without
    classifier-free guidance (https://arxiv.org/abs/2207.12598) in half the time. Every picture of a
    seed has a noise of its own; first: the number of the first, to draw a set in parts. size: side,
    or (width, height), in pixels; None is the base's.

    Raises StylenbError for values out of range, NaN, and once the text encoder was dropped.
    """
    last = base.scheduler.config.num_train_timesteps - 1
    count = read("count", count, Annotated[int, Within(1, 99_999)])
    steps = read("num_inference_steps", num_inference_steps, Annotated[int, Within(1, last)] | None)
    guidance = read("guidance_scale", guidance_scale, Guidance | None)
    seed = read("seed", seed, int)
    prompt = read("prompt", prompt, str)
    width, height = check_size(base.image_size if size is None else size)
    if width % base.multiple or height % base.multiple:
        raise StylenbError(
            f"Sides must be multiples of {base.multiple} pixels, not {width} x {height}."
        )
    how = {"width": width, "height": height, "output_type": "latent"}  # in "pil" NaN is black
    how["num_inference_steps"] = steps or SOLVER_STEPS["ddim"]
    how["guidance_scale"] = guidance or base.default_guidance_scale
    pipe, pictures, numbers = pipeline(base), [], range(first, first + count)
    for start in range(0, count, DRAWN_AT_ONCE):
        generators = [generator_at(seed, n) for n in numbers[start : start + DRAWN_AT_ONCE]]
        with text_parts(base):
            latents = pipe([prompt] * len(generators), generator=generators, **how).images
        pictures += to_pictures(base.decode(latents))
    return pictures


def save_pipeline(base: Base, folder: str | Path) -> Path:
    """Write the whole base, as it is now, as a folder that diffusers'
    StableDiffusionPipeline.from_pretrained opens, and stylenb.load too.

    A pipeline that is in the folder already is replaced. Raises StylenbError while LoRAs are in the
    UNet, for weights that are not finite, and for a folder that holds something else.
    """
    folder = Path(folder)
    without_loras(base)
    if folder.is_file() or any(folder.glob("*")) and not (folder / "model_index.json").is_file():
        raise StylenbError(f"'{folder}' holds something else: name a new folder.")
    pipe = pipeline(base)
    for part in (pipe.vae, pipe.unet, pipe.text_encoder):
        refuse_not_finite(folder, part.state_dict())
    with replacing(folder) as temporary:
        pipe.save_pretrained(temporary)
        # transformers opens a model in the dtype that its config names, diffusers in float32 unless
        # it is told otherwise: a pipeline of both kinds would not run.
        config = temporary / "text_encoder" / "config.json"
        named = json.loads(config.read_text(encoding="utf-8"))
        named |= dict.fromkeys(named.keys() & {"dtype", "torch_dtype"}, "float32")
        config.write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")
    return folder


def without_loras(base: Base) -> None:
    """Raise StylenbError while LoRAs are in the UNet, and take out what removed ones left."""
    if names := ", ".join(map(repr, adapters(base))):
        raise StylenbError(
            f"The LoRA {names} is in the UNet: keep it with save_lora if it is to be kept, and "
            "take it out with remove_lora first."
        )
    if lora_layers(base):  # else weights have other names, which plain diffusers cannot read
        base.unet.unload_lora()
