"""Style transfer without a prompt: encode -> add noise -> denoise with the style's LoRA -> decode.

The image-to-image of SDEdit (https://arxiv.org/abs/2108.01073) with "" as the only condition and
no guidance, so that each step is one call of the UNet; or, to keep more of the photo, the same from
the noise that DDIM finds when it is run backwards.
"""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from operator import index
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DPMSolverMultistepScheduler
from PIL import Image, PngImagePlugin
from tqdm.auto import tqdm

from .base import SOLVER_STEPS, Base, load
from .errors import StylenbError
from .lora import find_lora, load_lora, merged_for_now, set_scale
from .photos import (
    PictureFolder,
    _list_folder,
    _printable,
    _reason_to_skip,
    _too_few,
    open_photo,
    to_pictures,
    to_tensor,
)

BATCH_PIXELS = 512 * 512  # in a batch, unless its size is given

_load_once = lru_cache(maxsize=1)(load)


@torch.no_grad()
def denoise(
    base: Base,
    latents: torch.Tensor,
    strength: float | None = None,
    steps: int | None = None,
    seed: int | Iterable[int] = 0,
    solver: str | None = None,
    noisy: torch.Tensor | None = None,
) -> torch.Tensor:
    """Noise latents (N, 4, h, w) up to `strength` of the schedule and denoise them; same shape out.

    strength: s goes s of the way up the schedule, and takes s * steps steps down again.
    strength, solver: None is the base's default; steps: None is 30 for "ddim", 20 for "inversion",
        10 for "dpm".
    seed: of the noise. One number gives every picture the same noise; a sequence of N gives each
        its own. A picture's noise does not depend on what else is in the batch.
    solver: "ddim" (https://arxiv.org/abs/2010.02502) goes through the last s * steps of the base's
        `steps` timesteps. "dpm" is DPM-Solver++ of second order (https://arxiv.org/abs/2211.01095)
        at the noise levels of Karras et al. (https://arxiv.org/abs/2206.00364): a third of the
        steps will do, and it starts at exactly s of the schedule, however few they are. At strength
        1 these two start from all but pure noise and keep next to nothing.
        "inversion" is "ddim", but begins with the noise that `invert` finds and draws none: layout
        and fine shapes of the photo are in that noise, so much more of it is kept, at twice the
        calls of the UNet.
    noisy: the noisy latents to start from, of that strength, where they are known already.
    """
    strength, steps, solver = _defaults(base, strength, steps, solver)
    count = _steps_run(steps, strength)
    generators = [torch.Generator().manual_seed(one) for one in _seeds(seed, len(latents))]
    if solver == "dpm":
        scheduler = DPMSolverMultistepScheduler.from_config(base.scheduler.config)
        first = max(count, round(strength * scheduler.config.num_train_timesteps)) - 1
        spaced = _karras_timesteps(base.scheduler.alphas_cumprod, first, count)
        scheduler.set_timesteps(timesteps=spaced, device=base.device)
        scheduler.set_begin_index(0)
        timesteps = scheduler.timesteps
    else:
        scheduler = DDIMScheduler.from_config(base.scheduler.config)
        scheduler.set_timesteps(steps, device=base.device)
        timesteps = _in_schedule(scheduler, scheduler.timesteps[steps - count :])
    if noisy is not None:
        latents = noisy
    elif solver == "inversion":
        latents = invert(base, latents, strength, steps)
    else:  # drawn on the CPU: the same on every device
        noise = [torch.randn(1, *latents.shape[1:], generator=one) for one in generators]
        latents = scheduler.add_noise(latents, torch.cat(noise).to(latents), timesteps[:1])
    for t in timesteps:
        noise = base.predict_noise(latents, t)
        latents = scheduler.step(noise, t, latents).prev_sample
    return latents


@torch.no_grad()
def invert(
    base: Base, latents: torch.Tensor, strength: float | None = None, steps: int | None = None
) -> torch.Tensor:
    """The noisy latents from which DDIM would draw these latents (N, 4, h, w); same shape out.

    DDIM draws no random numbers, so its steps can be taken backwards (section 4.3 of
    https://arxiv.org/abs/2010.02502): the noise that the UNet predicts is added, not removed. It is
    predicted by the base as it was loaded, for "" and without LoRA or DreamBooth; drawing with one
    of these then changes what they change and keeps the rest. strength, steps: as in `denoise`.

    Raises StylenbError while a LoRA is merged.
    """
    strength, steps, _ = _defaults(base, strength, steps, "inversion")
    known = signature(DDIMInverseScheduler).parameters  # from_config warns of all the others
    given = {name: value for name, value in base.scheduler.config.items() if name in known}
    scheduler = DDIMInverseScheduler(**given)
    scheduler.set_timesteps(steps, device=base.device)
    with base.as_loaded():
        for t in _in_schedule(scheduler, scheduler.timesteps[: _steps_run(steps, strength)]):
            noise = base.predict_noise(latents, t, base.empty)
            latents = scheduler.step(noise, t, latents).prev_sample
    return latents


def _steps_run(steps: int, strength: float) -> int:
    return max(1, round(steps * strength))


def _in_schedule(scheduler, timesteps: torch.Tensor) -> torch.Tensor:
    # With steps_offset 1, a thousand steps begin at 1000, one beyond the schedule.
    return timesteps.clamp(max=scheduler.config.num_train_timesteps - 1)


def _defaults(base: Base, strength, steps, solver) -> tuple[float, int, str]:
    solver = base.default_solver if solver is None else _check_solver(solver)
    strength = base.default_strength if strength is None else strength
    return strength, SOLVER_STEPS[solver] if steps is None else steps, solver


def _check_solver(solver: str) -> str:
    if solver not in SOLVER_STEPS:
        raise StylenbError(f"solver is one of {', '.join(SOLVER_STEPS)}, not {solver!r}.")
    return solver


def _karras_timesteps(alphas_cumprod: torch.Tensor, first: int, count: int) -> list[int]:
    """`count` different timesteps from `first` down to 0, evenly spaced in noise ** (1 / 7)."""
    kept = alphas_cumprod.double().cpu().numpy()
    noise = ((1 - kept) / kept) ** 0.5
    roots = np.linspace(noise[first] ** (1 / 7), noise[0] ** (1 / 7), count)
    spaced = np.interp(7 * np.log(roots), np.log(noise), np.arange(len(noise))).round().astype(int)
    rising = np.arange(count)
    spaced = np.maximum.accumulate(spaced[::-1] - rising)[::-1] + rising[::-1]
    return np.minimum(spaced, first - rising).tolist()


def _seeds(seed, count: int) -> list[int]:
    try:
        seeds = [index(one) for one in (seed if isinstance(seed, Iterable) else [seed] * count)]
    except TypeError:
        seeds = []
    if len(seeds) != count or not all(0 <= one < 2**63 for one in seeds):
        raise StylenbError(
            f"seed is a whole number from 0 up, or one for each picture (here {count}), not "
            f"{seed!r}."
        )
    return seeds


@torch.no_grad()
def stylize(
    image,
    style: str | Path | Mapping[str | Path, float] | None = None,
    strength: float | None = None,
    scale: float | Mapping[str, float] = 1.0,
    steps: int | None = None,
    seed: int | Iterable[int] = 0,
    base: Base | str = "pocket",
    fit: str = "crop",
    solver: str | None = None,
    batch_size: int | None = None,
    keep_colours: bool = False,
) -> Image.Image | list[Image.Image]:
    """Redraw a photo in a style; returns a PIL image of the base's size, of a list a list.

    image: whatever `open_photo` takes, or a list of it. style: a shipped style, the path of a LoRA
    file, {style: weight, ...} for the exact sum of several, or None for the base alone.
    strength in (0, 1]: how far up the noise schedule to start; None is the base's default.
    scale: the LoRA's volume, 0 is off; or one for each group of layers, see `set_scale`.
    steps, solver: of the whole schedule, and "ddim", "inversion" or "dpm"; None as in `denoise`.
    seed: a number, or one for each picture. The same photo and seed give the same picture whatever
    else is in the list, to within rounding (a level of 255). fit: "crop" or "pad" to a square.
    batch_size: pictures drawn at once; None is as many as make up 512 x 512 pixels. keep_colours:
    see `with_colours_of`.

    Raises StylenbError for a photo that cannot be opened, an unknown style, or a value out of
    range.
    """
    several = isinstance(image, (list, tuple))
    images = image if several else [image]
    seeds = _seeds(seed, len(images))
    look = _Look(style, strength, scale, steps, fit, solver, keep_colours)
    base = _open_base(base)
    look.settle(base)
    photos = [open_photo(one, size=base.image_size, fit=fit) for one in images]
    at_once = _batch_size(base, batch_size)
    pictures: list[Image.Image] = []
    with _styled(base, look):
        for first in range(0, len(photos), at_once):
            part = slice(first, first + at_once)
            pictures += _draw(base, look, photos[part], seeds[part])
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


@dataclass
class _Look:
    """All that decides what becomes of a photo, besides the base and the seed; checked."""

    style: str | Path | Mapping[str | Path, float] | None = None
    strength: float | None = None
    scale: float | Mapping[str, float] = 1.0
    steps: int | None = None
    fit: str = "crop"
    solver: str | None = None
    keep_colours: bool = False

    def __post_init__(self):
        if self.solver is not None:
            _check_solver(self.solver)
        if self.strength is not None and not 0 < self.strength <= 1:
            raise StylenbError(f"strength lies above 0 and up to 1, not {self.strength}.")
        if self.steps is not None and not (isinstance(self.steps, int) and 1 <= self.steps <= 1000):
            raise StylenbError(f"steps is a whole number from 1 to 1000, not {self.steps}.")
        weights = self.style
        if not isinstance(weights, Mapping):
            weights = {} if weights is None else {weights: 1.0}
        # found before a large base is loaded in vain
        self.files = [(find_lora(style), weight) for style, weight in weights.items()]

    def settle(self, base: Base) -> None:
        """Put what suits the base where nothing was said."""
        self.strength, self.steps, self.solver = _defaults(
            base, self.strength, self.steps, self.solver
        )


def _open_base(base: Base | str) -> Base:
    return base if isinstance(base, Base) else _load_once(base)


def _batch_size(base: Base, given: int | None) -> int:
    if given is None:
        return max(1, BATCH_PIXELS // base.image_size**2)
    if not isinstance(given, int) or given < 1:
        raise StylenbError(f"batch_size is a whole number from 1 up, not {given!r}.")
    return given


@contextmanager
def _styled(base: Base, look: _Look) -> Iterator[None]:
    """Inside, the look's LoRAs are part of the UNet; afterwards none is."""
    names = {load_lora(base, file): weight for file, weight in look.files}
    if len(names) < len(look.files):
        files = " and ".join(f"'{file}'" for file, _ in look.files)
        raise StylenbError(
            f"Two of the styles have one name ({files}): give each once, or rename the file of one."
        )
    if look.solver != "inversion":
        with merged_for_now(base, names, look.scale):
            yield
        return
    try:  # the base is needed without them, too
        if names:
            set_scale(base, names, look.scale)
        yield
    finally:
        set_scale(base, None)


@torch.inference_mode()
def _draw(base: Base, look: _Look, photos: list, seeds: list[int]) -> list[Image.Image]:
    """One batch: photos of the base's size, redrawn. The UNet gains by many at once, the
    autoencoder, with its much larger layers, by few."""
    latents = torch.cat([base.encode(part) for part in to_tensor(photos).split(4)])
    latents = denoise(base, latents, look.strength, look.steps, seeds, look.solver)
    pictures = [p for part in latents.split(4) for p in to_pictures(base.decode(part))]
    if look.keep_colours:
        pictures = [with_colours_of(*pair) for pair in zip(photos, pictures, strict=True)]
    return pictures


# ------------------------------------------------------------------------------------ folders


@dataclass(frozen=True, repr=False)
class StylizedFolder:
    """What stylize_folder did: the photos that were `drawn`, those whose picture was `there`
    already, and (photo, why) of those that were `skipped`. The pictures lie in `folder`."""

    folder: Path
    drawn: list[str]
    there: list[str]
    skipped: list[tuple[str, str]]

    def __repr__(self) -> str:
        return self.table()

    def table(self, most: int = 4) -> str:
        """How many photos became what, and of each the first `most` by name."""
        kinds = {"drawn": self.drawn, "there already": self.there}
        for name, reason in self.skipped:
            kinds.setdefault(f"skipped, {reason}", []).append(name)
        width = max(map(len, kinds))
        lines = [f"{str(self.folder)!r}"]
        for kind, names in kinds.items():
            shown = ", ".join(map(_printable, names[:most])) + (", ..." * (len(names) > most))
            lines.append(f"{len(names):5}  {kind:{width}}  {shown}".rstrip())
        return "\n".join(lines)


@torch.no_grad()
def stylize_folder(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    style: str | Path | Mapping[str | Path, float] | None = None,
    *,
    seed: int = 0,
    base: Base | str = "pocket",
    batch_size: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **how,
) -> StylizedFolder:
    """Redraw every photo of a folder as PNG files in another, which is made if it is not there.

    a.jpg becomes a.png; where two photos share a stem, a.jpg.png and a.webp.png. How they were
    drawn is kept in each PNG as text. A picture that is there already is left as it is, so a run
    that was cut goes on when it is started again; with `overwrite` it is drawn anew. Files that
    cannot be used are skipped with the reason, as `read_folder` does.

    seed, base, batch_size and how (strength, scale, steps, fit, solver, keep_colours) are those of
    `stylize`, and so is every picture.

    Raises StylenbError if a folder cannot be used, if none of its files is a photo, and, unless
    `overwrite` is set, if the output holds pictures that were drawn with other settings.
    """
    look = _Look(style, **how)
    (seed,) = _seeds(seed, 1)
    folder, files = _list_folder(folder)
    output = _output_folder(folder, output)
    base = _open_base(base)
    look.settle(base)
    told = _told(look, seed, base)
    if not overwrite:
        _refuse_to_mix(output, told)

    done = StylizedFolder(output, [], [], [])
    targets, todo, guarded = _targets(files, output), [], 0
    for file, target in targets.items():
        if reason := _reason_to_skip(file):
            done.skipped.append((file.name, reason))
        elif overwrite or not target.exists():
            todo.append(file)
        elif _read_told(target).get("photo") == file.name:
            done.there.append(file.name)
        else:
            done.skipped.append((file.name, f"{target.name} is there and not its picture"))
            guarded += 1
    if todo:
        with _styled(base, look), tqdm(total=len(todo), disable=not progress, desc="photos") as bar:
            at_once = _batch_size(base, batch_size)
            for first in range(0, len(todo), at_once):
                photos = {}
                for file in todo[first : first + at_once]:
                    try:
                        photos[file] = open_photo(file, base.image_size, look.fit)
                    except StylenbError as error:
                        done.skipped.append((file.name, getattr(error, "reason", "cannot be read")))
                if photos:
                    pictures = _draw(base, look, list(photos.values()), [seed] * len(photos))
                    for file, picture in zip(photos, pictures, strict=True):
                        text = _as_text({**told, "photo": file.name})
                        save_picture(picture, targets[file], pnginfo=text)
                        done.drawn.append(file.name)
                bar.update(min(at_once, len(todo) - first))
    done.skipped.sort()
    if not (done.drawn or done.there or guarded):
        raise StylenbError(_too_few(PictureFolder(folder, [], [], done.skipped), 1))
    return done


def _output_folder(folder: Path, output) -> Path:
    output = Path(output).expanduser()
    if output.resolve() == folder.resolve():
        raise StylenbError(f"'{output}' is where the photos are: name another folder to write to.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StylenbError(f"'{output}' cannot be a folder ({error}): name another.") from error
    return output


def _targets(files: list[Path], output: Path) -> dict[Path, Path]:
    """Which file each photo's picture goes to; no two have the same, even if case is not told."""
    kinds = Image.registered_extensions()
    stems = Counter(f.stem.casefold() for f in files if f.suffix.lower() in kinds)
    targets, taken = {}, set()
    for file in files:
        alone = file.suffix.lower() in kinds and stems[file.stem.casefold()] == 1
        name = f"{file.stem if alone else file.name}.png"
        while name.casefold() in taken:
            name = f"_{name}"
        taken.add(name.casefold())
        targets[file] = output / name
    return targets


def _told(look: _Look, seed: int, base: Base) -> dict:
    """What a picture tells of how it was drawn; the style's file by a digest too, since it may be
    trained anew under its name."""
    styles = {
        file.stem: [weight, hashlib.sha256(file.read_bytes()).hexdigest()[:12]]
        for file, weight in look.files
    }
    told = {
        key: getattr(look, key)
        for key in ("strength", "scale", "steps", "fit", "solver", "keep_colours")
    }
    told |= {"seed": seed, "base": base.name, "prompt": base.prompt}
    text = json.dumps({"style": styles, **told}, default=float)
    return json.loads(text)  # as it is read back


def _as_text(told: dict) -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    text.add_text("stylenb", json.dumps(told))
    return text


def _read_told(path: Path) -> dict:
    try:
        with Image.open(path) as picture:
            return dict(json.loads(picture.info["stylenb"]))
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # no picture of ours


def _refuse_to_mix(output: Path, told: dict) -> None:
    for path in sorted(output.glob("[!.]*.png")):
        there = _read_told(path)
        different = [
            f"{key} was {there.get(key)!r} and is {value!r}"
            for key, value in told.items()
            if there and there.get(key) != value
        ]
        if different:
            raise StylenbError(
                f"'{output}' holds pictures that were drawn in another way ({path.name}: "
                f"{'; '.join(different)}): name another folder, give those settings again, or "
                "overwrite what is there."
            )


def save_picture(picture: Image.Image, path: Path, **options) -> None:
    """Write under a temporary name first, so that a kill or a full disk leaves no half picture."""
    temporary = path.with_name(f".~{path.name}")
    try:
        picture.save(temporary, **options)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StylenbError(f"'{path}' cannot be written ({error}): free disk space.") from error
