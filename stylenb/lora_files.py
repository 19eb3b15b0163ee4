"""LoRA files: safetensors in the layout of diffusers or of kohya's scripts, read, refused, written.

A file has two matrices for each layer of the UNet, which load_lora hands to peft. Whatever is not
that is refused, with what was found and what was expected.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .base import Base
from .errors import StylenbError, replacing
from .lora import (
    adapters,
    delete_adapter,
    layers_with,
    lora_layers,
    own_modules,
    quietly,
    refuse_merged,
    remove_lora,
    set_scale,
    switched,
    usable_name,
)
from .weights import DATA, SD15_TEXT_WIDTH

_KEY = re.compile(r"unet\.(.+)\.(?:lora_([AB])|lora\.(down|up))\.weight")
_KOHYA_KEY = re.compile(r"(lora_unet_.+)\.(?:lora_(down|up)\.weight|(alpha))")
_SDXL_KEY = re.compile(  # a second text encoder, the picture's size as input, deeper attention
    r"lora_te2_|text_encoder_2\.|.*(add_embedding|label_emb|"
    r"(attentions|(in|out)put_blocks_\d+|middle_block)[._]\d+[._]transformer_blocks[._][1-9])"
)


def available_styles() -> dict[str, Path]:
    """The shipped styles: name -> file in data/loras."""
    return {path.stem: path for path in sorted((DATA / "loras").glob("*.safetensors"))}


def find_lora(style: str | Path) -> Path:
    """The file of a shipped style or of a path. Raises StylenbError with the choices."""
    shipped = available_styles()
    if not isinstance(style, (str, os.PathLike)):
        raise StylenbError(
            f"A style is a name ({', '.join(shipped)}) or the path of a LoRA file, not {style!r}; "
            "several are given as {style: weight, ...}."
        )
    if str(style) in shipped:
        return shipped[str(style)]
    path = Path(style)
    if path.suffix == ".safetensors" and path.is_file():
        return path
    if path.is_file():
        pickled = path.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt", ".pkl")
        raise StylenbError(
            f"{path.name} is not a .safetensors file"
            + (", it is pickled and could run code when it is opened" if pickled else "")
            + ": find or save the LoRA as safetensors."
        )
    raise StylenbError(
        f"There is no style {str(style)!r}: choose {', '.join(shipped) or 'one'} "
        "or give the path of a LoRA file (.safetensors)."
    )


def load_lora(base: Base, style: str | Path) -> str:
    """Load a shipped style by name, or a LoRA file by path, into the UNet; return its name there.

    It is switched off until set_scale makes it active; what was active stays so. Loading what is
    loaded already does nothing. The file is safetensors in the layout of diffusers or of kohya's
    scripts; where it tells no alpha, the course's is 1.

    Raises StylenbError, which names what was found and what was expected, for an unknown style, a
    file that is not safetensors or not a whole LoRA, one that was trained for another base, and one
    that changes nothing: the UNet must predict something else with it than without.
    """
    path = find_lora(style)
    name = usable_name(base, path.stem)
    file_read = (path.resolve(), path.stat().st_mtime_ns)
    loaded = getattr(base.unet, "peft_config", {}).get(name)
    if loaded is not None and getattr(loaded, "file_read", file_read) == file_read:
        return name
    refuse_merged(base)
    state, config = _read(path, base.name, own_modules(base))
    if loaded is not None:
        remove_lora(base, name)  # another file of this name, or one that was written since
    with switched(base, None):
        try:
            # outside of inference mode, else no gradient could ever flow through the weights
            with torch.inference_mode(False), quietly():
                base.unet.load_lora_adapter(
                    state, prefix="unet", adapter_name=name, metadata=config
                )
            _refuse_without_effect(base, path.name, name)
        except BaseException as error:  # Ctrl-C too
            delete_adapter(base, name)
            if isinstance(error, StylenbError):
                raise
            if isinstance(error, (RuntimeError, ValueError, LookupError, TypeError)):
                raise _not_whole(path.name, error) from error
            raise
    base.unet.requires_grad_(False)
    base.unet.peft_config[name].file_read = file_read
    return name


def _refuse_without_effect(base: Base, file: str, name: str) -> None:
    """Raise StylenbError unless the UNet predicts something else, and finite, with the LoRA."""
    side = 2 ** len(base.unet.config.block_out_channels)  # 2 x 2 in the deepest block
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, base.unet.config.in_channels, side, side, generator=generator)
    middle = base.scheduler.config.num_train_timesteps // 2
    with torch.no_grad():
        set_scale(base, None)
        without = base.predict_noise(latents, middle)
        set_scale(base, name)
        with_it = base.predict_noise(latents, middle)
    if not with_it.isfinite().all():
        raise StylenbError(
            f"With {file} the UNet predicts NaN or infinity: download or train it again."
        )
    if torch.equal(with_it, without):
        layers = [layer for layer in lora_layers(base) if name in layer.lora_A]
        a, b = (
            max(getattr(layer, part)[name].weight.abs().max().item() for layer in layers)
            for part in ("lora_A", "lora_B")
        )
        why = "all of B is zero, as it is after 0 steps of training"
        if b > 0:
            alpha = layers[0].scaling[name]
            why = f"alpha is {alpha:g}, the largest number in A {a:g} and in B {b:g}"
        raise StylenbError(
            f"{file} changes nothing, the UNet predicts the same with it and without ({why}): "
            "train it for longer, or choose another."
        )


def _read(
    path: Path, base_name: str, layers: Mapping[str, torch.nn.Module]
) -> tuple[dict[str, torch.Tensor], dict]:
    """The weights of a LoRA file, "unet.LAYER.lora_A.weight" and "...lora_B.weight", and the peft
    config that belongs to them, each of its keys after "unet.".

    layers: the UNet's own, by name. Where the file tells no alpha, the course's is 1.
    Raises StylenbError for a file that is not a whole LoRA of this UNet.
    """
    with open_safetensors(path) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
        pairs = _pairs(path.name, base_name, layers, shapes)
        for target, pair in pairs.items():
            _check_pair(path.name, base_name, target, layers[target], pair, shapes)
        try:
            config = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
            state = {
                f"unet.{key}.lora_{part}.weight": file.get_tensor(pair[part])
                for key, pair in pairs.items()
                for part in "AB"
            }
            ranks = {key: len(state[f"unet.{key}.lora_A.weight"]) for key in pairs}
            alphas = {
                key: _number(file.get_tensor(pair["alpha"])) if "alpha" in pair else ranks[key]
                for key, pair in pairs.items()
            }
            if "unet.r" not in config:
                # diffusers would take one alpha for all of a kohya file's attention layers
                parts = _config(ranks, alphas)
                config = {f"unet.{part}": value for part, value in parts.items()}
        except (RuntimeError, ValueError, LookupError, TypeError) as error:
            raise _not_whole(path.name, error) from error
    return state, config


def _not_whole(file: str, error: Exception) -> StylenbError:
    return StylenbError(
        f"{file} is not a whole LoRA ({' '.join(str(error).split())[:200]}): download or train it "
        "again."
    )


def _number(tensor: torch.Tensor) -> float:
    """The decimal number that was rounded to this float32, so that 0.9 comes back as 0.9."""
    return float(str(tensor.float().reshape(()).numpy()[()]))


def _pairs(
    file: str, base_name: str, layers: Mapping[str, torch.nn.Module], shapes: dict[str, tuple]
) -> dict[str, dict[str, str]]:
    """Which keys of the file are "A", "B" and perhaps "alpha" of each of the UNet's layers.

    Raises StylenbError for a LoRA of another model, and for keys that fit no layer.
    """
    if not shapes:
        raise StylenbError(f"{file} holds no weights, and a LoRA has two matrices per layer.")
    found = next(filter(_SDXL_KEY.match, shapes), None)
    if found is not None:
        raise StylenbError(
            f"{file} was trained for Stable Diffusion XL, as its key {found!r} shows, and the "
            f"base {base_name!r} is built like v1.5: choose a LoRA for SD v1.5."
        )
    found = next((key for key in shapes if key.startswith(("text_encoder.", "lora_te"))), None)
    if found is not None:
        raise StylenbError(
            f"{file} changes the text encoder too, as its key {found!r} shows, and without a "
            "prompt that part would be lost: choose or train a LoRA of the UNet alone."
        )
    by_kohya = {_kohya_name(key): key for key in layers}
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    parts = {None: "alpha", "down": "A", "up": "B", "A": "A", "B": "B"}
    pairs: dict[str, dict[str, str]] = {}
    unknown = []
    for key in shapes:
        if match := _KEY.fullmatch(key):
            target, part = match[1], parts[match[2] or match[3]]
        elif match := _KOHYA_KEY.fullmatch(key):
            target, part = by_kohya.get(match[1]), parts[match[2]]
        if match and isinstance(layers.get(target), kinds) and part not in pairs.get(target, ()):
            pairs.setdefault(target, {})[part] = key
        else:
            unknown.append(key)
    if unknown:
        example = next(key for key in layers if key.endswith(".to_q"))
        raise StylenbError(
            f"{file} was made for another model: no layer of the base {base_name!r} fits "
            f"{len(unknown)} of its {len(shapes)} keys, the first of them {unknown[0]!r}, and "
            f"expected are keys such as 'unet.{example}.lora_A.weight' or "
            f"'{_kohya_name(example)}.lora_down.weight'."
        )
    return pairs


def _check_pair(
    file: str,
    base_name: str,
    target: str,
    layer: torch.nn.Module,
    pair: dict[str, str],
    shapes: dict[str, tuple],
) -> None:
    """Raise StylenbError unless A, B and alpha have shapes that fit the layer, and one rank."""
    ranks = {}
    if isinstance(layer, torch.nn.Linear):
        sides = {"A": ("r", layer.in_features), "B": (layer.out_features, "r")}
    else:
        a = ("r", layer.in_channels, *layer.kernel_size)
        sides = {"A": a, "B": (layer.out_channels, "r", 1, 1)}
    for part in (one for one in sides if one in pair):
        shape, wanted = shapes[pair[part]], sides[part]
        rank = shape[wanted.index("r")] if len(shape) == len(wanted) else 0
        if rank < 1 or shape != tuple(rank if side == "r" else side for side in wanted):
            raise StylenbError(
                f"{file} does not fit the base {base_name!r} ({pair[part]} has the shape "
                f"{shape}, expected is ({', '.join(map(str, wanted))}) with a rank r): load "
                "the base that it was trained for."
            )
        ranks[part] = rank
    alpha = shapes.get(pair.get("alpha"), ())
    if len(ranks) < 2 or ranks["A"] != ranks["B"] or math.prod(alpha) != 1:
        has = [f"{part} of rank {rank}" for part, rank in sorted(ranks.items())]
        has += [f"alpha of the shape {alpha}"] if "alpha" in pair else []
        raise StylenbError(
            f"{file} is not a whole LoRA ({target} has {' and '.join(has)}, expected are A and B "
            "of one rank and at most one number alpha): download or train it again."
        )


# ------------------------------------------------------------------------------------------ writing


def save_lora(base: Base, path: str | Path, name: str = "style", about: dict | None = None) -> Path:
    """Write the LoRA `name` as fp16 safetensors in the layout of diffusers.

    Rank and alpha are in the metadata, so that `load_lora` and `pipe.load_lora_weights` restore
    them; `about` (how it was trained) is kept there too and read back by `about_lora`.
    """
    state, config = _state(base, name), base.unet.peft_config[name]
    targets = config.target_modules  # text if it is a pattern, which a file from elsewhere may have
    kept = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "rank_pattern": config.rank_pattern,  # diffusers 0.37 cannot do without these two
        "alpha_pattern": config.alpha_pattern,
        "use_rslora": config.use_rslora,
    }
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in kept.items()})}
    return write_safetensors(Path(path), state, metadata, {"base": base.name, **(about or {})})


def export_lora(base: Base, name: str, folder: str | Path, about: dict | None = None) -> list[Path]:
    """Write the LoRA `name` into a folder for other programs to read, and return the two files.

    NAME.safetensors is in the layout of diffusers, see save_lora. NAME.kohya.safetensors is in that
    of https://github.com/kohya-ss/sd-scripts, which ComfyUI and A1111 read: lora_down is A,
    lora_up is B, and W' = W + alpha / rank * up @ down, so its alpha is the course's times the
    rank, for every layer its own. load_lora reads both back.
    """
    folder = Path(folder)
    state = convert_state_dict_to_kohya(_state(base, name))
    by_root = base.unet.peft_config[name].use_rslora  # alpha / rank ** 0.5
    ranks, alphas = {}, {}
    for key, layer in layers_with(base, name):
        ranks[key] = rank = layer.r[name]
        alphas[key] = float(layer.lora_alpha[name] * (rank**0.5 if by_root else 1))
        state[f"{_kohya_name(key)}.alpha"] = torch.tensor(
            alphas[key]
        )  # the converter's is the rank
    config = _config(ranks, alphas)
    metadata = {
        "ss_output_name": name,
        "ss_sd_model_name": base.name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config["r"]),
        "ss_network_alpha": str(config["lora_alpha"]),
    }
    if base.unet.config.cross_attention_dim == SD15_TEXT_WIDTH:
        metadata["ss_base_model_version"] = "sd_v1"
    about = {"base": base.name, **(about or {})}
    return [
        save_lora(base, folder / f"{name}.safetensors", name, about),
        write_safetensors(folder / f"{name}.kohya.safetensors", state, metadata, about),
    ]


def _state(base: Base, name: str) -> dict[str, torch.Tensor]:
    """The weights of the LoRA as a file holds them: in half precision, under diffusers' names."""
    if name not in adapters(base):
        raise StylenbError(f"No LoRA named {name!r} is loaded, so there is nothing to save.")
    # peft 0.17's own function takes in every LoRA whose name begins with this one
    state = {
        f"unet.{key}.{part}.weight": getattr(layer, part)[name].weight.detach().cpu().half()
        for key, layer in layers_with(base, name)
        for part in ("lora_A", "lora_B")
    }
    if not all(weight.isfinite().all() for weight in state.values()):
        raise StylenbError(
            f"The LoRA {name!r} holds NaN, or numbers above the 65,504 of half precision, so it "
            "was not saved: train it again with a lower learning rate."
        )
    return state


def write_safetensors(path: Path, state: dict, metadata: dict, about: dict) -> Path:
    """Write weights with metadata, and with `about` (how they were made), which about_lora reads
    back. Raises StylenbError where the disk refuses."""
    with replacing(path) as temporary:
        save_file(state, temporary, {"format": "pt", **metadata, "stylenb": json.dumps(about)})
    return path


def _kohya_name(key: str) -> str:
    """The name that kohya's scripts give to a layer of the UNet."""
    return f"lora_unet_{key.replace('.', '_')}"


def _config(ranks: dict[str, int], alphas: dict[str, float]) -> dict:
    """The LoraConfig of layers with these ranks and peft's alphas, in parts."""
    rank, alpha = (Counter(d.values()).most_common(1)[0][0] for d in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(ranks),
        "rank_pattern": {f"^{key}": r for key, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{key}": a for key, a in alphas.items() if a != alpha},
    }


def open_safetensors(path: Path):
    """safetensors' reader of a file, for a with statement. Raises StylenbError where it is none."""
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        found = f"cannot be read as safetensors ({error})"
        if path.is_file() and path.stat().st_size == 0:
            found = "is empty (0 bytes)"
        elif path.is_file() and isinstance(error, SafetensorError):
            with open(path, "rb") as file:
                first = file.read(2)
            if first == b"PK" or (first[:1] == b"\x80" and first[1:] <= b"\x05"):
                raise StylenbError(
                    f"{path.name} is not the safetensors that its name says but a pickled file, "
                    "which could run code when it is opened: find or save it as safetensors."
                ) from error
        raise StylenbError(f"{path.name} {found}: download or train it again.") from error


def about_lora(path: str | Path) -> dict:
    """What the metadata of a LoRA file says of its training; {} if it was made elsewhere."""
    with open_safetensors(Path(path)) as file:
        return json.loads((file.metadata() or {}).get("stylenb", "{}"))
