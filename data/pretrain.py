"""Train the pocket model from nothing, or further: `python data/pretrain.py STAGE`.

Stages, in the order in which they need each other:

    vae         AutoencoderKL, 128 x 128 x 3 <-> 16 x 16 x 4        -> data/pocket-sd/vae
    text-unet   CLIP tokenizer, text encoder and UNet, together     -> data/pocket-sd
    perceptual  SqueezeNet 1.1 for LPIPS and style losses           -> data/perceptual
    judge       the style judge, used for scores only               -> data/judge
    loras       16 pictures of each held-out style, and its LoRA    -> data/styles, data/loras

Each stage draws its pictures once, keeps a checkpoint in the work folder and resumes from it when
it is started again. The learning rate falls with the share of the time (or steps) that is
spent, so a longer run is the same command with a larger number.

From nothing, `vae` and `text-unet` learn pictures of 128 px. `--from FOLDER` trains the weights of
a folder further, at 128 and 256 px in one run, as the shipped ones were; that is meant for a GPU
and goes on a CPU too. What pictures are made of is in data/draw.py.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from diffusers.training_utils import EMAModel, compute_snr
from PIL import Image
from safetensors.torch import save_file
from torch import nn

# As a script it finds the package from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import draw
from stylenb.base import Base, load
from stylenb.device import autocast, autocast_dtype
from stylenb.errors import replacing
from stylenb.loop import spread_timesteps
from stylenb.lora import remove_lora
from stylenb.losses import load_features, lpips_from, unit_features
from stylenb.photos import to_pictures
from stylenb.pocket import training_mix
from stylenb.pocket.styles import HELD_OUT, KNOWN, STYLES, apply_style
from stylenb.training import Settings, train_style
from stylenb.weights import DATA

POCKET = DATA / "pocket-sd"
RARE_TOKEN = "sks"
STREAM_PEAK = 1500  # what an autoencoder's residual streams are divided down to


class Optimizers:
    """Muon for the matrices of linear layers and the kernels of convolutions, AdamW for the rest;
    AdamW for everything at a Muon rate of 0.

    Muon (https://kellerjordan.github.io/posts/muon) took the autoencoder from 18.8 to 21.2 dB in
    the first minute, against AdamW in the same time. torch's takes matrices only, so it is given
    views of the kernels with all but the first axis flattened.
    """

    def __init__(self, network: nn.Module, muon_rate: float, adamw_rate: float):
        kinds = nn.Linear | nn.Conv2d
        self.kernels = [m.weight for m in network.modules() if muon_rate and isinstance(m, kinds)]
        taken = {id(p) for p in self.kernels}
        others = [p for p in network.parameters() if id(p) not in taken]
        # view, not flatten: a copy, as of kernels in channels-last order, would be trained in vain.
        self.views = [p.detach().view(len(p), -1) for p in self.kernels]
        self.both = [torch.optim.AdamW(others, adamw_rate, betas=(0.9, 0.99), weight_decay=0.0)]
        self.rates = [adamw_rate]
        if self.views:
            self.both.insert(0, torch.optim.Muon(self.views, muon_rate, weight_decay=0.01))
            self.rates.insert(0, muon_rate)

    def step(self, share: float) -> None:
        """One step at `share` of the full learning rate."""
        for view, kernel in zip(self.views, self.kernels, strict=True):
            view.grad = kernel.grad.flatten(1)
        for optimizer, rate in zip(self.both, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()

    def state_dict(self):
        return [optimizer.state_dict() for optimizer in self.both]

    def load_state_dict(self, states):
        for optimizer, state in zip(self.both, states, strict=True):
            optimizer.load_state_dict(state)


def train(
    stage: str,
    network: nn.Module,
    loss_of: Callable,
    args,
    muon_rate: float = 0.02,
    adamw_rate: float = 1e-3,
    fall: float = 0.4,
    decay: float = 0.999,
) -> nn.Module:
    """Train `network` until `args.minutes` or `args.steps` are spent; return it with EMA weights.

    `loss_of(step, progress)` returns the loss and a dict of figures to log, and draws all that is
    random from generators seeded with `step`; progress runs from 0 to 1. fall: the share of the run
    in which the rates fall; decay: of the EMA, from which on it grows no slower.
    """
    device = torch.device(args.device)
    network.to(device).train()
    optimizers = Optimizers(network, muon_rate, adamw_rate)
    how = {"use_ema_warmup": True, "power": 0.75, "foreach": True}
    ema = EMAModel(network.parameters(), decay=decay, **how)
    parts = {"network": network, "optimizers": optimizers, "ema": ema}
    checkpoint = args.work / f"{stage}.ckpt"
    state = resume(checkpoint, parts, device)
    ema.to(device)

    def progress():
        if args.minutes:
            return state["seconds"] / (60 * args.minutes)
        return state["step"] / args.steps

    figures, last_save, last_log = {}, time.time(), time.time()
    while progress() < 1:
        began, step = time.time(), state["step"]
        with autocast(device):
            loss, terms = loss_of(step, progress())
        network.zero_grad(set_to_none=False)
        loss.backward()
        if not nn.utils.clip_grad_norm_(network.parameters(), 1.0).isfinite():
            raise SystemExit(
                f"{stage}: the loss is not finite at step {step}; start again from "
                f"{checkpoint} with a smaller learning rate."
            )
        optimizers.step(share_of_rate(step, progress(), fall))
        ema.step(network.parameters())
        for key, value in {"loss": loss, **terms}.items():
            figures.setdefault(key, []).append(float(value.detach()))
        state["step"] += 1
        state["seconds"] += time.time() - began
        if time.time() - last_log > 20:
            means = {key: round(float(np.mean(values)), 5) for key, values in figures.items()}
            row = {"step": state["step"], "minutes": round(state["seconds"] / 60, 2), **means}
            state["log"].append(row)
            print(stage, row, flush=True)
            figures, last_log = {}, time.time()
        if time.time() - last_save > 120:
            save(checkpoint, parts, state)
            last_save = time.time()
    save(checkpoint, parts, state)
    ema.copy_to(network.parameters())
    record(stage, state, args, device)
    return network.eval()


def share_of_rate(step: int, progress: float, fall: float = 0.4) -> float:
    """Linear warm-up, then constant, then a linear fall over the last part: most of the gain of a
    cosine, and a run that gets more time loses nothing of what it has learned."""
    return min(1, (step + 1) / 100) * min(1, (1.0001 - progress) / fall)


def name_of_run(stage: str, args) -> str:
    """What its checkpoint and its story are called: training further is a stage of its own."""
    return f"{stage}-further" if args.start else stage


def resume(checkpoint: Path, parts: dict, device: torch.device) -> dict:
    """Bring the parts to where the checkpoint, if there is one, was written; return its state."""
    if not checkpoint.exists():
        return {"step": 0, "seconds": 0.0, "log": []}
    saved = torch.load(checkpoint, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    print(f"{checkpoint.stem}: resuming from step {saved['state']['step']}", flush=True)
    return saved["state"]


def save(checkpoint: Path, parts: dict, state: dict) -> None:
    with replacing(checkpoint) as temporary:
        torch.save(
            {**{name: part.state_dict() for name, part in parts.items()}, "state": state}, temporary
        )


def record(stage: str, state: dict, args, device: torch.device) -> None:
    """Keep in data/training.json how a stage was trained: the model card and a lesson read it."""
    path = DATA / "training.json"
    story = json.loads(path.read_text()) if path.exists() else {}
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=DATA.parent
    )
    hardware = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name()
    length = f"--minutes {args.minutes:g}" if args.minutes else f"--steps {args.steps}"
    options = {"start": "--from", "photos": "--photos", "cutouts": "--cutouts"}
    given = [f"{text} FOLDER" for name, text in options.items() if vars(args).get(name)]
    command = ["python data/pretrain.py", stage.removesuffix("-further"), *given, length]
    story[stage] = {
        "command": " ".join(command),
        "commit": git.stdout.strip(),
        "steps": state["step"],
        "batch_size": args.batch_size,
        "hours": round(state["seconds"] / 3600, 2),
        "hardware": hardware,
        "autocast": str(autocast_dtype(device)),
        "log": state["log"][:: max(1, len(state["log"]) // 60)],
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(story, indent=1) + "\n")


def save_half(network: nn.Module, path: Path, about: dict[str, str] | None = None) -> None:
    """The weights in half precision, as safetensors."""
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    with replacing(path) as temporary:
        save_file(weights, temporary, about)


def render_set(folder: Path, *of_set) -> tuple[np.ndarray, list[dict]]:
    """Draw a `draw.Set` once and keep it in `folder`; later calls read it back.

    Returns the pictures, uint8 (count, size, size, 3), and for each its caption, style and kind.
    """
    one = draw.Set(*of_set)
    one.draw(folder, os.cpu_count())
    return one.read(folder)


def known_set(folder: Path, count: int = 12_000):
    """Pictures in the known styles: what the UNet and the text encoder may see."""
    return render_set(folder, f"known-{count}", count, *draw.SETS["known"][:3])


def held_out_set(folder: Path, count: int = 5_000):
    """Pictures in the held-out styles: for the autoencoder and the perceptual network only."""
    return render_set(folder, f"held-out-{count}", count, *draw.SETS["held-out"][:3])


def judge_set(folder: Path, count: int, size: int):
    """Pictures in all styles from seeds of their own: for the style judge only."""
    seeds, name = training_mix.JUDGE_SEEDS + 1000 * size, f"judge-{size}-{count}"
    return render_set(folder, name, count, seeds, tuple(STYLES), 1 / len(STYLES), size)


def as_tensor(pictures: np.ndarray, device) -> torch.Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [-1, 1]."""
    x = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    return x.to(device).float() / 127.5 - 1


def picture_batch(pictures, step, args, batch_size=None, crop=training_mix.SIZE):
    """A batch of pictures in [-1, 1], half of them flipped, and their indices.

    With `crop`, a square of that side whose corner lies on the grid of latents (8 px).
    """
    random = np.random.default_rng([step, 7])
    index = random.integers(len(pictures), size=batch_size or args.batch_size)
    batch = []
    for i in index:
        left, top = 8 * random.integers((pictures.shape[1] - crop) // 8 + 1, size=2)
        picture = pictures[i, top : top + crop, left : left + crop]
        batch.append(picture[:, ::-1] if random.random() < 0.5 else picture)
    return as_tensor(np.stack(batch), args.device), index


# ---------------------------------------------------------------------------------- autoencoder


def new_vae() -> AutoencoderKL:
    """2.7 M parameters. No attention in the middle: at 16 x 16 it costs time and buys nothing."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=training_mix.SIZE,
        mid_block_add_attention=False,
    )


def image_gradients(x):
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def reconstruction_loss(y, x):
    """Per picture (N,): L1 at three scales, squared error, and L1 of the image gradients, which
    keeps edges sharp."""

    def l1(a, b):
        return (a - b).abs().mean((1, 2, 3))

    loss = 3 * (y - x).pow(2).mean((1, 2, 3))
    for a, b in zip(image_gradients(y), image_gradients(x), strict=True):
        loss = loss + 0.5 * l1(a, b)
    for _ in range(3):
        loss = loss + l1(y, x)
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return loss


def train_vae(args) -> None:
    """From nothing: Muon, and small crops first. Further: AdamW, crops of 128 px from pictures of
    both sizes, and a touch of LPIPS, which needs the network of stage `perceptual`."""
    features = load_features().to(args.device) if args.start else None
    torch.manual_seed(0)
    vae = new_vae()
    if args.start:
        vae = AutoencoderKL.from_pretrained(args.start / "vae", torch_dtype=torch.float32)
    with draw.Pictures(args, ("known", "held-out")) as pictures:

        def loss_of(step, progress):
            list(pictures.grow())
            size = args.sizes[step % len(args.sizes)]
            crop, batch_size = min(args.sizes), args.batch_size
            if not args.start:
                # Small crops first: four times as many steps in the same time. Whole at the end.
                crop, batch_size = (64, batch_size) if progress < 0.7 else (crop, batch_size // 2)
            ready = pictures.of[size][: pictures.ready[size]]
            x, _ = picture_batch(ready, step, args, batch_size, crop)
            return autoencoder_loss(vae, x, step, features)

        how = {"muon_rate": 0.0, "adamw_rate": 8e-4, "fall": 0.6} if args.start else {}
        train(name_of_run("vae", args), vae, loss_of, args, **how)
        size = args.sizes[0]
        known = [i for i, fact in enumerate(pictures.facts[size]) if fact["style"] in KNOWN][:2000]
        latents = encode_all(vae, pictures.of[size][known], args)
        some = as_tensor(pictures.of[size][known[:16]], args.device)
    scale = round(1 / float(latents.std()), 5)
    make_float16_safe(vae, some)
    vae.register_to_config(scaling_factor=scale, force_upcast=False)
    vae.half().save_pretrained(POCKET / "vae")
    forget_origin(POCKET / "vae")


def autoencoder_loss(vae, x, step, features=None):
    """The loss of a batch of pictures and figures to log; with LPIPS of a half if `features` of
    stylenb.losses are given."""
    posterior = vae.encode(x).latent_dist
    generator = torch.Generator().manual_seed(step)
    noise = torch.randn(posterior.mean.shape, generator=generator).to(x.device)
    y = vae.decode(posterior.mean + posterior.std * noise).sample.float()
    # A touch of the KL term keeps the latents near a unit Gaussian, where noise can be added.
    kl = posterior.kl().mean() / noise[0].numel()
    psnr = 10 * torch.log10(4 / F.mse_loss(y, x))
    # The logarithm gives every picture the same say: else the busy styles drown the calm ones.
    loss = reconstruction_loss(y, x).add(0.01).log().mean() + 1e-3 * kl
    terms = {"psnr": psnr, "kl": kl}
    if features is not None:
        half = slice((len(x) + 1) // 2)
        with torch.no_grad():
            wanted = unit_features(features, x[half])
        lpips = lpips_from(features, wanted, unit_features(features, y[half])).float().mean()
        loss, terms["lpips"] = loss + 0.06 * lpips, lpips
    return loss, terms


def stream_peak(part: nn.Module, x: torch.Tensor) -> float:
    """The largest magnitude in the residual stream of an autoencoder's encoder or decoder."""
    peaks, hooks = [], []
    for name, module in part.named_modules():
        if isinstance(module, ResnetBlock2D) or name.endswith(("conv_in", "samplers.0")):
            keep = lambda _, __, out: peaks.append(float(out.abs().max()))  # noqa: E731
            hooks.append(module.register_forward_hook(keep))
    part(x)
    for hook in hooks:
        hook.remove()
    return max(peaks)


@torch.no_grad()
def make_float16_safe(vae: AutoencoderKL, x: torch.Tensor) -> None:
    """Divide the residual streams of an autoencoder so that they fit into float16, without changing
    what it computes; x: pictures (N, 3, H, W) in [-1, 1] to measure them with.

    Training lets the streams grow to hundreds of thousands, and float16 ends at 65,504. But a
    stream is only ever read through GroupNorm, which does not see its scale. So all that writes
    into it may be divided by one number: conv_in, the last convolution of every resnet, and the
    biases of shortcuts and of down- and upsamplers, which read the stream itself and are linear in
    it. A power of two, so that no weight is rounded; for peaks of about STREAM_PEAK.
    """
    vae.float().eval()
    latents = vae.encode(x).latent_dist.mean
    before = vae.decode(latents).sample
    for part, given in ((vae.encoder, x), (vae.decoder, vae.post_quant_conv(latents))):
        peak = stream_peak(part, given)
        divisor = 2.0 ** max(0, round(np.log2(peak / STREAM_PEAK)))
        for name, module in part.named_modules():
            if name.endswith(("conv_in", "conv2")):
                module.weight.div_(divisor)
            if name.endswith(("conv_in", "conv2", "conv_shortcut", "samplers.0.conv")):
                module.bias.div_(divisor)
        print(f"{type(part).__name__}: peak {peak:.0f}, divided by {divisor:.0f}", flush=True)
    moved = float((vae.decode(vae.encode(x).latent_dist.mean).sample - before).abs().max())
    if not moved < 0.01:  # in [-1, 1]: about one grey level of 255
        raise SystemExit(
            f"vae: divided for float16, its pictures differ by {moved:.3f}, as its streams come "
            "too near to GroupNorm's epsilon; raise STREAM_PEAK and start the stage again."
        )


@torch.no_grad()
def encode_all(vae, pictures: np.ndarray, args) -> torch.Tensor:
    """Posterior means, unscaled, (N, 4, H / 8, W / 8) on the CPU in float32."""
    vae = vae.to(args.device).float().eval()
    latents, count = [], 16 if args.device == "cpu" else 128
    with autocast(torch.device(args.device)):
        for i in range(0, len(pictures), count):
            posterior = vae.encode(as_tensor(pictures[i : i + count], args.device)).latent_dist
            latents.append(posterior.mean.float().cpu())
    return torch.cat(latents)


@torch.no_grad()
def decode_all(vae, latents: torch.Tensor, args) -> np.ndarray:
    """Pictures, uint8 (N, 128, 128, 3), of unscaled latents."""
    vae = vae.to(args.device).float().eval()
    pictures = []
    with autocast(torch.device(args.device)):
        for part in latents.split(16):
            pictures += to_pictures(vae.decode(part.to(args.device)).sample)
    return np.stack(pictures)


# ------------------------------------------------------------------------- text encoder and UNet


def learn_vocabulary(captions: list[str], folder: Path) -> None:
    """Write vocab.json and merges.txt into `folder`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    letters = [chr(c) for c in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=1000, show_progress=False, end_of_word_suffix="</w>", initial_alphabet=letters
    )
    # Weighted heavily enough to become one token; it is added to no caption of the training set.
    bpe.train_from_iterator(captions + [RARE_TOKEN] * len(captions), trainer)
    model = json.loads(bpe.to_str())["model"]
    tokens = [t for t in model["vocab"] if t not in ("<|startoftext|>", "<|endoftext|>")]
    known = set(tokens)
    tokens += [c + "</w>" for c in letters if c + "</w>" not in known]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))


def new_tokenizer(captions: list[str], folder: Path):
    """A CLIP tokenizer whose byte-pair vocabulary is learned from the captions, plus a rare token.

    The rare token (`sks`) is in the vocabulary but in no caption: DreamBooth gives it a meaning.
    What is in `folder` already is used as it is: the trainer breaks ties by chance, and a text
    encoder that resumes from a checkpoint needs the numbers that it has learned.
    """
    from transformers import CLIPTokenizer

    if not (folder / "vocab.json").exists():  # written last
        learn_vocabulary(captions, folder)
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        model_max_length=77,
        pad_token="<|endoftext|>",
    )


def new_text_encoder(tokenizer):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=128,
        block_out_channels=(80, 160, 192),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


def new_scheduler() -> DDIMScheduler:
    """The schedule of Stable Diffusion v1.5."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def known_latents(vae, pictures, args) -> torch.Tensor:
    """Scaled latents (2, N, 4, H / 8, W / 8) of every picture and of its mirror image, encoded
    once."""
    digest = hashlib.sha256(b"".join(p.detach().cpu().numpy().tobytes() for p in vae.parameters()))
    digest.update(np.ascontiguousarray(pictures))
    path = args.work / f"latents-{digest.hexdigest()[:12]}-{len(pictures)}.npy"
    if not path.exists():
        print(f"encoding {len(pictures)} pictures ...", flush=True)
        both = torch.stack(
            [
                encode_all(vae, pictures, args),
                encode_all(vae, np.ascontiguousarray(pictures[:, :, ::-1]), args),
            ]
        )
        with replacing(path) as temporary:
            np.save(temporary, (both * vae.config.scaling_factor).numpy())
    return torch.from_numpy(np.load(path))


def text_unet(args, captions: list[str]):
    """Tokenizer, text encoder and UNet: new ones, or those of `args.start`."""
    from transformers import CLIPTextModel

    vocabulary = args.work / name_of_run("tokenizer", args)
    if args.start:
        vocabulary.mkdir(exist_ok=True)
        for name in ("merges.txt", "vocab.json"):
            shutil.copy(args.start / "tokenizer" / name, vocabulary / name)
    torch.manual_seed(0)
    tokenizer = new_tokenizer(captions, vocabulary)
    if args.start:
        text_encoder = CLIPTextModel.from_pretrained(args.start / "text_encoder").float()
        unet = UNet2DConditionModel.from_pretrained(args.start / "unet", torch_dtype=torch.float32)
    else:
        text_encoder, unet = new_text_encoder(tokenizer), new_unet()
    # Not torch's fused attention: on a CPU its backward is slower than three products, and on an
    # H200 in bfloat16 it gave gradients that were not finite, at heads as narrow as these (20).
    unet.set_attn_processor(AttnProcessor())
    text_encoder.config._attn_implementation = "eager"
    return tokenizer, nn.ModuleDict({"text_encoder": text_encoder, "unet": unet}), vocabulary


def cuts_of(sizes: list[int]) -> list[tuple[int, int, int, float]]:
    """What the UNet sees: height and width in latents, size of the picture in pixels, and share.

    Of two sizes both whole, and parts of the larger one, some of them not square.
    """
    small, large = sizes[0] // 8, sizes[-1] // 8
    if len(sizes) == 1:
        return [(small, small, sizes[0], 1.0)]
    part = large * 3 // 16 * 4  # three quarters; the UNet halves twice, so a multiple of 4
    return [
        (small, small, sizes[0], 0.48),
        (large, large, sizes[1], 0.29),
        (part, part, sizes[1], 0.09),
        (part, large, sizes[1], 0.07),
        (large, part, sizes[1], 0.07),
    ]


class Latents:
    """The latents and the tokens of the captions of draw.Pictures, on the device: `latents[size]`
    is (2, total, 4, size / 8, size / 8), mirror images second, and `ids[size]` is (total, 77)."""

    def __init__(self, vae, pictures, ids_of, args):
        self.vae, self.pictures, self.ids_of, self.args = vae, pictures, ids_of, args
        self.cuts, self.latents, self.ids = cuts_of(args.sizes), {}, {}
        for size, of in pictures.of.items():
            shape = 2, len(of), 4, size // 8, size // 8
            self.latents[size] = torch.empty(shape, device=args.device)
            self.ids[size] = torch.empty(len(of), 77, dtype=torch.long, device=args.device)
            self.add(size, 0, pictures.ready[size])

    def add(self, size: int, first: int, last: int) -> None:
        """Encode the pictures first .. last - 1 of a size."""
        new = known_latents(self.vae, self.pictures.of[size][first:last], self.args)
        self.latents[size][:, first:last] = new.to(self.args.device)
        captions = [fact["caption"] for fact in self.pictures.facts[size][first:last]]
        self.ids[size][first:last] = self.ids_of(captions)

    def batch(self, generator: torch.Generator):
        """Latents of one of the cuts (n, 4, height, width), token ids (n, 77) and the share of
        captions to drop: a part does not show all that its caption names. n falls as the area
        grows: each batch has as many places."""
        shares = torch.tensor([share for *_, share in self.cuts])
        height, width, size, _ = self.cuts[torch.multinomial(shares, 1, generator=generator).item()]
        whole = size // 8
        count = max(1, round(self.args.batch_size * self.cuts[0][0] ** 2 / (height * width)))
        ready, device = self.pictures.ready[size], self.args.device
        index = torch.randint(ready, (count,), generator=generator).to(device)
        flip = torch.randint(2, (count,), generator=generator).to(device)
        top = torch.randint(whole - height + 1, (), generator=generator)
        left = torch.randint(whole - width + 1, (), generator=generator)
        x = self.latents[size][flip, index, :, top : top + height, left : left + width]
        return x, self.ids[size][index], 0.18 if height == width == whole else 0.5


def predictor(network: nn.ModuleDict, device: str) -> Callable:
    """(noisy latents, timesteps, token ids) -> predicted noise.

    On a GPU compiled, once for each shape, and replayed as a CUDA graph: launched one by one, the
    kernels of networks this small leave the GPU waiting. That takes a minute or so for each shape.
    """

    def predict(noisy, timesteps, tokens):
        states = network["text_encoder"](tokens)[0]
        return network["unet"](noisy, timesteps, states).sample

    if device != "cuda":
        return predict
    return torch.compile(predict, mode="reduce-overhead", dynamic=False)


def train_text_unet(args) -> None:
    """The denoising loss with min-SNR weights (https://arxiv.org/abs/2303.09556), captions dropped
    at times; further, at both sizes and parts of the larger one."""
    vae = AutoencoderKL.from_pretrained(POCKET / "vae", torch_dtype=torch.float32)
    scheduler = new_scheduler()
    snr = compute_snr(scheduler, torch.arange(1000)).to(args.device)
    with draw.Pictures(args, ("known",)) as pictures:
        captions = [fact["caption"] for facts in pictures.facts.values() for fact in facts]
        tokenizer, network, vocabulary = text_unet(args, captions)

        def ids_of(texts):
            how = {"padding": "max_length", "truncation": True, "max_length": 77}
            return tokenizer(texts, **how, return_tensors="pt").input_ids.to(args.device)

        latents, empty = Latents(vae, pictures, ids_of, args), ids_of([""])
        predict = predictor(network, args.device)

        def loss_of(step, progress):
            for new in pictures.grow():
                latents.add(*new)
            generator = torch.Generator().manual_seed(step)
            x0, ids, dropped = latents.batch(generator)
            noise = torch.randn(x0.shape, generator=generator).to(args.device)
            t = spread_timesteps(len(x0), 1000, generator).to(args.device)
            drop = (torch.rand(len(x0), 1, generator=generator) < dropped).to(args.device)
            if args.device == "cuda":  # what the last step's graph returned may be written over
                torch.compiler.cudagraph_mark_step_begin()
            tokens = torch.where(drop, empty, ids)
            prediction = predict(scheduler.add_noise(x0, noise, t), t, tokens)
            error = (prediction.float() - noise).pow(2).mean((1, 2, 3))
            weight = snr[t].clamp(max=5) / snr[t]
            terms = {"mse": error.mean()}
            if len(latents.cuts) > 1:
                terms["mse " + "x".join(map(str, x0.shape[2:]))] = error.mean()
            return (error * weight).mean() / weight.mean(), terms

        # Muon learns this as fast, but blows the weights up (singular values of 15 in the
        # transformer blocks, their feed-forward parts dead): a LoRA has nothing to hold on to.
        how = {"adamw_rate": 6e-4, "fall": 0.6, "decay": 0.9995} if args.start else {}
        train(name_of_run("text-unet", args), network, loss_of, args, muon_rate=0.0, **how)
    parts = {name: part.half() for name, part in (("vae", vae), *network.items())}
    save_pipeline(vocabulary, tokenizer=tokenizer, scheduler=scheduler, **parts)


def forget_origin(part: Path) -> None:
    """diffusers and transformers note the folder that they opened a model from: nobody else's."""
    config = part / "config.json"
    config.write_text(re.sub(r'\n *"_name_or_path": .*', "", config.read_text()))


def save_pipeline(vocabulary: Path, **parts) -> None:
    """Write the parts of the pocket model as diffusers does; both its readers open the folder."""
    pipeline = StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(POCKET, safe_serialization=True, max_shard_size="15MB")
    # transformers 5 opens a model in the dtype that its config names, diffusers in float32: a
    # pipeline of both kinds would not run.
    config = POCKET / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
    for part in ("text_encoder", "unet", "vae"):
        forget_origin(POCKET / part)
    for name in ("vocab.json", "merges.txt"):  # transformers before 5 reads these
        shutil.copy(vocabulary / name, POCKET / "tokenizer" / name)


# ------------------------------------------------------------------------ perceptual net and judge


def caption_words(facts, minimum: int) -> tuple[list[str], torch.Tensor]:
    """The content words of the captions and, for each picture, which of them its caption has."""
    bags = [set(f["caption"].replace(",", " ").split()) for f in facts]
    counts = Counter(word for bag in bags for word in bag)
    words = sorted(w for w, n in counts.items() if minimum <= n <= 0.8 * len(bags))
    return words, torch.tensor([[float(w in bag) for w in words] for bag in bags])


def train_perceptual(args) -> None:
    """SqueezeNet 1.1 that names style and content words.

    No colour augmentation: colour is part of a style.
    """
    from lpips.lpips import ScalingLayer
    from torchvision.models import squeezenet1_1

    pictures, facts = known_set(args.work, args.pictures)
    more, more_facts = held_out_set(args.work, args.pictures * 2 // 5)
    pictures, facts = np.concatenate([pictures, more]), facts + more_facts
    words, bags = caption_words(facts, len(facts) // 50)
    names = list(STYLES)
    styles = torch.tensor([names.index(f["style"]) for f in facts])
    torch.manual_seed(0)
    squeezenet = squeezenet1_1(num_classes=len(names) + len(words))
    squeezenet.classifier[2] = nn.Identity()  # its ReLU would allow no logit below zero
    scaling = ScalingLayer().to(args.device)  # as LPIPS scales its input

    def loss_of(step, progress):
        x, index = picture_batch(pictures, step, args)
        out = squeezenet(scaling(x)).float()
        style, content = out[:, : len(names)], out[:, len(names) :]
        loss_style = F.cross_entropy(style, styles[index].to(out.device))
        loss_content = F.binary_cross_entropy_with_logits(content, bags[index].to(out.device))
        right = (style.argmax(1).cpu() == styles[index]).float().mean()
        return loss_style + 4 * loss_content, {"right": right, "content": loss_content}

    # Without normalisation layers it bears only a part of the usual rate.
    train("perceptual", squeezenet, loss_of, args, muon_rate=0.005, adamw_rate=3e-4)
    save_half(squeezenet.features, DATA / "perceptual" / "squeezenet1_1.safetensors")


def train_judge(args) -> None:
    """ShuffleNet on seeds of its own, as they are and as the autoencoder gives them back, blurred a
    little at random: neither sharpness nor what the autoencoder loses is to be a clue.

    Of the pictures of 256 px it sees crops: the marks have their size, and there is less of the
    scene, from the whole of a sky to half a face.
    """
    from torchvision.models import shufflenet_v2_x0_5
    from torchvision.transforms.functional import gaussian_blur

    vae = AutoencoderKL.from_pretrained(POCKET / "vae", torch_dtype=torch.float32)
    names, sets = list(STYLES), []
    for size, count in ((128, args.pictures // 2), (256, args.pictures // 7)):
        pictures, facts = judge_set(args.work, count, size)
        path = args.work / f"judge-{size}-{count}-decoded.npy"
        if not path.exists():
            print(f"{len(pictures)} pictures of {size} px through the autoencoder ...", flush=True)
            decoded = decode_all(vae, encode_all(vae, pictures, args), args)
            with replacing(path) as temporary:
                np.save(temporary, decoded)
        styles = torch.tensor([names.index(f["style"]) for f in facts])
        sets += [(pictures, styles), (np.load(path), styles)]
    torch.manual_seed(1)
    network = shufflenet_v2_x0_5(num_classes=len(names))

    def loss_of(step, progress):
        pictures, styles = sets[step % len(sets)]
        x, index = picture_batch(pictures, step, args)
        random = np.random.default_rng([step, 8])
        if random.random() < 0.7:
            x = gaussian_blur(x, 7, float(random.uniform(0.3, 1.5)))
        x = (x * float(random.uniform(0.9, 1.1)) + float(random.uniform(-0.1, 0.1))).clamp(-1, 1)
        out = network(x).float()
        labels = styles[index].to(out.device)
        return (
            F.cross_entropy(out, labels, label_smoothing=0.05),
            {"right": (out.argmax(1) == labels).float().mean()},
        )

    train("judge", network, loss_of, args)
    path = DATA / "judge" / "shufflenet_v2_x0_5.safetensors"
    save_half(network, path, {"styles": json.dumps(names)})


# ------------------------------------------------------------------------------- the shipped LoRAs


def style_pictures(style: str) -> list[Image.Image]:
    """The 16 pictures that a LoRA learns `style` from: ten scenes, three photographs, three heaps
    of shapes, so that the style and not the landscape is what they have in common."""
    kinds = ["scene"] * 10 + ["photo"] * 3 + ["shapes"] * 3
    first = training_mix.STYLE_PICTURE_SEEDS + 100 * list(STYLES).index(style)
    return [
        apply_style(style, training_mix.content(first + i, kind)[0], first + i)
        for i, kind in enumerate(kinds)
    ]


def content_pictures() -> list[Image.Image]:
    """24 pictures of anything that the LoRAs learn to redraw, in no style: scenes, crops of
    photographs and heaps of shapes, none of them among the style pictures. Many, so that whatever
    colours a photo has, the LoRA has met the like."""
    kinds = ["scene"] * 12 + ["photo"] * 9 + ["shapes"] * 3
    first = training_mix.STYLE_PICTURE_SEEDS + 100 * len(STYLES)
    return [training_mix.content(first + i, kind)[0] for i, kind in enumerate(kinds)]


# Where one recipe does not suit all styles (README.md, beside this file): with the noise of
# inversion these keep more of a photo, and the leads of stained glass need to be learned long and
# drawn with guidance.
OF_STYLE = dict.fromkeys(
    ("pointillism", "cross_stitch"),
    {"picture_noise": "inversion", "picture_from": 0.3, "lpips_weight": 0.02, "steps": 250},
)
OF_STYLE["stained_glass"] = {"picture_from": 0.88, "style_weight": 0.5, "guidance_scale": 2.3}


def settings_of(base: Base, style: str, **changes) -> Settings:
    """What a style's LoRA is trained with."""
    return Settings.for_base(base, **{**OF_STYLE.get(style, {}), **changes})


def train_loras(args) -> None:
    base, content = load("pocket", device=args.device), content_pictures()
    for style in args.styles or HELD_OUT:
        changes = {"steps": args.steps} if args.steps else {}
        settings = settings_of(base, style, batch_size=args.batch_size, **changes)
        pictures = style_pictures(style)
        folder = DATA / "styles" / style
        folder.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(pictures):
            picture.save(folder / f"{i:02d}.png", optimize=True)
        run = args.work / "loras" / style
        how = {"folder": run, "progress": sys.stderr.isatty()}
        history = train_style(base, pictures, content, style, settings, **how)
        (DATA / "loras").mkdir(parents=True, exist_ok=True)
        shutil.copy(run / f"{style}.safetensors", DATA / "loras" / f"{style}.safetensors")
        for term in ("noise", "lpips", "style"):
            values = history.values(term)[1]
            first, last = np.mean(values[: len(values) // 10 + 1]), np.mean(values[-20:])
            print(f"{style}: {term} {first:.4f} -> {last:.4f}", flush=True)
        print(f"{style}: {history.seconds:.0f} s", flush=True)
        remove_lora(base, style)


STAGES = {  # stage: (function, batch size, default minutes on two CPU cores)
    "vae": (train_vae, 16, 50),
    "text-unet": (train_text_unet, 24, 60),
    "perceptual": (train_perceptual, 32, 15),
    "judge": (train_judge, 32, 6),
    "loras": (train_loras, 8, 15),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python data/pretrain.py",
        description=__doc__,
        epilog="Default minutes on two CPU cores: "
        + ", ".join(f"{name} {minutes}" for name, (_, _, minutes) in STAGES.items())
        + ". Drawing the pictures takes about five minutes more, once.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--minutes", type=float, help="time to train for, over all restarts")
    parser.add_argument("--steps", type=int, help="or: optimiser steps to train for")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--pictures", type=int, default=12_000, help="size of the training set")
    parser.add_argument(
        "--from", type=Path, metavar="FOLDER", dest="start", help="vae, text-unet: train it further"
    )
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="vae, text-unet: more photos")
    parser.add_argument(
        "--cutouts", type=Path, metavar="FOLDER", help="vae, text-unet: objects (with alpha)"
    )
    parser.add_argument(
        "--sizes", nargs="+", type=int, help="vae, text-unet: one or two, in pixels (128; 128 256)"
    )
    parser.add_argument("--styles", nargs="+", choices=HELD_OUT, help="loras: which (all)")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path.home() / ".cache/stylenb/pretrain",
        help="folder for drawn pictures and checkpoints (~/.cache/stylenb/pretrain)",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    args.sizes = sorted(args.sizes or ([128, 256] if args.start else [128]))
    if len(args.sizes) > 2 or any(size < 64 or size % 64 for size in args.sizes):
        parser.error("--sizes takes one or two multiples of 64")
    torch.set_float32_matmul_precision("high")  # TF32, where a GPU has it
    run, batch_size, minutes = STAGES[args.stage]
    args.batch_size = args.batch_size or batch_size
    if not args.steps:
        args.minutes = args.minutes or minutes
    args.work.mkdir(parents=True, exist_ok=True)
    run(args)


if __name__ == "__main__":
    main()
