"""Pictures in, pictures out: whatever a camera or a phone made becomes an upright RGB picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps

from .errors import StylenbError
from .limits import read
from .picture_formats import MAX_PIXELS, MIN_SIDE, read_picture, to_rgb

if TYPE_CHECKING:
    import torch

Fit = Literal["crop", "pad", "whole"]

# Photographs that lie inside the scikit-image wheel itself; the others it lists are downloads.
# Their origins and free licences are in the docstrings of skimage.data.
SAMPLE_PHOTOS: tuple[str, ...] = tuple(
    "astronaut chelsea coffee rocket motorcycle hubble_deep_field retina ihc camera moon coins "
    "clock cell brick grass gravel".split()
)
_FILES = {  # of those that are not called NAME.png
    "rocket": "rocket.jpg",
    "motorcycle": "motorcycle_left.png",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "retina": "retina.jpg",
    "clock": "clock_motion.png",
}


def open_photo(source, size: int | tuple[int, int] | None = None, fit: str = "crop") -> Image.Image:
    """Open any picture as upright 8-bit RGB, and bring it to `size` pixels if one is given.

    source: path, bytes, binary file object, PIL picture, or array of shape (H, W), (H, W, 1),
        (H, W, 3) or (H, W, 4): uint8 in 0..255, uint16 in 0..65535, float in 0..1 or bool.
        EXIF orientation is applied, colour profiles are converted to sRGB, alpha is laid on
        white, 16-bit values are scaled down, and an animation gives its first frame.
    size: side of a square, or (width, height), in pixels; None keeps the picture's own.
    fit: "crop" keeps the centre; "pad" keeps everything and fills the rest with the picture
        mirrored at its edges, since bars of one colour would be drawn as part of the scene;
        "whole" keeps everything and the picture's own shape: `size` is then its long side, or a
        box that it is made to fit into. Only a side that would come out below 16 is made 16.

    Raises StylenbError, in one sentence, for what is missing, not a picture, damaged, smaller
    than 16 pixels on a side, larger than 100 megapixels or longer than 20:1.
    """
    read("fit", fit, Fit)
    size = None if size is None else check_size(size)
    picture = to_rgb(*read_picture(source))
    if size in (None, picture.size):
        return picture
    if fit == "crop":
        return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    if fit == "pad":
        return _pad(picture, size)
    scale = min(size[0] / picture.width, size[1] / picture.height)
    whole = [max(MIN_SIDE, round(side * scale)) for side in picture.size]
    return picture.resize(whole, Image.Resampling.LANCZOS)


def sample_photo(name: str, size: int | tuple[int, int] | None = None) -> Image.Image:
    """One of the free photographs in SAMPLE_PHOTOS, centre-cropped to `size` (see open_photo).

    They are files of the installed scikit-image package, so nothing is downloaded.
    """
    if name not in SAMPLE_PHOTOS:
        raise StylenbError(f"There is no photo {name!r}; choose one of {', '.join(SAMPLE_PHOTOS)}.")
    package = find_spec("skimage")  # finds the folder without the second that its import takes
    if package is None or package.origin is None:
        raise StylenbError(
            "The sample photos come with scikit-image: run `pip install -r requirements.txt`."
        )
    return open_photo(Path(package.origin).parent / "data" / _FILES.get(name, f"{name}.png"), size)


def to_tensor(pictures) -> torch.Tensor:
    """PIL picture(s) of one size -> float32 tensor (N, 3, H, W) in [-1, 1]."""
    import torch

    pictures = [pictures] if isinstance(pictures, Image.Image) else list(pictures)
    if not pictures:
        raise StylenbError("to_tensor needs at least one picture; the list is empty.")
    if any(not isinstance(p, Image.Image) for p in pictures):
        raise StylenbError("to_tensor takes PIL pictures: open each with open_photo first.")
    sizes = sorted({p.size for p in pictures})
    if len(sizes) > 1:
        raise StylenbError(
            f"Pictures of a batch must have one size, not {sizes}: use open_photo(..., size=...)."
        )
    array = np.stack([np.asarray(p.convert("RGB")) for p in pictures])
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def to_pictures(tensor: torch.Tensor) -> list[Image.Image]:
    """Tensor (N, 3, H, W) or (3, H, W) in [-1, 1] -> list of N RGB pictures; beyond is clipped.

    Raises StylenbError for another shape, and for NaN or infinity, which would come out black.
    """
    if tensor.ndim == 3:
        tensor = tensor[None]
    if tensor.ndim != 4 or tensor.shape[1] != 3:
        raise StylenbError(
            f"Pictures have the shape (N, 3, H, W), not {tuple(tensor.shape)}: "
            "latents must go through base.decode first."
        )
    tensor = tensor.detach().float().cpu()
    if not tensor.isfinite().all():
        raise StylenbError("A picture holds NaN or infinity: use float32 or a lower LoRA scale.")
    array = ((tensor.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(a) for a in np.ascontiguousarray(array)]


def check_size(size) -> tuple[int, int]:
    """(width, height) of what open_photo takes for a size; StylenbError for anything else."""
    pair = size if isinstance(size, (tuple, list)) else (size, size)
    whole = all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in pair)
    if len(pair) != 2 or not whole or min(pair) < MIN_SIDE or pair[0] * pair[1] > MAX_PIXELS:
        raise StylenbError(
            f"size must be a number of pixels or (width, height), each at least {MIN_SIDE} "
            f"and together under {MAX_PIXELS // 10**6} megapixels, not {size!r}."
        )
    return int(pair[0]), int(pair[1])


def _pad(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    whole = ImageOps.contain(picture, size, Image.Resampling.LANCZOS)
    extra_x, extra_y = size[0] - whole.width, size[1] - whole.height
    edges = ((extra_y // 2, extra_y - extra_y // 2), (extra_x // 2, extra_x - extra_x // 2), (0, 0))
    return Image.fromarray(np.pad(np.asarray(whole), edges, mode="symmetric"))
