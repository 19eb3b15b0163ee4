"""Style transfer without a prompt: encode -> add noise -> denoise with the style's LoRA -> decode.

The image-to-image of SDEdit (https://arxiv.org/abs/2108.01073) with "" as the only condition and
no guidance, so that each step is one call of the UNet.
"""

from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image

from .base import Base, load
from .errors import StylenbError
from .lora import find_lora, load_lora, set_scale
from .photos import open_photo, to_pictures, to_tensor

_load_once = lru_cache(maxsize=1)(load)


@torch.no_grad()
def denoise(
    base: Base, latents: torch.Tensor, strength: float, steps: int, seed: int = 0
) -> torch.Tensor:
    """Noise latents (N, 4, h, w) up to `strength` of the schedule and denoise them with DDIM.

    strength 1 starts from pure noise and keeps nothing; strength s runs the last s * steps of the
    `steps` timesteps. The noise is a function of the seed. Same shape out.
    """
    scheduler = base.scheduler
    scheduler.set_timesteps(steps, device=base.device)
    timesteps = scheduler.timesteps[steps - max(1, round(steps * strength)) :]
    # With steps_offset 1, a thousand steps begin at 1000, one beyond the schedule.
    timesteps = timesteps.clamp(max=scheduler.config.num_train_timesteps - 1)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same on every device
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    latents = scheduler.add_noise(latents, noise, timesteps[:1])
    for t in timesteps:
        latents = scheduler.step(base.predict_noise(latents, t), t, latents).prev_sample
    return latents


@torch.no_grad()
def stylize(
    image,
    style: str | Path | None = None,
    strength: float | None = None,
    scale: float = 1.0,
    steps: int | None = None,
    seed: int = 0,
    base: Base | str = "pocket",
    fit: str = "crop",
) -> Image.Image:
    """Redraw a photo in a style; returns a PIL image of the base's size.

    image: whatever `open_photo` takes. style: a shipped style, the path of a LoRA file, or None
    for the base alone. strength in (0, 1]: how far up the noise schedule to start; None is the
    base's default. scale: the LoRA's volume, 0 is off. fit: "crop" or "pad" to a square.

    Raises StylenbError for a photo that cannot be opened, an unknown style, or a value out of
    range.
    """
    strength = Base.default_strength if strength is None else strength
    steps = Base.default_steps if steps is None else steps
    if not 0 < strength <= 1:
        raise StylenbError(f"strength lies above 0 and up to 1, not {strength}.")
    if not isinstance(steps, int) or not 1 <= steps <= 1000:
        raise StylenbError(f"steps is a whole number from 1 to 1000, not {steps}.")
    if style is not None:
        style = find_lora(style)  # before a large base is loaded in vain
    if not isinstance(base, Base):
        base = _load_once(base)
    photo = open_photo(image, size=base.image_size, fit=fit)
    set_scale(base, style and load_lora(base, style), scale)
    try:
        latents = denoise(base, base.encode(to_tensor(photo)), strength, steps, seed)
    finally:
        set_scale(base, None)
    return to_pictures(base.decode(latents))[0]
