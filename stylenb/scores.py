"""Scores: how near two pictures are, and which style a picture is in."""

import json
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from .base import data_file
from .losses import load_features
from .photos import to_tensor


def psnr(a, b) -> float:
    """Peak signal-to-noise ratio in dB of two pictures (or lists of them, averaged); inf if equal.

    20 dB is rough, 30 dB is hard to tell apart at a glance.
    """
    from skimage.metrics import peak_signal_noise_ratio

    if isinstance(a, Image.Image):
        a, b = [a], [b]
    return float(
        np.mean(
            [
                peak_signal_noise_ratio(np.asarray(x), np.asarray(y))
                for x, y in zip(a, b, strict=True)
            ]
        )
    )


@torch.no_grad()
def lpips_distance(a, b) -> torch.Tensor:
    """LPIPS of pictures a and b (or lists of N): (N,), 0 for equal pictures, larger is further."""
    net = load_features()  # wherever a training has put it
    device = next(net.parameters()).device
    return net(to_tensor(a).to(device), to_tensor(b).to(device)).flatten().cpu()


@lru_cache(maxsize=1)
def load_judge() -> tuple[torch.nn.Module, list[str]]:
    """The style judge (a ShuffleNet that no training loss ever sees) and the styles it knows."""
    from torchvision.models import shufflenet_v2_x0_5

    path = data_file("judge", "shufflenet_v2_x0_5.safetensors")
    with safe_open(path, "pt") as file:
        styles = json.loads(file.metadata()["styles"])
    network = shufflenet_v2_x0_5(num_classes=len(styles))
    network.load_state_dict(
        {
            key: value.float() if value.is_floating_point() else value
            for key, value in load_file(path).items()
        }
    )
    return network.eval().requires_grad_(False), styles


@torch.no_grad()
def style_probabilities(pictures) -> torch.Tensor:
    """What the judge makes of pictures, seen at 128 x 128: (N, styles), rows that sum to 1."""
    network, _ = load_judge()
    x = to_tensor(pictures)
    if x.shape[-2:] != (128, 128):
        x = torch.nn.functional.interpolate(x, size=(128, 128), mode="bilinear", antialias=True)
    return network(x).softmax(1)


def judge(pictures) -> list[str]:
    """The style that the judge sees in each picture."""
    _, styles = load_judge()
    return [styles[i] for i in style_probabilities(pictures).argmax(1).tolist()]
