"""Training: one loop for whatever is trained, and the pipeline that teaches a LoRA a style.

`train_style` is the pipeline of the course: encode the pictures -> add noise by the schedule -> the
UNet predicts the noise -> L2 + LPIPS + style loss -> backpropagate and update A and B. `fit` is the
loop below it: accumulation, clipping, schedule, checkpoints, resuming.

Data order, timesteps and noise are functions of (seed, step), so that a run that was killed and
goes on from its last checkpoint ends with the same weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from .base import Base, autocast, fingerprint
from .errors import StylenbError
from .inference import denoise
from .lora import LAYERS, adapters, add_lora, remove_lora, save_lora, set_alpha
from .losses import PictureLosses, estimate_x0, noise_loss, snr
from .photos import to_pictures, to_tensor


class NotFinite(StylenbError):
    """A loss or a gradient was NaN or infinite."""


@dataclass(frozen=True)
class LoopSettings:
    """What every run needs to be told, whatever it trains.

    All that decides what a run comes to is in its settings: it can only be resumed with the same.
    """

    steps: int = 400  # updates of the weights
    batch_size: int = 8  # pictures in a batch, for the noise L2
    accumulate: int = 1  # batches for one update
    learning_rate: float = 1e-3
    warmup: int = 20  # updates until the full rate, which then falls along a cosine
    clip: float = 1.0  # largest length of the gradient
    optimizer: str = "adamw"  # or "adamw8bit", with bitsandbytes
    snr_gamma: float | None = None  # min-SNR weighting of the L2, 5 in its paper
    flip: bool = True  # mirror images count as pictures too
    gradient_checkpointing: bool = False  # less memory, about a third more time
    seed: int = 0

    @classmethod
    def for_base(cls, base: Base, **changes):
        """What to begin with on this base, and `changes` to it. For the pocket base that is what
        gave good pictures in minutes on two CPU cores; for SD v1.5, what is customary on a 16 GB
        GPU."""
        return cls(**{**cls._usual(base, changes), **changes})

    @staticmethod
    def _usual(base: Base, changes: dict) -> dict:
        return {}

    def __post_init__(self):
        values = asdict(self)
        whole = ("rank", "steps", "batch_size", "accumulate", "picture_batch", "picture_every")
        for name in (*whole, "prior_count"):
            value = values.get(name, 1)
            if not isinstance(value, int) or value < 1:
                raise StylenbError(f"{name} is a whole number from 1 up, not {value!r}.")
        for name in ("timesteps", "picture_timesteps"):
            value = values.get(name, 1)
            if not isinstance(value, int) or not 1 <= value <= 1000:
                raise StylenbError(f"{name} is a whole number from 1 to 1000, not {value!r}.")
        if not isinstance(self.seed, int):
            raise StylenbError(f"seed is a whole number, not {self.seed!r}.")
        for name in ("learning_rate", "clip"):
            if not 0 < values[name] < math.inf:
                raise StylenbError(f"{name} must be above 0, not {values[name]!r}.")
        if self.snr_gamma is not None and not 0 < self.snr_gamma < math.inf:
            raise StylenbError(f"snr_gamma is above 0, or None, not {self.snr_gamma!r}.")
        for name in ("alpha", "final_alpha"):
            value = values.get(name, 1)
            if not math.isfinite(value) or not value:
                raise StylenbError(f"{name} is a number other than 0, not {value!r}.")
        if not 0 <= values.get("picture_from", 0) <= 1:
            raise StylenbError(
                f"picture_from is a share of the steps, 0 to 1, not {values['picture_from']!r}."
            )
        for name in ("lpips_weight", "style_weight", "prior_weight", "warmup"):
            if not values.get(name, 0) >= 0:
                raise StylenbError(f"{name} must be 0 or more, not {values[name]!r}.")
        if values.get("layers", "attention") not in LAYERS:
            raise StylenbError(f"layers is {' or '.join(LAYERS)}, not {values['layers']!r}.")
        if self.optimizer not in ("adamw", "adamw8bit"):
            raise StylenbError(f"optimizer is 'adamw' or 'adamw8bit', not {self.optimizer!r}.")


@dataclass(frozen=True)
class Settings(LoopSettings):
    """How `train_style` teaches a LoRA a style; `for_base` knows what suits a base.

    First L2 alone teaches the marks of the style, then LPIPS and the style loss teach to put them
    and the palette on a photo. Neon does not get its dark ground without them. But when they set in
    too early, the marks may never come: from 0.6 of the steps on, most runs lost the dots of
    pointillism, and from 0.7 on none of three did.
    """

    steps: int = 300
    batch_size: int = 8
    learning_rate: float = 3e-3
    warmup: int = 10
    rank: int = 8
    layers: str = "transformer"  # that get a LoRA, or "attention": see add_lora
    alpha: float = 1.0  # of W' = W + alpha A B; peft's lora_alpha is alpha * rank
    final_alpha: float = 1.5  # of the finished LoRA: turned up, the style prevails over the photo
    timesteps: int = 800  # the L2 is taken below this one, where stylising begins
    lpips_weight: float = 0.04
    style_weight: float = 0.3
    picture_batch: int = 2  # content pictures in a batch, for LPIPS and style loss
    picture_every: int = 1  # they are taken at every k-th update
    picture_from: float = 0.7  # and after this share of the steps, when the marks are learned
    picture_timesteps: int = 400  # and below this timestep, weighted by min(1, SNR)
    features: str = "pocket"  # or "squeeze", "alex", "vgg": what LPIPS and style loss look through

    @staticmethod
    def _usual(base: Base, changes: dict) -> dict:
        if not base.full_size:
            return {}
        return {  # the loss of a picture costs several plain steps here, its decoder most of it
            "steps": 800,
            "batch_size": 1,
            "accumulate": 4,
            "learning_rate": 1e-4,
            "warmup": 40,
            "layers": "attention",
            "final_alpha": 1.0,
            "timesteps": 1000,
            "picture_batch": 1,
            "picture_every": 4,
            "gradient_checkpointing": True,
        }

    @property
    def looks_at_pictures(self) -> bool:
        return self.lpips_weight > 0 or self.style_weight > 0


@dataclass
class History:
    """What a run did: a row of losses for every update, and validation pictures on the way."""

    rows: list[dict] = field(default_factory=list)
    pictures: dict[int, list] = field(default_factory=dict)
    steps: int = 0  # wanted
    seconds: float = 0.0  # of training, over all restarts

    @property
    def finished(self) -> bool:
        return len(self.rows) >= self.steps

    def values(self, term: str) -> tuple[list[int], list[float]]:
        """The updates at which a term ("loss", "noise", "lpips", "style", "prior") was taken, and
        its values."""
        taken = [(i, row[term]) for i, row in enumerate(self.rows) if term in row]
        return [i for i, _ in taken], [value for _, value in taken]

    def save(self, path: Path) -> None:
        text = json.dumps({"steps": self.steps, "seconds": self.seconds, "rows": self.rows})
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text + "\n")
        temporary.replace(path)


# ------------------------------------------------------------------- functions of (seed, step)


def generator_at(seed: int, batch: int) -> torch.Generator:
    """The source of all that is random in one batch; on the CPU, the same on every device."""
    return torch.Generator().manual_seed(seed * 1_000_003 + batch)


def order_at(seed: int, count: int, first: int, length: int) -> torch.Tensor:
    """Which of `count` pictures stand at positions first .. first + length - 1 of the endless
    order in which every epoch shows each picture once: indices (length,)."""
    epochs = {}
    for position in range(first, first + length):
        epoch = position // count
        if epoch not in epochs:
            epochs[epoch] = torch.randperm(count, generator=generator_at(seed, 500_009 + epoch))
    return torch.stack([epochs[p // count][p % count] for p in range(first, first + length)])


def spread_timesteps(count: int, last: int, generator: torch.Generator) -> torch.Tensor:
    """Random timesteps (count,) in 0..last-1, one from each of `count` equal slices of them.

    Over many batches they are uniform; within one they are even, so the loss varies less.
    """
    slices = torch.arange(count) + torch.rand(count, generator=generator)
    return (slices * last / count).long().clamp(max=last - 1)


def rate_at(step: int, settings: LoopSettings) -> float:
    """The learning rate of an update: a linear warm-up, then half a cosine down to zero."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup))
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def budget(steps: int) -> int:
    """`steps`, or at most 3 where the environment variable STYLENB_QUICK is set: for tests that run
    every cell of a lesson and look at no picture."""
    return min(3, steps) if os.environ.get("STYLENB_QUICK") else steps


# ------------------------------------------------------------------------------ the pipeline


def train_style(
    base: Base,
    style_pictures: Sequence,
    content_pictures: Sequence | None = None,
    name: str = "style",
    settings: Settings | None = None,
    **how,
) -> History:
    """Teach the base a style from a few pictures; the LoRA `name` is left active in `base.unet`.

    style_pictures: PIL pictures of the base's size, 4 or more. The noise L2 is taken on them alone.
    content_pictures: pictures of anything, that LPIPS and the style loss teach the LoRA to redraw;
        None takes the style pictures for both.
    settings: see Settings; None is Settings.for_base(base). how: folder, minutes, validation, ...
        as `fit` takes them. With a folder, `NAME.safetensors` and `history.json` are written there,
        and a run that was cut goes on from its last checkpoint when it is started again.

    The base's text encoder and tokenizer are dropped: "" is encoded once, and nothing else is
    needed. Raises StylenbError for fewer than 4 pictures, and see `fit`.
    """
    settings = settings or Settings.for_base(base)
    if len(style_pictures) < 4:
        raise StylenbError(
            f"A style needs at least 4 pictures, better 16; these are {len(style_pictures)}."
        )
    content_pictures = list(style_pictures if content_pictures is None else content_pictures)
    if not content_pictures:
        raise StylenbError("content_pictures is empty: give some, or leave it out.")
    sizes = sorted({p.size for p in [*style_pictures, *content_pictures]})
    if len(sizes) > 1:
        raise StylenbError(
            f"Style and content pictures must have one size, these have {sizes}: open them with "
            "open_photo(..., size=base.image_size)."
        )
    base.drop_text_encoder()

    # 1. Encode: every picture once, not once a step.
    style_images, style_latents = encode(base, style_pictures, settings.flip)
    looks = None
    if settings.looks_at_pictures:
        content_images, content_latents = encode(base, content_pictures, settings.flip)
        looks = PictureLosses(style_images, settings.features, base.device)
    add_lora(base, name, settings.rank, settings.alpha, settings.seed, settings.layers)

    def losses_of(batch: int) -> dict[str, torch.Tensor]:
        random = generator_at(settings.seed, batch)
        step, size = batch // settings.accumulate, settings.batch_size
        chosen = order_at(settings.seed, len(style_latents), batch * size, size)
        latents, t = style_latents[chosen], spread_timesteps(size, settings.timesteps, random)
        pictures = (
            looks is not None
            and step % settings.picture_every == 0
            and step >= settings.picture_from * settings.steps
        )
        if pictures:
            extra = settings.picture_batch
            kept = order_at(settings.seed + 1, len(content_latents), batch * extra, extra)
            latents = torch.cat([latents, content_latents[kept]])
            t = torch.cat([t, spread_timesteps(extra, settings.picture_timesteps, random)])
        latents, t = latents.to(base.device), t.to(base.device)

        # 2. Add noise by the schedule.
        noise = torch.randn(latents.shape, generator=random).to(base.device)
        noisy = base.scheduler.add_noise(latents, noise, t)

        # 3. The UNet predicts the noise, without a prompt.
        prediction = base.predict_noise(noisy, t)

        # 4. L2 + LPIPS + style loss.
        l2 = noise_loss(prediction, noise, t, base.scheduler, settings.snr_gamma)
        terms = {"noise": l2[:size].mean()}
        if pictures:
            t = t[size:]
            x0 = estimate_x0(base.scheduler, noisy[size:], prediction[size:], t)
            images = base.decode_quickly(x0)
            lpips, style = looks(images, content_images[kept].to(base.device))
            trust = snr(base.scheduler, t).clamp(max=1)  # of the estimate, less with more noise
            terms["lpips"], terms["style"] = (lpips * trust).mean(), (style * trust).mean()
        return terms

    # 5. Backpropagate and update A and B.
    about = {
        "name": name,
        "base": base.name,
        "fingerprint": fingerprint(base),
        "prompt": base.prompt,
        "style pictures": digest(style_pictures),
        "content pictures": digest(content_pictures),
    }
    weights = {"lpips": settings.lpips_weight, "style": settings.style_weight}

    def draw(photos: Sequence) -> list:
        set_alpha(base, name, settings.final_alpha)
        pictures = redraw(base, photos)
        set_alpha(base, name, settings.alpha)
        return pictures

    base.unet.to(memory_format=torch.channels_last)  # an order in which convolutions take less time
    try:
        history = fit(base, losses_of, settings, weights, about=about, **{"draw": draw, **how})
    except BaseException as error:
        # Kept: the last good weights, and what was learned until somebody stopped a run that has no
        # folder. One that has a folder goes on from there when it is started again.
        stopped = isinstance(error, KeyboardInterrupt) and not how.get("folder")
        if not isinstance(error, NotFinite) and not stopped:
            remove_lora(base, name)
        raise
    finally:
        base.unet.to(memory_format=torch.contiguous_format)  # the order in which they can be saved
        base.unet.requires_grad_(False)
        if name in adapters(base):
            set_alpha(base, name, settings.final_alpha)
    if how.get("folder"):
        about |= {"settings": asdict(settings), "seconds": round(history.seconds)}
        save_lora(base, Path(how["folder"]) / f"{name}.safetensors", name, about)
    return history


@torch.no_grad()
def encode(base: Base, pictures: Sequence, flip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures, and with `flip` their mirror images after them -> images (N, 3, H, W) in [-1, 1]
    and float32 latents (N, 4, H/8, W/8), both in main memory."""
    images = to_tensor(pictures)
    if flip:
        images = torch.cat([images, images.flip(-1)])
    return images, torch.cat([base.encode(part).float().cpu() for part in images.split(4)])


def digest(pictures: Sequence) -> str:
    """A short name of these pictures in this order, to tell whether they are still the same."""
    return hashlib.sha256(b"".join(p.tobytes() for p in pictures)).hexdigest()[:16]


# ------------------------------------------------------------------------------------ the loop


def fit(
    base: Base,
    losses_of: Callable[[int], dict[str, torch.Tensor]],
    settings: LoopSettings,
    weights: dict[str, float],
    *,
    about: dict | None = None,
    folder: str | Path | None = None,
    minutes: float | None = None,
    checkpoint_every: int = 50,
    keep: int = 2,
    validation: Sequence = (),
    validate_every: int = 100,
    watch: Callable[[dict[int, list]], object] | None = None,
    draw: Callable[[Sequence], list] | None = None,
    progress: bool = True,
) -> History:
    """Minimise the weighted sum of losses over whatever in the base requires a gradient.

    losses_of(batch): the terms of the loss of batch 0, 1, 2, ... as scalars; all that is random in
        it must be a function of `batch`. weights: of the terms, 1 where none is given.
    about: what else has to be the same for a run to be resumed.
    folder: where checkpoints are kept, the last `keep` of those written at every
        `checkpoint_every` updates; None keeps none. minutes: stop by itself after this time, save,
        and go on from there when called again.
    validation: photos to redraw at every `validate_every` updates, at the base's default strength;
        watch: is called each time with all of them so far, update -> pictures, to show them while
        the training goes on; draw: what redraws them, None for the base without a prompt.

    Raises StylenbError for a folder that holds a run with other settings, and at the first loss or
    gradient that is not finite, after putting the last good weights back. (A float16 base first
    tries smaller and smaller scales of the loss, as overflow looks the same.)
    """
    for name, value in (("checkpoint_every", checkpoint_every), ("validate_every", validate_every)):
        if not isinstance(value, int) or value < 1:
            raise StylenbError(f"{name} is a whole number from 1 up, not {value!r}.")
    parameters = {
        f"{part}.{name}": p
        for part in ("unet", "text_encoder")
        if getattr(base, part) is not None
        for name, p in getattr(base, part).named_parameters()
        if p.requires_grad
    }
    optimizer = make_optimizer(list(parameters.values()), settings)
    # Gradients of half-precision weights below 6e-8 would vanish if the loss were not scaled up.
    scaler = torch.amp.GradScaler(base.device.type, enabled=base.dtype == torch.float16)
    checkpoints = Checkpoints(
        folder, keep, {**asdict(settings), **(about or {})}, parameters, optimizer, scaler
    )
    history = History(checkpoints.resume(), steps=settings.steps)
    history.seconds = sum(row["seconds"] for row in history.rows)
    history.pictures = checkpoints.pictures(len(history.rows))
    if settings.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
        base.unet.train()  # diffusers checkpoints in training mode only; no dropout is in there
    began = time.monotonic()
    smooth: dict[str, float] = {}
    bar = tqdm(
        total=settings.steps, initial=len(history.rows), disable=not progress, desc="training"
    )
    try:
        while not history.finished:
            step, started = len(history.rows), time.monotonic()
            row: dict[str, float] = {}
            for micro in range(settings.accumulate):
                with autocast(base.device):
                    terms = losses_of(step * settings.accumulate + micro)
                    loss = sum(weights.get(k, 1.0) * v for k, v in terms.items())
                scaler.scale(loss / settings.accumulate).backward()
                for key, value in {**terms, "loss": loss}.items():
                    row[key] = row.get(key, 0.0) + value.item() / settings.accumulate
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip).item()
            # The scaler finds its scale by gradients that overflow, and leaves those updates out.
            overflow = scaler.is_enabled() and scaler.get_scale() > 1
            if not math.isfinite(row["loss"]) or not (math.isfinite(norm) or overflow):
                checkpoints.stop("gradient" if math.isfinite(row["loss"]) else "loss", step)
            if step % checkpoint_every == 0:  # these weights have just given finite figures
                checkpoints.save(history)
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, settings)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

            row["gradient"], row["seconds"] = norm, time.monotonic() - started
            history.rows.append({key: float(f"{value:.5g}") for key, value in row.items()})
            history.seconds += row["seconds"]
            for key, value in row.items():
                if key in terms:
                    smooth[key] = 0.95 * smooth.get(key, value) + 0.05 * value
            bar.set_postfix({key: f"{value:.3f}" for key, value in smooth.items()}, refresh=False)
            bar.update()
            if validation and (step + 1) % validate_every == 0:
                history.pictures[step + 1] = (
                    redraw(base, validation) if draw is None else draw(validation)
                )
                checkpoints.save_pictures(step + 1, history.pictures[step + 1])
                if watch is not None:
                    watch(dict(history.pictures))
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                break
    finally:
        bar.close()
        base.unet.disable_gradient_checkpointing()
        base.unet.eval()
    if not all(p.isfinite().all() for p in parameters.values()):  # no loss has seen the last update
        checkpoints.stop("weight", len(history.rows))
    checkpoints.save(history)
    if not history.finished:
        print(
            f"Stopped after {minutes:g} min at step {len(history.rows)} of {settings.steps}"
            + ("; run it again to go on." if folder else ".")
        )
    return history


def make_optimizer(parameters: list, settings: LoopSettings) -> torch.optim.Optimizer:
    """AdamW without weight decay, or its 8-bit twin, whose state takes a quarter of the memory."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=0.0)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise StylenbError(
            "optimizer 'adamw8bit' needs bitsandbytes: run `pip install bitsandbytes`, or use "
            "'adamw'."
        ) from error
    return AdamW8bit(parameters, settings.learning_rate, weight_decay=0.0)


@torch.no_grad()
def redraw(base: Base, photos: Sequence) -> list:
    """Photos through the base as it is now, at its default strength, with the same noise always."""
    training = base.unet.training
    base.unet.eval()
    latents = torch.cat([base.encode(part) for part in to_tensor(photos).split(4)])
    latents = denoise(base, latents, steps=budget(base.default_steps))
    base.unet.train(training)
    return [p for part in latents.split(4) for p in to_pictures(base.decode(part))]


def refuse_other_run(folder: str | Path | None, settings: dict) -> None:
    """Raise StylenbError if the newest checkpoint in the folder is of a run with other settings."""
    if folder is None:
        return
    for path in sorted(Path(folder).glob("checkpoint-*.safetensors"), reverse=True):
        try:
            with safe_open(path, "pt") as file:
                kept = json.loads(file.metadata()["settings"])
        except (SafetensorError, OSError):
            continue  # damaged; the one before it will do
        different = [
            f"{key} was {kept.get(key)!r} and is {value!r}"
            for key, value in settings.items()
            if kept.get(key) != value
        ]
        if different:
            raise StylenbError(
                f"{folder} holds a run with other settings ({'; '.join(different)}): "
                "give those again to go on with it, or another folder to start afresh."
            )
        return


class Checkpoints:
    """The state of a run in a folder: `checkpoint-000050.safetensors`, the last few of them.

    Each holds the trained weights, the optimiser's state and, as metadata, settings and history.
    It is written under a temporary name and renamed, so that a kill or a full disk leaves the one
    before it whole. Without a folder only the last good weights are kept, in memory.
    """

    def __init__(self, folder, keep, settings, parameters, optimizer, scaler):
        self.folder = None if folder is None else Path(folder)
        self.keep, self.settings, self.parameters = max(1, keep), settings, parameters
        self.optimizer, self.scaler = optimizer, scaler
        self.good: tuple[int, dict] | None = None
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StylenbError(
                    f"{self.folder} cannot be a folder ({error}): choose another for this run."
                ) from error
            for left_over in (*self.folder.glob("checkpoint-*.tmp"), self.folder / "history.tmp"):
                left_over.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.safetensors"))

    def save(self, history: History) -> None:
        weights = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}
        if not all(w.isfinite().all() for w in weights.values()):
            return
        step = len(history.rows)
        self.good = (step, weights)
        if self.folder is None:
            return
        tensors = {f"weights/{name}": w for name, w in weights.items()}
        numbers: dict[str, float] = {}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    # a copy: 8-bit states share tensors, which safetensors does not write
                    tensors[f"optimizer/{index}/{key}"] = value.cpu().contiguous().clone()
                else:
                    numbers[f"{index}/{key}"] = value
        metadata = {
            "settings": self.settings,
            "rows": history.rows,
            "numbers": numbers,
            "scaler": self.scaler.state_dict(),
        }
        path = self.folder / f"checkpoint-{step:06d}.safetensors"
        temporary = path.with_suffix(".tmp")
        try:
            save_file(tensors, temporary, {k: json.dumps(v) for k, v in metadata.items()})
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            warnings.warn(
                f"Step {step} could not be saved ({error}); training goes on, and what was saved "
                f"before is whole. Free some disk space in {self.folder}.",
                stacklevel=2,
            )
            return
        for old in self._files()[: -self.keep]:
            old.unlink()
        with contextlib.suppress(OSError):  # for looking; the checkpoint has it too
            history.save(self.folder / "history.json")

    def save_pictures(self, step: int, pictures: Sequence) -> None:
        if self.folder is None:
            return
        with contextlib.suppress(OSError):  # they are for looking; the run needs none of them
            (self.folder / "validation").mkdir(exist_ok=True)
            for index, picture in enumerate(pictures):
                picture.save(self.folder / "validation" / f"{step:06d}-{index}.png")

    def pictures(self, steps: int) -> dict[int, list]:
        """The validation pictures of the first `steps` steps: step -> pictures."""
        found: dict[int, list] = {}
        files = self.folder.glob("validation/*.png") if self.folder else ()
        names = (re.fullmatch(r"(\d+)-(\d+)\.png", file.name) for file in files)
        for step, index in sorted(tuple(map(int, name.groups())) for name in names if name):
            if step <= steps:
                with contextlib.suppress(OSError):
                    picture = Image.open(self.folder / "validation" / f"{step:06d}-{index}.png")
                    found.setdefault(step, []).append(picture.convert("RGB"))
        return found

    def resume(self) -> list[dict]:
        """Load the last checkpoint, if there is one, and return the history's rows."""
        refuse_other_run(self.folder, self.settings)
        for path in reversed(self._files() if self.folder else []):
            try:
                with safe_open(path, "pt") as file:
                    metadata = {k: json.loads(v) for k, v in file.metadata().items()}
                    tensors = {key: file.get_tensor(key) for key in file.keys()}
            except OSError:
                continue
            except SafetensorError:  # damaged; the one before it will do
                path.unlink()  # or it would count as one of those to keep
                continue
            weights = {
                k.removeprefix("weights/"): v
                for k, v in tensors.items()
                if k.startswith("weights/")
            }
            self._load_weights(weights)
            self.good = len(metadata["rows"]), weights
            state: dict[int, dict] = {}
            for key, value in tensors.items():
                if key.startswith("optimizer/"):
                    _, index, what = key.split("/")
                    state.setdefault(int(index), {})[what] = value
            for key, value in metadata["numbers"].items():
                index, what = key.split("/")
                state.setdefault(int(index), {})[what] = value
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
            self.scaler.load_state_dict(metadata["scaler"])
            return metadata["rows"]
        return []

    def stop(self, what: str, step: int) -> NoReturn:
        """Put the last good weights back, and say why."""
        kept, weights = self.good or (0, {})  # at step 0 nothing has moved yet
        self._load_weights(weights)
        rate = self.settings["learning_rate"] / 2
        raise NotFinite(
            f"The {what} is not finite at step {step}; the weights of step {kept} are kept. Try "
            f"half the learning rate ({rate:g}), or smaller weights of the losses"
            + (", in another folder." if self.folder else ".")
        )

    @torch.no_grad()
    def _load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        for name, weight in weights.items():
            self.parameters[name].copy_(weight)


@contextlib.contextmanager
def kept_activations(*modules: torch.nn.Module):
    """Inside, count what autograd saves for the way back, but for the modules' own weights.

    Gives a dictionary that fills while the context is open: a number for each storage -> its bytes.
    Shapes are enough: it works on the meta device too. Taught in lesson 05.
    https://docs.pytorch.org/docs/stable/autograd.html#saved-tensors-hooks
    """
    kept: dict[int, int] = {}
    weights: set[int] = set()

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if not weights:  # late, since a LoRA may be added inside
            weights.update(p.untyped_storage()._cdata for m in modules for p in m.parameters())
        storage = tensor.untyped_storage()  # several tensors may be views of one
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        yield kept
