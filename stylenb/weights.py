"""Where the weights of a base lie, and how they are read: a folder in the layout of diffusers, that
of Stable Diffusion v1.5 on this machine or on the hub, and TAESD. (A single file: single_file.py.)

Only safetensors are read. Nothing but "sd15" and TAESD ever asks the network.
"""

from __future__ import annotations

import json
import os
import socket
import warnings
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from .errors import StylenbError
from .limits import as_path

DATA = Path(__file__).resolve().parent.parent / "data"
SD15_VARIABLE = "STYLENB_SD15"
SD15_HUB_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD15_REVISION = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
SD15_TEXT_WIDTH = 768  # cross_attention_dim: the width of CLIP ViT-L/14's text encoder
SD15_SIZES = {  # of its configs, where they differ from the defaults of the classes
    "side": 512,
    "unet": {"sample_size": 64, "cross_attention_dim": 768},
    "vae": {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    },
    "text": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
}
TAESD_VARIABLE = "STYLENB_TAESD"
TAESD_HUB_ID = "madebyollin/taesd"
KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_DEPTH = 6  # models/<owner>/<model>/<framework>/<variation>/<version>
WEIGHT_FILES = {  # of each part, less their ending
    "vae": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
    "text_encoder": "model",
}


def data_file(*parts: str) -> Path:
    """What lies in the data folder. Raises StylenbError when it is not there."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        raise StylenbError(
            f"{path} is missing: clone the whole repository, its data folder included."
        )
    return path


def available_styles() -> dict[str, Path]:
    """The shipped styles: name -> file in data/loras."""
    return {path.stem: path for path in sorted((DATA / "loras").glob("*.safetensors"))}


def find_folder(name_or_path: str | os.PathLike, half: bool) -> Path:
    """Where a base is: "pocket", "sd15" (downloaded where it must be), or the path of a folder or
    of a single file.

    half: whether to download half precision. Raises StylenbError for what is none of these.
    """
    if name_or_path == "pocket":
        return data_file("pocket-sd")
    if name_or_path == "sd15":
        return _sd15_folder(half)
    try:
        folder = as_path(name_or_path)
    except TypeError as error:
        raise StylenbError(
            f"A base is 'pocket', 'sd15' or a path, not {name_or_path!r}."
        ) from error
    if not folder.exists():
        raise StylenbError(
            f"There is no base '{folder}': choose 'pocket', 'sd15', the path of a folder in the "
            "diffusers layout, or of a .safetensors file in that of the original code."
        )
    return _snapshot(folder)


def _snapshot(folder: Path) -> Path:
    """The model itself in a folder of the hub's cache, models--OWNER--NAME; others as they are."""
    if not (folder / "snapshots").is_dir() or (folder / "model_index.json").is_file():
        return folder
    main = folder / "refs" / "main"
    if main.is_file() and (wanted := folder / "snapshots" / main.read_text().strip()).is_dir():
        return wanted
    found = sorted((folder / "snapshots").iterdir(), key=lambda one: one.stat().st_mtime)
    if not found:
        raise _incomplete(f"'{folder}' is a folder of the hub's cache without a snapshot")
    return found[-1]


def find_sd15() -> tuple[str, Path] | None:
    """Where a local Stable Diffusion v1.5 is, without asking the network: (origin, folder)."""
    if said := os.environ.get(SD15_VARIABLE, "").strip(" \"'"):  # quotes that %env leaves
        return f"the environment variable {SD15_VARIABLE}", _snapshot(as_path(said))
    for depth in range(KAGGLE_DEPTH + 1):
        for index in sorted(KAGGLE_INPUT.glob("*/" * depth + "model_index.json")):
            safe = any(index.parent.glob("unet/*.safetensors"))
            if safe and _text_width(index.parent) == SD15_TEXT_WIDTH:
                return "an attached Kaggle input", index.parent
    return None


def _config(folder: Path, part: str, file: str = "config.json") -> dict:
    return json.loads((folder / part / file).read_text(encoding="utf-8"))


def _text_width(folder: Path) -> int | None:
    try:
        return _config(folder, "unet")["cross_attention_dim"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sd15_folder(half: bool) -> Path:
    found = find_sd15()
    if found is None:
        return _download_sd15(half)
    origin, folder = found
    if not folder.exists():
        raise StylenbError(
            f"{folder}, from {origin}, is not there: name a folder that holds model_index.json, or "
            "a .safetensors file."
        )
    if (folder / "unet").is_dir() and _text_width(folder) != SD15_TEXT_WIDTH:
        raise StylenbError(
            f"{folder}, from {origin}, is not Stable Diffusion v1.5: its unet/config.json does "
            f"not have cross_attention_dim {SD15_TEXT_WIDTH}, so name another folder."
        )
    return folder


def _download_sd15(half: bool) -> Path:
    from huggingface_hub import snapshot_download

    suffix = ".fp16.safetensors" if half else ".safetensors"
    files = [f"{part}/{stem}{suffix}" for part, stem in WEIGHT_FILES.items()]
    try:
        folder = snapshot_download(
            SD15_HUB_ID,
            revision=SD15_REVISION,
            allow_patterns=["model_index.json", "*/*config.json", "tokenizer/*", *files],
            ignore_patterns=["safety_checker/*", "feature_extractor/*"],
            local_files_only=offline(),
        )
    except Exception as error:  # no network, no disk, a proxy: the ways out are the same
        raise StylenbError(
            f"Stable Diffusion v1.5 is not on this machine and could not be downloaded "
            f"({type(error).__name__}): switch the internet on, or attach the model as a Kaggle "
            f"input, or set {SD15_VARIABLE} to a folder that holds it."
        ) from error
    return Path(folder)


def offline() -> bool:
    """Whether the hub is out of reach, seen at once: its own five retries take half a minute."""
    from huggingface_hub import constants

    # huggingface_hub reads the variable once, when it is imported; it may have been set since
    said = os.environ.get("HF_HUB_OFFLINE", "").upper()
    if constants.HF_HUB_OFFLINE or said in ("1", "ON", "YES", "TRUE"):
        return True
    if getproxies().keys() & {"https", "all"}:
        return False
    hub = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((hub.hostname, hub.port or 443), timeout=3).close()
    except OSError:
        return True
    return False


def load_taesd(device, dtype):
    """TAESD's decoder, latents as they are -> images in [-1, 1]; None where it cannot be had."""
    from diffusers import AutoencoderTiny

    try:
        tiny = AutoencoderTiny.from_pretrained(
            os.path.expanduser(os.environ.get(TAESD_VARIABLE, TAESD_HUB_ID)),
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=offline(),
        )
    except Exception as error:  # no network, no such folder: it only costs time
        warnings.warn(
            f"TAESD could not be loaded ({type(error).__name__}), so losses use the whole decoder, "
            f"which takes longer: set {TAESD_VARIABLE} to a folder that holds it.",
            stacklevel=2,
        )
        return None
    tiny = tiny.requires_grad_(False).eval().to(device)
    return lambda latents: tiny.decode(latents).sample


def load_parts(folder: Path, device, dtype) -> dict:
    """The parts of the model in a folder, by name: vae, unet, text_encoder, tokenizer, scheduler.

    Raises StylenbError for a folder in another layout, for another kind of model, and for weights
    that are missing, pickled or damaged.
    """
    if not (folder / "model_index.json").is_file():
        raise StylenbError(
            f"'{folder}' is not in the diffusers layout (it has no model_index.json): name the "
            "folder that StableDiffusionPipeline.save_pretrained wrote."
        )
    _check_kind(folder)
    for part in (*WEIGHT_FILES, "tokenizer", "scheduler"):
        if not (folder / part).is_dir():
            raise _incomplete(f"'{folder}' has no {part}")
    variants = {part: _weights_variant(folder, part, dtype.itemsize == 2) for part in WEIGHT_FILES}

    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    classes = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    here, parts = {"local_files_only": True}, {}
    try:
        with _no_progress_bars():
            for part, one in classes.items():
                how = {"variant": variants[part], "torch_dtype": dtype, "use_safetensors": True}
                parts[part] = one.from_pretrained(folder / part, **how, **here).to(device)
        parts["tokenizer"] = CLIPTokenizer.from_pretrained(folder / "tokenizer", **here)
        # SD's latents go beyond [-1, 1], where DDIM's default would clip them
        config = DDIMScheduler.load_config(folder / "scheduler")
        parts["scheduler"] = DDIMScheduler.from_config(config, clip_sample=False)
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise StylenbError(
            f"'{folder}' cannot be loaded ({type(error).__name__}: {first}): download or copy "
            "the whole model folder again, or choose another device if memory ran out."
        ) from error
    for part in classes:
        if not all(p.isfinite().all() for p in parts[part].parameters()):
            raise _incomplete(f"The weights in '{folder / part}' hold NaN or infinity as {dtype}")
    return parts


def _incomplete(what: str) -> StylenbError:
    return StylenbError(f"{what}: download or copy the whole model folder again.")


@contextmanager
def _no_progress_bars():
    """Without bars that take longer to read than the weights to load."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [log for log in (of_diffusers, of_transformers) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


def _weights_variant(folder: Path, part: str, half: bool) -> str | None:
    """None or "fp16": which safetensors of a part to read. Raises if there are none."""
    stem = WEIGHT_FILES[part]
    found = [p for p in (folder / part).glob(f"{stem}*.safetensors") if "non_ema" not in p.name]
    in_half = [".fp16" in path.name for path in found]
    if found:
        fp16 = all(in_half) or (half and any(in_half))
        for path, is_half in zip(found, in_half, strict=True):
            if is_half == fp16:
                _refuse_stand_in(path)
        return "fp16" if fp16 else None
    if any((folder / part).glob("*.bin")):
        raise StylenbError(
            f"'{folder / part}' holds only pickled weights (.bin), which can run any code when "
            "opened: get the safetensors version of the model."
        )
    raise _incomplete(f"'{folder / part}' has no {stem}.safetensors")


def _check_kind(folder: Path) -> None:
    """Refuse, by their names, models of another kind, some of which load but then draw noise."""
    try:
        name = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
        if (folder / "transformer").is_dir() and not (folder / "unet").is_dir():
            raise _other_kind(folder, str(name).removesuffix("Pipeline"))
        if not (folder / "unet").is_dir() or not (folder / "scheduler").is_dir():
            return  # load_parts says so
        unet = _config(folder, "unet")
        schedule = _config(folder, "scheduler", "scheduler_config.json")
        kinds = {
            "Stable Diffusion XL": unet.get("addition_embed_type") is not None,
            "an inpainting model": unet.get("in_channels", 4) != 4,
            "Stable Diffusion 2": schedule.get("prediction_type", "epsilon") != "epsilon"
            or unet.get("cross_attention_dim") == 1024,
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        if isinstance(error, StylenbError):
            raise
        raise _incomplete(f"A config of '{folder}' cannot be read ({error})") from error
    for kind, found in kinds.items():
        if found:
            raise _other_kind(folder, kind)


def _other_kind(folder: Path, kind: str) -> StylenbError:
    return StylenbError(
        f"'{folder}' is another kind of model ({kind}): this course works with those of the SD v1 "
        "kind, which predict the noise of 4-channel latents."
    )


def open_safetensors(path: Path):
    """safetensors' reader of a file, for a with statement. Raises StylenbError for another
    kind of file."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        if path.is_file():
            _refuse_stand_in(path)
        raise StylenbError(
            f"{path.name} cannot be read as safetensors ({error}): download or train it again."
        ) from error


def _refuse_stand_in(path: Path) -> None:
    """Raise StylenbError, with its true name, for what is often found under the name of weights."""
    with path.open("rb") as file:
        first = file.read(40).lstrip().lower()
    found = None
    if not first:
        found = "is empty (0 bytes): download or train it again"
    elif first.startswith(b"version https://git-lfs"):
        found = (
            "is a pointer of git LFS, not the file itself: run `git lfs pull` where it was cloned, "
            "or download it from its page"
        )
    elif first.startswith((b"<!doctype", b"<html", b"<?xml")):
        found = (
            "is a web page (HTML), such as one that asks to log in, saved under this name: "
            "download the file itself"
        )
    elif first[:2] == b"pk" or (first[:1] == b"\x80" and first[1:2] <= b"\x05"):
        found = (
            "is not safetensors, as its name says, but a pickled file, which could run code when "
            "it is opened: find or save it as safetensors"
        )
    if found:
        raise StylenbError(f"{path.name} {found}.")
