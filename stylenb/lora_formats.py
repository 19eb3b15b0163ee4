"""LoRA formats: what the keys of a file mean, whoever wrote it, and other kinds as exact LoRAs.

A key names a layer and a part of what is added to its weight. diffusers' converters read most of
the names too, but of a kohya file they take one alpha for all attention layers, and the upsamplers
of the original code for attention.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from .errors import StylenbError

# Keys of files that cannot be used: what they show, and what can be done.
_REFUSED = (
    (  # a second text encoder, the picture's size as input, deeper attention
        r"lora_te2_|text_encoder_2\.|.*(add_embedding|label_emb|"
        r"(attentions|(in|out)put_blocks_\d+|middle_block)[._]\d+[._]transformer_blocks[._][1-9])",
        "was trained for Stable Diffusion XL",
        "the base is built like v1.5: choose a LoRA for SD v1.5",
    ),
    (
        r"\w+:\d+:(up|down)",
        "is of the first LoRA scripts (cloneofsimo's), which number the layers",
        "nothing tells which is which: convert it with those scripts, or choose another",
    ),
    (
        r"(first_stage_model|cond_stage_model)\.|model\.diffusion_model\..+\d\.(weight|bias)$",
        "is a whole model in a single file (a checkpoint)",
        "a LoRA is what is added to one: load it as a base, load(path)",
    ),
    (
        r".*\.(on_input|ia3_l)",
        "is IA3, which multiplies what layers give",
        "a LoRA adds to their weights: choose a LoRA",
    ),
    (
        r".*\.(diff_b|w_norm|b_norm|set_weight)$",
        "changes biases or normalisation too",
        "a LoRA changes matrices only: choose a LoRA",
    ),
    (
        r".*\.(oft_R|oft_diag|a1|a2|b1|b2|vera_\w+)\b",
        "is an adapter of another kind (OFT of peft or kohya, GLoRA or VeRA)",
        "only those of LyCORIS are read here: choose a LoRA",
    ),
)

_KEY = re.compile(
    r"(?P<layer>.+?)(?:"
    r"[._]lora(?:_linear_layer)?[._](?P<lora>A|B|down|up|mid|magnitude_vector)"
    r"|(?:_lora)?\.(?P<other>alpha|dora_scale|diff|(?:hada|lokr)_[wt][12](?:_[ab])?|oft_blocks|rescale)"
    r")(?:\.\w+?)?(?:\.weight)?"  # peft leaves the adapter's name in, ".default"
)
_PARTS = {"down": "A", "up": "B", "magnitude_vector": "dora_scale"}
_PREFIXES = re.compile(
    r"(?:base_model\.model\.|unet\.|text_encoder\.|lora_unet_|lora_te1?_|(?:model\.)?diffusion_model\.)+"
)
_LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
_RESNET = {  # in diffusers -> in the original code of Stable Diffusion
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}
_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def read_keys(
    file: str, keys: list[str], layers: Iterable[str], per_block: int
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """What the keys of a file say, {layer: {part: key}}: of the UNet, and of the text encoder (its
    layers as `flat` names them).

    layers, per_block: of the UNet, see `unet_names`. Raises StylenbError for a LoRA of another
    model, and what is no LoRA at all.
    """
    if not keys:
        raise StylenbError(f"{file} holds no weights, and a LoRA has two matrices per layer.")
    for pattern, what, why in _REFUSED:
        if found := next((key for key in keys if re.match(pattern, key)), None):
            raise StylenbError(f"{file} {what}, as its key {found!r} shows, and {why}.")
    names, unet, text, unknown = unet_names(layers, per_block), {}, {}, []
    for key in keys:
        name, part = split_key(key) or ("", "")
        its = text if re.match(r"lora_te|text_encoder\.|(lora_\w+_)?text_model[._]", key) else unet
        layer = name if its is text else names.get(name)
        if layer is None or part in its.setdefault(layer, {}):
            unknown.append(key)
        else:
            its[layer][part] = key
    if unknown:
        example = next(layer for layer in names.values() if layer.endswith(".to_q"))
        raise StylenbError(
            f"{file} was made for another model: no layer of the base fits {len(unknown)} of its "
            f"{len(keys)} keys, the first of them {unknown[0]!r}, and expected are keys such as "
            f"'unet.{example}.lora_A.weight'."
        )
    if not unet:
        raise StylenbError(f"{file} changes the text encoder alone: choose a LoRA of the UNet.")
    return unet, text


def split_key(key: str) -> tuple[str, str] | None:
    """What a key says: the layer as `flat` writes it, and the part of what is added to it, "A", "B"
    and "alpha" of a LoRA or what LyCORIS calls those of other kinds; None if it says neither."""
    if not (found := _KEY.fullmatch(key)):
        return None
    part = found["lora"] or found["other"]
    return flat(found["layer"]), _PARTS.get(part, part)


def flat(layer: str) -> str:
    """A layer's name without what programs put before it, and with "_" for each dot."""
    return _PREFIXES.sub("", layer, count=1).replace(".processor", "").replace(".", "_")


def unet_names(layers: Iterable[str], per_block: int) -> dict[str, str]:
    """All that programs call the layers of a UNet, as `flat` writes it -> the layer's name here.

    per_block: how many ResNets a block of the way down has, config.layers_per_block.
    """
    layers, names = list(layers), {}
    for layer in layers:
        names[flat(layer)] = layer
        names[flat(layer.removesuffix(".0"))] = layer  # "to_out" of 2023's diffusers
        names[flat(_original(layer, per_block + 1, layers))] = layer
    return names


def text_names(layers: Iterable[str]) -> dict[str, str]:
    """The same for a text encoder, with "text_model." before the names or without."""
    names = {}
    for layer in layers:
        *above, last = layer.removeprefix("text_model.").split(".")
        for one in (last, _TEXT.get(last, last)):
            names[flat(".".join(["text_model", *above, one]))] = layer
    return names


def _original(layer: str, per_block: int, layers: list[str]) -> str:
    """The name of a layer in the original code (CompVis), which numbers all blocks in a row."""
    if layer in _ENDS:
        return _ENDS[layer]
    found = re.fullmatch(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.([a-z]+)\.(\d+)\.(.+)", layer)
    if not found:
        return layer
    way, block, kind, number, rest = found.groups()
    number, rest = int(number), _RESNET.get(rest, rest) if kind == "resnets" else rest
    if way is None:
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{rest}"
    first, inside = per_block * int(block), int(kind == "attentions")
    if kind == "downsamplers":
        return f"input_blocks.{first + per_block}.0.op"
    if kind == "upsamplers":  # after the attention of the last step, if there is one
        attended = any(one.startswith(f"up_blocks.{block}.attentions.") for one in layers)
        return f"output_blocks.{first + per_block - 1}.{1 + attended}.{rest}"
    if way == "down":
        return f"input_blocks.{first + number + 1}.{inside}.{rest}"
    return f"output_blocks.{first + number}.{inside}.{rest}"


def as_lora(
    parts: dict[str, torch.Tensor], weight: torch.Tensor, where: str = "This"
) -> tuple[torch.Tensor, torch.Tensor, float | None]:
    """What a file adds to a layer -> A (r, in, ...), B (out, r, ...) and alpha, which is None where
    the file tells none: W' = W + alpha / r B A.

    weight: W, (out, in) or (out, in, height, width). LoCon's middle matrix goes into A. LoHa
    (https://arxiv.org/abs/2108.06098), LoKr (https://arxiv.org/abs/2309.14859), OFT
    (https://arxiv.org/abs/2306.07280), a whole difference, and what DoRA
    (https://arxiv.org/abs/2402.09353) makes of W at scale 1, are exact as a LoRA of full rank, in
    which one matrix is the identity.

    Raises StylenbError, which begins with `where`, for parts that are not whole or do not fit W.
    """
    try:
        found = _as_lora(parts, weight)
    except (RuntimeError, IndexError) as error:
        raise StylenbError(
            f"{where} does not fit the base ({_listed(parts)}, and W is {tuple(weight.shape)}): "
            "load the base that it was trained for."
        ) from error
    if found is None:
        raise StylenbError(
            f"{where} is not a whole LoRA ({_listed(parts)}, and expected are A and B of one rank, "
            "and at most one number alpha): download or train it again."
        )
    return found


def _listed(parts: dict[str, torch.Tensor]) -> str:
    return ", ".join(f"{part} is {tuple(value.shape)}" for part, value in parts.items())


def _as_lora(parts: dict[str, torch.Tensor], weight: torch.Tensor):
    kind = parts.keys() - {"alpha"}
    if parts.get("alpha", torch.zeros(1)).numel() != 1:
        return None
    # the decimal that was rounded to this float32, so that 0.9 comes back as 0.9
    alpha = float(str(parts["alpha"].float().numpy().flat[0])) if "alpha" in parts else None
    ones = [1 for _ in weight.shape[2:]]
    if kind in ({"A", "B"}, {"A", "B", "mid"}):
        a, b = parts["A"], parts["B"].flatten(1)
        if "mid" in parts:
            a = torch.einsum("or...,ri->oi...", parts["mid"].float(), a.flatten(1).float())
        if len(a) != b.shape[1] or len(a) < 1:
            return None
        return a.reshape(len(a), *weight.shape[1:]), b.reshape(len(weight), len(a), *ones), alpha
    parts, weight = {key: value.float() for key, value in parts.items()}, weight.float()
    added = _difference(kind - {"dora_scale"}, parts, weight, alpha)
    if added is None:
        return None
    added = added.reshape(weight.shape)
    if "dora_scale" in kind:
        added = _dora(weight + added, parts["dora_scale"]) - weight
    out, wide = added.flatten(1).shape
    if weight.ndim == 2 and wide < out:
        return torch.eye(wide), added, float(wide)
    return added, torch.eye(out).reshape(out, out, *ones), float(out)


def _difference(kind: set[str], parts: dict, weight: torch.Tensor, alpha: float | None):
    """W' - W, in any shape that has as many numbers; None for parts that are not whole."""
    if kind == {"diff"}:
        return parts["diff"]
    if kind in ({"A", "B"}, {"A", "B", "mid"}):
        low = {key: parts[key] for key in kind}
        a, b, _ = as_lora(low, weight)
        return _scaled(b.flatten(1) @ a.flatten(1), alpha, len(a))
    if kind in (_LOHA, _LOHA | {"hada_t1", "hada_t2"}):
        one, two = (_product(parts, f"hada_w{i}", f"hada_t{i}") for i in "12")
        return _scaled(one * two, alpha, len(parts["hada_w1_b"]))
    if kind in ({"oft_blocks"}, {"oft_blocks", "rescale"}):
        return _oft(weight, parts["oft_blocks"], alpha) * parts.get("rescale", 1) - weight
    if all({f"lokr_w{i}"} <= kind or {f"lokr_w{i}_a", f"lokr_w{i}_b"} <= kind for i in "12"):
        small, large = (_product(parts, f"lokr_w{i}", f"lokr_t{i}") for i in "12")
        small = small.reshape(*small.shape, *(1 for _ in large.shape[2:]))
        rank = next((len(parts[f"lokr_w{i}_b"]) for i in "21" if f"lokr_w{i}_b" in parts), None)
        return _scaled(torch.kron(small, large.contiguous()), alpha, rank)
    return None


def _product(parts: dict[str, torch.Tensor], name: str, middle: str) -> torch.Tensor:
    """A matrix that may be there whole, as a product of two, or with a core between these."""
    if name in parts:
        return parts[name]
    one, two = parts[f"{name}_a"], parts[f"{name}_b"]
    if middle in parts:
        return torch.einsum("ij...,jr,ip->pr...", parts[middle], two, one)
    return one @ two


def _scaled(added: torch.Tensor, alpha: float | None, rank: int | None) -> torch.Tensor:
    return added if alpha is None or rank is None else added * (alpha / rank)


def _dora(weight: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """A weight scaled to these lengths of its rows (peft's) or of its columns (LyCORIS' older)."""
    side = 0 if len(lengths) == len(weight) else 1
    norms = weight.transpose(0, side).flatten(1).norm(dim=1)
    return weight * (lengths.flatten() / norms).reshape(
        [-1 if axis == side else 1 for axis in range(weight.ndim)]
    )


def _oft(weight: torch.Tensor, blocks: torch.Tensor, alpha: float | None) -> torch.Tensor:
    """W with its rows rotated block by block, as LyCORIS keeps it: each rotation in Cayley's form,
    of a skew-symmetric matrix; alpha times the rows limits the length of all of these."""
    skew = blocks - blocks.mT
    if alpha and skew.norm() > alpha * len(weight):
        skew *= alpha * len(weight) / skew.norm()
    one = torch.eye(blocks.shape[1])
    rotation = (one + skew) @ torch.linalg.inv(one - skew)
    return (rotation.mT @ weight.reshape(*blocks.shape[:2], -1)).reshape(weight.shape)
