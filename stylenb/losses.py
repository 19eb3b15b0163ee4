"""The losses of the training pipeline: L2 on the noise, LPIPS for the content, Gram matrices for
the style.

LPIPS and the style loss look at pictures, so they are taken from the estimate of the clean picture
that a noise prediction implies, through one feature network.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch
from diffusers.training_utils import compute_snr
from safetensors.torch import load_file

from .errors import StylenbError
from .weights import data_file

FEATURES = ("pocket", "squeeze", "alex", "vgg")


def noise_loss(
    prediction: torch.Tensor,
    noise: torch.Tensor,
    timestep: torch.Tensor,
    scheduler,
    snr_gamma: float | None = None,
) -> torch.Tensor:
    """Mean squared error of the predicted noise, one number for each of N latents: (N,).

    snr_gamma: weigh by min(snr, gamma) / snr, which spends less on timesteps that are nearly
    solved (https://arxiv.org/abs/2303.09556, where gamma is 5); None weighs all alike.
    """
    error = (prediction.float() - noise.float()).pow(2).flatten(1).mean(1)
    if snr_gamma is None:
        return error
    ratio = compute_snr(scheduler, timestep)  # above 1 the picture prevails
    return error * ratio.clamp(max=snr_gamma) / ratio


def estimate_x0(
    scheduler, noisy: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """The clean latents that a noise prediction implies; all of the shape (N, 4, h, w).

    x0 = (noisy - sqrt(1 - abar) noise) / sqrt(abar): exact when the noise is exact. An error in the
    noise comes out sqrt((1 - abar) / abar) times as large, 1.2 times at timestep 400 and 15 times
    at 999, so that pictures of it mean little at high timesteps.
    """
    abar = scheduler.alphas_cumprod.to(noisy.device)[timestep].view(-1, 1, 1, 1)
    return (noisy.float() - (1 - abar).sqrt() * noise.float()) / abar.sqrt()


@lru_cache(maxsize=2)
def load_features(name: str = "pocket") -> torch.nn.Module:
    """The network behind LPIPS and the style loss, frozen, as a module of the `lpips` package.

    "pocket": SqueezeNet 1.1 trained on the pocket world, nothing to download; without LPIPS' linear
    heads, which were fitted to other features, so that layers count alike. "squeeze", "alex",
    "vgg": the official backbones, which torchvision downloads once (5, 233 and 528 MB), with their
    heads. Raises StylenbError for another name and when a download fails.
    """
    import lpips

    if name not in FEATURES:
        raise StylenbError(f"features is one of {', '.join(FEATURES)}, not {name!r}.")
    if name != "pocket":
        try:
            return lpips.LPIPS(net=name, verbose=False).eval().requires_grad_(False)
        except Exception as error:  # no network, a proxy, no disk: the ways out are the same
            raise StylenbError(
                f"The features {name!r} could not be downloaded ({type(error).__name__}): switch "
                "the internet on, or use features='pocket', which come with the course."
            ) from error
    state = load_file(data_file("perceptual", "squeezenet1_1.safetensors"))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # it draws first weights
        warnings.simplefilter("ignore")  # lpips calls torchvision by an older name of an argument
        net = lpips.LPIPS(net="squeeze", pnet_rand=True, lpips=False, verbose=False)
    # "slice2.3.squeeze.weight" of lpips is "3.squeeze.weight" of torchvision's `features`
    net.net.load_state_dict({key: state[key.split(".", 1)[1]] for key in net.net.state_dict()})
    return net.eval().requires_grad_(False)


def unit_features(net: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Features (N, C, h, w) of images (N, 3, H, W) in [-1, 1], one tensor a layer, scaled to unit
    length at every place.

    The scaling is LPIPS' own. The style loss needs it too: the squares of raw features span orders
    of magnitude, and the few largest would drown all others.
    """
    return [unit(features) for features in net.net(net.scaling_layer(images))]


def unit(features: torch.Tensor) -> torch.Tensor:
    """Features (N, C, h, w), scaled to unit length at every place."""
    # The lpips package's scaling has no gradient (NaN) where all features of a place are zero.
    return features * (features.pow(2).sum(1, keepdim=True) + 1e-10).rsqrt()


def lpips_from(net: torch.nn.Module, a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
    """LPIPS (https://arxiv.org/abs/1801.03924) of two sets of unit features: (N,)."""
    squares = [(one - two) ** 2 for one, two in zip(a, b, strict=True)]
    if net.lpips:
        squares = [head(square) for head, square in zip(net.lins, squares, strict=True)]
    return sum(square.sum(1).mean((1, 2)) for square in squares)


def gram(features: torch.Tensor) -> torch.Tensor:
    """Gram matrices (N, C, C) of features (N, C, h, w), in float32, divided by the h w places.

    Which features occur together, wherever that is: a description of texture
    (https://arxiv.org/abs/1508.06576).
    """
    flat = features.float().flatten(2)
    return flat @ flat.mT / flat.shape[2]


def palette(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean colour (N, 3) of images (N, 3, H, W) in [-1, 1], and covariance of their colours
    (N, 3, 3), at a quarter the size, where fine marks have become a colour."""
    colours = torch.nn.functional.avg_pool2d(images.float(), 4).flatten(2)
    mean = colours.mean(2)
    rest = colours - mean[:, :, None]
    return mean, rest @ rest.mT / rest.shape[2]


def tones(images: torch.Tensor) -> torch.Tensor:
    """Where images (N, 3, H, W) in [-1, 1] are light and where dark, as images of the same shape:
    grey, blurred to 32 x 32 places, and brought to one mean and spread.

    This is what LPIPS is shown of the content. Of the whole picture it would hold on to the colours
    and the fine marks as well, which the style is there to change: hatching becomes a tone here,
    and a style may darken all.
    """
    small = torch.nn.functional.adaptive_avg_pool2d(images.float(), 32).mean(1, keepdim=True)
    grey = torch.nn.functional.interpolate(small, images.shape[2:], mode="bilinear")
    spread, mean = torch.std_mean(grey, (1, 2, 3), keepdim=True)
    return (0.4 * (grey - mean) / (spread + 0.1)).expand(-1, 3, -1, -1)


class PictureLosses:
    """LPIPS to the tones of the content, and distance to a style.

    style_images (M, 3, H, W) in [-1, 1] set the target once: the means of their Gram matrices and
    palettes, and how far from these they lie themselves.
    """

    def __init__(self, style_images: torch.Tensor, features: str = "pocket", device=None):
        self.net = load_features(features).to(device or style_images.device)
        with torch.no_grad():
            parts = [self._describe(images) for images in style_images.to(device).split(4)]
            found = [torch.cat(part) for part in zip(*parts, strict=True)]
            self.targets = [part.mean(0) for part in found]
            self.usual = self._distances(found).mean(1, keepdim=True)

    def _describe(self, images: torch.Tensor, features=None) -> list[torch.Tensor]:
        features = unit_features(self.net, images) if features is None else features
        return [*palette(images), *map(gram, features)]

    def _distances(self, found: list[torch.Tensor]) -> torch.Tensor:
        """Of palette and of texture to the target: (2, N)."""
        mean, covariance, *grams = [
            (one - target).pow(2).flatten(1).sum(1)
            for one, target in zip(found, self.targets, strict=True)
        ]
        variance = self.targets[1].trace() + 0.01  # of a style in one flat colour it is 0
        sizes = [target.pow(2).sum() for target in self.targets[2:]]
        textures = [gram / size for gram, size in zip(grams, sizes, strict=True)]
        # The palette stands beside the Gram matrices, and not as one more of them: those are so
        # large that no layer among them would be heard.
        colours = mean / variance + covariance / variance**2
        return torch.stack([colours, torch.stack(textures).mean(0)])

    def __call__(
        self, images: torch.Tensor, content: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and the content they are to keep, both (N, 3, H, W) in [-1, 1] -> LPIPS of their
        tones (N,) and style distance (N,).

        Half of the style distance is of textures: the squared distance of the Gram matrices over
        the squared length of the target, the mean of all layers. The other half is of the palette:
        the squared distances of mean and covariance, in units of the variance that the style's own
        colours have. Of each half counts what is beyond the usual distance of the style's own
        pictures, so that a style which leaves a picture its colours is not taken to be the mean of
        them all. 0 is as near as those.
        """
        with torch.autocast(images.device.type, enabled=False):
            images = images.float()
            found = unit_features(self.net, tones(images))
            with torch.no_grad():
                wanted = unit_features(self.net, tones(content))
            return lpips_from(self.net, found, wanted), self.style(images)

    def style(self, images: torch.Tensor, features=None) -> torch.Tensor:
        """The style distance alone: (N,). features: the images' unit features, if at hand."""
        found = self._distances(self._describe(images, features))
        return (found - self.usual).relu().mean(0)
