"""LoRA: small trained additions to the UNet's attention (https://arxiv.org/abs/2106.09685).

The course writes W' = W + alpha A B. peft computes W + (lora_alpha / rank) B A, so the course's
alpha is lora_alpha / rank, and alpha = 1 at rank 8 is lora_alpha = 8. The kohya format divides
by the rank (dim) likewise, and keeps its alpha as a tensor beside each pair.
"""

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .base import DATA, SD15_TEXT_WIDTH, Base
from .errors import StylenbError

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # of self-attention and cross-attention alike
LAYERS = {  # which layers get a LoRA
    "attention": TARGETS,
    "transformer": (*TARGETS, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
}
GROUPS = {  # of layers, and what stands in their names
    "self": "attn1",
    "cross": "attn2",
    "down": "down_blocks",
    "mid": "mid_block",
    "up": "up_blocks",
}


def add_lora(
    base: Base,
    name: str,
    rank: int = 8,
    alpha: float = 1.0,
    seed: int = 0,
    layers: str = "attention",
) -> list:
    """Add an untrained adapter to the UNet, make it the active one, and return its parameters
    (float32, the only ones that require a gradient).

    layers: "attention", the paper's choice, or "transformer", every matrix of the transformer
    blocks: attention, feed-forward layers, and the projections into the block and out of it.

    B starts at zero, so the UNet's output is the same as before. Raises StylenbError for a rank
    below 1, unknown layers, a name that is taken or cannot be used, and while a LoRA is merged.
    """
    if not isinstance(rank, int) or rank < 1:
        raise StylenbError(f"The rank of a LoRA is a whole number from 1 up, not {rank!r}.")
    if layers not in LAYERS:
        raise StylenbError(f"The layers of a LoRA are {' or '.join(LAYERS)}, not {layers!r}.")
    if name in adapters(base):
        raise StylenbError(f"There is a LoRA named {name!r} already: remove_lora(base, {name!r}).")
    if not _is_usable(base, name):
        raise StylenbError(
            f"{name!r} cannot be the name of a LoRA, which has no '.' and is no part of the UNet: "
            f"call it {_usable_name(base, str(name))!r}, for example."
        )
    _refuse_merged(base)
    config = LoraConfig(r=rank, lora_alpha=alpha * rank, target_modules=list(LAYERS[layers]))
    with _quietly():
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


def set_scale(
    base: Base,
    name: str | Mapping[str, float] | None,
    scale: float | Mapping[str, float] = 1.0,
) -> None:
    """Make `name` the only active LoRA, multiplied by `scale`; None switches all of them off.

    A dict {name: scale, ...} makes several active at once. What they add to W is summed, each
    whole: W' = W + s1 alpha1 A1 B1 + s2 alpha2 A2 B2. `scale` then multiplies all of them.

    scale: a number, or one for each group of layers, {"self": 0.5, "up": 2}. The groups are "self"
    and "cross" (attention), and "down", "mid" and "up" (blocks); a layer that is in two of them is
    multiplied by both, and one that is in none keeps 1.

    While a LoRA is merged it is part of W: None leaves it there, and anything else raises
    StylenbError, as do a name that is not loaded, an unknown group, and a scale that is not finite.
    """
    scales = dict(name) if isinstance(name, Mapping) else {} if name is None else {name: 1.0}
    groups = dict(scale) if isinstance(scale, Mapping) else {}
    for group in groups:
        if group not in GROUPS:
            raise StylenbError(
                f"There is no group of layers {group!r} to scale: choose {', '.join(GROUPS)}."
            )
        groups[group] = _finite(f"the group {group!r}", groups[group])
    for one, its_scale in scales.items():
        if one not in adapters(base):
            raise StylenbError(f"No LoRA named {one!r} is loaded: load_lora(base, ...) does that.")
        scales[one] = _finite(f"the LoRA {one!r}", its_scale, 1.0 if groups else scale)
    if not scales:
        if adapters(base) and not merged(base):  # peft unmerges what is switched off
            base.unet.disable_adapters()
        return
    _refuse_merged(base)
    base.unet.enable_adapters()
    base.unet.set_adapters(list(scales), list(scales.values()))
    for key, layer in base.unet.named_modules() if groups else ():
        if isinstance(layer, LoraLayer):
            factor = math.prod(groups[g] for g in groups if GROUPS[g] in key.split("."))
            for one in scales:
                layer.set_scale(one, scales[one] * factor)
    base.unet.requires_grad_(False)  # peft takes an active adapter for one to be trained


def set_alpha(base: Base, name: str, alpha: float) -> None:
    """Give the LoRA `name` another alpha in W' = W + alpha A B, which is saved with it; A and B
    stay. A scale of set_scale multiplies on top, and is 1 again afterwards.

    Raises StylenbError for a name that is not loaded, an alpha that is not finite, and while a LoRA
    is merged.
    """
    if name not in adapters(base):
        raise StylenbError(f"No LoRA named {name!r} is loaded: load_lora(base, ...) does that.")
    alpha = _finite(f"the LoRA {name!r}", alpha)
    _refuse_merged(base)
    config = base.unet.peft_config[name]
    config.lora_alpha, config.alpha_pattern = alpha * config.r, {}
    for _, layer in _own_layers(base, name):
        layer.lora_alpha[name] = alpha * layer.r[name]
        layer.scaling[name] = alpha


def _finite(whose: str, *factors) -> float:
    try:
        product = math.prod(map(float, factors))
    except (TypeError, ValueError):
        product = math.nan
    if not math.isfinite(product):
        raise StylenbError(
            f"The scale of {whose} must be a number, not NaN or infinity: it is "
            f"{' x '.join(map(repr, factors))}."
        )
    return product


def merge_lora(
    base: Base, name: str | Mapping[str, float], scale: float | Mapping[str, float] = 1.0
) -> None:
    """Add the LoRA to the weights themselves, W <- W + scale * alpha A B, so that it costs no time.

    The output is that of set_scale(base, name, scale), to within rounding; `name` may be a dict
    here too. Until unmerge_lora, no other LoRA can be added, loaded or made active.

    Raises StylenbError if something is merged already, for a name that is not loaded, and if a
    weight would no longer be finite; nothing is merged then.
    """
    if not name:
        raise StylenbError("merge_lora needs the name of a LoRA that is loaded.")
    set_scale(base, name, scale)
    try:
        for layer in _lora_layers(base):
            layer.merge(safe_merge=True)
    except ValueError as error:
        if merged(base):
            unmerge_lora(base)
        raise StylenbError(
            f"The LoRA {name!r} holds NaN or infinity, or its scale is too large ({scale!r}), so "
            "it was not merged: train it again or lower the scale."
        ) from error


def unmerge_lora(base: Base) -> None:
    """Subtract from the weights what merge_lora added to them. All LoRAs are then switched off.

    As exact as two roundings: W comes back to about 1e-7 of the larger of |W| and |W'| in
    float32, 1e-3 in float16 and 1e-2 in bfloat16, not bit for bit. After many rounds in half
    precision, load the base again.

    Raises StylenbError if nothing is merged.
    """
    if not merged(base):
        raise StylenbError("No LoRA is merged, so there is nothing to unmerge.")
    for layer in _lora_layers(base):
        if layer.merged:
            layer.unmerge()
    set_scale(base, None)


@contextmanager
def merged_for_now(
    base: Base,
    name: str | Mapping[str, float] | None,
    scale: float | Mapping[str, float] = 1.0,
) -> Iterator[None]:
    """merge_lora inside, if there is one to merge; afterwards W is what it was to the last bit, and
    all LoRAs are switched off. It keeps a copy of the weights that it changes meanwhile."""
    if name:
        _refuse_merged(base)
    layers = _lora_layers(base) if name else []
    kept = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    try:
        if name:
            merge_lora(base, name, scale)
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.get_base_layer().weight.data.copy_(weight)
            layer.merged_adapters.clear()
        set_scale(base, None)


def merged(base: Base) -> list[str]:
    """Names of the LoRAs that merge_lora added to the weights."""
    return list(dict.fromkeys(n for layer in _lora_layers(base) for n in layer.merged_adapters))


def remove_lora(base: Base, name: str) -> None:
    """Take the LoRA out of the UNet, which is then what it was before; others stay as they are.

    Raises StylenbError for one that is merged.
    """
    if name in merged(base):
        _refuse_merged(base)
    if name in adapters(base):
        _delete(base, name)


def _lora_layers(base: Base) -> list[LoraLayer]:
    return [module for module in base.unet.modules() if isinstance(module, LoraLayer)]


def _refuse_merged(base: Base) -> None:
    if merged(base):
        raise StylenbError(
            f"The LoRA {', '.join(map(repr, merged(base)))} is merged into the weights: "
            "unmerge_lora(base) first."
        )


def _delete(base: Base, name: str) -> None:
    active = [layer for layer in _lora_layers(base) if name in layer.active_adapters]
    for layer in active:  # peft would make another one active instead
        layer.set_adapter([other for other in layer.active_adapters if other != name])
    base.unet.delete_adapters(name)
    if active:
        base.unet.requires_grad_(False)


def _is_usable(base: Base, name: str) -> bool:
    """Whether torch takes the name for a module, and peft cannot take it for a part of the UNet.

    peft leaves out of a saved LoRA whatever has the name of another one in its path.
    """
    if not isinstance(name, str) or not name or "." in name:
        return False
    if hasattr(torch.nn.ModuleDict(), name):
        return False
    parts = {part for key in _layers(base) for part in key.split(".")}
    own = {*LoraLayer.adapter_layer_names, *LoraLayer.other_param_names}
    return name not in parts | own | {"weight", "bias", "base_layer"}


def _usable_name(base: Base, name: str) -> str:
    name = name.replace(".", "_") or "style"
    while not _is_usable(base, name):
        name += "_"
    return name


def _layers(base: Base) -> dict[str, torch.nn.Module]:
    """The UNet's own modules by name, without what peft put around and beside them."""
    return {
        key: module.get_base_layer() if isinstance(module, LoraLayer) else module
        for key, module in base.unet.named_modules()
        if ".lora_" not in key and not key.endswith(".base_layer")
    }


@contextmanager
def _quietly() -> Iterator[None]:
    """Leave torch's random state as it was, and out that a LoRA is not the first or only one."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*peft_config|Adapter .* was active", UserWarning)
        yield


@contextmanager
def _as_before(base: Base) -> Iterator[None]:
    """Whatever is switched inside, afterwards the LoRAs of before are active at their scales."""
    layers = [layer for layer in _lora_layers(base) if not layer.disable_adapters]
    active = dict.fromkeys(name for layer in layers for name in layer.active_adapters)
    scaling = [(layer, dict(layer.scaling)) for layer in layers]
    try:
        yield
    finally:
        set_scale(base, dict.fromkeys((n for n in active if n in adapters(base)), 1.0))
        for layer, numbers in scaling:  # to the last bit
            layer.scaling.update((n, s) for n, s in numbers.items() if n in layer.scaling)


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
    return _write(base, Path(path), state, metadata, about)


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
    for key, layer in _own_layers(base, name):
        ranks[key] = rank = layer.r[name]
        alphas[key] = float(layer.lora_alpha[name] * (rank**0.5 if by_root else 1))
        state[f"{_kohya(key)}.alpha"] = torch.tensor(alphas[key])  # the converter's is the rank
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
    return [
        save_lora(base, folder / f"{name}.safetensors", name, about),
        _write(base, folder / f"{name}.kohya.safetensors", state, metadata, about),
    ]


def _state(base: Base, name: str) -> dict[str, torch.Tensor]:
    """The weights of the LoRA as a file holds them: in half precision, under diffusers' names."""
    if name not in adapters(base):
        raise StylenbError(f"No LoRA named {name!r} is loaded, so there is nothing to save.")
    # peft 0.17's own function takes in every LoRA whose name begins with this one
    state = {
        f"unet.{key}.{part}.weight": getattr(layer, part)[name].weight.detach().cpu().half()
        for key, layer in _own_layers(base, name)
        for part in ("lora_A", "lora_B")
    }
    if not all(weight.isfinite().all() for weight in state.values()):
        raise StylenbError(
            f"The LoRA {name!r} holds NaN, or numbers above the 65,504 of half precision, so it "
            "was not saved: train it again with a lower learning rate."
        )
    return state


def _own_layers(base: Base, name: str) -> list[tuple[str, LoraLayer]]:
    layers = base.unet.named_modules()
    return [(k, m) for k, m in layers if isinstance(m, LoraLayer) and name in m.lora_A]


def _write(base: Base, path: Path, state: dict, metadata: dict, about: dict | None) -> Path:
    told = {"base": base.name, **(about or {})}
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, temporary, {"format": "pt", **metadata, "stylenb": json.dumps(told)})
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StylenbError(
            f"{path} cannot be written ({error}): free disk space, or choose another folder."
        ) from error
    return path


def _kohya(key: str) -> str:
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


def about_lora(path: str | Path) -> dict:
    """What the metadata of a LoRA file says of its training; {} if it was made elsewhere."""
    with _open(Path(path)) as file:
        return json.loads((file.metadata() or {}).get("stylenb", "{}"))


def load_lora(base: Base, style: str | Path) -> str:
    """Load a shipped style by name, or a LoRA file by path, into the UNet; return its name there.

    It is switched off until set_scale makes it active; what was active stays so. Loading what is
    loaded already does nothing. The file is safetensors in the layout of diffusers or of kohya's
    scripts; where it tells no alpha, the course's is 1.

    Raises StylenbError, which names what was found and what was expected, for an unknown style, a
    file that is no safetensors or no whole LoRA, one that was trained for another base, and one
    that changes nothing: the UNet must predict something else with it than without.
    """
    path = find_lora(style)
    name = _usable_name(base, path.stem)
    file_read = (path.resolve(), path.stat().st_mtime_ns)
    loaded = getattr(base.unet, "peft_config", {}).get(name)
    if loaded is not None and getattr(loaded, "file_read", file_read) == file_read:
        return name
    _refuse_merged(base)
    with _open(path) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    pairs = _check_fits(base, path.name, shapes)
    if loaded is not None:
        remove_lora(base, name)  # another file of this name, or one that was written since
    with _as_before(base):
        try:
            _load(base, path, name, pairs)
            _prove(base, path.name, name)
        except BaseException:  # Ctrl-C too
            _delete(base, name)
            raise
    base.unet.requires_grad_(False)
    base.unet.peft_config[name].file_read = file_read
    return name


def _load(base: Base, path: Path, name: str, pairs: dict[str, dict[str, str]]) -> None:
    try:
        with _open(path) as file:
            told = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
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
        if "unet.r" not in told:
            # diffusers would take one alpha for all of a kohya file's attention layers
            told = {f"unet.{part}": value for part, value in _config(ranks, alphas).items()}
        # outside of inference mode, else no gradient could ever flow through the weights
        with torch.inference_mode(False), _quietly():
            base.unet.load_lora_adapter(state, prefix="unet", adapter_name=name, metadata=told)
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        raise StylenbError(
            f"{path.name} is no whole LoRA ({' '.join(str(error).split())[:200]}): download or "
            "train it again."
        ) from error


def _number(tensor: torch.Tensor) -> float:
    """The decimal number that was rounded to this float32, so that 0.9 comes back as 0.9."""
    return float(str(tensor.float().reshape(()).numpy()[()]))


def _prove(base: Base, file: str, name: str) -> None:
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
        layers = [layer for layer in _lora_layers(base) if name in layer.lora_A]
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


_KEY = re.compile(r"unet\.(.+)\.(?:lora_([AB])|lora\.(down|up))\.weight")
_KOHYA_KEY = re.compile(r"(lora_unet_.+)\.(?:lora_(down|up)\.weight|(alpha))")
_SDXL_KEY = re.compile(  # a second text encoder, the picture's size as input, deeper attention
    r"lora_te2_|text_encoder_2\.|.*(add_embedding|label_emb|"
    r"(attentions|(in|out)put_blocks_\d+|middle_block)[._]\d+[._]transformer_blocks[._][1-9])"
)


def _check_fits(base: Base, file: str, shapes: dict[str, tuple]) -> dict[str, dict[str, str]]:
    """Which keys of the file are "A", "B" and perhaps "alpha" of each of the UNet's layers.

    Raises StylenbError unless these keys and shapes are whole pairs that fit the base's UNet.
    """
    if not shapes:
        raise StylenbError(f"{file} holds no weights, and a LoRA has two matrices per layer.")
    layers = _layers(base)
    example = next(key for key in layers if key.endswith(".to_q"))
    expected = (
        f"expected are keys such as 'unet.{example}.lora_A.weight' or "
        f"'{_kohya(example)}.lora_down.weight'"
    )
    found = next(filter(_SDXL_KEY.match, shapes), None)
    if found is not None:
        raise StylenbError(
            f"{file} was trained for Stable Diffusion XL, as its key {found!r} shows, and the "
            f"base {base.name!r} is built like v1.5: choose a LoRA for SD v1.5."
        )
    found = next((key for key in shapes if key.startswith(("text_encoder.", "lora_te"))), None)
    if found is not None:
        raise StylenbError(
            f"{file} changes the text encoder too, as its key {found!r} shows, and without a "
            "prompt that part would be lost: choose or train a LoRA of the UNet alone."
        )
    by_kohya = {_kohya(key): key for key in layers}
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
        raise StylenbError(
            f"{file} was made for another model: no layer of the base {base.name!r} fits "
            f"{len(unknown)} of its {len(shapes)} keys, the first of them {unknown[0]!r}, and "
            f"{expected}."
        )
    for target, pair in pairs.items():
        layer, ranks = layers[target], {}
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
                    f"{file} does not fit the base {base.name!r} ({pair[part]} has the shape "
                    f"{shape}, expected is ({', '.join(map(str, wanted))}) with a rank r): load "
                    "the base that it was trained for."
                )
            ranks[part] = rank
        alpha = shapes.get(pair.get("alpha"), ())
        if len(ranks) < 2 or ranks["A"] != ranks["B"] or math.prod(alpha) != 1:
            has = [f"{part} of rank {rank}" for part, rank in sorted(ranks.items())]
            has += [f"alpha of the shape {alpha}"] if "alpha" in pair else []
            raise StylenbError(
                f"{file} is no whole LoRA ({target} has {' and '.join(has)}, expected are A and B "
                "of one rank and at most one number alpha): download or train it again."
            )
    return pairs


def find_lora(style: str | Path) -> Path:
    """The file of a shipped style or of a path. Raises StylenbError with the choices."""
    shipped = available_styles()
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


def available_styles() -> dict[str, Path]:
    """The shipped styles: name -> file in data/loras."""
    return {path.stem: path for path in sorted((DATA / "loras").glob("*.safetensors"))}


def _open(path: Path):
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
