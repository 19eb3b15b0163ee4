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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .base import Base
from .errors import StylenbError, replacing
from .limits import Guidance, read
from .lora import (
    lora_layers,
    own_modules,
    quietly,
    refuse_merged,
    refuse_unknown,
    remove_lora,
    set_scale,
    switched,
    usable_name,
)
from .weights import DATA, SD15_TEXT_WIDTH

# Keys of files that cannot be used: what they show, and what can be done.
_REFUSED = (
    (  # a second text encoder, the picture's size as input, deeper attention
        r"lora_te2_|text_encoder_2\.|.*(add_embedding|label_emb|"
        r"(attentions|(in|out)put_blocks_\d+|middle_block)[._]\d+[._]transformer_blocks[._][1-9])",
        "was trained for Stable Diffusion XL",
        "the base is built like v1.5: choose a LoRA for SD v1.5",
    ),
    (
        r"lora_te|text_encoder\.",
        "changes the text encoder too",
        "without a prompt that part would be lost: choose or train a LoRA of the UNet alone",
    ),
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
    path = shipped.get(str(style), Path(style))
    if not path.is_file():
        raise StylenbError(
            f"There is no style {str(style)!r}: choose {', '.join(shipped) or 'one'} "
            "or give the path of a LoRA file (.safetensors)."
        )
    if path.suffix != ".safetensors":
        pickled = path.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt", ".pkl")
        what = ", it is pickled and could run code when it is opened" if pickled else ""
        raise StylenbError(
            f"{path.name} is not a .safetensors file{what}: find or save the LoRA as safetensors."
        )
    return path


def about_lora(path: str | Path) -> dict:
    """What the metadata of a LoRA file says of its training; {} if it was made elsewhere."""
    with open_safetensors(Path(path)) as file, _whole(Path(path).name):
        return json.loads((file.metadata() or {}).get("stylenb", "{}"))


# ------------------------------------------------------------------------------------------ reading


def load_lora(base: Base, style: str | Path) -> str:
    """Load a shipped style by name, or a LoRA file by path, into the UNet; return its name there.

    It is switched off until set_scale makes it active; what was active stays so. Loading what is
    loaded already does nothing. The file is safetensors in the layout of diffusers or of kohya's
    scripts; where no alpha is in it, the course's is 1.

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
    state, config = _read(base, path)
    guidance = about_lora(path).get("settings", {}).get("guidance_scale", 1.0)
    guidance = read("guidance_scale", guidance, Guidance)
    remove_lora(base, name)  # another file of this name, or one that was written since
    with switched(base, None):
        try:
            # outside of inference mode, else no gradient could ever flow through the weights
            with _whole(path.name), torch.inference_mode(False), quietly():
                base.unet.load_lora_adapter(
                    state, prefix="unet", adapter_name=name, metadata=config
                )
            _refuse_without_effect(base, path.name, name, state)
        except BaseException:  # Ctrl-C too
            remove_lora(base, name)
            raise
    config = base.unet.peft_config[name]
    config.file_read, config.guidance_scale = file_read, guidance
    return name


def guidance_of(base: Base) -> float:
    """The largest guidance_scale that an active LoRA is to be drawn with, see `Settings`."""
    layers = [layer for layer in lora_layers(base).values() if not layer.disable_adapters]
    on = {name for layer in layers for name in layer.active_adapters if layer.scaling.get(name)}
    return max([1.0, *(getattr(base.unet.peft_config[n], "guidance_scale", 1.0) for n in on)])


def _read(base: Base, path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The weights of a LoRA file, "unet.LAYER.lora_A.weight" and "...lora_B.weight", and the peft
    config that belongs to them, each of its keys after "unet.". Where the file tells no alpha, the
    course's is 1. Raises StylenbError for a file that is not a whole LoRA of this UNet."""
    with open_safetensors(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        pairs = _pairs(base, path.name, shapes)
        with _whole(path.name):
            config = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
            state = {
                f"unet.{layer}.lora_{part}.weight": file.get_tensor(pair[part])
                for layer, pair in pairs.items()
                for part in "AB"
            }
            if "unet.r" not in config:
                # diffusers would take one alpha for all of a kohya file's attention layers
                ranks = {layer: shapes[pair["A"]][0] for layer, pair in pairs.items()}
                alphas = dict(ranks)  # peft's alpha is the rank where the course's is 1
                for layer, pair in pairs.items():
                    if "alpha" in pair:
                        alphas[layer] = _number(file.get_tensor(pair["alpha"]))
                config = _config(ranks, alphas)
    return state, config


@contextmanager
def _whole(file: str) -> Iterator[None]:
    """Turn what safetensors, json or peft raise inside into a sentence about the file."""
    try:
        yield
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        raise StylenbError(
            f"{file} is not a whole LoRA ({' '.join(str(error).split())[:200]}): download or train "
            "it again."
        ) from error


def _number(tensor: torch.Tensor) -> float:
    """The decimal number that was rounded to this float32, so that 0.9 comes back as 0.9."""
    return float(str(tensor.float().reshape(()).numpy()[()]))


def _names(layer: str) -> dict[str, str]:
    """What files call the parts of a layer's LoRA: diffusers, diffusers of old, kohya's scripts."""
    kohya = _kohya_name(layer)
    return {
        f"unet.{layer}.lora_A.weight": "A",
        f"unet.{layer}.lora_B.weight": "B",
        f"unet.{layer}.lora.down.weight": "A",
        f"unet.{layer}.lora.up.weight": "B",
        f"{kohya}.lora_down.weight": "A",
        f"{kohya}.lora_up.weight": "B",
        f"{kohya}.alpha": "alpha",
    }


def _pairs(base: Base, file: str, shapes: dict[str, tuple]) -> dict[str, dict[str, str]]:
    """What the file calls "A", "B" and perhaps "alpha" of each of the UNet's layers.

    Raises StylenbError for a LoRA of another model: names, or shapes, that fit no layer.
    """
    if not shapes:
        raise StylenbError(f"{file} holds no weights, and a LoRA has two matrices per layer.")
    for pattern, what, why in _REFUSED:
        if found := next((name for name in shapes if re.match(pattern, name)), None):
            raise StylenbError(f"{file} {what}, as its key {found!r} shows, and {why}.")
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    layers = {key: m for key, m in own_modules(base).items() if isinstance(m, kinds)}
    known = {name: (layer, part) for layer in layers for name, part in _names(layer).items()}
    pairs: dict[str, dict[str, str]] = {}
    unknown = []
    for name in shapes:
        layer, part = known.get(name, (None, None))
        if layer is None or part in pairs.get(layer, ()):
            unknown.append(name)
        else:
            pairs.setdefault(layer, {})[part] = name
    if unknown:
        example = list(_names(next(layer for layer in layers if layer.endswith(".to_q"))))
        raise StylenbError(
            f"{file} was made for another model: no layer of the base {base.name!r} fits "
            f"{len(unknown)} of its {len(shapes)} keys, the first of them {unknown[0]!r}, and "
            f"expected are keys such as {example[0]!r} or {example[4]!r}."
        )
    for layer, pair in pairs.items():
        _check_pair(base, file, layer, layers[layer].weight.shape, pair, shapes)
    return pairs


def _check_pair(base: Base, file: str, layer: str, weight, pair: dict[str, str], shapes) -> None:
    """Raise StylenbError unless A, B and alpha have shapes that fit that of the layer's weight
    (out, in), of a convolution (out, in, height, width), and one rank."""
    wanted = {"A": ("r", *weight[1:]), "B": (weight[0], "r", *(1 for _ in weight[2:]))}
    ranks = {}
    for part in (part for part in wanted if part in pair):
        shape = shapes[pair[part]]
        rank = shape[wanted[part].index("r")] if len(shape) == len(weight) else 0
        if rank < 1 or shape != tuple(rank if side == "r" else side for side in wanted[part]):
            raise StylenbError(
                f"{file} does not fit the base {base.name!r} ({pair[part]} has the shape {shape}, "
                f"expected is ({', '.join(map(str, wanted[part]))}) with a rank r): load the base "
                "that it was trained for."
            )
        ranks[part] = rank
    alpha = shapes.get(pair.get("alpha"), ())
    if len(ranks) < 2 or ranks["A"] != ranks["B"] or math.prod(alpha) != 1:
        has = [f"{part} of rank {rank}" for part, rank in ranks.items()]
        has += [f"alpha of the shape {alpha}"] if "alpha" in pair else []
        raise StylenbError(
            f"{file} is not a whole LoRA ({layer} has {' and '.join(has)}, expected are A and B "
            "of one rank and at most one number alpha): download or train it again."
        )


def _refuse_without_effect(base: Base, file: str, name: str, state: dict) -> None:
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
        a, b = (
            max(weight.abs().max().item() for key, weight in state.items() if part in key)
            for part in (".lora_A.", ".lora_B.")
        )
        alpha = next(iter(lora_layers(base, name).values())).scaling[name]
        why = f"alpha is {alpha:g}, the largest number in A {a:g} and in B {b:g}"
        raise StylenbError(
            f"{file} changes nothing, the UNet predicts the same with it and without "
            f"({why if b > 0 else 'all of B is zero, as it is after 0 steps of training'}): "
            "train it for longer, or choose another."
        )


def open_safetensors(path: Path):
    """safetensors' reader of a file, for a with statement. Raises StylenbError for another
    kind of file."""
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        found = f"cannot be read as safetensors ({error}): download or train it again"
        if path.is_file() and path.stat().st_size == 0:
            found = "is empty (0 bytes): download or train it again"
        elif path.is_file() and isinstance(error, SafetensorError):
            with path.open("rb") as file:
                first = file.read(2)
            if first == b"PK" or (first[:1] == b"\x80" and first[1:] <= b"\x05"):
                found = (
                    "is not safetensors, as its name says, but a pickled file, which could run "
                    "code when it is opened: find or save it as safetensors"
                )
        raise StylenbError(f"{path.name} {found}.") from error


# ------------------------------------------------------------------------------------------ writing


def save_lora(base: Base, path: str | Path, name: str = "style", about: dict | None = None) -> Path:
    """Write the LoRA `name` as fp16 safetensors in the layout of diffusers.

    Rank and alpha are in the metadata, so that `load_lora` and `pipe.load_lora_weights` restore
    them; `about` (how it was trained) is kept there too and read back by `about_lora`.
    """
    state, config = _state(base, name), base.unet.peft_config[name]
    # diffusers 0.37 cannot do without the patterns
    parts = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")
    kept = {f"unet.{part}": getattr(config, part) for part in parts}
    # the modules are a set, or text, which is a pattern, in a file from elsewhere
    metadata = {"lora_adapter_metadata": json.dumps(kept, default=sorted)}
    guidance = getattr(config, "guidance_scale", 1.0)
    own = {"settings": {"guidance_scale": guidance}} if guidance != 1 else {}
    return write_safetensors(Path(path), state, metadata, {"base": base.name} | own | (about or {}))


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
    for key, layer in lora_layers(base, name).items():
        ranks[key] = rank = layer.r[name]
        alphas[key] = float(layer.lora_alpha[name] * (rank**0.5 if by_root else 1))
        state[f"{_kohya_name(key)}.alpha"] = torch.tensor(alphas[key])  # was the rank
    config = _config(ranks, alphas)
    metadata = {
        "ss_output_name": name,
        "ss_sd_model_name": base.name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config["unet.r"]),
        "ss_network_alpha": str(config["unet.lora_alpha"]),
    }
    if base.unet.config.cross_attention_dim == SD15_TEXT_WIDTH:
        metadata["ss_base_model_version"] = "sd_v1"
    first = save_lora(base, folder / f"{name}.safetensors", name, about)
    kohya = folder / f"{name}.kohya.safetensors"
    return [first, write_safetensors(kohya, state, metadata, about_lora(first))]


def _state(base: Base, name: str) -> dict[str, torch.Tensor]:
    """The weights of the LoRA as a file holds them: in half precision, under diffusers' names."""
    refuse_unknown(base, name)
    # peft 0.17's own function takes in every LoRA whose name begins with this one
    return {
        f"unet.{key}.{part}.weight": getattr(layer, part)[name].weight.detach().cpu().half()
        for key, layer in lora_layers(base, name).items()
        for part in ("lora_A", "lora_B")
    }


def write_safetensors(path: Path, state: dict, metadata: dict, about: dict) -> Path:
    """Write weights with metadata, and with `about` (how they were made), which about_lora reads
    back. Raises StylenbError for NaN and infinity, and where the disk refuses."""
    refuse_not_finite(path, state)
    with replacing(path) as temporary:
        save_file(state, temporary, {"format": "pt", **metadata, "stylenb": json.dumps(about)})
    return path


def refuse_not_finite(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Raise StylenbError for weights, about to be written, that hold NaN or infinity."""
    if bad := next((name for name, w in state.items() if not w.isfinite().all()), None):
        raise StylenbError(
            f"'{path}' was not saved, as {bad} holds NaN, or numbers above the 65,504 of half "
            "precision: train it again with a lower learning rate."
        )


def _kohya_name(layer: str) -> str:
    """The name that kohya's scripts give to a layer of the UNet."""
    return f"lora_unet_{layer.replace('.', '_')}"


def _config(ranks: dict[str, int], alphas: dict[str, float]) -> dict:
    """The LoraConfig of layers with these ranks and peft's alphas, its keys after "unet."."""
    rank, alpha = (Counter(d.values()).most_common(1)[0][0] for d in (ranks, alphas))
    return {
        "unet.r": rank,
        "unet.lora_alpha": alpha,
        "unet.target_modules": list(ranks),
        "unet.rank_pattern": {f"^{key}": r for key, r in ranks.items() if r != rank},
        "unet.alpha_pattern": {f"^{key}": a for key, a in alphas.items() if a != alpha},
    }
