"""The training mix of the pocket model: what is drawn, in which style, under which caption.

Every picture is a function of one seed. Ranges of seeds keep the splits apart, so that no score
is ever taken on a picture that a network was trained on.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageEnhance

from stylenb.photos import SAMPLE_PHOTOS, sample_photo
from stylenb.pocket.scenes import draw_scene
from stylenb.pocket.shapes import dead_leaves
from stylenb.pocket.styles import KNOWN, PHRASES, apply_style

SIZE = 128

# First seed of each split. A split never reaches the next one's first seed.
TEST_SEEDS = 0
STYLE_PICTURE_SEEDS = 500_000
TRAIN_SEEDS = 1_000_000
JUDGE_SEEDS = 5_000_000

KINDS = {"scene": 0.55, "photo": 0.32, "shapes": 0.13}  # their shares

PHOTO_CAPTIONS = {
    "astronaut": "a person",
    "camera": "a person with a camera",
    "cat": "a cat",
    "chelsea": "a cat",
    "coffee": "a cup",
    "coins": "coins",
    "rocket": "a rocket",
}


@dataclass(frozen=True)
class Example:
    """One training picture, square RGB, its caption (style phrase included) and its origin."""

    picture: Image.Image
    caption: str
    style: str
    kind: str  # "scene", "photo" or "shapes"; data/draw.py adds "objects"


_photo = cache(sample_photo)


def photo_crop(seed: int, size: int = SIZE) -> tuple[Image.Image, str]:
    """A crop of a scikit-image photograph, `size` x `size` RGB, and a caption."""
    random = np.random.default_rng([seed, 1])
    name = SAMPLE_PHOTOS[random.integers(len(SAMPLE_PHOTOS))]
    return varied_crop(_photo(name), random, size), PHOTO_CAPTIONS.get(name, "a thing")


def varied_crop(photo: Image.Image, random: np.random.Generator, size: int) -> Image.Image:
    """A crop of a photograph, `size` x `size` RGB.

    Scale, place, flip, hue, saturation, contrast and brightness vary, so that a handful of
    photographs covers every palette: colours that the autoencoder never saw come out wrong.
    One crop in five is the plain centre of the photograph as a user would hand it in.
    """
    plain, side = random.random() < 0.2, min(photo.size)
    if plain:
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
    else:
        side = int(side * 0.25 ** random.random())
        left, top = (int(random.integers(n - side + 1)) for n in photo.size)
    crop = photo.resize((size, size), Image.LANCZOS, (left, top, left + side, top + side))
    return crop if plain else varied_colours(crop, random)


def varied_colours(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """An RGB picture in other colours, tones and contrasts, half of them flipped."""
    if random.random() < 0.5:
        picture = picture.transpose(Image.FLIP_LEFT_RIGHT)
    if random.random() < 0.6:
        hsv = np.array(picture.convert("HSV"))
        if hsv[..., 1].mean() < 8:  # a grey photograph: a tint gives it a palette
            hsv[..., 1] = int(random.integers(30, 120))
        hsv[..., 0] = hsv[..., 0] + np.uint8(random.integers(256))
        picture = Image.fromarray(hsv, "HSV").convert("RGB")
    for enhance in (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness):
        picture = enhance(picture).enhance(float(random.uniform(0.6, 1.4)))
    return picture


def content(seed: int, kind: str, size: int = SIZE) -> tuple[Image.Image, str]:
    """An unstyled picture of `kind` "scene", "photo" or "shapes" and a caption without style."""
    if kind == "scene":
        scene = draw_scene(seed, size)
        return scene.picture, scene.caption
    if kind == "photo":
        return photo_crop(seed, size)
    return dead_leaves(seed, size), "random shapes"


def example(
    seed: int, styles=KNOWN, photo_share=0.25, size=SIZE, kinds=KINDS, draw=None
) -> Example:
    """The training example of `seed`; the "photo" style is drawn with probability `photo_share`.

    Photographs, and objects cut out of them, stay so twice as often: they are few, and the hardest
    to keep. kinds: the share of each; draw(seed, kind, size): what draws them, `content` or one
    that knows more kinds.
    """
    random = np.random.default_rng([seed, 0])
    kind = list(kinds)[random.choice(len(kinds), p=list(kinds.values()))]
    others = [name for name in styles if name != "photo"]
    share = min(1, 2 * photo_share) if kind in ("photo", "objects") else photo_share
    style = "photo" if random.random() < share else others[random.integers(len(others))]
    picture, caption = (draw or content)(seed, kind, size)
    return Example(apply_style(style, picture, seed), f"{PHRASES[style]} {caption}", style, kind)
