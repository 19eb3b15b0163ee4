"""DreamBooth: the model itself learns what a rare token means (https://arxiv.org/abs/2208.12242).

The instance pictures are captioned with a token that no caption of the base used ("a sks style
painting"). Half of every batch may be pictures of the class ("a painting") that the base drew
before: the prior-preservation loss on them holds what the base knew. Any weights can be trained.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from diffusers.training_utils import cast_training_params
from PIL import Image
from tqdm.auto import tqdm

from .base import SOLVER_STEPS, Base, fingerprint, plain_name
from .errors import StylenbError, replacing
from .folders import Pictures, open_pictures
from .inference import redraw
from .limits import Count, NonNegative, Nonzero, Positive
from .loop import (
    History,
    LoopSettings,
    Losses,
    Run,
    TrainingStopped,
    generator_at,
    order_at,
    spread_timesteps,
)
from .lora import add_lora, refuse_merged, remove_lora
from .lora_files import about_lora, save_lora, write_safetensors
from .losses import noise_loss
from .photos import open_photo
from .text_to_image import DRAWN_AT_ONCE, generate, without_loras
from .training import check_pictures, digest, encode, train
from .weights import open_safetensors

TRAINED = {  # what is trained: the part of a weight's name that says so
    "unet": ("",),
    "attention": (".attn1.", ".attn2."),
    "transformer": (".attentions.",),  # the blocks with their norm and projections around them
    "lora": (),
}


@dataclass(frozen=True)
class DreamBoothSettings(LoopSettings):
    """How `train_dreambooth` trains; `for_base` knows what suits a base."""

    steps: Count = 300
    batch_size: Count = 4  # instance pictures; as many of the class are added
    learning_rate: Positive = 1e-3
    train: Literal["unet", "attention", "transformer", "lora"] = "unet"  # which weights
    text_encoder: bool = False  # train all of it too
    prompt: str = "a sks style painting"
    class_prompt: str = "a painting"
    prior_loss_weight: NonNegative = 1.0  # of the loss on the class pictures; 0 does without them
    num_class_images: Count = 48  # that the base draws for the class prompt
    rank: Count = 8  # of the LoRA, if that is what is trained
    alpha: Nonzero = 1.0

    @staticmethod
    def defaults_for(base: Base, changes: dict) -> dict:
        lora = changes.get("train") == "lora"
        if not base.full_size:  # a tenth of these rates teaches next to nothing in minutes
            fewer = changes.get("train", "unet") != "unet"  # weights, so they must move further
            return {"learning_rate": 3e-3} if fewer else {}
        eight_bit = base.device.type == "cuda" and find_spec("bitsandbytes") is not None
        return {
            "steps": 800,
            "batch_size": 1,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-4 if lora else 5e-6,
            "optimizer": "adamw8bit" if eight_bit and not lora else "adamw",
            "num_class_images": 200,
            "gradient_checkpointing": True,
        }

    def __post_init__(self):
        super().__post_init__()
        if self.text_encoder and self.train == "lora":
            raise StylenbError(
                "A LoRA is trained beside frozen parts: leave text_encoder out, or train 'unet', "
                "'attention' or 'transformer'."
            )
        for name in ("prompt", "class_prompt"):
            if not getattr(self, name).strip():
                raise StylenbError(f"{name} must be some words, not {getattr(self, name)!r}.")
        if self.prior_loss_weight and self.prompt == self.class_prompt:
            raise StylenbError(
                f"prompt and class_prompt are both {self.prompt!r}: put a rare token into the "
                "prompt, 'sks' for example."
            )


# ------------------------------------------------------------------------------ the class pictures


def prior_set(
    base: Base,
    settings: DreamBoothSettings,
    folder: str | Path | None = None,
    progress: bool = True,
) -> list[Image.Image]:
    """The pictures that the base, before it is trained, draws for the class prompt.

    They are kept as PNGs in `folder/prior`; what is missing, damaged or black is drawn again, and
    another prompt, count, seed, size, base, guidance or number of steps makes all of them afresh.

    Raises StylenbError while a DreamBooth is on the base, or a LoRA in it, and for NaN.
    """
    without_loras(base)
    if base.originals:
        raise StylenbError(
            "The prior set shows what the base drew before it was trained: undo_dreambooth(base) "
            "first."
        )
    prompt, count, seed = settings.class_prompt, settings.num_class_images, settings.seed
    files = [None] * count
    if folder is not None:
        card = {"prompt": prompt, "count": count, "seed": seed, "base": fingerprint(base)}
        card |= {"steps": SOLVER_STEPS["ddim"], "guidance_scale": base.default_guidance_scale}
        files = _prior_files(Path(folder) / "prior", card)
    pictures = []
    for first in tqdm(range(0, count, DRAWN_AT_ONCE), desc="prior set", disable=not progress):
        block = files[first : first + DRAWN_AT_ONCE]
        found = [file and _kept(file, base.image_size) for file in block]
        if None in found:
            found = generate(base, prompt, len(block), seed=seed, first=first)
            for file, picture in zip(filter(None, block), found, strict=False):
                with replacing(file) as temporary:
                    picture.save(temporary)
        pictures += found
    return pictures


def _prior_files(folder: Path, card: dict) -> list[Path]:
    """The files of a prior set, after removing those of another one."""
    path, same = folder / "prior.json", False
    with contextlib.suppress(OSError, ValueError):
        same = json.loads(path.read_text(encoding="utf-8")) == card
    if not same:
        for old in folder.glob("[0-9][0-9][0-9][0-9][0-9].png"):
            old.unlink()
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return [folder / f"{number:05}.png" for number in range(card["count"])]


def _kept(file: Path, size: int) -> Image.Image | None:
    with contextlib.suppress(StylenbError):  # not drawn yet, or damaged since
        picture = open_photo(file)
        if picture.size == (size, size) and picture.getbbox():  # None if all of it is black
            return picture
    return None


# ----------------------------------------------------------------------------------------- training


def train_dreambooth(
    base: Base,
    instance_pictures: Pictures,
    settings: DreamBoothSettings | None = None,
    name: str = "dreambooth",
    prior_pictures: Pictures | None = None,
    **run,
) -> History:
    """Teach the base what the rare token in `settings.prompt` means; it is left as trained.

    instance_pictures: 3 or more, see `folders.open_pictures`.
    settings: None is DreamBoothSettings.for_base(base).
    prior_pictures: of the class, instead of those that the base draws for itself (prior_set).
    run: folder, minutes, validation, ..., see loop.Run; validation photos are redrawn with the
        prompt. With a folder, `NAME.safetensors` and `history.json` are written there, and a run
        that was cut resumes from its last checkpoint when it is started again. A checkpoint holds
        the trained weights three times over: `keep=1` and a larger `checkpoint_every` save space.

    The history's terms are "noise", on the instance pictures, and "prior". It begins with the base
    as it was loaded: an earlier DreamBooth is undone first. Weights that are trained are float32
    meanwhile, whatever the base's dtype; those that are not stay bit for bit.

    Raises StylenbError for fewer than 3 pictures, with LoRAs in the UNet, and see `loop.fit`.
    """
    settings, run = settings or DreamBoothSettings.for_base(base), Run(**run)
    (pictures,), prior = open_pictures(base, instance_pictures), []
    check_pictures("DreamBooth", pictures, 3)
    without_loras(base)
    undo_dreambooth(base)
    about = {"method": "dreambooth", "name": name, "base": base.name}
    about |= {"fingerprint": fingerprint(base), "instance pictures": digest(pictures)}
    run.refuse_other(settings, about)  # before any drawing
    if settings.prior_loss_weight:
        if prior_pictures is None:
            prior_pictures = prior_set(base, settings, run.folder, run.progress)
        pictures, prior = open_pictures(base, pictures, prior_pictures)
        check_pictures("DreamBooth", pictures, 3, prior_pictures=prior)
        about["prior pictures"] = digest(prior)
    losses_of = _prompted_losses(base, settings, pictures, prior)
    weights, draw = {"prior": settings.prior_loss_weight}, prompted_redraw(base, settings.prompt)

    def save(path: Path, about: dict) -> Path:  # while the weights are still float32
        if settings.train == "lora":
            return save_lora(base, path, name, about)
        return save_dreambooth(base, path, about)

    with _trained_weights(base, settings, name):
        return train(base, losses_of, settings, weights, run, name, about, draw, save)


@contextlib.contextmanager
def _trained_weights(base: Base, settings: DreamBoothSettings, name: str) -> Iterator[None]:
    """Inside, the weights that are to be trained require gradients, in float32, or are a new LoRA.
    Afterwards they have the base's dtype again; what cannot be trained leaves the base as it was.
    """
    try:
        if settings.train == "lora":
            add_lora(base, name, settings.rank, settings.alpha, settings.seed)
        else:
            chosen = {f"unet.{plain_name(key)}" for key in trainable(base.unet, settings.train)}
            parameters = base.parameters()
            if settings.text_encoder:
                chosen |= {key for key in parameters if key.startswith("text_encoder.")}
            base.keep_originals(chosen)
            for key in chosen:
                parameters[key].requires_grad_(True)
            # the optimiser's small steps vanish in half precision
            cast_training_params([base.unet, base.text_encoder])
        yield
    except TrainingStopped:
        raise  # what was learned is in the base
    except StylenbError:
        remove_lora(base, name)
        undo_dreambooth(base)
        raise
    finally:
        for part in (base.unet, base.text_encoder):
            part.requires_grad_(False)
        for p in base.replaced().values():
            p.data, p.grad = p.data.to(base.dtype), None


def _prompted_losses(base: Base, settings: DreamBoothSettings, *pictures: list) -> Losses:
    """What gives the terms of the loss of a batch: "noise", on the instance pictures, and "prior",
    on those of the class, where there are any."""
    # Every picture is encoded once, and so are the prompts where the text encoder stays as it is.
    sets = [encode(base, each, settings.flip)[1] for each in pictures if each]
    prompts = [settings.prompt, settings.class_prompt][: len(sets)]
    with torch.no_grad():
        frozen = base.embed(prompts)
    states = partial(base.embed, prompts) if settings.text_encoder else lambda: frozen

    def losses_of(batch: int) -> dict[str, torch.Tensor]:
        losses = set_losses(base, settings, sets, states, batch)
        return dict(zip(("noise", "prior"), losses, strict=False))

    return losses_of


def set_losses(
    base: Base,
    settings: LoopSettings,
    sets: Sequence[torch.Tensor],
    states: Callable[[], torch.Tensor],
    batch: int,
) -> list[torch.Tensor]:
    """The L2 on the noise in one batch, taken apart again into the sets that it was made of.

    sets: float32 latents (N, 4, h, w), `settings.batch_size` of each in the batch; states(): the
    embedding of each set's caption, (sets, 77, C). One scalar for each set.
    """
    random, size = generator_at(settings.seed, batch), settings.batch_size
    last = base.scheduler.config.num_train_timesteps
    chosen = [
        latents[order_at(settings.seed + i, len(latents), batch * size, size)]
        for i, latents in enumerate(sets)
    ]
    latents = torch.cat(chosen).to(base.device)
    t = torch.cat([spread_timesteps(size, last, random) for _ in sets]).to(base.device)
    noise = torch.randn(latents.shape, generator=random).to(base.device)
    noisy = base.scheduler.add_noise(latents, noise, t)
    with one_precision(base):
        captions = states().repeat_interleave(size, dim=0)
        prediction = base.predict_noise(noisy, t, captions)
    l2 = noise_loss(prediction, noise, t, base.scheduler, settings.snr_gamma)
    return [part.mean() for part in l2.split(size)]


def prompted_redraw(base: Base, prompt: str) -> Callable[[Sequence], list]:
    """What redraws validation photos with the prompt, by the base as it then is."""

    def draw(photos):
        with one_precision(base):
            return redraw(base.with_prompt(prompt), photos)

    return draw


def trainable(unet: torch.nn.Module, train: str) -> dict[str, torch.nn.Parameter]:
    """The weights of a UNet, on the meta device too, that "unet", "attention" or "transformer"
    stands for, by name."""
    if train not in TRAINED:
        raise StylenbError(f"train is one of {', '.join(TRAINED)}, not {train!r}.")
    return {
        name: p
        for name, p in unet.named_parameters()
        if ".lora_" not in name and any(part in name for part in TRAINED[train])
    }


def one_precision(base: Base):
    """A half-precision base in training has some float32 weights: autocast brings all together."""
    if base.dtype.itemsize == 2:
        return torch.autocast(base.device.type, base.dtype)
    return contextlib.nullcontext()


# ------------------------------------------------------------ what the base was, and what it became


def undo_dreambooth(base: Base) -> None:
    """Put back what train_dreambooth or load_dreambooth replaced: the base is again what it was
    when it was loaded, bit for bit. Does nothing where there is nothing to undo."""
    base.restore_originals()


def save_dreambooth(
    base: Base, path: str | Path, about: dict | None = None, dtype: torch.dtype = torch.float16
) -> Path:
    """Write the weights that DreamBooth replaced, and no others, as safetensors.

    dtype: half precision halves the file. `about` (how it was trained) is kept in the metadata
    with the base's name and read back by load_dreambooth and lora_files.about_lora.

    Raises StylenbError where nothing is replaced, and for NaN or numbers beyond the dtype.
    """
    state = {name: p.detach().to("cpu", dtype).contiguous() for name, p in base.replaced().items()}
    if not state:
        raise StylenbError(
            "The base is as it was loaded, so there is nothing to save: train_dreambooth first."
        )
    told = {"method": "dreambooth", "base": base.name, "fingerprint": fingerprint(base)}
    return write_safetensors(Path(path), state, {}, told | (about or {}))


def load_dreambooth(base: Base, path: str | Path) -> dict:
    """Lay the weights of a file that save_dreambooth wrote onto the base; return its `about`.

    Another DreamBooth that is there is undone first; undo_dreambooth undoes this one.

    Raises StylenbError, and leaves the base as it was, for a file that is none of these, that was
    trained on another base, or that holds NaN or infinity; and while a LoRA is merged.
    """
    path = Path(path)
    about, parameters = about_lora(path), base.parameters()
    with open_safetensors(path) as file:
        state = {key: file.get_tensor(key).to(base.dtype) for key in file.keys()}
    if about.get("method") != "dreambooth" or any(".lora_" in key for key in state):
        raise StylenbError(
            f"{path.name} was not written by save_dreambooth: load_lora reads a LoRA, "
            "load_embedding a textual inversion, and load(folder) a whole model."
        )
    refuse_merged(base)
    if base.text_encoder is None and any(key.startswith("text_encoder.") for key in state):
        raise StylenbError(
            f"{path.name} holds a text encoder and the base's was dropped: load the base again."
        )
    for key, value in state.items():
        here = tuple(parameters[key].shape) if key in parameters else "no such weight"
        if here != value.shape:
            raise StylenbError(
                f"{path.name} does not fit the base {base.name!r} ({key} has the shape "
                f"{tuple(value.shape)} there and {here} here): load the base that it was trained "
                f"on, {about.get('base')!r}."
            )
        if not value.isfinite().all():
            raise StylenbError(
                f"{path.name} holds NaN or infinity ({key}): download or train it again."
            )
    if about.get("fingerprint") != fingerprint(base):
        raise StylenbError(
            f"{path.name} was trained on other weights than those of the base {base.name!r}, "
            f"though of the same shapes: load the base {about.get('base')!r} of that time, or "
            "train it again."
        )
    undo_dreambooth(base)
    base.keep_originals(state)
    for key, value in state.items():
        parameters[key].data = value.to(base.device)
    base.forget_empty()
    return about
