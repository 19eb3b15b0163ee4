"""The art styles of the pocket world: functions (picture, seed) -> picture of the same size.

A factor-8 autoencoder keeps 16 x 16 x 4 numbers of a 128 px picture, which is too few for grain but
enough for a pattern whose place is known. So every mark here is about 4 px or larger, every pattern
(dots, stitches, hatching) lies on a fixed lattice that starts at the picture's top-left corner and
repeats every 8 px, and only its colour or thickness follows the picture. The seed moves only
smooth or small things: the tone of the paper, slow washes, the palette by a shade, the lie of oil
strokes.

All lengths are in units `u` of 1/128 of the shorter side (at least one pixel), so a 512 px picture
gets the same look with marks four times as large.
"""

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image
from skimage.segmentation import slic

from stylenb.errors import StylenbError

KNOWN = ("photo", "oil", "watercolour", "poster", "charcoal", "pastel", "comic")
HELD_OUT = (
    "stained_glass", "ink", "blueprint", "pointillism", "cross_stitch", "woodcut", "neon",
)  # fmt: skip
PHRASES = {
    "photo": "a photo of",
    "oil": "an oil painting of",
    "watercolour": "a watercolour of",
    "poster": "a poster of",
    "charcoal": "a charcoal drawing of",
    "pastel": "a pastel drawing of",
    "comic": "a comic drawing of",
    "stained_glass": "a stained glass window of",
    "ink": "an ink drawing of",
    "blueprint": "a blueprint of",
    "pointillism": "a pointillist painting of",
    "cross_stitch": "a cross-stitch of",
    "woodcut": "a woodcut of",
    "neon": "a neon picture of",
}

# ---- helpers: pictures are float32 arrays (H, W, 3) in [0, 1], masks (H, W) in [0, 1] -----------


def _open(picture: Image.Image, seed: int):
    """Array, unit length in pixels, and the style's own generator."""
    array = np.asarray(picture.convert("RGB"), np.float32) / 255
    return array, max(1, round(min(picture.size) / 128)), np.random.default_rng(seed)


def _close(array: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8), "RGB")


def _rgb(*codes: str) -> np.ndarray:
    """Hex colours -> (N, 3) in [0, 1]."""
    return np.array([list(bytes.fromhex(code)) for code in codes], np.float32) / 255


def _lab(array):
    return cv2.cvtColor(array, cv2.COLOR_RGB2Lab)


def _from_lab(lab):
    return np.clip(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB), 0, 1)


def _luma(array):
    return array @ np.float32([0.299, 0.587, 0.114])


def _blur(array, sigma):
    return cv2.GaussianBlur(array, (0, 0), float(sigma), borderType=cv2.BORDER_REFLECT)


def _step(low, high, x):
    """Smoothstep from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _mix(a, b, mask):
    return a + (b - a) * mask[..., None]


def _grid(shape, u):
    """Pixel-centre coordinates (x, y) in units."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return (x + 0.5) / u, (y + 0.5) / u


def _clouds(rng, shape, u, period=40):
    """Slow random field in [-1, 1] whose features are about `period` units wide."""
    rows, columns = (int(np.ceil(n / (period * u))) + 2 for n in shape[:2])
    field = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return np.clip(cv2.resize(field, shape[1::-1], interpolation=cv2.INTER_CUBIC), -1, 1)


def _smooth(array, u, colour=0.12, passes=2):
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


def _levels(luma, low=3, high=97):
    """Stretch tones so that dim and pale pictures both use the whole range of a medium."""
    a, b = np.percentile(luma, (low, high))
    # A flat picture has no range to stretch; the floor on the width leaves it as it is.
    middle, width = (a + b) / 2, max(b - a, 0.45)
    return np.clip((luma - middle) / width + 0.5 + 0.5 * (middle - 0.5), 0, 1)


def _tones(luma, u, even=0.25):
    """Tones for black-and-white media: stretched, locally sharpened, partly equalised.

    A night scene sits in a tenth of the range; without the equalising it would print solid black.
    """
    tone = _levels(luma)
    tone = tone + 0.25 * (tone - _blur(tone, 8 * u))
    share = np.cumsum(np.bincount(np.uint8(np.clip(tone, 0, 1) * 255).ravel(), minlength=256))
    share = np.interp(tone * 255, np.arange(256), _blur(np.float32(share / share[-1])[None], 12)[0])
    return np.clip((1 - even) * tone + even * share, 0, 1).astype(np.float32)


def _contrast(lab, u, colour=0.6, tone=0.5):
    """Push colours apart from the picture's mean hue and tones from their surroundings."""
    out = lab.copy()
    out[..., 0] += tone * (lab[..., 0] - _blur(lab[..., 0], 9 * u))
    out[..., 1:] += colour * (lab[..., 1:] - lab[..., 1:].mean((0, 1)))
    return out


def _edges(flat, u, sigma=1.3, low=0.30, high=0.62):
    """Soft outlines, 2-4 units wide, of an already flattened picture.

    The gradient is divided by its own neighbourhood, so a faint shore and a dark roof both get a
    clean line; the floor keeps skies empty.
    """
    lab = _blur(_lab(flat) / np.float32([70, 90, 90]), sigma * u)
    gx, gy = cv2.Sobel(lab, -1, 1, 0, scale=u / 8), cv2.Sobel(lab, -1, 0, 1, scale=u / 8)
    size = np.sqrt((gx * gx + gy * gy).sum(-1))
    around = cv2.dilate(size, np.ones((2 * int(3 * u) + 1,) * 2, np.uint8))
    return _step(low, high, size / (_blur(around, 3 * u) + 0.035))


def _paint(labels_lab, palette, u, chroma=1.0, clean=1.0):
    """Nearest palette colour per pixel, with tidy borders -> (H, W, 3)."""
    weight = np.float32([1, chroma, chroma])
    targets = _lab(palette[None])[0] * weight
    distance = ((labels_lab[:, :, None] * weight - targets) ** 2).sum(-1)
    distance = np.sqrt(distance)
    if clean:
        distance = np.stack([_blur(d, clean * u) for d in np.moveaxis(distance, -1, 0)], -1)
    return palette[distance.argmin(-1)]


def _vivid(array, factor):
    grey = _luma(array)[..., None]
    return np.clip(grey + (array - grey) * factor, 0, 1)


def _sample(array, x, y, u):
    """Colours of `array` at unit coordinates (x, y), clamped to the picture."""
    h, w = array.shape[:2]
    column = np.clip((x * u).astype(np.int32), 0, w - 1)
    row = np.clip((y * u).astype(np.int32), 0, h - 1)
    return array[row, column]


def _quincunx(x, y, period=8.0):
    """Nearest point of the lattice of cell centres and corners: its (x, y) and which of the two."""
    half = period / 2
    ax, ay = np.floor(x / period) * period + half, np.floor(y / period) * period + half
    bx, by = np.round(x / period) * period, np.round(y / period) * period
    second = (x - bx) ** 2 + (y - by) ** 2 < (x - ax) ** 2 + (y - ay) ** 2
    return np.where(second, bx, ax), np.where(second, by, ay), second


def _from_line(coordinate, period=8.0):
    """Distance to the nearest multiple of `period`, in units of the coordinate."""
    return np.abs((coordinate / period + 0.5) % 1 - 0.5) * period


# ---- known styles -------------------------------------------------------------------------------


def photo(picture: Image.Image, seed: int = 0) -> Image.Image:
    """A gentle grade: slight contrast, warmth and vignette."""
    a, u, rng = _open(picture, seed)
    a = a + 0.25 * (a * a * (3 - 2 * a) - a)
    a = a * (1 + rng.uniform(-0.02, 0.02) * np.float32([1, 0, -1]))
    h, w = a.shape[:2]
    x, y = _grid(a.shape, 1)
    corner = ((x / w - 0.5) ** 2 + (y / h - 0.5) ** 2)[..., None]
    return _close(a * (1.02 - 0.22 * corner))


def oil(picture: Image.Image, seed: int = 0) -> Image.Image:
    """Rich colour laid in short strokes that follow the forms, under a golden varnish."""
    a, u, rng = _open(picture, seed)
    flat = _smooth(a, u, 0.15)
    flat = _vivid(flat, 1.2)
    flat = flat + 0.35 * (flat * flat * (3 - 2 * flat) - flat)

    # Direction across the strokes from the structure tensor; a slow swirl where nothing leads.
    soft = _blur(flat, u)
    gx, gy = cv2.Sobel(soft, -1, 1, 0, scale=u), cv2.Sobel(soft, -1, 0, 1, scale=u)
    swirl = 2 * (0.9 + 0.9 * _clouds(rng, a.shape, u, 40))
    c = _blur((gx * gx - gy * gy).sum(-1), 3 * u) - 0.004 * np.cos(swirl)
    s = _blur((2 * gx * gy).sum(-1), 3 * u) - 0.004 * np.sin(swirl)
    angle = np.degrees(np.arctan2(s, c) / 2) + 90
    busy = _blur(np.hypot(gx, gy).max(-1), u)

    canvas = np.rint(flat * 255).astype(np.uint8)
    h, w = canvas.shape[:2]

    def strokes(x, y, length, width):
        x, y = (v + rng.uniform(-1.3, 1.3, v.size) for v in (x, y))
        turn = _sample(angle, x, y, u) + rng.uniform(-14, 14, x.size)
        side = np.radians(turn + 90)
        # A shaded edge, the body, a lit ridge: light falls from above.
        lit = np.stack([np.cos(side), np.sin(side)], -1)
        lit = lit * np.where(lit[:, 1:] > 0, -1, 1)
        colour = _sample(flat, x, y, u) * 255 * rng.uniform(0.97, 1.03, (x.size, 1))
        layers = []
        for shift, long, wide, tone in ((-0.5, 1, 1, 0.91), (0, 1, 1, 1), (0.7, 0.8, 0.35, 1.07)):
            centre = ((np.stack([x, y], -1) + shift * lit) * u * 16).astype(int).tolist()
            axes = (int(length * long * u * 16), int(width * wide * u * 16))
            shade = np.clip(colour * tone, 0, 255).tolist()
            layers.append([(c, axes, rgb) for c, rgb in zip(centre, shade, strict=True)])
        for degrees, stroke in zip(turn.tolist(), zip(*layers, strict=True), strict=True):
            for c, axes, rgb in stroke:
                cv2.ellipse(canvas, c, axes, degrees, 0, 360, rgb, -1, cv2.LINE_AA, 4)

    y, x = 4 * np.mgrid[: h // (4 * u) + 2, : w // (4 * u) + 2]
    broad = (x + y) % 8 == 0
    strokes(x[broad], y[broad], 6.0, 2.3)
    x, y = x + 2, y + 2
    fine = _sample(busy, x, y, u) > 0.3
    strokes(x[fine], y[fine], 2.6, 1.2)
    # Contours come back through the paint, or a moon would turn into a flower.
    paint = _mix(canvas / np.float32(255), flat, 0.65 * _step(0.25, 0.7, busy))
    return _close(paint * np.float32([1.03, 0.99, 0.88]))


def watercolour(picture: Image.Image, seed: int = 0) -> Image.Image:
    """Pale washes with darker wet edges, pooling slowly, on white paper with a ragged border."""
    a, u, rng = _open(picture, seed)
    x, y = _grid(a.shape, u)
    drift = np.stack([_clouds(rng, a.shape, u, 20) for _ in range(2)], -1) * 1.2 * u
    columns, rows = np.meshgrid(np.arange(a.shape[1]), np.arange(a.shape[0]))
    a = cv2.remap(
        a, columns.astype(np.float32) + drift[..., 0], rows.astype(np.float32) + drift[..., 1],
        cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip
    lab = _contrast(_lab(_smooth(a, u, 0.14)), u, 0.2, 0.5)
    flat = _blur(_from_lab(lab), 0.6 * u)
    # Pigment as optical density: washes multiply, and pigment gathers where a wash ends.
    density = -np.log(np.clip(_vivid(flat, 1.5), 0.04, 1))
    density = 0.72 * density / (1 + 0.35 * density)
    rim = np.abs(density - _blur(density, 2.5 * u)).max(-1)
    pool = 1 + 0.28 * _clouds(rng, a.shape, u, 28) + 2.6 * np.clip(rim, 0, 0.3)
    h, w = a.shape[0] / u, a.shape[1] / u
    border = np.minimum(np.minimum(x, w - x), np.minimum(y, h - y)) + 2.0 * _clouds(
        rng, a.shape, u, 16
    )
    wet = _step(3.0, 6.0, border) * (1 + 0.25 * np.exp(-((border - 6.5) ** 2) / 2))
    paper = np.float32([0.985, 0.975, 0.95])
    return _close(paper * np.exp(-density * (pool * wet)[..., None]))


def poster(picture: Image.Image, seed: int = 0) -> Image.Image:
    """A travel poster: six flat inks, clean borders."""
    a, u, rng = _open(picture, seed)
    inks = _rgb("f4e4bc", "e9a23b", "cf4b32", "9cc6b4", "2d7876", "1d2a44")
    inks = np.clip(inks + rng.uniform(-0.02, 0.02, inks.shape).astype(np.float32), 0, 1)
    flat = _blur(_smooth(a, u, 0.2, 3), 0.8 * u)
    lab = _contrast(_lab(_vivid(flat, 1.3)), u, 0.2, 0.25)
    lab[..., 0] = 100 * _levels(lab[..., 0] / 100)
    return _close(_blur(_paint(lab, inks, u, 0.55, 0.9), 0.65 * u))


def charcoal(picture: Image.Image, seed: int = 0) -> Image.Image:
    """Soft black strokes and smudges on grey-white paper."""
    a, u, rng = _open(picture, seed)
    x, y = _grid(a.shape, u)
    flat = _smooth(a, u, 0.12)
    tone = _levels(_luma(flat))
    dark = _blur((1 - tone) ** 1.3, 1.0 * u)
    hatch = 0.5 + 0.5 * np.cos((x - y) * (2 * np.pi / 8))
    pressure = 0.7 + 0.5 * _clouds(rng, a.shape, u, 20)
    mark = dark * (0.82 + 0.3 * pressure * (hatch - 0.3) * (1 - dark))
    mark = mark + 0.10 * pressure * hatch * _step(0.12, 0.4, dark)
    mark = mark + 0.10 * _clouds(rng, a.shape, u, 32) * _step(0, 0.3, dark)
    line = _blur(_edges(flat, u, 1.5), 0.7 * u)
    mark = 1 - (1 - np.clip(mark, 0, 0.93)) * (1 - 0.75 * line)
    paper = np.float32([0.93, 0.92, 0.90]) + rng.uniform(-0.015, 0.015)
    return _close(paper + (np.float32([0.09, 0.09, 0.1]) - paper) * mark[..., None])


def pastel(picture: Image.Image, seed: int = 0) -> Image.Image:
    """Chalky, light hues in fat diagonal strokes over warm pink paper."""
    a, u, rng = _open(picture, seed)
    x, y = _grid(a.shape, u)
    flat = _smooth(a, u, 0.15)
    n = 2 * int(3 * u) + 1
    drag = cv2.filter2D(flat, -1, np.fliplr(np.eye(n, dtype=np.float32)) / n)
    drag = _blur(0.6 * drag + 0.4 * flat, 0.6 * u)
    lab = _contrast(_lab(_vivid(drag, 1.35)), u, 0.1, 0.6)
    lab[..., 0] = 36 + 0.62 * lab[..., 0]
    chalk = _from_lab(lab)
    paper = _rgb("e2b5a8")[0] + rng.uniform(-0.02, 0.02, 3).astype(np.float32)
    # Rows of strokes 24 units long; each row starts half a stroke after its neighbour.
    lane = x + y + 0.8 * _clouds(rng, a.shape, u, 32)
    odd = np.round(lane / 8) % 2
    stroke = (4 - _from_line(lane)) * 0.25
    gap = _step(3.0, 0.6, _from_line(x - y + 12 * odd, 24.0))
    cover = 0.56 + 0.42 * _step(0.0, 0.7, stroke) * (1 - 0.45 * gap)
    cover = cover + 0.06 * _clouds(rng, a.shape, u, 24)
    return _close(_mix(paper, chalk + 0.03, np.clip(cover, 0, 1)))


def comic(picture: Image.Image, seed: int = 0) -> Image.Image:
    """Thick black outlines, flat bright colour, dots of an 8-unit screen in the mid tones."""
    a, u, rng = _open(picture, seed)
    x, y = _grid(a.shape, u)
    flat = _blur(_smooth(a, u, 0.18, 3), 0.5 * u)
    hues = _rgb(
        "ffffff", "fff0c4", "ffe14d", "ff9a2e", "e8322d", "f7b7a3", "b5651d", "4fb847", "1c7a3d",
        "8fd3f5", "2f8fe0", "23408f", "8a4fae", "cfa8ea", "f58fb5", "c9c9cf", "7d7f8a", "16161d",
    )  # fmt: skip
    hues = np.clip(hues + rng.uniform(-0.015, 0.015, hues.shape).astype(np.float32), 0, 1)
    lab = _contrast(_lab(_vivid(flat, 1.7)), u, 0.4, 0.4)
    lab[..., 0] = 8 + 92 * _levels(lab[..., 0] / 100)
    colour = _blur(_paint(lab, hues, u, 1.2, 0.9), 0.6 * u)
    px, py, _ = _quincunx(x, y)
    tone = _blur(_levels(_luma(flat)), 2 * u)
    radius = 2.5 * _step(0.78, 0.3, tone)
    dot = _step(0.5, -0.5, np.hypot(x - px, y - py) - radius) * _step(0.1, 0.28, tone)
    colour = colour * (1 - 0.32 * dot[..., None])
    ink = _rgb("0d0d12")[0]
    line = np.maximum(_edges(flat, u, 1.0, 0.38, 0.62), _step(0.07, 0.04, _levels(_luma(flat))))
    return _close(_mix(colour, ink, line))


# ---- held-out styles ----------------------------------------------------------------------------


def stained_glass(picture: Image.Image, seed: int = 0) -> Image.Image:
    """Panes of glowing ruby, amber, emerald and cobalt in dark lead."""
    a, u, rng = _open(picture, seed)
    flat = _smooth(a, u, 0.15)
    h, w = a.shape[:2]
    panes = max(4, round(h * w / (15.5 * u) ** 2))
    small = cv2.resize(flat, [max(8, n // u) for n in (w, h)], interpolation=cv2.INTER_AREA)
    labels = slic(
        small, n_segments=panes, compactness=16, max_num_iter=6, sigma=1, start_label=0,
        enforce_connectivity=True, min_size_factor=0.4,
    ).astype(np.int32)  # fmt: skip
    count = np.bincount(labels.ravel())
    bright = _from_lab(_contrast(_lab(small), 1, 0.6, 0.5))
    mean = np.moveaxis(bright, -1, 0)
    mean = np.stack([np.bincount(labels.ravel(), c.ravel()) for c in mean], -1)
    mean = (mean / np.maximum(count, 1)[:, None]).astype(np.float32)
    # Glass: hue kept, saturation forced up, tone stretched; greys take a tint of cobalt or amber.
    hsv = cv2.cvtColor(mean[None], cv2.COLOR_RGB2HSV)[0]
    value = _levels(_luma(mean), 5, 95)
    tint = np.where((value < 0.5)[:, None], _rgb("1f3fb0"), _rgb("f6c257"))
    hsv[:, 1] = np.clip(0.55 + 0.7 * hsv[:, 1], 0, 1)
    hsv[:, 2] = 0.34 + 0.66 * value
    glass = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    grey = _step(0.16, 0.05, mean.max(-1) - mean.min(-1))[:, None]
    glass = glass + (tint * hsv[:, 2:] - glass) * grey
    glass = glass * np.float32([1, 0.86, 1])
    glass = np.clip(glass + rng.uniform(-0.025, 0.025, glass.shape).astype(np.float32), 0, 1)

    labels = cv2.resize(labels, (w, h), interpolation=cv2.INTER_NEAREST)
    lead = np.zeros((h, w), np.float32)
    lead[:, 1:] = labels[:, 1:] != labels[:, :-1]
    lead[1:] = np.maximum(lead[1:], labels[1:] != labels[:-1])
    glow = _blur(cv2.dilate(lead, np.ones((2 * u, 2 * u), np.uint8)), 2.5 * u)
    lead = _step(0.18, 0.5, _blur(lead, 0.9 * u))
    light = 1.18 - 0.36 * glow + 0.05 * _clouds(rng, a.shape, u, 48)
    return _close(_mix(_blur(glass[labels], 0.5 * u) * light[..., None], _rgb("1c1a24")[0], lead))


def ink(picture: Image.Image, seed: int = 0) -> Image.Image:
    """Black pen outlines and cross-hatching on cream paper."""
    a, u, rng = _open(picture, seed)
    x, y = _grid(a.shape, u)
    flat = _smooth(a, u, 0.12)
    tone = _blur(_tones(_luma(flat), u), 2 * u)
    # Two directions of line, each either there at its full width or absent: three clear tones.
    first = _step(0.9, -0.9, _from_line(x + y) * 0.7071 - 1.15) * _step(0.64, 0.56, tone)
    second = _step(0.9, -0.9, _from_line(x - y) * 0.7071 - 1.15) * _step(0.36, 0.28, tone)
    mark = 0.72 * np.maximum(first, second)
    mark = np.maximum(mark, _step(0.13, 0.07, tone))
    mark = np.maximum(mark, _edges(flat, u, 1.0, 0.36, 0.62))
    paper = _rgb("f6edd6")[0] + rng.uniform(-0.015, 0.015)
    paper = paper + 0.015 * _clouds(rng, a.shape, u, 64)[..., None]
    return _close(_mix(paper, _rgb("221e26")[0], mark))


def blueprint(picture: Image.Image, seed: int = 0) -> Image.Image:
    """White draughtsman's lines and a faint square grid on deep blue."""
    a, u, rng = _open(picture, seed)
    x, y = _grid(a.shape, u)
    flat = _smooth(a, u, 0.12)
    tone = _blur(_levels(_luma(flat)), 1.5 * u)
    ground = _rgb("103a8c")[0] + rng.uniform(-0.012, 0.012)
    sheet = ground * (0.72 + 0.62 * tone + 0.04 * _clouds(rng, a.shape, u, 64))[..., None]
    grid = np.maximum(*(_step(1.0, 0.3, _from_line(v, 16.0)) for v in (x, y)))
    sheet = _mix(sheet, _rgb("7fa8e8")[0], 0.22 * grid)
    line = _edges(flat, u, 1.1, 0.34, 0.64)
    return _close(_mix(sheet, _rgb("eef5ff")[0], 0.95 * line))


def pointillism(picture: Image.Image, seed: int = 0) -> Image.Image:
    """Round dabs of pure colour, warm and cool in turn, on primed canvas."""
    a, u, rng = _open(picture, seed)
    x, y = _grid(a.shape, u)
    flat = _contrast(_lab(_vivid(_smooth(a, u, 0.12), 1.5)), u, 0.4, 0.5)
    flat = _blur(_from_lab(flat), 0.9 * u)
    px, py, second = _quincunx(x, y)
    dab = _sample(flat, px, py, u)
    turn = (0.10 + 0.02 * rng.uniform(-1, 1)) * np.float32([1, 0.15, -1])
    dab = np.where(second[..., None], dab + turn, dab - turn)
    dab = 0.08 + 0.92 * np.clip(dab, 0, 1)
    radius = 2.95 - 0.45 * _luma(dab)
    cover = _step(0.6, -0.5, np.hypot(x - px, y - py) - radius)
    canvas = _rgb("f3e6c8")[0] + rng.uniform(-0.015, 0.015)
    return _close(_mix(canvas, dab, cover))


def cross_stitch(picture: Image.Image, seed: int = 0) -> Image.Image:
    """Crosses of folk-art thread, one to each 8-unit cell, on linen with its holes."""
    a, u, rng = _open(picture, seed)
    x, y = _grid(a.shape, u)
    threads = _rgb(
        "fbf6ea", "f0cf65", "e08a3c", "b8232f", "e7a6a1", "7a4a2b", "7fa05a", "2f5d3a",
        "a9c7d8", "3f74a6", "1f2f5c", "8d8a84", "241f24", "cda06e", "b79acb", "6d4a86", "c3d6a0",
    )  # fmt: skip
    threads = np.clip(threads + rng.uniform(-0.015, 0.015, threads.shape).astype(np.float32), 0, 1)
    flat = _blur(_vivid(_smooth(a, u, 0.15), 1.3), 1.2 * u)
    # Quarter stitches: each arm of a cross takes the colour of its own quarter of the cell.
    qx, qy = np.floor(x / 4) * 4 + 2, np.floor(y / 4) * 4 + 2
    lab = _contrast(_lab(flat), u, 0.4, 0.4)
    lab[..., 0] = 0.5 * lab[..., 0] + 50 * _levels(lab[..., 0] / 100)
    colour = _sample(_paint(lab, threads, u, 0.9, 0.7), qx, qy, u)
    cx, cy = x % 8 - 4, y % 8 - 4
    under, over = np.abs(cx + cy) * 0.7071, np.abs(cx - cy) * 0.7071
    ends = _step(5.5, 4.3, np.hypot(cx, cy))
    linen = _rgb("d8c6a2")[0] + rng.uniform(-0.015, 0.015)
    stitched = 0.62 * (0.45 * linen + 0.55 * colour)
    stitched = _mix(stitched, colour * 0.92, _step(1.8, 0.9, under) * ends)
    stitched = _mix(stitched, colour * 0.72, _step(2.3, 1.6, over) * ends)
    stitched = _mix(stitched, np.clip(colour * 1.05, 0, 1), _step(1.8, 0.9, over) * ends)
    return _close(stitched)


def woodcut(picture: Image.Image, seed: int = 0) -> Image.Image:
    """Bold black masses cut by swelling lines, one warm second block, on pale paper."""
    a, u, rng = _open(picture, seed)
    x, y = _grid(a.shape, u)
    flat = _smooth(a, u, 0.15, 3)
    tone = _blur(_tones(_luma(flat), u), 1.6 * u)
    line = _from_line(y + 1.6 * np.sin(x * (2 * np.pi / 32)))
    mark = _step(0.6, -0.6, line - (0.9 + 2.4 * _step(0.62, 0.12, tone)))
    mark = mark * _step(0.70, 0.62, tone)
    mark = np.maximum(mark, _step(0.14, 0.08, tone))
    mark = np.maximum(mark, _edges(flat, u, 1.2, 0.34, 0.6))
    paper = _rgb("f1e4c9")[0] + rng.uniform(-0.015, 0.015)
    warm = _rgb("d2603a")[0] + rng.uniform(-0.02, 0.02, 3).astype(np.float32)
    block = _step(-0.02, 0.02, _blur(0.60 - tone, 1.5 * u))
    return _close(_mix(_mix(paper, warm, block), _rgb("211a16")[0], mark))


def neon(picture: Image.Image, seed: int = 0) -> Image.Image:
    """Glowing pink, violet and cyan tubes along the outlines, in the dark."""
    a, u, rng = _open(picture, seed)
    flat = _smooth(a, u, 0.12)
    tone = _blur(_levels(_luma(flat)), 2 * u)
    line = _edges(flat, u, 1.15, 0.32, 0.62)
    lab = _blur(_lab(flat), 3 * u)
    h, w = a.shape[:2]
    x, y = _grid(a.shape, 1)
    warm = (lab[..., 1] + lab[..., 2]) / 30
    warm = warm - 0.8 * warm.mean() + 0.8 * (y / h - 0.5) + 0.5 * _clouds(rng, a.shape, u, 56)
    warm = _blur(0.5 + 0.5 * np.tanh(1.4 * warm), 2 * u)
    cyan, violet, pink = _rgb("12e6ff", "8a4bff", "ff2fa8")
    tube = _mix(_mix(cyan, violet, _step(0, 0.5, warm)), pink, _step(0.45, 0.95, warm))
    night = _rgb("0c0a22")[0] * (0.6 + 0.9 * tone[..., None]) + 0.10 * tube * tone[..., None]
    glow = (0.75 * _blur(line, 2.2 * u) + 0.75 * _blur(line, 6 * u))[..., None]
    core = np.clip(tube + 0.55 * _step(0.6, 1.0, _blur(line, 0.6 * u))[..., None], 0, 1)
    return _close(_mix(night + glow * tube, core, line))


STYLES: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    name: globals()[name] for name in KNOWN + HELD_OUT
}


def apply_style(name: str, picture: Image.Image, seed: int = 0) -> Image.Image:
    """`picture` (any size and mode) in the style `name`, as RGB of the same size.

    The same picture, name and seed give the same bytes. Raises StylenbError for an unknown name.
    """
    if name not in STYLES:
        raise StylenbError(f"There is no style {name!r}: choose one of {', '.join(STYLES)}.")
    return STYLES[name](picture, seed)
