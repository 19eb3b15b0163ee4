"""DreamBooth: the model itself learns what a rare token means (https://arxiv.org/abs/2208.12242).

The instance pictures are captioned with a token that no caption of the base used ("a sks style
painting"). Half of every batch may be pictures of the class ("a painting") that the base drew
before: the prior-preservation loss on them holds what the base knew. Which weights are trained is
a choice, from the whole UNet down to a LoRA.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from safetensors.torch import save_file
from tqdm.auto import tqdm

from .base import SOLVER_STEPS, Base, fingerprint, plain_name
from .errors import StylenbError
from .lora import _lora_layers, _open, adapters, add_lora, merged, remove_lora, save_lora
from .losses import noise_loss
from .photos import open_photo
from .training import (
    History,
    LoopSettings,
    NotFinite,
    digest,
    encode,
    fit,
    generator_at,
    order_at,
    redraw,
    refuse_other_run,
    spread_timesteps,
)

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

TRAINED = {  # what is trained: the part of a weight's name that says so
    "unet": ("",),
    "attention": (".attn1.", ".attn2."),
    "transformer": (".attentions.",),  # the blocks with their norm and projections around them
    "lora": (),
}
TOGETHER = 4  # pictures that are drawn at once


@dataclass(frozen=True)
class DreamBoothSettings(LoopSettings):
    """How `train_dreambooth` trains; `for_base` knows what suits a base."""

    steps: int = 300
    batch_size: int = 4  # instance pictures; as many of the prior are added
    learning_rate: float = 1e-3
    train: str = "unet"  # or "attention", "transformer", "lora"
    text_encoder: bool = False  # train all of it too
    prompt: str = "a sks style painting"
    class_prompt: str = "a painting"
    prior_weight: float = 1.0  # of the loss on the prior set; 0 does without one
    prior_count: int = 48  # pictures that the base draws for the class prompt
    rank: int = 8  # of the LoRA, if that is what is trained
    alpha: float = 1.0

    @staticmethod
    def _usual(base: Base, changes: dict) -> dict:
        lora = changes.get("train") == "lora"
        if not base.full_size:  # a tenth of these rates teaches next to nothing in minutes
            fewer = changes.get("train", "unet") != "unet"  # weights, so they must move further
            return {"learning_rate": 3e-3} if fewer else {}
        eight_bit = base.device.type == "cuda" and find_spec("bitsandbytes") is not None
        return {
            "steps": 800,
            "batch_size": 1,
            "accumulate": 2,
            "learning_rate": 1e-4 if lora else 5e-6,
            "optimizer": "adamw8bit" if eight_bit and not lora else "adamw",
            "prior_count": 200,
            "gradient_checkpointing": True,
        }

    def __post_init__(self):
        super().__post_init__()
        if self.train not in TRAINED:
            raise StylenbError(f"train is one of {', '.join(TRAINED)}, not {self.train!r}.")
        if self.text_encoder and self.train == "lora":
            raise StylenbError(
                "A LoRA is trained beside frozen parts: leave text_encoder out, or train 'unet', "
                "'attention' or 'transformer'."
            )
        for name in ("prompt", "class_prompt"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise StylenbError(f"{name} must be some words, not {getattr(self, name)!r}.")
        if self.prior_weight and self.prompt == self.class_prompt:
            raise StylenbError(
                f"prompt and class_prompt are both {self.prompt!r}: put a rare token into the "
                "prompt, 'sks' for example."
            )


# ------------------------------------------------------------------------------ drawing by a prompt


def pipeline(base: Base) -> StableDiffusionPipeline:
    """diffusers' own text-to-image, from the base's own parts; with a schedule of its own, since
    drawing changes that. Raises StylenbError once the text encoder was dropped."""
    from diffusers import StableDiffusionPipeline

    if base.text_encoder is None:
        raise StylenbError(
            "The text encoder was dropped to save memory: load the base again to use prompts."
        )
    pipe = StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=type(base.scheduler).from_config(base.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(
    base: Base,
    prompt: str,
    count: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    first: int = 0,
) -> list[Image.Image]:
    """Draw `count` pictures for a prompt with DDIM, from pure noise.

    steps: None is 30. guidance: None is the base's default; 1 draws without classifier-free
    guidance (https://arxiv.org/abs/2207.12598) in half the time. Picture i of a seed is drawn from
    a noise of its own; `first` is the number of the first, so that a set can be drawn in parts.

    Raises StylenbError for values out of range and once the text encoder was dropped.
    """
    steps = SOLVER_STEPS["ddim"] if steps is None else steps
    guidance = base.default_guidance if guidance is None else guidance
    last = base.scheduler.config.num_train_timesteps - 1
    for name, value, least, most in (("count", count, 1, 99_999), ("steps", steps, 1, last)):
        if not isinstance(value, int) or not least <= value <= most:
            raise StylenbError(f"{name} is a whole number from {least} to {most}, not {value!r}.")
    if not guidance >= 1:
        raise StylenbError(f"guidance is 1 (none) or more, not {guidance!r}.")
    if not isinstance(prompt, str):
        raise StylenbError(f"A prompt is a string, not {prompt!r}.")
    pipe, pictures = pipeline(base), []
    for start in range(first, first + count, TOGETHER):
        numbers = range(start, min(start + TOGETHER, first + count))
        pictures += pipe(
            [prompt] * len(numbers),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[generator_at(seed, number) for number in numbers],
        ).images
    return pictures


def prior_set(
    base: Base,
    settings: DreamBoothSettings,
    folder: str | Path | None = None,
    progress: bool = True,
) -> list[Image.Image]:
    """The pictures that the base, before it is trained, draws for the class prompt.

    They are kept as PNGs in `folder/prior`: what was cut is gone on with, and another prompt,
    count, seed or base makes them afresh. Without a folder they are drawn anew each time.

    Raises StylenbError while a DreamBooth is on the base, or a LoRA in it.
    """
    _without_loras(base)
    if any(map(_originals, _parts(base).values())):
        raise StylenbError(
            "The prior set shows what the base drew before it was trained: undo_dreambooth(base) "
            "first."
        )
    card = {
        "prompt": settings.class_prompt,
        "count": settings.prior_count,
        "seed": settings.seed,
        "base": fingerprint(base),
    }
    pictures, files = [], None
    if folder is not None:
        files = _prior_files(Path(folder) / "prior", card)
    blocks = range(0, settings.prior_count, TOGETHER)
    for first in tqdm(blocks, desc="prior set", disable=not progress):
        count = min(TOGETHER, settings.prior_count - first)
        block = files and files[first : first + count]
        found = [_kept(file, base.image_size) for file in block or []]
        if not found or None in found:
            found = generate(base, settings.class_prompt, count, seed=settings.seed, first=first)
            for file, picture in zip(block or [], found, strict=False):
                temporary = file.with_suffix(".tmp")
                picture.save(temporary, "PNG")
                temporary.replace(file)
        pictures += found
    return pictures


def _without_loras(base: Base) -> None:
    """Raise StylenbError while LoRAs are in the UNet, and take out what removed ones left."""
    if adapters(base):
        raise StylenbError(
            f"The LoRA {', '.join(map(repr, adapters(base)))} is in the UNet: keep it with "
            "save_lora if it is to be kept, and take it out with remove_lora first."
        )
    if _lora_layers(base):  # else weights have other names, which plain diffusers cannot read
        base.unet.unload_lora()


def _prior_files(folder: Path, card: dict) -> list[Path]:
    """The files of a prior set, after removing those of another one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prior.json"
    try:
        same = json.loads(path.read_text(encoding="utf-8")) == card
    except (OSError, ValueError):
        same = False
    if not same:
        for old in folder.glob("[0-9][0-9][0-9][0-9][0-9].png"):
            old.unlink()
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    return [folder / f"{number:05}.png" for number in range(card["count"])]


def _kept(file: Path, size: int) -> Image.Image | None:
    with contextlib.suppress(StylenbError):  # not drawn yet, or damaged since
        picture = open_photo(file)
        if picture.size == (size, size):
            return picture
    return None


# ----------------------------------------------------------------------------------------- training


def train_dreambooth(
    base: Base,
    instance_pictures: Sequence,
    settings: DreamBoothSettings | None = None,
    name: str = "dreambooth",
    prior_pictures: Sequence | None = None,
    **how,
) -> History:
    """Teach the base what the rare token in `settings.prompt` means; it is left as trained.

    instance_pictures: PIL pictures of the base's size, 3 or more.
    settings: see DreamBoothSettings; None is DreamBoothSettings.for_base(base).
    prior_pictures: of the class, instead of those that the base draws for itself (prior_set).
    how: folder, minutes, validation, ... as `training.fit` takes them; validation photos are
        redrawn with the prompt. With a folder, `NAME.safetensors` and `history.json` are written
        there, and a run that was cut goes on from its last checkpoint when it is started again.
        A checkpoint holds the trained weights three times over: `keep=1` and a larger
        `checkpoint_every` save disk space where these are many.

    The history's terms are "noise", on the instance pictures, and "prior". It begins with the base
    as it was loaded: an earlier DreamBooth is undone first. Weights that are trained are float32
    meanwhile, whatever the base's dtype; those that are not stay bit for bit.

    Raises StylenbError for fewer than 3 pictures, pictures of several sizes, while LoRAs are in the
    UNet, without a text encoder, and see `fit`.
    """
    settings = settings or DreamBoothSettings.for_base(base)
    pictures = list(instance_pictures)
    if len(pictures) < 3:
        raise StylenbError(
            f"DreamBooth needs at least 3 pictures, better 16; these are {len(pictures)}."
        )
    _without_loras(base)
    undo_dreambooth(base)
    about = {
        "method": "dreambooth",
        "name": name,
        "base": base.name,
        "fingerprint": fingerprint(base),
        "instance pictures": digest(pictures),
    }
    refuse_other_run(how.get("folder"), {**asdict(settings), **about})  # before any drawing
    prompts = [settings.prompt]
    with torch.no_grad():
        frozen = base.embed(prompts + [settings.class_prompt])
    prior = []
    if settings.prior_weight:
        prompts.append(settings.class_prompt)
        if prior_pictures is None:
            progress = how.get("progress", True)
            prior_pictures = prior_set(base, settings, how.get("folder"), progress)
        prior = list(prior_pictures)
        if not prior:
            raise StylenbError("prior_pictures is empty: give some, or leave it out.")
        about["prior pictures"] = digest(prior)
    sizes = sorted({p.size for p in pictures + prior})
    if len(sizes) > 1:
        raise StylenbError(
            f"Instance and prior pictures must have one size, these have {sizes}: open them with "
            "open_photo(..., size=base.image_size)."
        )

    # Every picture is encoded once, and so are the prompts where the text encoder stays as it is.
    sets = [encode(base, each, settings.flip)[1] for each in (pictures, prior) if each]

    def states() -> torch.Tensor:
        return base.embed(prompts) if settings.text_encoder else frozen[: len(prompts)]

    def losses_of(batch: int) -> dict[str, torch.Tensor]:
        losses = set_losses(base, settings, sets, states, batch)
        return dict(zip(("noise", "prior"), losses, strict=False))

    weights = {"prior": settings.prior_weight}
    draw = prompted_redraw(base, settings.prompt)
    try:
        if settings.train == "lora":
            add_lora(base, name, settings.rank, settings.alpha, settings.seed)
        else:
            _unfreeze(base, settings)
        history = fit(base, losses_of, settings, weights, about=about, draw=draw, **how)
        if how.get("folder"):  # while the weights are still float32
            path = Path(how["folder"]) / f"{name}.safetensors"
            about |= {"settings": asdict(settings), "seconds": round(history.seconds)}
            if settings.train == "lora":
                save_lora(base, path, name, about)
            else:
                save_dreambooth(base, path, about)
    except NotFinite:
        raise  # the last good weights are in the base
    except StylenbError:
        remove_lora(base, name)
        undo_dreambooth(base)
        raise
    finally:
        _freeze(base)
    return history


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
    """While a half-precision base is trained, some of its weights are float32: autocast brings
    them together."""
    if base.dtype.itemsize == 2:
        return torch.autocast(base.device.type, base.dtype)
    return contextlib.nullcontext()


def _unfreeze(base: Base, settings: DreamBoothSettings) -> None:
    chosen = {"unet": trainable(base.unet, settings.train)}
    if settings.text_encoder:
        chosen["text_encoder"] = dict(base.text_encoder.named_parameters())
    for part, parameters in chosen.items():
        _remember(getattr(base, part), parameters)
        for p in parameters.values():
            p.data = p.data.float()  # the optimiser's small steps vanish in half precision
            p.requires_grad_(True)


def _freeze(base: Base) -> None:
    for part in (base.unet, base.text_encoder):
        part.requires_grad_(False)
        for name, p in part.named_parameters():
            if plain_name(name) in _originals(part):
                p.data, p.grad = p.data.to(base.dtype), None


# ------------------------------------------------------------ what the base was, and what it became


def _originals(part: torch.nn.Module | None) -> dict[str, torch.Tensor]:
    """The weights that were replaced in a part, as they were: by plain name, in main memory."""
    return getattr(part, "originals", {})


def _remember(part: torch.nn.Module, names: Iterable[str]) -> None:
    parameters = dict(part.named_parameters())
    part.originals = {plain_name(n): parameters[n].detach().to("cpu", copy=True) for n in names}


def _parts(base: Base) -> dict[str, torch.nn.Module]:
    parts = {"unet": base.unet, "text_encoder": base.text_encoder}
    return {name: part for name, part in parts.items() if part is not None}


def undo_dreambooth(base: Base) -> None:
    """Put back what train_dreambooth or load_dreambooth replaced: the base is again what it was
    when it was loaded, bit for bit. Does nothing where there is nothing to undo."""
    for part in _parts(base).values():
        originals = _originals(part)
        for name, p in part.named_parameters():
            if plain_name(name) in originals:
                p.data = originals[plain_name(name)].to(p.device)
        part.originals = {}
    if base.text_encoder is not None:
        base._empty = None  # "" is embedded again when it is asked for


def save_dreambooth(
    base: Base, path: str | Path, about: dict | None = None, dtype: torch.dtype = torch.float16
) -> Path:
    """Write the weights that DreamBooth replaced, and no others, as safetensors.

    dtype: half precision halves the file. `about` (how it was trained) is kept in the metadata
    with the base's name and read back by load_dreambooth and lora.about_lora.

    Raises StylenbError where nothing is replaced.
    """
    state = {
        f"{part}.{plain_name(name)}": p.detach().to("cpu", dtype).contiguous()
        for part, module in _parts(base).items()
        for name, p in module.named_parameters()
        if plain_name(name) in _originals(module)
    }
    if not state:
        raise StylenbError(
            "The base is as it was loaded, so there is nothing to save: train_dreambooth first."
        )
    path = Path(path)
    about = {
        "method": "dreambooth",
        "base": base.name,
        "fingerprint": fingerprint(base),
        **(about or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(state, temporary, {"format": "pt", "stylenb": json.dumps(about)})
    temporary.replace(path)
    return path


def load_dreambooth(base: Base, path: str | Path) -> dict:
    """Lay the weights of a file that save_dreambooth wrote onto the base; return its `about`.

    Another DreamBooth that is there is undone first; undo_dreambooth undoes this one.

    Raises StylenbError, and leaves the base as it was, for a file that is none of these, that was
    trained on another base, or that holds NaN or infinity; and while a LoRA is merged.
    """
    path = Path(path)
    with _open(path) as file:
        about = json.loads((file.metadata() or {}).get("stylenb", "{}"))
        state = {key: file.get_tensor(key) for key in file.keys()}
    if about.get("method") != "dreambooth" or any(".lora_" in key for key in state):
        raise StylenbError(
            f"{path.name} was not written by save_dreambooth: load_lora reads a LoRA, "
            "load_embedding a textual inversion, and load(folder) a whole model."
        )
    if merged(base):
        raise StylenbError(
            f"The LoRA {', '.join(map(repr, merged(base)))} is merged into the weights: "
            "unmerge_lora(base) first."
        )
    found = {
        f"{part}.{plain_name(name)}": (module, name, p)
        for part, module in _parts(base).items()
        for name, p in module.named_parameters()
    }
    if base.text_encoder is None and any(key.startswith("text_encoder.") for key in state):
        raise StylenbError(
            f"{path.name} holds a text encoder and the base's was dropped: load the base again."
        )
    for key, value in state.items():
        if key not in found or found[key][2].shape != value.shape:
            its = tuple(found[key][2].shape) if key in found else "no such weight"
            raise StylenbError(
                f"{path.name} does not fit the base {base.name!r} ({key} has the shape "
                f"{tuple(value.shape)} there and {its} here): load the base that it was trained "
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
    for module in _parts(base).values():
        _remember(module, [name for of, name, _ in (found[k] for k in state) if of is module])
    for key, value in state.items():
        p = found[key][2]
        p.data = value.to(p.device, base.dtype)
    base._empty = None
    return about


def save_pipeline(base: Base, folder: str | Path) -> Path:
    """Write the whole base, as it is now, as a folder that diffusers'
    StableDiffusionPipeline.from_pretrained opens, and stylenb.load too.

    A pipeline that is in the folder already is replaced. Raises StylenbError while LoRAs are in the
    UNet, and for a folder that holds something else.
    """
    folder = Path(folder)
    _without_loras(base)
    if folder.exists() and not (folder / "model_index.json").is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise StylenbError(f"'{folder}' holds something else: name a new folder.")
    temporary, old = (folder.with_name(f"{folder.name}.{end}") for end in ("tmp", "old"))
    for left_over in (temporary, old):
        shutil.rmtree(left_over, ignore_errors=True)
    pipeline(base).save_pretrained(temporary, safe_serialization=True)
    # transformers opens a model in the dtype that its config names, diffusers in float32 unless it
    # is told otherwise: a pipeline of both kinds would not run.
    config = temporary / "text_encoder" / "config.json"
    named = json.loads(config.read_text(encoding="utf-8"))
    named |= dict.fromkeys(named.keys() & {"dtype", "torch_dtype"}, "float32")
    config.write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder
