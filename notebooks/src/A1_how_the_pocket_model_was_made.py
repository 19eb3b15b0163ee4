# ---
# jupyter:
#   stylenb:
#     title: How the pocket model was made
#     about: >-
#       An autoencoder and a UNet trained from nothing, small enough to watch them learn, and the
#       story of the real ones.
#     read: 15
#     do: 20
#     needs: lesson 01 (02 helps); no GPU
# ---

# %% [markdown]
# **After this lesson you can**
#
# - say which two networks a latent diffusion model needs, and what each learns from,
# - train both, small, in about two minutes on a laptop,
# - test whether a model draws new pictures or copies its training set,
# - read the training record of the pocket model, and say what it owes to its training pictures.
#
# Everything here is 32 × 32 pixels. That is little, and it is what makes the watching possible.

# %% [markdown] tags=["instructor"]
# **Plan for 35 minutes.** The idea: 5. Autoencoder: 10 (start its cell, then talk about the loss
# while it runs). UNet: 12 (the same). The real ones: 8.
#
# The two training cells take most of the time. Nobody learns anything by waiting: ask for the
# predictions while the cells run. On a slow machine halve both numbers of steps; the pictures get
# worse and the lesson stays the same.

# %%
import stylenb

base = stylenb.load("pocket")  # or "sd15"; we need it at the end, to compare

# %% [markdown]
# ## 1. The pictures
# The pocket world is drawn by code: a scene is a function of its seed, so we may have as many as
# we like. One thousand to learn from, and sixty-four others that no network gets to see in
# training.

# %%
import torch
import torch.nn.functional as F
from torch import nn

from stylenb import to_tensor
from stylenb.course import lesson_A1, show
from stylenb.pocket.scenes import draw_scene

train = to_tensor([draw_scene(2_000_000 + i, 32).picture for i in range(1000)])
unseen = to_tensor([draw_scene(i, 32).picture for i in range(64)])
print("train ", tuple(train.shape))
print("unseen", tuple(unseen.shape))
show.sheet(
    list(unseen[:16]),
    columns=8,
    width=0.9,
    pixels=True,
    title="Scenes at 32 × 32",
    alt="Sixteen tiny landscapes with skies, hills, water, houses and trees.",
)

# %% [markdown]
# ## 2. First the autoencoder
#
# **Its task:** give back the picture, through a bottleneck. Nobody has to label anything: the
# picture is its own answer.
#
# The encoder cuts the picture into patches of 4 × 4 pixels, 48 numbers each, and makes 4 numbers
# of every patch. The decoder goes back. In between are convolutions, so that a patch can look at
# its neighbours.


# %%
class Block(nn.Module):
    """Two convolutions whose result is added to the input; (N, width, h, w) both ways."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)  # at first a block does nothing, which is easy to train

    def forward(self, x):
        return x + self.second(F.silu(self.first(F.silu(x))))


def new_autoencoder(width=96):
    encoder = nn.Sequential(
        nn.PixelUnshuffle(4),  # (3, 32, 32) -> (48, 8, 8), nothing lost yet
        nn.Conv2d(48, width, 3, padding=1),
        Block(width),
        nn.Conv2d(width, 4, 1),  # -> (4, 8, 8): the bottleneck
    )
    decoder = nn.Sequential(
        nn.Conv2d(4, width, 3, padding=1),
        Block(width),
        Block(width),
        nn.Conv2d(width, 48, 3, padding=1),
        nn.PixelShuffle(4),  # (48, 8, 8) -> (3, 32, 32)
    )
    return encoder, decoder


torch.manual_seed(0)
encoder, decoder = new_autoencoder()
latents = encoder(train[:2])
print("picture", tuple(train[:2].shape), " latents", tuple(latents.shape), end=" ")
print(" back", tuple(decoder(latents).shape))
print("parameters:", sum(p.numel() for net in (encoder, decoder) for p in net.parameters()))

# %% [markdown]
# The loss has three parts: the squared error, the absolute error (the squared one alone gives
# blur), and a small price for large latents. While it learns, a little noise is added to the
# latents, so that latents that lie close together have to give pictures that look alike. This
# makes it a *variational* autoencoder, with a spread that we fix; the one of Stable Diffusion
# learns its spread (lesson 01).


# %% tags=["parameters"]
def psnr(a, b):
    """As in lesson 01: values in [-1, 1] -> decibels."""
    return float(10 * torch.log10(4 / F.mse_loss(a, b)))


def train_autoencoder(steps, batch_size=32, rate=2e-3):
    """Train encoder and decoder in place; return PSNR by step and reconstructions on the way."""
    weights = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(weights, rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.2)
    generator = torch.Generator().manual_seed(0)
    looks = {0, steps // 20, steps // 5, steps}
    history, pictures = {}, {}
    for step in range(steps + 1):
        if step % 25 == 0 or step in looks:
            with torch.no_grad():
                back = decoder(encoder(unseen)).clamp(-1, 1)
            history[step] = psnr(back, unseen)
            if step in looks:
                pictures[step] = back[:8]
        if step == steps:
            return history, pictures
        chosen = torch.randint(len(train), (batch_size,), generator=generator)
        x = train[chosen] if step % 2 else train[chosen].flip(-1)  # mirrored: twice the pictures
        z = encoder(x)
        y = decoder(z + 0.05 * torch.randn(z.shape, generator=generator))
        loss = F.mse_loss(y, x) + 0.3 * F.l1_loss(y, x) + 1e-3 * (z**2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()


autoencoder_steps = 400
history, pictures = train_autoencoder(autoencoder_steps)

# %% [markdown]
# **Predict:** what does it learn first, colour or edges?

# %%
show.sheet(
    [*unseen[:8], *(picture for step in pictures for picture in pictures[step])],
    [
        title if i == 0 else ""
        for title in ("unseen", *(f"step {step}" for step in pictures))
        for i in range(8)
    ],
    columns=8,
    width=0.9,
    pixels=True,
    title="The autoencoder while it learns",
    alt="Eight scenes that the autoencoder never saw, and below them what it makes of them early "
    "and late in training: grey, then blurred colours, then the scene.",
)

# %%
figure = show.figure(
    5,
    2.4,
    "Reconstruction of unseen scenes",
    alt=f"PSNR rises steeply and then ever more slowly, from {history[0]:.0f} dB to "
    f"{list(history.values())[-1]:.0f} dB.",
)
axes = figure.subplots()
axes.plot(list(history), list(history.values()), color="#4f7cac")
axes.set_xlabel("step")
axes.set_ylabel("PSNR, dB")
axes.grid(alpha=0.3)
figure

# %% [markdown]
# A number alone says nothing. So compare it with something that has learned nothing: shrink the
# picture to 8 × 8 and blow it up again. That keeps 3 × 64 = 192 numbers; ours keeps 4 × 64 = 256.

# %%
small = F.avg_pool2d(unseen, 4)
blown_up = F.interpolate(small, size=32, mode="bicubic", align_corners=False).clamp(-1, 1)
with torch.no_grad():
    ours = decoder(encoder(unseen)).clamp(-1, 1)
flat = unseen.mean((2, 3), keepdim=True).expand_as(unseen)
for name, result in (
    ("mean colour only", flat),
    ("shrunk to 8 × 8", blown_up),
    ("autoencoder", ours),
):
    print(f"{name:17s} {psnr(result, unseen):.1f} dB")

# %%
show.sheet(
    [*unseen[8:14], *blown_up[8:14], *ours[8:14]],
    [title if i == 0 else "" for title in ("unseen", "shrunk", "autoencoder") for i in range(6)],
    columns=6,
    width=1.0,
    pixels=True,
    title="Is it better than shrinking?",
    alt="Six scenes: the original, shrunk and blown up again, and from the autoencoder, whose "
    "edges are sharper.",
)

# %% [markdown]
# **What it means.** Most of the gain comes early and is colour; edges come late. The curve ends
# flat because the learning rate falls to nothing; with more steps the edges would go on getting
# better. What the autoencoder has over shrinking is that it knows what
# scenes look like: an edge that is probable may be drawn sharp. What it cannot keep, such as a
# window, is gone for good.

# %% [markdown]
# ## 3. Then the UNet
#
# The autoencoder is done and will not change any more. All pictures are encoded once, and brought
# to a spread of 1 (lesson 01, exercise 3). From here on nobody needs pixels.

# %%
with torch.no_grad():
    raw = torch.cat([encoder(part) for part in torch.cat([train, train.flip(-1)]).split(200)])
scale = 1 / raw.std()
data = raw * scale
print("latents", tuple(data.shape), f" spread {data.std():.2f}, scaling factor {float(scale):.3f}")

# %% [markdown]
# **Its task:** told how noisy the latents are, say which part of them is noise. The answer is
# known, because we add the noise ourselves.
#
# How much of the picture's variance is left at timestep t is written $\bar\alpha_t$, "alpha bar",
# below called `kept`: near 1 at t = 0 and near 0 at t = 999. The noise has a variance of `1 -
# kept`.
#
# ### Exercise 1: a training picture for the UNet


# %% tags=["exercise"]
def add_noise_at(x, noise, kept):
    """Latents and noise of one shape and variance 1; kept: above 0, below 1 -> noisy latents."""
    return ...  # your code


# %% tags=["solution"]
def add_noise_at(x, noise, kept):
    """Latents and noise of one shape and variance 1; kept: above 0, below 1 -> noisy latents."""
    return kept**0.5 * x + (1 - kept) ** 0.5 * noise


# %% tags=["check"]
add_noise_at = lesson_A1.check("add_noise_at", add_noise_at)

# %% [markdown]
# <details><summary>Hint 1</summary>A weighted sum, as in exercise 5 of lesson 01.</details>
# <details><summary>Hint 2</summary><code>kept</code> and <code>1 - kept</code> are variances;
# weights are standard deviations.</details>
# <details><summary>Hint 3</summary>A standard deviation is the square root of a variance:
# <code>kept ** 0.5</code>.</details>

# %% [markdown]
# ### Exercise 2: and back
# If the UNet says what the noise was, what was the picture? Solve the line above for `x`.


# %% tags=["exercise"]
def clean_estimate(noisy, noise, kept):
    """The inverse of add_noise_at: noisy latents and their noise -> latents without it."""
    return ...  # your code


# %% tags=["solution"]
def clean_estimate(noisy, noise, kept):
    """The inverse of add_noise_at: noisy latents and their noise -> latents without it."""
    return (noisy - (1 - kept) ** 0.5 * noise) / kept**0.5


# %% tags=["check"]
clean_estimate = lesson_A1.check("clean_estimate", clean_estimate)

# %% [markdown]
# <details><summary>Hint 1</summary>First take away the share of the noise, then undo the weight of
# <code>x</code>.</details>
# <details><summary>Hint 2</summary>The share of the noise is
# <code>(1 - kept) ** 0.5 * noise</code>.</details>
# <details><summary>Hint 3</summary>Divide by <code>kept ** 0.5</code>.</details>

# %% [markdown]
# Schedule and network come from diffusers, with the schedule of SD v1.5. The network is a UNet: it
# looks at the latents at 8 × 8 and at 4 × 4, and with attention, so that water can agree with the
# sky.

# %%
from diffusers import DDIMScheduler, UNet2DModel

scheduler = DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)
kept_at = scheduler.alphas_cumprod  # (1000,): kept, for every timestep
print("kept at t = 0, 250, 500, 999:", [round(float(kept_at[t]), 4) for t in (0, 250, 500, 999)])

torch.manual_seed(0)
unet = UNet2DModel(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    block_out_channels=(64, 96),
    layers_per_block=1,
    norm_num_groups=16,
    attention_head_dim=32,
    down_block_types=("AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D"),
)
print("parameters:", sum(p.numel() for p in unet.parameters()))

# %% [markdown]
# To draw, begin with nothing but noise, ask for the noise, take a little of it away, and repeat.
# (Lesson 02 writes out what `scheduler.step` does; the second exercise is its heart.)


# %%
@torch.no_grad()
def sample(count, seed=1, steps=25):
    """New pictures (count, 3, 32, 32) from the UNet as it is now."""
    z = torch.randn(count, *data.shape[1:], generator=torch.Generator().manual_seed(seed))
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        z = scheduler.step(unet(z, t).sample, t, z).prev_sample
    return decoder(z / scale).clamp(-1, 1)


# %% [markdown]
# The training loop: a random timestep for each picture, noise, the UNet's guess, the squared
# difference. The weights jump about from step to step, so we also keep a running average of them
# (EMA) and draw with that.


# %% tags=["parameters"]
def train_unet(steps, batch_size=32, rate=2e-3):
    """Train the UNet in place; return the losses and samples on the way."""
    optimizer = torch.optim.AdamW(unet.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.2)
    average = [p.detach().clone() for p in unet.parameters()]
    generator = torch.Generator().manual_seed(0)
    looks = {steps // 20, steps // 5, steps}
    losses, pictures = [], {0: sample(8)}
    for step in range(1, steps + 1):
        x = data[torch.randint(len(data), (batch_size,), generator=generator)]
        noise = torch.randn(x.shape, generator=generator)
        t = torch.randint(1000, (batch_size,), generator=generator)
        noisy = add_noise_at(x, noise, kept_at[t].view(-1, 1, 1, 1))
        loss = F.mse_loss(unet(noisy, t).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for mean, now in zip(average, unet.parameters()):
                mean.lerp_(now, max(0.01, 1 / step))
            if step in looks:
                now = [p.clone() for p in unet.parameters()]
                for p, mean in zip(unet.parameters(), average):
                    p.copy_(mean)
                pictures[step] = sample(8)
                if step < steps:  # go on from where we were; at the end, keep the average
                    for p, before in zip(unet.parameters(), now):
                        p.copy_(before)
    return losses, pictures


unet_steps = 800
losses, samples = train_unet(unet_steps)

# %%
show.sheet(
    [picture for step in samples for picture in samples[step]],
    [f"step {step}" if i == 0 else "" for step in samples for i in range(8)],
    columns=8,
    width=0.9,
    pixels=True,
    title="What the UNet draws while it learns, from the same noise",
    alt="Rows of eight pictures: first noise, then blotches, at last soft streaks of colour; some "
    "can be told for a landscape with the sun or moon above.",
)

# %% [markdown]
# **What it means.** Nobody told it that the sky is above or that water mirrors. It was only ever
# asked which part of a heap of numbers is noise. To answer well, it has to know what latents of
# scenes look like, and what it knows, it can draw.
#
# Houses and trees are mostly missing. They are small, different every time, and cost little loss;
# the sky is large. Networks learn what pays first.
#
# ### When is the question easy?
# **Predict:** is it easier to say which part is noise when there is little noise, or when there is
# much?

# %%
with torch.no_grad():
    clean = encoder(unseen) * scale
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    timesteps = [0, 50, 150, 300, 500, 700, 999]
    error = []
    for t in timesteps:
        guess = unet(add_noise_at(clean, noise, kept_at[t]), t).sample
        error.append(float(F.mse_loss(guess, noise)))

figure = show.figure(
    5,
    2.4,
    "Error of the noise prediction on unseen scenes",
    alt="Bars by timestep: " + ", ".join(f"t {t}: {e:.2f}" for t, e in zip(timesteps, error)),
)
axes = figure.subplots()
axes.bar([str(t) for t in timesteps], error, color="#4f7cac")
axes.set_xlabel("timestep")
axes.set_ylabel("mean squared error")
figure

# %% [markdown]
# With little noise it is hard: the noise hides among real detail. With nothing but noise it is
# easy: everything is noise. An error of 1 is what one gets by always answering "no noise at all".
# So the mean loss hides that the network fails at one end, which is why losses are often weighted
# by timestep (lesson 04).
#
# ### Has it learned, or copied?
# For every new picture, look up the training picture that is nearest to it.

# %%
new = sample(8, seed=5)
distance = torch.cdist(new.flatten(1), torch.cat([train, train.flip(-1)]).flatten(1))
nearest = torch.cat([train, train.flip(-1)])[distance.argmin(1)]
show.sheet(
    [*new, *nearest],
    [*["new", *[""] * 7], *["nearest", *[""] * 7]],
    columns=8,
    width=0.9,
    pixels=True,
    title="New pictures and the nearest of 2,000 training pictures",
    alt="Eight new pictures, and below each the most similar training picture: alike in colour and "
    "layout, not the same scene.",
)

# %% [markdown]
# Alike in mood, but not copies. With five training pictures instead of a thousand, this test would
# end otherwise; try it below.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Why two networks and not one?* With a factor of 8, the UNet would have 8 × 8 = 64 times as
#   many places to work on in pixels, at every one of dozens of steps. And it would spend its
#   effort on texture, which the decoder can draw from a few numbers.
# - *Could both be trained together?* Then the latents would change under the UNet's feet. There is
#   work on it, but first one and then the other is what Stable Diffusion does.
# - *Why are the samples so poor, with the loss so flat?* The loss soon consists mostly of what
#   nobody can know. The pictures go on getting better after the loss seems to stand still: look at
#   pictures.

# %% [markdown]
# ## 4. The real ones
# The pocket model is the same thing with more of everything: 128 and 256 pixels instead of 32, a
# factor of 8 instead of 4, and a text encoder, so that captions can steer it. Counted, not quoted:

# %%
from diffusers import UNet2DConditionModel


def count(network):
    return sum(p.numel() for p in network.parameters())


with torch.device("meta"):  # shapes without memory: the UNet of Stable Diffusion v1.5
    unet_of_sd = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
print(f"autoencoder of this lesson {count(encoder) + count(decoder):13,}")
print(f"UNet of this lesson        {count(unet):13,}")
print(f"autoencoder of {base.name:11s} {count(base.vae):13,}")
print(f"UNet of {base.name:18s} {count(base.unet):13,}")
print(f"text encoder of {base.name:10s} {count(base.text_encoder):13,}")
print(f"UNet of SD v1.5            {count(unet_of_sd):13,}")

# %% [markdown]
# The record that its training left behind. (The stages called `further` ran as scripts of their
# own; their commands are what does the like now.)

# %%
import json
from pathlib import Path

record = Path(stylenb.__file__).parents[1] / "data" / "training.json"
story = json.loads(record.read_text()) if record.exists() else {}
for stage, facts in story.items():
    seen = facts.get("samples", facts["steps"] * facts["batch_size"])
    print(f"{stage:17s} {facts['steps']:7,} steps, up to {seen:9,} pictures or crops")
    print(f"{'':17s} {facts['hours']:.2f} h on {facts['hardware']}: {facts['command']}")

# %%
curves = {"vae": ("psnr", "PSNR, dB"), "text-unet": ("mse", "error of the noise prediction")}
figure = show.figure(
    7,
    2.6,
    "The pocket model in training: the first stage, at 128 px",
    alt="The reconstruction gets better fast, then slowly, and faster again in the last third. The "
    "error of the noise prediction falls fast at first and slowly for the rest of the time.",
)
for axes, (stage, (key, label)) in zip(figure.subplots(1, 2), curves.items()):
    rows = [row for row in story.get(stage, {}).get("log", []) if key in row][1:]
    axes.plot([row["minutes"] for row in rows], [row[key] for row in rows], color="#4f7cac")
    axes.set_title(stage, fontsize=9)
    axes.set_xlabel("minutes")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
figure

# %% [markdown]
# Both start as the curve that you have seen: fast, then slow. The PSNR rises again in the last
# third, when the learning rate falls and whole pictures take the place of crops. Then both
# networks went on, at 128 and 256 px on a GPU: the stages called `further`, which the figure
# leaves out. What made the difference, apart from patience:
#
# - **The training pictures are the model.** Trained on landscapes alone, it turned photographs of
#   animals into hills, because hills were all it knew. So a part of the pictures are crops of
#   photographs and random overlapping shapes.
# - **Captions are dropped now and then** in training (18 % of those of whole pictures, half of
#   those of parts, see `data/pretrain.py`), so that the empty caption means "any picture". The
#   whole course runs without a prompt because of it.
# - **Some styles are held out.** The UNet never saw stained glass or a blueprint. What a LoRA adds
#   in lesson 04 is really new to it.
# - **The autoencoder sets the ceiling.** Marks finer than about four pixels do not survive it, so
#   styles were drawn with coarser marks.
#
# To make one like it, from nothing: `python data/pretrain.py --help` lists the stages, and
# `data/README.md` tells how the further ones ran on a GPU. Does it listen to words?

# %%
from stylenb.pocket.styles import KNOWN, PHRASES

caption = "a red house by a lake, mountains, sunset"
prompts = [f"{PHRASES[style]} {caption}" for style in KNOWN[:4]]


@torch.no_grad()
def draw_prompts(prompts, guidance=3.0, steps=20, seed=3):
    """One picture for each prompt, all from the same noise; (N, 3, H, W)."""
    words, none = base.embed(prompts), base.empty.expand(len(prompts), -1, -1)
    side = base.image_size // base.factor
    z = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed))
    z = z.expand(len(prompts), -1, -1, -1).to(base.device, base.dtype)
    base.scheduler.set_timesteps(steps, device=base.device)
    for t in base.scheduler.timesteps:
        with_words, without = base.predict_noise(z, t, words), base.predict_noise(z, t, none)
        # guidance: go further in the direction that the words point in
        noise = without + guidance * (with_words - without)
        z = base.scheduler.step(noise, t, z).prev_sample
    return base.decode(z).float().cpu()


show.sheet(
    list(draw_prompts(prompts)),
    KNOWN[:4],
    width=1.7,
    title=f"“{caption}” in four styles that the base knows",
    alt=f"Four pictures of {caption}, in the styles {', '.join(KNOWN[:4])}.",
)

# %% [markdown]
# Manner and light follow the words, though oil is hardly more than a warmer photo. The house is a
# peaked shape by the water at best: what was said of the small network holds here too, small things
# are learned last.

# %% [markdown]
# ## Recap
# - Two networks, trained one after the other: the autoencoder learns to give pictures back, the
#   UNet to tell noise from latents.
# - Neither needs labels. Captions come in only as a help for the UNet.
# - Compare with something that has learned nothing, test on what was never seen, look for copies.
# - What a model can draw is decided by its training pictures.
#
# ## If you want more
# - Train on five scenes: `train = train[:5]` before section 2, then run on. What does the last
#   test show?
# - Give the bottleneck 1 channel instead of 4, or 16. What happens to the PSNR, and what to the
#   samples? They need not agree.
# - Leave out the noise on the latents in `train_autoencoder`. What happens to the PSNR, and what to
#   the samples?
