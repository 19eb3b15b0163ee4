# ---
# jupyter:
#   stylenb:
#     title: The VAE latent space
#     about: >-
#       Stable Diffusion does not work on pixels but on a small grid of numbers, the latents. You
#       take pictures there and back, look inside, and find out what gets lost.
#     read: 20
#     do: 40
#     needs: lesson 00, what a tensor is; no GPU
# ---

# %% [markdown]
# **After this lesson you can**
#
# - say which shapes go into and out of the autoencoder (VAE) of Stable Diffusion, and where "48×"
#   comes from,
# - show what each of the four latent channels holds,
# - measure what a round trip costs, and predict which pictures suffer,
# - tell noise in latents from noise in pixels by looking,
# - derive the scaling factor, and say what breaks without it.
#
# The lesson has five exercises. Each has a check that tells you at once whether you are right. If
# you leave one out, the notebook says so and goes on with the reference, so *Run all* always
# works.

# %% [markdown] tags=["instructor"]
# **Plan for 60 minutes.** Shapes and 48×: 10. Reconstruction and where it fails: 15. Channels: 10.
# Scaling factor: 8. Mixing: 7. Noise: 7. Recap: 3. Short of time? Leave out the section on mixing,
# and keep noise: lesson 02 builds on it.
#
# **Before the start** let everybody run the first three cells; the base takes a few seconds to
# load. Ask for the predictions aloud before you run a cell. A wrong prediction said aloud is what
# makes the picture after it stick.

# %%
import stylenb

base = stylenb.load("pocket")  # or "sd15"
base

# %% [markdown]
# Everything below asks `base` for its sizes. With `"sd15"` the same cells run on Stable Diffusion
# v1.5.
#
# Four pictures will come with us: two drawn landscapes that the model has never seen, and two
# photographs. (Crops of these photographs were among the training pictures of the pocket model, so
# they are no proof of how it does on new photographs; lesson A1 says how it was made.)

# %%
import math

import torch

from stylenb import sample_photo, to_tensor
from stylenb.course import lesson_01, show
from stylenb.pocket.scenes import draw_scene
from stylenb.pocket.styles import STYLES, apply_style

torch.set_grad_enabled(False)  # nothing is trained in this lesson

size = base.image_size
names = ["village", "moonlit lake", "cat", "coffee"]
pictures = [
    draw_scene(5, size).picture,
    draw_scene(9, size).picture,
    sample_photo("chelsea", size),
    sample_photo("coffee", size),
]
show.sheet(
    pictures,
    names,
    title="Our four pictures",
    alt="Two drawn landscapes, a village by a lake at dawn and houses by a lake at night, and two "
    "photographs, a cat's face and a cup of coffee.",
)

# %% [markdown]
# ## 1. There and back
#
# A picture becomes a tensor of shape (N, 3, H, W): N pictures, three colours, height, width, with
# values from -1 (dark) to 1 (bright).

# %%
images = to_tensor(pictures)
print("images ", tuple(images.shape), f"from {images.min():.2f} to {images.max():.2f}")

# %% [markdown]
# The **encoder** turns it into **latents**, the **decoder** turns latents back into a picture.
#
# **Predict:** each side of the picture shrinks by 8, and there are four channels instead of three.
# Which shape will the latents have?

# %%
latents = base.encode(images).float().cpu()
print("images ", tuple(images.shape))
print("latents", tuple(latents.shape), f"from {latents.min():.2f} to {latents.max():.2f}")

# %%
back = base.decode(latents).float().cpu().clamp(-1, 1)
print("back   ", tuple(back.shape))
show.sheet(
    [*images, *back],
    [*names, *["and back"] * 4],
    columns=4,
    title="Above: pictures. Below: the same, encoded and decoded",
    alt="The four pictures and below them their reconstructions: the same scenes and colours, a "
    "little softer, with fine detail gone.",
)

# %% [markdown]
# The pictures came back through a much smaller tensor. How much smaller?
#
# ### Exercise 1: the compression factor
# How many numbers of the image stand for one number of the latents? Shapes come without the batch,
# such as `(3, 64, 64)` and `(4, 8, 8)`.


# %% tags=["exercise"]
def compression_factor(image_shape, latent_shape):
    """(3, H, W) and (C, h, w) -> a number."""
    return ...  # your code


# %% tags=["solution"]
def compression_factor(image_shape, latent_shape):
    """(3, H, W) and (C, h, w) -> a number."""
    return math.prod(image_shape) / math.prod(latent_shape)


# %% tags=["check"]
compression_factor = lesson_01.check("compression_factor", compression_factor)

# %% [markdown]
# <details><summary>Hint 1</summary>How many numbers are in a tensor of shape (3, 64, 64)?</details>
# <details><summary>Hint 2</summary>Multiply the three entries of a shape; <code>math.prod</code>
# does it.</details>
# <details><summary>Hint 3</summary>Divide the count of the image by the count of the
# latents.</details>

# %% [markdown]
# Now for our pictures, and for one of 512 × 512, the size of SD v1.5. An autoencoder of this kind
# is made of convolutions, so it takes any picture whose sides are multiples of 8: let us really
# encode one.

# %%
large = to_tensor(sample_photo("astronaut", 512))
large_latents = base.encode(large)
for image, latent in ((images, latents), (large, large_latents)):
    factor = compression_factor(image.shape[1:], latent.shape[1:])
    print(
        f"{tuple(image.shape[1:])} -> {tuple(latent.shape[1:])}: {factor:.0f} times fewer numbers"
    )

in_bytes = compression_factor(images.shape[1:], latents.shape[1:]) * 1 / 2
print(f"in bytes, with 1 byte for a colour and 2 for a latent number: {in_bytes:.0f} times")

# %% [markdown]
# **What it means.** The factor does not depend on the size of the picture: each 8 × 8 patch of
# pixels, 3 × 64 = 192 numbers, has 4 numbers of its own in the latents. That is the whole reason
# for latent diffusion: the UNet, which runs dozens of times for one picture, has a grid with 64
# times fewer places to work on, and only the autoencoder, which runs once, sees pixels.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Is this JPEG?* No. JPEG files are smaller still, but a neighbouring pair of bytes in one has no
#   meaning. Latents keep the layout of the picture, so a convolution can work on them.
# - *Why 48 and not 64?* Width and height give 8 × 8 = 64, and four channels instead of three take a
#   part of that back: 64 × 3 / 4.
# - *Why do latents go beyond ±1?* Nothing holds them there. See the scaling factor, section 4.

# %% [markdown]
# ## 2. What gets lost
#
# The eye forgives a lot, so we measure. The **error map** shows where a picture and its
# reconstruction differ: black is no difference.
#
# **Predict:** where in the cat's face will the map be bright?

# %%
show.error_map(
    images[2],
    back[2],
    title="What the round trip did to the cat",
    alt="The cat, its reconstruction and the map of their difference, which is bright along "
    "whiskers, fur and the rims of the eyes, and dark on smooth ground.",
)

# %% [markdown]
# The errors sit on whiskers, fur and rims, not on smooth surfaces. One number for a whole picture
# is the **PSNR**, the peak signal-to-noise ratio, in decibels:
#
# $$\mathrm{PSNR} = 10 \log_{10} \frac{\text{peak}^2}{\text{mean squared error}}$$
#
# The peak is the largest difference that is possible. More is better; 10 dB more is a tenth of the
# squared error.
#
# ### Exercise 2: PSNR
# For two tensors with values **from -1 to 1**.


# %% tags=["exercise"]
def psnr(a, b):
    """Two tensors of one shape, values in [-1, 1] -> decibels."""
    return ...  # your code


# %% tags=["solution"]
def psnr(a, b):
    """Two tensors of one shape, values in [-1, 1] -> decibels."""
    peak = 2  # from -1 to 1
    return 10 * torch.log10(peak**2 / ((a - b) ** 2).mean())


# %% tags=["check"]
psnr = lesson_01.check("psnr", psnr)

# %% [markdown]
# <details><summary>Hint 1</summary>The mean squared error is one number: the mean of
# <code>(a - b) ** 2</code> over everything.</details>
# <details><summary>Hint 2</summary>The peak of values from 0 to 1 is 1. What is it from -1 to
# 1?</details>
# <details><summary>Hint 3</summary><code>torch.log10</code>, times 10, with the error below the
# line.</details>

# %%
for name, image, result in zip(names, images, back):
    print(f"{name:14s} {psnr(image, result):5.1f} dB")

# %% [markdown]
# From here on, `stylenb.psnr` does this for pictures.
#
# ### How fine may a detail be?
# Photographs mix fine and coarse. Stripes do not: black and white stripes of one width, nothing
# else.
#
# **Predict:** one latent place covers 8 pixels. At which width of a stripe will the round trip
# fail?


# %%
def stripes(width):
    """Vertical stripes, ``width`` pixels each, as an image (3, H, W)."""
    columns = torch.arange(size) // width % 2 * 2.0 - 1
    return (0.8 * columns).expand(3, size, size)


widths = [1, 2, 3, 4, 6, 8, 12, 16]
striped = torch.stack([stripes(width) for width in widths])
striped_back = base.decode(base.encode(striped)).float().cpu().clamp(-1, 1)
scores = [float(psnr(a, b)) for a, b in zip(striped, striped_back)]

show.sheet(
    [*striped, *striped_back],
    [*(f"{width} px" for width in widths), *(f"{score:.0f} dB" for score in scores)],
    columns=len(widths),
    width=1.0,
    title="Stripes and what comes back",
    alt="Stripes of 1 to 16 pixels and their reconstructions. The finest come back wrong or "
    "smeared, wide ones come back as stripes.",
)

# %% [markdown]
# **What it means.** Below a certain width the stripes come back as something else: 4 numbers
# cannot say where each of 64 pixels of a patch is dark. The pocket model's own styles were drawn
# with marks of about four pixels and more for this reason. Those its autoencoder has learned. Bare
# stripes neither autoencoder has seen often, so this is a hard test even for wide ones: here those
# of four pixels come back as green dots, and those of twelve with a tint.
#
# ### Which styles survive?
# The same scene in every style that `stylenb` can draw.
#
# **Predict:** which style comes back best, which worst?

# %%
scene = draw_scene(9, size).picture
styled = to_tensor([apply_style(style, scene) for style in STYLES])
styled_back = torch.cat([base.decode(base.encode(one)).float().cpu() for one in styled.split(2)])
styled_scores = {s: float(psnr(a, b.clamp(-1, 1))) for s, a, b in zip(STYLES, styled, styled_back)}
order = sorted(styled_scores, key=styled_scores.get, reverse=True)

figure = show.figure(
    7,
    3,
    "One scene in each style: PSNR of the round trip",
    alt="Bars of PSNR from the best style to the worst: "
    + ", ".join(f"{s} {styled_scores[s]:.0f} dB" for s in order),
)
axes = figure.subplots()
axes.bar([s.replace("_", "\n") for s in order], [styled_scores[s] for s in order], color="#4f7cac")
axes.set_ylabel("dB")
axes.tick_params(axis="x", labelsize=7, rotation=45)
figure

# %%
chosen = [list(STYLES).index(s) for s in (order[0], order[-2], order[-1])]
show.sheet(
    [styled[i] for i in chosen] + [styled_back[i] for i in chosen],
    [f"{list(STYLES)[i]}" for i in chosen]
    + [f"{styled_scores[list(STYLES)[i]]:.1f} dB" for i in chosen],
    columns=3,
    title="The best and the two worst",
    alt=f"The scene in {order[0]}, {order[-2]} and {order[-1]}, and below each its reconstruction.",
)

# %% [markdown]
# **What it means.** Soft styles and plain areas survive; thin, hard lines of strong contrast lose
# most. This is a ceiling: whatever the UNet does later, no picture leaves the model sharper than
# the decoder can draw it. When a LoRA "cannot learn" a fine texture, look here first.

# %% [markdown]
# ## 3. What each channel holds
#
# Four maps for each picture, blue below zero and red above.

# %%
rows = []
for image, latent in zip(images, latents):
    rows += [image, *latent]
reach = float(latents.abs().quantile(0.99))
show.sheet(
    rows,
    ["picture", *(f"channel {c}" for c in range(latents.shape[1]))],
    columns=5,
    width=1.2,
    cmap="RdBu_r",
    limits=(-reach, reach),
    pixels=True,
    title="The four latent channels",
    alt="Each picture beside its four latent channels as coarse maps. The layout of the picture "
    "can be made out in most of them, best in channel 1; of the cat, channels 0 and 2 show little.",
)

# %% [markdown]
# You can still see the picture, in some channels better than in others: the latents keep its
# **layout**. A place in the latents stands for
# the same place in the picture. But no channel is simply "red" or "edges". Let us turn one channel
# at a time up and down, everywhere at once, and decode.


# %%
def turn(latent, channel, amount):
    """One channel (0 to 3) of latents (4, h, w) raised by ``amount``, decoded: (3, H, W)."""
    turned = latent.clone()
    turned[channel] += amount
    return base.decode(turned[None])[0].float().cpu().clamp(-1, 1)


knobs = [turn(latents[2], channel, amount) for amount in (1.5, -1.5) for channel in range(4)]
show.sheet(
    knobs,
    [f"channel {c} {sign}" for sign in ("up", "down") for c in range(4)],
    columns=4,
    width=1.4,
    title="The cat with one channel turned up or down",
    alt="Eight versions of the cat. Turning one channel changes brightness or tints the whole "
    "picture, for most with a fine pattern of dots or stripes; the cat stays where it is.",
)

# %% [markdown]
# Each channel shifts colour or brightness of the whole picture, in opposite directions for up and
# down, and the cat stays in its place. Where a fine pattern comes up as well, we have pushed the
# latents to where photographs never are: the decoder draws what it knows from there, which in the
# pocket base is some patterned style.
#
# So how much of the colour is in there as a plain sum? Suppose that
# colour = matrix × latents + constant, and find the best matrix by least squares over 16 pictures.

# %%
more = to_tensor([draw_scene(100 + i, size).picture for i in range(12)] + pictures)
more_latents = torch.cat([base.encode(one).float().cpu() for one in more.split(4)])
colours = torch.nn.functional.avg_pool2d(more, size // more_latents.shape[-1])  # mean of each patch

inputs = more_latents.permute(0, 2, 3, 1).reshape(-1, more_latents.shape[1])
inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)  # the constant
targets = colours.permute(0, 2, 3, 1).reshape(-1, 3)
matrix = torch.linalg.lstsq(inputs, targets).solution
print("from", tuple(inputs.shape), "to", tuple(targets.shape), "by a matrix", tuple(matrix.shape))

unexplained = ((inputs @ matrix - targets) ** 2).sum() / ((targets - targets.mean(0)) ** 2).sum()
print(f"the matrix explains {1 - unexplained:.0%} of the colour of the patches")
for channel, row in enumerate(matrix[:-1]):
    print(f"channel {channel}: red {row[0]:+.2f}  green {row[1]:+.2f}  blue {row[2]:+.2f}")

# %%
ones = torch.ones(len(latents), 1, *latents.shape[2:])
preview = torch.einsum("nchw,cd->ndhw", torch.cat([latents, ones], dim=1), matrix)
show.sheet(
    [*preview, *colours[-4:]],
    [*["matrix"] * 4, *["true colour"] * 4],
    columns=4,
    width=1.3,
    pixels=True,
    title="Decoding with a 5 × 3 matrix",
    alt="Above, the four pictures as coarse mosaics made by the matrix; below, the true mean "
    "colours of the same patches. They are alike.",
)

# %% [markdown]
# **What it means.** A good part of what the four channels hold is the colour of the patch, mixed
# together; what the matrix leaves out is where inside the patch the edges run, and drawing that
# takes the decoder's convolutions. Programs that show a picture while it is being made often use
# just such a matrix for the preview, because it costs next to nothing.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Why not RGB plus one?* Nothing in training asks for it. The encoder is free to use any mixture
#   that the decoder can undo, and another training run would give another mixture. That is why
#   latents of two different autoencoders cannot be exchanged, and why a LoRA fits only the base it
#   was trained on.
# - *Would more channels be better?* Reconstruction would be better, and the UNet would have more to
#   learn. Later models went to 16 channels (quoted: Stable Diffusion 3, Esser et al. 2024,
#   https://arxiv.org/abs/2403.03206).

# %% [markdown]
# ## 4. Mean, variance and the scaling factor
#
# VAE stands for *variational* autoencoder: the encoder gives a mean and a standard deviation for
# every latent number, and one may draw from between. How wide is that?

# %%
posterior = base.vae.encode(images.to(base.device, base.dtype)).latent_dist
mean, spread = posterior.mean.float().cpu(), posterior.std.float().cpu()
print("mean  ", tuple(mean.shape), f"  its values are spread by {mean.std():.3f}")
print("spread", tuple(spread.shape), f"  on average {spread.mean():.4f}")
print(f"so a draw moves a latent by {spread.mean() / mean.std():.2%} of the range it lives in")

# %% [markdown]
# Hardly at all: in practice this is an autoencoder with a touch of blur on its latents, which keeps
# them smooth and bounded. `base.encode` takes the mean.
#
# So can it *invent* pictures? Draw latents from a normal distribution and decode them.

# %%
generator = torch.Generator().manual_seed(0)
invented = torch.randn(4, *latents.shape[1:], generator=generator)
show.sheet(
    list(base.decode(invented).float().cpu()),
    columns=4,
    title="Random latents, decoded",
    alt="Four pictures of coloured blotches without any scene.",
)

# %% [markdown]
# No. Real latents have structure that independent random numbers lack. Making latents that look
# real out of noise is the work of the UNet, and lesson 02 is about it.
#
# The UNet has to be told how much noise is in there, so the latents have to have a known size. The
# schedule is made for a **standard deviation of 1**. Raw latents have not got that:

# %%
raw = torch.cat(
    [
        base.vae.encode(one.to(base.device, base.dtype)).latent_dist.mean.float().cpu()
        for one in more.split(4)
    ]
)
print("raw latents", tuple(raw.shape), f" standard deviation {raw.std():.3f}")
for channel in range(raw.shape[1]):
    values = raw[:, channel]
    print(f"channel {channel}: mean {values.mean():+.2f}, standard deviation {values.std():.2f}")

# %% [markdown]
# ### Exercise 3: the scaling factor
# Which one number, multiplied with all latents, gives them a standard deviation of 1 over
# everything?


# %% tags=["exercise"]
def scaling_factor(raw_latents):
    """Raw latents (N, 4, h, w) -> one number."""
    return ...  # your code


# %% tags=["solution"]
def scaling_factor(raw_latents):
    """Raw latents (N, 4, h, w) -> one number."""
    return 1 / raw_latents.std()


# %% tags=["check"]
scaling_factor = lesson_01.check("scaling_factor", scaling_factor)

# %% [markdown]
# <details><summary>Hint 1</summary>If all numbers are multiplied by k, what happens to their
# standard deviation?</details>
# <details><summary>Hint 2</summary>It is multiplied by k too. So k times the present one should be
# 1.</details>
# <details><summary>Hint 3</summary><code>raw_latents.std()</code> without <code>dim</code> takes
# all channels together.</details>

# %%
stored = base.vae.config.scaling_factor
in_styles = torch.cat(
    [
        base.vae.encode(one.to(base.device, base.dtype)).latent_dist.mean.float().cpu()
        for one in styled.split(2)
    ]
)
print(f"from these 16 pictures:             {scaling_factor(raw):.4f}")
print(f"from the scene in all its styles:   {scaling_factor(in_styles):.4f}")
print(f"stored with the model:              {stored:.4f}")

# %% [markdown]
# It depends on the pictures: those in hard-edged styles have larger latents than plain ones. So no
# value is the true one. The stored number was measured on the training pictures, and from then on
# is a convention: `base.encode` multiplies by it and `base.decode` divides by it. What if one of
# them forgets?

# %%
wrong = [
    base.decode(latents[2:3]),
    base.decode(latents[2:3] * stored),  # multiplied twice, divided once
    base.decode(latents[2:3] / stored),  # never multiplied, divided once
]
show.sheet(
    [one[0].float().cpu().clamp(-1, 1) for one in wrong],
    ["right", "scaled twice", "never scaled"],
    title="When the scaling factor is forgotten",
    alt="The cat decoded rightly, and twice with latents of the wrong size: once grey and washed "
    "out, with slanted stripes, once harsh and discoloured, with dots.",
)

# %% [markdown]
# **What it means.** A wrong factor does not raise an error. It only gives worse pictures, and
# worse training, since the UNet then sees noise of another strength than it was told. If pictures
# from a new model look washed out or harsh, look at the scaling factor first.

# %% [markdown]
# ## 5. Mixing two pictures
#
# ### Exercise 4: on the line between
# `t = 0` gives `a`, `t = 1` gives `b`, and `t = 0.5` is half way.


# %% tags=["exercise"]
def mix(a, b, t):
    """Two tensors of one shape, t from 0 to 1 -> a tensor of that shape."""
    return ...  # your code


# %% tags=["solution"]
def mix(a, b, t):
    """Two tensors of one shape, t from 0 to 1 -> a tensor of that shape."""
    return (1 - t) * a + t * b


# %% tags=["check"]
mix = lesson_01.check("mix", mix)

# %% [markdown]
# <details><summary>Hint 1</summary>It is a weighted sum of <code>a</code> and
# <code>b</code>.</details>
# <details><summary>Hint 2</summary>The two weights add up to 1.</details>
# <details><summary>Hint 3</summary>The weight of <code>b</code> is <code>t</code>.</details>

# %% [markdown]
# **Predict:** half way between a village and a cat, in latents: a village with a cat in it, a
# cat-like village, or a double exposure?

# %%
shares = [0, 0.25, 0.5, 0.75, 1]
in_latents = [base.decode(mix(latents[0], latents[2], t)[None])[0].float().cpu() for t in shares]
in_pixels = [mix(images[0], images[2], t) for t in shares]
show.sheet(
    in_latents + in_pixels,
    [f"latents, t = {t}" for t in shares] + [f"pixels, t = {t}" for t in shares],
    columns=5,
    width=1.3,
    title="From the village to the cat: mixed in latents, mixed in pixels",
    alt="Two rows that go from the village to the cat. Half way both are double exposures of the "
    "two.",
)

# %%
for t, one, other in zip(shares, in_latents, in_pixels):
    spread = mix(latents[0], latents[2], t).std()
    print(
        f"t = {t:4}: the two rows agree to {psnr(one, other):4.1f} dB, latents spread by "
        f"{spread:.2f}"
    )

# %% [markdown]
# **What it means.** A double exposure, and not far from the one in pixels. The latents of Stable
# Diffusion are a picture in a compact form, not a space of meanings in which "between village and
# cat" would be a thing. This is where the word *latent space* raises hopes that this one does not
# fulfil.
#
# And look at the spread: half way it is smaller than at both ends. Unrelated numbers partly cancel
# when they are averaged. (The ends are below 1 too: the stored factor makes the spread 1 over all
# its training pictures together, not for each one.) So mixtures of this kind are flatter than the
# pictures that the UNet knows. Keep that in mind for the next exercise.

# %% [markdown]
# ## 6. Noise in latents, noise in pixels
#
# Diffusion adds noise, and has to know how much is in there. So we want to add noise *without
# changing the spread*. If signal and noise are unrelated and both have a variance of 1, the
# variances of a sum add up:
#
# $$\text{noisy} = \alpha \, x + \sigma \, \text{noise} \qquad \text{variance} = \alpha^2 +
# \sigma^2$$
#
# ### Exercise 5: noise that keeps the variance
# `amount` is σ, the share of the noise. Which α keeps the variance at 1?


# %% tags=["exercise"]
def noisy(x, noise, amount):
    """x and noise of one shape and variance 1, amount from 0 to 1 -> a tensor of that shape."""
    return ...  # your code


# %% tags=["solution"]
def noisy(x, noise, amount):
    """x and noise of one shape and variance 1, amount from 0 to 1 -> a tensor of that shape."""
    return math.sqrt(1 - amount**2) * x + amount * noise


# %% tags=["check"]
noisy = lesson_01.check("noisy", noisy)

# %% [markdown]
# <details><summary>Hint 1</summary>At amount 0 there is only <code>x</code>, at amount 1 only
# noise.</details>
# <details><summary>Hint 2</summary>The <em>squares</em> of the two weights add up to 1.</details>
# <details><summary>Hint 3</summary>So the weight of <code>x</code> is the square root of
# <code>1 - amount ** 2</code>.</details>

# %% [markdown]
# **Predict:** noise in pixels looks like grain. What does the same amount look like when it is
# added to latents and decoded?


# %%
def add_noise(where, amount, seed=0):
    """The four pictures with ``amount`` of noise, added to their "pixels" or "latents"."""
    x = images if where == "pixels" else latents
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    centre, spread = x.mean(), x.std()
    result = noisy((x - centre) / spread, noise, amount) * spread + centre  # variance 1 and back
    return result if where == "pixels" else base.decode(result).float().cpu()


amounts = [0, 0.2, 0.4, 0.6, 0.8]
show.sheet(
    [add_noise(where, amount)[1] for where in ("pixels", "latents") for amount in amounts],
    [f"{where}, {amount}" for where in ("pixels", "latents") for amount in amounts],
    columns=5,
    width=1.3,
    title="The same amount of noise in pixels and in latents",
    alt="Two rows with growing noise. In pixels it is fine grain through which the scene stays "
    "visible; in latents, shapes and colours dissolve into coloured patches, harsh at the end.",
)

# %% [markdown]
# In pixels every dot is on its own. In latents, one wrong number is a wrong patch: the decoder
# draws *something* there, smooth, coloured and plausible from near by. Measure it: how alike are
# the errors of two neighbouring pixels? 0 is not at all, 1 is the same.

# %%
for where in ("pixels", "latents"):
    clean = images if where == "pixels" else back
    error = add_noise(where, 0.4) - clean
    left, right = error[..., :-1].flatten(), error[..., 1:].flatten()
    agreement = torch.corrcoef(torch.stack([left, right]))[0, 1]
    print(f"noise in {where:7s}: neighbouring errors agree by {agreement:.2f}")

# %% [markdown]
# Try it yourself. (On a page that only shows the notebook, you see the picture but no sliders.)


# %%
def draw(where, amount, seed):
    return show.sheet(
        list(add_noise(where, amount, seed)),
        names,
        title=f"{where}, amount {amount:.2f}",
        alt=f"The four pictures with noise in {where}, amount {amount:.2f}.",
    )


show.interactive(draw, where=["latents", "pixels"], amount=(0.0, 1.0, 0.05, 0.3), seed=(0, 9, 1, 0))

# %% [markdown]
# **What it means.** This is what the UNet of the next lesson has to undo. The noise it takes away
# is not grain but wrong patches: wrong colours, wrong shapes. So its work is to *draw*, not to
# smooth. And a little noise in latents already removes what a style is made of, fine texture,
# while the layout stays. With more, the scene goes as well. Style transfer in lesson 00 goes
# further up than that and keeps the scene all the same, because its noise is not random: it is the
# noise from which the model would draw this very photo. Lesson 02 finds it.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Why keep the variance at all?* So that the UNet's input has the same size at every noise
#   level, and only the share changes. Schedules that let the variance grow exist ("variance
#   exploding", Song et al. 2021, https://arxiv.org/abs/2011.13456) and then divide by it inside
#   the network.
# - *In `add_noise`, why subtract the mean?* Pixels are not centred on 0, and exercise 5 assumes a
#   variance of 1 on both sides. Latents are near enough; SD itself does not centre them.

# %% [markdown]
# ## Recap
#
# - The autoencoder shrinks each side by 8 and keeps 4 channels: 48 times fewer numbers, at every
#   size.
# - Latents keep the layout; most of their content is mixed colour, the rest says where edges run.
# - What is finer than a few pixels is lost on the way, and the UNet cannot bring it back.
# - The scaling factor makes the spread 1 over the training pictures, because the noise schedule
#   counts on it. Nothing warns you when it is wrong.
# - A mixture of latents is a double exposure; noise in latents is wrong patches, not grain.
#
# ## If you want more
# - In exercise 3 the channels had means of their own. Would the pictures be better if each channel
#   were centred and scaled by itself? What would the UNet gain, and what would `base.decode` need
#   to know?
# - Repeat section 2 with `sample_photo("astronaut", size)` cut to the face alone. Why are faces the
#   first complaint about small autoencoders?
# - Run the notebook with `stylenb.load("sd15")` where there is a GPU. Which of the printed numbers
#   change, and which must not?
