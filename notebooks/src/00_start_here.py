# ---
# jupyter:
#   stylenb:
#     title: Start here
#     about: >-
#       A real photograph in a new art style in the first minute, what has happened there, and how
#       the course works.
#     read: 10
#     do: 15
#     needs: Python to read along; no GPU, no network
# ---

# %% [markdown]
# **After this lesson you can**
#
# - say whether this computer is ready, and what it will run on,
# - redraw a photograph in an art style, and steer how far it goes with two numbers,
# - name the four steps from the photograph to the picture,
# - work with exercises and their checks.
#
# Run a cell with *Shift + Enter*. Run them in order; nothing here takes long.

# %% [markdown] tags=["instructor"]
# **Plan for 25 minutes.** Set-up and report: 5 (longer on hosted machines, where the first cell
# fetches the course). First picture and the two sliders: 10. The four steps and the exercise: 7.
# The map: 3.
#
# Let people change photo and style before you explain anything. Two of the things they will notice
# by themselves are worth writing on the board, because the course answers them: *at low strength
# the colours of the photo stay*, and *the higher the strength, the more of the photo goes*.

# %% [markdown]
# ## 1. Is everything here?
# One line for each thing that matters. Look for *missing*, *too old* or *FAIL*; each says what to
# do.

# %%
from stylenb import doctor

print(doctor.report())

# %% [markdown]
# *Device* and *Precision* say where the model will run. A CPU is fine for every lesson. *Base
# 'sd15'* may be absent: only lesson 08 needs it.

# %% [markdown]
# ## 2. A photograph in a new style
# The **base** is the model that everything is built on. Every lesson begins by choosing one.

# %%
import stylenb

base = stylenb.load("pocket")  # or "sd15"
base

# %% [markdown]
# `"pocket"` is a small latent diffusion model that comes with the course. It is made of the same
# parts as Stable Diffusion v1.5 (`"sd15"`), but was trained on little: landscapes drawn by code,
# random shapes and a few photographs. The styles shipped with the course fit the pocket base.
#
# A style is a small file, a **LoRA**, that changes the base a little. These are here:

# %%
styles = list(stylenb.available_styles())
for name, file in stylenb.available_styles().items():
    print(f"{name:15s} {file.stat().st_size / 1000:6.0f} kB")

# %%
size = base.default_size  # pixels
photo = stylenb.sample_photo("chelsea", size)
style = "ink"  # or another of them
picture = stylenb.stylize(photo, style, base=base)

from stylenb.course import show

show.sheet(
    [photo, picture],
    ["photo", style],
    title="A photograph and what became of it",
    width=3.5,
    alt=f"A cat's face, and the same cat in the style {style}.",
)

# %% [markdown]
# There was no prompt: nobody told the model what is in the photo. All styles, on a photograph and
# on a landscape that was drawn by code:

# %%
from stylenb.pocket.scenes import draw_scene

scene = draw_scene(7, size).picture
rows = []
for original in (photo, scene):
    rows += [original, *(stylenb.stylize(original, name, base=base) for name in styles)]
show.sheet(
    rows,
    ["original", *styles],
    columns=4,
    width=3.5,
    title="Every shipped style",
    alt=f"A cat and a landscape, each as the original and in the styles {', '.join(styles)}.",
)

# %% [markdown]
# ## 3. Two numbers steer it
#
# **strength**, above 0 and up to 1: how far the photo is turned into noise before the model redraws
# it.
#
# **Predict:** which of the two is lost first as strength grows, the colours of the photo or its
# layout?

# %%
strengths = [0.2, 0.4, 0.6, 0.8, 1.0]
show.sheet(
    [stylenb.stylize(photo, style, strength=s, base=base) for s in strengths],
    [f"strength {s}" for s in strengths],
    columns=5,
    width=2.8,
    title=f"{style}, from little strength to all of it",
    alt="Five pictures of growing strength: at first the cat with a touch of style, at last more "
    "style than cat.",
)

# %% [markdown]
# At low strength the model is hardly allowed to change anything, and the colours of the photo stay.
# The nearer to 1, the freer it is to draw what it likes. Style transfer is a trade between the two,
# and lesson 07 measures it.
#
# **scale**: how loud the LoRA is. 0 is the base alone.

# %%
scales = [0.0, 0.5, 1.0, 1.5, 2.0]
show.sheet(
    [stylenb.stylize(photo, style, scale=s, base=base) for s in scales],
    [f"scale {s}" for s in scales],
    columns=5,
    width=2.8,
    title=f"{style}, from silent to far too loud",
    alt="Five pictures of growing LoRA scale: without style, with more and more of it, and finally "
    "overdone.",
)

# %% [markdown]
# At scale 0 the picture is redrawn without a style: what is different from the photo there, the
# base did by itself. Beyond 1 the LoRA says more than it was trained to say.
#
# Both at once, with sliders, in every style. (On a page that only shows the notebook, you see the
# picture but no sliders.)


# %%
def draw(strength, scale):
    pictures = [stylenb.stylize(photo, name, strength, scale, base=base) for name in styles]
    return show.sheet(
        [photo, *pictures],
        ["photo", *styles],
        columns=4,
        width=1.4,
        title=f"strength {strength:.2f}, scale {scale:.2f}",
        alt=f"The photo and its versions in {', '.join(styles)} at strength {strength:.2f} and "
        f"scale {scale:.2f}.",
    )


show.interactive(
    draw, strength=(0.05, 1.0, 0.05, base.default_strength), scale=(0.0, 2.0, 0.1, 1.0)
)

# %% [markdown]
# ### Your own photo
# Put the path of a picture between the quotes and run the cell again. Any size and format will do;
# it is drawn whole, in its own shape.

# %%
my_photo = ""

if my_photo:
    mine = stylenb.open_photo(my_photo, size=size, fit="whole")
else:
    mine = stylenb.sample_photo("coffee", size)
show.sheet(
    [mine, *(stylenb.stylize(mine, name, base=base) for name in styles)],
    ["photo", *styles],
    columns=4,
    width=3.5,
    title="Another photograph",
    alt=f"A photograph and its versions in {', '.join(styles)}.",
)

# %% [markdown]
# ## 4. What has happened
#
# 1. **Encode.** The autoencoder turns the photo into a small grid of numbers, the latents (lesson
#    01).
# 2. **Noise** takes the place of the latents, as far as the strength says. Not any noise: the noise
#    from which the model would draw this very photo (lesson 02). On the way, the UNet's attention
#    notes which parts of the photo belong together.
# 3. **Denoise.** Step by step, the UNet takes noise away again. It guesses what is under the
#    noise, and with the LoRA it guesses in the style (lessons 02 to 04). It looks from place to
#    place as it has noted on the way up, so that eyes stay eyes (lesson 06).
# 4. **Decode.** The autoencoder turns the latents back into a picture.
#
# The same by hand, with a look at every stage:

# %%
import torch

from stylenb import to_tensor
from stylenb.inference import denoise, invert
from stylenb.lora import set_scale
from stylenb.lora_files import load_lora

strength = base.default_strength

with torch.no_grad():
    images = to_tensor(photo)
    latents = base.encode(images)  # 1. encode

    attention = []  # what belongs together, noted step by step
    noisy = invert(base, latents, strength, attention=attention)  # 2. noise

    set_scale(base, load_lora(base, style), 1.0)
    how = {"solver": "inversion", "noisy": noisy, "attention": attention}
    denoised = denoise(base, latents, strength, **how)  # 3. denoise
    set_scale(base, None)

    stages = [images, base.decode(noisy), base.decode(denoised)]  # 4. decode

print("photo", tuple(images.shape), " latents", tuple(latents.shape))
show.sheet(
    [stage[0].float().cpu() for stage in stages],
    ["photo", "noise, decoded", "denoised, decoded"],
    title="Encode, noise, denoise, decode",
    width=2,
    alt="The cat; blotches of colour, with no cat to be seen; the cat redrawn in the style.",
)

# %% [markdown]
# In the middle is what the UNet had to work from. Without the LoRA, nearly the photo would have
# come out of it again. With the LoRA, the model goes the same way in another manner.

# %% [markdown]
# ## 5. How exercises work
#
# A stub with `...`, a check, three folded hints. The check runs your function on a few random
# inputs and names the likely mistake. Leave it as it is, and the notebook goes on with the
# reference.
#
# ### Exercise: how many steps are run?
# A picture made from pure noise takes all of the `steps`. With `strength` 0.5 the photo is noised
# half way up, so only half of the steps are left to go down again. Give the nearest whole number;
# one step at least is always run.


# %% tags=["exercise"]
def steps_run(steps, strength):
    """steps: a whole number; strength: above 0, up to 1 -> how many steps are run."""
    return ...  # your code


# %% tags=["solution"]
def steps_run(steps, strength):
    """steps: a whole number; strength: above 0, up to 1 -> how many steps are run."""
    return max(1, round(steps * strength))


# %% tags=["check"]
from stylenb.course import lesson_00

steps_run = lesson_00.check("steps_run", steps_run)

# %% [markdown]
# <details><summary>Hint 1</summary>Strength 1 runs all steps, strength 0.5 half of them.</details>
# <details><summary>Hint 2</summary>Multiply.</details>
# <details><summary>Hint 3</summary>Python's <code>round</code> gives the nearest whole
# number.</details>

# %%
steps = base.default_num_inference_steps
for strength in (0.2, 0.6, 1.0):
    print(f"strength {strength}: {steps_run(steps, strength)} of {steps} steps")

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Is low strength faster, then?* Yes, and this exercise says by how much.
# - *Why does the photo change although scale is 0?* The autoencoder makes it softer, and the way up
#   to the noise and down again is not quite the same (lessons 01 and 02).
# - *Can I have two styles at once?* Lesson 06.
# - *Is this legal with the style of a living artist?* The course trains on pictures that it draws
#   itself, and that is what it can answer for. Bring your own pictures in lesson 08, and take ones
#   you may use.

# %% [markdown]
# ## 6. The road
#
# | lesson | you leave with |
# | --- | --- |
# | 01 The VAE latent space | what the model sees instead of pixels, and what gets lost there |
# | 02 Noise and the UNet | a denoising loop of your own that agrees with the library's |
# | 03 The LoRA formula | W' = W + α A B in twenty lines, and why the file is so small |
# | 04 Training a style | a style trained by you from 16 pictures |
# | 05 DreamBooth and LoRA | what full fine-tuning costs, and what it buys |
# | 06 Using it | several styles, whole folders, other programs |
# | 07 Does it work? | numbers: content against style, and against the true answer |
# | 08 Your own style | the same cells on SD v1.5, on a free GPU, with your pictures |
# | A1 How the pocket model was made | two networks trained from nothing while you watch |
#
# Lessons that are ready have a link on the page *All lessons*, below. Each stands on the ones
# before it; A1 can be read any time after 01.
#
# ## Recap
# - `stylenb.stylize(photo, style)` encodes, goes up to noise, denoises with the style's LoRA,
#   decodes.
# - Strength is how far the photo is turned into noise; scale is how loud the style is.
#
# ## If you want more
# - Find a strength at which the style is plain to see and you can still count the cat's eyes.
# - Add `solver="ddim"` to a call of `stylize`: it takes random noise. At which strength is the
#   photo lost now? Try the seeds 0 to 9 with it: what changes, and what does not?
# - Hand in a photograph of text. Why does it fare so badly? Lesson 01 has the answer.
