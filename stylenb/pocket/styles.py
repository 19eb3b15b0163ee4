"""The art styles of the pocket world; apply_style("oil", picture, seed) is how to use one.

A factor-8 autoencoder keeps 16 x 16 x 4 numbers of a 128 px picture, which is too few for grain but
enough for a pattern whose place is known. So every mark here is about 4 px or larger, every pattern
(dots, stitches, hatching) lies on a fixed lattice that starts at the picture's top-left corner and
repeats every 8 px, and only its colour or thickness follows the picture. The seed moves only
smooth or small things: the tone of the paper, slow washes, the palette by a shade, the lie of oil
strokes.

A style is a function (a, u, rng) -> array of the shape of `a`: float32 (H, W, 3) in [0, 1]. All
lengths are in units of `u` pixels, one unless told otherwise, whatever the size of the picture: a
larger picture gets more marks and not larger ones, so it shows more of what it is of. rng is a
generator of the style's own.

To add one: its function, and its name at the end of HELD_OUT and of PHRASES; then the stages vae,
perceptual, judge and loras of data/pretrain.py, since autoencoder and judge see every style.
"""

import cv2
import numpy as np
from PIL import Image
from skimage.segmentation import slic

from stylenb.errors import StylenbError
from stylenb.pocket import filters as f
from stylenb.pocket.canvas import to_image
from stylenb.pocket.palettes import rgb

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

# ---- known styles -------------------------------------------------------------------------------


def photo(a, u, rng):
    """A gentle grade: slight contrast, warmth and vignette."""
    a = a + 0.25 * (f.smoothstep(0, 1, a) - a)
    a = a * (1 + rng.uniform(-0.02, 0.02) * np.float32([1, 0, -1]))
    h, w = a.shape[:2]
    x, y = f.coordinates(a.shape, 1)
    corner = ((x / w - 0.5) ** 2 + (y / h - 0.5) ** 2)[..., None]
    return a * (1.02 - 0.22 * corner)


def oil(a, u, rng):
    """Rich colour laid in short strokes that follow the forms, under a golden varnish."""
    flat = f.vivid(f.smooth(a, u, 0.15), 1.2)
    flat = flat + 0.35 * (f.smoothstep(0, 1, flat) - flat)

    # Direction across the strokes from the structure tensor; a slow swirl where nothing leads.
    soft = f.blur(flat, u)
    gx, gy = cv2.Sobel(soft, -1, 1, 0, scale=u), cv2.Sobel(soft, -1, 0, 1, scale=u)
    swirl = 2 * (0.9 + 0.9 * f.clouds(rng, a.shape, u, 40))
    c = f.blur((gx * gx - gy * gy).sum(-1), 3 * u) - 0.004 * np.cos(swirl)
    s = f.blur((2 * gx * gy).sum(-1), 3 * u) - 0.004 * np.sin(swirl)
    angle = np.degrees(np.arctan2(s, c) / 2) + 90
    busy = f.blur(np.hypot(gx, gy).max(-1), u)

    canvas = np.rint(flat * 255).astype(np.uint8)
    h, w = canvas.shape[:2]

    def strokes(x, y, length, width):
        x, y = (v + rng.uniform(-1.3, 1.3, v.size) for v in (x, y))
        turn = f.sample(angle, x, y, u) + rng.uniform(-14, 14, x.size)
        side = np.radians(turn + 90)
        # A shaded edge, the body, a lit ridge: light falls from above.
        lit = np.stack([np.cos(side), np.sin(side)], -1)
        lit = lit * np.where(lit[:, 1:] > 0, -1, 1)
        colour = f.sample(flat, x, y, u) * 255 * rng.uniform(0.97, 1.03, (x.size, 1))
        layers = []
        for shift, long, wide, tone in ((-0.5, 1, 1, 0.91), (0, 1, 1, 1), (0.7, 0.8, 0.35, 1.07)):
            centre = ((np.stack([x, y], -1) + shift * lit) * u * 16).astype(int).tolist()
            axes = (int(length * long * u * 16), int(width * wide * u * 16))
            shade = np.clip(colour * tone, 0, 255).tolist()
            layers.append([(c, axes, paint) for c, paint in zip(centre, shade, strict=True)])
        for degrees, stroke in zip(turn.tolist(), zip(*layers, strict=True), strict=True):
            for c, axes, paint in stroke:
                cv2.ellipse(canvas, c, axes, degrees, 0, 360, paint, -1, cv2.LINE_AA, 4)

    y, x = 4 * np.mgrid[: h // (4 * u) + 2, : w // (4 * u) + 2]
    broad = (x + y) % 8 == 0
    strokes(x[broad], y[broad], 6.0, 2.3)
    x, y = x + 2, y + 2
    fine = f.sample(busy, x, y, u) > 0.3
    strokes(x[fine], y[fine], 2.6, 1.2)
    # Contours come back through the paint, or a moon would turn into a flower.
    paint = f.blend(canvas / np.float32(255), flat, 0.65 * f.smoothstep(0.25, 0.7, busy))
    return paint * np.float32([1.03, 0.99, 0.88])


def watercolour(a, u, rng):
    """Pale washes with darker wet edges, pooling slowly, on white paper with a ragged border."""
    x, y = f.coordinates(a.shape, u)
    drift = np.stack([f.clouds(rng, a.shape, u, 20) for _ in range(2)], -1) * 1.2 * u
    columns, rows = np.meshgrid(np.arange(a.shape[1]), np.arange(a.shape[0]))
    a = cv2.remap(
        a, columns.astype(np.float32) + drift[..., 0], rows.astype(np.float32) + drift[..., 1],
        cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip
    lab = f.contrast(f.smooth(a, u, 0.14), u, 0.2, 0.5)
    flat = f.blur(f.from_lab(lab), 0.6 * u)
    # Pigment as optical density: washes multiply, and pigment gathers where a wash ends.
    density = -np.log(np.clip(f.vivid(flat, 1.5), 0.04, 1))
    density = 0.72 * density / (1 + 0.35 * density)
    rim = np.abs(density - f.blur(density, 2.5 * u)).max(-1)
    pool = 1 + 0.28 * f.clouds(rng, a.shape, u, 28) + 2.6 * np.clip(rim, 0, 0.3)
    h, w = a.shape[0] / u, a.shape[1] / u
    border = np.minimum(np.minimum(x, w - x), np.minimum(y, h - y))
    border = border + 2.0 * f.clouds(rng, a.shape, u, 16)
    wet = f.smoothstep(3.0, 6.0, border) * (1 + 0.25 * np.exp(-((border - 6.5) ** 2) / 2))
    paper = np.float32([0.985, 0.975, 0.95])
    return paper * np.exp(-density * (pool * wet)[..., None])


def poster(a, u, rng):
    """A travel poster: six flat inks, clean borders."""
    inks = f.palette(rng, 0.02, "f4e4bc", "e9a23b", "cf4b32", "9cc6b4", "2d7876", "1d2a44")
    flat = f.blur(f.smooth(a, u, 0.2, 3), 0.8 * u)
    lab = f.contrast(f.vivid(flat, 1.3), u, 0.2, 0.25)
    lab[..., 0] = 100 * f.levels(lab[..., 0] / 100)
    return f.blur(f.nearest_colours(lab, inks, u, 0.55, 0.9), 0.65 * u)


def charcoal(a, u, rng):
    """Soft black strokes and smudges on grey-white paper."""
    x, y = f.coordinates(a.shape, u)
    flat = f.smooth(a, u, 0.12)
    tone = f.levels(f.luma(flat))
    dark = f.blur((1 - tone) ** 1.3, 1.0 * u)
    hatch = 0.5 + 0.5 * np.cos((x - y) * (2 * np.pi / 8))
    pressure = 0.7 + 0.5 * f.clouds(rng, a.shape, u, 20)
    mark = dark * (0.82 + 0.3 * pressure * (hatch - 0.3) * (1 - dark))
    mark = mark + 0.10 * pressure * hatch * f.smoothstep(0.12, 0.4, dark)
    mark = mark + 0.10 * f.clouds(rng, a.shape, u, 32) * f.smoothstep(0, 0.3, dark)
    line = f.blur(f.edges(flat, u, 1.5), 0.7 * u)
    mark = 1 - (1 - np.clip(mark, 0, 0.93)) * (1 - 0.75 * line)
    paper = np.float32([0.93, 0.92, 0.90]) + rng.uniform(-0.015, 0.015)
    return paper + (np.float32([0.09, 0.09, 0.1]) - paper) * mark[..., None]


def pastel(a, u, rng):
    """Chalky, light hues in fat diagonal strokes over warm pink paper."""
    x, y = f.coordinates(a.shape, u)
    flat = f.smooth(a, u, 0.15)
    n = 2 * int(3 * u) + 1
    drag = cv2.filter2D(flat, -1, np.fliplr(np.eye(n, dtype=np.float32)) / n)
    drag = f.blur(0.6 * drag + 0.4 * flat, 0.6 * u)
    lab = f.contrast(f.vivid(drag, 1.35), u, 0.1, 0.6)
    lab[..., 0] = 36 + 0.62 * lab[..., 0]
    chalk = f.from_lab(lab)
    paper = f.jitter(rng, rgb("e2b5a8"), 0.02)
    # Rows of strokes 24 units long; each row starts half a stroke after its neighbour.
    lane = x + y + 0.8 * f.clouds(rng, a.shape, u, 32)
    odd = np.round(lane / 8) % 2
    stroke = (4 - f.distance_to_line(lane)) * 0.25
    gap = f.smoothstep(3.0, 0.6, f.distance_to_line(x - y + 12 * odd, 24.0))
    cover = 0.56 + 0.42 * f.smoothstep(0.0, 0.7, stroke) * (1 - 0.45 * gap)
    cover = cover + 0.06 * f.clouds(rng, a.shape, u, 24)
    return f.blend(paper, chalk + 0.03, np.clip(cover, 0, 1))


def comic(a, u, rng):
    """Thick black outlines, flat bright colour, dots of an 8-unit screen in the mid tones."""
    x, y = f.coordinates(a.shape, u)
    flat = f.blur(f.smooth(a, u, 0.18, 3), 0.5 * u)
    hues = f.palette(
        rng, 0.015,
        "ffffff", "fff0c4", "ffe14d", "ff9a2e", "e8322d", "f7b7a3", "b5651d", "4fb847", "1c7a3d",
        "8fd3f5", "2f8fe0", "23408f", "8a4fae", "cfa8ea", "f58fb5", "c9c9cf", "7d7f8a", "16161d",
    )  # fmt: skip
    lab = f.contrast(f.vivid(flat, 1.7), u, 0.4, 0.4)
    lab[..., 0] = 8 + 92 * f.levels(lab[..., 0] / 100)
    colour = f.blur(f.nearest_colours(lab, hues, u, 1.2, 0.9), 0.6 * u)
    px, py, _ = f.quincunx(x, y)
    tone = f.levels(f.luma(flat))
    soft = f.blur(tone, 2 * u)
    radius = 2.5 * f.smoothstep(0.78, 0.3, soft)
    dot = f.smoothstep(0.5, -0.5, np.hypot(x - px, y - py) - radius) * f.smoothstep(0.1, 0.28, soft)
    line = np.maximum(f.edges(flat, u, 1.0, 0.38, 0.62), f.smoothstep(0.07, 0.04, tone))
    return f.blend(colour * (1 - 0.32 * dot[..., None]), rgb("0d0d12"), line)


# ---- held-out styles ----------------------------------------------------------------------------


def stained_glass(a, u, rng):
    """Panes of glowing ruby, amber, emerald and cobalt in dark lead."""
    flat = f.smooth(a, u, 0.15)
    h, w = a.shape[:2]
    panes = max(4, round(h * w / (15.5 * u) ** 2))
    small = cv2.resize(flat, [max(8, n // u) for n in (w, h)], interpolation=cv2.INTER_AREA)
    labels = slic(
        small, n_segments=panes, compactness=16, max_num_iter=6, sigma=1, start_label=0,
        enforce_connectivity=True, min_size_factor=0.4,
    ).astype(np.int32)  # fmt: skip
    count = np.bincount(labels.ravel())
    bright = f.from_lab(f.contrast(small, 1, 0.6, 0.5))
    planes = np.moveaxis(bright, -1, 0)
    mean = np.stack([np.bincount(labels.ravel(), plane.ravel()) for plane in planes], -1)
    mean = (mean / np.maximum(count, 1)[:, None]).astype(np.float32)
    # Glass: hue kept, saturation forced up, tone stretched; greys take a tint of cobalt or amber.
    hsv = cv2.cvtColor(mean[None], cv2.COLOR_RGB2HSV)[0]
    value = f.levels(f.luma(mean), 5, 95)
    tint = np.where((value < 0.5)[:, None], rgb("1f3fb0"), rgb("f6c257"))
    hsv[:, 1] = np.clip(0.55 + 0.7 * hsv[:, 1], 0, 1)
    hsv[:, 2] = 0.34 + 0.66 * value
    glass = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    grey = f.smoothstep(0.16, 0.05, mean.max(-1) - mean.min(-1))[:, None]
    glass = glass + (tint * hsv[:, 2:] - glass) * grey
    glass = f.jitter(rng, glass * np.float32([1, 0.86, 1]), 0.025)

    labels = cv2.resize(labels, (w, h), interpolation=cv2.INTER_NEAREST)
    lead = np.zeros((h, w), np.float32)
    lead[:, 1:] = labels[:, 1:] != labels[:, :-1]
    lead[1:] = np.maximum(lead[1:], labels[1:] != labels[:-1])
    glow = f.blur(cv2.dilate(lead, np.ones((2 * u, 2 * u), np.uint8)), 2.5 * u)
    lead = f.smoothstep(0.18, 0.5, f.blur(lead, 0.9 * u))
    light = 1.18 - 0.36 * glow + 0.05 * f.clouds(rng, a.shape, u, 48)
    return f.blend(f.blur(glass[labels], 0.5 * u) * light[..., None], rgb("1c1a24"), lead)


def ink(a, u, rng):
    """Black pen outlines and cross-hatching on cream paper."""
    x, y = f.coordinates(a.shape, u)
    flat = f.smooth(a, u, 0.12)
    tone = f.blur(f.tones(f.luma(flat), u), 2 * u)
    # Two directions of line, each either there at its full width or absent: three clear tones.
    one_way, across = (
        f.smoothstep(0.9, -0.9, f.distance_to_line(v) * 0.7071 - 1.15) for v in (x + y, x - y)
    )
    one_way = one_way * f.smoothstep(0.64, 0.56, tone)
    mark = 0.72 * np.maximum(one_way, across * f.smoothstep(0.36, 0.28, tone))
    mark = np.maximum(mark, f.smoothstep(0.13, 0.07, tone))
    mark = np.maximum(mark, f.edges(flat, u, 1.0, 0.36, 0.62))
    paper = rgb("f6edd6") + rng.uniform(-0.015, 0.015)
    paper = paper + 0.015 * f.clouds(rng, a.shape, u, 64)[..., None]
    return f.blend(paper, rgb("221e26"), mark)


def blueprint(a, u, rng):
    """White draughtsman's lines and a faint square grid on deep blue."""
    x, y = f.coordinates(a.shape, u)
    flat = f.smooth(a, u, 0.12)
    tone = f.blur(f.levels(f.luma(flat)), 1.5 * u)
    ground = rgb("103a8c") + rng.uniform(-0.012, 0.012)
    sheet = ground * (0.72 + 0.62 * tone + 0.04 * f.clouds(rng, a.shape, u, 64))[..., None]
    grid = np.maximum(*(f.smoothstep(1.0, 0.3, f.distance_to_line(v, 16.0)) for v in (x, y)))
    sheet = f.blend(sheet, rgb("7fa8e8"), 0.22 * grid)
    line = f.edges(flat, u, 1.1, 0.34, 0.64)
    return f.blend(sheet, rgb("eef5ff"), 0.95 * line)


def pointillism(a, u, rng):
    """Round dabs of pure colour, warm and cool in turn, on primed canvas."""
    x, y = f.coordinates(a.shape, u)
    flat = f.contrast(f.vivid(f.smooth(a, u, 0.12), 1.5), u, 0.4, 0.5)
    flat = f.blur(f.from_lab(flat), 0.9 * u)
    px, py, second = f.quincunx(x, y)
    dab = f.sample(flat, px, py, u)
    turn = (0.10 + 0.02 * rng.uniform(-1, 1)) * np.float32([1, 0.15, -1])
    dab = np.where(second[..., None], dab + turn, dab - turn)
    dab = 0.08 + 0.92 * np.clip(dab, 0, 1)
    radius = 2.95 - 0.45 * f.luma(dab)
    cover = f.smoothstep(0.6, -0.5, np.hypot(x - px, y - py) - radius)
    canvas = rgb("f3e6c8") + rng.uniform(-0.015, 0.015)
    return f.blend(canvas, dab, cover)


def cross_stitch(a, u, rng):
    """Crosses of folk-art thread, one to each 8-unit cell, on linen with its holes."""
    x, y = f.coordinates(a.shape, u)
    threads = f.palette(
        rng, 0.015,
        "fbf6ea", "f0cf65", "e08a3c", "b8232f", "e7a6a1", "7a4a2b", "7fa05a", "2f5d3a",
        "a9c7d8", "3f74a6", "1f2f5c", "8d8a84", "241f24", "cda06e", "b79acb", "6d4a86", "c3d6a0",
    )  # fmt: skip
    flat = f.blur(f.vivid(f.smooth(a, u, 0.15), 1.3), 1.2 * u)
    # Quarter stitches: each arm of a cross takes the colour of its own quarter of the cell.
    qx, qy = np.floor(x / 4) * 4 + 2, np.floor(y / 4) * 4 + 2
    lab = f.contrast(flat, u, 0.4, 0.4)
    lab[..., 0] = 0.5 * lab[..., 0] + 50 * f.levels(lab[..., 0] / 100)
    colour = f.sample(f.nearest_colours(lab, threads, u, 0.9, 0.7), qx, qy, u)
    cx, cy = x % 8 - 4, y % 8 - 4
    under, over = np.abs(cx + cy) * 0.7071, np.abs(cx - cy) * 0.7071
    ends = f.smoothstep(5.5, 4.3, np.hypot(cx, cy))
    linen = rgb("d8c6a2") + rng.uniform(-0.015, 0.015)
    stitched = 0.62 * (0.45 * linen + 0.55 * colour)
    stitched = f.blend(stitched, colour * 0.92, f.smoothstep(1.8, 0.9, under) * ends)
    stitched = f.blend(stitched, colour * 0.72, f.smoothstep(2.3, 1.6, over) * ends)
    return f.blend(stitched, np.clip(colour * 1.05, 0, 1), f.smoothstep(1.8, 0.9, over) * ends)


def woodcut(a, u, rng):
    """Bold black masses cut by swelling lines, one warm second block, on pale paper."""
    x, y = f.coordinates(a.shape, u)
    flat = f.smooth(a, u, 0.15, 3)
    tone = f.blur(f.tones(f.luma(flat), u), 1.6 * u)
    line = f.distance_to_line(y + 1.6 * np.sin(x * (2 * np.pi / 32)))
    mark = f.smoothstep(0.6, -0.6, line - (0.9 + 2.4 * f.smoothstep(0.62, 0.12, tone)))
    mark = mark * f.smoothstep(0.70, 0.62, tone)
    mark = np.maximum(mark, f.smoothstep(0.14, 0.08, tone))
    mark = np.maximum(mark, f.edges(flat, u, 1.2, 0.34, 0.6))
    paper = rgb("f1e4c9") + rng.uniform(-0.015, 0.015)
    warm = f.jitter(rng, rgb("d2603a"), 0.02)
    block = f.smoothstep(-0.02, 0.02, f.blur(0.60 - tone, 1.5 * u))
    return f.blend(f.blend(paper, warm, block), rgb("211a16"), mark)


def neon(a, u, rng):
    """Glowing pink, violet and cyan tubes along the outlines, in the dark."""
    flat = f.smooth(a, u, 0.12)
    tone = f.blur(f.levels(f.luma(flat)), 2 * u)
    line = f.edges(flat, u, 1.15, 0.32, 0.62)
    lab = f.blur(f.to_lab(flat), 3 * u)
    h, w = a.shape[:2]
    x, y = f.coordinates(a.shape, 1)
    warm = (lab[..., 1] + lab[..., 2]) / 30
    warm = warm - 0.8 * warm.mean() + 0.8 * (y / h - 0.5) + 0.5 * f.clouds(rng, a.shape, u, 56)
    warm = f.blur(0.5 + 0.5 * np.tanh(1.4 * warm), 2 * u)
    cyan, violet, pink = (rgb(code) for code in ("12e6ff", "8a4bff", "ff2fa8"))
    tube = f.blend(cyan, violet, f.smoothstep(0, 0.5, warm))
    tube = f.blend(tube, pink, f.smoothstep(0.45, 0.95, warm))
    night = rgb("0c0a22") * (0.6 + 0.9 * tone[..., None]) + 0.10 * tube * tone[..., None]
    glow = (0.75 * f.blur(line, 2.2 * u) + 0.75 * f.blur(line, 6 * u))[..., None]
    core = np.clip(tube + 0.55 * f.smoothstep(0.6, 1.0, f.blur(line, 0.6 * u))[..., None], 0, 1)
    return f.blend(night + glow * tube, core, line)


STYLES = {name: globals()[name] for name in KNOWN + HELD_OUT}


def apply_style(name: str, picture: Image.Image, seed: int = 0, unit: int = 1) -> Image.Image:
    """`picture` (any size and mode) in the style `name`, as RGB of the same size.

    The same picture, name and seed give the same bytes. unit: the pixels in a unit of length, for
    marks that many times as large. Raises StylenbError for an unknown name and a unit below 1.
    """
    if name not in STYLES:
        raise StylenbError(f"There is no style {name!r}: choose one of {', '.join(STYLES)}.")
    array = np.asarray(picture.convert("RGB"), np.float32) / 255
    if not isinstance(unit, int) or unit < 1:
        raise StylenbError(f"unit is a whole number of pixels from 1 up, not {unit!r}.")
    return to_image(STYLES[name](array, unit, np.random.default_rng(seed)))
