"""LoRA: small trained additions to the UNet's attention (https://arxiv.org/abs/2106.09685).

The course writes W' = W + alpha A B. peft computes W + (lora_alpha / rank) B A, so the course's
alpha is lora_alpha / rank, and alpha = 1 at rank 8 is lora_alpha = 8.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional as F
from tqdm.auto import tqdm

from .base import DATA, Base, autocast
from .errors import StylenbError
from .photos import to_tensor

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # of self-attention and cross-attention alike


def add_lora(base: Base, name: str, rank: int = 8, alpha: float = 1.0, seed: int = 0) -> list:
    """Add an untrained adapter to the UNet's attention, make it the active one, and return its
    parameters (float32, the only ones that require a gradient).

    B starts at zero, so the UNet's output is the same as before. Raises StylenbError for a rank
    below 1 or a name that is taken.
    """
    if not isinstance(rank, int) or rank < 1:
        raise StylenbError(f"The rank of a LoRA is a whole number from 1 up, not {rank!r}.")
    if name in adapters(base):
        raise StylenbError(f"There is a LoRA named {name!r} already: remove_lora(base, {name!r}).")
    config = LoraConfig(r=rank, lora_alpha=alpha * rank, target_modules=list(TARGETS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base.unet.add_adapter(config, adapter_name=name)
    base.unet.enable_adapters()  # they stay off for a new one too, once they were switched off
    base.unet.set_adapters([name], [1.0])
    parameters = [p for p in base.unet.parameters() if p.requires_grad]
    for p in parameters:  # the optimiser's small steps vanish in half precision
        p.data = p.data.float()
    return parameters


def adapters(base: Base) -> list[str]:
    """Names of the LoRAs that are in the UNet, active or not."""
    return list(getattr(base.unet, "peft_config", {}))


def set_scale(base: Base, name: str | None, scale: float = 1.0) -> None:
    """Make `name` the only active LoRA, multiplied by `scale`; None switches all of them off."""
    if name is None:
        if adapters(base):
            base.unet.disable_adapters()
        return
    if name not in adapters(base):
        raise StylenbError(f"No LoRA named {name!r} is loaded: load_lora(base, ...) does that.")
    base.unet.enable_adapters()
    base.unet.set_adapters([name], [float(scale)])
    base.unet.requires_grad_(False)  # peft takes an active adapter for one to be trained


def remove_lora(base: Base, name: str) -> None:
    """Take the LoRA out of the UNet, which is then what it was before."""
    if name in adapters(base):
        if name in base.unet.active_adapters():  # peft would make another one active instead
            base.unet.disable_adapters()
        base.unet.delete_adapters(name)


def spread_timesteps(count: int, last: int, generator: torch.Generator) -> torch.Tensor:
    """Random timesteps (count,) in 0..last-1, one from each of `count` equal slices of them.

    Over many batches they are uniform; within one they are even, so the loss varies less.
    """
    slices = torch.arange(count) + torch.rand(count, generator=generator)
    return (slices * last / count).long().clamp(max=last - 1)


def train_lora(
    base: Base,
    pictures: Sequence,
    name: str = "style",
    *,
    rank: int = 8,
    alpha: float = 1.0,
    steps: int = 400,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> list[float]:
    """Teach the UNet a style from a few pictures; the LoRA `name` is left active in `base.unet`.

    Encode the pictures once, add noise by the schedule, let the UNet predict it without a prompt,
    take the mean squared error, and update A and B. `pictures` are PIL images of the base's size.
    Timesteps and noise are functions of (seed, step). Returns the loss of every step.

    Raises StylenbError for fewer than 4 pictures and when the loss is no longer finite.
    """
    if len(pictures) < 4:
        raise StylenbError(
            f"A style needs at least 4 pictures, better 16; these are {len(pictures)}."
        )
    images = to_tensor(pictures)
    parameters = add_lora(base, name, rank, alpha, seed)
    with torch.no_grad():
        latents = torch.cat(
            [base.encode(torch.cat([part, part.flip(-1)])) for part in images.split(4)]
        ).float()
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.0)
    last = base.scheduler.config.num_train_timesteps
    losses = []
    for step in tqdm(range(steps), disable=not progress, desc=name):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = torch.randperm(len(latents), generator=generator)[:batch_size]
        x0 = latents[chosen.to(latents.device)]
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        t = spread_timesteps(len(x0), last, generator).to(x0.device)
        with autocast(base.device):
            prediction = base.predict_noise(base.scheduler.add_noise(x0, noise, t), t)
        loss = F.mse_loss(prediction.float(), noise)
        if not torch.isfinite(loss):
            remove_lora(base, name)
            raise StylenbError(
                f"The loss is not finite at step {step}: try half the learning "
                f"rate ({learning_rate / 2:g})."
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:  # warm-up, then a linear fall to a tenth
            group["lr"] = learning_rate * min(1, (step + 1) / 20) * (1 - 0.9 * step / steps)
        optimizer.step()
        losses.append(loss.item())
    for p in parameters:
        p.requires_grad_(False)
    return losses


def save_lora(base: Base, path: str | Path, name: str = "style", about: dict | None = None) -> Path:
    """Write the LoRA `name` as fp16 safetensors in the layout of diffusers.

    Rank and alpha are in the metadata, so that `load_lora` and `pipe.load_lora_weights` restore
    them; `about` (how it was trained) is kept there too and read back by `about_lora`.
    """
    if name not in adapters(base):
        raise StylenbError(f"No LoRA named {name!r} is loaded, so there is nothing to save.")
    path = Path(path)
    state = get_peft_model_state_dict(base.unet, adapter_name=name)
    state = {
        f"unet.{key}": value.detach().cpu().half().contiguous() for key, value in state.items()
    }
    config = base.unet.peft_config[name]
    kept = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules),
        "rank_pattern": {},  # diffusers 0.37 cannot do without these two
        "alpha_pattern": {},
    }
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in kept.items()}),
        "stylenb": json.dumps({"base": base.name, **(about or {})}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(state, temporary, metadata)
    temporary.replace(path)
    return path


def about_lora(path: str | Path) -> dict:
    """What the metadata of a LoRA file says of its training; {} if it was made elsewhere."""
    with _open(Path(path)) as file:
        return json.loads((file.metadata() or {}).get("stylenb", "{}"))


def load_lora(base: Base, style: str | Path) -> str:
    """Load a shipped style by name, or a LoRA file by path, into the UNet; return its name there.

    Loading what is loaded already does nothing; set_scale makes it the active one. Raises
    StylenbError for an unknown style, a file that is no safetensors or no whole LoRA, and a LoRA
    that was trained for another base.
    """
    path = find_lora(style)
    name = path.stem.replace(".", "_")
    file_read = (path.resolve(), path.stat().st_mtime_ns)
    if name in adapters(base):
        if getattr(base.unet.peft_config[name], "file_read", file_read) == file_read:
            return name
        remove_lora(base, name)  # another file of this name, or one that was written since
    with _open(path) as file:
        keys = list(file.keys())
        shapes = {key: file.get_slice(key).get_shape() for key in keys}
    modules = dict(base.unet.named_modules())
    for key, shape in shapes.items():
        target = key.removeprefix("unet.").split(".lora_")[0]
        layer = modules.get(target)
        down = ".lora_A." in key or ".lora.down." in key
        if not key.startswith("unet.") or ".lora" not in key or layer is None:
            raise StylenbError(
                f"{path.name} has the key {key!r}, which is no part of the base "
                f"{base.name!r}: it was made for another model."
            )
        width = getattr(layer, "in_features" if down else "out_features", None)
        if len(shape) != 2 or width != shape[1 if down else 0]:
            raise StylenbError(
                f"{path.name} does not fit the base {base.name!r} ({target} is {width} wide, "
                f"{key} in the file has the shape {shape}): load the base that it was trained for."
            )
    if not keys:
        raise StylenbError(f"{path.name} holds no weights: train the style again.")
    try:
        with torch.inference_mode(False):  # else no gradient could ever flow through them
            base.unet.load_lora_adapter(
                str(path.parent),
                weight_name=path.name,
                prefix="unet",
                adapter_name=name,
                use_safetensors=True,
            )
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        raise StylenbError(
            f"{path.name} is no whole LoRA ({str(error).strip().splitlines()[0]}): download or "
            "train it again."
        ) from error
    base.unet.requires_grad_(False)
    base.unet.peft_config[name].file_read = file_read
    return name


def find_lora(style: str | Path) -> Path:
    """The file of a shipped style or of a path. Raises StylenbError with the choices."""
    shipped = available_styles()
    if str(style) in shipped:
        return shipped[str(style)]
    path = Path(style)
    if path.suffix == ".safetensors" and path.is_file():
        return path
    if path.is_file():
        raise StylenbError(
            f"{path.name} is not a .safetensors file; other formats can run code "
            "when they are opened, so convert it first."
        )
    raise StylenbError(
        f"There is no style {str(style)!r}: choose {', '.join(shipped) or 'one'} "
        "or give the path of a LoRA file (.safetensors)."
    )


def available_styles() -> dict[str, Path]:
    """The shipped styles: name -> file in data/loras."""
    return {path.stem: path for path in sorted((DATA / "loras").glob("*.safetensors"))}


def _open(path: Path):
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise StylenbError(
            f"{path.name} cannot be read as safetensors ({error}): download or train it again."
        ) from error
