"""What the styles are made of: filters, tones, outlines and lattices.

Pictures are float32 arrays (H, W, 3) in [0, 1], masks (H, W) in [0, 1]; `u` is the number of pixels
in a unit, a 1/128 of the shorter side.
"""

import cv2
import numpy as np

from stylenb.pocket.palettes import rgb


def jitter(rng, colours, by):
    """Colours, each channel off by up to `by`."""
    return np.clip(colours + rng.uniform(-by, by, colours.shape).astype(np.float32), 0, 1)


def palette(rng, by, *codes):
    """Hex colours -> (N, 3), each a little off."""
    return jitter(rng, np.stack([rgb(code) for code in codes]), by)


def to_lab(array):
    return cv2.cvtColor(array, cv2.COLOR_RGB2Lab)


def from_lab(lab):
    return np.clip(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB), 0, 1)


def luma(array):
    return array @ np.float32([0.299, 0.587, 0.114])


def blur(array, sigma):
    return cv2.GaussianBlur(array, (0, 0), float(sigma), borderType=cv2.BORDER_REFLECT)


def smoothstep(low, high, x):
    """A soft step from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def blend(a, b, mask):
    """`a` where the mask is 0, `b` where it is 1."""
    return a + (b - a) * mask[..., None]


def coordinates(shape, u):
    """Pixel-centre coordinates (x, y) in units."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return (x + 0.5) / u, (y + 0.5) / u


def clouds(rng, shape, u, period):
    """Slow random field in [-1, 1] whose features are about `period` units wide."""
    rows, columns = (int(np.ceil(n / (period * u))) + 2 for n in shape[:2])
    field = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return np.clip(cv2.resize(field, shape[1::-1], interpolation=cv2.INTER_CUBIC), -1, 1)


def smooth(array, u, colour, passes=2):
    """Flatten texture, keep edges (bilateral filter, run at about 128 px to stay quick)."""
    size = array.shape[1::-1]
    small = array
    if u > 1:
        small = cv2.resize(array, [max(1, n // u) for n in size], interpolation=cv2.INTER_AREA)
    for _ in range(passes):
        small = cv2.bilateralFilter(small, 7, colour, 3)
    if u > 1:
        small = cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)
    return np.clip(small, 0, 1)


def levels(luma, low=3, high=97):
    """Stretch tones so that dim and pale pictures both use the whole range of a medium."""
    a, b = np.percentile(luma, (low, high))
    # A flat picture has no range to stretch; the floor on the width leaves it as it is.
    middle, width = (a + b) / 2, max(b - a, 0.45)
    return np.clip((luma - middle) / width + 0.5 + 0.5 * (middle - 0.5), 0, 1)


def tones(luma, u):
    """Tones for black-and-white media: stretched, locally sharpened, partly equalised.

    A night scene sits in a tenth of the range; without the equalising it would print solid black.
    """
    tone = levels(luma)
    tone = tone + 0.25 * (tone - blur(tone, 8 * u))
    share = np.cumsum(np.bincount(np.uint8(np.clip(tone, 0, 1) * 255).ravel(), minlength=256))
    share = np.interp(tone * 255, np.arange(256), blur(np.float32(share / share[-1])[None], 12)[0])
    return np.clip(0.75 * tone + 0.25 * share, 0, 1).astype(np.float32)


def contrast(array, u, colour, tone):
    """Lab, colours pushed apart from the picture's mean hue, tones from their surroundings."""
    lab = to_lab(array)
    out = lab.copy()
    out[..., 0] += tone * (lab[..., 0] - blur(lab[..., 0], 9 * u))
    out[..., 1:] += colour * (lab[..., 1:] - lab[..., 1:].mean((0, 1)))
    return out


def edges(flat, u, sigma=1.3, low=0.30, high=0.62):
    """Soft outlines, 2-4 units wide, of an already flattened picture.

    The gradient is divided by its own neighbourhood, so a faint shore and a dark roof both get a
    clean line; the floor keeps skies empty.
    """
    lab = blur(to_lab(flat) / np.float32([70, 90, 90]), sigma * u)
    gx, gy = cv2.Sobel(lab, -1, 1, 0, scale=u / 8), cv2.Sobel(lab, -1, 0, 1, scale=u / 8)
    size = np.sqrt((gx * gx + gy * gy).sum(-1))
    around = cv2.dilate(size, np.ones((2 * int(3 * u) + 1,) * 2, np.uint8))
    return smoothstep(low, high, size / (blur(around, 3 * u) + 0.035))


def nearest_colours(lab, palette, u, chroma, clean):
    """Nearest palette colour per pixel -> (H, W, 3).

    `chroma` weighs hue against lightness; borders are tidied over `clean` units.
    """
    weight = np.float32([1, chroma, chroma])
    targets = to_lab(palette[None])[0] * weight
    distance = np.sqrt(((lab[:, :, None] * weight - targets) ** 2).sum(-1))
    distance = np.stack([blur(d, clean * u) for d in np.moveaxis(distance, -1, 0)], -1)
    return palette[distance.argmin(-1)]


def vivid(array, factor):
    """More saturated, for a factor above 1."""
    grey = luma(array)[..., None]
    return np.clip(grey + (array - grey) * factor, 0, 1)


def sample(array, x, y, u):
    """Colours of `array` at unit coordinates (x, y), clamped to the picture."""
    h, w = array.shape[:2]
    column = np.clip((x * u).astype(np.int32), 0, w - 1)
    row = np.clip((y * u).astype(np.int32), 0, h - 1)
    return array[row, column]


def quincunx(x, y):
    """Nearest centre or corner of the cells of 8 units: its (x, y), and whether it is a corner."""
    ax, ay = np.floor(x / 8) * 8 + 4, np.floor(y / 8) * 8 + 4
    bx, by = np.round(x / 8) * 8, np.round(y / 8) * 8
    second = (x - bx) ** 2 + (y - by) ** 2 < (x - ax) ** 2 + (y - ay) ** 2
    return np.where(second, bx, ax), np.where(second, by, ay), second


def distance_to_line(coordinate, period=8.0):
    """Distance to the nearest multiple of `period`, in units of the coordinate."""
    return np.abs((coordinate / period + 0.5) % 1 - 0.5) * period
