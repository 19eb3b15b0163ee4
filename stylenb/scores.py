"""Scores: what is left of the photo, how much of the style is there, how far the truth is, and how
far a training has moved the model. In a few more than 400 lines.

Each gives one number for each picture, (N,), and says what it is blind to. `truth_distance` looks
through the style judge, which was in no training loss, and `pixel_distance` through no network.
Blur and small shifts move these two in opposite ways: what is nearer to the truth is so in both.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import skimage  # which imports its parts when they are first used
import torch
from PIL import Image
from safetensors import safe_open

from .base import Base
from .errors import StylenbError
from .inference import redraw
from .lora import adapters, set_scale
from .lora_files import find_lora, load_lora
from .losses import PictureLosses, load_features, unit
from .photos import to_tensor
from .weights import data_file

BATCH = 8  # pictures that go through a network at once


def mean_and_error(values) -> tuple[float, float]:
    """Mean of values (N,) and the standard error of that mean (NaN for a single value)."""
    values = np.asarray(values, float).ravel()
    if not len(values):
        raise StylenbError("There is nothing to average: give the score of at least one picture.")
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def interval(values, level: float = 0.95) -> tuple[float, float]:
    """The interval in which the mean of values (N,), 2 or more, lies at this level: Student's t."""
    from scipy.stats import t  # takes a second

    mean, error = mean_and_error(values)
    reach = error * float(t.ppf((1 + level) / 2, max(1, np.asarray(values).size - 1)))
    return mean - reach, mean + reach


def with_error(values) -> str:
    """Mean ± its standard error, as text."""
    return "{:.3f} ± {:.3f}".format(*mean_and_error(values))


# ---------------------------------------------------------------------------- content: a photo kept


def psnr(a, b) -> float:
    """Peak signal-to-noise ratio in dB of two pictures (or lists of them, averaged): 20 is rough,
    30 is hard to tell apart at a glance, equal pictures have inf."""
    pairs = [map(np.asarray, pair) for pair in zip(*_pairs(a, b), strict=True)]
    return float(np.mean([skimage.metrics.peak_signal_noise_ratio(*pair) for pair in pairs]))


@torch.no_grad()
def lpips_distance(a, b) -> torch.Tensor:
    """LPIPS (https://arxiv.org/abs/1801.03924) of pictures a and b (or lists of N): (N,).

    How different they look to a network; 0 for equal pictures. Without its official heads it takes
    a change of style for a change of content. It was in the training loss: not a judge of LoRAs.
    """
    net = load_features()  # wherever a training has put it
    device = next(net.parameters()).device
    distances = [net(x.to(device), y.to(device)) for x, y in _batches(a, b)]
    return torch.cat(distances).flatten().cpu()


def ssim(a, b) -> torch.Tensor:
    """Structural similarity of the greys of pictures a and b (or lists of N): (N,).

    Whether light and dark lie alike in small windows: 1 for equal pictures, about 0 for unrelated
    ones (Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861). Blind to colour; takes the
    marks of a style for a loss of content.
    """
    return _each(partial(skimage.metrics.structural_similarity, data_range=1.0), _grey, a, b)


def edge_agreement(a, b) -> torch.Tensor:
    """Whether pictures a and b (or lists of N) have their outlines in the same places: (N,).

    The correlation of the Sobel magnitudes of their greys, after a blur by a 64th of the shorter
    side, in which hatching, dots and stitches fade: 1 for equal pictures, 0 for unrelated ones.
    Blind to colour, tone (a negative has the edges of its picture), texture, and to whatever is
    smaller than about a 30th of the side.
    """
    return _each(_correlation, _edges, a, b)


def _edges(picture: Image.Image) -> np.ndarray:
    blurred = skimage.filters.gaussian(_grey(picture), min(picture.size) / 64)
    return skimage.filters.sobel(blurred)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, in which two flat pictures agree and a flat and another do not."""
    flat = [one.std() < 1e-6 for one in (a, b)]
    return float(all(flat)) if any(flat) else np.corrcoef(a.ravel(), b.ravel())[0, 1]


def _grey(picture: Image.Image) -> np.ndarray:
    """Luminance in 0..1, (H, W)."""
    return skimage.color.rgb2gray(np.asarray(picture.convert("RGB")))


def _each(compare: Callable, see: Callable, a, b) -> torch.Tensor:
    """compare(see(x), see(y)) of every pair of pictures: (N,)."""
    pairs = zip(*_pairs(a, b), strict=True)
    return torch.tensor([compare(see(x), see(y)) for x, y in pairs]).float()


def _batches(a, b) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of pictures as tensors, a few at a time."""
    return zip(*(to_tensor(pictures).split(BATCH) for pictures in _pairs(a, b)), strict=True)


def _pairs(a, b) -> tuple[list, list]:
    a, b = ([p] if isinstance(p, Image.Image) else list(p) for p in (a, b))
    if [p.size for p in a] != [p.size for p in b]:
        raise StylenbError(
            f"Pictures are compared in pairs of one size, and these are {len(a)} and {len(b)} of "
            f"{sorted({p.size for p in a + b})}: bring them together in one order and size."
        )
    return a, b


# --------------------------------------------------------------------- style, truth, and the model


@lru_cache(maxsize=1)
def load_judge() -> tuple[torch.nn.Module, list[str]]:
    """The style judge (a ShuffleNet that no training loss ever sees) and the styles it knows."""
    from torchvision.models import shufflenet_v2_x0_5

    with safe_open(data_file("judge", "shufflenet_v2_x0_5.safetensors"), "pt") as file:
        styles = json.loads(file.metadata()["styles"])
        weights = {key: file.get_tensor(key) for key in file.keys()}
    network = shufflenet_v2_x0_5(num_classes=len(styles))
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False), styles


def _as_judged(images: torch.Tensor) -> torch.Tensor:
    """Marks as large as the judge knows them: pictures at their own size, but for those of Stable
    Diffusion's, for which the style's pictures of 128 px were enlarged."""
    shorter = min(images.shape[-2:])
    if shorter < 512:
        return images
    size = [side * 128 // shorter for side in images.shape[-2:]]
    return torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)


@torch.no_grad()
def style_probabilities(pictures) -> torch.Tensor:
    """What the judge makes of pictures of one size, any: (N, styles), rows that sum to 1."""
    found = [load_judge()[0](_as_judged(p)) for p in to_tensor(pictures).split(BATCH)]
    return torch.cat(found).softmax(1)


def style_probability(pictures, style: str) -> torch.Tensor:
    """The judge's probability that each picture is in `style`: (N,) in 0..1. Blind to the content,
    and to how good a picture is once its style is plain.

    Raises StylenbError for a style that the judge has not learned.
    """
    _, styles = load_judge()
    if style not in styles:
        raise StylenbError(
            f"The judge has not learned the style {style!r}, only {', '.join(styles)}: take "
            "gram_distance to pictures of yours."
        )
    return style_probabilities(pictures)[:, styles.index(style)]


def judge(pictures) -> list[str]:
    """The style that the judge sees in each picture."""
    return [load_judge()[1][i] for i in style_probabilities(pictures).argmax(1).tolist()]


@torch.no_grad()
def gram_distance(pictures, style_pictures) -> torch.Tensor:
    """The style loss of training, from pictures to what is common to style_pictures: (N,).

    0 is the style itself, about 1 another one; see losses.PictureLosses. Palette and texture, blind
    to where things are. It was in the training loss: it tells whether training did what it was
    asked to, not whether that was right.
    """
    looks = PictureLosses(to_tensor(style_pictures))
    return torch.cat([looks.style(part) for part in to_tensor(pictures).split(BATCH)])


@torch.no_grad()
def truth_distance(pictures, truth) -> torch.Tensor:
    """How different pictures look from the true renderings of the same scenes: (N,), 0 if equal.

    As LPIPS, but through the style judge: the squared distance of the features of its first two
    stages, at unit length at every place, averaged over places and summed. Harsh
    on blur, mild on content: another scene in the right style comes before the photo. (The deeper
    two stages hardly know the place: with them it would come before the true one, blurred a bit.)
    """
    network, _ = load_judge()
    stages = network.conv1, torch.nn.Sequential(network.maxpool, network.stage2)
    found = []
    for x, y in _batches(pictures, truth):
        x, y, distance = _as_judged(x), _as_judged(y), 0
        for stage in stages:
            x, y = stage(x), stage(y)
            distance = distance + (unit(x) - unit(y)).pow(2).sum(1).mean((1, 2))
        found.append(distance)
    return torch.cat(found)


def pixel_distance(pictures, truth) -> torch.Tensor:
    """How different the pixels are from those of the truth: (N,), 0 if equal, about 1 if unrelated.

    1 - SSIM of the three channels of CIE Lab (so that colours count), averaged over the pictures
    and their copies at a half and a quarter of the size (Wang et al. 2003, multi-scale SSIM,
    https://doi.org/10.1109/ACSSC.2003.1292216, multiply the scales). Mild on blur, harsh on a
    pattern that lies a few pixels off.
    """
    compare = partial(skimage.metrics.structural_similarity, channel_axis=-1, data_range=1.0)
    return 1 - _each(lambda x, y: np.mean([*map(compare, x, y)]), _pyramid, pictures, truth)


def _pyramid(picture: Image.Image) -> list[np.ndarray]:
    """Lab, over 100, at three sizes, less those that are too small for a window of 7 pixels."""
    sizes = [k for k in (1, 2, 4) if k == 1 or min(picture.size) // k >= 7]
    copies = [np.asarray(picture.convert("RGB").reduce(k)) for k in sizes]
    return [skimage.color.rgb2lab(copy) / 100 for copy in copies]


class NoisePredictions(NamedTuple):
    """What a model predicted, and the noise that was added; both (N, T, 4, h, w), float32."""

    predicted: torch.Tensor
    noise: torch.Tensor


@torch.no_grad()
def noise_predictions(
    base: Base,
    pictures,
    prompt: str = "",
    timesteps: Sequence[int] = (100, 300, 500, 700, 900),
    seed: int = 0,
) -> NoisePredictions:
    """The noise that the base, as it is now, predicts in pictures at each of T timesteps.

    Latents, timesteps and noise are the same in every call, so that calls before and after a
    training can be compared by `prior_drift`. prompt: "" is what stylising works with; for
    DreamBooth also the class without the token, "a painting". Raises StylenbError for NaN.
    """
    embedding = base.empty if prompt == "" else base.embed(prompt)
    found, t = [], torch.tensor(timesteps)
    for i, image in enumerate(to_tensor(pictures)):
        latent = base.encode(image[None]).float().cpu()
        random = torch.Generator().manual_seed(seed + i)
        noise = torch.randn(len(timesteps), *latent.shape[1:], generator=random)
        noisy = base.scheduler.add_noise(latent.expand_as(noise), noise, t)
        found.append((base.predict_noise(noisy, t, embedding).float().cpu(), noise))
    if not all(predicted.isfinite().all() for predicted, _ in found):
        raise StylenbError("The UNet predicts NaN: load the base with dtype=torch.float32.")
    return NoisePredictions(*map(torch.stack, zip(*found, strict=True)))


def prior_drift(before: NoisePredictions, after: NoisePredictions) -> torch.Tensor:
    """How far a model has moved, one number for each of N pictures: (N,).

    The mean squared difference of its noise predictions after and before, over the mean squared
    error that it made before: 0 is the same model. Blind to whether it moved for the better.
    Raises StylenbError unless both are of the same pictures, timesteps and seed.
    """
    if before.noise.shape != after.noise.shape or not torch.equal(before.noise, after.noise):
        raise StylenbError(
            "The two predictions are of other pictures, timesteps or seeds: take both alike."
        )

    def squared_error(other: torch.Tensor) -> torch.Tensor:
        return (before.predicted - other).pow(2).flatten(1).mean(1)

    return squared_error(after.predicted) / squared_error(before.noise)


# -------------------------------------------------------------------------- all of them, and curves


def measure(pictures, photos, style: str | None = None, style_pictures=None, truth=None) -> dict:
    """All scores that can be had of N pictures made from N photos, by name, each (N,).

    Always "lpips", "ssim" and "edges" to the photos. "judge" with a style that the judge knows,
    "gram" with style_pictures, "truth" and "pixels" with the N true renderings.
    """
    found = {
        "lpips": lpips_distance(pictures, photos),
        "ssim": ssim(pictures, photos),
        "edges": edge_agreement(pictures, photos),
    }
    if style is not None:
        found["judge"] = style_probability(pictures, style)
    if style_pictures is not None:
        found["gram"] = gram_distance(pictures, style_pictures)
    if truth is not None:
        found["truth"] = truth_distance(pictures, truth)
        found["pixels"] = pixel_distance(pictures, truth)
    return found


def sweep(
    base: Base,
    photos: Sequence[Image.Image],
    style: str | None,
    strengths: Sequence[float],
    scales: Sequence[float] = (1.0,),
    truth: Sequence[Image.Image] | None = None,
    judged_as: str | None = None,
    style_pictures: Sequence[Image.Image] | None = None,
    num_inference_steps: int | None = None,
    seed: int = 0,
) -> list[dict]:
    """Photos redrawn at every strength and scale, and scored: a row for each pair, with "strength",
    "scale", "pictures", and the scores of `measure`, each (N,).

    style: a LoRA that is in the base, a shipped style, the path of a LoRA file, or None for the
    base without any (of DreamBooth, say), for which only scale 1 is run. judged_as: the judge's
    name of the style; by default that of the LoRA, if the judge knows it. truth: the photos' true
    renderings. seed: photo i has the noise of seed + i, so that no figure hangs on a single noise.
    Afterwards no LoRA is active.
    """
    strengths, scales = list(strengths), list(scales) if style is not None else [1.0]
    if not strengths or not scales:
        raise StylenbError("sweep needs at least one strength and one scale.")
    if truth is not None:
        _pairs(photos, truth)
    name, seeds = style, range(seed, seed + len(photos))
    if style is not None and style not in adapters(base):
        name, style = load_lora(base, style), find_lora(style).stem
    if judged_as is None and style in load_judge()[1]:
        judged_as = style
    rows = []
    try:
        for scale in scales:
            set_scale(base, name, scale)
            for strength in strengths:
                pictures = redraw(base, photos, strength, num_inference_steps, seeds)
                scored = measure(pictures, photos, judged_as, style_pictures, truth)
                rows.append({"strength": strength, "scale": scale, "pictures": pictures, **scored})
    finally:
        set_scale(base, None)
    return rows


def pareto(points) -> list[int]:
    """Which of the points (N, K) no other one beats: their indices, by the first coordinate.

    Smaller is better in every coordinate (negate those of which more is better). A point is beaten
    by one that is nowhere worse and somewhere better; equal points do not beat each other.
    """
    points = np.asarray(points, float)
    if points.ndim != 2 or not points.size or not np.isfinite(points).all():
        raise StylenbError(f"pareto takes finite numbers (points, scores), not {points.shape}.")
    beaten = [((points <= p).all(1) & (points < p).any(1)).any() for p in points]
    kept = [i for i, lost in enumerate(beaten) if not lost]
    return sorted(kept, key=lambda i: tuple(points[i]))


def at_equal_content(
    rows: Sequence[dict], content: float, keep: str = "edges", score: str = "truth"
) -> dict:
    """The best that a method reaches without losing more of the photos than another one does.

    Two methods can only be compared where they keep equally much: one that changes nothing keeps
    everything, and one that draws what it likes may look more like the style. `rows` is a method's
    curve: the same photos at rising settings of its one knob, as `sweep` gives them, between which
    the scores of every picture are interpolated linearly. Of its points whose mean `keep` (more is
    better) is at least `content`, the one with the least mean `score` counts, a choice in favour of
    the method that knows the truth; if there is none, the setting that keeps most.
    Returns a row: "strength", `keep` and `score`, the latter two (N,).
    """
    if not rows:
        raise StylenbError("A curve needs at least one setting: rows is empty.")
    names = ("strength", keep, score)
    rows = [{n: torch.as_tensor(row[n], dtype=torch.float32) for n in names} for row in rows]
    means = [row[keep].mean().item() for row in rows]
    points = [row for row, mean in zip(rows, means, strict=True) if mean >= content]
    for (a, one), (b, two) in pairwise(zip(means, rows, strict=True)):
        if min(a, b) < content < max(a, b):
            share = (content - a) / (b - a)
            points.append({n: (1 - share) * one[n] + share * two[n] for n in names})
    points = points or [rows[int(np.argmax(means))]]
    best = min(points, key=lambda row: row[score].mean().item())
    return {**best, "strength": float(best["strength"])}
