"""Whatever holds a picture (files, bytes, arrays), read by Pillow, turned upright and into sRGB.

What cannot be used is refused with one sentence, whose error has a `reason` of a few words too.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from .errors import StylenbError
from .limits import as_path

MIN_SIDE = 16  # pixels: two latents at factor 8
MAX_PIXELS = 100_000_000
MAX_ASPECT = 20
MAX_TEXT = 256_000_000  # bytes in a PNG's texts and profiles; ComfyUI and Photoshop write many
TOO_LARGE = (  # the reason, and what to do
    f"too large (over {MAX_PIXELS // 10**6} megapixels)",
    "make it smaller first, a side of 2000 pixels is plenty",
)


def read_picture(source) -> tuple[Image.Image, str]:
    """The picture, decoded but in its own mode, and a name for error sentences."""
    name = "The picture"
    if isinstance(source, Image.Image):
        return _load(source, name), name
    if isinstance(source, np.ndarray):
        return _from_array(source), "The array"
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = io.BytesIO(source)
    if hasattr(source, "read"):
        if isinstance(getattr(source, "name", None), str):
            name = f"'{source.name}'"
        try:
            data = source.read()
        except (OSError, ValueError) as error:
            raise StylenbError(f"{name} cannot be read ({error}): open it again.") from error
        if not isinstance(data, bytes):
            raise StylenbError(f"{name} is open as text: open it in binary mode, 'rb'.")
        return _decode(io.BytesIO(data), name), name
    if not isinstance(source, (str, os.PathLike)):
        raise StylenbError(
            "A photo is a path, bytes, a binary file, a PIL picture or a numpy array, "
            f"not {type(source).__name__}."
        )
    text = os.fsdecode(source)
    if "://" in text:
        raise StylenbError(f"'{text}' is a web address: download the photo first, then pass it.")
    path, name = as_path(text), f"'{text}'"
    try:
        if path.is_dir():
            raise StylenbError(f"{name} is a folder: name one photo inside it.")
        if not path.exists():
            raise StylenbError(f"There is no file {name}: check the path.")
        if not path.is_file():
            raise StylenbError(f"{name} is not a file: name a photo.")
        with open(path, "rb") as file:
            return _decode(file, name), name
    except StylenbError:
        raise
    except (OSError, ValueError) as error:  # no permission, name too long, a null byte
        raise StylenbError(f"{name} cannot be read ({error}): check the path.") from error


def _decode(file, name: str) -> Image.Image:
    if not file.read(1):
        raise _unusable(name, "empty", "copy or download it again")
    file.seek(0)
    with _decoding(name):
        picture = Image.open(file)
    return _load(picture, name)


def _load(picture: Image.Image, name: str) -> Image.Image:
    """Check what the header says, then decode the first frame and turn it upright."""
    _check_dimensions(*picture.size, name)
    with _decoding(name):
        if getattr(picture, "is_animated", False):
            picture.seek(0)
        picture.load()
    with suppress(Exception):  # a broken EXIF block says nothing about the pixels
        picture = ImageOps.exif_transpose(picture)
    return picture


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Whatever Pillow raises inside is one sentence: each of its decoders has errors of its own."""
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS rules
            PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT
            yield
    except UnidentifiedImageError as error:
        advice = "give a JPEG, PNG or WebP file (export HEIC, RAW and SVG as one of them)"
        raise _unusable(name, "not a picture that can be read here", advice) from error
    except Image.DecompressionBombError as error:
        raise _unusable(name, *TOO_LARGE) from error
    except Exception as error:
        if "MAX_TEXT" in str(error):
            advice = "save it again without its texts (metadata)"
            raise _unusable(name, f"full of text (over {MAX_TEXT >> 20} MB)", advice) from error
        advice = f"copy or download it again ({error})"
        raise _unusable(name, "damaged or cut off", advice) from error
    finally:
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = limits


def _unusable(name: str, reason: str, advice: str) -> StylenbError:
    """The error of a file that is of no use; its `reason` is for the table of read_folder."""
    error = StylenbError(f"{name} is {reason}: {advice}.")
    error.reason = reason
    return error


def _check_dimensions(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise _unusable(name, *TOO_LARGE)
    if min(width, height) < MIN_SIDE:
        advice = f"it has {width} x {height} pixels and needs at least {MIN_SIDE} on each side"
        raise _unusable(name, f"too small (under {MIN_SIDE} pixels)", advice)
    if max(width, height) > MAX_ASPECT * min(width, height):
        advice = f"it has {width} x {height} pixels, crop its longer side first"
        raise _unusable(name, f"too long (over {MAX_ASPECT}:1)", advice)


def to_rgb(picture: Image.Image, name: str) -> Image.Image:
    """The picture in 8-bit sRGB, alpha laid on white; `name` stands for it in error sentences."""
    profile = picture.info.get("icc_profile")
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _to_8_bit(picture, name)
    clear = picture.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, whose upper half was read
        picture.info["transparency"] = tuple(value >> 8 for value in clear)
    if picture.mode in ("P", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode in ("RGBA", "LA", "RGBa", "La"):
        # RGBa and La (premultiplied) convert only to their straight twins
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture).convert("RGB")
    if profile and picture.mode in ("RGB", "CMYK", "LAB"):
        srgb = ImageCms.createProfile("sRGB")
        with suppress(ImageCms.PyCMSError):  # a broken profile, or one of another colour space
            picture = ImageCms.profileToProfile(
                picture, io.BytesIO(profile), srgb, outputMode="RGB"
            )
    try:
        rgb = picture.convert("RGB")
    except ValueError as error:
        raise StylenbError(
            f"{name} has the colour mode {picture.mode}: save it as an RGB picture first."
        ) from error
    rgb.info = {}  # the old profile, transparency or EXIF would be wrong for these pixels
    return rgb


def _to_8_bit(picture: Image.Image, name: str) -> Image.Image:
    """Gray of 16 or 32 bits, or float, to 8 bits: scaled by the range that the values suggest."""
    values, clear = np.asarray(picture).astype(np.float64), picture.info.get("transparency")
    if not np.isfinite(values).all():
        raise StylenbError(f"{name} holds NaN or infinity: replace them first.")
    values = values.clip(0)
    # Pillow before 11 opens a 16-bit file as "I"; the other modes are "I;16" and its kind.
    tops = {"F": (1, 255, 65535), "I": (255, 65535)}.get(picture.mode, (65535,))
    top = next((t for t in tops if values.max() <= t), values.max())
    grey = Image.fromarray((values * (255 / top)).round().astype(np.uint8))
    if isinstance(clear, int):  # the grey value that stands for no colour at all
        grey = Image.merge("LA", (grey, Image.fromarray(255 * (values != clear).astype(np.uint8))))
    return grey


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim < 2 or array.shape[2:] not in ((), (3,), (4,)):
        raise StylenbError(
            f"An array must have the shape (H, W), (H, W, 3) or (H, W, 4), not {array.shape}: "
            "move the channels to the end, and pass one picture at a time."
        )
    _check_dimensions(array.shape[1], array.shape[0], "The array")
    kind = array.dtype.kind
    if kind not in "buif":
        raise StylenbError(f"An array of {array.dtype} is not a picture: pass uint8 or float.")
    if kind == "f" and not np.isfinite(array).all():
        raise StylenbError("The array holds NaN or infinity: replace them first.")
    # float pictures come as 0..1, by scikit-image's convention
    top = {"b": 1, "f": 1}.get(kind, 65535 if array.dtype == np.uint16 else 255)
    low, high = float(array.min()), float(array.max())
    if low < -1e-3 * top or high > 1.001 * top:
        raise StylenbError(
            f"An array of {array.dtype} must lie in 0..{top}, not {low:g}..{high:g}: rescale it "
            "(tensors in [-1, 1] go through to_pictures)."
        )
    scaled = array.astype(np.float32) * (255 / top)
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
