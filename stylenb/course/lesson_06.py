"""The exercises of lesson 06, using it."""

import math
from collections.abc import Callable

import torch

from .check import Draw, Exercises
from .lesson_00 import steps_inputs, steps_run

EXERCISES = Exercises()
exercise, check = EXERCISES.add, EXERCISES.check


def unet_predictions(steps: int, strength: float, inverted: bool, guided: bool) -> int:
    """How many predictions of the noise one picture costs, on the way up and down."""
    return _predictions(steps_run(steps, strength), inverted, guided)


def _predictions(run: int, inverted: bool, guided: bool) -> int:
    return run * (2 if guided else 1) + (run if inverted else 0)


def _predictions_of_all_kinds(draw: Draw):
    kinds = [(inverted, guided) for inverted in (False, True) for guided in (False, True)]
    return [(*steps_inputs(draw), *kind) for kind in kinds] + [(20, 0.01, True, False)]


exercise(
    unet_predictions,
    lambda draw: (*steps_inputs(draw), *map(bool, draw.integers(0, 2, 2))),
    also=_predictions_of_all_kinds,
).mistakes(
    "Guidance is missing: with it, each step down needs two predictions.",
    lambda n, s, i, g: steps_run(n, s) * (2 if i else 1),
    "The way up is missing: by inversion it costs as many steps as the way down.",
    lambda n, s, i, g: steps_run(n, s) * (2 if g else 1),
    "The way up is never guided: only the predictions on the way down are doubled.",
    lambda n, s, i, g: steps_run(n, s) * (2 if i else 1) * (2 if g else 1),
    "That is for strength 1: below it, fewer steps are run.",
    lambda n, s, i, g: _predictions(n, i, g),
    "The wrong way round: guidance is what costs two.",
    lambda n, s, i, g: unet_predictions(n, s, i, not g),
    "Close: int() always rounds down; take the nearest whole number of steps.",
    lambda n, s, i, g: _predictions(int(n * s), i, g),
    "Nearly: at a very low strength, one step is run at least.",
    lambda n, s, i, g: _predictions(round(n * s), i, g),
    "Those are the steps: some need two predictions.",
    lambda n, s, i, g: steps_run(n, s),
)


def layer_scale(layer: str, groups: dict, scales: dict) -> float:
    """The product of the ``scales`` of all groups of which a part is in the layer's name."""
    parts = layer.split(".")
    return math.prod(scale for group, scale in scales.items() if groups[group] in parts)


def _layer_inputs(draw: Draw, scaled: int = 4):
    groups = {"self": "attn1", "cross": "attn2", "down": "down", "mid": "mid", "up": "up"}
    attention, where = draw.integer(1, 3), draw.integer(0, 3)
    block, projection = ("down.0", "mid", "up.1")[where], ("to_q", "to_k")[attention - 1]
    layer = f"{block}.upper.attentions.0.attn{attention}.{projection}"  # no "up", for all that
    chosen = [list(groups)[i] for i in draw.order(5)[:scaled]]
    return layer, groups, {group: 0.3 + 0.9 * draw.alpha() for group in chosen}


def _scaled_by(combine: Callable, of_none: float = 1.0) -> Callable:
    """``layer_scale`` with the scales of the groups that a layer is in put together otherwise."""

    def scale(layer, groups, scales):
        found = [s for group, s in scales.items() if groups[group] in layer.split(".")]
        return combine(found) if found else of_none

    return scale


exercise(
    layer_scale, _layer_inputs, also=lambda draw: [_layer_inputs(draw, n) for n in (5, 5, 5, 0)]
).mistakes(
    "A layer in two groups is multiplied by both: not their sum.",
    _scaled_by(sum, of_none=0.0),
    "A layer in two groups is multiplied by both: not their sum.",
    _scaled_by(sum),
    "That is the mean: multiply by both.",
    _scaled_by(lambda found: sum(found) / len(found)),
    "A layer may be in two groups, such as self and up: do not stop at the first.",
    _scaled_by(lambda found: found[0]),
    "A layer may be in two groups: the last must not replace the first.",
    _scaled_by(lambda found: found[-1]),
    "A layer in no group keeps all of its LoRA, so the factor is 1, not 0.",
    _scaled_by(math.prod, of_none=0.0),
    "'up' in 'upper' is true as well: split the name at its dots and compare the parts.",
    lambda layer, groups, scales: math.prod(s for g, s in scales.items() if groups[g] in layer),
    "That takes the scales of all groups: only those count that the layer is in.",
    lambda layer, groups, scales: math.prod(scales.values()),
)


def mix_weights(loudness: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Weights (N,) at which styles of this loudness have these shares of their mean loudness."""
    return shares * loudness.mean() / loudness


def _loudness_inputs(draw: Draw):
    count = draw.integer(2, 5)
    shares = draw.uniform(count) + 0.3
    return draw.uniform(count) * 3 + 0.3, shares / shares.sum()


exercise(mix_weights, _loudness_inputs).mistakes(
    "At these weights the loud style still has more than its share: the louder it is, the less "
    "weight it needs.",
    lambda loudness, shares: shares,
    "The proportions are right. Together they should be as loud as the styles are on average: "
    "multiply by the mean loudness.",
    lambda loudness, shares: shares / loudness,
    "Upside down: a loud style needs a small weight.",
    lambda loudness, shares: shares * loudness / loudness.mean(),
    "The shares add up to 1, the weights need not: multiply by the mean loudness.",
    lambda loudness, shares: shares / loudness / (shares / loudness).sum(),
    "That makes the mix as loud as the loudest: take the mean.",
    lambda loudness, shares: shares * loudness.max() / loudness,
    "That makes the mix as loud as all of them together: take the mean.",
    lambda loudness, shares: shares * loudness.sum() / loudness,
    "Now all are equally loud: multiply by the shares.",
    lambda loudness, shares: loudness.mean() / loudness,
    "As loud as the first? Take the mean of all.",
    lambda loudness, shares: shares * loudness[0] / loudness,
)


def in_colours_of(photo: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """Both CIE Lab, (H,W,3): the lightness of the picture and the two colours of the photo."""
    return torch.cat([picture[..., :1], photo[..., 1:]], dim=-1)


def _lab_inputs(draw: Draw):
    size = draw.integer(4, 9)
    return (100 * (draw.uniform(2, size, size, 3) * 2 - 1).abs()).unbind()


exercise(in_colours_of, _lab_inputs).mistakes(
    "The wrong way round: that is the photo in the colours of the style.",
    lambda photo, picture: torch.cat([photo[..., :1], picture[..., 1:]], dim=-1),
    "That swaps rows of the picture: L, a and b lie in the last dimension, [..., 0].",
    lambda photo, picture: torch.cat([picture[:1], photo[1:]], dim=0),
    "a is a colour too: take one number from the picture and two from the photo.",
    lambda photo, picture: torch.cat([picture[..., :2], photo[..., 2:]], dim=-1),
    "L comes first: [..., :1] from the picture, [..., 1:] from the photo.",
    lambda photo, picture: torch.cat([photo[..., :2], picture[..., 2:]], dim=-1),
    "That blends all three: lightness from one, colours from the other.",
    lambda photo, picture: (photo + picture) / 2,
    "That is one colour for the whole picture: take the photo's at every place.",
    lambda photo, picture: in_colours_of(photo.mean((0, 1)).expand_as(photo), picture),
)


def batch_sizes(count: int, limit: float, fixed: float, each: float) -> torch.Tensor:
    """The sizes of the batches in which ``count`` pictures are drawn: as many at once as fit, where
    n of them need ``fixed + n * each`` of at most ``limit``, and the last what is left."""
    return _batches(count, _most(limit, fixed, each))


def _most(limit: float, fixed: float, each: float) -> int:
    return int((limit - fixed) / each)


def _batches(count: int, most: float) -> torch.Tensor:
    most = max(1, int(most))
    return torch.tensor([min(most, count - first) for first in range(0, count, most)])


def _batches_inputs(draw: Draw):
    most, whole, fixed = draw.integer(4, 9), draw.integer(2, 5), draw.integer(2, 6)
    rest, each = draw.integer(1, most), 0.5 + draw.alpha()
    return whole * most + rest, fixed + (most + 0.6) * each, float(fixed), each


def _batches_without_a_rest(draw: Draw):
    count, limit, fixed, each = _batches_inputs(draw)
    return [(count // 2 * 2, fixed + 2.5 * each, fixed, each), (7, 5.0, 2.0, 1.0)]


exercise(batch_sizes, _batches_inputs, also=_batches_without_a_rest).mistakes(
    "The base itself is in memory too: take `fixed` off the limit first.",
    lambda count, limit, fixed, each: _batches(count, limit / each),
    "One too many: a part of a picture that fits is not a picture. Round down.",
    lambda count, limit, fixed, each: _batches(count, math.ceil((limit - fixed) / each)),
    "That is safe, and the slowest: fill the limit.",
    lambda count, limit, fixed, each: _batches(count, 1),
    "`fixed` is needed once, whatever the batch, not once for each picture.",
    lambda count, limit, fixed, each: _batches(count, limit / (fixed + each)),
    "The last pictures are left out where they fill no whole batch.",
    lambda count, *memory: torch.tensor([_most(*memory)] * (count // _most(*memory))),
    "Those are more pictures than there are: the last batch may be smaller.",
    lambda count, *memory: torch.tensor([_most(*memory)] * math.ceil(count / _most(*memory))),
    "The smaller batch comes last.",
    lambda count, *memory: batch_sizes(count, *memory).flip(0),
    "What fits exactly does fit.",
    lambda count, limit, fixed, each: _batches(count, math.ceil((limit - fixed) / each) - 1),
)


def kohya_key(key: str) -> str:
    """The name that kohya's scripts give to a matrix of a LoRA which diffusers calls ``key``."""
    layer, _, part = key.removeprefix("unet.").rpartition(".lora_")
    half = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[part]
    return f"lora_unet_{layer.replace('.', '_')}.{half}"


def _key_inputs(draw: Draw, half: str = ""):
    side, block, at, which, drawn = draw.integers(0, 2, 5)
    where = (f"down_blocks.{block}", f"up_blocks.{block + 1}")[side]
    layer = f"{where}.attentions.{at}.transformer_blocks.0.attn{which + 1}.to_out.0"
    return (f"unet.{layer}.lora_{half or 'AB'[drawn]}.weight",)


exercise(
    kohya_key, _key_inputs, also=lambda draw: [_key_inputs(draw, half) for half in "AB"]
).mistakes(
    "A goes down to the rank, B up again.",
    lambda key: kohya_key(key.translate(str.maketrans("AB", "BA"))),
    "The last two dots stay: '.lora_down.weight'.",
    lambda key: kohya_key(key).replace(".", "_"),
    "It begins with 'lora_unet_'.",
    lambda key: kohya_key(key).removeprefix("lora_unet_"),
    "'unet.' gives way to 'lora_unet_': take it off first.",
    lambda key: kohya_key(key).replace("lora_unet_", "lora_unet_unet_"),
    "It begins with 'lora_unet_', so that nobody takes it for the text encoder's.",
    lambda key: kohya_key(key).replace("lora_unet_", "lora_"),
    "The dots in the layer's name become '_'.",
    lambda key: key.replace("unet.", "lora_unet_").replace("_A", "_down").replace("_B", "_up"),
    "kohya says lora_down for A, lora_up for B.",
    lambda key: kohya_key(key).replace("lora_down", "lora_A").replace("lora_up", "lora_B"),
    "'.weight' stays at the end.",
    lambda key: kohya_key(key).removesuffix(".weight"),
)
