"""Scores: what is left of the photo, how much of the style is there, how far the truth is, and how
far a training has moved the model.

Each gives one number for each picture, (N,); `mean_and_error` sums them up. What a score sees, and
what it does not:

- `lpips_distance`: how different two pictures look to a network. Without its official heads it
  takes a change of style for a change of content; it was in the training loss.
- `ssim`: whether light and dark lie alike in small windows. Blind to colour; takes the marks of a
  style for a loss of content.
- `edge_agreement`: whether outlines lie in the same places, whatever the style. Blind to colour,
  tone, texture, and to whatever is smaller than about a 30th of the side.
- `style_probability`: which of the styles that the judge learned a picture is in. Blind to the
  content, and to how good a picture is once its style is plain.
- `gram_distance`: palette and texture. Blind to where things are; was in the training loss.
- `truth_distance`: colours, marks and texture at their places. Harsh on blur, mild on content:
  another scene in the right style comes before the photo.
- `pixel_distance`: light, dark and colour at their places. Mild on blur, harsh on a pattern that
  lies a few pixels off; a right palette alone gains little.
- `prior_drift`: how differently the model predicts noise. Blind to whether that is for the better.

The style judge was in no training loss, so `truth_distance` looks through it and not through the
network behind LPIPS, and `pixel_distance` through none. Blur and small shifts move the two in
opposite ways, so what is nearer to the truth should be nearer in both.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from .base import Base
from .errors import StylenbError
from .inference import redraw
from .lora import adapters, set_scale
from .lora_files import find_lora, load_lora
from .losses import PictureLosses, load_features
from .photos import to_tensor
from .weights import data_file

JUDGE_SIDE = 128  # pixels: what the judge was trained on
BATCH = 8  # pictures that go through a network at once


# ------------------------------------------------------------------------- means and their errors


def mean_and_error(values) -> tuple[float, float]:
    """Mean of values (N,) and the standard error of that mean (NaN for a single value)."""
    values = _values(values)
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def interval(values, level: float = 0.95) -> tuple[float, float]:
    """The interval in which the mean of values (N,), 2 or more, lies at this level: Student's t."""
    from scipy.stats import t

    mean, error = mean_and_error(values)
    reach = error * t.ppf((1 + level) / 2, max(1, len(_values(values)) - 1))
    return mean - float(reach), mean + float(reach)


def with_error(values) -> str:
    """Mean ± its standard error, as text."""
    mean, error = mean_and_error(values)
    return f"{mean:.3f} ± {error:.3f}"


def _values(values) -> np.ndarray:
    values = np.asarray(values, float).ravel()
    if not len(values):
        raise StylenbError("There is nothing to average: give the score of at least one picture.")
    return values


# ---------------------------------------------------------------------------- content: a photo kept


def psnr(a, b) -> float:
    """Peak signal-to-noise ratio in dB of two pictures (or lists of them, averaged); inf if equal.

    20 dB is rough, 30 dB is hard to tell apart at a glance.
    """
    from skimage.metrics import peak_signal_noise_ratio

    pairs = zip(*_pairs(a, b), strict=True)
    return float(np.mean([peak_signal_noise_ratio(*map(np.asarray, pair)) for pair in pairs]))


@torch.no_grad()
def lpips_distance(a, b) -> torch.Tensor:
    """LPIPS (https://arxiv.org/abs/1801.03924) of pictures a and b (or lists of N): (N,).

    0 for equal pictures, larger is further. It was in the training loss: not a judge of LoRAs.
    """
    net = load_features()  # wherever a training has put it
    device = next(net.parameters()).device
    parts = zip(*(to_tensor(p).split(BATCH) for p in _pairs(a, b)), strict=True)
    return torch.cat([net(x.to(device), y.to(device)).flatten().cpu() for x, y in parts])


def ssim(a, b) -> torch.Tensor:
    """Structural similarity of the greys of pictures a and b (or lists of N): (N,).

    1 for equal pictures, about 0 for unrelated ones
    (Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861).
    """
    from skimage.metrics import structural_similarity

    pairs = zip(*(map(_grey, p) for p in _pairs(a, b)), strict=True)
    return torch.tensor([structural_similarity(x, y, data_range=1.0) for x, y in pairs]).float()


def edge_agreement(a, b) -> torch.Tensor:
    """Whether pictures a and b (or lists of N) have their outlines in the same places: (N,).

    The correlation of the Sobel magnitudes of their greys, after a blur by a 64th of the shorter
    side, in which hatching, dots and stitches fade: 1 for equal pictures, 0 for unrelated ones. A
    negative has the edges of its picture.
    """
    return torch.tensor(
        [_correlation(_edges(x), _edges(y)) for x, y in zip(*_pairs(a, b), strict=True)]
    ).float()


def _edges(picture: Image.Image) -> np.ndarray:
    from skimage.filters import gaussian, sobel

    return sobel(gaussian(_grey(picture), min(picture.size) / 64))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, in which two flat pictures agree and a flat and another do not."""
    a, b = a - a.mean(), b - b.mean()
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    flat = [length < 1e-6 * a.size**0.5 for length in lengths]
    return float(all(flat)) if any(flat) else float((a * b).sum() / np.prod(lengths))


def _grey(picture: Image.Image) -> np.ndarray:
    """Luminance in 0..1, (H, W)."""
    from skimage.color import rgb2gray

    return rgb2gray(np.asarray(picture.convert("RGB")))


def _pairs(a, b) -> tuple[list, list]:
    a, b = ([p] if isinstance(p, Image.Image) else list(p) for p in (a, b))
    if len(a) != len(b) or any(x.size != y.size for x, y in zip(a, b, strict=True)):
        raise StylenbError(
            f"Pictures are compared in pairs of one size, and these are {len(a)} and {len(b)} of "
            f"{sorted({p.size for p in a + b})}: bring them together in one order and size."
        )
    return a, b


# --------------------------------------------------------------------------- style: judge and Gram


@lru_cache(maxsize=1)
def load_judge() -> tuple[torch.nn.Module, list[str]]:
    """The style judge (a ShuffleNet that no training loss ever sees) and the styles it knows."""
    from torchvision.models import shufflenet_v2_x0_5

    path = data_file("judge", "shufflenet_v2_x0_5.safetensors")
    with safe_open(path, "pt") as file:
        styles = json.loads(file.metadata()["styles"])
    network = shufflenet_v2_x0_5(num_classes=len(styles))
    network.load_state_dict(
        {
            key: value.float() if value.is_floating_point() else value
            for key, value in load_file(path).items()
        }
    )
    return network.eval().requires_grad_(False), styles


def _seen_by_judge(pictures) -> torch.Tensor:
    x = to_tensor(pictures)
    if x.shape[-2:] != (JUDGE_SIDE, JUDGE_SIDE):
        size = (JUDGE_SIDE, JUDGE_SIDE)
        x = torch.nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)
    return x


@torch.no_grad()
def style_probabilities(pictures) -> torch.Tensor:
    """What the judge makes of pictures, seen at 128 x 128: (N, styles), rows that sum to 1."""
    network, _ = load_judge()
    return network(_seen_by_judge(pictures)).softmax(1)


def style_probability(pictures, style: str) -> torch.Tensor:
    """The judge's probability that each picture is in `style`: (N,) in 0..1.

    Raises StylenbError for a style that it has not learned.
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
    _, styles = load_judge()
    return [styles[i] for i in style_probabilities(pictures).argmax(1).tolist()]


@torch.no_grad()
def gram_distance(pictures, style_pictures) -> torch.Tensor:
    """The style loss of training, from pictures to what is common to style_pictures: (N,).

    0 is the style itself, about 1 another one; see losses.PictureLosses. It was in the training
    loss: it tells whether training did what it was asked to, not whether that was right.
    """
    looks = PictureLosses(to_tensor(style_pictures))
    return torch.cat([looks.style(part) for part in to_tensor(pictures).split(BATCH)])


# --------------------------------------------------------------------------------- truth: two ways


@torch.no_grad()
def truth_distance(pictures, truth) -> torch.Tensor:
    """How different pictures look from the true renderings of the same scenes: (N,), 0 if equal.

    As LPIPS, but through the style judge, which was in no training loss: the squared distance of
    the features of its first two stages, scaled to unit length at every place, averaged over places
    and summed. (The deeper two know the style and hardly the place: with them, another scene in
    the right style would come before the true one slightly blurred.) Seen at 128 x 128.
    """
    parts = zip(*(_seen_by_judge(p).split(BATCH) for p in _pairs(pictures, truth)), strict=True)
    return torch.cat(
        [
            sum(
                (one - two).pow(2).sum(1).mean((1, 2))
                for one, two in zip(_stages(x), _stages(y), strict=True)
            )
            for x, y in parts
        ]
    )


def _stages(x: torch.Tensor) -> list[torch.Tensor]:
    network, _ = load_judge()
    first = network.conv1(x)
    second = network.stage2(network.maxpool(first))
    return [f * (f.pow(2).sum(1, keepdim=True) + 1e-10).rsqrt() for f in (first, second)]


def pixel_distance(pictures, truth) -> torch.Tensor:
    """How different the pixels are from those of the true renderings: (N,), 0 if equal, about 1 if
    unrelated.

    1 - SSIM of the three channels of CIE Lab (so that colours count), averaged over the pictures
    and their copies at a half and a quarter of the size (Wang et al. 2003, multi-scale SSIM,
    https://doi.org/10.1109/ACSSC.2003.1292216, multiply the scales). No network is in it.
    """
    from skimage.metrics import structural_similarity

    return (
        1
        - torch.tensor(
            [
                np.mean(
                    [
                        structural_similarity(one, two, channel_axis=-1, data_range=1.0)
                        for one, two in zip(_pyramid(x), _pyramid(y), strict=True)
                    ]
                )
                for x, y in zip(*_pairs(pictures, truth), strict=True)
            ]
        ).float()
    )


def _pyramid(picture: Image.Image) -> list[np.ndarray]:
    """Lab, over 100, at three sizes, less those that are too small for a window of 7 pixels."""
    from skimage.color import rgb2lab

    picture = picture.convert("RGB")
    sizes = [picture.reduce(k) for k in (1, 2, 4) if k == 1 or min(picture.size) // k >= 7]
    return [rgb2lab(np.asarray(p)) / 100 for p in sizes]


# -------------------------------------------------------------------------------------- prior drift


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
    training, or with a LoRA on and off, can be compared by `prior_drift`. prompt: "" is what
    stylising works with; for DreamBooth also the class without the token, "a painting".
    """
    embedding = base.empty if prompt == "" else base.embed(prompt)
    found = []
    for i, image in enumerate(to_tensor(pictures)):
        latent = base.encode(image[None]).float().cpu()
        random = torch.Generator().manual_seed(seed + i)
        noise = torch.randn(len(timesteps), *latent.shape[1:], generator=random)
        t = torch.tensor(timesteps, device=base.device)
        noisy = base.scheduler.add_noise(latent.expand_as(noise), noise, t.cpu()).to(t.device)
        found.append((base.predict_noise(noisy, t, embedding).float().cpu(), noise))
    return NoisePredictions(*map(torch.stack, zip(*found, strict=True)))


def prior_drift(before: NoisePredictions, after: NoisePredictions) -> torch.Tensor:
    """How far a model has moved, one number for each of N pictures: (N,).

    The mean squared difference of its noise predictions after and before, over the mean squared
    error that it made before: 0 is the same model; at 1 it has moved as far as it was wrong.

    Raises StylenbError unless both are of the same pictures, timesteps and seed.
    """
    if before.noise.shape != after.noise.shape or not torch.equal(before.noise, after.noise):
        raise StylenbError(
            "The two predictions are of other pictures, timesteps or seeds: take both by "
            "noise_predictions with the same arguments."
        )
    moved, error = (
        (before.predicted - other).pow(2).flatten(1).mean(1)
        for other in (after.predicted, before.noise)
    )
    return moved / error


# -------------------------------------------------------------------------- all of them, and curves


def measure(
    pictures, photos, style: str | None = None, style_pictures=None, truth=None
) -> dict[str, torch.Tensor]:
    """All scores that can be had of N pictures made from N photos, each (N,).

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
    base without any (a DreamBooth base, with its prompt, say), for which only scale 1 is run.
    judged_as: the judge's name of the style; by default that of the LoRA, if the judge knows it.
    truth: the photos' true renderings. seed: the i-th photo has the noise of seed + i, so that no
    figure hangs on a single noise. Afterwards no LoRA is active.
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
        raise StylenbError(
            f"pareto takes finite numbers of the shape (points, scores), not {points.shape}."
        )
    kept = [
        i
        for i, p in enumerate(points)
        if not ((points <= p).all(axis=1) & (points < p).any(axis=1)).any()
    ]
    return sorted(kept, key=lambda i: tuple(points[i]))


def at_equal_content(
    rows: Sequence[dict], content: float, keep: str = "edges", score: str = "truth"
) -> dict:
    """The best that a method reaches without losing more of the photos than another one does.

    Two methods can only be compared where they keep equally much: one that changes nothing keeps
    everything, and one that draws what it likes may look more like the style. So each gets its own
    curve, `rows`: the same photos at rising settings of its one knob, as `sweep` gives them.
    Between neighbouring settings the scores of every picture are interpolated linearly. Of all
    points of this curve whose mean `keep` (more is better) is at least `content`, the one with the
    least mean `score` counts; if there is none, the setting that keeps most. The knob is thus
    chosen with the truth in view, in favour of the method.

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
    if not points:
        points = [rows[int(np.argmax(means))]]
    best = min(points, key=lambda row: row[score].mean().item())
    return {**best, "strength": float(best["strength"])}
