"""LoRA files: safetensors of any program for SD v1.5 read, or refused by their true name, and
written in the layouts of diffusers and of kohya's scripts.

A file has two matrices for each layer of the UNet, which load_lora hands to peft; lora_formats
says what the names in it mean. What a file changes in the text encoder is kept beside.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import save_file

from .base import Base
from .errors import StylenbError, replacing
from .limits import Guidance, as_path, read
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
from .lora_formats import as_lora, read_keys, split_key, text_names
from .weights import SD15_TEXT_WIDTH, available_styles, open_safetensors

_CONFIG = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")
_READERS = {"dreambooth": "load_dreambooth", "textual inversion": "load_embedding"}


def find_lora(style: str | Path) -> Path:
    """The file of a shipped style or of a path. Raises StylenbError with the choices."""
    shipped = available_styles()
    if not isinstance(style, (str, os.PathLike)):
        raise StylenbError(
            f"A style is a name ({', '.join(shipped)}) or the path of a LoRA file, not {style!r}; "
            "several are given as {style: weight, ...}."
        )
    path = shipped.get(str(style), as_path(style))
    if not path.is_file():
        raise StylenbError(
            f"There is no style {str(style)!r}: choose {', '.join(shipped) or 'one'} "
            "or give the path of a LoRA file (.safetensors)."
        )
    if path.suffix.lower() != ".safetensors":
        pickled = path.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt", ".pkl")
        what = ", it is pickled and could run code when it is opened" if pickled else ""
        raise StylenbError(
            f"{path.name} is not a .safetensors file{what}: find or save the LoRA as safetensors."
        )
    return path


def about_lora(path: str | Path) -> dict:
    """What the metadata of a LoRA file says of its training; {} if it was made elsewhere."""
    path = as_path(path)
    with open_safetensors(path) as file, _whole(path.name):
        return _story(file.metadata() or {})


def _story(metadata: dict) -> dict:
    return dict(json.loads(metadata.get("stylenb", "{}")))


# ------------------------------------------------------------------------------------------ reading


def load_lora(base: Base, style: str | Path) -> str:
    """Load a shipped style by name, or a LoRA file by path, into the UNet; return its name there.

    It is switched off until set_scale makes it active; what was active stays so. Loading what is
    loaded already does nothing; of two files with one name, the second gets "_2" behind it. The
    file is safetensors for a base like this one, of whatever program; LoCon, LoHa, LoKr, DoRA, OFT
    and whole differences become LoRAs of the same effect. Where no alpha is in it, the course's is
    1. What it adds to the text encoder is used where a prompt is embedded, see `text_parts`.

    Raises StylenbError, which names what was found and what was expected, for an unknown style, a
    file that is not safetensors or not a whole LoRA, one that was trained for another base, and one
    that changes nothing: the UNet must predict something else with it than without.
    """
    path = find_lora(style)
    name, loaded = usable_name(base, path.stem), getattr(base.unet, "peft_config", {})
    file_read = (path.resolve(), path.stat().st_mtime_ns)
    first = name
    for number in itertools.count(2):
        there = getattr(loaded.get(name), "file_read", file_read)
        if name in loaded and there == file_read:
            return name
        if there[0] == file_read[0]:  # it is new, or was written since
            break
        name = f"{first}_{number}"
    refuse_merged(base)
    state, config, text = _read(base, path)
    guidance = about_lora(path).get("settings", {}).get("guidance_scale", 1.0)
    guidance = read("guidance_scale", guidance, Guidance)
    remove_lora(base, name)
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
    config.file_read, config.guidance_scale, config.text = file_read, guidance, text
    return name


def guidance_of(base: Base) -> float:
    """The largest guidance_scale that an active LoRA is to be drawn with, see `Settings`."""
    layers = [layer for layer in lora_layers(base).values() if not layer.disable_adapters]
    on = {name for layer in layers for name in layer.active_adapters if layer.scaling.get(name)}
    return max([1.0, *(getattr(base.unet.peft_config[n], "guidance_scale", 1.0) for n in on)])


def _read(base: Base, path: Path) -> tuple[dict[str, torch.Tensor], dict, dict]:
    """The weights of a LoRA file, "unet.LAYER.lora_A.weight" and "...lora_B.weight", the peft
    config that belongs to them, each of its keys after "unet.", and what is added to the weights of
    the text encoder, {layer: tensor}. Where the file tells no alpha, the course's is 1.

    Raises StylenbError for a file that is not a whole LoRA of this UNet.
    """
    with open_safetensors(path) as file:
        with _whole(path.name):
            metadata = file.metadata() or {}
            config, method = _told(path, metadata), _story(metadata).get("method")
            usual = torch.tensor(config.get("unet.lora_alpha", math.nan))
        if method in _READERS and not any(map(split_key, file.keys())):
            raise StylenbError(f"{path.name} is a {method}, no LoRA: {_READERS[method]} reads it.")
        unet = _weights(own_modules(base))
        text = _weights(dict(base.text_encoder.named_modules()) if base.text_encoder else {})
        per_block = base.unet.config.layers_per_block
        keys, its_text = read_keys(path.name, list(file.keys()), unet, per_block)

        def read_layer(layer: str, keys: dict[str, str], weight: torch.Tensor):
            with _whole(path.name):
                parts = {part: file.get_tensor(key) for part, key in keys.items()}
            if "dora_scale" in parts and not usual.isnan():
                parts.setdefault("alpha", usual)
            return as_lora(parts, weight.detach().cpu(), f"{path.name} ({layer})")

        state, ranks, alphas, added = {}, {}, {}, {}
        for layer, its in keys.items():
            a, b, alpha = read_layer(layer, its, unet[layer])
            state |= {f"unet.{layer}.lora_A.weight": a, f"unet.{layer}.lora_B.weight": b}
            ranks[layer], alphas[layer] = len(a), alpha
        if not config or any(alpha is not None for alpha in alphas.values()):
            # diffusers would take one alpha for all of a kohya file's attention layers
            config = _config(ranks, {k: ranks[k] if a is None else a for k, a in alphas.items()})
        if its_text:
            with suppress(StylenbError, KeyError):  # the base has another text encoder, or none
                names = text_names(text)
                for name, its in its_text.items():
                    a, b, alpha = read_layer(name, its, text[names[name]])
                    scale = 1 if alpha is None else alpha / len(a)
                    added[names[name]] = scale * b.float() @ a.float()
            if len(added) < len(its_text):
                added = {}
            what = "used where a prompt is embedded, and left out without a prompt"
            what = what if added else "left out, as this base has another text encoder, or none"
            warnings.warn(
                f"{path.name} changes the text encoder too: that is {what}.", stacklevel=3
            )
    return state, config, added


def _weights(modules: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """Of the layers that a LoRA can change."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {key: one.weight for key, one in modules.items() if isinstance(one, kinds)}


@contextmanager
def text_parts(base: Base) -> Iterator[None]:
    """Inside, the text encoder has what the active LoRAs add to it, each at its scale, and the
    prompt of `with_prompt` is embedded by that."""
    layers = [layer for layer in lora_layers(base).values() if not layer.disable_adapters]
    scales = {
        name: layer.scaling[name] / (layer.lora_alpha[name] / layer.r[name])
        for layer in layers
        for name in layer.active_adapters
        if layer.lora_alpha.get(name)
    }
    parts = {n: part for n in scales if (part := getattr(base.unet.peft_config[n], "text", {}))}
    if not parts or base.text_encoder is None:
        yield
        return
    modules, embedding = dict(base.text_encoder.named_modules()), base._embedding
    kept = {layer: modules[layer].weight.data for part in parts.values() for layer in part}
    try:
        for name, part in parts.items():
            for layer, added in part.items():
                weight = modules[layer].weight
                weight.data = weight.data + (scales[name] * added).to(weight)
        if base.prompt is not None:
            with torch.no_grad():
                base._embedding = base.embed(base.prompt)
        yield
    finally:
        base._embedding = embedding
        for layer, weight in kept.items():
            modules[layer].weight.data = weight


def _told(path: Path, metadata: dict) -> dict:
    """The LoraConfig that the file's metadata tells, or the file that peft writes beside, its keys
    after "unet."; {} if there is none."""
    told = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    beside = path.with_name("adapter_config.json")
    if not told and path.name == "adapter_model.safetensors" and beside.is_file():
        told = json.loads(beside.read_text(encoding="utf-8"))
        if told.get("peft_type", "LORA") != "LORA":
            raise StylenbError(
                f"{path.name} is a {told['peft_type']} of peft, of whose kinds only LORA is "
                "read here: choose a LoRA."
            )
        told = {part: told[part] for part in _CONFIG if told.get(part) is not None}
    if "unet.r" not in told and "r" in told:
        told = {f"unet.{key}": value for key, value in told.items()}
    return told if "unet.r" in told else {}


@contextmanager
def _whole(file: str) -> Iterator[None]:
    """Turn what safetensors, json or peft raise inside into a sentence about the file."""
    try:
        yield
    except StylenbError:
        raise
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        raise StylenbError(
            f"{file} is not a whole LoRA ({' '.join(str(error).split())[:200]}): download or train "
            "it again."
        ) from error


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


# ------------------------------------------------------------------------------------------ writing


def save_lora(base: Base, path: str | Path, name: str = "style", about: dict | None = None) -> Path:
    """Write the LoRA `name` as fp16 safetensors in the layout of diffusers.

    Rank and alpha are in the metadata, so that `load_lora` and `pipe.load_lora_weights` restore
    them; `about` (how it was trained) is kept there too and read back by `about_lora`.
    """
    state, config = _state(base, name), base.unet.peft_config[name]
    if getattr(config, "text", {}):
        warnings.warn(
            f"What {name!r} adds to the text encoder is not saved: keep its file.", stacklevel=2
        )
    # diffusers 0.37 cannot do without the patterns
    kept = {f"unet.{part}": getattr(config, part) for part in _CONFIG}
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
