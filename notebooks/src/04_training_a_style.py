# ---
# jupyter:
#   stylenb:
#     title: Training a style
#     about: >-
#       Five steps turn 16 pictures into a style: encode, add noise, predict it, compare by L2,
#       LPIPS and style loss, and update the LoRA. You take them one by one, train a style, and find
#       out what each part does by leaving it out.
#     read: 35
#     do: 75
#     needs: lessons 02 and 03; about a quarter of an hour of computing; no GPU
# ---

# %% [markdown]
# **After this lesson you can**
#
# - name the five steps of the training pipeline, and say which shape goes in and out of each,
# - write the three losses, L2, LPIPS and style loss, in a few lines each, and say what each asks
#   for,
# - say why features are normalised first, and why pictures of an estimate count only low in the
#   schedule,
# - write the training loop, train a style from 16 pictures, and show with numbers that it came
#   over,
# - recognise what too much of one loss, too many steps and a wrong learning rate look like,
# - stop a training, and resume it later as if nothing had happened.
#
# There are six exercises, with checks as before. Some cells train, and take from ten seconds to a
# few minutes on two cores; a bar shows how far they are. Read on while they run.

# %% [markdown] tags=["instructor"]
# **Plan for 110 minutes.** Five steps on one batch: 12. The three losses: 28. Step 5 and the loop:
# 15. Watching a style appear: 10. Each loss alone, and too much of it: 17. Overfitting: 8. Rate and
# rank: 6. Accumulation: 5. Stop and resume: 7. Recap: 2.
#
# Short of time? End after section 6, which is the core, and give the rest as homework. **Let
# everybody choose *Run all below* when section 4 begins**, and talk about the loop while the long
# runs compute. What is not solved yet goes on with the reference, and can be solved later.
#
# Write the five names on the board at the start, one below the other: *encode, add noise, predict,
# compare, update*. Every cell up to section 5 belongs to one of them. Ask which.

# %%
import stylenb

base = stylenb.load("pocket")  # or "sd15"
base

# %%
import copy
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from stylenb import SAMPLE_PHOTOS, losses, read_folder, sample_photo, to_pictures, to_tensor
from stylenb.course import lesson_04, show
from stylenb.device import autocast
from stylenb.inference import redraw
from stylenb.loop import spread_timesteps
from stylenb.lora import add_lora, remove_lora, set_scale
from stylenb.pocket.scenes import draw_scene
from stylenb.pocket.styles import apply_style
from stylenb.training import Settings, train_style
from stylenb.weights import DATA

size, last = base.image_size, base.scheduler.config.num_train_timesteps
defaults = Settings.for_base(base)  # what the course trains a style with, from section 5 on
style = "ink"  # or another folder in data/styles
found = read_folder(DATA / "styles" / style, size)
found

# %% [markdown]
# These 16 pictures are all that the UNet will ever see of the style. It is a **held-out** one: the
# pocket UNet was trained on seven styles, and this was not among them. (The autoencoder has met
# pictures in it, and so has the network of section 2 that compares features.) `read_folder` opens
# every picture of a folder at the base's size, and says what it skipped.
#
# Beside them we need pictures of anything, in no style: the **content**. 24 drawn scenes and eight
# photographs; many, so that whatever colours a photo has, the like was there. Their work comes in
# step 4.

# %%
style_pictures = found.pictures
content_pictures = [draw_scene(900_000 + i, size).picture for i in range(24)]
photographs = [name for name in SAMPLE_PHOTOS if name not in ("chelsea", "coffee")]
content_pictures += [sample_photo(name, size) for name in photographs[:8]]

show.sheet(
    style_pictures[:8] + content_pictures[-10:-2],
    [style] * 8 + ["content"] * 8,
    columns=8,
    width=0.8,
    title=f"Some of the pictures in the style {style}, and some of the content",
    alt=f"Eight pictures in the style {style}, all in its manner and of different scenes; then "
    "drawn landscapes and photographs in no style.",
)

# %% [markdown]
# ## 1. Five steps, on one batch
#
# A batch is what one step of training looks at. Ours has two parts: some pictures in the style, and
# some content. We stay with this one batch until section 4, and take it through all five steps by
# hand.
#
# ### Step 1: encode

# %%
style_images, content_images = to_tensor(style_pictures), to_tensor(content_pictures)


@torch.no_grad()
def encode(images):
    """Images (N, 3, H, W) -> latents (N, 4, h, w), a few at a time."""
    return torch.cat([base.encode(part).float().cpu() for part in images.split(4)])


style_latents, content_latents = encode(style_images), encode(content_images)
print("style pictures  ", tuple(style_images.shape), "->", tuple(style_latents.shape))
print("content pictures", tuple(content_images.shape), "->", tuple(content_latents.shape))

batch, extra = (8, 2) if size < 256 else (1, 1)  # 512 px leave no room for more on a small GPU
picks = [0, 24][:extra]  # a scene and a photograph
latents = torch.cat([style_latents[:batch], content_latents[picks]]).to(base.device)
content = content_images[picks].to(base.device)
print("the batch       ", tuple(latents.shape), f"{batch} in the style, {extra} of content")

# %% [markdown]
# A picture has the same latents today and tomorrow, so each is encoded *once*, before the training
# begins, and so is the empty prompt `""`. Scripts that run the autoencoder and the text encoder
# again at every step spend a good part of their time on it.
#
# ### Step 2: add noise by the schedule
# Each picture gets a timestep of its own, and as much noise as belongs there (lesson 02). The
# styled ones are spread over as much of the schedule as stylising goes through (`timesteps`); what
# lies above it would be learned in vain. The content stays lower; section 2 says why.

# %%
top = defaults.timesteps
t = torch.cat(
    [torch.linspace(0.06, 0.94, batch) * top, torch.tensor([150.0, 350.0])[:extra]]
).long()
t = t.to(base.device)
noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(base.device)
noisy = base.scheduler.add_noise(latents, noise, t)
for name, value in (("latents", latents), ("timestep", t), ("noise", noise), ("noisy", noisy)):
    print(f"{name:9s}", tuple(value.shape))


# %%
@torch.no_grad()
def look(latents):
    """Latents (N, 4, h, w) -> a list of N pictures (3, H, W), ready to show."""
    return [base.decode(one[None])[0].float().cpu() for one in latents]


show.sheet(
    look(noisy),
    [f"t = {one}" for one in t.tolist()],
    columns=batch + extra,
    width=0.75,
    title=f"The batch under noise: {batch} in the style, {extra} of content",
    alt="A row of pictures in the style and of content, under noise and decoded. The first of the "
    "styled ones can still be made out, the last hardly; the content is noised as well.",
)

# %% [markdown]
# ### Step 3: the UNet predicts the noise
# With a fresh LoRA in it, whose B is zero. Nothing else in the base can change: everything is
# frozen but A and B (lesson 03).
#
# Which layers get one? Lesson 03 took the projections of the attention, as the paper did. Attention
# is one part of a **transformer block**; the other is a **feed-forward** part of two large
# matrices, and a matrix each leads into the block and out of it. The attention of a small model is
# small: a LoRA of rank 4 on it has 58,240 numbers here, and 797,184 in SD v1.5 (lesson 03). So here
# all of these matrices get their A and B. `layers` says which.

# %%
parameters = add_lora(base, "first", defaults.rank, layers=defaults.layers)
prediction = base.predict_noise(noisy, t)  # no prompt: ""

trainable = sum(p.numel() for p in parameters)
everything = sum(p.numel() for p in base.unet.parameters())
print("noisy     ", tuple(noisy.shape))
print("prediction", tuple(prediction.shape))
print(f"{trainable:,} of {everything:,} numbers can be trained: {trainable / everything:.1%}")
print(f"layers: {defaults.layers}, {len(parameters) // 2} pairs of A and B")

# %% [markdown]
# ## 2. Step 4: L2 + LPIPS + style loss
#
# A **loss** is one number that says how wrong the result is. Training lowers it, and asks for
# nothing else. So what is not in the loss, no training will give you; that makes this step the one
# to spend time on.
#
# ### L2: the noise
# The mean squared error between the noise and its prediction, on the pictures in the style. This is
# how the base itself was trained. Done with the 16 pictures alone, it says: *learn to clean up
# pictures that look like these*.


# %%
def l2(prediction, noise):
    """Predicted and true noise of N latents -> one number."""
    return ((prediction - noise) ** 2).mean()


ours = l2(prediction[:batch], noise[:batch])
theirs = losses.noise_loss(prediction[:batch], noise[:batch], t[:batch], base.scheduler).mean()
print(f"L2: ours {ours:.6f}, the library's {theirs:.6f}")

# %% [markdown]
# What L2 does *not* say: what to do with a photo. When you stylise, the UNet is given a noised
# **photo**, whose colours and shapes still shine through. L2 has only ever shown it noised pictures
# that were in the style already. So we want to show it noised content as well, look at the picture
# that comes out, and ask two things: is it still this content? Is it in the style?
#
# ### From noise to a picture
# A prediction of the noise implies an estimate of the clean latents, exercise 3 of lesson 02. The
# decoder makes a picture of it. Gradients flow back through all of this.

# %%
x0 = losses.estimate_x0(base.scheduler, noisy[batch:], prediction[batch:], t[batch:])
estimates = base.decode(x0).float()
print("noisy content", tuple(noisy[batch:].shape))
print("estimate     ", tuple(x0.shape))
print("its picture  ", tuple(estimates.shape))

show.sheet(
    [*content.cpu(), *look(noisy[batch:]), *estimates.detach().cpu()],
    ["content"] * extra
    + [f"noisy, t = {one}" for one in t[batch:].tolist()]
    + ["estimate"] * extra,
    columns=extra,
    width=1.1,
    title="Content, noised, estimate",
    alt="The content pictures, the same under noise, and the estimates: softer than the originals, "
    "and where there was more noise, with the large shapes only.",
)

# %% [markdown]
# ### Features
# How like are two pictures? Comparing pixels is a bad answer: shift a picture by one pixel and it
# is "far" from itself. So both are sent through a small network that was trained to name things and
# styles, and what it *notices* is compared. At each layer it gives a stack of maps, the
# **features**: here is an edge of this kind, there a patch of that colour. Deeper layers see larger
# areas.

# %%
net = copy.deepcopy(losses.load_features()).to(base.device)  # a SqueezeNet, frozen


def features_of(images):
    """Images (N, 3, H, W) in [-1, 1] -> features (N, C, h, w), one tensor for each layer."""
    return list(net.net(net.scaling_layer(images)))


with torch.no_grad():
    styled = features_of(style_images[:8].to(base.device))
    plain = features_of(content_images[:8].to(base.device))
for number, layer in enumerate(styled):
    print(f"layer {number}", tuple(layer.shape))

# %%
busiest = styled[0][0].std((1, 2)).argsort(descending=True)[:6].tolist()
show.sheet(
    [style_images[0], *styled[0][0, busiest].cpu(), content_images[0], *plain[0][0, busiest].cpu()],
    ["style", *(f"feature {c}" for c in busiest), "content"] + [""] * 6,
    columns=7,
    width=0.8,
    title="Six features of layer 0",
    alt="A picture in the style and one of content, and beside each six maps, which are bright "
    "where the picture has an edge or a colour of some kind, and dark elsewhere.",
)

# %% [markdown]
# ### LPIPS: is it still this content?
# LPIPS (*learned perceptual image patch similarity*, Zhang et al. 2018,
# https://arxiv.org/abs/1801.03924) compares features **place by place**:
#
# 1. at each place, scale the features to length 1,
# 2. take the squared difference to the features of the other picture *at the same place*,
# 3. add up over the features, average over the places, add up over the layers.


# %%
def unit(features):
    """Features (N, C, h, w), scaled to length 1 at every place."""
    return features / (features.pow(2).sum(1, keepdim=True) + 1e-10).sqrt()


def lpips(a, b):
    """Two batches of images (N, 3, H, W) -> their distances (N,)."""
    layers = zip(features_of(a), features_of(b))
    return sum((unit(one) - unit(two)).pow(2).sum(1).mean((1, 2)) for one, two in layers)


with torch.no_grad():
    print("ours           ", lpips(estimates, content).tolist())
    print("the lpips package", net(estimates, content).flatten().tolist())

# %% [markdown]
# (The package can also weigh the features by how much people care about each. Those weights belong
# to other networks than ours, so they are left out, and our numbers are larger than those in
# papers: two vectors of length 1 without a negative number are up to √2 apart, so each of the seven
# layers gives up to 2.)
#
# But LPIPS holds on to *everything*: colours, fine marks, brightness. Those are what the style is
# there to change; with LPIPS on the whole picture it could not. What should stay is what is where.
# So LPIPS is shown the **tones** only: where the picture is light and where dark, in blurred grey.
# Hatching half fades into a tone there, and so does a heap of dots. Only half: compare the tones
# of the drawings below with those of the content, and the two numbers. What is left of the distance
# of a *true* drawing, this loss will hold against it: a reason to give it a small weight.


# %%
def tones(images):
    """Images (N, 3, H, W) -> the same, grey, blurred to 32 × 32 places, of one mean and spread."""
    small = torch.nn.functional.adaptive_avg_pool2d(images, 32).mean(1, keepdim=True)
    grey = torch.nn.functional.interpolate(small, images.shape[2:], mode="bilinear")
    spread, mean = torch.std_mean(grey, (1, 2, 3), keepdim=True)
    return (0.4 * (grey - mean) / (spread + 0.1)).expand(-1, 3, -1, -1)


drawn_in_ink = to_tensor([apply_style("ink", picture) for picture in content_pictures[:4]])
plain_four = content_images[:4]
with torch.no_grad():
    one, two = plain_four.to(base.device), drawn_in_ink.to(base.device)
    print(f"LPIPS of the pictures: {float(lpips(one, two).mean()):.2f}")
    print(f"LPIPS of their tones:  {float(lpips(tones(one), tones(two)).mean()):.2f}")

show.sheet(
    [*plain_four, *drawn_in_ink, *tones(plain_four), *tones(drawn_in_ink)],
    ["content"] * 4 + ["in ink"] * 4 + ["its tones"] * 8,
    columns=8,
    width=0.8,
    title="What LPIPS is shown",
    alt="Four pictures and the same drawn in ink, and below each its tones: blurred, grey. In the "
    "tones of a drawing the light and dark of its picture come through, and so do its coarser "
    "lines.",
)

# %% [markdown]
# ### Style loss: is it in the style?
# A style is not *where* something is but *what goes with what*: slanted strokes on cream, dark rims
# around bright panes. So forget the places, and ask for each pair of features how strongly they
# occur **together**. That is a **Gram matrix** (Gatys et al. 2015,
# https://arxiv.org/abs/1508.06576):
#
# $$G_{ij} = \frac{1}{\text{places}} \sum_{\text{places } p} f_i(p) \, f_j(p)$$
#
# ### Exercise 1: Gram matrix
# Features (N, C, h, w) become (N, C, C). `features.flatten(2)` makes one row of each map, (N, C, h
# × w); `x.mT` transposes the last two dimensions.


# %% tags=["exercise"]
def gram(features):
    """Features (N, C, h, w) -> Gram matrices (N, C, C), divided by the number of places."""
    return ...  # your code


# %% tags=["solution"]
def gram(features):
    """Features (N, C, h, w) -> Gram matrices (N, C, C), divided by the number of places."""
    flat = features.flatten(2)
    return flat @ flat.mT / flat.shape[2]


# %% tags=["check"]
gram = lesson_04.check("gram", gram)

# %% [markdown]
# <details><summary>Hint 1</summary>With <code>flat</code> of the shape (N, C, places), which
# product of matrices has the shape (N, C, C)?</details>
# <details><summary>Hint 2</summary><code>flat @ flat.mT</code> multiplies and adds up over the
# places.</details>
# <details><summary>Hint 3</summary>Divide by the number of places,
# <code>flat.shape[2]</code>.</details>

# %% [markdown]
# Here they are for the first layer: the mean over the 16 pictures in the style, the content as it
# is, and the estimate. The features are sorted by how strong they are in the style.

# %%
with torch.no_grad():
    in_style = torch.cat(
        [gram(unit(features_of(p.to(base.device))[0])) for p in style_images.split(4)]
    )
    of_content = gram(unit(features_of(content)[0]))[-1]
    of_estimate = gram(unit(features_of(estimates)[0]))[-1]

order = in_style.mean(0).diagonal().argsort(descending=True)
maps = [g[order][:, order].cpu() for g in (in_style.mean(0), of_content, of_estimate)]
print("features", tuple(styled[0].shape[1:]), "-> Gram matrix", tuple(maps[0].shape))
reach = max(float(g.quantile(0.99)) for g in maps)
show.sheet(
    maps,
    [style, "content", "estimate"],
    limits=(0, reach),
    pixels=True,
    width=1.5,
    title="Gram matrices of layer 0",
    alt="Three symmetric maps of which features occur together. That of the style fades from the "
    "top left corner outwards; those of the content and of its estimate are bright in partly other "
    "places, and like each other.",
)

# %% [markdown]
# The estimate's matrix is much like the content's: so far nothing draws in the style. The **style
# loss** is the squared difference to the matrix of the style, divided by the squared size of that
# matrix, which brings all layers to one scale. It is averaged over the layers.
#
# Beside the layers stands the **palette**: the mean colour, and the covariance of red, green and
# blue, which says how far they vary and which of them vary together. Both are compared in units of
# the variance that the style itself has: where that is nearly all one colour, a little off is
# much. As one layer among many the palette would be drowned, so it makes up half of the loss.


# %%
def palette(images):
    """Images (N, 3, H, W) -> mean colours (N, 3) and covariances of the colours (N, 3, 3)."""
    colours = torch.nn.functional.avg_pool2d(images, 4).flatten(2)  # fine marks become a colour
    mean = colours.mean(2)
    rest = colours - mean[:, :, None]
    return [mean, rest @ rest.mT / rest.shape[2]]


def describe(images):
    """Images (N, 3, H, W) -> the two parts of the palette, and a Gram matrix for each layer."""
    return palette(images) + [gram(unit(layer)) for layer in features_of(images)]


def distances(found):
    """What describe found of N images -> distances of palette and of texture (2, N)."""
    mean, covariance, *textures = [
        (one - target).pow(2).flatten(1).sum(1) / length
        for one, target, length in zip(found, targets, lengths)
    ]
    colours = mean / variance + covariance / variance**2
    return torch.stack([colours, torch.stack(textures).mean(0)])


with torch.no_grad():  # the target is taken once, from all pictures of the style
    parts = [describe(part.to(base.device)) for part in style_images.split(4)]
    of_style = [torch.cat(part) for part in zip(*parts)]
targets = [part.mean(0) for part in of_style]
variance = targets[1].trace() + 0.01  # of the style's colours; a style of one flat colour has none
lengths = [1, 1] + [target.pow(2).sum() for target in targets[2:]]

scatter = distances(of_style).mean(1, keepdim=True)
with torch.no_grad():
    plain_ones = distances(describe(content_images[:8].to(base.device))).mean(1)
for name, own, other in zip(("palette", "texture"), scatter.flatten(), plain_ones):
    print(f"{name}: pictures of the style are {own:.2f} from their mean, content is {other:.2f}")

# %% [markdown]
# No picture of the style lies exactly on the mean of all. A style that leaves pictures their own
# colours has a mean palette, too, and none of its pictures has it. So only what is *beyond* the
# usual distance counts:


# %%
def style_loss(images):
    """Images (N, 3, H, W) -> their distances from the style (N,), 0 for usual ones."""
    return (distances(describe(images)) - scatter).relu().mean(0)


# %%
looks = losses.PictureLosses(style_images, device=base.device)
with torch.no_grad():
    library_lpips, library_style = looks(estimates, content)
    for name, ours, theirs in (
        ("LPIPS", lpips(tones(estimates), tones(content)), library_lpips),
        ("style", style_loss(estimates), library_style),
    ):
        print(f"{name}: ours {ours.tolist()}, the library's {theirs.tolist()}")
        print(f"       largest difference {(ours - theirs).abs().max():.0e}")

# %% [markdown]
# From here on the library could do it all.
#
# **Predict:** cut a picture of the style into 16 tiles and lay them out anew, at random. What will
# the style loss say, and what LPIPS?


# %%
def shuffle_tiles(images, tiles=4):
    """Images (N, 3, H, W), cut into tiles × tiles pieces that change places."""
    side = images.shape[-1] // tiles
    pieces = images.unfold(2, side, side).unfold(3, side, side).flatten(2, 3)
    mixed = torch.randperm(tiles**2, generator=torch.Generator().manual_seed(1))
    pieces = pieces[:, :, mixed].unflatten(2, (tiles, tiles))
    return pieces.transpose(3, 4).flatten(4, 5).flatten(2, 3)


original = style_images[:1].to(base.device)
versions = {
    "as it is": original,
    "shuffled": shuffle_tiles(original),
    "the content": content[:1],
}
with torch.no_grad():
    for name, image in versions.items():
        print(
            f"{name:12s} style loss {float(style_loss(image)):.3f}   "
            f"LPIPS to the picture as it is {float(lpips(image, original)):.3f}"
        )
show.sheet(
    [image[0].cpu() for image in versions.values()],
    list(versions),
    title="A picture of the style, its tiles shuffled, and one of the content",
    alt="A picture in the style; the same cut into sixteen tiles that lie in another order; and a "
    "picture of the content.",
)

# %% [markdown]
# **What it means.** To the style loss the heap of tiles is still in the style: it does not know
# where things are. To LPIPS it is another picture: it knows nothing else. The two pull in different
# directions, and neither is of use alone. LPIPS to a photo is lowest if the photo stays as it was,
# and to the style loss the tiles would do.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Why multiply features with each other, and not just average them?* Averages say how much there
#   is of each, such as edges and blue. The products say whether the edges are *where* the blue is.
#   The diagonal of the Gram matrix is of the first kind, the rest of it of the second.
# - *Why is a network that recognises things good at this?* It was not made for it; that it works is
#   a finding (Gatys, and again the LPIPS paper). This one was trained to name styles and things in
#   the pocket world. It has seen the held-out styles there; the UNet has not. That makes it easier
#   here than with a style of your own, of which it will have seen nothing.
# - *Why not LPIPS to the true rendering?* In the pocket world that exists, and it would be by far
#   the best loss. With your own style there is no such thing, which is why nobody can train on it.
#   We keep it for scoring.

# %% [markdown]
# ### Why features of length 1?
# LPIPS scales the features at each place to length 1. The style loss of Gatys did not. Does it
# matter? For each layer, the squared distance between Gram matrices of styled and plain pictures,
# with features as they come (raw) and scaled; and how much of the raw matrix the strongest 5 % of
# the places make up. (Of the scaled one they make up 5 %, as every place counts alike.)

# %%
raw_distances, unit_distances = [], []
for number, (one, two) in enumerate(zip(styled, plain)):
    strength = one.pow(2).sum(1).flatten().sort(descending=True).values
    top = strength[: len(strength) // 20].sum() / strength.sum()
    raw = float((gram(one) - gram(two)).pow(2).sum((1, 2)).mean())
    scaled = float((gram(unit(one)) - gram(unit(two))).pow(2).sum((1, 2)).mean())
    raw_distances.append(raw)
    unit_distances.append(scaled)
    print(
        f"layer {number}: raw {raw:12.4g}   scaled {scaled:8.4f}   "
        f"strongest 5 % of the places: {top:.0%} of the raw matrix"
    )
for name, values in (("raw", raw_distances), ("scaled", unit_distances)):
    print(f"{name}: the largest layer is {max(values) / min(values):.0f} times the smallest")

# %% [markdown]
# **What it means.** Raw features are as large as the network happened to make them, and a Gram
# matrix of them multiplies that, and a squared difference multiplies it again: fourth powers. A few
# layers then make up nearly all of the sum, and the loss leaps when one of them changes. Dividing
# by the size of the style's matrix would cure that. It would not cure the other fault: within a
# layer, a few loud places count for much more than their share. With features of length 1, every
# place has one vote.
#
# ### Why only low in the schedule?
# The estimate is a picture only where there is little noise. Watch what becomes of both losses
# further up. The **gain** is by how much an error of the noise is magnified in the estimate (lesson
# 02); gradients on their way back are magnified by it as well.

# %%
from diffusers.training_utils import compute_snr

levels = [50, 150, 300, 450, 600, 800, 950]
rows = []
for level in levels:
    at = torch.tensor([level], device=base.device)
    with torch.no_grad():
        x = base.scheduler.add_noise(latents[batch:][:1], noise[batch:][:1], at)
        guess = base.predict_noise(x, at)
        image = base.decode(losses.estimate_x0(base.scheduler, x, guess, at)).float()
        ratio = float(compute_snr(base.scheduler, at))
        rows.append((level, ratio, image[0].cpu()))
        kept = float(lpips(tones(image), tones(content[:1])))
        print(
            f"t = {level:3d}: SNR {ratio:8.3f}   gain {ratio**-0.5:6.2f}   "
            f"LPIPS {kept:.2f}   style {float(style_loss(image)):.2f}"
        )

show.sheet(
    [content[0].cpu(), *(image for _, _, image in rows)],
    ["content", *(f"t = {level}" for level in levels)],
    columns=8,
    width=0.9,
    title="The estimate, from little noise to much",
    alt="The content, and its estimate at rising timesteps: first the picture itself, then ever "
    "blurrier, at last a haze without the scene.",
)

# %% [markdown]
# **What it means.** At the top the estimate is a haze: the average of everything that might be
# there. LPIPS asks it to show a scene that nobody can know, the style loss asks a haze for crisp
# marks, and the gain makes their demands the loudest of all. So images are taken below a timestep
# only (`picture_timesteps`), and those are weighted by how much they can be trusted:
#
# $$w(t) = \min(1, \text{SNR}(t))$$
#
# Where there is more picture than noise, the estimate counts in full; above that, less and less.
# For a squared error this just undoes the gain: at an SNR below 1, SNR × gain² is 1.
#
# ### Exercise 2: the weight
# diffusers has the SNR: `compute_snr(scheduler, timestep)` gives the ratio for timesteps (N,).


# %% tags=["exercise"]
def trust(scheduler, timestep):
    """Timesteps (N,) -> weights (N,), the SNR but never more than 1."""
    return ...  # your code


# %% tags=["solution"]
def trust(scheduler, timestep):
    """Timesteps (N,) -> weights (N,), the SNR but never more than 1."""
    return compute_snr(scheduler, timestep).clamp(max=1)


# %% tags=["check"]
trust = lesson_04.check("trust", trust)

# %% [markdown]
# <details><summary>Hint 1</summary>Python's <code>min</code> compares two numbers; here are N of
# them, each to be compared with 1.</details>
# <details><summary>Hint 2</summary>Tensors have <code>.clamp(min=..., max=...)</code>, which cuts
# off what is beyond.</details>
# <details><summary>Hint 3</summary>"Never more than 1" is <code>max=1</code>.</details>

# %%
every = torch.arange(last)
weight = trust(base.scheduler, every).cpu()
figure = show.figure(
    6,
    2.2,
    "How much an estimate counts",
    alt="A curve that is 1 for low timesteps and falls towards 0, steeply at first; the part above "
    f"timestep {defaults.picture_timesteps} is shaded as not used.",
)
axes = figure.subplots()
axes.plot(every, weight, color="#4f7cac")
axes.axvspan(defaults.picture_timesteps, last, color="#888888", alpha=0.25)
axes.set_xlabel("timestep t")
axes.set_ylabel("weight")
axes.grid(alpha=0.3)
figure

# %% [markdown]
# The curve leaves 1 well before the shaded part, and at the edge of it an estimate counts only
# about a fifth. So the weight does most of the work here, and the limit cuts off the rest.
#
# ### All three together
# Everything of step 4 in one place, for a batch whose first part is in the style and whose rest is
# content. Beside the size of each term we print its **pull**, the length of the gradient that it
# sends to A and B: how strongly it asks for a change.


# %%
def terms_of(prediction, noisy, noise, t, content):
    """The three terms of a batch, each one number. content: the images (extra, 3, H, W)."""
    x0 = losses.estimate_x0(base.scheduler, noisy[batch:], prediction[batch:], t[batch:])
    images = base.decode(x0).float()
    weight = trust(base.scheduler, t[batch:])
    return {
        "noise": l2(prediction[:batch], noise[:batch]),
        "lpips": (weight * lpips(tones(images), tones(content))).mean(),
        "style": (weight * style_loss(images)).mean(),
    }


weights = {"noise": 1.0, "lpips": defaults.lpips_weight, "style": defaults.style_weight}


def pull(term):
    """The length of the gradient of a term, over all numbers that are trained."""
    found = torch.autograd.grad(term, parameters, retain_graph=True)
    return float(sum(g.pow(2).sum() for g in found) ** 0.5)


terms = terms_of(prediction, noisy, noise, t, content)
loss = sum(weights[name] * term for name, term in terms.items())
for name, term in terms.items():
    part = weights[name] * term.item()
    print(
        f"{name:6s} {term.item():.3f} × weight {weights[name]:g} = {part:.3f}, "
        f"{part / loss.item():4.0%} of the loss;  pull {weights[name] * pull(term):.4f}"
    )
print(f"loss   {loss.item():.3f}")

# %% [markdown]
# A sum can only be steered by its **weights**. The terms are of different kinds and sizes, and a
# weight of 1 for all of them would mean nothing in particular. So: measure the sizes first, then
# choose the shares.
#
# ### Exercise 3: balance
# `sizes` holds the measured terms, `shares` what part of the sum each should have. Find the
# weights. Only their proportions matter, so let the first weight be 1.


# %% tags=["exercise"]
def balanced(sizes, shares):
    """Sizes (N,) and shares (N,) of the terms -> weights (N,), the first of them 1."""
    return ...  # your code


# %% tags=["solution"]
def balanced(sizes, shares):
    """Sizes (N,) and shares (N,) of the terms -> weights (N,), the first of them 1."""
    weights = shares / sizes
    return weights / weights[0]


# %% tags=["check"]
balanced = lesson_04.check("balanced", balanced)

# %% [markdown]
# <details><summary>Hint 1</summary>weight × size should be in proportion to the
# share.</details>
# <details><summary>Hint 2</summary>So a weight is in proportion to share / size.</details>
# <details><summary>Hint 3</summary>Divide all of them by the first, so that it becomes
# 1.</details>

# %%
sizes = torch.tensor([term.item() for term in terms.values()])
for shares in ((1 / 3, 1 / 3, 1 / 3), (0.25, 0.05, 0.7), (0.6, 0.2, 0.2)):
    found = balanced(sizes, torch.tensor(shares))
    print(
        "shares "
        + ", ".join(f"{share:.0%}" for share in shares)
        + "  ->  weights "
        + ", ".join(f"{name} {float(w):.2f}" for name, w in zip(terms, found))
    )

# %% [markdown]
# **What it means.** Shares are where to begin, not where to end. What moves A and B is the pull,
# and a large term may have a small one. Sizes also change during training. So balance once, train a
# little, look at the pictures, and correct. Sections 6 and 7 show what to look for.

# %% [markdown]
# ## 3. Step 5: backpropagate and update the LoRA weights
#
# **Backpropagation** finds for every trainable number in which direction the loss falls.
# **Predict:** this is the very first step, and B is zero. Which of A and B will have a gradient?

# %%
loss.backward()
for half in ("lora_A", "lora_B"):
    found = [p.grad for name, p in base.unet.named_parameters() if half in name and p.requires_grad]
    length = float(sum(g.pow(2).sum() for g in found) ** 0.5)
    print(f"{half}: {len(found)} matrices, e.g. {tuple(found[0].shape)}; gradient {length:.4f}")
frozen = [p for p in base.unet.parameters() if not p.requires_grad]
print(f"{len(frozen)} frozen tensors, with a gradient: {sum(p.grad is not None for p in frozen)}")

# %% [markdown]
# B alone, as lesson 03 found; A follows from the second step on. Now three lines that every
# training script ends with. **Clipping** shortens a gradient that is longer than a limit. **AdamW**
# turns the gradient into an update: it divides by the size that gradients have usually had, so each
# number moves by up to about the learning rate, be its gradient large or small. (Why clip, then?
# One huge gradient would spoil that usual size for many steps.) Then the gradients are cleared for
# the next step.

# %%
optimizer = torch.optim.AdamW(parameters, defaults.learning_rate, weight_decay=0.0)
length = torch.nn.utils.clip_grad_norm_(parameters, defaults.max_grad_norm)
optimizer.step()
optimizer.zero_grad()

with torch.no_grad():
    after = terms_of(base.predict_noise(noisy, t), noisy, noise, t, content)
print(f"gradient {float(length):.4f}, clipped at {defaults.max_grad_norm:g}")
for name, term in terms.items():
    print(f"{name:6s} {term.item():.4f} -> {after[name].item():.4f}")
loss_after = sum(weights[name] * term for name, term in after.items())
print(f"loss   {loss.item():.4f} -> {loss_after.item():.4f}")
remove_lora(base, "first")

# %% [markdown]
# One step, on the one batch that it was computed for. Not every term has to fall; their weighted
# sum should.
#
# ### The learning rate
# It begins small, because A and B know nothing yet and the optimiser has no idea of the size of the
# gradients: a **warm-up**. And it ends small, so that the last steps settle rather than jump: half
# a **cosine** from 1 down to 0.
#
# ### Exercise 4: warm-up and cosine
# The product of three things: the highest rate; a warm-up that is 1 / `warmup` at step 0, 2 /
# `warmup` at step 1 and so on until it is 1, where it stays; half a cosine, ½ (1 + cos(π · step /
# steps)).


# %% tags=["exercise"]
def rate_at(step, steps, highest, warmup):
    """step 0 .. steps - 1, the highest rate, the length of the warm-up -> the rate of the step."""
    return ...  # your code


# %% tags=["solution"]
def rate_at(step, steps, highest, warmup):
    """step 0 .. steps - 1, the highest rate, the length of the warm-up -> the rate of the step."""
    warm = min(1, (step + 1) / warmup)
    return highest * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


# %% tags=["check"]
rate_at = lesson_04.check("rate_at", rate_at)

# %% [markdown]
# <details><summary>Hint 1</summary>First only the warm-up: <code>(step + 1) / warmup</code>, but
# never more than 1.</details>
# <details><summary>Hint 2</summary><code>math.cos</code> and <code>math.pi</code>; math is
# imported above.</details>
# <details><summary>Hint 3</summary><code>highest * min(1, (step + 1) / warmup) * 0.5 * (1 +
# math.cos(...))</code></details>

# %%
from stylenb import loop

highest, warmup = defaults.learning_rate, defaults.warmup
ours = [rate_at(i, defaults.steps, highest, warmup) for i in range(defaults.steps)]
theirs = [loop.rate_at(i, defaults) for i in range(defaults.steps)]
print(f"largest difference from the library's: {max(abs(a - b) for a, b in zip(ours, theirs)):.0e}")

figure = show.figure(
    6,
    2.2,
    f"The learning rate over {defaults.steps} steps",
    alt="A curve that climbs in a straight line during the first steps and then falls to zero "
    "along half a cosine.",
)
axes = figure.subplots()
axes.plot(ours, color="#4f7cac")
axes.set_xlabel("step")
axes.set_ylabel("learning rate")
axes.grid(alpha=0.3)
figure

# %% [markdown]
# ## 4. The loop
#
# Training is those five steps, again and again, with other pictures, other timesteps and other
# noise. Which ones? They must be random: in a fixed order the weights would follow whatever came
# last. But they should be the *same* random ones whenever step 137 is run, so that a training that
# was cut can be resumed (section 11). So everything random is a **function of the step**:
#
# - timesteps and noise come from a generator whose seed is made from the step,
# - the pictures come in **epochs**: each epoch shows every picture once, in an order that is made
#   from the number of the epoch.
#
# ### Exercise 5: which picture?
# Line up all epochs in one endless row. Step 0 takes the first `batch_size` pictures of the row,
# step 1 the next, and so on, without a gap; a batch may begin in one epoch and end in the next or a
# later one. With `count` pictures in an epoch: in which epoch is each picture of a step, and at
# which place of it? All count from 0.


# %% tags=["exercise"]
def places(step, batch_size, count):
    """Three whole numbers -> a tensor (batch_size, 2): epoch and place of each picture."""
    return ...  # your code


# %% tags=["solution"]
def places(step, batch_size, count):
    """Three whole numbers -> a tensor (batch_size, 2): epoch and place of each picture."""
    positions = step * batch_size + torch.arange(batch_size)
    return torch.stack([positions // count, positions % count], dim=1)


# %% tags=["check"]
places = lesson_04.check("places", places)

# %% [markdown]
# <details><summary>Hint 1</summary>The positions in the endless row are <code>step * batch_size +
# torch.arange(batch_size)</code>.</details>
# <details><summary>Hint 2</summary>Of a position, <code>// count</code> is the epoch and <code>%
# count</code> the place.</details>
# <details><summary>Hint 3</summary><code>torch.stack([epochs, places], dim=1)</code> puts them side
# by side.</details>


# %%
def order_at(step, batch_size, count):
    """Which of `count` pictures are in the batch of a step: indices (batch_size,)."""
    chosen = []
    for epoch, place in places(step, batch_size, count).tolist():
        shuffle = torch.Generator().manual_seed(epoch)
        chosen.append(torch.randperm(count, generator=shuffle)[place])
    return torch.stack(chosen)


for step in range(4):
    where = [tuple(place) for place in places(step, 6, 16).tolist()]
    print(f"step {step}: (epoch, place) {where}\n        pictures {order_at(step, 6, 16).tolist()}")

# %% [markdown]
# 16 pictures cannot be divided into batches of 6, so step 2 takes the last four of one epoch and
# the first two of the next. Now the loop. Find the five steps in it.


# %%
def train(settings, name="mine"):
    """Train a LoRA; return the terms of the loss at every step."""
    parameters = add_lora(base, name, settings.rank, settings.alpha, settings.seed, settings.layers)
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    rows = []
    for step in range(settings.steps):
        random = torch.Generator().manual_seed(1_000_003 * settings.seed + step)
        styled = order_at(step, batch, len(style_latents))
        kept = order_at(step, extra, len(content_latents))
        latents = torch.cat([style_latents[styled], content_latents[kept]]).to(base.device)
        high = spread_timesteps(batch, settings.timesteps, random)
        low = spread_timesteps(extra, settings.picture_timesteps, random)
        t = torch.cat([high, low]).to(base.device)
        noise = torch.randn(latents.shape, generator=random).to(base.device)
        noisy = base.scheduler.add_noise(latents, noise, t)
        with autocast(base.device):  # in bfloat16, where the processor has it
            prediction = base.predict_noise(noisy, t)
        terms = terms_of(prediction, noisy, noise, t, content_images[kept].to(base.device))
        first = step < settings.picture_from * settings.steps  # the marks come first: see below
        loss = sum(weights[name] * term for name, term in terms.items())
        (terms["noise"] if first else loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, settings.steps, settings.learning_rate, settings.warmup)
        optimizer.step()
        optimizer.zero_grad()
        rows.append({name: term.item() for name, term in terms.items()})
    base.unet.requires_grad_(False)
    return rows


rows = train(replace(defaults, steps=20, warmup=5))
for step in range(0, len(rows), max(1, len(rows) // 6)):
    print(f"step {step:2d}: " + "  ".join(f"{n} {v:.3f}" for n, v in rows[step].items()))

# %% [markdown]
# One trick hides in `spread_timesteps`. Lesson 02 showed how much the error of the noise depends on
# t, so with timesteps drawn freely the loss would jump up and down with them. Here one is drawn
# from each of `batch` equal slices. Over many batches all timesteps are as likely as before, and
# now each batch has low and high ones.
#
# And one matter of order. L2 teaches the **marks** of the style, and is slow at it. LPIPS and style
# loss are quick, and could find blots and smears that please the feature network before there are
# any marks to place. So a first part of the steps (`picture_from`) belongs to L2 alone. Does it
# matter? Section 6 tries it the other way, too.
#
# **Predict:** after these few steps, will anything be seen?

# %%
watched = [
    draw_scene(20, size).picture,
    sample_photo("chelsea", size),
    sample_photo("coffee", size),
]
early = redraw(base, watched)  # as the base is now, with the LoRA in it
remove_lora(base, "mine")
without = redraw(base, watched)
show.sheet(
    without + early,
    ["base alone"] * 3 + [f"{len(rows)} steps"] * 3,
    columns=3,
    width=0.95,
    title="Without and with these few steps",
    alt="A scene, a cat and a cup of coffee, redrawn by the base alone; below, redrawn with a LoRA "
    "that was trained for a few steps only.",
)

# %% [markdown]
# Hardly. Light and dark may have become a little harder, but there is no hatching yet. All that
# differs between the rows is the work of these few steps, and the loss has fallen all the same.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Where do the gradients go on their way to A and B?* From the style loss through the feature
#   network, the decoder, the estimate and the UNet. All of that is frozen and still has to be
#   computed backwards, which is why image losses cost more than L2.
# - *Does the order of pictures matter at all?* Drawing at random with replacement works nearly as
#   well. Epochs make sure that, of 16 pictures, none is left out by bad luck.
# - *Why does AdamW get weight_decay=0?* Weight decay pulls A and B towards zero, which is the base.
#   With so few steps it would do nothing but blur what the learning rate means.

# %% [markdown]
# ## 5. A style appears
#
# `train_style` is this loop, and what one adds to it in practice:
#
# - pictures are mirrored too (`flip`),
# - content pictures can have the noise that their inversion finds (`picture_noise`; lesson 02,
#   section 9): the LoRA then practises on what stylising will give it, and keeps more of a photo,
# - the image losses, which cost the most, are not even taken in the first part (`picture_from`),
#   nor need they be at every step afterwards (`picture_every`),
# - on GPUs without bfloat16 the loss is scaled up, or small gradients would be rounded to 0,
# - a loss that is no longer a number stops the run,
# - **checkpoints** are written: files with the state of the run, to resume from (section 11),
# - at the end α is turned up, from `alpha` to `final_alpha` (section 6 tries out how far),
# - now and then some photos are redrawn, so that you can watch (`validation`, `watch`).
#
# All that decides a run is in its `Settings`. Most of them you know; `help(Settings)` has a line on
# each.

# %%
for name, value in vars(defaults).items():
    print(f"{name:28s} {value}")

# %% [markdown]
# The photos that we watch are none of those that it trains on. (Crops of the sample photographs
# were among the training pictures of the pocket *base*, in the styles that it knows.) Beside them
# stands the **truth**, which only this small world has: the style is a function that can be laid
# over any picture, photographs too, so we know how each should come out. (It is drawn over the
# sharp original; no picture that went through the autoencoder gets as crisp, see lesson 01.)

# %%
truth = [apply_style(style, picture) for picture in watched]


def stages_with(pictures):
    """What there is to see so far; pictures: step -> the photos, redrawn at that step."""
    redrawn = {f"step {step}": photos for step, photos in pictures.items()}
    return {"original": watched, "step 0": without} | redrawn | {"the truth": truth}


def sheet_of(stages):
    return show.sheet(
        [stages[stage][row] for row in range(len(watched)) for stage in stages],
        list(stages),
        columns=len(stages),
        width=0.8,
        title=f"{style}, while it is being learned",
        alt="Three rows, a scene, a cat and a cup of coffee: the original, redrawn by the base "
        "alone, then as the training goes on, and at the right the true rendering in the style "
        f"{style}.",
    )


# %% [markdown]
# Now the longest run of the lesson. Five times on the way the photos are redrawn, and `watch`
# is handed all that there is so far: it puts a longer sheet in the place of the one before.
#
# **Predict:** what comes first, what last: the colours leave, hatching appears, the dark parts turn
# to solid black?

# %%
from IPython.display import display

folder = Path(tempfile.mkdtemp())  # for all the runs of this lesson
view = display(sheet_of(stages_with({})), display_id=True)
history = train_style(
    base,
    style_pictures,
    content_pictures,
    style,
    defaults,
    folder=folder / "watched",
    validation=watched,
    validate_every=max(1, defaults.steps // 5),
    watch=lambda pictures: view.update(sheet_of(stages_with(pictures))),
)
stages = stages_with(history.pictures)

# %% [markdown]
# With the ink, hatching comes first: it is there after the first fifth of the run, while most of
# the colours are still there. The colours leave last, after LPIPS and style loss have set in. Solid
# black is strongest just then, on the scene; at the end there is less of it than in the truth. Is
# it these two losses that take the colours away? Section 6 leaves them out.
#
# Step through it in larger pictures. (On a page that only shows the notebook, you see the last step
# and no menu.)


# %%
def draw(step):
    return show.sheet(
        stages[step],
        ["scene", "cat", "coffee"],
        width=1.4,
        title=step,
        alt=f"The scene, the cat and the cup of coffee, {step}.",
    )


show.interactive(draw, step=[name for name in stages if name.startswith("step")][::-1])

# %% [markdown]
# ### What the losses say
# Each term jumps about, because every batch is another. The thick lines are running means.


# %%
def running(values, keep=0.95):
    """Each value, averaged with those before it, older ones counting less."""
    total, count, result = 0.0, 0.0, []
    for value in values:
        total, count = keep * total + value, keep * count + 1
        result.append(total / count)
    return result


figure = show.figure(
    7.5,
    2.4,
    "The three terms over the steps",
    alt="Three panels, noise, LPIPS and style loss over the steps. Thin lines jump up and down "
    "from step to step; a thick line in each shows the running mean. LPIPS and style loss begin at "
    "a dotted line in the middle.",
)
for axes, (term, label) in zip(
    figure.subplots(1, 3),
    {"noise": "L2 of the noise", "lpips": "LPIPS", "style": "style loss"}.items(),
):
    steps, values = history.values(term)
    axes.plot(steps, values, color="#4f7cac", alpha=0.35, linewidth=0.8)
    axes.plot(steps, running(values), color="#1d3557", linewidth=2)
    axes.set_title(label, fontsize=9)
    axes.set_xlabel("step")
    axes.set_xlim(0, history.steps)
    axes.axvline(defaults.picture_from * history.steps, color="#c0553b", linestyle=":")
    axes.set_ylim(0)
    axes.grid(alpha=0.3)
figure

# %% [markdown]
# Read them with care. The L2 falls little even when all is well, as most of it is noise that nobody
# can predict. At the dotted line LPIPS and style loss set in, and the L2 may go *up* again: from
# there on A and B serve three masters. LPIPS may well *rise*: a picture in the style is further
# from the photo than the photo is. Only the style loss is expected to fall clearly. So losses tell
# you that something is wrong; that it is right, only pictures and scores tell.
#
# To see the L2 fall, take the chance out: the same pictures, the same timesteps, the same noise,
# before and after.

# %%
fixed = torch.tensor([50, 150, 300, 500, 800])


@torch.no_grad()
def fixed_l2(latents):
    """The L2 of the base as it is now on latents (N, 4, h, w), always with the same noise."""
    x0, at = latents.repeat(len(fixed), 1, 1, 1), fixed.repeat_interleave(len(latents))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(9))
    noisy = base.scheduler.add_noise(x0, noise, at)
    guess = [
        base.predict_noise(x.to(base.device), when.to(base.device)).float().cpu()
        for x, when in zip(noisy.split(8), at.split(8))
    ]
    return float(l2(torch.cat(guess), noise))


four, content_four = style_latents[:4], content_latents[:4]
for name in (None, style):
    set_scale(base, name, defaults.alpha / defaults.final_alpha)  # as loud as in training
    print(
        f"{'with' if name else 'without'} the LoRA: L2 on styled pictures {fixed_l2(four):.4f}, "
        f"on content {fixed_l2(content_four):.4f}"
    )

# %% [markdown]
# On the content it should not get better but rather worse: the LoRA is no longer neutral, it takes
# every picture for one in the style. That is the point of it. See what it believes now, in the
# estimates of noised photos:

# %%
levels = [200, 400, 550]
at = torch.tensor(levels, device=base.device)
shown = []
for picture in watched[:2]:
    clean = encode(to_tensor(picture)).repeat(len(levels), 1, 1, 1)
    start = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    x = base.scheduler.add_noise(clean.to(base.device), start.to(base.device), at)
    believed = []
    for name in (None, style):
        set_scale(base, name)
        with torch.no_grad():
            guess = base.predict_noise(x, at)
        believed.append(look(losses.estimate_x0(base.scheduler, x, guess, at)))
    shown.append(believed)

show.sheet(
    [picture for row in range(2) for both in shown for picture in both[row]],
    [f"t = {level}" for level in levels] * 2,
    columns=2 * len(levels),
    width=0.85,
    title="Estimates: the base alone, below with the LoRA",
    alt="A scene and a cat under the noise of three timesteps: the estimates of the base alone, "
    "and below those with the LoRA.",
)

# %% [markdown]
# ### What is left of it on the disk
# The LoRA, the history, and the last checkpoints, which are larger: they hold the optimiser's
# memory as well, and all of it in float32, where the LoRA's file has float16. The LoRA is all that
# is needed from now on:

# %%
for file in sorted((folder / "watched").iterdir()):
    print(
        f"{file.stat().st_size / 1000:7.0f} kB  {file.name}"
        if file.is_file()
        else f"{'':12s}{file.name}/"
    )

remove_lora(base, style)
saved = folder / "watched" / f"{style}.safetensors"
new = draw_scene(21, size).picture
picture = stylenb.stylize(new, saved, size=size, base=base)  # loads the file into the base
show.sheet(
    [new, picture, apply_style(style, new)],
    ["a new scene", "with the file", "the truth"],
    width=1.3,
    title="Stylised with the file",
    alt="A scene, the same redrawn with the LoRA from the file, and its true rendering in the "
    f"style {style}.",
)

# %% [markdown]
# Compare the small things, houses and trees. On the pocket model no random noise has covered them
# (lesson 02, section 9), and yet they are lost here: they are two or three latents wide, the
# strokes want the same places, and every step up and down is a little off. (Where the start is
# random, as on SD v1.5, noise covers them as well.)

# %% [markdown]
# ## 6. L2 alone, + LPIPS, + style loss
#
# What is each term good for? Leave it out and see: short runs, alike but for the weights, and one
# in which all three pull from the first step on. To compare them we need scores. Twelve scenes that
# no run has seen are redrawn, and three things are asked:
#
# - **style judge**: how sure is a network, trained to tell the styles apart, that this is our
#   style? It was in no loss.
# - **LPIPS to the original**: how far is it from the scene that went in? This measures change, not
#   quality: untouched is 0.
# - **LPIPS to the truth**: how far is it from the scene drawn in the style? The only one that asks
#   for style and content at once.
#
# Mind that both LPIPS scores look through **the network that was in the loss**. Whoever is trained
# to please a judge will please that judge: it is **biased** towards the runs that had it. The style
# judge is another network, trained apart. So a lead in one score needs a second witness, another
# score or your eyes.
#
# After ± stands the **standard error** over the scenes: by about so much the mean would move with
# other scenes. It knows nothing of the training: the same recipe with another seed, or a few more
# steps, moves the means as well.

# %% tags=["parameters"]
from stylenb import lpips_distance
from stylenb.scores import load_judge, style_probabilities

scene_count = 12  # of those to score
scenes = [draw_scene(seed, size).picture for seed in range(scene_count)]
subjects = scenes + watched[1:]  # twelve scenes to score, and two photographs to look at
truths = [apply_style(style, picture) for picture in subjects]
judged = load_judge()[1].index(style)


def scores(drawn):
    """Pictures made of the subjects -> three scores of those of the scenes, each (12,)."""
    drawn = drawn[: len(scenes)]
    return {
        "style judge": style_probabilities(drawn)[:, judged],
        "to the original": lpips_distance(drawn, scenes),
        "to the truth": lpips_distance(drawn, truths[: len(scenes)]),
    }


def mean_and_error(values):
    return f"{values.mean():.2f} ± {values.std() / len(values) ** 0.5:.2f}"


def print_scores(drawn_by):
    """drawn_by: name -> pictures made of the subjects."""
    table = {name: scores(drawn) for name, drawn in drawn_by.items()}
    print(f"{'':20s}" + "".join(f"{name:>18s}" for name in table["untouched"]))
    for name, row in table.items():
        print(f"{name:20s}" + "".join(f"{mean_and_error(values):>18s}" for values in row.values()))


set_scale(base, None)
drawn_by = {"untouched": subjects, "base alone": redraw(base, subjects)}
set_scale(base, style)  # the file, loaded at the end of section 5
drawn_by["section 5's run"] = redraw(base, subjects)
drawn_by["truth, decoded"] = to_pictures(torch.stack(look(encode(to_tensor(truths)))))
drawn_by["the truth"] = truths
print_scores(drawn_by)

# %% [markdown]
# The first two rows are what has to be beaten. The last but one, the truth after the autoencoder,
# is what can be reached at best.
#
# ### How loud?
# In training, α was 1. L2 has shown the UNet pictures that were in the style already; a noised
# photo is something in between, and a LoRA that has learned to be right *on average* may be too
# cautious there. So the finished LoRA gets a larger α, `final_alpha`, and goes further in the
# direction that it has learned. (Guidance, in lesson 02, does the same to a prompt.) How far is far
# enough?

# %%
alphas = sorted({0.7, 1.0, defaults.final_alpha, 2.0})
louder = {}
for alpha in alphas:
    set_scale(base, style, alpha / defaults.final_alpha)  # multiplies the alpha in the file
    louder[f"alpha {alpha:g}"] = redraw(base, subjects)
remove_lora(base, style)
print_scores({"untouched": subjects} | louder)
show.sheet(
    [drawn[row] for row in (0, -2, -1) for drawn in louder.values()],
    list(louder),
    columns=len(louder),
    width=0.8,
    title="One LoRA at several alphas",
    alt="A scene, a cat and a cup of coffee, redrawn with the same LoRA at rising alpha: at first "
    "hatching, black and bright paper, then an even grey hatching that hides small things.",
)

# %% [markdown]
# **What it means.** In general, too low and the photo wins; too high, and the pictures leave what
# the UNet knows. In the recorded run even the lowest is not too low, and the highest is the
# furthest from the truth. Where is the best balance here, by the judge, by the distance to the
# truth, and to your eyes? The three need not agree: if the judge is content at 1 already, and the
# truth is nearer there, then 1 would do for this style. `final_alpha` is one value for all styles,
# and a compromise. That is what `scale` is for when you stylise: it multiplies α. (The shipped
# LoRAs have 1.5.)
#
# ### One term at a time
# **Predict:** L2 alone has only ever seen pictures in the style. At the base's default strength the
# start is still in part the photo: its colours show through the noise. What will it get right: the
# marks, the colours, both?


# %%
def run(settings):
    """Train a LoRA, redraw the subjects with it, and take it out again."""
    history = train_style(base, style_pictures, content_pictures, "tried", settings)
    drawn = redraw(base, subjects)
    remove_lora(base, "tried")
    return history, drawn


short = replace(defaults, steps=defaults.steps // 2)
variants = {
    "L2 alone": replace(short, lpips_weight=0.0, style_weight=0.0),
    "+ LPIPS": replace(short, style_weight=0.0),
    "+ style loss": short,
    "all at once": replace(short, picture_from=0.0),
}
results = {name: run(settings) for name, settings in variants.items()}

# %%
compared = {name: drawn_by[name] for name in ("untouched", "base alone")}
compared |= {name: drawn for name, (_, drawn) in results.items()}
compared["the truth"] = truths
show.sheet(
    [drawn[row] for row in (0, -2, -1) for drawn in compared.values()],
    list(compared),
    columns=len(compared),
    width=0.8,
    title=f"What each term brings, after {short.steps} steps",
    alt="A scene, a cat and a cup of coffee in rows: the original, the base alone, L2 alone, "
    "with LPIPS, with LPIPS and style loss, the same with all of them from the start, and the true "
    f"rendering in the style {style}.",
)

# %%
print_scores(compared)

print("\nscene by scene, with the style loss minus L2 alone:")
full, alone = (scores(results[name][1]) for name in ("+ style loss", "L2 alone"))
for name in full:
    print(f"{name:18s} {mean_and_error(full[name] - alone[name])}")

# %% [markdown]
# **What it means.** The second table compares *the same scenes* in pairs. A scene that is hard is
# hard for every run, and that cancels in a difference; so it is surer than the first table's ±
# suggest. A difference of less than twice its ± proves nothing with twelve scenes.
#
# - **L2 alone** learns the marks of the style where the noise leaves room for them. It was never
#   shown a noised photo, so nothing has taught it to change what still shows through.
# - **+ LPIPS** adds content pictures, and asks that what is light stays light and what is dark
#   stays dark. Of the style it says nothing.
# - **+ style loss** is the term that asks for change on a *photo*: its palette and marks are to be
#   those of the style.
# - **all at once**, from the first step: look at the marks, and compare with the run in which L2
#   went first.
#
# Do pictures and scores bear this out in your run? Go through the rows by the rule: what is beyond
# twice its ±, and is there a second witness? In the recorded run the style loss makes the great
# difference: the judge, the distance to the truth and the eye agree, far beyond twice their ±.
# LPIPS alone adds nothing that twelve scenes could show. The run in which L2 went first is nearer
# to the truth than *all at once*; but that is one run each, so wait for the *balanced* run of
# section 7, which also has all losses from the start. And *+ style loss* is section 5's run with
# half of the steps: did the other half pay?
#
# What style loss does when nothing holds it, the next section shows.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Is a LoRA with L2 alone useless, then?* No. It is what most public scripts train, and at
#   higher strength, or drawn from pure noise with a prompt, it shows the style well. The image
#   losses are for stylising photos at moderate strength.
# - *Then why keep L2?* It is the anchor. The image losses are taken low in the schedule, and leave
#   what is above untaught; L2 goes further up, and holds the LoRA to real pictures of the style
#   instead of whatever pleases the feature network.
# - *Why is the ± of the judge so large?* Its verdicts are near 0 or near 1, so a mean of twelve is
#   nearly a count of heads.

# %% [markdown]
# ## 7. Too much of a good thing
#
# The same, shorter, with all losses from the start, and the weight of the style loss or of LPIPS a
# hundred times as large.
#
# **Predict:** what will each of them give up?

# %%
brief = replace(defaults, steps=defaults.steps // 3, picture_from=0.0)
excess = {
    "balanced": brief,
    "style × 100": replace(brief, style_weight=100 * defaults.style_weight),
    "LPIPS × 100": replace(brief, lpips_weight=100 * defaults.lpips_weight),
}
overdone = {name: run(settings) for name, settings in excess.items()}

# %%
compared = {"untouched": subjects} | {name: drawn for name, (_, drawn) in overdone.items()}
show.sheet(
    [drawn[row] for row in (0, -2, -1) for drawn in compared.values()],
    list(compared),
    columns=len(compared),
    width=0.85,
    title=f"Balanced, and far too much, after {brief.steps} steps",
    alt="A scene, a cat and a cup of coffee: the original, the balanced run, one with a hundred "
    "times the style loss, and one with a hundred times the LPIPS.",
)

# %%
print_scores(compared)

print("\nthe terms at the end:")
for name, (history, _) in overdone.items():
    ends = {term: running(history.values(term)[1])[-1] for term in ("noise", "lpips", "style")}
    print(f"{name:14s} " + "  ".join(f"{term} {value:.3f}" for term, value in ends.items()))

# %% [markdown]
# **What it means.** Too much **style loss**: it knows no places, so whatever makes the statistics
# right will do. The picture breaks up into loud contrasts that please the feature network. The
# judge may still call it by the name of the style, but look at the cat: hardly a face is left. Look
# at its own term, too: it is the lowest of the three, and still the picture is no better than the
# balanced one. *A loss that is low says that the loss is low.* Too much **LPIPS**: hardly anything
# may change, and the LoRA learns to do little or nothing. Watch the L2 as well: where it is higher
# than in the balanced run, the LoRA has moved away from the real pictures of the style.
#
# And put the **balanced** run beside those of section 6: fewer steps, and all losses from the
# start. Is it any further from the truth than the longest? A style that comes easily, as ink does,
# may gain nothing by more steps or a later start that twelve scenes could show. Those that do not
# come easily are why the settings are what they are.
#
# When a style of your own does not come out, look which of the two it is. If the photo barely
# changes, take less LPIPS or more style loss. If it breaks up into loud patterns, do the opposite.

# %% [markdown]
# ## 8. Too many steps
#
# A LoRA has many thousands of numbers, and 16 pictures are few. Give it long enough and it learns
# the *pictures*, not the style: **overfitting**. We bring that about on purpose, with four
# pictures, L2 alone, and twice the rank and the rate.
#
# How to see it? Not by the loss: that keeps falling. **Hold some pictures back**, never train on
# them, and measure the L2 on both: on those that it learns from, and on those that it has never
# seen. Timesteps and noise are the same each time, or the chance in them would hide everything.
# The checkpoints of the run hold the weights of every stage, so the measuring can be done
# afterwards.

# %%
from safetensors.torch import load_file

learned, held = style_pictures[:4], style_pictures[6:10]
learned_latents, held_latents = encode(to_tensor(learned)), encode(to_tensor(held))

hurried = replace(
    defaults,
    steps=2 * defaults.steps // 5,
    batch_size=min(4, batch),
    lpips_weight=0.0,
    style_weight=0.0,
    timesteps=last,
    rank=2 * defaults.rank,
    learning_rate=2 * defaults.learning_rate,
    final_alpha=defaults.alpha,  # measured as it was trained
    flip=False,
)
every = max(1, hurried.steps // 8)
how = {"folder": folder / "four", "checkpoint_every": every, "keep": 99}
train_style(base, learned, None, "four", hurried, **how)


def load_checkpoint(path):
    """Put the weights of a checkpoint into the LoRA that is in the UNet."""
    state = {key.removeprefix("weights/unet."): value for key, value in load_file(path).items()}
    base.unet.load_state_dict(state, strict=False)  # what is not of the LoRA stays as it is


measured = {}
for path in sorted((folder / "four").glob("checkpoint-*.safetensors")):
    load_checkpoint(path)
    measured[int(path.stem.split("-")[1])] = fixed_l2(learned_latents), fixed_l2(held_latents)
for step, (one, other) in measured.items():
    print(f"step {step:3d}: learned from {one:.4f}, held back {other:.4f}")

# %%
steps = list(measured)
figure = show.figure(
    6,
    2.6,
    "L2 at fixed timesteps and noise, as a share of that at step 0",
    alt="Two curves over the steps, both beginning at 1: the L2 on the four pictures that were "
    "trained on, and that on four pictures of the style that were held back.",
)
axes = figure.subplots()
for which, label in enumerate(("learned from", "held back")):
    axes.plot(
        steps,
        [values[which] / measured[0][which] for values in measured.values()],
        "o-",
        markersize=3,
        label=label,
        color=("#4f7cac", "#c0553b")[which],
    )
axes.set_xlabel("step")
axes.grid(alpha=0.3)
axes.legend(fontsize=8)
best = min(measured, key=lambda step: measured[step][1])
print(f"lowest on the pictures held back: at step {best} of {steps[-1]}")
figure

# %% [markdown]
# **What it means.** While both curves fall, it learns the style. Where they part, it has begun to
# learn these four pictures. Where that of the held-back pictures *rises*, every further step does
# harm, whatever the loss says: the checkpoint to keep is that of its lowest point. If yours has not
# risen yet, train longer and watch.
#
# Look at what it has learned by the end: drawn from pure noise, without any photo. (For that it was
# trained over the whole schedule, `timesteps=1000`.)

# %%
load_checkpoint(sorted((folder / "four").glob("checkpoint-*.safetensors"))[-1])
from stylenb.inference import denoise

nothing = torch.zeros(4, *style_latents.shape[1:], device=base.device)
dreams = look(denoise(base, nothing, 1.0, 30, seed=range(4), solver="ddim"))
remove_lora(base, "four")
show.sheet(
    [*learned, *held, *dreams],
    ["trained on"] * 4 + ["held back"] * 4 + ["drawn"] * 4,
    columns=4,
    width=0.8,
    title="Four pictures, and what the LoRA draws",
    alt="Above, the four pictures that it was trained on; then four that it has never seen; below, "
    "four pictures drawn from pure noise with this LoRA.",
)

# %% [markdown]
# Whatever in the last row looks more like a piece of the first row than of the second was learned
# by heart. If nothing does, it has not come that far, and the curve above is the finer instrument.
# What helps, in this order: more pictures, of *different* things; mirror images (`flip`), which
# double them for nothing; fewer steps; a lower rank. And hold two or four back, even of 16.

# %% [markdown]
# ## 9. Learning rate and rank
#
# Too low a rate, and the steps are used up before the style is there. Too high, and it is thrown
# about. And lesson 03 warned: at one α, a LoRA of higher rank learns faster at the same rate. A
# small grid, on twelve pictures, L2 alone, scored on the four held back:

# %%
rest = [picture for i, picture in enumerate(style_pictures) if not 6 <= i < 10]
rates, ranks = [factor * defaults.learning_rate for factor in (0.1, 1, 10)], [2, 16]
quick = replace(hurried, steps=max(1, defaults.steps // 8), warmup=5, flip=True)
base_l2 = fixed_l2(held_latents)
print(f"base alone: {base_l2:.4f}")

grid, drawn_in_grid = {}, []
for rank in ranks:
    for rate in rates:
        settings = replace(quick, rank=rank, learning_rate=rate)
        train_style(base, rest, None, "tried", settings, progress=False)
        grid[rank, rate] = fixed_l2(held_latents)
        drawn_in_grid += redraw(base, watched[:1])
        remove_lora(base, "tried")
    print(f"rank {rank:2d}: " + "   ".join(f"rate {r:g}: {grid[rank, r]:.4f}" for r in rates))

show.sheet(
    drawn_in_grid,
    [f"{rank}, {rate:g}" for rank in ranks for rate in rates],
    columns=len(rates),
    width=1.0,
    title=f"After {quick.steps} steps: rank, rate",
    alt="Six versions of one scene: the learning rate grows from left to right, the rank from the "
    "upper row to the lower.",
)

# %% [markdown]
# **What it means.** Compare along the diagonals. By lesson 03, a lower rank at a higher rate should
# do much the same as a higher rank at a lower one; does it? Then compare along the rows and along
# the columns: which of the two decides more, rate or rank? The usual advice follows from that.
# Search the rate first, in factors of three to ten, in short runs. Change the rank only when you
# have a reason: less for a smaller file and less learning by heart, more when a long run at a good
# rate stays behind on the pictures held back.

# %% [markdown]
# ## 10. When a batch does not fit
#
# On a small GPU there may be room for one picture only. A step on eight pictures is steadier than a
# step on one: its gradient is less of an accident, and it bears a higher rate. The way out: take
# the batch in parts, call `backward()` for each, and update only after the last. Gradients of
# several calls **add up**, so the result is that of the whole batch, if each part has the right
# share in it.
#
# ### Exercise 6: accumulate
# `means` holds the mean loss of each part, `sizes` how many pictures it has. On which numbers,
# one for each part, must `backward()` be called, so that all together it is the mean loss of the
# whole batch?


# %% tags=["exercise"]
def accumulated(means, sizes):
    """Mean losses (N,) of the parts and their sizes (N,) -> what each contributes, (N,)."""
    return ...  # your code


# %% tags=["solution"]
def accumulated(means, sizes):
    """Mean losses (N,) of the parts and their sizes (N,) -> what each contributes, (N,)."""
    return means * sizes / sizes.sum()


# %% tags=["check"]
accumulated = lesson_04.check("accumulated", accumulated)

# %% [markdown]
# <details><summary>Hint 1</summary>The mean over all pictures is the sum over all pictures, divided
# by how many there are.</details>
# <details><summary>Hint 2</summary>A mean loss times the size of its part is the sum over its
# pictures.</details>
# <details><summary>Hint 3</summary>Divide by <code>sizes.sum()</code>. Dividing by the number of
# parts is right only if all have one size.</details>

# %%
parameters = add_lora(base, "parts", rank=4)
count = 4
x0 = style_latents[:count].to(base.device)
at = torch.tensor([100, 300, 500, 800], device=base.device)
noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(base.device)
noisy = base.scheduler.add_noise(x0, noise, at)


def gradient(sizes, share):
    """The gradient of the L2, taken in parts of these sizes; share(means, sizes) weighs them."""
    for p in parameters:
        p.grad = None
    first = 0
    for index, length in enumerate(sizes.tolist()):
        part = slice(first, first + length)
        loss = l2(base.predict_noise(noisy[part], at[part]), noise[part])
        means = loss.expand(len(sizes))  # of the others nothing is known yet; only [index] is used
        share(means, sizes)[index].backward()  # and this part can be forgotten
        first += length
    return torch.cat([p.grad.flatten() for p in parameters])


whole = gradient(torch.tensor([count]), accumulated)
for name, share in (
    ("by exercise 6", accumulated),
    ("by the number of parts", lambda means, sizes: means / len(sizes)),
    ("not divided", lambda means, sizes: means),
):
    difference = (gradient(torch.tensor([3, 1]), share) - whole).norm() / whole.norm()
    print(f"{name:24s} off by {float(difference):.1%} of the gradient of the whole batch")
remove_lora(base, "parts")

# %% [markdown]
# In parts of 3 and 1, only the first is right. In `Settings`, `gradient_accumulation_steps=4` takes
# four parts of `batch_size` for each update; they are all of one size, so there it divides by 4. A
# common mistake in public scripts is to forget it in the *last* part of an epoch, which is smaller.
# Here batches run on across the end of an epoch (exercise 5), and no part is ever smaller.

# %% [markdown]
# ## 11. Stop, kill, resume
#
# Hosted notebooks end when they please, laptops fall asleep. With a `folder`, `train_style` writes
# a checkpoint now and then: A and B, the optimiser's memory, and the history. Call it again with
# the same settings and folder, and it resumes from the last one. First a run that nothing disturbs,
# to compare with:


# %%
def weights_of(name):
    """A and B of the LoRA `name`, of all layers."""
    return {k: v.clone() for k, v in base.unet.state_dict().items() if f".{name}." in k}


few = replace(defaults, steps=12, batch_size=min(2, batch), picture_batch=1, warmup=2)


def train_few(settings=few, **how):
    how |= {"checkpoint_every": max(1, few.steps // 4), "progress": False}
    return train_style(base, style_pictures, content_pictures, "few", settings, **how)


history = train_few()
undisturbed = weights_of("few")
remove_lora(base, "few")
print(f"{len(history.rows)} steps, {len(undisturbed)} matrices")

# %% [markdown]
# **Stop by itself.** `minutes` is a budget of time: after it the run saves and ends. With 0 minutes
# that is after the first step. We call it twice like this; then without a limit.

# %%
cut = folder / "cut"
for minutes in (0, 0, None):
    history = train_few(folder=cut, minutes=minutes)
    print(f"now at step {len(history.rows)} of {history.steps}")
    resumed = weights_of("few")
    remove_lora(base, "few")

same = all(torch.equal(undisturbed[key], resumed[key]) for key in undisturbed)
print("\nthe same weights, bit for bit:", same)

# %% [markdown]
# **Killed.** Now the plug is pulled in the middle of a step, where nothing can be saved any more.
# (A hook on the UNet raises what the stop button raises. The tests of this repository do it to a
# real process, with SIGKILL.)
#
# **Predict:** the run is cut in step 8 of 12, counted from 0, and writes a checkpoint at every
# third step. How many steps are lost, and will the result be the same?


# %%
def pull_the_plug(after):
    """Interrupt the UNet's call number `after`, counted from 0."""
    calls = iter(range(after))

    def hook(*_):
        if next(calls, None) is None:
            raise KeyboardInterrupt

    return base.unet.register_forward_pre_hook(hook)


killed, calls = folder / "killed", 2 * few.steps // 3
plug = pull_the_plug(calls)
try:
    train_few(folder=killed)
except KeyboardInterrupt:
    print(f"cut in step {calls} of {few.steps}; what is there:")
plug.remove()
remove_lora(base, "few")
for file in sorted(killed.glob("checkpoint-*")):
    print("   ", file.name)
reached = int(file.stem.split("-")[1])
print(f"it resumes at step {reached}; done before and lost: {calls - reached} steps and a part")

history = train_few(folder=killed)
resumed = weights_of("few")
remove_lora(base, "few")
same = all(torch.equal(undisturbed[key], resumed[key]) for key in undisturbed)
print("finished:", history.finished, "  the same weights, bit for bit:", same)

# %% [markdown]
# **What it means.** Saving the weights is not enough for this. The optimiser's memory has to be
# there, and pictures, timesteps and noise have to be *those of this step*: section 4 made them
# functions of the step, and here it pays. Many scripts save weights only, draw new random numbers
# after a restart, and show the first pictures of the epoch again; the run goes on, but it is
# another one. (On a GPU, sums may be taken in another order each time, and then even two
# undisturbed runs differ in their last bits.)
#
# What if the settings have changed in the meantime?

# %%
from stylenb import StylenbError

try:
    train_few(replace(few, learning_rate=few.learning_rate / 2), folder=cut)
except StylenbError as error:
    print(str(error).replace(str(cut), "The folder"))

# %% [markdown]
# It is refused, and the sentence names what differs. Half a run at one rate and half at another
# would be a run that nobody can repeat. Other pictures are refused as well.
#
# How long may it be between checkpoints (`checkpoint_every`)? What you lose is at most that many
# steps; what each costs is the writing of one file.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *What if the power fails while a checkpoint is being written?* It is written under another name
#   and renamed when it is whole; a rename happens or does not. The one before is still there, and a
#   damaged one is passed over.
# - *Can I train on after the last step?* Not as the same run: the cosine has come down to zero.
#   Give more steps from the start; a run can be stopped early at any time.
# - *What if the loss becomes NaN?* The run stops at once, puts the weights of the last checkpoint
#   back, and says so. A script that trains on draws black pictures in the end.

# %% [markdown]
# ## Recap
#
# - Encode once; add noise by the schedule; predict it; L2 + LPIPS + style loss; backpropagate and
#   update A and B. Then again.
# - L2 learns the marks from pictures in the style. LPIPS holds the content, place by
#   place. The style loss asks for the style on a photo, in no place in particular.
# - Features to length 1 first; estimates only where they are pictures, weighted by min(1, SNR);
#   weights of the terms by measured sizes, then by looking.
# - A loss that falls is not a picture that is good. Score with judges that were in no loss, on
#   scenes that were in no training, with the error of the mean.
# - Hold pictures back: where the L2 on them turns up, the learning by heart begins.
# - Everything random is a function of the step, so a run can be cut anywhere and ends the same.
#
# ## If you want more
# - Change `style` at the top and run it all again. Which styles need the image losses most, and
#   which come over with L2 alone? What do those have in common?
# - Give `train_style` no content pictures. It then takes the style pictures for both. What is LPIPS
#   asking for now?
# - In `style_loss`, leave out the palette, or everything but the palette. Which part of the style
#   is lost?
# - Replace `min(1, SNR)` by 1, and `picture_timesteps` by 1000. Predict what happens to the terms
#   first.
# - Set `snr_gamma=5` (Hang et al. 2023, https://arxiv.org/abs/2303.09556) in `Settings`. It takes
#   weight off the low timesteps of the L2. Is that good or bad for the fine marks of a style?
