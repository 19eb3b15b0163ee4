"""A base model: the autoencoder, the UNet, the text encoder and the schedule, loaded and ready.

The parts are those of latent diffusion (Rombach et al. 2022, https://arxiv.org/abs/2112.10752),
in the classes and the folder layout of diffusers. Whether they are the pocket model of this
repository or Stable Diffusion v1.5 makes no difference to the caller.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import StylenbError

if TYPE_CHECKING:
    import torch

DATA = Path(__file__).resolve().parent.parent / "data"
SD15_VARIABLE = "STYLENB_SD15"
SD15_HUB_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD15_REVISION = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
SD15_TEXT_WIDTH = 768  # cross_attention_dim: the width of CLIP ViT-L/14's text encoder
TAESD_VARIABLE = "STYLENB_TAESD"
TAESD_HUB_ID = "madebyollin/taesd"
SOLVER_STEPS = {"ddim": 30, "inversion": 20, "dpm": 10}  # of the whole schedule, unless told
KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_DEPTH = 6  # models/<owner>/<model>/<framework>/<variation>/<version>
_WEIGHTS = {
    "vae": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
    "text_encoder": "model",
}


class Base:
    """The parts of a latent diffusion model, frozen, in evaluation mode, on one device.

    name, folder: what was asked for and where it was found.
    vae, unet, scheduler: AutoencoderKL, UNet2DConditionModel, DDIMScheduler.
    tokenizer, text_encoder: CLIPTokenizer, CLIPTextModel; None after drop_text_encoder().
    device, dtype: where the parts are and their precision.
    image_size: side in pixels of the square that the UNet was trained on.
    prompt: what stands in for "", see with_prompt; None is "".
    factor: pixels per latent along a side (8).

    Gradients are left to the caller: the weights do not require any, but they flow through
    encode, decode, embed and predict_noise to whatever does.
    """

    def __init__(self, name, folder, vae, unet, scheduler, tokenizer, text_encoder, device, dtype):
        self.name, self.folder = name, folder
        self.vae, self.unet, self.scheduler = vae, unet, scheduler
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.device, self.dtype = device, dtype
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_size = int(unet.config.sample_size) * self.factor
        self.tiny_decoder = None
        self.prompt = self._embedding = self._empty = None
        for part in (vae, unet, text_encoder):
            part.requires_grad_(False).eval()

    def __repr__(self) -> str:
        return (
            f"Base({self.name!r}, {self.image_size} px, {self.device}, "
            f"{str(self.dtype).removeprefix('torch.')}, from {self.folder})"
        )

    def encode(
        self, images: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> latents (N, 4, H/8, W/8), times the scaling factor.

        The mean of the posterior, or a sample from it if a generator is given.
        Raises StylenbError for another shape, sides that are no multiple of 8, or another range.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise StylenbError(
                f"encode takes images of the shape (N, 3, H, W), not {tuple(images.shape)}."
            )
        if any(side % self.factor for side in images.shape[2:]):
            raise StylenbError(
                f"The sides of an image must be multiples of {self.factor}, not "
                f"{tuple(images.shape[2:])}: open it with open_photo(..., size=base.image_size)."
            )
        if not images.detach().abs().max() < 1.5:  # "not <" so that NaN is caught too
            raise StylenbError("encode takes images in [-1, 1]: make them with to_tensor.")
        posterior = self.vae.encode(images.to(self.device, self.dtype)).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return latents * self.vae.config.scaling_factor

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (N, 4, h, w) -> images (N, 3, 8h, 8w) in [-1, 1].

        A few values overshoot a little: clamping here would cut their gradient, and to_pictures
        clips them anyway.
        """
        self._check_latents(latents, "decode")
        scaled = latents.to(self.device, self.dtype) / self.vae.config.scaling_factor
        return self.vae.decode(scaled).sample

    def decode_quickly(self, latents: torch.Tensor) -> torch.Tensor:
        """As decode, by a tiny decoder where the base has one: for losses, not for looking at.

        For "sd15" that is TAESD (https://github.com/madebyollin/taesd, 6 % of the work), from the
        folder in STYLENB_TAESD or from the hub; without it, and for others, the base's own.
        """
        if self.name == "sd15" and self.tiny_decoder is None:
            self.tiny_decoder = _load_taesd(self.device, self.dtype) or self.decode
        if self.tiny_decoder is None:
            return self.decode(latents)
        self._check_latents(latents, "decode_quickly")
        return self.tiny_decoder(latents.to(self.device, self.dtype))

    def embed(self, prompt: str | list[str]) -> torch.Tensor:
        """Prompt(s) -> the text encoder's last hidden states (N, 77, C).

        Raises StylenbError once the text encoder was dropped; warns when a prompt is cut.
        """
        import torch

        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or any(not isinstance(p, str) for p in prompts):
            raise StylenbError("embed takes a prompt or a list of prompts, each a string.")
        if self.text_encoder is None:
            raise StylenbError(
                "The text encoder was dropped to save memory: load the base again to embed prompts."
            )
        length = self.text_encoder.config.max_position_embeddings
        tokens = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=False)
        ids = tokens["input_ids"]
        for text, one in zip(prompts, ids, strict=True):
            if len(one) > length:
                warnings.warn(
                    f"Only the first {length - 2} of {len(one) - 2} tokens of "
                    f"{text[:40]!r}... are read: shorten the prompt.",
                    stacklevel=2,
                )
                one[length - 1 :] = [self.tokenizer.eos_token_id]
        return self.text_encoder(torch.tensor(ids, device=self.device)).last_hidden_state

    @property
    def empty(self) -> torch.Tensor:
        """embed(""), (1, 77, C): what the model takes for "no prompt". Computed once."""
        import torch

        if self._empty is None:
            # A tensor made in inference mode could never take part in training later.
            with torch.inference_mode(False), torch.no_grad():
                self._empty = self.embed("")
        return self._empty

    def with_prompt(self, prompt: str) -> Base:
        """This base for a prompt: wherever it is given no embedding, this one stands in for "".

        So `stylize(photo, base=base.with_prompt("a sks style painting"))` redraws with the prompt.
        The parts are shared, not copied; the text encoder's embedding is the one of now.
        """
        import torch

        other = copy.copy(self)
        with torch.inference_mode(False), torch.no_grad():
            other.prompt, other._embedding = prompt, self.embed(prompt)
        return other

    @property
    def full_size(self) -> bool:
        """Whether this is a base of Stable Diffusion's size, for 512 px and more: the defaults of
        drawing and training are those customary for it, otherwise what suits a pocket model."""
        return self.image_size >= 512

    @property
    def default_solver(self) -> str:
        """What `denoise` draws with, see there."""
        return "ddim" if self.full_size else "inversion"

    @property
    def default_steps(self) -> int:
        """Steps of the whole schedule with that solver."""
        return SOLVER_STEPS[self.default_solver]

    @property
    def default_strength(self) -> float:
        """How far up the schedule to start with that solver."""
        return 0.6 if self.full_size else 0.8

    @property
    def default_guidance(self) -> float:
        """Guidance at which a prompt draws best: 7.5 is usual for SD, less suits a small model."""
        return 7.5 if self.full_size else 3.0

    def predict_noise(
        self,
        latents: torch.Tensor,
        timestep: int | torch.Tensor,
        embedding: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The UNet's estimate of the noise in noisy latents (N, 4, h, w); same shape and dtype.

        timestep: 0..999, one for all or a tensor (N,). embedding: (1 or N, 77, C); None is "", or
        the prompt of with_prompt.
        """
        import torch

        self._check_latents(latents, "predict_noise")
        count = latents.shape[0]
        last = self.scheduler.config.num_train_timesteps - 1
        if isinstance(timestep, int) and not 0 <= timestep <= last:
            raise StylenbError(f"A timestep lies in 0..{last}, not {timestep}.")
        timestep = torch.as_tensor(timestep, device=self.device)
        if timestep.ndim > 1 or (timestep.ndim == 1 and len(timestep) not in (1, count)):
            raise StylenbError(
                f"{count} latents need one timestep or {count}, not {tuple(timestep.shape)}."
            )
        if embedding is None:
            embedding = self.empty if self.prompt is None else self._embedding
        width = self.unet.config.cross_attention_dim
        if (
            embedding.ndim != 3
            or embedding.shape[0] not in (1, count)
            or embedding.shape[2] != width
        ):
            raise StylenbError(
                f"{count} latents need an embedding of the shape ({count}, 77, {width}), "
                f"not {tuple(embedding.shape)}: make it with base.embed."
            )
        noise = self.unet(
            latents.to(self.device, self.dtype),
            timestep.expand(count),
            encoder_hidden_states=embedding.to(self.device, self.dtype).expand(count, -1, -1),
        ).sample
        return noise.to(latents.dtype)

    @contextmanager
    def as_loaded(self) -> Iterator[None]:
        """Inside, the UNet is what it was when it was loaded: LoRAs add nothing, and weights that
        DreamBooth has replaced are the old ones.

        Raises StylenbError while a LoRA is merged.
        """
        from peft.tuners.lora import LoraLayer

        layers = [layer for layer in self.unet.modules() if isinstance(layer, LoraLayer)]
        if any(layer.merged for layer in layers):
            raise StylenbError(
                "A LoRA is merged, and the base is needed without it: unmerge_lora(base) first, or "
                "draw with solver='ddim' or 'dpm'."
            )
        originals = getattr(self.unet, "originals", {})
        weights = {p: p.data for n, p in self.unet.named_parameters() if plain_name(n) in originals}
        scales = [layer.scaling for layer in layers]
        try:
            for name, p in self.unet.named_parameters():
                if p in weights:
                    p.data = originals[plain_name(name)].to(p.device)
            for layer in layers:
                layer.scaling = dict.fromkeys(layer.scaling, 0.0)
            yield
        finally:
            for p, weight in weights.items():
                p.data = weight
            for layer, scale in zip(layers, scales, strict=True):
                layer.scaling = scale

    def drop_text_encoder(self) -> None:
        """Keep `empty` and free the tokenizer and text encoder: all that "no prompt" needs."""
        _ = self.empty
        self.tokenizer = self.text_encoder = None

    def _check_latents(self, latents: torch.Tensor, function: str) -> None:
        channels = self.unet.config.in_channels
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise StylenbError(
                f"{function} takes latents of the shape (N, {channels}, h, w), "
                f"not {tuple(latents.shape)}: images must go through base.encode first."
            )


def plain_name(name: str) -> str:
    """A weight's name, whatever peft has put around its layer and whichever transformers it is."""
    return name.replace(".base_layer", "").removeprefix("text_model.")


def fingerprint(base: Base) -> str:
    """A short name of the UNet's weights as they were loaded, to tell whether they are the same.

    Taken from the signs of some thousands of them, which no precision changes.
    """
    import torch

    originals, signs = getattr(base.unet, "originals", {}), []
    for name, p in base.unet.named_parameters():
        if p.ndim > 1 and ".lora_" not in name:
            numbers = originals.get(plain_name(name), p.detach()).flatten()
            signs.append(numbers[:: max(1, len(numbers) // 16)].signbit().cpu())
    return hashlib.sha256(torch.cat(signs).numpy().tobytes()).hexdigest()[:16]


def data_file(*parts: str) -> Path:
    """A file in the data folder. Raises StylenbError when it is not there."""
    path = DATA.joinpath(*parts)
    if not path.is_file():
        raise StylenbError(
            f"{path} is missing: clone the whole repository, its data folder included."
        )
    return path


def device_and_dtype(device=None) -> tuple[torch.device, torch.dtype, str]:
    """The device that really works, the precision that suits it, and the reason in words.

    `torch.cuda.is_available()` is True on a GPU that this build of torch has no kernels for, so
    each candidate has to do a small convolution and matrix product first. bfloat16 needs compute
    capability 8.0: on a T4 (7.5) it is emulated, whatever `is_bf16_supported()` says.

    Raises StylenbError if a device is named and does not work.
    """
    import torch

    if device is not None:
        try:
            wanted = torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise StylenbError(f"device must be 'cpu', 'cuda' or 'mps', not {device!r}.") from error
        dtype, why = _precision(wanted)
        failure = _probe(wanted, dtype)
        if failure:
            raise StylenbError(
                f"The device {str(wanted)!r} does not work ({failure}): leave device out to use "
                "the one that does."
            )
        return wanted, dtype, why
    failures = ""
    for kind, available in (
        ("cuda", torch.cuda.is_available),
        ("mps", torch.backends.mps.is_available),
    ):
        if not available():
            continue
        candidate = torch.device(kind)
        dtype, why = _precision(candidate)
        failure = _probe(candidate, dtype)
        if not failure:
            return candidate, dtype, why
        failures += f"; {kind} is there but fails: {failure}"
    cpu = torch.device("cpu")
    dtype, why = _precision(cpu)
    return cpu, dtype, why + failures


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the hardware really multiplies in it, else None: train in float32."""
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else None
    if device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)():
        return torch.bfloat16
    return None


def autocast(device: torch.device) -> torch.autocast:
    """The context to train in: the precision of autocast_dtype, or nothing where that is None."""
    import torch

    dtype = autocast_dtype(device)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def _precision(device: torch.device) -> tuple[torch.dtype, str]:
    import torch

    if device.type != "cuda":
        return torch.float32, f"float32 is what {device.type} does best"
    try:
        capability = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
    except (RuntimeError, AssertionError):  # no such GPU: the probe says so
        return torch.float32, ""
    number = ".".join(map(str, capability))
    if capability >= (8, 0):
        return torch.bfloat16, f"{name} has bfloat16 in hardware (compute capability {number})"
    return torch.float16, f"{name} has no bfloat16 in hardware (compute capability {number} < 8.0)"


def _probe(device: torch.device, dtype: torch.dtype) -> str:
    """Empty if the device does a small convolution and matrix product, else why it does not."""
    import torch

    try:
        ones = torch.ones(1, 4, 8, 8, device=device, dtype=dtype)
        kernel = torch.ones(4, 4, 3, 3, device=device, dtype=dtype)
        out = torch.nn.functional.conv2d(ones, kernel).flatten(1)
        result = (out @ out.T).float().cpu().item()
    except Exception as error:
        return str(error).strip().split("\n")[0] or type(error).__name__
    # 144 outputs of 4 * 3 * 3 ones each; bfloat16 keeps 8 bits
    return "" if abs(result / (144 * 36**2) - 1) < 0.02 else "wrong results"


def load(
    name_or_path: str | os.PathLike = "pocket", device=None, dtype: torch.dtype | None = None
) -> Base:
    """Load a base: "pocket", "sd15", or any folder of an SD v1 model in the diffusers layout.

    "sd15" comes from the folder in the environment variable STYLENB_SD15, else an attached
    Kaggle input, else the Hugging Face hub (a pinned revision; half precision on a GPU).
    device, dtype: None chooses by what the machine really does, see device_and_dtype.

    Only safetensors are read and nothing but "sd15" ever asks the network. Raises StylenbError,
    in one sentence, for a name that is none of these and a folder that cannot be used.
    """
    device, chosen, _ = device_and_dtype(device)
    dtype = chosen if dtype is None else dtype
    if name_or_path == "pocket":
        folder = DATA / "pocket-sd"
        if not folder.is_dir():
            raise StylenbError(
                f"The pocket model is not at {folder}: clone the whole repository, its data "
                "folder included."
            )
    elif name_or_path == "sd15":
        folder = _sd15_folder(half=device.type != "cpu")
    else:
        folder = _user_folder(name_or_path)
    name = name_or_path if name_or_path in ("pocket", "sd15") else folder.name
    return _load_folder(str(name), folder, device, dtype)


def find_sd15() -> tuple[str, Path] | None:
    """Where a local Stable Diffusion v1.5 is, without asking the network: (origin, folder)."""
    if os.environ.get(SD15_VARIABLE):
        return f"the environment variable {SD15_VARIABLE}", Path(os.environ[SD15_VARIABLE])
    attached = _search_kaggle()
    return None if attached is None else ("an attached Kaggle input", attached)


def _search_kaggle() -> Path | None:
    level = [KAGGLE_INPUT]
    for _ in range(KAGGLE_DEPTH + 1):
        below = []
        for folder in level:
            if (folder / "model_index.json").is_file():
                if _text_width(folder) == SD15_TEXT_WIDTH and list(
                    (folder / "unet").glob("*.safetensors")
                ):
                    return folder
                continue
            try:
                below += sorted(Path(e.path) for e in os.scandir(folder) if e.is_dir())
            except OSError:
                continue
        level = below
    return None


def _json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def _text_width(folder: Path) -> int | None:
    try:
        return json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))[
            "cross_attention_dim"
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sd15_folder(half: bool) -> Path:
    found = find_sd15()
    if found is None:
        return _download_sd15(half)
    origin, folder = found
    if not folder.is_dir():
        raise StylenbError(
            f"{origin[0].upper()}{origin[1:]} names {folder}, which is no folder: set it to one "
            "that holds model_index.json."
        )
    if (folder / "unet").is_dir() and _text_width(folder) != SD15_TEXT_WIDTH:
        raise StylenbError(
            f"{folder} (from {origin}) is not Stable Diffusion v1.5: its unet/config.json does "
            f"not have cross_attention_dim {SD15_TEXT_WIDTH}, so name another folder."
        )
    return folder


def _download_sd15(half: bool) -> Path:
    from huggingface_hub import constants, snapshot_download

    suffix = ".fp16.safetensors" if half else ".safetensors"
    files = [f"{part}/{stem}{suffix}" for part, stem in _WEIGHTS.items()]
    # huggingface_hub reads the variable once, when it is imported; it may have been set since
    said = os.environ.get("HF_HUB_OFFLINE", "").upper()
    offline = constants.HF_HUB_OFFLINE or said in ("1", "ON", "YES", "TRUE")
    try:
        folder = snapshot_download(
            SD15_HUB_ID,
            revision=SD15_REVISION,
            allow_patterns=["model_index.json", "*/*config.json", "tokenizer/*", *files],
            ignore_patterns=["safety_checker/*", "feature_extractor/*"],
            local_files_only=offline,
        )
    except Exception as error:  # no network, no disk, a proxy: the ways out are the same
        raise StylenbError(
            f"Stable Diffusion v1.5 is not on this machine and could not be downloaded "
            f"({type(error).__name__}): switch the internet on, or attach the model as a Kaggle "
            f"input, or set {SD15_VARIABLE} to a folder that holds it."
        ) from error
    return Path(folder)


def _load_taesd(device, dtype):
    """TAESD's decoder, latents as they are -> images in [-1, 1]; None where it cannot be had."""
    from diffusers import AutoencoderTiny

    try:
        tiny = AutoencoderTiny.from_pretrained(
            os.environ.get(TAESD_VARIABLE, TAESD_HUB_ID), torch_dtype=dtype, use_safetensors=True
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


def _user_folder(name_or_path) -> Path:
    try:
        folder = Path(os.fsdecode(name_or_path)).expanduser()
    except TypeError as error:
        raise StylenbError(
            f"A base is 'pocket', 'sd15' or the path of a folder, not {name_or_path!r}."
        ) from error
    if folder.is_file():
        raise StylenbError(
            f"'{folder}' is a single file: turn it into a folder once with diffusers' "
            "StableDiffusionPipeline.from_single_file(...).save_pretrained(folder)."
        )
    if not folder.is_dir():
        raise StylenbError(
            f"There is no base '{folder}': choose 'pocket', 'sd15' or the path of a folder in "
            "the diffusers layout."
        )
    return folder


def _load_folder(name: str, folder: Path, device, dtype) -> Base:
    if not (folder / "model_index.json").is_file():
        raise StylenbError(
            f"'{folder}' is not in the diffusers layout (it has no model_index.json): name the "
            "folder that StableDiffusionPipeline.save_pretrained wrote."
        )
    half = dtype.itemsize == 2
    variants = {part: _weights_variant(folder, part, half) for part in _WEIGHTS}
    for part, file in (("scheduler", "scheduler_config.json"), ("tokenizer", "")):
        if not (folder / part / file).exists():
            raise StylenbError(
                f"'{folder}' has no {part}: download or copy the whole model folder again."
            )
    _check_kind(folder)

    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from diffusers.utils import logging as of_diffusers
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging as of_transformers

    def part(cls, name):
        return cls.from_pretrained(
            str(folder / name),
            local_files_only=True,
            use_safetensors=True,
            variant=variants[name],
            torch_dtype=dtype,
        ).to(device)

    # Bars that take longer to read than the weights to load.
    shown = [log for log in (of_diffusers, of_transformers) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        vae = part(AutoencoderKL, "vae")
        unet = part(UNet2DConditionModel, "unet")
        text_encoder = part(CLIPTextModel, "text_encoder")
        tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
        # SD's latents go beyond [-1, 1], where DDIM's default would clip them
        config = DDIMScheduler.load_config(str(folder / "scheduler"))
        scheduler = DDIMScheduler.from_config(config, clip_sample=False)
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise StylenbError(
            f"'{folder}' cannot be loaded ({type(error).__name__}: {first}): download or copy "
            "the whole model folder again, or choose another device if memory ran out."
        ) from error
    finally:
        for log in shown:
            log.enable_progress_bar()
    return Base(name, folder, vae, unet, scheduler, tokenizer, text_encoder, device, dtype)


def _weights_variant(folder: Path, part: str, half: bool) -> str | None:
    """None or "fp16": which safetensors of a part to read. Raises if there are none."""
    stem = _WEIGHTS[part]
    plain = list((folder / part).glob(f"{stem}*.safetensors"))
    fp16 = [p for p in plain if ".fp16" in p.name]
    plain = [p for p in plain if p not in fp16 and "non_ema" not in p.name]
    if fp16 and (half or not plain):
        return "fp16"
    if plain:
        return None
    if not (folder / part).is_dir():
        raise StylenbError(
            f"'{folder}' has no {part}: download or copy the whole model folder again."
        )
    if list((folder / part).glob("*.bin")):
        raise StylenbError(
            f"'{folder / part}' holds only pickled weights (.bin), which can run any code when "
            "opened: get the safetensors version of the model."
        )
    raise StylenbError(
        f"'{folder / part}' has no {stem}.safetensors: download or copy the whole model folder "
        "again."
    )


def _check_kind(folder: Path) -> None:
    """Refuse SDXL, SD 2 and inpainting models, which load but then draw noise."""
    try:
        unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
        schedule = json.loads(
            (folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")
        )
        same = (
            unet.get("in_channels", 4) == 4
            and unet.get("addition_embed_type") is None
            and schedule.get("prediction_type", "epsilon") == "epsilon"
        )
    except (OSError, ValueError, AttributeError) as error:
        raise StylenbError(
            f"A config of '{folder}' cannot be read ({error}): download or copy the whole model "
            "folder again."
        ) from error
    if not same:
        raise StylenbError(
            f"'{folder}' is another kind of model (SDXL, SD 2 or inpainting): this course works "
            "with those of the SD v1 kind, which predict the noise of 4-channel latents."
        )
