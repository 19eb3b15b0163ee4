# ---
# jupyter:
#   stylenb:
#     title: Noise and the UNet
#     about: >-
#       How much noise stands for which timestep, how a network that names the noise can draw, and
#       why a photo can be redrawn without a word of prompt.
#     read: 25
#     do: 55
#     needs: lesson 01; no GPU
# ---

# %% [markdown]
# **After this lesson you can**
#
# - read the noise schedule, and put any amount of noise on a picture,
# - get from a guess of the noise to a guess of the clean picture, and say when to trust it,
# - write the denoising loop yourself, and show that it does what the library's does,
# - name the three inputs of the UNet, and recognise what a mistake in each looks like,
# - say what an empty prompt does, why this course needs no other, and what that saves,
# - choose a strength knowing what is left of the picture at it.
#
# There are six exercises, with checks as in lesson 01.

# %% [markdown] tags=["instructor"]
# **Plan for 80 minutes.** Schedule: 12. The picture under noise: 8. The UNet and its guess: 15.
# The loop: 15. The three inputs: 10. The empty prompt and guidance: 10. Strength: 10.
#
# Short of time? Leave out guidance but for its first paragraph. Do not leave out exercises 3 and 4:
# lesson 04 trains on the first of them, and everything that draws uses the second.
#
# A good thread for the board is one line, *noisy = a × picture + b × noise*. Exercise 1 reads it
# from right to left, exercise 3 solves it for the picture, exercise 4 does one after the other.

# %%
import stylenb

base = stylenb.load("pocket")  # or "sd15"
base

# %%
import statistics
import time

import torch

from stylenb import sample_photo, to_tensor
from stylenb.course import lesson_02, show
from stylenb.pocket.scenes import draw_scene

torch.set_grad_enabled(False)  # nothing is trained in this lesson

size = base.image_size
scenes = [draw_scene(seed, size) for seed in (12, 6, 3, 4, 5, 9, 17, 20)]
photo = sample_photo("coffee", size)
latents = torch.cat(
    [base.encode(to_tensor(p)).float().cpu() for p in [*(s.picture for s in scenes), photo]]
)
print("latents", tuple(latents.shape), f" spread {latents.std():.2f}")

# %% [markdown]
# Eight drawn scenes that the model has never seen, and one photograph (crops of which were among
# the training pictures of the pocket model), already encoded. Mostly we shall look at the first
# scene and at the photograph. To look at latents is to decode them:


# %%
def look(latents):
    """Latents (N, 4, h, w) -> a list of N pictures (3, H, W), ready to show."""
    return [base.decode(one[None])[0].float().cpu() for one in latents]


pair = latents[[0, -1]]
show.sheet(
    look(pair),
    ["the scene", "the photo"],
    title="Our two pictures, encoded and decoded",
    alt=f"Two pictures: {scenes[0].caption}; and a cup of coffee.",
)

# %% [markdown]
# ## 1. The schedule
#
# Lesson 01 ended with *noisy = α × picture + σ × noise*, with weights whose squares add up to 1. A
# **schedule** is a timetable for these weights. It has 1000 **timesteps**, from t = 0, hardly any
# noise, to t = 999, hardly any picture.
#
# Think of it as a thousand small steps. Step t replaces a small share of the variance, **beta**, by
# fresh noise. What is then left of the picture's variance after all steps up to t is the product of
# everything that each of them kept. It is written $\bar\alpha_t$, "alpha bar"; we call it `kept`.
# It is a share of the variance, so it is the square of a weight, $\bar\alpha_t = \alpha^2$ with
# lesson 01's α: unlucky letters, but customary.
#
# $$\bar\alpha_t = (1 - \beta_0)(1 - \beta_1) \cdots (1 - \beta_t)$$
#
# Stable Diffusion's betas are fixed by two numbers, the first beta and the last. In between, their
# square roots are evenly spaced:

# %%
config = base.scheduler.config
first, last, count = config.beta_start, config.beta_end, config.num_train_timesteps
betas = torch.linspace(first**0.5, last**0.5, count) ** 2
kept = (1 - betas).cumprod(0)

print(f"beta from {first} to {last} in {count} steps")
difference = (kept - base.scheduler.alphas_cumprod.cpu()).abs().max()
print(f"largest difference from the base's own table: {difference:.0e}")
for t in (0, 100, 250, 500, 750, 999):
    print(
        f"t = {t:3d}: kept {kept[t]:.4f}   weight of the picture {kept[t] ** 0.5:.3f}, "
        f"of the noise {(1 - kept[t]) ** 0.5:.3f}"
    )

# %%
figure = show.figure(
    6,
    2.6,
    "What the schedule does",
    alt="Two curves over the timestep. The weight of the picture falls from 1 to nearly 0, that of "
    "the noise rises from nearly 0 to 1; they cross about a third of the way.",
)
axes = figure.subplots()
axes.plot(kept**0.5, label="weight of the picture", color="#4f7cac")
axes.plot((1 - kept) ** 0.5, label="weight of the noise", color="#c0553b")
axes.set_xlabel("timestep t")
axes.grid(alpha=0.3)
axes.legend(fontsize=8)
figure

# %% [markdown]
# **What it means.** The thousand steps never have to be walked: one product tells where they lead,
# so noise can be added up to any t in one go. And note the last row: even at t = 999 the picture
# has not gone entirely.
#
# ### Exercise 1: add noise
# Each picture of a batch may have a timestep of its own. This gives what is kept at each of them,
# in a shape that can be multiplied with latents:


# %%
def kept_at(scheduler, timestep):
    """A timestep, or a tensor (N,) of them -> what is kept of the variance, (N, 1, 1, 1)."""
    return scheduler.alphas_cumprod.cpu()[timestep].view(-1, 1, 1, 1)


print(tuple(kept_at(base.scheduler, 500).shape))
print(tuple(kept_at(base.scheduler, torch.tensor([0, 500, 999])).shape))


# %% tags=["exercise"]
def add_noise(scheduler, latents, noise, timestep):
    """Latents and noise (N, 4, h, w), timestep (N,) or one -> noisy latents (N, 4, h, w)."""
    return ...  # your code


# %% tags=["solution"]
def add_noise(scheduler, latents, noise, timestep):
    """Latents and noise (N, 4, h, w), timestep (N,) or one -> noisy latents (N, 4, h, w)."""
    kept = kept_at(scheduler, timestep)
    return kept**0.5 * latents + (1 - kept) ** 0.5 * noise


# %% tags=["check"]
add_noise = lesson_02.check("add_noise", add_noise)

# %% [markdown]
# <details><summary>Hint 1</summary>A weighted sum of latents and noise, as in exercise 5 of lesson
# 01.</details>
# <details><summary>Hint 2</summary><code>kept_at(scheduler, timestep)</code> is the picture's share
# of the <em>variance</em>. A weight is the square root of that.</details>
# <details><summary>Hint 3</summary>The noise has the rest of the variance,
# <code>1 - kept</code>.</details>

# %%
noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
timestep = torch.linspace(0, 999, len(latents)).long()
difference = add_noise(base.scheduler, latents, noise, timestep) - base.scheduler.add_noise(
    latents, noise, timestep
)
print("timesteps", timestep.tolist())
print(f"largest difference from the library's add_noise: {difference.abs().max():.0e}")

# %% [markdown]
# ## 2. A picture under noise
#
# **Predict:** from which t on will you no longer be able to tell what the picture is?

# %%
times = [0, 100, 250, 400, 600, 999]
noisy = {t: add_noise(base.scheduler, latents, noise, t) for t in times}
show.sheet(
    [noisy[t][0, 0] for t in times]
    + [picture for which in (0, -1) for t in times for picture in look(noisy[t][which][None])],
    [f"t = {t}" for t in times],
    columns=len(times),
    width=0.75,
    cmap="RdBu_r",
    limits=(-3, 3),
    title="Under noise: channel 0, scene, photo",
    alt="Three rows of growing noise. As numbers, the scene's outline sinks into speckle. Decoded, "
    "scene and cup lose their detail first, then their shapes, and end as coloured blotches.",
)

# %% [markdown]
# How much picture is there for how much noise? The **signal-to-noise ratio** (SNR) is the variance
# of the one over the variance of the other.
#
# ### Exercise 2: SNR


# %% tags=["exercise"]
def snr(scheduler, timestep):
    """Timesteps (N,) -> the ratio of the two variances at each, (N,)."""
    return ...  # your code


# %% tags=["solution"]
def snr(scheduler, timestep):
    """Timesteps (N,) -> the ratio of the two variances at each, (N,)."""
    kept = scheduler.alphas_cumprod.cpu()[timestep]
    return kept / (1 - kept)


# %% tags=["check"]
snr = lesson_02.check("snr", snr)

# %% [markdown]
# <details><summary>Hint 1</summary>One number for each timestep: take
# <code>scheduler.alphas_cumprod[timestep]</code> as it is, without the shape for
# latents.</details>
# <details><summary>Hint 2</summary>That is the variance of the picture's part. What is the variance
# of the noise's part?</details>
# <details><summary>Hint 3</summary>They add up to 1. Divide the first by the second.</details>

# %%
ratio = snr(base.scheduler, torch.arange(count))
even = int((ratio < 1).nonzero()[0])
print(f"from t = {even} on there is more noise than picture")

figure = show.figure(
    6,
    2.4,
    "Signal-to-noise ratio",
    alt=f"The ratio falls steadily on a logarithmic scale, through 1 at t = {even}.",
)
axes = figure.subplots()
axes.semilogy(ratio, color="#4f7cac")
axes.axhline(1, color="#888888", linewidth=0.8)
axes.axvline(even, color="#888888", linewidth=0.8)
axes.set_xlabel("timestep t")
axes.set_ylabel("SNR")
axes.grid(alpha=0.3)
figure

# %% [markdown]
# **What it means.** Picture and noise are level about a third of the way up, well before the
# middle. Yet in the decoded pictures something could still be seen beyond that point: the SNR is
# that of *one* latent number, and an eye takes many together. We come back to that in section 8.
# (The schedule assumes latents with a spread of 1. Those of our pictures have less, see the first
# output, so with them the noise takes over a little earlier still.)

# %% [markdown]
# ## 3. Naming the noise
#
# The **UNet** is given the noisy latents and has to say what the noise was. It looks at the latents
# at several sizes: down, to see far; across; and up again, with shortcuts that carry the detail
# over. Two more things go in: the timestep, and a condition, of which more in section 5.


# %%
def predict(noisy, timestep, embedding=None):
    """The UNet's guess of the noise; on the CPU, where everything else of ours is."""
    return base.predict_noise(noisy, timestep, embedding).cpu()


def printer(name):
    def hook(part, inputs, output):
        print(f"{name:10s}", tuple((output[0] if isinstance(output, tuple) else output).shape))

    return hook


unet = base.unet
parts = {"timestep": unet.time_embedding, "conv in": unet.conv_in}
parts |= {f"down {i}": block for i, block in enumerate(unet.down_blocks)}
parts |= {"middle": unet.mid_block}
parts |= {f"up {i}": block for i, block in enumerate(unet.up_blocks)}
parts |= {"conv out": unet.conv_out}
hooks = [part.register_forward_hook(printer(name)) for name, part in parts.items()]

print("parameters", f"{sum(p.numel() for p in unet.parameters()):,}")
print("condition ", tuple(base.empty.shape))
print("in        ", tuple(noisy[400][:1].shape))
guess = predict(noisy[400][:1], 400)
print("guess     ", tuple(guess.shape))

for hook in hooks:
    hook.remove()

# %% [markdown]
# Same shape out as in. Is it any good?

# %%
guess = predict(noisy[400], 400)
show.sheet(
    [noisy[400][0, 0], noise[0, 0], guess[0, 0], (guess - noise)[0, 0]],
    ["noisy latents", "the noise in them", "the guess", "guess minus noise"],
    width=1.6,
    cmap="RdBu_r",
    limits=(-3, 3),
    pixels=True,
    title="Channel 0 of the scene at t = 400",
    alt="Four coarse maps. The guess looks like the noise; their difference is paler, and shows "
    "traces of the scene's outlines.",
)

# %% [markdown]
# The guess is scored by its mean squared error. Guessing 0 everywhere would score 1, since noise
# has a variance of 1.
#
# To know what a score is worth we need a simple rule to compare it with. Of all rules that only
# multiply the noisy latents by one number, the best takes the weight of the noise for it, as long
# as the latents have a spread of 1. It knows nothing of pictures.
#
# **Predict:** is it easier to name the noise when there is little of it, or a lot?

# %%
levels = [20, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999]
by_unet, by_rule = [], []
for t in levels:
    x = add_noise(base.scheduler, latents, noise, t)
    by_unet.append(float((predict(x, t) - noise).pow(2).mean()))
    by_rule.append(float(((1 - kept[t]) ** 0.5 * x - noise).pow(2).mean()))
    print(f"t = {t:3d}: UNet {by_unet[-1]:.4f}   rule {by_rule[-1]:.4f}")

# %%
figure = show.figure(
    6,
    2.6,
    "Error of the guess, by timestep",
    alt="Two curves that fall with the timestep, on a logarithmic scale: the simple rule above, "
    "the UNet below it, close together at the end of the schedule.",
)
axes = figure.subplots()
axes.semilogy(levels, by_rule, "o-", markersize=3, label="simple rule", color="#888888")
axes.semilogy(levels, by_unet, "o-", markersize=3, label="UNet", color="#4f7cac")
axes.set_xlabel("timestep t")
axes.set_ylabel("mean squared error")
axes.grid(alpha=0.3)
axes.legend(fontsize=8)
figure

# %% [markdown]
# **What it means.** A lot of noise is easy to name: at t = 999 the latents are hardly anything
# else, and even a rule that knows nothing of pictures is nearly right. A little noise is hard, as
# it has to be told from fine detail. What the UNet knows about pictures is the gap between the
# curves. So a low error is no merit by itself. And in training, where t is drawn at random, the
# loss jumps up and down with t. Lesson 04 has to deal with that.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Why guess the noise and not the picture?* Either can be worked out from the other (exercise 3),
#   so it is a matter of which errors count how much. With the noise as the target every timestep
#   asks for numbers of the same size. Guessing the picture, or a mixture of both ("v"), are in use
#   too.
# - *Where does the rule come from?* Of all numbers c, c × noisy is nearest to the noise for c = the
#   mean of noise × noisy over the mean of noisy². With a spread of 1 that is the weight of the
#   noise over 1, and the error that remains is `kept`.
# - *Should it not be worse at t = 999, where there is nothing to see?* It is asked for the noise,
#   and there the noise is all that can be seen. Ask for the picture, and the order turns round:
#   next section.

# %% [markdown]
# ### From the noise to the picture
# *noisy = a × picture + b × noise* has three parts. Two are known: `noisy` is what we have, and the
# noise has been guessed. So solve it for the picture. The answer is called the **estimate of x0**:
# x0 is the usual name for the clean latents, which have even less noise than those at t = 0.
#
# ### Exercise 3: estimate the clean latents


# %% tags=["exercise"]
def estimate_x0(scheduler, noisy, noise, timestep):
    """Noisy latents, their noise, timestep (N,) or one -> clean latents (N, 4, h, w)."""
    return ...  # your code


# %% tags=["solution"]
def estimate_x0(scheduler, noisy, noise, timestep):
    """Noisy latents, their noise, timestep (N,) or one -> clean latents (N, 4, h, w)."""
    kept = kept_at(scheduler, timestep)
    return (noisy - (1 - kept) ** 0.5 * noise) / kept**0.5


# %% tags=["check"]
estimate_x0 = lesson_02.check("estimate_x0", estimate_x0)

# %% [markdown]
# <details><summary>Hint 1</summary>Write down exercise 1 and solve it for
# <code>latents</code>.</details>
# <details><summary>Hint 2</summary>First subtract the noise with its weight, then divide by the
# weight of the picture.</details>
# <details><summary>Hint 3</summary>The weights are <code>(1 - kept) ** 0.5</code> and
# <code>kept ** 0.5</code>.</details>

# %% [markdown]
# With the *true* noise it has to be exact, at every t:

# %%
for t in times:
    error = estimate_x0(base.scheduler, noisy[t], noise, t) - latents
    print(f"t = {t:3d}: largest error with the true noise {error.abs().max():.0e}")

# %% [markdown]
# With the UNet's guess it is as good as the guess.
#
# **Predict:** at t = 999 the guess of the noise was nearly perfect. Will the estimate of the
# picture be? Compare with the second and third rows of section 2: those are what the UNet was
# given.

# %%
guesses = {t: predict(noisy[t], t) for t in times[1:]}
estimates = {t: estimate_x0(base.scheduler, noisy[t], guesses[t], t) for t in times[1:]}
show.sheet(
    [picture for i in (0, -1) for t in times[1:] for picture in look(estimates[t][i][None])],
    [f"t = {t}" for t in times[1:]],
    columns=len(times) - 1,
    width=0.9,
    title="What one step recovers",
    alt="Two rows, scene and photo. With little noise the estimate is the picture, a bit softer; "
    "with more it turns ever vaguer, and at last hardly a shape is left.",
)

# %% [markdown]
# **What it means.** One step recovers what can still be made out under the noise. In the place of
# what is wiped out, it puts haze. That is no fault: many pictures would fit what can still be seen,
# and the answer with the smallest squared error is their *average*. An average of many pictures is
# blurred. (At t = 999 it is not even that: what shows is the error of the guess, magnified.)
#
# And why is it so bad where the guess is so good? Because of the division:
#
# $$\text{error of the picture} = \sqrt{\frac{1-\bar\alpha_t}{\bar\alpha_t}} \times \text{error of
# the noise}$$

# %%
for t in times[1:]:
    gain = float(((1 - kept[t]) / kept[t]) ** 0.5)
    error_noise = float((guesses[t] - noise).pow(2).mean() ** 0.5)
    error_picture = float((estimates[t] - latents).pow(2).mean() ** 0.5)
    print(
        f"t = {t:3d}: error of the noise {error_noise:.3f} × gain {gain:5.2f} = "
        f"{error_noise * gain:.3f}   error of the picture {error_picture:.3f}"
    )

# %% [markdown]
# Low in the schedule the estimate is better than the guess, high up it is far worse. In lesson 04
# we shall want to look at estimates *as pictures* during training, and this table says when that
# makes sense: only low in the schedule.
#
# Move the slider. (On a page that only shows the notebook, you see the picture but no slider.)


# %%
def draw(timestep, seed):
    noise = torch.randn(pair.shape, generator=torch.Generator().manual_seed(seed))
    noisy = add_noise(base.scheduler, pair, noise, timestep)
    estimate = estimate_x0(base.scheduler, noisy, predict(noisy, timestep), timestep)
    return show.sheet(
        [
            picture
            for i in (0, 1)
            for stage in (noisy, estimate)
            for picture in look(stage[i][None])
        ],
        ["noisy", "estimate"] * 2,
        width=0.95,
        title=f"t = {timestep}, SNR {ratio[timestep]:.2f}",
        alt=f"The scene and the photo, noisy at t = {timestep}, and the estimate of each.",
    )


show.interactive(draw, timestep=(0, 999, 1, 300), seed=(0, 9, 1, 0))

# %% [markdown]
# ## 4. The loop
#
# One jump from t = 999 recovers next to nothing, and from t = 600 a haze. But even a haze is right
# about something, such as where it is light and where dark. So do not jump all the way. Go back a
# *little*, to somewhat less noise, where slightly more can be seen, and guess again.
#
# One step of **DDIM** (Song et al. 2020, https://arxiv.org/abs/2010.02502):
#
# 1. estimate the clean latents from the guess of the noise,
# 2. put the same guessed noise back on, but only as much as belongs to the earlier timestep.
#
# ### Exercise 4: one step
# You have written both halves already.


# %% tags=["exercise"]
def ddim_step(scheduler, noisy, noise, timestep, previous):
    """Noisy latents at `timestep`, the guess of their noise -> noisy latents at `previous`.

    timestep and previous: (N,) or one.
    """
    return ...  # your code


# %% tags=["solution"]
def ddim_step(scheduler, noisy, noise, timestep, previous):
    """Noisy latents at `timestep`, the guess of their noise -> noisy latents at `previous`.

    timestep and previous: (N,) or one.
    """
    clean = estimate_x0(scheduler, noisy, noise, timestep)
    return add_noise(scheduler, clean, noise, previous)


# %% tags=["check"]
ddim_step = lesson_02.check("ddim_step", ddim_step)

# %% [markdown]
# <details><summary>Hint 1</summary>Exercise 3, then exercise 1.</details>
# <details><summary>Hint 2</summary>The estimate is made at <code>timestep</code>, the noise is put
# back at <code>previous</code>.</details>
# <details><summary>Hint 3</summary><code>estimate_x0(scheduler, noisy, noise, timestep)</code>
# gives the clean latents that <code>add_noise</code> needs.</details>

# %% [markdown]
# Which timesteps? We take evenly spaced ones, from high to low, and the last leads to t = 0.


# %% tags=["parameters"]
def timesteps_for(steps):
    """A list of `steps` timesteps, evenly spaced, from high to low; the last one is 1."""
    stride = base.scheduler.config.num_train_timesteps // steps
    return [i * stride + 1 for i in reversed(range(steps))]


def sample(noisy, timesteps, guess=predict):
    """Denoise from the first timestep to 0; return the latents of every stage, the result last.

    guess(noisy, timestep) says what the noise is.
    """
    stages = [noisy]
    for timestep, previous in zip(timesteps, [*timesteps[1:], 0]):
        noise = guess(stages[-1], timestep)
        stages.append(ddim_step(base.scheduler, stages[-1], noise, timestep, previous))
    return stages


timesteps = timesteps_for(30)
print(len(timesteps), "timesteps:", *timesteps[:3], "...", *timesteps[-3:])

# %% [markdown]
# **Predict:** we begin with nothing but random numbers and say nothing about what we want. What
# will come out?

# %%
start = torch.randn(4, *latents.shape[1:], generator=torch.Generator().manual_seed(1))
stages = sample(start, timesteps)
drawn = look(stages[-1])
show.sheet(
    drawn,
    title="Drawn from pure noise",
    alt="Four pictures that the model has drawn by itself, no two alike.",
)

# %% [markdown]
# Is it a landscape, or no more than shapes and tones? Without a prompt a small model often finds
# nothing better (section 7 shows what a prompt does for it). Now the same with the scheduler of the
# library, diffusers, from the same noise:

# %%
scheduler = base.scheduler
scheduler.set_timesteps(len(timesteps))
x = start
for t in scheduler.timesteps:
    x = scheduler.step(predict(x, t), t, x).prev_sample

difference = (x - stages[-1]).abs().max()
print("the same timesteps:", scheduler.timesteps.tolist() == timesteps)
print(f"largest difference after {len(timesteps)} steps: {difference:.0e}")
if base.dtype == torch.float32:  # half precision is rounded afresh in every call of the UNet
    assert difference < 1e-4

# %% [markdown]
# So there is nothing more in a scheduler of this kind than your two exercises. What happens on the
# way? Above, the latents as they are at that timestep. Below, what the model *believes* there: the
# estimate from that stage.

# %%
looked_at = [round(i * (len(timesteps) - 1) / 5) for i in range(6)]
now = [stages[i][:1] for i in looked_at]
believed = [
    estimate_x0(scheduler, x, predict(x, timesteps[i]), timesteps[i])
    for i, x in zip(looked_at, now)
]
show.sheet(
    look(torch.cat(now + believed)),
    [f"t = {timesteps[i]}" for i in looked_at],
    columns=6,
    width=0.95,
    title="Above: where we are. Below: what the model believes",
    alt="Above, noise that clears up towards the end. Below, a haze in which first large areas of "
    "colour appear, then shapes, then detail.",
)

# %% [markdown]
# **What it means.** First come the large areas of colour, then shapes, then detail. Each step fixes
# a little of what the next has to work with, so the average over all pictures becomes an average
# over fewer and fewer, and sharpens.
#
# There is no chance in the loop: the same start gives the same picture. All variety comes from the
# first noise.
#
# **Predict:** twice the steps take twice the time. Do they give a better picture?

# %%
counts = [4, 8, 15, 30, 60]
one = start[:1]
show.sheet(
    [look(sample(one, timesteps_for(n))[-1])[0] for n in counts],
    [f"{n} steps" for n in counts],
    width=1.1,
    title="The same noise, in few steps and in many",
    alt="Five pictures from the same noise. With very few steps the picture is another or flatter "
    "one; from a moderate number on they hardly change.",
)

# %% [markdown]
# Beyond a point more steps hardly change anything. With very few, two things go wrong: every step
# is a leap, and the first timestep is too low. Pure noise belongs to 999; look where the model is
# told that we begin. (The list is evenly spaced by whole numbers, so 60 steps begin a little lower
# than 30.)

# %%
for n in counts:
    print(f"{n:2d} steps begin at t = {timesteps_for(n)[0]}")

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Why put back the guessed noise and not fresh noise?* Both are in use. The original sampler
#   (DDPM, https://arxiv.org/abs/2006.11239) puts back a part of the guessed noise and makes up the
#   rest with fresh noise; it needs many more steps. With the guessed noise alone the whole run is
#   one fixed path from noise to picture.
# - *Why does the last timestep lead to 0 and not to "no noise"?* SD v1.5's schedule has it so
#   (`set_alpha_to_one=False`), and t = 0 has next to none. `steps_offset=1` is why the list ends at
#   1 and not at 0.
# - *Is it a mistake to begin below 999, then?* A small one with enough steps, and well known (Lin
#   et al. 2023, https://arxiv.org/abs/2305.08891). The course keeps what Stable Diffusion does.

# %% [markdown]
# ## 5. Three inputs, and what a mistake in each looks like
#
# `predict(noisy, timestep, embedding)`. None of these mistakes raises an error.
#
# ### The noisy latents
# The schedule promises a spread of 1. **Predict:** what if the first noise is a little too small,
# or a little too large?

# %%
sizes = [0.85, 0.95, 1, 1.05, 1.15]
results = sample(torch.cat([factor * one for factor in sizes]), timesteps)[-1]
for factor, result in zip(sizes, results):
    print(f"noise × {factor:<4}: latents with a spread of {result.std():.2f} come out")
show.sheet(
    look(results),
    [f"noise × {factor}" for factor in sizes],
    width=1.1,
    title="The first noise in the wrong size",
    alt="Five pictures from the same noise times different factors. Too small gives a flat, empty "
    "picture, too large a harsh and overdone one.",
)

# %% [markdown]
# Too small, and there is too little for the model to make things of: the picture turns flat and
# empty. Too large, and it makes too much of everything. The loop does not put it right on the way,
# as every step builds on the one before. This is how a wrong scaling factor (lesson 01) does harm.
#
# ### The timestep
# The UNet could in principle see for itself how much noise there is, but it has been told all its
# life, and believes it. Here the latents have the noise of one timestep, and the UNet is told
# another.

# %%
told = [1, 50, 100, 200, 400, 550, 700, 850, 999]
curves = {}
for true in (100, 400, 700):
    x = add_noise(base.scheduler, latents[::3], noise[::3], true)
    curves[true] = [float((predict(x, t) - noise[::3]).pow(2).mean()) for t in told]
    best = told[curves[true].index(min(curves[true]))]
    print(f"noise of t = {true}: smallest error when told {best}")

figure = show.figure(
    6,
    2.6,
    "Error of the guess when told another timestep",
    alt="Three curves, for noise of t = 100, 400 and 700, over the timestep that the UNet is told. "
    "Each is lowest near the true timestep and rises to both sides.",
)
axes = figure.subplots()
for (true, curve), colour in zip(curves.items(), ("#4f7cac", "#c0553b", "#6a8f3c")):
    axes.semilogy(told, curve, "o-", markersize=3, color=colour, label=f"noise of t = {true}")
    axes.axvline(true, color=colour, linewidth=0.8, linestyle=":")
axes.set_xlabel("timestep that the UNet is told")
axes.set_ylabel("mean squared error")
axes.grid(alpha=0.3)
axes.legend(fontsize=8)
figure

# %% [markdown]
# **Predict:** now a whole run in which the UNet is always told 100 too few, or 100 too many. Which
# of the two leaves noise in the picture?

# %%
shifts = torch.tensor([-100, -50, 0, 50, 100])


def misled(noisy, t):
    return predict(noisy, (t + shifts).clamp(0, 999))  # each picture of the batch is told its own


show.sheet(
    look(sample(one.repeat(len(shifts), 1, 1, 1), timesteps, misled)[-1]),
    [f"told {shift:+d}" if shift else "told the truth" for shift in shifts.tolist()],
    width=1.1,
    title="A timestep that is always wrong",
    alt="Five pictures from the same noise. Told too little, the model overdoes light and dark; "
    "told too much, it leaves speckles in the picture.",
)

# %% [markdown]
# Told of *more* noise than there is, it leaves noise behind. The size of the guess shows why:

# %%
x = add_noise(base.scheduler, latents, noise, 400)
for t in (300, 400, 500):
    print(f"noise of t = 400, told {t}: the guess has a spread of {predict(x, t).std():.2f}")

# %% [markdown]
# **What it means.** Solved for the noise, our formula is *noise = (noisy − a × picture) / b*, and
# the timestep is how the UNet knows a and b. Told of a larger b than the true one, it answers with
# smaller numbers: too little is taken away, and speckles stay. Told of a smaller one, it answers
# with larger numbers: too much is taken away, and light and dark are overdone. (Compare with the
# row that was told the truth, not with 1: what cannot be seen is left out of a guess, by the
# average of section 3, so even that one is smaller than the noise.) If your own loop gives one or
# the other, look at the timesteps first: a list shifted by a few entries will do it.
#
# ### The condition
# The third input is a text, turned into numbers by the text encoder. Always 77 places, whatever the
# length:

# %%
prompts = [
    "",
    "a photo of a red house in a green meadow, day",
    "a photo of the sea under a full moon, stars, night",
    "a charcoal drawing of a lake, snowy mountains, day",
    "a comic drawing of a lighthouse by the sea, sunset",
    "a photo of a violin",
]
embeddings = base.embed(prompts)
print(tuple(embeddings.shape))


def prompted(embedding):
    return lambda noisy, t: predict(noisy, t, embedding)


show.sheet(
    look(sample(one.repeat(len(prompts), 1, 1, 1), timesteps, prompted(embeddings))[-1]),
    ["(empty)", "red house, day", "sea, moon, night", "charcoal, lake", "comic, lighthouse"]
    + ["violin"],
    columns=6,
    width=1.15,
    title="The same noise under six prompts",
    alt="Six pictures from the same noise. The prompt steers colours, light and manner, and parts "
    "of the layout come from the noise and stay.",
)

# %% [markdown]
# The words steer, loosely (is there a house?); the noise decides the rest. The pocket model knows
# the words of its captions and no others: landscapes above all, some things cut out of photos, and
# seven manners of drawing them. A violin was only one of 314 cut-outs, and none comes: most likely
# the model has met the word too seldom. (Stable Diffusion v1.5 does know violins.)
#
# How much is a *true* text worth in naming the noise, and how much harm does a wrong one do? Four
# texts for each of the eight scenes: none, its own caption, the caption of another scene, and its
# own caption in the wrong manner. (A plain scene counts as "a photo", which is one of the seven.)

# %%
others = [*scenes[3:], *scenes[:3]]
texts = {
    "true caption": [f"a photo of {scene.caption}" for scene in scenes],
    "caption of another": [f"a photo of {scene.caption}" for scene in others],
    "in another manner": [f"a charcoal drawing of {scene.caption}" for scene in scenes],
}
clean, true_noise = latents[: len(scenes)], noise[: len(scenes)]
for t in (300, 600, 760, 900):
    x = add_noise(base.scheduler, clean, true_noise, t)
    without = (predict(x, t) - true_noise).pow(2).mean((1, 2, 3))
    print(f't = {t}: error with "" {without.mean():.4f}')
    for name, captions in texts.items():
        error = (predict(x, t, base.embed(captions)) - true_noise).pow(2).mean((1, 2, 3))
        better = int((error < without).sum())
        change = error.mean() / without.mean() - 1
        print(f"    {name:18s} {change:+6.1%}, better for {better} of {len(scenes)}")

# %% [markdown]
# **What it means.** Low in the schedule a true text takes little off the error: what the UNet needs
# to know, it sees in the noisy latents. The less can be seen, the more the text is worth. One that
# names the wrong things should gain less or do harm, though even that one says rightly that this is
# a photo. One with the wrong manner makes the UNet look for strokes where there are none; only
# where hardly anything can be seen may the right things in it outweigh that. Compare: what is the
# most that a text gains, and the most that it spoils?

# %% [markdown]
# ## 6. The empty prompt
#
# When no embedding is given, `predict` uses that of `""`. What is in it?

# %%
print("shape of the embedding:", tuple(base.empty.shape))
token_ids = base.tokenizer("")["input_ids"]
print('tokens of "":', base.tokenizer.convert_ids_to_tokens(token_ids), "and then padding")
print(f"size of the numbers: spread {base.empty.float().std():.2f}, so they are far from zero")

# %% [markdown]
# It is no absence. While the base was trained, part of the captions were replaced by `""`, so that
# the UNet learned two things in one network: to name the noise in *a picture with this caption*,
# and to name the noise in *any picture*. `""` asks for the second.
#
# A common shortcut is to pass zeros instead. **Predict:** will the UNet notice?

# %%
empty = base.empty.float().cpu()
shuffled = empty.flatten()[
    torch.randperm(empty.numel(), generator=torch.Generator().manual_seed(0))
].view_as(empty)
instead = {'""': empty, "zeros": torch.zeros_like(empty), '"" shuffled': shuffled}
for t in (100, 300, 600, 900):
    x = add_noise(base.scheduler, latents, noise, t)
    scores = {name: float((predict(x, t, e) - noise).pow(2).mean()) for name, e in instead.items()}
    print(f"t = {t}: " + "   ".join(f"{name} {score:.4f}" for name, score in scores.items()))

show.sheet(
    [
        picture
        for embedding in instead.values()
        for picture in look(sample(start[:2], timesteps, prompted(embedding))[-1])
    ],
    [name for name in instead for _ in range(2)],
    width=0.9,
    title='The same two starts, with "", with zeros and with "" shuffled',
    alt="Six pictures in three pairs: drawn with the empty prompt, with zeros instead, and with "
    "the numbers of the empty prompt in a random order.",
)

# %% [markdown]
# **What it means.** Zeros raise no error either. Compare the errors and the pictures: the pocket
# model hardly notices, not even that the numbers are shuffled. Nobody taught it that, as no text
# gives such an embedding, so do not rely on it, least of all on another base. With `""` a base does
# what it was taught.
#
# **And why does the course need no other prompt?** We redraw a photo that is there. *What* is in
# it, the latents show as long as they are not too noisy, and section 9 has a way to start from
# latents that show it at any strength. *How* it is to be drawn, the style's LoRA
# says, because it is trained on one style and with `""`. Nothing is left for words to say. So:
#
# - nobody has to caption pictures for training, and no caption can be wrong,
# - each step needs one guess instead of two, which is the next section,
# - `""` is embedded once, and then the text encoder can go (`base.drop_text_encoder()` does that).
#   How large is what goes, and what is kept in its place?

# %%
for name in ("unet", "vae", "text_encoder"):
    print(f"{name:12s} {sum(p.numel() for p in getattr(base, name).parameters()):>13,} parameters")
print(f"{'base.empty':12s} {base.empty.numel():>13,} numbers, kept in its place")

# %% [markdown]
# ## 7. Guidance, and what it costs
#
# On its own the UNet follows a prompt only loosely, as seen above. **Classifier-free guidance** (Ho
# and Salimans 2022, https://arxiv.org/abs/2207.12598) makes it listen: guess twice, once with `""`
# and once with the prompt. The difference is *what the prompt changes*. Then go further in that
# direction than the prompt alone would.
#
# ### Exercise 5: guidance
# Scale 0 is the guess with `""`, scale 1 the guess with the prompt, and scale 3 goes three times as
# far.


# %% tags=["exercise"]
def guided(without, with_prompt, scale):
    """Two guesses of the noise (N, 4, h, w), a number or (N, 1, 1, 1) -> the guess to use."""
    return ...  # your code


# %% tags=["solution"]
def guided(without, with_prompt, scale):
    """Two guesses of the noise (N, 4, h, w), a number or (N, 1, 1, 1) -> the guess to use."""
    return without + scale * (with_prompt - without)


# %% tags=["check"]
guided = lesson_02.check("guided", guided)

# %% [markdown]
# <details><summary>Hint 1</summary>Exercise 4 of lesson 01, <code>mix</code>, with a
# <code>t</code> that may be larger than 1.</details>
# <details><summary>Hint 2</summary>Begin at <code>without</code> and add a multiple of the
# difference.</details>
# <details><summary>Hint 3</summary>The difference points from <code>without</code> to
# <code>with_prompt</code>.</details>

# %% [markdown]
# Now guidance is three lines, two of which call the UNet:


# %%
def with_guidance(embedding, scale):
    def guess(noisy, t):
        without = predict(noisy, t)
        with_prompt = predict(noisy, t, embedding)
        return guided(without, with_prompt, scale)

    return guess


prompt = base.embed(prompts[2])
scales = torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0])  # each picture of the batch gets its own
guess = with_guidance(prompt, scales.view(-1, 1, 1, 1))
show.sheet(
    [
        picture
        for x in start[:2]
        for picture in look(sample(x.repeat(len(scales), 1, 1, 1), timesteps, guess)[-1])
    ],
    [f"scale {scale:g}" for scale in scales.tolist()],
    columns=len(scales),
    width=0.9,
    title=prompts[2],
    alt=f"Two rows of pictures, of growing guidance, for the prompt: {prompts[2]}. The prompt is "
    "ignored at scale 0 and takes over as the scale grows.",
)

# %% [markdown]
# At 0 the prompt is not heard; then it takes over: the moon turns clear, the colours grow deep.
# Yet guidance extrapolates: beyond some scale, further than here, the picture is overdone.
#
# **Predict:** and if the prompt is `""`?

# %%
a = predict(start, 500)
b = guided(a, predict(start, 500, base.empty), 7.5)
print(f'largest change by guidance with the prompt "": {(a - b).abs().max():.0e}')

# %% [markdown]
# None: both guesses are the same, so there is no difference to go along. Without a prompt nothing
# is lost by leaving guidance out, and with it the second call of the UNet. What does that save?
# Both guesses can be made one after the other, or as one batch of two.

# %%
short = timesteps[:5]
both = torch.cat([base.empty, prompt.to(base.empty)])


def as_batch(noisy, t):
    without, with_prompt = predict(noisy.repeat(2, 1, 1, 1), t, both).chunk(2)
    return guided(without, with_prompt, 3)


ways = {
    "without guidance": predict,
    "with guidance, two calls": with_guidance(prompt, 3),
    "with guidance, a batch of two": as_batch,
}
seconds = {name: [] for name in ways}
for _ in range(7):  # taken in turns, so that whatever else the machine does is shared fairly
    for name, guess in ways.items():
        began = time.perf_counter()
        sample(one, short, guess)
        seconds[name].append(time.perf_counter() - began)

cost = {name: statistics.median(times) for name, times in seconds.items()}
for name in ways:
    print(f"{name:30s} {cost[name] / cost['without guidance']:.1f}")

# %% [markdown]
# **What it means.** The numbers are the time of a step, with that without guidance as 1. Two calls
# cost nearly twice as much, for little else is done in a step. A batch of two saves something
# where one picture alone does not keep the machine busy, and needs the memory for two. The course
# restyles pictures without guidance, and so at about half the price. Training has no use for
# guidance in any case.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *What is a negative prompt?* A text in the place of `""` in exercise 5. The picture is then
#   pushed away from that text. It needs both calls as well.
# - *Would a caption of the photo help style transfer?* With random noise at high strength it may:
#   at t = 760 a true one takes a third off the error (end of section 5). An inverted start shows
#   the photo anyway. And it has to be a true one, for every photo.
# - *Should zeros not be the neutral input?* Zero is only neutral for a network that was taught so.
#   Some later models do take zeros for "no prompt", because they were trained that way.

# %% [markdown]
# ## 8. Strength: where on the schedule we start
#
# Everything so far began with noise alone, at the top of the schedule. To *redraw* a photo, begin
# further down, with the photo under as much noise as belongs there (Meng et al. 2022,
# https://arxiv.org/abs/2108.01073). **Strength** is how far up: the share of the steps that is run.
#
# ### Exercise 6: where to start
# Lesson 00 counted how many steps are run, to the nearest whole number. At least one always is.
# Give the *index* in the list of timesteps at which to start, so that just so many are left. With
# strength 1 that is 0.


# %% tags=["exercise"]
def start_index(steps, strength):
    """steps: a whole number; strength: above 0, up to 1 -> index of the first timestep to run."""
    return ...  # your code


# %% tags=["solution"]
def start_index(steps, strength):
    """steps: a whole number; strength: above 0, up to 1 -> index of the first timestep to run."""
    return steps - max(1, round(steps * strength))  # at least one step is run


# %% tags=["check"]
start_index = lesson_02.check("start_index", start_index)

# %% [markdown]
# <details><summary>Hint 1</summary>Of 30 steps at strength 0.6, 18 are run. How many are
# skipped?</details>
# <details><summary>Hint 2</summary>If the first n entries of a list are skipped, the next one has
# index n.</details>
# <details><summary>Hint 3</summary>Run are <code>max(1, round(steps * strength))</code>; skipped
# are the others.</details>


# %%
def redraw(latents, strength, seed=0, guess=predict):
    """Latents (N, 4, h, w) -> (noisy latents to start from, redrawn latents)."""
    to_run = timesteps[start_index(len(timesteps), strength) :]
    noise = torch.randn(1, *latents.shape[1:], generator=torch.Generator().manual_seed(seed))
    noisy = add_noise(base.scheduler, latents, noise.expand_as(latents), to_run[0])
    return noisy, sample(noisy, to_run, guess)[-1]


# %% [markdown]
# That is all of image-to-image, and it is what `stylenb.stylize` does between encode and decode
# (for SD v1.5; for the pocket model see section 9):

# %%
from stylenb.inference import denoise

_, mine = redraw(pair, 0.6)
library = denoise(base, pair.to(base.device), 0.6, len(timesteps), seed=0, solver="ddim").cpu()
difference = (mine - library).abs().max()
print(f"largest difference from stylenb.inference.denoise: {difference:.0e}")
if base.dtype == torch.float32:
    assert difference < 1e-4

# %% [markdown]
# **Predict:** at which strength is the scene first lost, and at which the photo? No LoRA is at work
# here: this is what the base does by itself.

# %%
strengths = [0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0]
few = latents[[0, 1, 2, 3, 4, -1]]
noised, redrawn = {}, {}
for strength in strengths:
    noised[strength], redrawn[strength] = redraw(few, strength)

shown = [0.1, 0.3, 0.5, 0.7, 1.0]
show.sheet(
    [
        picture
        for i in (0, -1)
        for stage in (noised, redrawn)
        for strength in shown
        for picture in look(stage[strength][i][None])
    ],
    [f"{strength}" for strength in shown]
    + [""] * len(shown)
    + [f"{strength}" for strength in shown],
    columns=len(shown),
    width=0.75,
    title="Start and result, by strength",
    alt="For the scene and the photo, a row of noisy starts of growing strength and below it the "
    "redrawn pictures. At low strength they are the originals, softened; then things change and "
    "vanish; at 1.0 hardly anything of them is left.",
)

# %% [markdown]
# ### How much is left?
# The latents are a small grid, and each place in it stands for a patch of 8 × 8 pixels. Let us
# measure how far noisy latents still agree with the clean ones: 1 is the same, 0 is unrelated. Once
# for single places, and once after averaging over blocks, which is how large things are seen.

# %%
side = latents.shape[-1]
blocks = {1: "one place", side // 8: "1/8 of the width", side // 4: "1/4 of the width"}


def agreement(a, b, block=1):
    """Correlation of two batches of latents, averaged over blocks of block × block places."""
    a, b = (torch.nn.functional.avg_pool2d(x, block).flatten() for x in (a, b))
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


print(f"a grid of {side} × {side} places;", "agreement with the clean latents over ...")
for strength in (0.3, 0.5, 0.7):
    t = timesteps[start_index(len(timesteps), strength)]
    found = [f"{name} {agreement(noised[strength], few, n):.2f}" for n, name in blocks.items()]
    print(f"strength {strength}, t = {t}, SNR {ratio[t]:5.2f}: " + ",  ".join(found))

# %% [markdown]
# **What it means.** A single place is soon drowned. Averages hold out longer, because noise cancels
# itself in them and the picture does not. So noise does not fade a picture evenly: it wipes it out
# **from fine to coarse**. Texture goes first, then small things, then shapes, and last the colour
# of large areas. That order is what makes style transfer by noise possible at all: the texture of a
# photo, which the style has to replace, goes before the layout, which we want to keep.
#
# It also means that *strength does not carry over between bases*. On a grid of 64 × 64, as in SD
# v1.5, the same cup covers 16 times as many places as on one of 16 × 16, so there is more to
# average, and at the same strength more of the cup is left. Where a tutorial for Stable Diffusion
# uses 0.7, expect to need less on the pocket model, as long as the noise is random (section 9).
#
# That was the start of the run. And the end? The redrawn picture might agree with the original by
# chance, for all skies are above and all ground is below. So we also measure how far two different
# pictures agree.

# %%
chance = statistics.mean(
    agreement(few, few.roll(shift, 0), side // 8) for shift in range(1, len(few))
)
after = [agreement(redrawn[s], few, side // 8) for s in strengths]
before = [agreement(noised[s], few, side // 8) for s in strengths]

figure = show.figure(
    6,
    2.8,
    "What is left of the original, in blocks of 1/8 of the width",
    alt="Agreement with the original over strength. At the start of the run it falls all the way; "
    "after redrawing it holds much longer, then drops too; a dashed line marks what two different "
    f"pictures have in common, {chance:.2f}.",
)
axes = figure.subplots()
axes.plot(strengths, before, "o-", markersize=3, label="noisy start", color="#888888")
axes.plot(strengths, after, "o-", markersize=3, label="redrawn", color="#4f7cac")
axes.axhline(chance, linestyle="--", linewidth=0.8, color="#c0553b", label="another picture")
axes.set_xlabel("strength")
axes.set_ylabel("agreement")
axes.grid(alpha=0.3)
axes.legend(fontsize=8)
figure

# %% [markdown]
# **What it means.** Where the noise is strong, the redrawn picture should agree with the original
# *better* than the noisy start did: what has survived is cleared of noise and made use of. What has
# not survived is made up, and no curve shows that; look at the pictures. Even at strength 1 the
# dashed line need not be reached. The schedule does not end in pure noise (section 1), our steps do
# not even begin at its end, and the little that remains, taken over large areas, may be enough to
# guess the tones from.
#
# No strength is the right one. There is only a range between "the style has no room" and "the photo
# is gone". Lesson 07 measures that trade in full, with styles at work.
#
# Try it, with another seed, too.


# %%
def draw(strength, seed):
    noisy, redrawn = redraw(pair, strength, seed)
    t = timesteps[start_index(len(timesteps), strength)]
    return show.sheet(
        [picture for i in (0, 1) for x in (pair, noisy, redrawn) for picture in look(x[i][None])],
        ["original", "start", "redrawn"] * 2,
        width=0.9,
        title=f"strength {strength:.2f}: start at t = {t}",
        alt=f"The scene and the photo, noised and redrawn at strength {strength:.2f}.",
    )


show.interactive(draw, strength=(0.05, 1.0, 0.05, 0.5), seed=(0, 9, 1, 0))

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Why is even strength 0.1 softer than the photo?* The base draws what it knows. What it does not
#   know, it takes for noise and removes. The autoencoder takes its share as well: the first figure.
# - *Could one start from noise that suits the photo, rather than from random noise?* Yes, section 9
#   does.
# - *Does strength change the time?* Yes, in proportion: it is the share of the steps.

# %% [markdown]
# ## 9. The loop, backwards
#
# Random noise falls on the cup as on the table, and what it covers must be made up. Is
# there a noise that covers *nothing*: one from which the loop draws this very photo?
#
# There is, and the loop itself finds it. No random number is drawn in a DDIM step, so it can be
# taken upwards as well: estimate the picture, put **more** of the same noise back. (**DDIM
# inversion**, Song et al. 2020, section 4.3, https://arxiv.org/abs/2010.02502.) One thing has to
# give: for the step up to *t*, the noise at *t* is needed, before we are there. We ask the UNet
# with the latents that we have, and hope that one step makes little difference.


# %%
def invert(latents, strength):
    """Latents (N, 4, h, w) -> noisy latents, from which the loop draws them again."""
    level = 0
    for t in reversed(timesteps[start_index(len(timesteps), strength) :]):
        noise = predict(latents, t)
        picture = estimate_x0(base.scheduler, latents, noise, level)
        latents, level = add_noise(base.scheduler, picture, noise, t), t
    return latents


from stylenb import inference

library = inference.invert(base, pair.to(base.device), 0.6, len(timesteps)).cpu()
print(f"largest difference from stylenb's: {(invert(pair, 0.6) - library).abs().max():.0e}")

# %% [markdown]
# **Predict:** two starts for the same picture, one with random noise, one inverted. What will the
# loop make of each, without any style?

# %%
strength = base.default_strength
to_run = timesteps[start_index(len(timesteps), strength) :]
found = invert(pair, strength)
thrown, redrawn_once = redraw(pair, strength)
again = sample(found, to_run)[-1]

a = base.scheduler.alphas_cumprod[to_run[0]].sqrt()  # the picture's weight in both starts
b = (1 - a**2).sqrt()  # and that of the noise
noises = {}
for name, begin, end in (("random", thrown, redrawn_once), ("inverted", found, again)):
    noises[name] = (begin - a * pair) / b
    print(
        f"{name:8s} noise with a spread of {noises[name].std():.2f}; "
        f"agreement of the end with the original {agreement(end, pair):.2f}"
    )

show.sheet(
    [look(x[i][None])[0] for i in (0, 1) for x in (pair, thrown, redrawn_once, found, again)],
    ["original", "random start", "its end", "inverted start", "its end"],
    columns=5,
    width=0.9,
    title=f"Random and inverted noise, strength {strength:g}",
    alt="The scene and the photo; under random noise, and what is drawn from it: another picture "
    "in similar colours; under the noise that inversion found, and what is drawn from that: nearly "
    "the originals again.",
)

# %% [markdown]
# That is at a strength of 0.8 on the pocket model, its default: an inverted start bears more than
# a random one. In it you can still make out the picture, and there is less noise in it than in
# the random one (the spread): where the UNet is sure of the picture, it names little noise. (Too
# little noise *everywhere* made a flat picture in section 5; here it is less just where the picture
# is known.) The end is nearly the original. Nearly, because the hope is a little wrong at every
# step.
#
# Drawing a photo that one has already is of little use. But now go up *without* a style and down
# *with* one: a LoRA in the UNet that has learned it (lesson 00; how it got there is lessons 03 and
# 04). Then the path down bends only where the LoRA wants it to.

# %%
from stylenb.lora import remove_lora, set_scale
from stylenb.lora_files import load_lora

ends = {"random": [], "inverted": []}
fitting = ["ink", "stained_glass", "woodcut"] if base.name == "pocket" else []
for style in fitting:
    name = load_lora(base, style)
    set_scale(base, name)
    ends["random"].append(redraw(pair, strength)[1])
    ends["inverted"].append(sample(found, to_run)[-1])
    remove_lora(base, name)
show.sheet(
    [look(x[i][None])[0] for drawn in ends.values() for i in (0, 1) for x in drawn],
    fitting * 2,
    columns=2 * len(fitting),
    width=1.15,
    title=f"Above from random noise, below from the inverted start, at strength {strength:g}",
    alt="The scene and the photo in three styles. From random noise mostly another picture has "
    "come; from the inverted start it is the same cup, and the same scene but for the woodcut, "
    "where the tree is gone and the lighthouse is a smudge.",
) if fitting else print("The styles that come with the course fit the pocket base only.")

# %% [markdown]
# **What it means.** The inverted start keeps the layout even at a strength at which random noise
# leaves little of it. Small things may go all the same: look for the tree in the scene's woodcut.
# The price: the way up costs as many calls of the UNet as the way down, there
# is no seed to try another of, and whatever the LoRA does not push away from the photo stays as it
# was, so that a style may come out paler.
#
# On the pocket model, whose coarse grid bears little random noise, `stylize` works like this
# (`solver="inversion"`); on SD v1.5, with random noise (`solver="ddim"`), as is customary there.
# Both take either.

# %% [markdown]
# ## Recap
#
# - The schedule says how much picture and how much noise belong to a timestep; one formula adds the
#   noise in one go.
# - The UNet names the noise. With it, the same formula gives an estimate of the picture: sharp low
#   in the schedule, an averaged haze high up.
# - A DDIM step is: estimate the picture, put less of the same noise back. A loop of these draws.
# - Wrong latents, a wrong timestep, a wrong condition: none raises an error, each looks its own
#   way.
# - `""` stands for "any picture" because the base was trained so. With it there is no guidance, and
#   no second call of the UNet.
# - Strength is where we start. Noise wipes out from fine to coarse, and a coarse grid is wiped out
#   sooner.
# - Taken upwards, DDIM finds the noise from which it would draw this photo. From there a LoRA
#   changes the style, and the layout stays.
#
# ## If you want more
# - In section 9, start from a mixture of the two noises: `a * pair + b * (m * noises["inverted"] +
#   (1 - m**2) ** 0.5 * noises["random"])`. From which m downwards is the layout lost?
# - Put the *latents of the photo* where `start` was, without noise, and run all the steps. What
#   does the model take them for?
# - In `redraw`, hand in `prompted(...)` with a prompt that contradicts the photo: night for day.
#   From which strength on does it win?
# - Invert with 10 steps, with 30 and with 100 (`timesteps` holds 30). How near to the photo do you
#   come out?
