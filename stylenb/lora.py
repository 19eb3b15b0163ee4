"""LoRA: small trained additions to the UNet's attention (https://arxiv.org/abs/2106.09685).

The course writes W' = W + alpha A B. peft computes W + (lora_alpha / rank) B A, so the course's
alpha is lora_alpha / rank, and alpha = 1 at rank 8 is lora_alpha = 8. The kohya format divides
by the rank (dim) likewise, and keeps its alpha as a tensor beside each pair.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from .base import Base
from .errors import StylenbError
from .limits import Count, Finite, read

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # of self-attention and cross-attention alike
LAYERS = {  # which layers get a LoRA
    "attention": TARGETS,
    "transformer": (*TARGETS, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
}
# groups of layers, and what stands in their names
GROUPS = dict(self="attn1", cross="attn2", down="down_blocks", mid="mid_block", up="up_blocks")

Names = str | Mapping[str, float] | None  # one LoRA, several with a scale each, or none
Scale = float | Mapping[str, float]  # a number, or one for each of some GROUPS


def add_lora(
    base: Base,
    name: str,
    rank: int = 8,
    alpha: float = 1.0,
    seed: int = 0,
    layers: str = "attention",
) -> list[torch.nn.Parameter]:
    """Add an untrained adapter to the UNet, make it the active one, and return its parameters
    (float32, the only ones that require a gradient).

    layers: "attention", the paper's choice, or "transformer", every matrix of the transformer
    blocks: attention, feed-forward layers, and the projections into the block and out of it.

    B starts at zero, so the UNet's output is the same as before. Raises StylenbError for a rank
    below 1, unknown layers, a name that is taken or cannot be used, and while a LoRA is merged.
    """
    rank, alpha = read("rank", rank, Count), read("alpha", alpha, Finite)
    if layers not in LAYERS:
        raise StylenbError(f"The layers of a LoRA are {' or '.join(LAYERS)}, not {layers!r}.")
    if name in adapters(base):
        raise StylenbError(f"There is a LoRA named {name!r} already: remove_lora(base, {name!r}).")
    if name != usable_name(base, str(name)):
        raise StylenbError(
            f"{name!r} cannot be the name of a LoRA (it has a '.', or a part of the UNet has it): "
            f"call it {usable_name(base, str(name))!r}, for example."
        )
    refuse_merged(base)
    config = LoraConfig(r=rank, lora_alpha=alpha * rank, target_modules=list(LAYERS[layers]))
    with quietly():
        torch.manual_seed(seed)
        base.unet.add_adapter(config, adapter_name=name)
    base.unet.enable_adapters()  # they stay off for a new one too, once they were switched off
    base.unet.set_adapters([name], [1.0])
    cast_training_params(base.unet)  # the optimiser's small steps vanish in half precision
    return [p for p in base.unet.parameters() if p.requires_grad]


def remove_lora(base: Base, name: str) -> None:
    """Take the LoRA, if it is there, out of the UNet, which is then what it was before; others stay
    as they are. Raises StylenbError for one that is merged."""
    if name in merged(base):
        refuse_merged(base)
    active = [layer for layer in lora_layers(base).values() if name in layer.active_adapters]
    for layer in active:  # peft would make another one active instead
        layer.set_adapter([other for other in layer.active_adapters if other != name])
    base.unet.delete_adapters(name)
    if active:
        base.unet.requires_grad_(False)


def set_scale(base: Base, name: Names, scale: Scale = 1.0) -> None:
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
    for group, factor in groups.items():
        if group not in GROUPS:
            raise StylenbError(f"{group!r} is not a group of layers: choose {', '.join(GROUPS)}.")
        groups[group] = _finite(f"the group {group!r}", factor)
    for one, its_scale in scales.items():
        refuse_unknown(base, one)
        scales[one] = _finite(f"the LoRA {one!r}", its_scale, 1.0 if groups else scale)
    if not scales:
        if adapters(base) and not merged(base):  # peft unmerges what is switched off
            base.unet.disable_adapters()
        return
    refuse_merged(base)
    base.unet.enable_adapters()
    base.unet.set_adapters(list(scales), list(scales.values()))
    for key, layer in lora_layers(base).items() if groups else ():
        factor = math.prod(groups[g] for g in groups if GROUPS[g] in key.split("."))
        for one in scales:
            layer.set_scale(one, scales[one] * factor)
    base.unet.requires_grad_(False)  # peft takes an active adapter for one to be trained


def set_alpha(base: Base, name: str, alpha: float) -> None:
    """Give the LoRA `name` another alpha in W' = W + alpha A B, which is saved with it; A and B
    stay. A scale of set_scale multiplies on top, and is 1 again afterwards.

    Raises StylenbError for a name that is not loaded, an alpha that is not finite, a merged LoRA.
    """
    refuse_unknown(base, name)
    alpha = _finite(f"the LoRA {name!r}", alpha)
    refuse_merged(base)
    config = base.unet.peft_config[name]
    config.lora_alpha, config.alpha_pattern = alpha * config.r, {}
    for layer in lora_layers(base, name).values():
        layer.lora_alpha[name] = alpha * layer.r[name]
        layer.scaling[name] = alpha


def merge_lora(base: Base, name: str | Mapping[str, float], scale: Scale = 1.0) -> None:
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
        for layer in lora_layers(base).values():
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

    As exact as two roundings: W comes back to about 1e-7 of the larger of |W| and |W'| in float32,
    1e-3 in float16 and 1e-2 in bfloat16. After many rounds in half precision, load the base again.

    Raises StylenbError if nothing is merged.
    """
    if not merged(base):
        raise StylenbError("No LoRA is merged, so there is nothing to unmerge.")
    for layer in lora_layers(base).values():
        if layer.merged:
            layer.unmerge()
    set_scale(base, None)


@contextmanager
def switched(base: Base, name: Names, scale: Scale = 1.0, merge: bool = False) -> Iterator[None]:
    """Inside, `name` is active at `scale`, as set_scale makes it (None: no LoRA is), or merged.

    Afterwards, after an error too, the LoRAs of before are active at their scales, what required a
    gradient does so again, and after a merge W is what it was to the last bit (a copy is kept
    meanwhile). Raises StylenbError while a LoRA is merged.
    """
    refuse_merged(base)
    layers = lora_layers(base).values()
    active = dict.fromkeys(
        one for layer in layers if not layer.disable_adapters for one in layer.active_adapters
    )
    scaling = [(layer, dict(layer.scaling)) for layer in layers]
    trained = [p for p in base.unet.parameters() if p.requires_grad]
    kept = [(layer, layer.get_base_layer().weight.detach().clone()) for layer in layers if merge]
    try:
        (merge_lora if merge else set_scale)(base, name, scale)
        yield
    finally:
        for layer, weight in kept:
            layer.get_base_layer().weight.data.copy_(weight)
            layer.merged_adapters.clear()
        set_scale(base, {one: 1.0 for one in active if one in adapters(base)})
        for layer, numbers in scaling:  # to the last bit
            layer.scaling.update((n, s) for n, s in numbers.items() if n in layer.scaling)
        for p in trained:
            p.requires_grad_(True)


def adapters(base: Base) -> list[str]:
    """Names of the LoRAs that are in the UNet, active or not."""
    return list(getattr(base.unet, "peft_config", {}))


def merged(base: Base) -> list[str]:
    """Names of the LoRAs that merge_lora added to the weights."""
    layers = lora_layers(base).values()
    return list(dict.fromkeys(name for layer in layers for name in layer.merged_adapters))


def lora_layers(base: Base, name: str | None = None) -> dict[str, LoraLayer]:
    """The layers of the UNet that have, or had, a LoRA beside them, by their names in the UNet;
    only those that the LoRA `name` changes, if one is given."""
    return {
        key: module
        for key, module in base.unet.named_modules()
        if isinstance(module, LoraLayer) and (name is None or name in module.lora_A)
    }


def own_modules(base: Base) -> dict[str, torch.nn.Module]:
    """The UNet's own modules by name, without what peft put around and beside them."""
    return {
        key: module.get_base_layer() if isinstance(module, LoraLayer) else module
        for key, module in base.unet.named_modules()
        if ".lora_" not in key and not key.endswith(".base_layer")
    }


def usable_name(base: Base, name: str) -> str:
    """The name, changed where it has to be, under which a LoRA can be added to the UNet.

    torch must take it for a module's, and peft not for a part of the UNet: it leaves out of a saved
    LoRA whatever has the name of another one in its path.
    """
    taken = {part for key in own_modules(base) for part in key.split(".")}
    taken.update(LoraLayer.adapter_layer_names, LoraLayer.other_param_names)
    taken.update({"weight", "bias", "base_layer"})
    name = name.replace(".", "_") or "style"
    while name in taken or hasattr(torch.nn.ModuleDict(), name):
        name += "_"
    return name


def refuse_unknown(base: Base, name: str) -> None:
    """Raise StylenbError unless the LoRA is in the UNet."""
    if name not in adapters(base):
        raise StylenbError(f"No LoRA named {name!r} is loaded: load_lora(base, ...) does that.")


def refuse_merged(base: Base) -> None:
    """Raise StylenbError while a LoRA is merged."""
    if names := ", ".join(map(repr, merged(base))):
        raise StylenbError(
            f"The LoRA {names} is merged into the weights: unmerge_lora(base) first."
        )


def _finite(whose: str, *factors) -> float:
    """The product of the factors of a scale. Raises StylenbError for one that is not finite."""
    with suppress(TypeError, ValueError):
        if math.isfinite(product := math.prod(map(float, factors))):
            return product
    raise StylenbError(
        f"The scale of {whose} must be a number, not NaN or infinity: it is "
        f"{' x '.join(map(repr, factors))}."
    )


@contextmanager
def quietly() -> Iterator[None]:
    """Inside, peft does not warn that there are several LoRAs; torch's random state is kept."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*peft_config|Adapter .* was active", UserWarning)
        yield
