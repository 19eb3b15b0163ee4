"""Pictures in, pictures out: whatever a camera or a phone made becomes an upright RGB picture."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from .errors import StylenbError

if TYPE_CHECKING:
    import torch

MIN_SIDE = 16  # pixels: two latents at factor 8
MAX_PIXELS = 100_000_000
MAX_ASPECT = 20
FITS = ("crop", "pad")
SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini")  # Windows puts them into folders

# Photographs that lie inside the scikit-image wheel itself; the others it lists are downloads.
# Their origins and free licences are in the docstrings of skimage.data.
_SAMPLE_FILES = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
    "motorcycle": "motorcycle_left.png",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "retina": "retina.jpg",
    "ihc": "ihc.png",
    "camera": "camera.png",
    "moon": "moon.png",
    "coins": "coins.png",
    "clock": "clock_motion.png",
    "cell": "cell.png",
    "brick": "brick.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
}
SAMPLE_PHOTOS: tuple[str, ...] = tuple(_SAMPLE_FILES)


def open_photo(source, size: int | tuple[int, int] | None = None, fit: str = "crop") -> Image.Image:
    """Open any picture as upright 8-bit RGB, and bring it to `size` pixels if one is given.

    source: path, bytes, binary file object, PIL picture, or array of shape (H, W), (H, W, 1),
        (H, W, 3) or (H, W, 4): uint8 in 0..255, uint16 in 0..65535, float in 0..1 or bool.
        EXIF orientation is applied, colour profiles are converted to sRGB, alpha is laid on
        white, 16-bit values are scaled down, and an animation gives its first frame.
    size: side of a square, or (width, height), in pixels; None keeps the picture's own.
    fit: "crop" keeps the centre; "pad" keeps everything and fills the rest with the picture
        mirrored at its edges, since bars of one colour would be drawn as part of the scene.

    Raises StylenbError, in one sentence, for what is missing, not a picture, damaged, smaller
    than 16 pixels on a side, larger than 100 megapixels or longer than 20:1.
    """
    _check_fit(fit)
    width_height = None if size is None else _check_size(size)
    picture, name = _read(source)
    picture = _to_rgb(picture, name)
    if width_height is None or width_height == picture.size:
        return picture
    if fit == "crop":
        return ImageOps.fit(picture, width_height, Image.Resampling.LANCZOS)
    return _pad(picture, width_height)


@dataclass(frozen=True, repr=False)
class PictureFolder:
    """What read_folder found: `names[i]` is the file of `pictures[i]`, `skipped` (file, why)."""

    folder: Path
    pictures: list[Image.Image]
    names: list[str]
    skipped: list[tuple[str, str]]

    def __repr__(self) -> str:
        return self.table()

    def __len__(self) -> int:
        return len(self.pictures)

    def table(self, most: int = 4) -> str:
        """How many files were used, and how many were skipped for which reason; of each, the
        first `most` by name."""
        groups = {"used": self.names}
        for name, reason in self.skipped:
            groups.setdefault(f"skipped, {reason}", []).append(name)
        width = max(map(len, groups))
        lines = [f"{str(self.folder)!r}"]
        for kind, names in groups.items():
            more = [f"and {len(names) - most} more"] if len(names) > most else []
            shown = ", ".join([_printable(name) for name in names[:most]] + more)
            lines.append(f"{len(names):5}  {kind:{width}}  {shown}".rstrip())
        return "\n".join(lines)


def read_folder(
    folder: str | os.PathLike,
    size: int | tuple[int, int] | None,
    fit: str = "crop",
    minimum: int = 4,
) -> PictureFolder:
    """Every picture of a folder in the order of their names, each as open_photo gives it.

    What is no picture that can be used is skipped, with the reason: hidden and system files,
    folders in it (they are not entered), text, damaged, too small, too large. Nothing on the disk
    is changed. Show the result, or print its `.table()`, to see what became of each file.

    Raises StylenbError if the folder cannot be read or holds fewer than `minimum` pictures.
    """
    _check_fit(fit)
    if size is not None:
        _check_size(size)
    path, files = _list_folder(folder)
    found = PictureFolder(path, [], [], [])
    for file in files:
        try:
            reason = _reason_to_skip(file)
            if not reason:
                found.pictures.append(open_photo(file, size, fit))
                found.names.append(file.name)
        except StylenbError as error:
            reason = getattr(error, "reason", "cannot be read")
        if reason:
            found.skipped.append((file.name, reason))
    if len(found) < minimum:
        raise StylenbError(_too_few(found, minimum))
    return found


def _list_folder(folder) -> tuple[Path, list[Path]]:
    if not isinstance(folder, (str, os.PathLike)):
        raise StylenbError(f"A folder is given by its path, not as {type(folder).__name__}.")
    path = Path(os.fsdecode(folder)).expanduser()
    name = f"'{_printable(str(path))}'"
    try:
        return path, sorted(path.iterdir(), key=lambda file: file.name)
    except FileNotFoundError as error:
        raise StylenbError(f"There is no folder {name}: check the path.") from error
    except NotADirectoryError as error:
        raise StylenbError(f"{name} is no folder: name the one that holds the pictures.") from error
    except (OSError, ValueError) as error:
        raise StylenbError(f"{name} cannot be read ({error}): check the path.") from error


def _reason_to_skip(file: Path) -> str:
    """Why the file is not even opened; "" if it is worth a try."""
    if file.name.startswith("."):
        return "hidden"
    if file.name.lower() in SYSTEM_FILES:
        return "made by the system"
    try:
        return "a folder" if file.is_dir() else ""
    except OSError:
        return "cannot be read"


def _too_few(found: PictureFolder, minimum: int) -> str:
    reasons = [reason for _, reason in found.skipped]
    counts = ", ".join(f"{reasons.count(r)} {r}" for r in dict.fromkeys(reasons))
    pictures = f"{len(found) or 'no'} picture{'' if len(found) == 1 else 's'} that can be used"
    advice = f"put {minimum - len(found)} more JPEG, PNG or WebP files there"
    if not found.pictures and "a folder" in reasons:
        advice = "name the folder inside it in which the pictures lie"
    return (
        f"'{_printable(str(found.folder))}' holds {pictures}, of the {minimum} that are needed "
        f"(skipped: {counts or 'nothing'}): {advice}."
    )


def _printable(name: str) -> str:
    """A file's name, fit for one line of text on any screen."""
    return "".join(c if c.isprintable() else "?" for c in name)


def sample_photo(name: str, size: int | tuple[int, int] | None = None) -> Image.Image:
    """One of the free photographs in SAMPLE_PHOTOS, centre-cropped to `size` (see open_photo).

    They are files of the installed scikit-image package, so nothing is downloaded.
    """
    if name not in _SAMPLE_FILES:
        raise StylenbError(
            f"There is no sample photo {name!r}; choose one of {', '.join(SAMPLE_PHOTOS)}."
        )
    package = find_spec("skimage")  # finds the folder without the second that its import takes
    if package is None or package.origin is None:
        raise StylenbError(
            "The sample photos come with scikit-image: run `pip install -r requirements.txt`."
        )
    return open_photo(Path(package.origin).parent / "data" / _SAMPLE_FILES[name], size)


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
            f"All pictures of a batch must have one size, these have {sizes}: "
            "open them with open_photo(..., size=...)."
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
        raise StylenbError(
            "The picture holds NaN or infinity: use float32 (dtype) or a lower LoRA scale."
        )
    array = ((tensor.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(a) for a in np.ascontiguousarray(array)]


def _check_fit(fit) -> None:
    if fit not in FITS:
        raise StylenbError(f"fit must be one of {', '.join(map(repr, FITS))}, not {fit!r}.")


def _check_size(size) -> tuple[int, int]:
    pair = size if isinstance(size, (tuple, list)) else (size, size)
    whole = all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in pair)
    if len(pair) != 2 or not whole or min(pair) < MIN_SIDE or pair[0] * pair[1] > MAX_PIXELS:
        raise StylenbError(
            f"size must be a number of pixels or (width, height), each at least {MIN_SIDE} "
            f"and together under {MAX_PIXELS // 10**6} megapixels, not {size!r}."
        )
    return int(pair[0]), int(pair[1])


def _read(source) -> tuple[Image.Image, str]:
    """The picture, decoded but in its own mode, and a name for error sentences."""
    if isinstance(source, Image.Image):
        return _load(source, "The picture"), "The picture"
    if isinstance(source, np.ndarray):
        return _from_array(source), "The array"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), "The picture"), "The picture"
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        name = f"'{name}'" if isinstance(name, str) else "The picture"
        try:
            data = source.read()
        except (OSError, ValueError) as error:
            raise StylenbError(f"{name} cannot be read ({error}): open it again.") from error
        if not isinstance(data, bytes):
            raise StylenbError(f"{name} is open as text: open it in binary mode, 'rb'.")
        return _decode(io.BytesIO(data), name), name
    if not isinstance(source, (str, os.PathLike)):
        raise StylenbError(
            f"A photo is a path, bytes, a binary file, a PIL picture or a numpy array, "
            f"not {type(source).__name__}."
        )
    text = os.fspath(source)
    if isinstance(text, str) and "://" in text:
        raise StylenbError(f"'{text}' is a web address: download the photo first, then pass it.")
    path, name = Path(os.fsdecode(text)).expanduser(), f"'{os.fsdecode(text)}'"
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
        raise _unusable("empty", f"{name} is empty: copy or download it again.")
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS rules
            picture = Image.open(file)
    except UnidentifiedImageError as error:
        raise _unusable(
            "not a picture that can be read here",
            f"{name} is not a picture that can be read here: give a JPEG, PNG or WebP file "
            "(export HEIC, RAW and SVG as one of them).",
        ) from error
    except Exception as error:
        raise _decoding_error(name, error) from error
    return _load(picture, name)


def _unusable(reason: str, message: str) -> StylenbError:
    """The error, and in a few words for the table of read_folder why the file is of no use."""
    error = StylenbError(message)
    error.reason = reason
    return error


def _decoding_error(name: str, error: Exception) -> StylenbError:
    """For whatever Pillow raised: each of its decoders has errors of its own."""
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(name)
    return _unusable(
        "damaged or cut off",
        f"{name} is damaged or cut off ({error}): copy or download it again.",
    )


def _too_large(name: str) -> StylenbError:
    limit = f"{MAX_PIXELS // 10**6} megapixels"
    return _unusable(
        f"too large (over {limit})",
        f"{name} has more than {limit}: make it smaller first, a side of 2000 pixels is plenty.",
    )


def _check_dimensions(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise _too_large(name)
    if min(width, height) < MIN_SIDE:
        raise _unusable(
            f"too small (under {MIN_SIDE} pixels)",
            f"{name} is {width} x {height} pixels: it needs at least {MIN_SIDE} on each side.",
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise _unusable(
            f"too long (over {MAX_ASPECT}:1)",
            f"{name} is {width} x {height} pixels, longer than {MAX_ASPECT}:1: crop it first.",
        )


def _load(picture: Image.Image, name: str) -> Image.Image:
    """Check what the header says, then decode the first frame and turn it upright."""
    _check_dimensions(*picture.size, name)
    try:
        if getattr(picture, "is_animated", False):
            picture.seek(0)
        picture.load()
    except Exception as error:
        raise _decoding_error(name, error) from error
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return picture


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    profile = picture.info.get("icc_profile")
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _to_8_bit(picture, name)
    if picture.mode in ("P", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode in ("RGBA", "LA", "RGBa", "La"):
        # RGBa and La (premultiplied) convert only to their straight twins
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture).convert("RGB")
    if profile and picture.mode in ("RGB", "CMYK", "LAB"):
        picture = _to_srgb(picture, profile)
    try:
        rgb = picture.convert("RGB")
    except ValueError as error:
        raise StylenbError(
            f"{name} has the colour mode {picture.mode}: save it as an RGB picture first."
        ) from error
    rgb = rgb.copy() if rgb is picture else rgb
    rgb.info = {}  # the old profile, transparency or EXIF would be wrong for these pixels
    return rgb


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(
            picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError):  # a broken profile, or one of another colour space
        return picture


def _to_8_bit(picture: Image.Image, name: str) -> Image.Image:
    """Gray of 16 or 32 bits, or float, to 8 bits: scaled by the range that the values suggest."""
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise StylenbError(f"{name} holds NaN or infinity: replace them first.")
    values = values.clip(0)
    highest = float(values.max())
    if picture.mode.startswith("I;16"):
        top = 65535.0
    elif picture.mode == "F" and highest <= 1:
        top = 1.0
    else:  # Pillow before 11 opens a 16-bit file as "I"
        top = next((t for t in (255.0, 65535.0) if highest <= t), highest)
    return Image.fromarray((values * (255 / top)).round().astype(np.uint8))


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise StylenbError(
            f"An array must have the shape (H, W), (H, W, 3) or (H, W, 4), not {array.shape}: "
            "move the channels to the end, and pass one picture at a time."
        )
    _check_dimensions(array.shape[1], array.shape[0], "The array")
    kind = array.dtype.kind
    if kind not in "buif":
        raise StylenbError(f"An array of {array.dtype} is no picture: pass uint8 or float.")
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


def _pad(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    whole = ImageOps.contain(picture, size, Image.Resampling.LANCZOS)
    extra_x, extra_y = size[0] - whole.width, size[1] - whole.height
    edges = ((extra_y // 2, extra_y - extra_y // 2), (extra_x // 2, extra_x - extra_x // 2), (0, 0))
    return Image.fromarray(np.pad(np.asarray(whole), edges, mode="symmetric"))
