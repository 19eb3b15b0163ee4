# ---
# jupyter:
#   stylenb:
#     title: Using it
#     about: >-
#       A trained style at work: the four steps of inference by hand, every knob of `stylize` and
#       what it costs, several styles at once, a whole folder of photos, and the file in diffusers,
#       ComfyUI and A1111.
#     read: 30
#     do: 60
#     needs: lessons 02 and 03, and 04 for where a style comes from; no GPU
# ---

# %% [markdown]
# **After this lesson you can**
#
# - take a photo through encode, load the style's LoRA, denoise and decode by hand, and get the
#   picture that `stylize` gives,
# - say where the noise comes from, and why one strength does not mean the same with every solver,
# - choose strength, scale and steps by looking, and count what a picture costs before you pay,
# - turn parts of a style up and down, and mix styles so that none drowns the other,
# - redraw a folder of photos, good files and bad, and resume where it was cut,
# - take a style home as a file that other programs read, and prove that they draw the same.
#
# There are six exercises, with checks as before. Nothing is trained here, so every cell is done in
# seconds.

# %% [markdown] tags=["instructor"]
# **Plan for 90 minutes.** The four steps: 12. Where the noise comes from: 10. Strength and scale:
# 8. What a picture costs: 10. Steps, quality, time: 8. Groups of layers: 8. Mixing: 10. A folder:
# 10. Colours: 5. Taking the file home: 14. When it does not fit, and the command line: 5.
#
# Short of time? Sections 1, 2, 3 and 10 are the core. Section 8 is what people need at work.
#
# Ask everybody to bring three photos on a stick or a phone. Section 8 takes a folder of theirs as
# well as ours.

# %%
import stylenb

base = stylenb.load("pocket")  # or "sd15"
base

# %%
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stylenb import StylenbError, sample_photo, scores, to_pictures, to_tensor
from stylenb.base import SOLVER_STEPS
from stylenb.course import lesson_06, show
from stylenb.lora import GROUPS, remove_lora, set_alpha, set_scale, switched
from stylenb.lora_files import find_lora, load_lora
from stylenb.losses import estimate_x0
from stylenb.pocket.scenes import draw_scene

torch.set_grad_enabled(False)  # nothing is trained here
style, other = "ink", "neon"  # on "sd15": paths of two LoRA files for it
work = Path(tempfile.mkdtemp())  # for all files of this lesson

size = base.image_size
photos = [sample_photo("coffee", size), draw_scene(7, size).picture]
photos += [sample_photo("rocket", size), draw_scene(20, size).picture]
photo, scene = photos[:2]


def redraw(pictures, look=style, **how):
    """stylenb.stylize with our style and our base."""
    return stylenb.stylize(pictures, look, base=base, **{"size": size, "fit": "crop", **how})


def levels(one, two):
    """The largest difference of two pictures, in the 255 levels of a screen."""
    return round(float((to_tensor(one) - to_tensor(two)).abs().max()) * 127.5)


show.sheet(
    [*photos, *redraw(photos)],
    ["photo"] * len(photos) + [find_lora(style).stem] * len(photos),
    columns=len(photos),
    width=1.1,
    title="Where this lesson ends up, in one line of code",
    alt="Above, two photographs and two drawn landscapes; below, the same in the style.",
)

# %% [markdown]
# ## 1. Four steps, one at a time
#
# That was `stylize`, which lesson 00 used as well. Now by hand.
#
# ### Step 1: encode

# %%
images = to_tensor(photo)
latents = base.encode(images).float()
print("photo  ", photo.size)
print("images ", tuple(images.shape))
print("latents", tuple(latents.shape))

# %% [markdown]
# ### Step 2: load the style's LoRA
# The file holds an A and a B for each layer that it changes (lesson 03). Loading puts them
# beside the weights, switched off; `set_scale` switches them on.

# %%
name = load_lora(base, style)


def lora_layers(name):
    """The layers of the UNet that carry the LoRA `name`: where -> layer."""
    modules = base.unet.named_modules()
    return {key: layer for key, layer in modules if name in getattr(layer, "lora_A", {})}


layers = lora_layers(name)
where, layer = next(iter(layers.items()))
print(f"{name}: {find_lora(style).stat().st_size / 1000:.0f} kB for {len(layers)} layers, such as")
print(where)
print("W", tuple(layer.get_base_layer().weight.shape), end="   ")
print("A", tuple(layer.lora_A[name].weight.shape), end="   ")
print("B", tuple(layer.lora_B[name].weight.shape), end="   ")
print("(out, in), as torch stores them; 1, 1 is a convolution of 1 × 1")

test = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(base.device)
set_scale(base, None)
off = base.predict_noise(test, 500)
set_scale(base, name)
on = base.predict_noise(test, 500)
set_scale(base, None)
print("\nprediction", tuple(on.shape), f"moved by the LoRA by {(on - off).norm() / off.norm():.0%}")

# %% [markdown]
# Always look at that last number, whatever program you load a LoRA into. A file whose names match
# nothing is loaded by some of them without a word, and moves nothing.
#
# ### Step 3: denoise
# First, which timesteps? The base has a usual number of steps for the whole schedule. The
# **strength** says how far up we go; the steps below that are the ones that are run.

# %%
steps, strength = base.default_num_inference_steps, base.default_strength
count = max(1, round(steps * strength))
schedule = DDIMScheduler.from_config(base.scheduler.config)
schedule.set_timesteps(steps)
timesteps = schedule.timesteps[-count:].tolist()
print(f"strength {strength}: {count} of {steps} steps, from t = {timesteps[0]} to {timesteps[-1]}")

# %% [markdown]
# Then we need noisy latents at the first of them. There are two ways to get them (lesson 02), and
# both fit on a few lines. `move` is lesson 02's DDIM step, written so that it goes both ways:
# estimate the picture at one timestep, then put the same noise back as strongly as belongs to
# another.


# %%
def at(t):
    return torch.tensor([t], device=base.device)


def move(latents, noise, level, target):
    """Latents at timestep `level`, brought to `target` along this noise; same shape."""
    picture = estimate_x0(base.scheduler, latents, noise, at(level))
    return base.scheduler.add_noise(picture, noise, at(target))


def fresh_noise(latents, timesteps, seed=0):
    """Latents under noise drawn at random, as strong as belongs to the first timestep."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    return base.scheduler.add_noise(latents, noise.to(latents), at(timesteps[0]))


def inverted_noise(latents, timesteps):
    """Latents under the noise from which the base, without a LoRA, would draw them again."""
    set_scale(base, None)
    level = 0
    for t in reversed(timesteps):
        latents, level = move(latents, base.predict_noise(latents, t), level, t), t
    return latents


start = fresh_noise if base.default_solver == "ddim" else inverted_noise
noisy = start(latents, timesteps)
print(f"{base.name} starts from {start.__name__}: {tuple(noisy.shape)} at t = {timesteps[0]}")

# %% [markdown]
# And down again, now with the LoRA switched on. One call of the UNet for each step.

# %%
stages = [noisy]
set_scale(base, name)
for t, target in zip(timesteps, [*timesteps[1:], 0]):
    noise = base.predict_noise(stages[-1], t)  # no prompt: ""
    stages.append(move(stages[-1], noise, t, target))
set_scale(base, None)
print(f"{len(stages) - 1} calls of the UNet; latents", tuple(stages[-1].shape))

# %% [markdown]
# ### Step 4: decode

# %%
decoded = base.decode(stages[-1])
by_hand = to_pictures(decoded)[0]
print("latents", tuple(stages[-1].shape), "-> images", tuple(decoded.shape), "->", by_hand.size)

shown = [0, *(round(len(timesteps) * part) for part in (0.4, 0.7, 0.9)), len(timesteps)]
show.sheet(
    [photo, *(base.decode(stages[i])[0].float().cpu() for i in shown)],
    ["photo", *(f"after {i} steps" for i in shown)],
    width=1.1,
    title="From the photo to the noise and down to the picture",
    alt="The photo; then, decoded, the noisy start, in which the cup is still seen in false "
    "colours; three stages on the way down, which turn into the style; and the picture in it.",
)

# %% [markdown]
# And is it what `stylize` gives? It is, if `stylize` is told to leave out one thing:

# %%
difference = levels(by_hand, redraw(photo, injection=0))
print(f"largest difference from stylize(injection=0): {difference} of 255 levels")
print("the same but for rounding:", difference <= 2)

# %% [markdown]
# ### Hold the photo by its own attention
# In **self-attention** every place of the picture asks (by its *query*) all others (by their
# *keys*) how much they have to do with it, and collects from those that have. So queries and
# keys say what belongs together: this eye, that rim of the cup. On the way up, the base has asked
# all that of the photo itself. `injection` is the share of the steps on the way down in which these
# queries and keys are used again, in place of those of the picture that is being drawn. What is
# collected, the values, still comes through the LoRA.
#
# **Predict:** what will be kept better with injection, the colours or the outlines?

# %%
shares = [0.0, 0.5, 1.0]
held = [redraw(photo, injection=share) for share in shares]
agreement = [float(scores.edge_agreement(one, photo)) for one in held]
print("outlines kept:", *(f"{share:g}: {a:.2f}" for share, a in zip(shares, agreement)), sep="  ")
show.sheet(
    [photo, *held],
    ["photo", *(f"injection {share:g}" for share in shares)],
    width=1.3,
    title="The same noise, the same LoRA, held more and more",
    alt="The photo, and the same in the style with no, half and full injection of its attention.",
)

# %% [markdown]
# Queries and keys carry no colour. It costs no call of the UNet, as the way up was gone anyway, and
# `stylize` does it in all steps unless told otherwise. Other solvers have no way up, and so nothing
# to inject. (The idea is in https://arxiv.org/abs/2211.12572 and https://arxiv.org/abs/2312.09008.)
#
# ### Go beyond the LoRA
# Lesson 02 made a prompt count for more by **guidance**: predict the noise without it and with it,
# and go on in that direction. The same works with a LoRA in the place of the prompt: predict with
# the base alone and with the LoRA, and go on from the one beyond the other. (Guiding a model by a
# weaker one is from https://arxiv.org/abs/2406.02507.) For one step:

# %%
t = timesteps[0]
alone = base.predict_noise(noisy, t)
set_scale(base, name)
with_lora = base.predict_noise(noisy, t)
set_scale(base, None)
learned = with_lora - alone
for guidance_scale in (0, 1, 2):
    beyond = alone + guidance_scale * learned
    moved = (beyond - alone).norm() / alone.norm()
    print(f"guidance_scale {guidance_scale}: {tuple(beyond.shape)}, moved by {moved:.0%}")

# %% [markdown]
# 0 is the base, 1 the LoRA as it is, and 2 takes twice what it has learned. (`stylize` takes 1 or
# more.) Above 1 each step down is two calls of the UNet.
#
# **Predict:** another style, stained glass, at the base's default size, with more and more
# guidance. What comes, and what goes?

# %%
large = [sample_photo("coffee", base.default_size), draw_scene(7, base.default_size).picture]
leaded = "stained_glass" if base.name == "pocket" else style
guidance_scales = [1.0, 1.6, 2.3, 3.5]
drawn = [redraw(large, leaded, guidance_scale=g, size=base.default_size) for g in guidance_scales]
agreement = [float(scores.edge_agreement(both, large).mean()) for both in drawn]
print("outlines kept:", *(f"{g}: {a:.2f}" for g, a in zip(guidance_scales, agreement)), sep="  ")
show.sheet(
    [one for pictures in zip(*drawn) for one in pictures],
    [f"guidance_scale {g}" for g in guidance_scales],
    columns=len(guidance_scales),
    width=1.7,
    title="Stained glass with more and more guidance",
    alt="A cup and a landscape in stained glass with four values of guidance_scale, from soft "
    "colours with hardly a seam to black leads around panes of strong colour.",
)

# %% [markdown]
# Dark leads come, the colours get strong, and the outlines of the photo go. Why not turn the LoRA's
# `scale` up (section 3)? That multiplies inside each layer, and the layers after it have to cope
# with inputs that they have never met; guidance leaves the UNet as it was trained and multiplies
# what comes out. So a LoRA brings a `guidance_scale` of its own, from its training's settings: 2.3
# for stained glass, 1 for the others. By inversion, `stylize` takes that unless told another; with
# another solver it takes 1.

# %% [markdown]
# **What it means.** There is nothing else in it. Encode once, decode once; in between, one call of
# the UNet for each step on the way up (if the noise is found by inversion), and one for each step
# on the way down, or two with guidance. All knobs of the following sections turn something in these
# four steps.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Why up without the LoRA and down with it?* Up finds what the base takes the photo for. Had the
#   LoRA been on, the way down would undo the way up, and the photo would come out again.
# - *Why is it not equal to the last bit?* `stylize` may add A B into W before it starts, or run
#   several pictures at once; both round in another order.
# - *Where is the prompt?* Nowhere. `predict_noise` takes the embedding of "" that was computed
#   once, when the base was first asked.

# %% [markdown]
# ## 2. Where the noise comes from
#
# A **solver** is a way to take those steps. `stylize` has three:
#
# | solver | starts from | goes down by |
# | --- | --- | --- |
# | `"ddim"` | noise drawn at random, by the seed | DDIM steps |
# | `"dpm"` | the same | DPM-Solver++ steps, which look back one step, so that fewer will do |
# | `"inversion"` | the noise that DDIM finds upwards | DDIM steps |
#
# Without a word about it, `stylize` takes the one that suits the base:

# %%
print(f"{base.name}: solver {base.default_solver!r}, strength {base.default_strength}")
print("usual steps:", ", ".join(f"{one} {n}" for one, n in SOLVER_STEPS.items()))

# %% [markdown]
# **Predict:** the same strength with all three. Which keeps the photo best?

# %%
strengths = [0.2, 0.4, 0.6, 0.8]
solvers = list(SOLVER_STEPS)
by_solver = {
    (solver, s): redraw(photos, solver=solver, strength=s, seed=range(len(photos)))
    for solver in solvers
    for s in strengths
}
show.sheet(
    [by_solver[solver, s][i] for solver in solvers for i in (0, 1) for s in strengths],
    [f"{solver} {s}" for solver in solvers for i in (0, 1) for s in strengths],
    columns=2 * len(strengths),
    width=0.85,
    title="Solver and strength",
    alt=f"A photograph and a landscape at four strengths, a row for each of {', '.join(solvers)}. "
    "With random noise another picture takes over as the strength grows.",
)

# %% [markdown]
# How much of the photo is left can be measured: `edge_agreement` asks whether outlines lie in the
# same places, whatever the style (lesson 07 looks hard at it). 1 is all of them, 0 none.

# %%
kept = {key: scores.edge_agreement(drawn, photos) for key, drawn in by_solver.items()}
print(f"{'outlines kept':14s}" + "".join(f"{f'strength {s}':>16s}" for s in strengths))
for solver in solvers:
    print(
        f"{solver:14s}" + "".join(f"{scores.with_error(kept[solver, s]):>16s}" for s in strengths)
    )

usual = min(strengths, key=lambda s: abs(s - base.default_strength))
goal = float(kept[base.default_solver, usual].mean())
like = {
    solver: min(strengths, key=lambda s: abs(float(kept[solver, s].mean()) - goal))
    for solver in solvers
}
print(f"\nas much as {base.default_solver!r} at {usual} is kept by:")
for solver, s in like.items():
    print(f"   {solver:10s} at about {s}")

# %% [markdown]
# **What it means.** Strength is where on the schedule you start, and that is all it is. With random
# noise, whatever the noise covers is gone, so a high strength keeps little. With inverted noise the
# layout is in the noise itself, so a high strength still keeps it. **A strength means nothing
# without its solver**, and, as lesson 02 showed, without its base: on the large grid of SD v1.5,
# random noise leaves more standing at the same strength. When somebody tells you "use 0.6", ask for
# both.
#
# What a tie in this table does not say: which of them is more in the style at equal content. Look
# at the sheet again with that question.
#
# One more difference. Random noise has a seed, so you can draw again until you like it.
#
# **Predict:** and with inversion?

# %%
seeds = [0, 1, 2, 3]
drawn = {
    s: redraw([photo] * 4, solver=s, strength=like[s], seed=seeds) for s in ("ddim", "inversion")
}
show.sheet(
    [picture for pictures in drawn.values() for picture in pictures],
    [f"{solver}, {seed}" for solver in drawn for seed in seeds],
    columns=4,
    width=1.1,
    title="Four seeds, two solvers",
    alt="Above, four pictures from random noise, each a little different; below, four from "
    "inverted noise, which are all the same.",
)

# %%
for solver, pictures in drawn.items():
    most = max(levels(pictures[0], one) for one in pictures[1:])
    print(f"{solver:10s} seeds differ by up to {most} of 255 levels")

# %% [markdown]
# ## 3. Strength and scale
#
# The **scale** is the LoRA's volume: $W' = W + \text{scale} \cdot \alpha A B$. Strength says how
# much of the photo may be redrawn, scale in how loud a manner. They are not the same knob.
#
# **Predict:** along which of the two will the outlines go first, and along which the style come?

# %%
grid_strengths, grid_scales = [0.4, 0.6, 0.8, 1.0], [0.5, 1.0, 1.5, 2.0]
grid = scores.sweep(base, [photo, scene], name, grid_strengths, grid_scales)
show.sheet(
    [
        row["pictures"][i]
        for scale in grid_scales
        for i in (0, 1)
        for row in grid
        if row["scale"] == scale
    ],
    [f"{s} × {scale}" for scale in grid_scales for i in (0, 1) for s in grid_strengths],
    columns=2 * len(grid_strengths),
    width=0.8,
    title=f"{name}: strength × scale",
    alt="A photograph and a landscape in a grid: strength grows to the right, scale downwards. At "
    "the top left they are nearly as they were, at the bottom right in glaring false colours.",
)

# %%
for score, label in (("edges", "outlines kept"), ("judge", "in the style, says the judge")):
    if score not in grid[0]:
        continue  # the judge knows the shipped styles only
    print(f"{label:28s}" + "".join(f"{s:>8}" for s in grid_strengths) + "  strength")
    for scale in grid_scales:
        row = [float(r[score].mean()) for r in grid if r["scale"] == scale]
        print(f"{'':16s}scale {scale:<6}" + "".join(f"{value:8.2f}" for value in row))

# %% [markdown]
# **What it means.** Go along the rows, then along the columns, of the pictures as well as of the
# numbers (which come from two pictures, so trust only large differences). Strength brings the style
# and pays with outlines. Scale costs hardly any outlines here, and more of it is not more style:
# far above 1 the UNet draws as nobody trained it to, colours of the photo come back, and at the
# bottom right there are some that neither the photo nor the style has. A usual way to find a
# setting: leave scale at 1, raise the strength until the style is there or the layout breaks, then
# try scales a little below and above 1.
#
# Lesson 07 asks which of these cells are worth having at all. Here are the sliders. (On a page that
# only shows the notebook, you see the picture but no sliders.)


# %%
def draw(strength, scale, look):
    pictures = redraw([photo, scene], look, strength=strength, scale=scale)
    return show.sheet(
        [photo, pictures[0], scene, pictures[1]],
        ["", Path(look).stem] * 2,
        columns=4,
        width=1.3,
        title=f"strength {strength:.2f}, scale {scale:.2f}",
        alt=f"A photograph and a landscape, before and after, at strength {strength:.2f} and scale "
        f"{scale:.2f}.",
    )


show.interactive(
    draw,
    strength=(0.1, 1.0, 0.05, base.default_strength),
    scale=(0.0, 2.0, 0.1, 1.0),
    look=[style, other],
)

# %% [markdown]
# ## 4. What a picture costs
#
# Nearly all of the work is in the UNet, so its predictions are the currency. `counting` writes down
# how many latents the UNet is given at each call.


# %%
@contextmanager
def counting(unet):
    """Inside, a list grows: for each call of the UNet, for how many latents it predicts noise."""
    sizes = []
    hook = unet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    try:
        yield sizes
    finally:
        hook.remove()


for solver in solvers:
    with counting(base.unet) as sizes:
        redraw(photo, solver=solver, strength=like[solver])
    n = SOLVER_STEPS[solver]
    print(f"{solver:10s} {n} steps, strength {like[solver]}: {sum(sizes)} predictions")

# %% [markdown]
# ### Exercise 1: count before you pay
# How many predictions does one picture cost?
#
# - As many steps are run as lesson 00 said: the nearest whole number to steps × strength, one at
#   least.
# - On the way down, each step takes one prediction, and with **guidance** two: by a prompt, one for
#   the prompt and one for `""` (lesson 02); by a LoRA, one with it and one without (section 1).
# - By inversion, there is a way up as well, of as many steps, and never guided.


# %% tags=["exercise"]
def unet_predictions(steps, strength, inverted, guided):
    """A whole number, a number above 0 and up to 1, two truth values -> how many predictions."""
    return ...  # your code


# %% tags=["solution"]
def unet_predictions(steps, strength, inverted, guided):
    """A whole number, a number above 0 and up to 1, two truth values -> how many predictions."""
    run = max(1, round(steps * strength))
    return run * (2 if guided else 1) + (run if inverted else 0)


# %% tags=["check"]
unet_predictions = lesson_06.check("unet_predictions", unet_predictions)

# %% [markdown]
# <details><summary>Hint 1</summary>First the number of steps that are run, as in lesson
# 00.</details>
# <details><summary>Hint 2</summary>Then the way down and the way up, each by itself; add
# them.</details>
# <details><summary>Hint 3</summary><code>run * (2 if guided else 1) + (run if inverted else
# 0)</code></details>

# %% [markdown]
# Does it agree with the hook? And with a pipeline that is not ours? The folder of the base is in
# the layout of diffusers, so plain diffusers opens it. We give it the same latents, once at
# guidance scale 1, which is no guidance, and once at the scale that suits the base.

# %%
from diffusers import StableDiffusionImg2ImgPipeline

half = list(base.folder.glob("unet/*.fp16.safetensors"))
pipe = StableDiffusionImg2ImgPipeline.from_pretrained(
    base.folder,
    scheduler=base.scheduler,
    torch_dtype=base.dtype,
    variant="fp16" if half else None,
    safety_checker=None,
    requires_safety_checker=False,
).to(base.device)
pipe.set_progress_bar_config(disable=True)


def by_pipe(guidance_scale=1.0, strength=1.0, num_inference_steps=10, **how):
    """diffusers' own img2img of our latents, for "" and from the noise of seed 0."""
    return pipe(
        "",
        image=latents,
        strength=strength,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(0),
        **how,
    ).images


for solver in solvers:
    n, inverted = SOLVER_STEPS[solver], solver == "inversion"
    with counting(base.unet) as sizes:
        redraw(photo, solver=solver, strength=like[solver])
    counted = unet_predictions(n, like[solver], inverted, False)
    print(f"stylize, {solver:10s} {sum(sizes):3d} predictions, exercise 1 says {counted}")
for scale in (1.0, base.default_guidance_scale):
    with counting(pipe.unet) as sizes:
        by_pipe(scale)
    counted = unet_predictions(10, 1.0, False, scale > 1)
    print(f"diffusers, guidance scale {scale:<3g} {sum(sizes):2d} predictions, ", end="")
    print(f"exercise 1 says {counted}")

# %% tags=["parameters"]
num_inference_steps = 8
seconds = {1.0: [], base.default_guidance_scale: []}
for _ in range(5):  # taken in turns, so that whatever else the machine does is shared fairly
    for scale, times in seconds.items():
        began = time.perf_counter()
        by_pipe(scale, num_inference_steps=num_inference_steps, output_type="latent")
        times.append(time.perf_counter() - began)
without, guided = (statistics.median(times) for times in seconds.values())
print(f"with guidance, a picture takes {guided / without:.1f} times as long as without")

a, b = (by_pipe(scale, output_type="pt") for scale in seconds)
print(f'and with "" as the prompt, it changes the picture by up to {(a - b).abs().max() / 2:.0e}')

# %% [markdown]
# **What it means.** Guidance by a prompt asks the UNet twice and goes on beyond the difference of
# the answers. Without a prompt both questions are the same question, so the second answer is paid
# for and thrown away. Programs leave guidance on by default. If you use a LoRA of this course
# elsewhere, without a prompt, set the guidance scale (often called *CFG*) to 1: the picture is the
# same for half the predictions. (The time saved is less than half, as a batch of two may keep a
# machine busier than two batches of one.)
#
# Inversion doubles the cost again, in another place, and for something: the layout.

# %% [markdown]
# ## 5. Steps against quality against time
#
# More steps follow the same path in smaller strides, so the picture settles on something. How many
# strides does it take? We compare each picture with the one after many steps of the same solver, in
# decibels (lesson 01; 30 dB is hard to tell apart), and take the time as a share of that at the
# base's usual setting.
#
# **Predict:** do twice the steps take twice the time?

# %% tags=["parameters"]
tried = {"ddim": [10, 20, 30, 60], "inversion": [5, 11, 20, 40], "dpm": [5, 10, 20, 40]}
many = 120  # steps of the pictures that the others are compared with
pair = [photo, scene]
rows = []
for solver in solvers:
    how = {"solver": solver, "strength": like[solver]}
    best = redraw(pair, num_inference_steps=many, **how)
    for n in tried[solver]:
        with counting(base.unet) as sizes:
            began = time.perf_counter()
            pictures = redraw(pair, num_inference_steps=n, **how)
            took = time.perf_counter() - began
        distance = float(scores.lpips_distance(pictures, best).mean())
        rows.append((solver, n, sum(sizes) // 2, took, scores.psnr(pictures, best), distance))

began = time.perf_counter()
base.decode(base.encode(to_tensor(pair)))
around = time.perf_counter() - began
default = next(r[3] for r in rows if r[0] == base.default_solver and r[1] >= steps)
print("solver      steps  predictions   time  to many steps   LPIPS")
for solver, n, calls, took, near, distance in rows:
    print(f"{solver:10s} {n:6d} {calls:12d} {took / default:6.2f} {near:11.1f} dB {distance:7.3f}")
print(f"\nencode and decode alone: {around / default:.2f}")

# %%
figure = show.figure(
    6,
    2.8,
    "How near to the picture of many steps",
    alt="Decibels against predictions of the UNet, a rising curve for each solver.",
)
axes = figure.subplots()
for solver, colour in zip(solvers, ("#4f7cac", "#c0553b", "#6a994e")):
    points = [(r[2], min(r[4], 60)) for r in rows if r[0] == solver]
    axes.plot(*zip(*points), "o-", markersize=3, color=colour, label=f"{solver} at {like[solver]}")
axes.axhline(30, color="black", linestyle="--", linewidth=0.8)
axes.set_xscale("log")
axes.set_xlabel("predictions of the UNet")
axes.set_ylabel("dB")
axes.grid(alpha=0.3)
axes.legend(fontsize=8)
figure

# %%
for solver in solvers:
    mine = [row for row in rows if row[0] == solver]
    _, n, calls, _, near, _ = next((r for r in mine if r[4] >= 30), mine[-1])
    reached = "is reached" if near >= 30 else "is not reached"
    print(f"{solver:10s} 30 dB {reached} with {n} steps, {calls} predictions: {near:.1f} dB")

# %% [markdown]
# **What it means.** Time goes with the predictions, on top of a part that is always there: encode,
# decode, load. More steps keep bringing the picture nearer, at no fixed rate. Where does the
# course's own default stand (`base.default_num_inference_steps` of `base.default_solver`)? Below
# the dashed line it is a compromise with time. And look at what the numbers cannot say, which is
# whether the picture of many steps is *better*, or only another one. With `"dpm"`, few steps give
# the same rough layout, but the hatching of few steps goes, and colours of the photo come, when
# there are more. With `"inversion"`, another number of steps finds another noise on the way up, and
# so the marks change, though the manner stays.

# %%
show.sheet(
    [
        one
        for solver in ("inversion", "dpm")
        for n in tried[solver]
        for one in redraw([scene], solver=solver, strength=like[solver], num_inference_steps=n)
    ],
    [f"{solver}, {n}" for solver in ("inversion", "dpm") for n in tried[solver]],
    columns=4,
    width=1.1,
    title="Few steps and many: the solver and its steps",
    alt="A landscape in the style after few steps and after more, above by inversion, below by "
    "dpm.",
)

# %% [markdown]
# ## 6. Louder here, softer there
#
# One scale for all layers is a coarse knob. The layers of the UNet do different things: **self**-
# attention looks from place to place in the picture, **cross**-attention to the prompt (here always
# `""`). **Down** blocks take the picture in, the **mid** block sees it smallest, **up** blocks draw
# it. `scale` may be a number for each of these groups; a layer that is in two of them is multiplied
# by both, and what is not named keeps 1. (So do, unless their block is named, the layers of a
# transformer block that belong to no attention: feed-forward, the way in and the way out.)
#
# How much of the update lies where?

# %%
sizes = {}
for key, layer in layers.items():
    update = layer.get_delta_weight(name).float()
    sizes[key] = float(update.pow(2).sum())
for group, part in GROUPS.items():
    inside = [key for key in layers if part in key.split(".")]
    share = sum(sizes[key] for key in inside) / sum(sizes.values())
    print(f"{group:6s} {len(inside):3d} layers, {share:6.1%} of all that the LoRA changes")

# %% [markdown]
# **Predict:** which kind of attention could be switched off and leave the style what it is? And
# with the LoRA in the down, mid or up blocks only, which of them still gives the style?

# %%
both, blocks = ("self", "cross"), ("down", "mid", "up")
choices = {"all": 1.0}
choices |= {f"no {g}": {g: 0.0} for g in both}
choices |= {f"only {g}": {one: float(one == g) for one in blocks} for g in blocks}
choices["no LoRA"] = 0.0
drawn = {label: redraw(pair, scale=scale) for label, scale in choices.items()}
show.sheet(
    [pictures[i] for i in (0, 1) for pictures in drawn.values()],
    list(choices) * 2,
    columns=len(choices),
    width=0.9,
    title=f"{name}, in some of its layers only",
    alt="A photograph and a landscape in the style; then without the LoRA in one kind of "
    "attention, with the LoRA in the down, mid or up blocks only, and without the LoRA.",
)

# %%
for label, pictures in drawn.items():
    print(f"{label:11s} {scores.psnr(pictures, drawn['all']):5.1f} dB from the picture with all")

# %% [markdown]
# **What it means.** The nearer to the picture with all, the less is missed; the last line, without
# the LoRA, is what missing everything comes to. Compare with the shares above: a share of the
# *weights* is not a share of the *effect*. What it is good for: where a style breaks the layout, or
# its marks are too loud, see whether one of the groups does it, and turn that one down. Which one
# is found by trying.
#
# ### Exercise 2: the scale of a layer
# `groups` says which part of a layer's name stands for a group, such as `"up"`: `"up_blocks"`.
# `scales` holds the scales that were given. Multiply those of all groups that this layer is in.


# %% tags=["exercise"]
def layer_scale(layer, groups, scales):
    """A name such as "up_blocks.1.attn1.to_q", two dicts -> the factor of this layer's LoRA."""
    return ...  # your code


# %% tags=["solution"]
def layer_scale(layer, groups, scales):
    """A name such as "up_blocks.1.attn1.to_q", two dicts -> the factor of this layer's LoRA."""
    factor = 1.0
    for group, scale in scales.items():
        if groups[group] in layer.split("."):
            factor = factor * scale
    return factor


# %% tags=["check"]
layer_scale = lesson_06.check("layer_scale", layer_scale)

# %% [markdown]
# <details><summary>Hint 1</summary>Begin with 1 and multiply by each scale that applies.</details>
# <details><summary>Hint 2</summary><code>layer.split(".")</code> gives the parts of the name;
# compare whole parts.</details>
# <details><summary>Hint 3</summary><code>if groups[group] in layer.split("."): factor *=
# scale</code></details>

# %%
some = {"self": 0.5, "up": 2.0, "down": 0.0}
alpha = {key: layer.lora_alpha[name] / layer.r[name] for key, layer in layers.items()}
set_scale(base, name, some)
off_by = [
    abs(m.scaling[name] - alpha[key] * layer_scale(key, GROUPS, some)) for key, m in layers.items()
]
set_scale(base, None)
print(f"{some}: over {len(off_by)} layers, off from the library by up to {max(off_by):.0e}")

# %% [markdown]
# ## 7. Two styles at once
#
# Updates add (lesson 03), so a style may be a dict of several, each with a weight: `stylize(photo,
# {"one": 0.6, "two": 0.5})`. Is the sum exact? By hand, for every layer:

# %%
second = load_lora(base, other)
weights = {name: 0.7, second: 0.4}

expected = {}
for key, layer in layers.items():
    expected[key] = layer.get_base_layer().weight.float().flatten(1)  # a 1 × 1 convolution's, too
    for one, weight in weights.items():
        A, B = (half[one].weight.float().flatten(1) for half in (layer.lora_A, layer.lora_B))
        expected[key] = expected[key] + weight * layer.lora_alpha[one] / layer.r[one] * (B @ A)

with switched(base, weights, merge=True):  # inside, W is W'
    differences = [
        float((layer.get_base_layer().weight.float().flatten(1) - expected[key]).abs().max())
        for key, layer in layers.items()
    ]
largest = max(float(w.abs().max()) for w in expected.values())
print(f"W + {' + '.join(f'{w} × {one}' for one, w in weights.items())}, in {len(layers)} layers:")
print(f"off by up to {max(differences):.0e}, with weights of up to {largest:.1f}")

# %% [markdown]
# Exact but for rounding. That is about the weights. What is *seen* depends on how loud each style
# is: of two at the same weight, the louder one wins. Loudness can be measured. How far does each
# style, alone at weight 1, move the predicted noise?

# %%
few = base.encode(to_tensor(pair)).float()


def moved(weights):
    """How far these styles move the predicted noise, as a share of its size, over the schedule."""
    found = []
    for t in (200, 400, 600):
        x = fresh_noise(few, [t])
        set_scale(base, None)
        plain = base.predict_noise(x, t)
        set_scale(base, weights)
        found.append(float((base.predict_noise(x, t) - plain).norm() / plain.norm()))
    set_scale(base, None)
    return sum(found) / len(found)


loudness = torch.tensor([moved({one: 1.0}) for one in (name, second)])
for one, value in zip((name, second), loudness):
    print(f"{one:12s} moves the prediction by {float(value):.1%}")
loud, soft = (name, second) if loudness[0] > loudness[1] else (second, name)
print(f"{loud} is {float(loudness.max() / loudness.min()):.2f} times as loud as {soft}")

# %% [markdown]
# ### Exercise 3: fair weights
# Given are the loudness of each style and the share that each is to have; the shares add up to 1.
# At weight *w*, a style of loudness *l* is, as a first guess, *w × l* loud. Find the weights at
# which, by this guess, each style is as loud as its share of the **mean loudness**. Then the
# guessed loudnesses add up to that of one style, and with equally loud styles the weights are the
# shares.


# %% tags=["exercise"]
def mix_weights(loudness, shares):
    """Loudness (N,) and shares (N,) of N styles -> weights (N,)."""
    return ...  # your code


# %% tags=["solution"]
def mix_weights(loudness, shares):
    """Loudness (N,) and shares (N,) of N styles -> weights (N,)."""
    return shares * loudness.mean() / loudness


# %% tags=["check"]
mix_weights = lesson_06.check("mix_weights", mix_weights)

# %% [markdown]
# <details><summary>Hint 1</summary>Write it down for one style: weight × its loudness = share ×
# mean loudness.</details>
# <details><summary>Hint 2</summary>Solve for the weight.</details>
# <details><summary>Hint 3</summary><code>loudness.mean()</code> is the mean; everything else works
# number by number.</details>

# %%
shares = [1.0, 0.7, 0.5, 0.3, 0.0]
files = {name: style, second: other}
drawn, labels = [], []
for share in shares:
    fair = mix_weights(loudness, torch.tensor([share, 1 - share])).tolist()
    mix = {files[one]: weight for one, weight in zip(files, fair) if weight}
    drawn.append(redraw(pair, mix))
    labels.append(f"{share:.0%} : {1 - share:.0%}")
    together = moved({one: w for one, w in zip(files, fair) if w})
    listed = "   ".join(f"{one} × {w:.2f}" for one, w in zip(files, fair))
    print(f"{labels[-1]:12s}{listed}   moves the prediction by {together:.1%}")
show.sheet(
    [pictures[i] for i in (0, 1) for pictures in drawn],
    labels * 2,
    columns=len(shares),
    width=1.2,
    title=f"From {name} to {second}, by shares of loudness",
    alt=f"A photograph and a landscape, at the left in {name}, at the right in {second}, and three "
    "mixes of both in between.",
)

# %% [markdown]
# **What it means.** A mix is not a blend of two pictures. Both updates pull at the same layers in
# every step, and what comes of it may be a third manner, or one may win after all: loudness is a
# mean over everything, and says nothing of *where* a style is loud. Nor does it simply follow the
# weight: by our guess the two ends should be equally loud, and they are not. The exact sum is the
# fair beginning; then turn the weights by eye. Try `redraw(pair, {style: 1, other: 1})`.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Can I mix three?* Any number; the dict grows. The exercise is for N.
# - *Why not blend the two finished pictures?* Try `Image.blend`. It gives two half-visible pictures
#   on top of each other, with the marks of neither.
# - *Are negative weights allowed?* Yes. It is a style turned away from, which is not its opposite
#   (lesson 03).

# %% [markdown]
# ## 8. A folder of photos
#
# Drawing several pictures at once is quicker than one after the other, but must not change them. In
# `stylize`, a picture's noise depends on its seed alone, not on what is beside it in the batch.

# %%
own = list(range(10, 10 + len(photos)))
how = {"solver": "ddim", "strength": like["ddim"]}
alone = [redraw(one, seed=seed, **how) for one, seed in zip(photos, own)]
for at_once in (1, 3, len(photos)):
    pictures = redraw(photos, seed=own, batch_size=at_once, **how)
    most = max(levels(a, b) for a, b in zip(alone, pictures))
    print(f"{at_once} at once: at most {most} of 255 levels from the same drawn alone")
others = redraw(photos, seed=[seed + 1 for seed in own], **how)
print(f"other seeds: up to {max(levels(a, b) for a, b in zip(alone, others))} levels")

# %% [markdown]
# In many programs the noise of a whole batch comes from one generator, so that the third picture of
# a batch cannot be drawn again alone. Here it can.
#
# How many fit at once? That depends on the memory.
#
# ### Exercise 4: batches
# `count` photos are waiting. The base takes `fixed` of the memory, each picture of a batch `each`
# more, and `limit` is there (all in the same unit). Draw as many at once as fit. Give the sizes of
# the batches; the last one is what is left.


# %% tags=["exercise"]
def batch_sizes(count, limit, fixed, each):
    """A whole number and three numbers -> sizes of the batches, a tensor (batches,)."""
    return ...  # your code


# %% tags=["solution"]
def batch_sizes(count, limit, fixed, each):
    """A whole number and three numbers -> sizes of the batches, a tensor (batches,)."""
    most = int((limit - fixed) / each)
    return torch.tensor([min(most, count - first) for first in range(0, count, most)])


# %% tags=["check"]
batch_sizes = lesson_06.check("batch_sizes", batch_sizes)

# %% [markdown]
# <details><summary>Hint 1</summary>How many pictures fit into <code>limit - fixed</code>? Round
# down.</details>
# <details><summary>Hint 2</summary><code>range(0, count, most)</code> gives the first picture of
# each batch.</details>
# <details><summary>Hint 3</summary>From <code>first</code> on there are <code>count - first</code>
# left; take the smaller of that and <code>most</code>.</details>

# %%
from stylenb.base import BATCH_PIXELS

for memory in (4, 8, 16):
    plan = batch_sizes(100, memory, 2.5, 0.9).tolist()
    print(f"{memory:2d} GB: {len(plan)} batches, {plan[0]}, {plan[1]}, ..., {plan[-1]}")
print(f"\nstylize's own rule: {max(1, BATCH_PIXELS // size**2)} pictures of {size} px at once")

# %% [markdown]
# (The gigabytes are an example: 2.5 for the base, 0.9 for each picture. `stylize` goes by pixels
# instead: as many as make up one picture of 512 × 512. `batch_size` sets it.)
#
# Now a folder as they are in life. We make one: five pictures, two of which share a name, and four
# things that are none.

# %%
folder = work / "holiday"
(folder / "more").mkdir(parents=True)
photos[0].save(folder / "coffee.jpg")
photos[1].save(folder / "coffee.png")
photos[1].resize((300, 200)).save(folder / "lake.webp")
photos[2].save(folder / "rocket.jpg")
photos[3].save(folder / "evening.png")
(folder / "notes.txt").write_text("tea, not coffee")
whole = (folder / "rocket.jpg").read_bytes()
(folder / "half.jpg").write_bytes(whole[: len(whole) // 2])  # the download was cut off
(folder / ".rocket.jpg").write_bytes(whole)  # hidden, as some systems leave behind
print(*sorted(path.name for path in folder.iterdir()), sep="\n")

# %% [markdown]
# `my_folder` takes one of yours instead.
#
# **Predict:** which of these will be drawn, and what will the two *coffees* be called?

# %%
my_folder = ""


def say(text):
    """Print without the name of our folder, which is another one on every computer."""
    text = str(text).replace(f"{work}/", "")
    print("\n".join(textwrap.fill(line, 98) for line in text.splitlines()))


def stylize_folder(output="drawn", **how):
    how = {"strength": base.default_strength, "batch_size": 2, "progress": False, **how}
    how |= {"size": size, "fit": "crop"}
    return stylenb.stylize_folder(my_folder or folder, work / output, style, base=base, **how)


done = stylize_folder()
say(done.table(most=5))
print()
print(*sorted(path.name for path in done.folder.iterdir()), sep="\n")

# %% [markdown]
# Nothing stopped at the bad files, and nothing was left out in silence: each is counted, with the
# reason. The folder of the photos is never written to.
#
# **Cut.** What if the session ends in the middle? A hook pulls the plug in the second batch.
# Exercise 1 knows when that is.

# %%
cut_at = (
    unet_predictions(steps, base.default_strength, base.default_solver == "inversion", False) + 1
)
calls = iter(range(cut_at))


def pull_the_plug(*_):
    if next(calls, None) is None:
        raise KeyboardInterrupt


hook = base.unet.register_forward_pre_hook(pull_the_plug)
try:
    stylize_folder("cut")
except KeyboardInterrupt:
    print("cut. There are:", *sorted(path.name for path in (work / "cut").iterdir()))
hook.remove()

again = stylize_folder("cut")
print()
say(again.table(most=5))
same = [levels(Image.open(work / "cut" / f.name), Image.open(f)) for f in done.folder.iterdir()]
print(f"\nlargest difference from the run that was not cut: {max(same)} of 255 levels")

# %% [markdown]
# Run it again, and it resumes: a picture that is there is left alone. None is half written, because
# each is written under another name and renamed when it is whole.
#
# **Predict:** and if somebody runs it again at another strength?

# %%
try:
    stylize_folder(strength=0.5 * base.default_strength)
except StylenbError as error:
    say(error)

told = Image.open(next(done.folder.glob("*.png"))).info["stylenb"]
print("\nbecause each picture tells how it was drawn:")
say(told)

# %% [markdown]
# Half a folder in one manner and half in another is nothing that anybody wants, so it is refused
# until you say so:

# %%
say(stylize_folder(strength=0.5 * base.default_strength, overwrite=True).table(most=5))

# %% [markdown]
# ## 9. Keeping the colours
#
# Some styles bring their own palette, and sometimes one wants only the marks. A simple way (Gatys
# et al. 2016, https://arxiv.org/abs/1606.05897): take **lightness** from the picture and **colour**
# from the photo, at every place. CIE Lab holds them apart: *L* is lightness, *a* runs from green to
# red, *b* from blue to yellow.
#
# ### Exercise 5: L from one, a and b from the other


# %% tags=["exercise"]
def in_colours_of(photo, picture):
    """Two pictures in Lab, (H, W, 3) -> lightness of the picture, colours of the photo."""
    return ...  # your code


# %% tags=["solution"]
def in_colours_of(photo, picture):
    """Two pictures in Lab, (H, W, 3) -> lightness of the picture, colours of the photo."""
    return torch.cat([picture[..., :1], photo[..., 1:]], dim=-1)


# %% tags=["check"]
in_colours_of = lesson_06.check("in_colours_of", in_colours_of)

# %% [markdown]
# <details><summary>Hint 1</summary>L is <code>[..., :1]</code>, a and b are <code>[..., 1:]</code>;
# both keep three dimensions.</details>
# <details><summary>Hint 2</summary><code>torch.cat</code> puts tensors together along a
# dimension.</details>
# <details><summary>Hint 3</summary>The last dimension is <code>dim=-1</code>.</details>

# %%
import numpy as np
from skimage.color import lab2rgb, rgb2lab


def keep_colours(photo, picture):
    lab = [torch.from_numpy(rgb2lab(np.asarray(one))) for one in (photo, picture)]
    return Image.fromarray((lab2rgb(in_colours_of(*lab).numpy()) * 255).round().astype(np.uint8))


tried = {one: redraw(photo, one) for one in (style, other)}
ours = {one: keep_colours(photo, picture) for one, picture in tried.items()}
for one in tried:
    most = levels(ours[one], redraw(photo, one, keep_colours=True))
    print(f"{Path(one).stem}: {most} of 255 levels from stylize(..., keep_colours=True)")

show.sheet(
    [photo, *(p for one in tried for p in (tried[one], ours[one]))],
    ["photo", *(label for one in tried for label in (Path(one).stem, "colours kept"))],
    columns=5,
    width=1.2,
    title="With the style's colours, and with the photo's",
    alt="The photo; then for each of two styles the picture, and the same with the lightness of "
    "the picture and the colours of the photo.",
)

# %% [markdown]
# **What it means.** It costs nothing, and works after any style. It suits styles that are made of
# light and dark marks. A style that *is* its palette has little left, and where the style moved an
# outline, the photo's colour stays behind at the old place. Which of the two is which here?

# %% [markdown]
# ## 10. Taking the file home
#
# A style is worth more if other programs can open it. There are two layouts: that of **diffusers**,
# and that of **kohya's** scripts, which ComfyUI and A1111 read. `export_lora` writes both.
#
# To make it interesting, our file gets an α of its own: the style's A and B at a low volume, 0.5.

# %%
rank = layers[where].r[name]
stylenb.load_lora(base, shutil.copy(find_lora(style), work / "mine.safetensors"))
set_alpha(base, "mine", 0.5)

for_diffusers, for_kohya = stylenb.export_lora(base, "mine", work / "export")
remove_lora(base, "mine")
for path in (for_diffusers, for_kohya):
    print(f"\n{path.name}, {path.stat().st_size / 1000:.0f} kB")
    with safe_open(path, "pt") as file:
        keys = sorted(key for key in file.keys() if where in key or where.replace(".", "_") in key)
        for key in keys:
            print(f"   {key}  {tuple(file.get_slice(key).get_shape())}")
        told = file.metadata()
for key in ("ss_network_dim", "ss_network_alpha", "ss_sd_model_name"):
    print(f"   metadata {key}: {told[key]}")

# %% [markdown]
# The same matrices under other names. kohya's layout has an α of its own beside each pair, as a
# tensor; that of diffusers keeps it in the metadata. Both mean the number that is *divided by the
# rank* (lesson 03).
#
# ### Exercise 6: kohya's name
# Turn a key of diffusers into kohya's. The layer's name gets `lora_unet_` in front instead of
# `unet.`, and its dots become `_`. A is `lora_down`, B is `lora_up`. The last two dots stay.


# %% tags=["exercise"]
def kohya_key(key):
    """A text such as "unet.mid_block.attn1.to_q.lora_A.weight" -> kohya's name of it."""
    return ...  # your code


# %% tags=["solution"]
def kohya_key(key):
    """A text such as "unet.mid_block.attn1.to_q.lora_A.weight" -> kohya's name of it."""
    layer, part = key.removeprefix("unet.").split(".lora_")
    half = "down" if part == "A.weight" else "up"
    return f"lora_unet_{layer.replace('.', '_')}.lora_{half}.weight"


# %% tags=["check"]
kohya_key = lesson_06.check("kohya_key", kohya_key)

# %% [markdown]
# <details><summary>Hint 1</summary><code>key.removeprefix("unet.")</code>, then
# <code>.split(".lora_")</code> gives two parts: the layer, and A or B.</details>
# <details><summary>Hint 2</summary><code>layer.replace(".", "_")</code> in the first part
# only.</details>
# <details><summary>Hint 3</summary>The second part is <code>"A.weight"</code> or
# <code>"B.weight"</code>.</details>

# %%
plain, kohya = load_file(for_diffusers), load_file(for_kohya)
named = {kohya_key(key): value for key, value in plain.items()}
alphas = {key for key in kohya if key.endswith(".alpha")}
print("the same names:   ", set(named) == set(kohya) - alphas)
print("the same numbers: ", all(torch.equal(named[key], kohya[key]) for key in named))
print(f"and {len(alphas)} alphas, all of them {kohya[min(alphas)].item():g}, at rank {rank}")

# %% [markdown]
# Is $W'$ the same? kohya's formula is $W' = W + \frac{\alpha}{r} \, up \cdot down$. We read the
# file without any library, and compare with the course's $W + 0.5 \, A B$.

# %%
most = 0.0
for key, layer in layers.items():
    stem = kohya_key(f"unet.{key}.lora_A.weight").split(".")[0]
    down, up = (kohya[f"{stem}.lora_{half}.weight"] for half in ("down", "up"))
    ours = (layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name])
    W, A, B, down, up = (  # a 1 × 1 convolution's matrix has two sides of 1 more
        x.flatten(1).float().cpu() for x in (*(one.weight for one in ours), down, up)
    )
    by_kohya = W + kohya[f"{stem}.alpha"] / len(down) * up @ down
    most = max(most, float((by_kohya - (W + 0.5 * (B @ A))).abs().max()))
print(f"W' in {len(layers)} layers: off by up to {most:.0e}")

for path in (for_diffusers, for_kohya):
    there = load_lora(base, path)
    found = {m.lora_alpha[there] / m.r[there] for m in lora_layers(there).values()}
    print(f"{path.name} read back: alpha of the course {found}")
    remove_lora(base, there)

# %% [markdown]
# ### In plain diffusers
# Nothing of `stylenb` is in the next pipeline but the two files. It gets our latents, strength,
# steps and seed, `""`, and guidance scale 1.
#
# **Predict:** will the picture be *like* ours, or the *same*?

# %%
at_ten = {"strength": 0.4, "num_inference_steps": 10}
ours = redraw(photo, for_diffusers, solver="ddim", **at_ten)
full = redraw(photo, for_diffusers, scale=2.0, solver="ddim", **at_ten)  # 2 × 0.5
theirs = {}
for path in (for_diffusers, for_kohya):
    pipe.load_lora_weights(work / "export", weight_name=path.name)
    theirs[path.name] = by_pipe(**at_ten)[0]
    pipe.unload_lora_weights()
    print(f"{path.name:24s} {levels(theirs[path.name], ours)} of 255 levels from ours")
without = by_pipe(**at_ten)[0]
print(f"{'without a LoRA':24s} {levels(without, ours)}")

show.sheet(
    [photo, without, ours, *theirs.values(), full],
    ["photo", "no LoRA", "stylize", "diffusers", "from kohya's", "alpha 1"],
    columns=6,
    width=1.05,
    title="One file in two programs",
    alt="The photo; redrawn without a LoRA; by stylize with our file; by diffusers with the same "
    "file and with kohya's, which look the same; and at alpha 1.",
)

# %% [markdown]
# The same, pixel by pixel, but for rounding. (Two things have to agree for that. We handed it
# *latents*: given a photo, the pipeline draws a random sample of what the encoder says, where the
# course takes the mean. And `strength × steps` is rounded *down* there.)
#
# ### How alpha gets lost
# diffusers' own way to save a LoRA keeps the matrices only, unless one hands it the metadata as
# well:

# %%
state = {key.removeprefix("unet."): value for key, value in plain.items()}
pipe.save_lora_weights(work / "bare", unet_lora_layers=state, weight_name="bare.safetensors")
there = load_lora(base, work / "bare" / "bare.safetensors")
found = {m.lora_alpha[there] / m.r[there] for m in lora_layers(there).values()}
remove_lora(base, there)
bare = redraw(photo, work / "bare" / "bare.safetensors", solver="ddim", **at_ten)
print(f"written with alpha 0.5, read back with {found}")
print(
    f"its picture: {levels(bare, ours)} of 255 levels from ours, {levels(bare, full)} from alpha 1"
)

# %% [markdown]
# No error, no warning, and the style is at another volume. If a LoRA from elsewhere is too loud or
# too soft by a plain factor, this may be why; `scale` makes up for it.
#
# ### In ComfyUI and A1111
# Take `mine.kohya.safetensors`, give it a name that you will know again, and put it here:
#
# | program | folder | what switches it on | our scale is |
# | --- | --- | --- | --- |
# | ComfyUI | `models/loras` | a *Load LoRA* node before the sampler | its `strength_model` |
# | A1111 | `models/Lora` | `<lora:name:1>` in the prompt | the number in it |
#
# In both: image-to-image, no prompt, CFG 1, and *denoising strength* is our strength for `"ddim"`.
# CFG is guidance by a prompt and does not replace that by a LoRA (section 1): stained glass comes
# out much paler there.
#
# **An honest note.** A LoRA fits the base that it was trained on. Our pocket LoRAs fit the pocket
# base, which those programs do not have, so *this* file is of no use there. The same cells with
# `base = stylenb.load("sd15")` and a style trained on it (lesson 08) write one that is. What is
# proven here is the layout, the names and α, which are the same for both. We have not run ComfyUI
# or A1111 for this course; the cell above compares with diffusers, which reads kohya's layout by
# code of its own.

# %% [markdown]
# ## 11. When a file does not fit
#
# `load_lora` reads what diffusers, peft, kohya's scripts and LyCORIS write for a model like the
# base; their names for the layers differ, and it knows them all. But files from elsewhere are often
# not what they seem. It looks at names and shapes before it touches the UNet, tries afterwards
# whether anything has changed, and says what is wrong in one sentence. Some usual cases, made here:

# %%
shipped = find_lora(style).read_bytes()
odd = work / "odd"
odd.mkdir()
torch.save({"weights": torch.zeros(3)}, odd / "old.pt")
(odd / "page.safetensors").write_text("<html>404: not found</html>")
(odd / "half.safetensors").write_bytes(shipped[: len(shipped) // 2])
wide = {key: torch.cat([value, value], 1) for key, value in plain.items() if "lora_A" in key}
save_file({**plain, **wide}, odd / "wider.safetensors")
deep = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight"
save_file({deep: torch.zeros(4, 640)}, odd / "xl.safetensors")
only_A = {key: value for key, value in plain.items() if "lora_A" in key}
save_file(only_A, odd / "one_side.safetensors")
stylenb.add_lora(base, "untrained", rank=4)
stylenb.save_lora(base, odd / "untrained.safetensors", "untrained")
remove_lora(base, "untrained")

for file in ("impressionism", *sorted(odd.iterdir())):
    try:
        load_lora(base, file)
    except StylenbError as error:
        say(f"{Path(file).name}\n    {error}\n")

# %% [markdown]
# **What it means.** Each is refused before it can do harm, and none of them leaves anything in the
# UNet. `old.pt` is the one to remember: a *pickled* file can run any program when it is opened. Ask
# for safetensors, which hold numbers and nothing else.

# %% [markdown]
# ## 12. Without a notebook
#
# Most of the above is on the command line too, for one photo or a folder (not `injection` or a
# scale for each group). In the course's folder:
#
# ```
# python -m stylenb styles
# python -m stylenb stylize photo.jpg --style ink --output out.png
# python -m stylenb stylize photos --style ink=0.6 --style neon=0.5 --output drawn --keep-colours
# ```


# %%
def command(*arguments):
    """Run the command line as in a terminal, and print what it says."""
    here = Path(stylenb.__file__).parents[1]
    call = [sys.executable, "-m", "stylenb", "stylize", *map(str, arguments)]
    result = subprocess.run(call, cwd=here, capture_output=True, text=True)
    said = (result.stdout or result.stderr).strip().split("\n")[-1]
    say(f"exit {result.returncode}: {said.rsplit(' (', 1)[0] if result.stdout else said}")


options = ("--style", style, "--base", base.name, "--steps", steps, "--size", size, "--fit", "crop")
command(folder / "coffee.png", *options, "--output", work / "out.png")
command(folder / "half.jpg", *options, "--output", work / "out.png")

drawn_here = redraw(Image.open(folder / "coffee.png"))
print(f"from this notebook's: {levels(Image.open(work / 'out.png'), drawn_here)} of 255 levels")

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *May I use the pictures?* Of the shipped styles, yes: they were learned from pictures that code
#   has drawn. With a LoRA from elsewhere, ask whose pictures it learned from.
# - *Why is the first picture so slow on the command line?* Importing torch and loading the base
#   take longer than drawing. A folder pays that once.
# - *Can I stack LoRAs in ComfyUI like in section 7?* Yes, one node after the other; the updates add
#   there as well.
# - *Larger pictures?* `size` draws larger, with marks of the same size in pixels. The pocket base
#   knows 128 and 256 px; far beyond the sizes that it knows, a base draws what it knows twice over.
#   `original_size=True` enlarges afterwards.

# %% [markdown]
# ## Recap
#
# - Encode, load the style's LoRA, denoise, decode. `stylize` does nothing else.
# - Random noise or inverted noise: strength means something else with each. Ask for the solver, and
#   the base.
# - Predictions of the UNet are the price: steps × strength, as many again with inversion, and as
#   many again with guidance. That by a prompt is useless without one; that by a LoRA is not.
# - `guidance_scale` takes more of what a LoRA has learned than the LoRA itself, and costs outlines.
# - Scale may differ from group to group; a layer in two groups gets both.
# - Styles add exactly. Loudness decides what is seen of each.
# - A picture depends on its photo, its seed and the settings, not on its neighbours. A folder run
#   counts bad files, resumes where it was cut, and mixes no settings.
# - A LoRA file is names, two matrices a layer, and an alpha. Two layouts, one W'. It fits the base
#   that it was trained on.
#
# ## If you want more
# - In section 1, switch the LoRA on for the first half of the way down only, then for the second
#   half only. Which half makes the marks, and which the palette?
# - Draw noise anew in the first half of the steps only, then in the second half only (`denoise` in
#   stylenb/inference.py is short: copy it). Which half costs the outlines?
# - Give `scale` a different value at each step: loud first and soft later, or the other way round.
# - Mix a style with itself: `{style: 0.5}` and a copy of its file under another name at 0.5. What
#   must come out, and does it?
# - Save the mix of section 7 as *one* file: A side by side, B one below the other (lesson 03).
