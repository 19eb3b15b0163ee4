"""Baselines: what else turns a photo into a style, without any training. A LoRA has to beat them.

All are called alike, `baseline(photos, style_pictures, strength, base, seed)`, and return one
picture for each photo. photos and style_pictures are lists of PIL pictures of the base's size.
strength lies in 0..1, and at 0 a photo stays what it is, apart from what the autoencoder loses
where there is one. So each draws a curve of how much it keeps against how near it comes to a style,
and can be compared with others where they keep equally much (see scores.at_equal_content).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import skimage  # which imports its parts when they are first used
import torch
from PIL import Image

from ..base import Base
from ..errors import StylenbError
from ..inference import redraw
from ..limits import Share, read
from ..lora import set_scale
from ..losses import PictureLosses, lpips_from, unit_features
from ..photos import to_pictures, to_tensor
from ..scores import BATCH

Pictures = Sequence[Image.Image]
GATYS_STEPS = 60


def photo_as_it_is(
    photos: Pictures, style_pictures=None, strength=0.0, base=None, seed=0
) -> list[Image.Image]:
    """Nothing done: what any method must be better than. It has no knob."""
    return list(photos)


@torch.no_grad()
def img2img(
    photos: Pictures, style_pictures: Pictures | None, strength: float, base: Base, seed: int = 0
) -> list[Image.Image]:
    """Image-to-image without a LoRA: noise up to `strength`, denoise with the base alone.

    It does not look at the style pictures, so it shows what the base does by itself. LoRAs are
    switched off; the i-th photo has the noise of seed + i, if the base's default solver draws any.
    """
    strength = read("strength", strength, Share)
    set_scale(base, None)
    if strength == 0:
        return encode_and_decode(base, photos)
    return redraw(base, photos, strength, seed=range(seed, seed + len(photos)))


def match_colours(
    photos: Pictures, style_pictures: Pictures, strength: float = 1.0, base=None, seed=0
) -> list[Image.Image]:
    """Give each photo the colours of all style pictures together, and change nothing else.

    The histograms of red, green and blue are matched (Gonzalez and Woods, Digital Image
    Processing, 3.3). strength: the share of it that is laid over the photo.
    """
    strength = read("strength", strength, Share)
    reference = np.concatenate(
        [np.asarray(p.convert("RGB")).reshape(-1, 1, 3) for p in _some(style_pictures)]
    )
    pictures = []
    for photo in (photo.convert("RGB") for photo in photos):
        matched = skimage.exposure.match_histograms(np.asarray(photo), reference, channel_axis=-1)
        pictures.append(Image.blend(photo, Image.fromarray(matched), strength))
    return pictures


@torch.enable_grad()
def gatys(
    photos: Pictures,
    style_pictures: Pictures,
    strength: float = 1.0,
    base: Base | None = None,
    seed: int = 0,
    steps: int = GATYS_STEPS,
    content_weight: float = 0.02,
    features: str = "pocket",
) -> list[Image.Image]:
    """Change the pixels until the features are those of the style (Gatys et al. 2015,
    https://arxiv.org/abs/1508.06576).

    From the photo on, Adam minimises content_weight * LPIPS to the photo + the style distance of
    losses.PictureLosses, with which a LoRA is trained. strength: the share of the `steps` that is
    taken, since how long it runs decides more than the weight. (The paper has other features,
    begins at noise, and uses L-BFGS, whose line search would tie the pictures of a batch together.)
    """
    strength = read("strength", strength, Share)
    device = None if base is None else base.device
    looks = PictureLosses(to_tensor(_some(style_pictures)), features, device)
    pictures = []
    for photo in to_tensor(photos).split(BATCH):
        x = photo.to(looks.targets[0].device, copy=True)
        with torch.no_grad():
            kept = unit_features(looks.net, x)
        x.requires_grad_()
        optimizer = torch.optim.Adam([x], lr=0.02)
        for _ in range(round(strength * steps)):
            seen = unit_features(looks.net, x)
            content, style = lpips_from(looks.net, seen, kept), looks.style(x, seen)
            (x.grad,) = torch.autograd.grad((content_weight * content + style).sum(), x)
            optimizer.step()
            with torch.no_grad():
                x.clamp_(-1, 1)
        pictures += to_pictures(x)
    return pictures


@torch.no_grad()
def latent_adain(
    photos: Pictures, style_pictures: Pictures, strength: float, base: Base, seed=0
) -> list[Image.Image]:
    """Give the latents of each photo the statistics of a style (Huang and Belongie 2017,
    https://arxiv.org/abs/1703.06868), and decode them.

    Mean and deviation of every channel become those of the latents of all style pictures together.
    strength: the share of the way there. The paper does so in a network's features and trains a
    decoder for them; the base's autoencoder has one already.
    """
    strength = read("strength", strength, Share)
    latents, style = (base.encode(to_tensor(_some(p))).float() for p in (photos, style_pictures))
    return to_pictures(base.decode(latents.lerp(adain(latents, style), strength)))


def adain(latents: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Latents (N, C, h, w), each with the means and deviations of the style's channels.

    style: (M, C, h, w); the statistics are of all M together.
    """
    mean, deviation = (f(latents, dim=(2, 3), keepdim=True) for f in (torch.mean, torch.std))
    goal, spread = (f(style, dim=(0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    return (latents - mean) / deviation.clamp(min=1e-6) * spread + goal


class Baseline(NamedTuple):
    """A baseline, the settings of its knob that draw its curve, and whether it sees the style."""

    draw: Callable[..., list[Image.Image]]
    strengths: tuple[float, ...]
    sees_style: bool = True


BASELINES = {
    "photo as it is": Baseline(photo_as_it_is, (0.0,), sees_style=False),
    "img2img": Baseline(img2img, (0.1, 0.3, 0.5, 0.7), sees_style=False),
    "colours": Baseline(match_colours, (0.0, 0.25, 0.5, 0.75, 1.0)),
    "Gatys": Baseline(gatys, (0.0, 0.5, 1.0)),
    "latent AdaIN": Baseline(latent_adain, (0.0, 0.25, 0.5, 0.75, 1.0)),
}


@torch.no_grad()
def encode_and_decode(base: Base, pictures: Pictures) -> list[Image.Image]:
    """What the autoencoder leaves of pictures, which nothing drawn in latents can better."""
    return to_pictures(base.decode(base.encode(to_tensor(_some(pictures)))))


def _some(pictures: Pictures | None) -> list[Image.Image]:
    if not pictures:
        raise StylenbError("There is nothing to work on: give a photo and a picture of the style.")
    return list(pictures)
