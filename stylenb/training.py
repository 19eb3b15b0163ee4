"""Teaching a LoRA a style: the pipeline of the course.

Encode the pictures -> add noise by the schedule -> the UNet predicts the noise -> L2 + LPIPS +
style loss -> backpropagate and update A and B. The loop that does the last is in loop.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers.training_utils import compute_snr

from .base import Base, fingerprint
from .errors import StylenbError
from .folders import Pictures, open_pictures
from .inference import batch_size_for, invert, redraw
from .limits import Count, Guidance, Natural, NonNegative, Nonzero, Positive, Share, Timestep
from .loop import (
    History,
    LoopSettings,
    Losses,
    Run,
    TrainingStopped,
    fit,
    generator_at,
    order_at,
    spread_timesteps,
)
from .lora import adapters, add_lora, remove_lora, set_alpha
from .lora_files import save_lora
from .losses import PictureLosses, estimate_x0, noise_loss
from .photos import to_tensor


@dataclass(frozen=True)
class Settings(LoopSettings):
    """How `train_style` teaches a LoRA a style; `for_base` knows what suits a base.

    First L2 alone teaches the marks of the style, then LPIPS and the style loss teach to put them
    and the palette on a photo. Neon does not get its dark ground without them. With random noise
    they look at estimates up to timestep 600: up to 400 only, they wiped out the dots of
    pointillism in five of seven trials of such settings. With the noise of inversion, which is what
    stylising starts from, more of a photo is kept, and less of a style whose ground is one colour.
    """

    steps: Count = 300
    learning_rate: Positive = 3e-3
    warmup: Natural = 10
    rank: Count = 8
    layers: Literal["attention", "transformer"] = "transformer"  # that get a LoRA, see add_lora
    alpha: Nonzero = 1.0  # of W' = W + alpha A B; peft's lora_alpha is alpha * rank
    final_alpha: Nonzero = 1.5  # of the finished LoRA: turned up, the style prevails over the photo
    guidance_scale: Guidance = 1.0  # with which `stylize` draws in it, see `denoise`
    timesteps: Timestep = 800  # the L2 is taken below this one, where stylising begins
    lpips_weight: NonNegative = 0.04
    style_weight: NonNegative = 1.0
    picture_batch: Count = 2  # content pictures in a batch, for LPIPS and style loss
    picture_every: Count = 1  # they are taken at every k-th update
    picture_from: Share = 0.5  # and after this share of the steps, when the marks are learned
    picture_noise: Literal["random", "inversion"] = "random"  # what is added to them
    picture_timesteps: Timestep = 600  # random noise below this timestep, weighted by min(1, SNR)
    features: Literal["pocket", "squeeze", "alex", "vgg"] = "pocket"  # see load_features

    @staticmethod
    def defaults_for(base: Base, changes: dict) -> dict:
        if not base.full_size:
            return {}
        return {  # the loss of a picture costs several plain steps here, its decoder most of it
            "steps": 800,
            "batch_size": 1,
            "gradient_accumulation_steps": 4,
            "learning_rate": 1e-4,
            "warmup": 40,
            "layers": "attention",
            "final_alpha": 1.0,
            "timesteps": 1000,
            "picture_batch": 1,
            "picture_every": 4,
            "picture_from": 0.7,
            "picture_timesteps": 400,
            "style_weight": 0.3,
            "gradient_checkpointing": True,
        }

    @property
    def looks_at_pictures(self) -> bool:
        return self.lpips_weight > 0 or self.style_weight > 0


def train_style(
    base: Base,
    style_pictures: Pictures,
    content_pictures: Pictures | None = None,
    name: str = "style",
    settings: Settings | None = None,
    **run,
) -> History:
    """Teach the base a style from a few pictures; the LoRA `name` is left active in `base.unet`.

    style_pictures: 4 or more, see `open_pictures`. The noise L2 is taken on them alone.
    content_pictures: pictures of anything, that LPIPS and the style loss teach the LoRA to redraw;
        None takes the style pictures for both.
    settings: None is Settings.for_base(base). run: folder, minutes, validation, ..., see loop.Run.
        With a folder, `NAME.safetensors` and `history.json` are written there, and a run that was
        cut resumes from its last checkpoint when it is started again.

    The base's text encoder and tokenizer are dropped: "" is encoded once, and nothing else is
    needed. Raises StylenbError for fewer than 4 pictures, and see `train` and `loop.fit`.
    """
    settings, run = settings or Settings.for_base(base), Run(**run)
    content = style_pictures if content_pictures is None else content_pictures
    style, content = open_pictures(base, style_pictures, content)
    check_pictures("A style", style, 4, content_pictures=content)
    about = {"name": name, "base": base.name, "fingerprint": fingerprint(base)}
    about |= {"prompt": base.prompt, "style pictures": digest(style)}
    about |= {"content pictures": digest(content)}
    run.refuse_other(settings, about)
    base.drop_text_encoder()
    losses_of = style_losses(base, settings, style, content)  # steps 1 to 4 of the pipeline
    weights = {"lpips": settings.lpips_weight, "style": settings.style_weight}
    add_lora(base, name, settings.rank, settings.alpha, settings.seed, settings.layers)
    base.unet.peft_config[name].guidance_scale = settings.guidance_scale

    def draw(photos: Sequence) -> list:
        set_alpha(base, name, settings.final_alpha)
        pictures = redraw(base, photos)
        set_alpha(base, name, settings.alpha)
        return pictures

    def save(path: Path, about: dict) -> None:
        set_alpha(base, name, settings.final_alpha)
        save_lora(base, path, name, about)

    base.unet.to(memory_format=torch.channels_last)  # an order in which convolutions take less time
    try:
        # 5. Backpropagate and update A and B.
        return train(base, losses_of, settings, weights, run, name, about, draw, save)
    except BaseException as error:
        # Kept: the last good weights, and what was learned until somebody stopped a run that has no
        # folder. One that has a folder resumes from there when it is started again.
        stopped = isinstance(error, KeyboardInterrupt) and not run.folder
        if not isinstance(error, TrainingStopped) and not stopped:
            remove_lora(base, name)
        raise
    finally:
        base.unet.to(memory_format=torch.contiguous_format)  # the order in which they can be saved
        base.unet.requires_grad_(False)
        if name in adapters(base):
            set_alpha(base, name, settings.final_alpha)


def style_losses(base: Base, settings: Settings, style: Sequence, content: Sequence) -> Losses:
    """What gives the terms of a batch's loss: "noise"; "lpips", "style" where pictures count."""
    # 1. Encode: every picture once, not once a step.
    style_images, style_latents = encode(base, style, settings.flip)
    if settings.looks_at_pictures:
        looks = PictureLosses(style_images, settings.features, base.device)
        content_images, content_latents = encode(base, content, settings.flip)
        inverted = settings.picture_noise == "inversion"
        timesteps, found = inversions(base, content_latents) if inverted else (None, None)

    def losses_of(batch: int) -> dict[str, torch.Tensor]:
        random = generator_at(settings.seed, batch)
        step, size = batch // settings.gradient_accumulation_steps, settings.batch_size
        pictures = (
            settings.looks_at_pictures
            and step % settings.picture_every == 0
            and step >= settings.picture_from * settings.steps
        )
        chosen = order_at(settings.seed, len(style_latents), batch * size, size)
        latents, t = style_latents[chosen], spread_timesteps(size, settings.timesteps, random)
        if pictures:
            extra = settings.picture_batch
            kept = order_at(settings.seed + 1, len(content_latents), batch * extra, extra)
            latents = torch.cat([latents, content_latents[kept]])
            if inverted:
                steps = spread_timesteps(extra, len(timesteps), random)
                t = torch.cat([t, timesteps[steps]])
            else:
                t = torch.cat([t, spread_timesteps(extra, settings.picture_timesteps, random)])
        latents, t = latents.to(base.device), t.to(base.device)

        # 2. Add noise by the schedule.
        noise = torch.randn(latents.shape, generator=random).to(base.device)
        noisy = base.scheduler.add_noise(latents, noise, t)
        if pictures and inverted:
            noisy[size:] = found[steps, kept].to(base.device)

        # 3. The UNet predicts the noise, without a prompt.
        prediction = base.predict_noise(noisy, t)

        # 4. L2 + LPIPS + style loss.
        l2 = noise_loss(prediction, noise, t, base.scheduler, settings.snr_gamma)
        terms = {"noise": l2[:size].mean()}
        if pictures:
            t = t[size:]
            x0 = estimate_x0(base.scheduler, noisy[size:], prediction[size:], t)
            images = base.decode_quickly(x0)
            lpips, distance = looks(images, content_images[kept].to(base.device))
            # The inversion's noise gives the photo back at every level, random noise less and less.
            trust = 1 if inverted else compute_snr(base.scheduler, t).clamp(max=1)
            terms["lpips"], terms["style"] = (lpips * trust).mean(), (distance * trust).mean()
        return terms

    return losses_of


def inversions(base: Base, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The timesteps (K,) and the noisy latents (K, N, 4, h, w) through which `invert` goes.

    The first two of eleven steps add random noise, or the style loss would ask for marks where
    nothing is that could become one, and drown the other terms.
    """
    found, at_once = [], batch_size_for(base.image_size**2)
    for first in range(0, len(latents), at_once):
        part = latents[first : first + at_once].to(base.device)
        seeds = range(first, first + len(part))
        invert(base, part, path=(path := []), forward_steps=2, seed=seeds)
        found.append(torch.stack([noisy.cpu() for _, noisy in path]))
    return torch.tensor([t for t, _ in path]), torch.cat(found, 1)


# ------------------------------------------------------------------- what all trainers share


def train(
    base: Base,
    losses_of: Losses,
    settings: LoopSettings,
    weights: dict[str, float],
    run: Run,
    name: str,
    about: dict,
    draw: Callable[[Sequence], list],
    save: Callable,
) -> History:
    """`loop.fit` over whatever in the base requires a gradient. With a folder, what was learned is
    saved there by save(FOLDER/NAME.safetensors, about).

    Raises TrainingStopped, besides what `fit` raises, where it could not be saved.
    """
    parameters = {n: p for n, p in base.parameters().items() if p.requires_grad}
    half = base.dtype == torch.float16
    if settings.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    try:
        history = fit(parameters, losses_of, settings, weights, run, about, draw, half)
    finally:
        base.unet.disable_gradient_checkpointing()
    if run.folder:
        told = {**about, "settings": asdict(settings), "seconds": round(history.seconds)}
        try:
            save(Path(run.folder) / f"{name}.safetensors", told)
        except StylenbError as error:
            raise TrainingStopped(
                f"{str(error).rstrip('.')}; what was learned is still in the base: save it with "
                "save_lora, save_dreambooth or save_embedding."
            ) from error
    return history


def check_pictures(what: str, pictures: Sequence, least: int, **others: Sequence) -> None:
    """Raise StylenbError for too few pictures, and for none of the others (by the name of their
    argument)."""
    if len(pictures) < least:
        raise StylenbError(
            f"{what} needs at least {least} pictures, better 16; these are {len(pictures)}."
        )
    for argument, given in others.items():
        if not given:
            raise StylenbError(f"{argument} is empty: give some, or leave it out.")


@torch.no_grad()
def encode(base: Base, pictures: Sequence, flip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures, and with `flip` their mirror images after them -> images (N, 3, H, W) in [-1, 1]
    and float32 latents (N, 4, H/8, W/8), both in main memory. Raises StylenbError for NaN."""
    images = to_tensor(pictures)
    if flip:
        images = torch.cat([images, images.flip(-1)])
    latents = base.encode(images).float().cpu()
    if not latents.isfinite().all():  # else a lower learning rate would be asked for
        raise StylenbError("The autoencoder gives NaN: load the base with dtype=torch.float32.")
    return images, latents


def digest(pictures: Sequence) -> str:
    """A short name of these pictures in this order, to tell whether they are still the same."""
    return hashlib.sha256(b"".join(p.tobytes() for p in pictures)).hexdigest()[:16]
