"""A base model: the autoencoder, the UNet, the text encoder and the schedule, loaded and ready.

The parts are those of latent diffusion (Rombach et al. 2022, https://arxiv.org/abs/2112.10752),
in the classes and the folder layout of diffusers. Whether they are the pocket model of this
repository or Stable Diffusion v1.5 makes no difference to the caller.
"""

from __future__ import annotations

import copy
import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property

import torch

from .device import as_dtype, device_and_dtype
from .errors import StylenbError
from .single_file import load_single_file
from .weights import find_folder, load_parts, load_taesd

SOLVER_STEPS = {"ddim": 30, "inversion": 11, "dpm": 10}  # of the whole schedule, unless told
BATCH_PIXELS = 512 * 512  # that go through the autoencoder, or are drawn, at once
TILE = 1024  # pixels; pictures of a longer side go through the autoencoder in tiles of this side


def load(
    name_or_path: str | os.PathLike = "pocket", device=None, dtype: torch.dtype | str | None = None
) -> Base:
    """Load a base: "pocket", "sd15", or the folder or the .safetensors file of any SD v1 model.

    "sd15" comes from the folder in the environment variable STYLENB_SD15, else an attached
    Kaggle input, else the Hugging Face hub (a pinned revision; half precision on a GPU).
    device, dtype: None chooses by what the machine really does, see device_and_dtype.

    Raises StylenbError for a name that is none of these and a folder that cannot be used.
    """
    device, chosen, _ = device_and_dtype(device)
    dtype = as_dtype(dtype) or chosen
    folder = find_folder(name_or_path, half=device.type != "cpu")
    read, own = (load_single_file, folder.stem) if folder.is_file() else (load_parts, folder.name)
    name = str(name_or_path) if name_or_path in ("pocket", "sd15") else own
    return Base(name, folder, **read(folder, device, dtype), device=device, dtype=dtype)


class Base:
    """The parts of a latent diffusion model, frozen, in evaluation mode, on one device.

    name, folder: what was asked for and where it was found.
    vae, unet, scheduler: AutoencoderKL, UNet2DConditionModel, DDIMScheduler.
    tokenizer, text_encoder: CLIPTokenizer, CLIPTextModel; None after drop_text_encoder().
    device, dtype: where the parts are and their precision.
    image_size: side in pixels of the square that the UNet was trained on first.
    multiple: what the UNet needs both sides of a picture to be multiples of, in pixels.
    prompt: what stands in for "", see with_prompt; None is "".
    factor: pixels per latent along a side (8).
    originals: of weights that DreamBooth has replaced, what they were; see keep_originals.

    Gradients are left to the caller: the weights do not require any, but they flow through
    encode, decode, embed and predict_noise to whatever does.
    """

    def __init__(self, name, folder, vae, unet, scheduler, tokenizer, text_encoder, device, dtype):
        self.name, self.folder = name, folder
        self.vae, self.unet, self.scheduler = vae, unet, scheduler
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.device, self.dtype = device, dtype
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_size = int(unet.config.sample_size or 64) * self.factor
        self.multiple = self.factor * 2 ** (len(unet.config.block_out_channels) - 1)
        vae.enable_tiling()  # tiles overlap by a quarter, and are blended there
        vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // self.factor
        self.tiny_decoder = self.prompt = self._embedding = None
        self.originals: dict[str, torch.Tensor] = {}
        for part in (vae, unet, text_encoder):
            part.requires_grad_(False).eval()

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        where = f"{self.device}, {dtype}, from {self.folder}"
        return f"Base({self.name!r}, {self.image_size} px, {where})"

    def encode(
        self, images: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> latents (N, 4, H/8, W/8), times the scaling factor.

        The mean of the posterior, or a sample from it if a generator is given. A few images go
        through the autoencoder at once, however many there are; a large one in tiles (see TILE).
        Raises StylenbError for another shape, sides that are not multiples of 8, or another range.
        """
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != 3 or any(side % self.factor for side in shape[2:]):
            raise StylenbError(
                f"encode takes images of the shape (N, 3, H, W), sides multiples of {self.factor}, "
                f"not {shape}: open them with open_photo(..., size=base.image_size)."
            )
        if not images.detach().abs().max() < 1.5:  # "not <" so that NaN is caught too
            raise StylenbError("encode takes images in [-1, 1]: make them with to_tensor.")
        found = []
        for part in images.split(_at_once(shape[2] * shape[3])):
            posterior = self.vae.encode(part.to(self.device, self.dtype)).latent_dist
            found.append(posterior.mode() if generator is None else posterior.sample(generator))
        return torch.cat(found) * self.vae.config.scaling_factor

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (N, 4, h, w) -> images (N, 3, 8h, 8w) in [-1, 1].

        A few values overshoot a little: clamping here would cut their gradient, and to_pictures
        clips them anyway. A few go through the autoencoder at once, as in encode.
        """
        self._check_latents(latents, "decode")
        scaled = latents.to(self.device, self.dtype) / self.vae.config.scaling_factor
        at_once = _at_once(latents.shape[2] * latents.shape[3] * self.factor**2)
        return torch.cat([self.vae.decode(part).sample for part in scaled.split(at_once)])

    def decode_quickly(self, latents: torch.Tensor) -> torch.Tensor:
        """As decode, by a tiny decoder where the base has one: for losses, not for looking at.

        For "sd15" that is TAESD (https://github.com/madebyollin/taesd, 6 % of the work), from the
        folder in STYLENB_TAESD or from the hub; without it, and for others, the base's own.
        """
        if self.name == "sd15" and self.tiny_decoder is None:
            self.tiny_decoder = load_taesd(self.device, self.dtype) or self.decode
        if self.tiny_decoder is None:
            return self.decode(latents)
        self._check_latents(latents, "decode_quickly")
        return self.tiny_decoder(latents.to(self.device, self.dtype))

    def embed(self, prompt: str | list[str]) -> torch.Tensor:
        """Prompt(s) -> the text encoder's last hidden states (N, 77, C).

        Raises StylenbError once the text encoder was dropped; warns when a prompt is cut.
        """
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

    @cached_property
    def empty(self) -> torch.Tensor:
        """embed(""), (1, 77, C): what the model takes for "no prompt"."""
        # A tensor made in inference mode could never take part in training later.
        with torch.inference_mode(False), torch.no_grad():
            return self.embed("")

    def with_prompt(self, prompt: str) -> Base:
        """This base for a prompt: wherever it is given no embedding, this one stands in for "".

        So `stylize(photo, base=base.with_prompt("a sks style painting"))` redraws with the prompt.
        The parts are shared, not copied; a change of the text encoder after this
        call does not reach the prompt.
        """
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
    def default_num_inference_steps(self) -> int:
        """Steps of the whole schedule with that solver."""
        return SOLVER_STEPS[self.default_solver]

    @property
    def default_strength(self) -> float:
        """How far up the schedule to start with that solver."""
        return 0.6 if self.full_size else 0.8

    @property
    def default_size(self) -> int:
        """Long side in pixels at which `stylize` draws a photo."""
        return 768 if self.full_size else 2 * self.image_size

    @property
    def default_guidance_scale(self) -> float:
        """At which a prompt draws best: 7.5 is usual for SD, less suits a small model."""
        return 7.5 if self.full_size else 3.0

    def predict_noise(
        self,
        latents: torch.Tensor,
        timestep: int | torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The UNet's estimate of the noise in noisy latents (N, 4, h, w); same shape and dtype.

        timestep: 0..999, one for all or a tensor (N,). encoder_hidden_states: what embed gives of a
        prompt, (1 or N, 77, C); None is "", or the prompt of with_prompt.
        """
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
        states = encoder_hidden_states
        if states is None:
            states = self.empty if self.prompt is None else self._embedding
        width = self.unet.config.cross_attention_dim
        if states.ndim != 3 or states.shape[0] not in (1, count) or states.shape[2] != width:
            raise StylenbError(
                f"{count} latents need encoder_hidden_states of the shape ({count}, 77, {width}), "
                f"not {tuple(states.shape)}: make them with base.embed."
            )
        noise = self.unet(
            latents.to(self.device, self.dtype),
            timestep.expand(count),
            encoder_hidden_states=states.to(self.device, self.dtype).expand(count, -1, -1),
        ).sample
        return noise.to(latents.dtype)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The weights of the UNet and of the text encoder, by plain_name: "unet.conv_in.weight"."""
        parts = {"unet": self.unet, "text_encoder": self.text_encoder}
        return {
            f"{part}.{plain_name(name)}": p
            for part, module in parts.items()
            if module is not None
            for name, p in module.named_parameters()
        }

    def keep_originals(self, names: Iterable[str]) -> None:
        """Keep a copy, in main memory, of weights (by plain name) that are about to be replaced."""
        parameters = self.parameters()
        for name in names:
            self.originals[name] = parameters[name].detach().to("cpu", copy=True)

    def replaced(self) -> dict[str, torch.nn.Parameter]:
        """The weights whose originals are kept, by plain name."""
        return {name: p for name, p in self.parameters().items() if name in self.originals}

    def restore_originals(self) -> None:
        """Put back what was replaced: the base is what it was when it was loaded, bit for bit."""
        for name, p in self.replaced().items():
            p.data = self.originals[name].to(p.device)
        self.originals.clear()
        self.forget_empty()

    def forget_empty(self) -> None:
        """The text encoder has changed: embed "" again when it is asked for."""
        if self.text_encoder is not None:
            vars(self).pop("empty", None)

    @contextmanager
    def with_originals(self) -> Iterator[None]:
        """Inside, weights that were replaced are the old ones."""
        replaced = [(p, p.data, self.originals[name]) for name, p in self.replaced().items()]
        try:
            for p, _, original in replaced:
                p.data = original.to(p.device)
            yield
        finally:
            for p, weight, _ in replaced:
                p.data = weight

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


def _at_once(pixels: int) -> int:
    """How many images of so many pixels go through the autoencoder at once. More than four gain
    nothing, even of small ones, so large are its layers."""
    return max(1, min(4, BATCH_PIXELS // pixels))


def plain_name(name: str) -> str:
    """A weight's name, whatever peft has put around its layer and whichever transformers it is."""
    return name.replace(".base_layer", "").removeprefix("text_model.")


def fingerprint(base: Base) -> str:
    """A short name of the UNet's weights as they were loaded, to tell whether they are the same.

    Taken from the signs of some thousands of them, which no precision changes.
    """
    signs = []
    for name, p in base.parameters().items():
        if name.startswith("unet.") and p.ndim > 1 and ".lora_" not in name:
            numbers = base.originals.get(name, p.detach()).flatten()
            signs.append(numbers[:: max(1, len(numbers) // 16)].signbit().cpu())
    return hashlib.sha256(torch.cat(signs).numpy().tobytes()).hexdigest()[:16]
