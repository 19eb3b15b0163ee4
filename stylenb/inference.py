"""Style transfer without a prompt: encode -> add noise -> denoise with the style's LoRA -> decode.

The image-to-image of SDEdit (https://arxiv.org/abs/2108.01073) with "" as the only condition, one
call of the UNet a step (or two, where a LoRA asks for guidance); to keep more of a photo, the same
from the noise that DDIM finds when it is run backwards, held by its own attention. All that decides
about a picture is here, in some 460 lines.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from inspect import signature
from math import ceil
from operator import index
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DPMSolverMultistepScheduler
from PIL import Image

from .base import BATCH_PIXELS, SOLVER_STEPS, Base, load
from .errors import StylenbError
from .limits import Count, Guidance, Natural, Share, Side, Strength, Timestep, check_fields, read
from .lora import merged, set_scale, switched
from .lora_files import find_lora, guidance_of, load_lora, text_parts
from .photos import Fit, open_photo, to_pictures, to_tensor

Solver = Literal["ddim", "inversion", "dpm"]
Attention = list[dict[str, torch.Tensor]]  # of each step, queries and keys by the layer's name

_load_once = lru_cache(maxsize=1)(load)


@torch.no_grad()
def denoise(
    base: Base,
    latents: torch.Tensor,
    strength: float | None = None,
    num_inference_steps: int | None = None,
    seed: int | Iterable[int] = 0,
    solver: str | None = None,
    noisy: torch.Tensor | None = None,
    attention: Attention | None = None,
    injection: float = 1.0,
    guidance_scale: float | None = None,
) -> torch.Tensor:
    """Add noise to latents (N, 4, h, w), up to `strength` of the schedule, and denoise; same shape.

    strength: in (0, 1]; s goes s of the way up the schedule, and s * num_inference_steps steps down
        again. strength, solver: None is the base's default.
    num_inference_steps: of the whole schedule; None is what SOLVER_STEPS says of the solver.
    seed: of the noise. A number gives every picture the same; a sequence of N gives each its own.
    solver: "ddim" (https://arxiv.org/abs/2010.02502) goes through the last s * num_inference_steps
        of that many timesteps. "dpm" is DPM-Solver++ of second order (https://arxiv.org/abs/2211.01095)
        at the noise levels of Karras et al. (https://arxiv.org/abs/2206.00364): a third of the
        steps will do, and it starts at exactly s of the schedule, however few they are. At strength
        1 these two start from all but pure noise and keep next to nothing. "inversion" is "ddim"
        from the noise that `invert` finds, and draws none: layout and fine shapes of the photo are
        in it, so much more of the photo is kept, at twice the calls of the UNet.
    noisy: the noisy latents to start from, of that strength, where they are known already;
        attention: what `invert` kept on the way to them.
    injection: in this share of the steps, from the first on, self-attention has the queries and
        keys of the inversion, so that the parts of the photo stay where they are; 0 leaves it free.
        (https://arxiv.org/abs/2211.12572 and 2312.09008; other solvers have none to inject.)
    guidance_scale: from 1 up; above 1, the noise prediction goes on from that of the base as it was
        loaded beyond that of the LoRA, as in https://arxiv.org/abs/2406.02507: a style's marks come
        out stronger, fine shapes of the photo go, and a step is two calls of the UNet. None is what
        the LoRA was made for (`Settings.guidance_scale`) by "inversion", else 1.
    """
    strength, steps, solver = _defaults(base, strength, num_inference_steps, solver)
    draws = [torch.Generator().manual_seed(one) for one in check_seeds(seed, len(latents))]
    scheduler, timesteps = _schedule(base, strength, steps, solver)
    if noisy is not None:
        latents = noisy
    elif solver == "inversion":
        attention = []
        latents = invert(base, latents, strength, steps, attention)
    else:
        latents = scheduler.add_noise(latents, _noise(latents, draws), timesteps[:1])
    # Of steps that only added noise nothing was kept; they are the last of the way down.
    share = read("injection", injection, Share)
    injected = min(round(share * len(timesteps)), len(attention or ()))
    guidance = read("guidance_scale", guidance_scale, Guidance | None)
    guidance = guidance or (guidance_of(base) if solver == "inversion" else 1)
    for i, t in enumerate(timesteps):
        with _looking(base, as_in=attention[-1 - i] if i < injected else None):
            noise = base.predict_noise(latents, t)
            if guidance > 1:
                with _as_loaded(base):
                    plain = base.predict_noise(latents, t, base.empty)
                noise = plain + guidance * (noise - plain)
        latents = scheduler.step(noise, t, latents).prev_sample
    return latents


@torch.no_grad()
def invert(
    base: Base,
    latents: torch.Tensor,
    strength: float | None = None,
    num_inference_steps: int | None = None,
    attention: Attention | None = None,
    path: list[tuple[int, torch.Tensor]] | None = None,
    forward_steps: int = 0,
    seed: int | Iterable[int] = 0,
) -> torch.Tensor:
    """The noisy latents from which DDIM would draw these latents (N, 4, h, w); same shape out.

    DDIM draws no random numbers, so its steps can be taken backwards (section 4.3 of
    https://arxiv.org/abs/2010.02502): the noise that the UNet predicts is added, not removed. It is
    predicted by the base as it was loaded, for "" and without LoRA or DreamBooth; drawing with one
    of these then changes what they change and keeps the rest. strength, steps: see `denoise`.
    attention, path: empty lists; to one the queries and keys of each step are appended, to the
    other its timestep and the noisy latents of it.
    forward_steps: so many of the first steps add random noise of `seed` instead, as in training.

    Raises StylenbError while a LoRA is merged.
    """
    strength, steps, _ = _defaults(base, strength, num_inference_steps, "inversion")
    known = signature(DDIMInverseScheduler).parameters  # from_config warns of all the others
    given = {name: value for name, value in base.scheduler.config.items() if name in known}
    scheduler = DDIMInverseScheduler(**given)
    scheduler.set_timesteps(steps, device=base.device)
    timesteps = _in_schedule(scheduler, scheduler.timesteps[: _steps_run(steps, strength)])
    first = min(read("forward_steps", forward_steps, Natural), len(timesteps) - 1)
    if first:
        draws = [torch.Generator().manual_seed(one) for one in check_seeds(seed, len(latents))]
        noise = _noise(latents, draws)
        latents = base.scheduler.add_noise(latents, noise, timesteps[first - 1 : first])
    with _as_loaded(base):
        for t in timesteps[first:]:
            kept = None if attention is None else {}
            with _looking(base, kept_in=kept):
                noise = base.predict_noise(latents, t, base.empty)
            latents = scheduler.step(noise, t, latents).prev_sample
            if attention is not None:
                attention.append(kept)
            if path is not None:
                path.append((int(t), latents))
    return latents


@contextmanager
def _as_loaded(base: Base) -> Iterator[None]:
    """Inside, the UNet is without LoRA and DreamBooth. Raises StylenbError where one is merged."""
    if merged(base):
        raise StylenbError(
            "A LoRA is merged, and inversion and guidance need the base without it: "
            "unmerge_lora(base) first, or draw with solver='ddim' or 'dpm' and guidance_scale 1."
        )
    with switched(base, None), base.with_originals():
        yield


def _noise(like: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Drawn on the CPU: the same on every device, and for a seed whatever is in the batch."""
    noise = [torch.randn(1, *like.shape[1:], generator=one) for one in generators]
    return torch.cat(noise).to(like)


@contextmanager
def _looking(base: Base, as_in: dict | None = None, kept_in: dict | None = None) -> Iterator[None]:
    """Inside, the queries and keys of self-attention in the UNet's way up are those of `as_in`, or
    are kept in `kept_in`."""

    def see(name: str, layer, given, found):
        if kept_in is not None:
            kept_in[name] = found
        return as_in[name] if as_in else found

    asked = base.unet.named_modules() if as_in or kept_in is not None else ()
    hooks = [
        layer.register_forward_hook(partial(see, name))
        for name, layer in asked
        if name.startswith("up_blocks") and name.endswith(("attn1.to_q", "attn1.to_k"))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _schedule(base: Base, strength: float, steps: int, solver: str):
    """A solver's scheduler and the timesteps of the way down, the noisiest first."""
    count = _steps_run(steps, strength)
    if solver == "dpm":
        scheduler = DPMSolverMultistepScheduler.from_config(base.scheduler.config)
        first = max(count, round(strength * scheduler.config.num_train_timesteps)) - 1
        spaced = _karras_timesteps(base.scheduler.alphas_cumprod, first, count)
        scheduler.set_timesteps(timesteps=spaced, device=base.device)
        scheduler.set_begin_index(0)
        return scheduler, scheduler.timesteps
    scheduler = DDIMScheduler.from_config(base.scheduler.config)
    scheduler.set_timesteps(steps, device=base.device)
    return scheduler, _in_schedule(scheduler, scheduler.timesteps[steps - count :])


def _steps_run(steps: int, strength: float) -> int:
    return max(1, round(steps * strength))


def _in_schedule(scheduler, timesteps: torch.Tensor) -> torch.Tensor:
    # With steps_offset 1, a thousand steps begin at 1000, one beyond the schedule.
    return timesteps.clamp(max=scheduler.config.num_train_timesteps - 1)


def _defaults(base: Base, strength, steps, solver) -> tuple[float, int, str]:
    """What is used of these three, checked, with the base's own where nothing was said."""
    solver = read("solver", solver, Solver | None) or base.default_solver
    strength = read("strength", strength, Strength | None) or base.default_strength
    steps = read("num_inference_steps", steps, Timestep | None) or SOLVER_STEPS[solver]
    return strength, steps, solver


def _karras_timesteps(alphas_cumprod: torch.Tensor, first: int, count: int) -> list[int]:
    """`count` different timesteps from `first` down to 0, evenly spaced in noise ** (1 / 7)."""
    kept = alphas_cumprod.double().cpu().numpy()
    noise = ((1 - kept) / kept) ** 0.5
    roots = np.linspace(noise[first] ** (1 / 7), noise[0] ** (1 / 7), count)
    spaced = np.interp(7 * np.log(roots), np.log(noise), np.arange(len(noise))).round().astype(int)
    rising = np.arange(count)
    spaced = np.maximum.accumulate(spaced[::-1] - rising)[::-1] + rising[::-1]
    return np.minimum(spaced, first - rising).tolist()


def check_seeds(seed, count: int) -> list[int]:
    """A seed for each of `count` pictures. Raises StylenbError for what cannot be seeds."""
    try:
        seeds = [index(one) for one in (seed if isinstance(seed, Iterable) else [seed] * count)]
    except TypeError:
        seeds = []
    if len(seeds) != count or not all(0 <= one < 2**63 for one in seeds):
        raise StylenbError(
            f"seed is a whole number from 0 up, or one a picture (here {count}), not {seed!r}."
        )
    return seeds


@torch.no_grad()
def redraw(
    base: Base,
    photos: Sequence[Image.Image],
    strength: float | None = None,
    num_inference_steps: int | None = None,
    seed: int | Iterable[int] = 0,
    solver: str | None = None,
    batch_size: int | None = None,
    keep_colours: bool = False,
    injection: float = 1.0,
    guidance_scale: float | None = None,
) -> list[Image.Image]:
    """Encode -> denoise -> decode: photos of any sizes through the base as it is now, whatever LoRA
    is active in it; one picture for each, of its very size.

    A side that is no multiple of base.multiple is drawn a little longer, see `_mirrored`, and cut
    again; photos that are then of one size are drawn together.
    batch_size: how many at once; None is as many as make up 512 x 512 px. keep_colours: see
    `with_colours_of`. All others: as in `denoise`.
    """
    photos = [photos] if isinstance(photos, Image.Image) else list(photos)
    images = [_mirrored(photo, base.multiple) for photo in photos]
    seeds, pictures, groups = check_seeds(seed, len(images)), {}, {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    for shape, group in groups.items():
        at_once = batch_size_for(shape[2] * shape[3], batch_size)
        for part in (group[first : first + at_once] for first in range(0, len(group), at_once)):
            latents = base.encode(torch.cat([images[i] for i in part])).float()
            own = [seeds[i] for i in part]
            how = {"injection": injection, "guidance_scale": guidance_scale}
            latents = denoise(base, latents, strength, num_inference_steps, own, solver, **how)
            pictures.update(zip(part, to_pictures(base.decode(latents)), strict=True))
    pictures = [pictures[i].crop((0, 0, *photo.size)) for i, photo in enumerate(photos)]
    if keep_colours:
        pictures = [with_colours_of(*pair) for pair in zip(photos, pictures, strict=True)]
    return pictures


def _mirrored(photo: Image.Image, multiple: int) -> torch.Tensor:
    """The photo (1, 3, H, W), continued by its mirror image to the right and at the bottom (the
    latents, and so the strokes of a style, count from the top left) until H and W are multiples."""
    image = to_tensor(photo).numpy()
    extra = [(0, -side % multiple) for side in image.shape[2:]]
    return torch.from_numpy(np.pad(image, [(0, 0), (0, 0), *extra], "symmetric"))


def batch_size_for(pixels: int, given: int | None = None) -> int:
    """How many pictures of so many pixels are drawn at once, unless it is given."""
    return read("batch_size", given, Count | None) or max(1, BATCH_PIXELS // pixels)


@torch.no_grad()
def stylize(
    image,
    style: str | Path | Mapping[str | Path, float] | None = None,
    strength: float | None = None,
    scale: float | Mapping[str, float] = 1.0,
    num_inference_steps: int | None = None,
    seed: int | Iterable[int] = 0,
    base: Base | str = "pocket",
    fit: str = "whole",
    solver: str | None = None,
    batch_size: int | None = None,
    keep_colours: bool = False,
    size: int | None = None,
    original_size: bool = False,
    injection: float = 1.0,
    guidance_scale: float | None = None,
) -> Image.Image | list[Image.Image]:
    """Redraw a photo in a style; returns a PIL image, of a list a list.

    image: whatever `open_photo` takes, or a list of it. style: a shipped style, the path of a LoRA
    file, {style: weight, ...} for the exact sum of several, or None for the base as it is.
    scale: the LoRA's volume, 0 is off; or one for each group of layers, see `set_scale`.
    strength in (0, 1], how far up the noise schedule to start, num_inference_steps of all of it,
    and solver, "ddim", "inversion" or "dpm": see `denoise`; None is what suits the base.
    seed: a number, or one for each picture. The same photo and seed give the same picture whatever
    else is in the list, to within rounding (a level of 255).
    fit: "whole" draws all of the photo in its own shape; "crop" or "pad" make it a square first.
    size: 16 to 4096 pixels, the long side at which it is drawn, or the square's side. None is the
    base's: see `StylizeSettings.size_for`.
    original_size: enlarge (or shrink) what was drawn to the photo's own size, by Lanczos; only of
    the whole photo. Strokes become larger and softer, and no detail is added.
    batch_size, keep_colours, injection, guidance_scale: as in `redraw`.

    Raises StylenbError for a photo that cannot be opened, an unknown style, a value out of range.
    """
    several = isinstance(image, (list, tuple))
    images = image if several else [image]
    seeds = check_seeds(seed, len(images))
    settings = (style, strength, scale, num_inference_steps, fit, solver, keep_colours)
    how = StylizeSettings(*settings, size, original_size, injection, guidance_scale)
    base = open_base(base)
    opened = [how.open(one, base) for one in images]
    with in_style(base, how):
        options = {"seed": seeds, "batch_size": batch_size, **how.of_redraw}
        pictures = redraw(base, [photo for photo, _ in opened], **options)
    pictures = [how.finished(p, own) for p, (_, own) in zip(pictures, opened, strict=True)]
    return pictures if several else pictures[0]


def with_colours_of(photo: Image.Image, picture: Image.Image) -> Image.Image:
    """`picture` in the colours of `photo`, which has the same size.

    Lightness, which carries the strokes and edges of a style, is the picture's; the two colour
    coordinates of CIE Lab are the photo's, at every place. So Gatys et al. keep colours in
    https://arxiv.org/abs/1606.05897.
    """
    from skimage.color import lab2rgb, rgb2lab

    lab = rgb2lab(np.asarray(photo))
    lab[..., 0] = rgb2lab(np.asarray(picture))[..., 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of colours that no screen can show
        rgb = lab2rgb(lab)
    return Image.fromarray((rgb * 255).round().astype(np.uint8))


@dataclass(frozen=True)
class StylizeSettings:
    """All that decides what becomes of a photo, besides the base and the seed; see `stylize`."""

    style: Any = None  # a name, a path, or {either: weight}
    strength: Strength | None = None
    scale: Any = 1.0  # a number, or {group of layers: number}
    num_inference_steps: Timestep | None = None
    fit: Fit = "whole"
    solver: Solver | None = None
    keep_colours: bool = False
    size: Side | None = None
    original_size: bool = False
    injection: Share = 1.0
    guidance_scale: Guidance | None = None

    def __post_init__(self):
        check_fields(self)
        if self.original_size and self.fit != "whole":
            raise StylenbError(
                f"original_size needs the whole photo, and fit={self.fit!r} makes it square: "
                "use fit='whole', or leave original_size out."
            )
        _ = self.files  # found before a large base is loaded in vain

    @cached_property
    def files(self) -> list[tuple[Path, float]]:
        """The LoRA files of the style, each with its weight."""
        weights = [] if self.style is None else [(self.style, 1.0)]
        if isinstance(self.style, Mapping):
            weights = self.style.items()
        return [(find_lora(style), weight) for style, weight in weights]

    @property
    def of_redraw(self) -> dict[str, Any]:
        """Those that `redraw` takes, by name."""
        names = "strength num_inference_steps solver keep_colours injection guidance_scale"
        return {name: getattr(self, name) for name in names.split()}

    def with_defaults(self, base: Base) -> StylizeSettings:
        """These, and what suits the base where nothing was said; no size that the photo decides."""
        said = self.strength, self.num_inference_steps, self.solver
        strength, steps, solver = _defaults(base, *said)
        size = self.size if self.fit == "whole" else self.size_for((1, 1), base)
        how = {"strength": strength, "num_inference_steps": steps, "solver": solver, "size": size}
        return replace(self, **how)

    def size_for(self, own: tuple[int, int], base: Base) -> int:
        """The long side, or the square's, in pixels at which a photo of its `own` size is drawn.

        By default a square is one that the base knows. Of a whole photo it is base.default_size,
        or more where the short side would be below base.image_size, but at most twice as much.
        """
        if self.size is not None:
            return self.size
        if self.fit != "whole":
            return base.image_size if base.full_size else base.default_size
        needed = ceil(base.image_size * max(own) / min(own))
        return min(max(base.default_size, needed), 2 * base.default_size)

    def open(self, source, base: Base) -> tuple[Image.Image, tuple[int, int]]:
        """The photo as it is to be drawn, and its own size (width, height)."""
        photo = open_photo(source)
        return open_photo(photo, self.size_for(photo.size, base), self.fit), photo.size

    def finished(self, picture: Image.Image, own: tuple[int, int]) -> Image.Image:
        """What was drawn, of the size that was asked for; `own` is the photo's."""
        return picture.resize(own, Image.Resampling.LANCZOS) if self.original_size else picture


def open_base(base: Base | str) -> Base:
    """A base, loaded if it is a name or a path; the last one that was loaded so is kept."""
    read = _load_once if isinstance(base, Hashable) else load  # which says what a base is
    return base if isinstance(base, Base) else read(base)


@contextmanager
def in_style(base: Base, how: StylizeSettings) -> Iterator[None]:
    """Inside, the style's LoRAs are part of the UNet; afterwards no LoRA is active."""
    names = {load_lora(base, file): weight for file, weight in how.files}
    if len(names) < len(how.files):
        raise StylenbError(f"Two styles are one file ({', '.join(names)}): give each once.")
    # Merged they cost no time, but inversion and guidance need the base without them, too.
    merge = how.guidance_scale in (None, 1) and (how.solver or base.default_solver) != "inversion"
    try:
        with switched(base, names, how.scale, merge) if names else nullcontext(), text_parts(base):
            yield
    finally:
        set_scale(base, None)
