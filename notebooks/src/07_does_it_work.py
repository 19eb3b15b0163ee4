# ---
# jupyter:
#   stylenb:
#     title: Does it work?
#     about: >-
#       Numbers that say whether a style came over, and what each of them cannot see. You put LoRA,
#       DreamBooth and simple methods beside the true rendering, say how sure the result is, and
#       check what others claim.
#     read: 35
#     do: 60
#     needs: lessons 04 to 06; about five minutes of computing; no GPU
# ---

# %% [markdown]
# **After this lesson you can**
#
# - say of each score what it sees, what it is blind to, and name a picture that fools it,
# - explain why a network that was in the loss must not be the judge,
# - write mean, standard error and interval by hand, and compare two methods in pairs,
# - say how many scenes a comparison needs,
# - draw the curve of content against style, and find on it the settings that no other one beats,
# - compare methods where they keep equally much, and report the result whatever it is,
# - take a claim apart: what would have to be counted, and does it hold?
#
# There are six exercises, with checks as before.

# %% [markdown] tags=["instructor"]
# **Plan for 95 minutes.** Look first: 5. Scores and frauds: 20. The judge in the loss: 8. Chance:
# 20. The curve: 15. The other methods: 15. What to ship, and looking: 6. Claims: 5. Recap: 1.
#
# Short of time? Sections 2, 4 and 6 are the core. Section 9 can be read at home.
#
# **Before you start**, let everybody write down one number: how many of the six pictures of
# section 1 they would call a success. Come back to it in section 8. People rarely agree, and that
# is the best reason for scores there is.

# %%
import stylenb

base = stylenb.load("pocket")  # or "sd15"
base

# %% tags=["parameters"]
import math
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageChops, ImageFilter, ImageOps

from stylenb import read_folder, sample_photo, to_pictures, to_tensor
from stylenb.course import lesson_07, show
from stylenb.inference import denoise, invert
from stylenb.lora import remove_lora, set_scale
from stylenb.lora_files import about_lora, find_lora, load_lora
from stylenb.pocket.scenes import draw_scene
from stylenb.pocket.styles import apply_style
from stylenb.weights import DATA

size = base.image_size
count = 12  # scenes
style = "ink"  # or another folder in data/styles
lora = style  # its LoRA; on "sd15" the path of one that you trained on that folder

# %% [markdown]
# ## 1. Look first
#
# These scenes are from seeds that no network was trained on, and on which nothing was tuned.
# Because a style of the pocket world is a function, we also know how each of them **really** looks
# in the style. Between the two is what the LoRA makes of it.

# %%
scenes = [draw_scene(50_000 + seed, size).picture for seed in range(count)]
truths = [apply_style(style, scene, seed) for seed, scene in enumerate(scenes)]
style_pictures = read_folder(DATA / "styles" / style, size).pictures


@torch.no_grad()
def encode(pictures):
    """Pictures -> latents (N, 4, h, w), a few at a time."""
    return torch.cat([base.encode(part).float() for part in to_tensor(pictures).split(4)])


@torch.no_grad()
def decode(latents):
    """Latents (N, 4, h, w) -> pictures."""
    return [p for part in latents.split(4) for p in to_pictures(base.decode(part))]


latents = encode(scenes)
starts = {}  # what every method begins with: strength -> noisy latents and attention of a few


def redraw(strength=base.default_strength, by=base):
    """The scenes, drawn from `strength` on by a base as it is now."""
    parts, drawn = torch.arange(count).split(4), []
    if by.default_solver == "inversion" and strength not in starts:
        found = [{"attention": []} for _ in parts]
        for part, one in zip(parts, found):
            one["noisy"] = invert(base, latents[part], strength, **one)  # lesson 02, section 9
        starts[strength] = found
    for part, start in zip(parts, starts.get(strength) or [{}] * len(parts)):
        drawn.append(denoise(by, latents[part], strength, seed=part.tolist(), **start))
    return decode(torch.cat(drawn))


name = load_lora(base, lora)
set_scale(base, name, 1.0)
by_lora = redraw()
set_scale(base, None)
print("latents", tuple(latents.shape), " pictures", len(by_lora))

# %%
shown = min(6, count)
show.sheet(
    [*scenes[:shown], *by_lora[:shown], *truths[:shown]],
    ["scene"] * shown + ["LoRA"] * shown + ["the truth"] * shown,
    columns=shown,
    width=0.9,
    title=f"Scenes, what the LoRA {style} makes of them, and the truth",
    alt=f"Three rows: landscapes, the same redrawn by the LoRA in the style {style}, and their "
    "true renderings in that style.",
)

# %% [markdown]
# **Predict:** how many of the pictures in the middle row would you call a success? Write the number
# down before you go on. And what did you look at: the marks, the colours, or whether the house is
# still there?
#
# That is the difficulty. "It works" is at least two questions, is the **content** kept and is the
# **style** there, and the two pull in opposite directions. The photo itself is perfect at the
# first.

# %% [markdown]
# ## 2. What each score sees
#
# | score | asks | looks through | better is |
# | --- | --- | --- | --- |
# | `edges` | are the outlines in the same places as in the photo? | no network | more |
# | `ssim` | are light and dark alike in small windows? | no network | more |
# | `lpips` | how different do picture and photo look? | the network of the training loss | less |
# | `judge` | how sure is a network that this is the style? | the style judge | more |
# | `gram` | palette and texture of the style? | the network of the training loss | less |
# | `truth` | how different from the true rendering? | the first layers of the style judge | less |
# | `pixels` | the same, by SSIM of tone and colour at three sizes | no network | less |
#
# The first three measure content, the next two style. The last two ask both at once, and only a
# world that knows the truth has them.
#
# We take `edges` apart, as it will be our measure of content. Blur the picture a little, so that
# hatching and dots fade; take the **Sobel** magnitude, which says how steeply the grey changes at
# each place; and ask how well the maps of photo and picture go together.

# %%
from skimage.color import rgb2gray
from skimage.filters import gaussian, sobel


def outlines(picture):
    """A picture -> a map (H, W) of how steep its greys are."""
    return torch.from_numpy(sobel(gaussian(rgb2gray(picture), size / 64)))


three = [scenes[0], by_lora[0], truths[0]]
maps = [outlines(picture) for picture in three]
print("picture", three[0].size, " map", tuple(maps[0].shape))
show.sheet(
    [*three, *maps],
    ["scene", "LoRA", "the truth"] * 2,
    columns=3,
    width=1.2,
    title="Outlines",
    alt="A scene, the LoRA's picture and the truth; below each its map of outlines, bright along "
    "ridges, roofs and shores.",
)

# %% [markdown]
# ### Exercise 1: correlation
# One number for two maps: 1 if they rise and fall together, 0 if they have nothing to do with each
# other. Take the mean off each map. Then divide the sum of the products by the lengths of both (a
# length, `.norm()`, is the root of the sum of squares).


# %% tags=["exercise"]
def correlation(a, b):
    """Two maps (H, W) -> one number, -1 to 1."""
    return ...  # your code


# %% tags=["solution"]
def correlation(a, b):
    """Two maps (H, W) -> one number, -1 to 1."""
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.norm() * b.norm())


# %% tags=["check"]
correlation = lesson_07.check("correlation", correlation)

# %% [markdown]
# <details><summary>Hint 1</summary>First line: <code>a - a.mean()</code>, and the same for
# b.</details>
# <details><summary>Hint 2</summary>The sum of the products is <code>(a * b).sum()</code>, of the
# maps with their means taken off.</details>
# <details><summary>Hint 3</summary>Divide it by <code>a.norm() * b.norm()</code>, of these same
# maps.</details>

# %%
from stylenb.scores import edge_agreement, measure

ours = [float(correlation(maps[0], one)) for one in maps]
theirs = edge_agreement(three, [scenes[0]] * 3).tolist()
for label, one, other in zip(("scene", "LoRA", "the truth"), ours, theirs):
    print(f"{label:10s} ours {one:.4f}   the library's {other:.4f}")

# %% [markdown]
# Look at the last line. The truth is the best picture there can be, and it does not agree fully
# with its own photo: outlines get thicker in some styles and vanish in others. So an agreement of 1
# is not the aim. It only says how much was kept.
#
# ### A contest of frauds
# A score is best known by what fools it. Beside the honest pictures we enter some that anybody
# would throw out:
#
# - **negative**: the photo with its tones turned round,
# - **shifted**: the photo, moved a little to the right,
# - **flat**: a grey area in the style, without any content,
# - **wallpaper**: a small piece of a style picture, repeated,
# - **other scene**: the true rendering, but of the next scene,
# - **blurred truth** and **shifted truth**.
#
# **Predict:** for each of the seven scores, which fraud will it love most?

# %%
little = size // 32
patch = style_pictures[0].crop((size // 4, size // 4, size // 2, size // 2))
wallpaper = Image.new("RGB", (size, size))
for corner in range(16):
    wallpaper.paste(patch, (corner % 4 * size // 4, corner // 4 * size // 4))
grey = Image.new("RGB", (size, size), (128, 128, 128))

entries = {
    "photo": scenes,
    "LoRA": by_lora,
    "the truth": truths,
    "negative": [ImageOps.invert(scene) for scene in scenes],
    "shifted": [ImageChops.offset(scene, little, 0) for scene in scenes],
    "flat": [apply_style(style, grey, seed) for seed in range(count)],
    "wallpaper": [wallpaper] * count,
    "other scene": truths[1:] + truths[:1],
    "blurred truth": [t.filter(ImageFilter.GaussianBlur(little / 2)) for t in truths],
    "shifted truth": [ImageChops.offset(truth, little, 0) for truth in truths],
}
show.sheet(
    [pictures[0] for pictures in entries.values()],
    list(entries),
    columns=5,
    width=1.15,
    title="Three honest pictures and seven frauds",
    alt="Ten pictures: a scene, the LoRA's picture of it and the truth; its negative, the scene "
    f"moved to the right, grey in the style {style}, a repeated piece of a style picture, another "
    "scene in the style, the truth blurred, the truth moved to the right.",
)

# %%
more_is_better = {"edges", "ssim", "judge"}
found = {
    entry: measure(pictures, scenes, style, style_pictures, truths)
    for entry, pictures in entries.items()
}
names = ["edges", "ssim", "lpips", "judge", "gram", "truth", "pixels"]
means = {score: torch.stack([found[entry][score].mean() for entry in entries]) for score in names}

print(f"{'':16s}" + "".join(f"{score:>8s}" for score in names))
for row, entry in enumerate(entries):
    print(f"{entry:16s}" + "".join(f"{float(means[score][row]):8.2f}" for score in names))

# %%
honest = list(entries).index("LoRA")
frauds = [entry for entry in entries if entry not in ("photo", "LoRA", "the truth")]
for score in names:
    sign = 1 if score in more_is_better else -1
    ahead = [
        e for row, e in enumerate(entries) if sign * means[score][row] > sign * means[score][honest]
    ]
    best = max(frauds, key=lambda entry: sign * float(found[entry][score].mean()))
    print(f"{score:7s} loves most: {best};")
    print(f"        puts before the LoRA: {', '.join(ahead) or 'nothing'}")

# %% [markdown]
# **What it means.** Go through your list line by line.
#
# - **edges** cannot tell a picture from its negative: the outlines are where they were. It is blind
#   to colour, tone and marks.
# - **ssim** compares light and dark in windows of seven pixels. The marks of a style change those,
#   so it takes them for content that is lost: see what it gives the truth.
# - **lpips** takes a change of style for a change of content. Look where it puts the truth, the
#   picture that we want. By this score, doing nothing is always best.
# - **judge** asks for marks and palette, never for content. *flat* and *wallpaper* hold nothing,
#   and *other scene* is a wrong answer in the right style. What does it give them?
# - **gram** knows no places (lesson 04), so another scene in the style is as good as the right one.
# - **truth** and **pixels** ask for the right thing at the right place. They too have a weakness:
#   look how near *flat* comes to the LoRA. The right marks on the mean tone are not far from any
#   picture in the style, and nobody is asked whether there is a house. What is kept gives it away
#   most clearly, so neither counts without that.
#
# No score is fooled by all frauds, and no fraud fools all scores. So use several, which see through
# different eyes, **and look at the pictures**. In the rest of this lesson, `edges` says how much is
# kept, `truth` says how near it is, and `pixels` must confirm it.

# %% [markdown]
# ### One more: the drift
# Lesson 05 measured how far a training has moved the model. What does that number not see? A LoRA
# at scale −1 is the same change, backwards.

# %%
from stylenb.inference import redraw as redraw_photos
from stylenb.scores import noise_predictions, prior_drift

few = scenes[:3]
before = noise_predictions(base, few)
for scale in (1.0, -1.0):
    set_scale(base, name, scale)
    drift = prior_drift(before, noise_predictions(base, few))
    print(f"scale {scale:+.0f}: drift {float(drift.mean()):.3f}")
backwards = redraw_photos(base, few, seed=range(len(few)))
set_scale(base, None)

show.sheet(
    by_lora[:3] + backwards,
    ["scale 1"] * 3 + ["scale -1"] * 3,
    columns=6,
    width=0.95,
    title="As far in the weights, in another direction",
    alt="Three scenes at scale 1, in the style, and the same at scale -1, changed in another way.",
)

# %% [markdown]
# In the weights, both are equally far from the base, each in its own direction. Drift is about the
# *predictions*, and those need not move equally. It says how far they have moved, and never where
# to. By the number alone, could you have told which of the two draws the style?

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Why not ask people?* That is the best judge, and the slowest. Ask them for a choice between two
#   pictures, not for a grade, without saying which method drew which, and count as in section 4.
# - *Why not FID or CLIP score?* Both are networks trained on photographs and their captions. FID
#   compares whole sets and needs thousands of pictures; CLIP does not know our styles. What fools
#   them has been described as well.
# - *Is the judge not trained on these very styles?* Yes, on their true renderings of other scenes.
#   Nothing that draws was ever trained to please it; that is what matters.

# %% [markdown]
# ## 3. What was in the loss is no judge
#
# The training of the LoRA lowered LPIPS and the style loss, which is `gram`:

# %%
about = about_lora(find_lora(lora))
for key in ("lpips_weight", "style_weight"):
    print(key, about.get("settings", {}).get(key, "unknown"))

# %% [markdown]
# So a low `gram` says that training did as it was told. Is it proof that the picture is good? The
# method of Gatys shows it best, because it does nothing but lower that loss: it changes the pixels
# of each photo, step by step, until the network is content (Gatys et al. 2015,
# https://arxiv.org/abs/1508.06576). We stop it at several points.
#
# **Predict:** `gram` will fall. Will `truth` fall as well, and by as much?

# %% tags=["parameters"]
from stylenb.course.baselines import gatys

gatys_steps = 60  # where the share is 1
gatys_curve = []
for share in (0.0, 0.25, 0.5, 1.0):
    pictures = gatys(scenes, style_pictures, share, base, steps=gatys_steps)
    scored = measure(pictures, scenes, style, style_pictures, truths)
    gatys_curve.append({"strength": share, "pictures": pictures, **scored})

figure = show.figure(
    6,
    2.6,
    "Gatys: the loss, and scores that were not in it",
    alt="Three curves over the steps, each as a share of its value at the start: gram, which is "
    "lowered, and the two distances to the truth, which nobody lowers.",
)
axes = figure.subplots()
done = [row["strength"] * gatys_steps for row in gatys_curve]
for score, colour in (("gram", "#c0553b"), ("truth", "#1d3557"), ("pixels", "#4f7cac")):
    values = [float(row[score].mean() / gatys_curve[0][score].mean()) for row in gatys_curve]
    axes.plot(done, values, "o-", color=colour, label=score, markersize=4)
axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
axes.set_ylim(0)
axes.set_xlabel("steps")
axes.set_ylabel("share of the start")
axes.legend(fontsize=8)
axes.grid(alpha=0.3)
figure

# %%
first, last = gatys_curve[0], gatys_curve[-1]
for score in ("gram", "truth", "pixels"):
    change = float(last[score].mean() / first[score].mean()) - 1
    print(f"{score:7s} {'in the loss' if score == 'gram' else 'in no loss':12s} {change:+.0%}")
print()
for score in ("gram", "truth", "pixels"):
    drawn = {"Gatys": last[score], "LoRA": found["LoRA"][score], "photo": found["photo"][score]}
    ranking = sorted(drawn, key=lambda who: float(drawn[who].mean()))
    print(f"nearest by {score:7s} " + ", ".join(f"{w} {drawn[w].mean():.2f}" for w in ranking))

show.sheet(
    [scenes[0], *(row["pictures"][0] for row in gatys_curve[1:]), by_lora[0], truths[0]],
    ["scene", *(f"step {step:.0f}" for step in done[1:]), "LoRA", "the truth"],
    columns=6,
    width=1.05,
    title="Gatys on its way, the LoRA, and the truth",
    alt="A scene, three stages of Gatys' method, which stay close to the scene with other tints, "
    "the LoRA's picture and the truth.",
)

# %% [markdown]
# **What it means.** If `gram` fell and the other two hardly did, you have seen why it cannot be
# the judge. There are many ways to make a network content, and most of them are not the picture
# that we want. Whoever is trained to please a judge finds the ways that please *this* judge. That
# is no reproach to Gatys; it would hold for the LoRA just as well, which had the same network in
# its loss. So both are judged by what neither of them has ever seen: the style judge's network, and
# pixels.

# %% [markdown]
# ## 4. Chance
#
# Twelve scenes are not all scenes. With twelve others the mean would have come out a little
# different. How different?

# %%
values = found["LoRA"]["truth"]
print("distance to the truth, scene by scene:")
print("  ".join(f"{value:.2f}" for value in values.tolist()))
print(f"mean {values.mean():.3f}   standard deviation of the scenes {values.std():.3f}")

# %% [markdown]
# The **standard deviation** says how far single scenes lie from their mean. Take the mean of N
# scenes: some are above, some below, and part of it cancels. The scatter of such a mean is called
# the **standard error**, and it is smaller by the root of N.
#
# ### Exercise 2: standard error
# `values.std()` is the standard deviation. It divides by N − 1, and rightly: the deviations are
# taken from the mean of these very values, which lies closer to them than the true one does.


# %% tags=["exercise"]
def standard_error(values):
    """Scores of N scenes (N,) -> the standard error of their mean, one number."""
    return ...  # your code


# %% tags=["solution"]
def standard_error(values):
    """Scores of N scenes (N,) -> the standard error of their mean, one number."""
    return values.std() / len(values) ** 0.5


# %% tags=["check"]
standard_error = lesson_07.check("standard_error", standard_error)

# %% [markdown]
# <details><summary>Hint 1</summary>How many values are there? <code>len(values)</code>.</details>
# <details><summary>Hint 2</summary>The root of N is <code>len(values) ** 0.5</code>.</details>
# <details><summary>Hint 3</summary>The standard deviation, divided by that.</details>

# %% [markdown]
# An **interval** of 95 % is mean ± a few standard errors: so many that, if everybody in the world
# did this with scenes of their own, 95 of 100 intervals would hold the true mean. How many are "a
# few"? With many scenes, 1.96. With few, the standard error itself is uncertain, and it takes more;
# **Student's t** says how many.

# %%
from scipy.stats import t as student


def reach(n, level=0.95):
    """How many standard errors an interval goes to each side, with n scenes."""
    return float(student.ppf((1 + level) / 2, n - 1))


for n in (3, 4, 6, 12, 32, 1000):
    print(f"{n:5d} scenes: mean ± {reach(n):.2f} standard errors")

# %% [markdown]
# Is that true? We try it. Let a large number of scenes stand for *all* scenes. Their mean is then
# known, and we can act out a thousand courses, each of which looks at a few scenes only. The score:
# how far the photos themselves are from the truth.

# %% tags=["parameters"]
from stylenb.scores import truth_distance

all_count = 120  # scenes that stand for all
many = [draw_scene(10_000 + i, size).picture for i in range(all_count)]
everything = truth_distance(many, [apply_style(style, p, i) for i, p in enumerate(many)])
true_mean = everything.mean()
random = torch.Generator().manual_seed(0)


def courses(n, how_many=1000):
    """Means and standard errors (how_many,) of courses that look at n scenes each."""
    chosen = torch.randint(len(everything), (how_many, n), generator=random)
    drawn = everything[chosen]
    return drawn.mean(1), drawn.std(1) / n**0.5


print(f"all {len(everything)} scenes: {true_mean:.3f}. Intervals that hold it:")
for n in (4, 12, 48):
    centre, error = courses(n)
    off = (centre - true_mean).abs()
    shares = [float((off <= k * error).float().mean()) for k in (1, 2, reach(n))]
    print(f"{n:3d} scenes: ± 1 error {shares[0]:.0%}   ± 2 {shares[1]:.0%}   t {shares[2]:.0%}")

# %%
centre, error = courses(12, 30)
half = reach(12) * error
missed = (centre - true_mean).abs() > half
figure = show.figure(
    6.5,
    2.4,
    "Thirty courses with twelve scenes each",
    alt="Thirty vertical intervals around a dotted line, the mean of all scenes. Most of them "
    f"cross it; {int(missed.sum())} do not and are red.",
)
axes = figure.subplots()
for i in range(len(centre)):
    colour = "#c0553b" if missed[i] else "#4f7cac"
    axes.errorbar(i, centre[i], half[i], fmt="o", color=colour, markersize=3, capsize=2)
axes.axhline(float(true_mean), color="black", linestyle=":", linewidth=1)
axes.set_xlabel("course")
axes.set_ylabel("distance of the photos")
print(f"{int(missed.sum())} of {len(centre)} miss the mean of all scenes")
figure

# %% [markdown]
# **What it means.** *Mean ± standard error* holds the true mean about two times in three; people
# who print it without saying so look surer than they are. ± 2 is a good rule with a dozen scenes
# and too little with four. And every twentieth interval is wrong even if all is done right. Whose?
# You never know. If you look at twenty scores, expect one to mislead you.
#
# There is a way without any formula, the **bootstrap** (Efron 1979,
# https://doi.org/10.1214/aos/1176344552): draw N scenes out of your own N, with repeats, again and
# again, and see how the mean moves.

# %%
again = values[torch.randint(count, (5000, count), generator=random)].mean(1)
low, high = again.quantile(torch.tensor([0.025, 0.975])).tolist()
half = reach(count) * float(standard_error(values))
print(f"bootstrap   {low:.3f} to {high:.3f}")
print(f"Student's t {values.mean() - half:.3f} to {values.mean() + half:.3f}")

# %% [markdown]
# The two should be close. With few scenes the bootstrap comes out a little narrower, because it
# takes the spread of your few for the spread of all; t allows for the doubt about that.
#
# ### Two methods on the same scenes
# Is a slightly softer LoRA, at scale 0.8, nearer to the truth than at 1, or further away? First the
# usual way: two intervals, and see whether they overlap.

# %%
set_scale(base, name, 0.8)
softer = truth_distance(redraw(), truths)
set_scale(base, None)


def ends(values):
    """Both ends of the interval of the mean."""
    half = reach(len(values)) * float(standard_error(values))
    return float(values.mean()) - half, float(values.mean()) + half


(low1, high1), (low2, high2) = ends(values), ends(softer)
overlap = low1 <= high2 and low2 <= high1
print(f"scale 1:   {low1:.3f} to {high1:.3f}")
print(f"scale 0.8: {low2:.3f} to {high2:.3f}")
print("they overlap" if overlap else "they do not overlap")

# %% [markdown]
# Intervals that do **not** overlap show a difference, by a strict rule. Intervals that overlap show
# nothing, *neither way*. Most of their width is the scenes: some are hard for
# everybody. But both methods had the *same* scenes. So compare scene by scene, and let what they
# have in common cancel.
#
# ### Exercise 3: paired interval
# Take the difference a − b for every scene. Of these N numbers: the mean, minus and plus so many
# standard errors as `errors` says. `standard_error` from exercise 2 is at hand; `torch.stack([low,
# high])` puts two numbers into one tensor.


# %% tags=["exercise"]
def paired_interval(a, b, errors):
    """Scores of the same N scenes (N,) and (N,), a number -> both ends of the interval (2,)."""
    return ...  # your code


# %% tags=["solution"]
def paired_interval(a, b, errors):
    """Scores of the same N scenes (N,) and (N,), a number -> both ends of the interval (2,)."""
    difference = a - b
    half = errors * standard_error(difference)
    return torch.stack([difference.mean() - half, difference.mean() + half])


# %% tags=["check"]
paired_interval = lesson_07.check("paired_interval", paired_interval)

# %% [markdown]
# <details><summary>Hint 1</summary>First <code>difference = a - b</code>. From here on there is one
# list of numbers only.</details>
# <details><summary>Hint 2</summary>Half of the interval is <code>errors *
# standard_error(difference)</code>.</details>
# <details><summary>Hint 3</summary><code>torch.stack([difference.mean() - half, difference.mean() +
# half])</code></details>

# %%
low, high = paired_interval(softer, values, reach(count)).tolist()
print(f"scale 0.8 minus scale 1, scene by scene: {low:+.3f} to {high:+.3f}")
if low <= 0 <= high:
    print("0 is in it: these scenes cannot tell the two apart")
else:
    print(f"0 is not in it: scale {'0.8' if high < 0 else '1'} is nearer to the truth")

apart = float((values.var() / count + softer.var() / count) ** 0.5)
together = float(standard_error(softer - values))
alike = float(correlation(values, softer))
print(f"\nerror of the difference: as if the scenes were different {apart:.4f}, in pairs ", end="")
print(f"{together:.4f}\ncorrelation of the two over the scenes: {alike:.2f}")

# %% [markdown]
# The correlation says how much the pairs help: near 1, what is hard for one is hard for the other,
# and nearly all of it cancels. Pairs cost nothing but the care to use the same scenes, in the same
# order, from the same start. (If the pairs say nothing either, the two scales may just be equally
# good. Section 5 has many pairs of settings that overlap and still can be told apart.)
#
# ### How many scenes?
# The error falls with the root of N. So half the interval takes *four times* the scenes. How many
# it takes to see a difference of a certain size can be estimated from a first few:


# %%
def scenes_for(error, wanted):
    """How many scenes for an interval of `wanted` to each side; error: that of our `count`."""
    n = 3
    while reach(n) * error * (count / n) ** 0.5 > wanted:
        n += 1
    return n


print("scenes for an interval that just keeps off 0:")
for share in (0.02, 0.05, 0.1):
    wanted = share * float(values.mean())
    print(
        f"a difference of {share:.0%}: {scenes_for(apart, wanted):6d} unpaired, "
        f"{scenes_for(together, wanted):5d} in pairs"
    )

# %% [markdown]
# **What it means.** A large difference shows on a handful of scenes. For small ones it takes
# hundreds, or pairs. (With just so many, a difference of this size is found in half of all tries;
# take twice as many to be fairly sure of it.) Before you believe in a table that ranks methods by
# their third digit, ask how many scenes stand behind it. And these scenes are all *from one world*:
# no number of them says how a cat will fare. Section 8 looks at photographs.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Are scores normally distributed, as t wants?* Hardly. For means of a dozen it matters little;
#   the try-out with a thousand courses used real scores, not a bell curve. For the judge, whose
#   values are near 0 or 1, count successes instead.
# - *What about the seeds of the noise?* The default of the pocket base draws none. Where noise is
#   drawn, every scene has a seed of its own, so that its chance is part of the scatter over scenes.
# - *And another training run?* That is a source of chance that no number of scenes covers: here is
#   one LoRA, not LoRAs in general. Train three with other seeds and see.

# %% [markdown]
# ## 5. Content against style
#
# Turn a knob further, and there is more style and less content, up to a point; too far, and the
# style goes again. So no single number says how good a method is; a **curve** does. LoRA has two
# knobs, strength and scale. We redraw all scenes at all pairs of them.

# %%
strengths = sorted({0.3, 0.5, 0.7, 0.9, base.default_strength})
scales = [0.5, 1.0, 1.5]


def row_of(pictures, **knobs):
    """A row of the sweep: the knobs, the pictures, and their scores (N,)."""
    return {**knobs, "pictures": pictures, **measure(pictures, scenes, style, truth=truths)}


sweep = []
for scale in scales:
    set_scale(base, name, scale)
    sweep += [row_of(redraw(s), strength=s, scale=scale) for s in strengths]
set_scale(base, None)

print(f"{len(sweep)} settings × {count} scenes")
for row in sweep:
    print(
        f"strength {row['strength']:.1f}, scale {row['scale']:.1f}: "
        + "   ".join(f"{score} {row[score].mean():.3f}" for score in ("edges", "truth", "judge"))
    )

# %% [markdown]
# Which of these is best? One that keeps as much and is as near to the truth as another, and does
# better in one of the two, **beats** it, and nobody needs the other. What is left over, beaten by
# nobody, is the **Pareto set**: the settings among which one has to choose by taste, since each
# buys one thing with the other.
#
# ### Exercise 4: who is unbeaten?
# `points` has a row for each setting and a column for each score, where smaller is better. One
# point beats another if it is nowhere worse (`<=` in *all* columns) and somewhere better (`<` in
# *any* column). Which points are beaten by no other? With `points[:, None]` and `points[None]`,
# torch compares every point with every other: shape (N, N, K).


# %% tags=["exercise"]
def unbeaten(points):
    """points (N, K), smaller is better -> True for those that no other one beats, (N,)."""
    return ...  # your code


# %% tags=["solution"]
def unbeaten(points):
    """points (N, K), smaller is better -> True for those that no other one beats, (N,)."""
    one, other = points[:, None], points[None]
    beaten = (other <= one).all(2) & (other < one).any(2)
    return ~beaten.any(1)


# %% tags=["check"]
unbeaten = lesson_07.check("unbeaten", unbeaten)

# %% [markdown]
# <details><summary>Hint 1</summary><code>one, other = points[:, None], points[None]</code>; then
# <code>other &lt;= one</code> is True where the other is not worse.</details>
# <details><summary>Hint 2</summary><code>.all(2)</code> and <code>.any(2)</code> look along the
# scores; <code>&amp;</code> joins the two conditions.</details>
# <details><summary>Hint 3</summary>A point is out if <code>.any(1)</code> of the others beats it;
# <code>~</code> turns True and False round.</details>

# %%
from stylenb.scores import pareto

points = torch.stack([torch.stack([-row["edges"].mean(), row["truth"].mean()]) for row in sweep])
best = unbeaten(points)
print("points", tuple(points.shape), "of them unbeaten:", int(best.sum()))
print("the same as the library's:", sorted(pareto(points)) == best.nonzero().flatten().tolist())


def scatter(axes, row, colour, mark="o", label=None, score="truth"):
    """A setting with its standard errors."""
    axes.errorbar(
        float(row["edges"].mean()),
        float(row[score].mean()),
        float(standard_error(row[score])),
        float(standard_error(row["edges"])),
        fmt=mark,
        color=colour,
        markersize=4,
        elinewidth=0.7,
        label=label,
    )


figure = show.figure(
    6.5,
    3.4,
    "LoRA: what is kept, and how near the truth is",
    alt="Points with error bars, one line for each scale: to the right more of the photo is kept, "
    "further down the truth is nearer. Settings that no other one beats have a ring; the default "
    "is a star. A dotted line marks how much the truth itself keeps.",
)
axes = figure.subplots()
for scale, colour in zip(scales, ("#9db4c0", "#4f7cac", "#1d3557")):
    rows = [row for row in sweep if row["scale"] == scale]
    for row in rows:
        scatter(axes, row, colour, label=f"scale {scale}" if row is rows[0] else None)
    line = [[float(row[score].mean()) for row in rows] for score in ("edges", "truth")]
    axes.plot(*line, color=colour, linewidth=1)
for row in (row for row, kept in zip(sweep, best) if kept):
    place = float(row["edges"].mean()), float(row["truth"].mean())
    axes.plot(*place, "o", markersize=10, markerfacecolor="none", color="#c0553b")
default = next(
    row for row in sweep if row["strength"] == base.default_strength and row["scale"] == 1.0
)
place = float(default["edges"].mean()), float(default["truth"].mean())
axes.plot(*place, "*", markersize=14, color="#f2c14e", markeredgecolor="black", label="default")
truth_keeps = float(found["the truth"]["edges"].mean())
axes.axvline(truth_keeps, color="black", linewidth=0.8, linestyle=":", label="the truth keeps")
axes.set_xlabel("kept: agreement of edges")
axes.set_ylabel("distance to the truth")
axes.legend(fontsize=8)
axes.grid(alpha=0.3)
figure

# %% [markdown]
# (The bars are standard errors.) The dotted line is what the truth keeps. Far to the right of it,
# more that is kept is no longer better, but style that is missing.
#
# Where does the default lie, the strength and scale that you get without saying anything?

# %%
verdicts = {}
for score, sign in (("truth", 1), ("pixels", 1), ("judge", -1)):
    pairs = [torch.stack([-row["edges"].mean(), sign * row[score].mean()]) for row in sweep]
    here = sweep.index(default)
    beats = [
        i
        for i, pair in enumerate(pairs)
        if bool((pair <= pairs[here]).all() and (pair < pairs[here]).any())
    ]
    verdicts[score] = "yes"
    print(f"kept and {score}: ", end="")
    if not beats:
        print("no other setting beats the default")
        continue
    most = max(beats, key=lambda i: sign * float((default[score] - sweep[i][score]).mean()))
    low, high = (paired_interval(default[score], sweep[most][score], reach(count)) * sign).sort()[0]
    print(f"the default is beaten by {len(beats)}, most by strength {sweep[most]['strength']:g}, ")
    print(f"    scale {sweep[most]['scale']:g}, by {low:.3f} to {high:.3f} ", end="")
    print("(more than chance)" if low > 0 else "(0 is in it: perhaps by chance)")
    verdicts[score] = "no" if low > 0 else "not in the mean, perhaps by chance"

# %% [markdown]
# *Beaten* here means: in the mean of these scenes. Whether the lead is more than chance, the paired
# interval says. And a default has to do for all styles at once; one that suits yours better may
# well exist.
#
# How often would overlapping intervals have misled us? All pairs of settings:

# %%
overlapping = certain = 0
for i, one in enumerate(sweep):
    for other in sweep[:i]:
        (low1, high1), (low2, high2) = ends(one["truth"]), ends(other["truth"])
        low, high = paired_interval(one["truth"], other["truth"], reach(count)).tolist()
        if low1 <= high2 and low2 <= high1:
            overlapping += 1
            certain += low > 0 or high < 0
print(f"{overlapping} pairs of settings have intervals that overlap;")
print(f"for {certain} of these the paired interval keeps off 0")

# %% [markdown]
# Numbers alone lie. All these pictures are at hand, so walk along the curve with the sliders. (On a
# page that only shows the notebook, you see one picture and no menus.)


# %%
def draw(scene, strength, scale):
    row = next(r for r in sweep if r["strength"] == strength and r["scale"] == scale)
    said = f"kept {row['edges'][scene]:.2f}, truth {row['truth'][scene]:.2f}"
    return show.sheet(
        [scenes[scene], row["pictures"][scene], truths[scene]],
        ["scene", said, "the truth"],
        width=1.5,
        title=f"strength {strength}, scale {scale}",
        alt=f"A scene, redrawn at strength {strength} and scale {scale}, and its true rendering.",
    )


others_first = [s for s in strengths if s != base.default_strength]
show.interactive(
    draw,
    scene=(0, count - 1, 1, 1),
    strength=[base.default_strength, *others_first],
    scale=[1.0, 0.5, 1.5],
)

# %% [markdown]
# ## 6. The other methods
#
# A curve by itself proves nothing: *compared with what?* The others get the same scenes, the same
# style pictures and the same scores.
#
# - **photo as it is**: nothing done. What is no better than this has failed.
# - **img2img**: the base alone, without the LoRA. It shows what redrawing does by itself.
# - **colours**: the photo with the palette of the style. Quick, old, and hard to beat at a glance.
# - **Gatys**: section 3.
# - **latent AdaIN**: mean and spread of each latent channel become those of the style (Huang and
#   Belongie 2017, https://arxiv.org/abs/1703.06868, do it in the features of a network).
# - **DreamBooth**: lesson 05. The whole model is trained instead of a LoRA, on a token.
#
# DreamBooth first, in short: a third of the steps that the shipped LoRA had. So it is no fair
# race; lesson 05 has that. (Nor can the seconds be compared: that LoRA was trained on a GPU.)

# %%
from stylenb.dreambooth import (
    DreamBoothSettings,
    save_dreambooth,
    train_dreambooth,
    undo_dreambooth,
)

remove_lora(base, name)
short = DreamBoothSettings.for_base(base, steps=100, num_class_images=16)
history = train_dreambooth(base, style_pictures, short)
print(f"DreamBooth ({short.train}): {len(history.rows)} steps in {history.seconds:.0f} s")
print(f"the LoRA's file says: trained for {about.get('seconds', 'an unknown number of')} s")

with_prompt = base.with_prompt(short.prompt)
curves = {"LoRA": [row for row in sweep if row["scale"] == 1.0]}
curves["DreamBooth"] = [row_of(redraw(s, with_prompt), strength=s) for s in strengths]
folder = Path(tempfile.mkdtemp())
dreambooth_file = save_dreambooth(base, folder / "dreambooth.safetensors")  # for section 9
undo_dreambooth(base)

# %%
from stylenb.course.baselines import BASELINES, encode_and_decode

kept_whole = encode_and_decode(base, scenes)  # what strength 0 is, for methods that draw
curves["photo as it is"] = [row_of(scenes, strength=0.0)]
curves["img2img"] = [row_of(kept_whole, strength=0.0)]
curves["img2img"] += [row_of(redraw(s), strength=s) for s in strengths]
for method in ("colours", "latent AdaIN"):
    one = BASELINES[method]
    curves[method] = [
        row_of(one.draw(scenes, style_pictures, s, base), strength=s) for s in one.strengths
    ]
curves["Gatys"] = gatys_curve
for method, rows in curves.items():
    print(f"{method:15s} {len(rows)} settings")

# %% [markdown]
# One thing more: what could *anything* reach that draws in latents? At best the latents of the
# truth. What the autoencoder makes of these is the **limit** (lesson 01).

# %%
limit = row_of(encode_and_decode(base, truths))
colours = {
    "LoRA": "#1d3557",
    "DreamBooth": "#c0553b",
    "photo as it is": "black",
    "img2img": "#8a8a8a",
    "colours": "#f2c14e",
    "latent AdaIN": "#6aa084",
    "Gatys": "#9b6fb0",
}
figure = show.figure(
    8,
    3.8,
    "Everything against the truth",
    alt="Two panels, the distance to the truth as the judge's network sees it and in pixels, over "
    "what is kept of the photo. Each method is a line of points with error bars: LoRA, DreamBooth, "
    "img2img, colours, latent AdaIN, Gatys, and the photo as one point. A dotted line marks the "
    "limit of the autoencoder, a star the LoRA's default.",
)
witnesses = {"truth": "as the judge's network sees it", "pixels": "in pixels"}
for axes, (score, by) in zip(figure.subplots(1, 2), witnesses.items()):
    for method, rows in curves.items():
        for row in rows:
            scatter(
                axes, row, colours[method], label=method if row is rows[0] else None, score=score
            )
        line = [[float(row[which].mean()) for row in rows] for which in ("edges", score)]
        axes.plot(*line, color=colours[method], linewidth=1)
    place = float(default["edges"].mean()), float(default[score].mean())
    axes.plot(
        *place, "*", markersize=13, color="#f2c14e", markeredgecolor="black", label="LoRA's default"
    )
    axes.axhline(
        float(limit[score].mean()), color="black", linestyle=":", linewidth=1, label="limit"
    )
    axes.set_title(f"distance to the truth {by}", fontsize=9)
    axes.set_xlabel("kept")
    axes.grid(alpha=0.3)
    axes.set_ylim(0)
axes.legend(fontsize=7)
figure

# %% [markdown]
# The best corner is at the bottom right. But what does a picture prove in which one method keeps
# 0.5 and another 0.8? They can only be compared **where they keep equally much**: draw a vertical
# line through the star, and see where each curve crosses it. Seldom does a setting lie exactly
# there, so we go along the straight line between two neighbours. A curve that ends to the right of
# the line gives up less of the photo than the LoRA does at its default; it may be taken at its best
# point.
#
# ### Exercise 5: at equal content
# Two settings of a method keep `kept_a` and `kept_b` on average, and have the scores `score_a` and
# `score_b`, one for each scene. What scores would it have where it keeps `content`?


# %% tags=["exercise"]
def at_content(kept_a, kept_b, score_a, score_b, content):
    """Two numbers, two scores (N,), a number between the first two -> scores (N,)."""
    return ...  # your code


# %% tags=["solution"]
def at_content(kept_a, kept_b, score_a, score_b, content):
    """Two numbers, two scores (N,), a number between the first two -> scores (N,)."""
    share = (content - kept_a) / (kept_b - kept_a)
    return (1 - share) * score_a + share * score_b


# %% tags=["check"]
at_content = lesson_07.check("at_content", at_content)

# %% [markdown]
# <details><summary>Hint 1</summary>How far along is it? At <code>kept_a</code> the share should be
# 0, at <code>kept_b</code> it should be 1.</details>
# <details><summary>Hint 2</summary><code>share = (content - kept_a) / (kept_b - kept_a)</code>
# </details>
# <details><summary>Hint 3</summary><code>(1 - share) * score_a + share * score_b</code>, as in
# lesson 01's mix.</details>

# %% [markdown]
# `at_equal_content` does this for a whole curve. Of all points that keep at least as much as asked,
# it takes the one nearest to the truth. So each method gets the setting that is best *for it*,
# chosen with the truth in view; the LoRA gets its default and no choice. That is on purpose. If it
# wins like this, it wins.

# %%
from stylenb.scores import at_equal_content

content = float(default["edges"].mean())
one, other = curves["colours"][0], curves["colours"][-1]
ends_kept = float(one["edges"].mean()), float(other["edges"].mean())
middle = sum(ends_kept) / 2
ours = at_content(*ends_kept, one["truth"], other["truth"], middle).mean()
theirs = at_equal_content([one, other], middle)["truth"].mean()
print(f"half way between the first and the last setting of colours: {ours:.4f}")
print(f"the library's best at that content or more:                 {theirs:.4f}")


def compare(content, lora_row, curves, score):
    """Print every method at equal content, and what the pairs say; return the three groups."""
    level = 1 - 0.05 / len(curves)  # so many chances to be misled: each gets its share of 5 %
    groups = {"nearer than": [], "not told apart from": [], "further away than": []}
    for method, rows in curves.items():
        point = at_equal_content(rows, content, score=score)
        low, high = paired_interval(lora_row[score], point[score], reach(count, level)).tolist()
        group = list(groups)[0 if high < 0 else 2 if low > 0 else 1]
        groups[group].append(method)
        print(
            f"{method:15s} at {point['strength']:.2f}, keeps {point['edges'].mean():.2f}: "
            f"{point[score].mean():.3f} ± {standard_error(point[score]):.3f}   "
            f"LoRA minus it {low:+.3f} to {high:+.3f}"
        )
    for group, methods in groups.items():
        print(f"  by {score} the LoRA is {group}: {', '.join(methods) or 'nobody'}")
    return groups


# %% [markdown]
# **Predict:** which method comes nearest to the LoRA, and by which score is it closer?

# %%
rivals = {method: rows for method, rows in curves.items() if method != "LoRA"}
results = {}
print("after ± the standard error; the intervals are of differences in pairs\n")
for score in ("truth", "pixels"):
    print(
        f"{score}: LoRA at its default keeps {content:.2f}: {default[score].mean():.3f} ± "
        f"{standard_error(default[score]):.3f}   limit {limit[score].mean():.3f}"
    )
    results[score] = compare(content, default, rivals, score)
    print()

wins = [set(groups["nearer than"]) for groups in results.values()]
print("nearer by both:", ", ".join(sorted(wins[0] & wins[1])) or "nobody")
print("clear win over all of them:", all(len(won) == len(rivals) for won in wins))

# %% [markdown]
# That is the verdict, whatever it is in your run. How to read it:
#
# - *Nearer* by one score and not by the other is **not** a win. Section 2 showed that each of them
#   can be fooled.
# - Several comparisons were made at once, so each interval is wider than one of 95 %. With the
#   usual ones, many such tables would hold a false win or loss somewhere.
# - Every method keeps at least as much as the LoRA, and many keep more: some cannot give up more,
#   and some are nearest to the truth where they do nothing (*at 0.00*). Look at the column *keeps*:
#   a method that keeps much more has drawn much less.
# - Scenes that were looked at while a method was tuned count for less. The LoRA's settings were
#   chosen on other scenes, of the same kind.
#
# How much of the way is done? From the photo to the limit is all that can be gone.

# %%
for score in ("truth", "pixels"):
    start, end = curves["photo as it is"][0][score].mean(), limit[score].mean()
    gone = (start - default[score].mean()) / (start - end)
    print(
        f"{score:7s} photo {start:.3f} -> LoRA {default[score].mean():.3f}, limit {end:.3f}: ",
        end="",
    )
    print(f"{gone:.0%} of the way")

# %%
nearest = {"scene": scenes, "LoRA": default["pictures"]}
for method, rows in rivals.items():
    if method != "photo as it is":
        where = at_equal_content(rows, content)["strength"]
        nearest[method] = min(rows, key=lambda row: abs(row["strength"] - where))["pictures"]
nearest |= {"limit": limit["pictures"], "the truth": truths}
picked = list(range(count))[:3]
show.sheet(
    [pictures[i] for i in picked for pictures in nearest.values()],
    list(nearest),
    columns=len(nearest),
    width=0.85,
    title="All methods where they keep at least as much as the LoRA",
    alt="Three scenes in rows: the scene, LoRA, DreamBooth, img2img, colours, latent AdaIN and "
    "Gatys, each near the best of its settings that keep as much as the LoRA or more, then the "
    "true rendering after the autoencoder, and the truth.",
)

# %% [markdown]
# Do you agree with the table? If a method looks better to you than its number, find out which of
# the two is mistaken, and about what.
#
# ### Another style
# One style is an anecdote. A second one, without training, in short:

# %%
second = "stained_glass"
other_truths = [apply_style(second, scene, seed) for seed, scene in enumerate(scenes)]
other_pictures = read_folder(DATA / "styles" / second, size).pictures


def other_row(pictures, strength):
    scored = measure(pictures, scenes, second, truth=other_truths)
    return {"strength": strength, "pictures": pictures, **scored}


# What does not look at the style draws the same as before, and is only scored anew.
other_curves = {
    method: [other_row(row["pictures"], row["strength"]) for row in curves[method]]
    for method in ("photo as it is", "img2img")
}
for method in ("colours", "latent AdaIN", "Gatys"):
    one, how = BASELINES[method], {"steps": gatys_steps} if method == "Gatys" else {}
    other_curves[method] = [
        other_row(one.draw(scenes, other_pictures, s, base, **how), s) for s in one.strengths
    ]
other_name = load_lora(base, second)  # on "sd15": a path
set_scale(base, other_name, 1.0)
other_default = other_row(redraw(), base.default_strength)
remove_lora(base, other_name)

other_content = float(other_default["edges"].mean())
other_results = {}
for score in ("truth", "pixels"):
    print(
        f"{second}, {score}: LoRA keeps {other_content:.2f}: {other_default[score].mean():.3f} ± "
        f"{standard_error(other_default[score]):.3f}"
    )
    other_results[score] = compare(other_content, other_default, other_curves, score)
    print()

# %%
show.sheet(
    [*scenes[:shown], *other_default["pictures"][:shown], *other_truths[:shown]],
    ["scene"] * shown + ["LoRA"] * shown + ["the truth"] * shown,
    columns=shown,
    width=0.85,
    title=f"{second}: the scenes, the LoRA, and the truth",
    alt=f"Three rows: landscapes, the same redrawn by the LoRA {second}, and the truth.",
)

# %% [markdown]
# **What it means.** Compare with the first style. This one has large shapes of its own, panes with
# leads between them, and colours of its own too. Look for both in the middle row: the leads are
# there, many of them in long lines, and the colours are often wrong. The scores say the same: by
# `truth` the LoRA is nearer than the photo, by `pixels` that is not certain, and latent AdaIN is
# not beaten by either. And it keeps little of the scene: this LoRA brings a `guidance_scale` above
# 1 (lesson 06). (All of this lesson is at 128 px; the benchmark that is quoted next is at 256 px,
# where the marks are finer beside the scene.)

# %%
card = DATA / "benchmark.md"
said = card.read_text("utf-8").splitlines() if card.exists() else []
said = [line for line in said if "the LoRA is nearer than every baseline" in line]
if said:
    print("All held-out styles with more scenes are in data/benchmark.md, which says:")
    print("\n".join(said))
else:
    print("`python data/bench.py truth pareto` does this for all held-out styles, with more")
    print("scenes, and takes its time.")

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Is it fair that the LoRA may train and the others may not?* The question is what the result is
#   worth, not the effort. If effort matters, put seconds on the axis instead of what is kept.
# - *Why is `photo as it is` not always last?* A style that changes little leaves the photo near its
#   truth. Whoever does much and wrongly is further off than who does nothing.
# - *Could the LoRA be tuned to win by these scores?* Yes, and then they would be spent, as `gram`
#   is. A score that one tunes by turns into a loss, only a slow one.

# %% [markdown]
# ## 7. Which setting to ship?
#
# The curve leaves a choice, and a limit makes it: *of the settings that keep at least so much, the
# one nearest to the truth*.
#
# ### Exercise 6: to ship
# `kept` and `distance` have one number for each setting. Return the place of the best one among
# *all* settings. If none keeps enough, take the one that keeps most.


# %% tags=["exercise"]
def to_ship(kept, distance, least):
    """kept (N,), distance (N,), a number -> the index of a setting, 0 .. N - 1."""
    return ...  # your code


# %% tags=["solution"]
def to_ship(kept, distance, least):
    """kept (N,), distance (N,), a number -> the index of a setting, 0 .. N - 1."""
    enough = kept >= least
    if not enough.any():
        return int(kept.argmax())
    return int(distance.masked_fill(~enough, math.inf).argmin())


# %% tags=["check"]
to_ship = lesson_07.check("to_ship", to_ship)

# %% [markdown]
# <details><summary>Hint 1</summary><code>enough = kept &gt;= least</code> is True for the settings
# that may be shipped. <code>enough.any()</code> says whether there is one.</details>
# <details><summary>Hint 2</summary>Give the others a distance that never wins:
# <code>distance.masked_fill(~enough, math.inf)</code>.</details>
# <details><summary>Hint 3</summary><code>int(....argmin())</code> of that; and
# <code>int(kept.argmax())</code> where there is none.</details>

# %%
kept = torch.stack([row["edges"].mean() for row in sweep])
distance = torch.stack([row["truth"].mean() for row in sweep])
for least in (0.4, 0.5, 0.6, 0.7, 0.8):
    row = sweep[to_ship(kept, distance, least)]
    print(
        f"keep {least}: strength {row['strength']:.1f}, scale {row['scale']:.1f} keeps "
        f"{row['edges'].mean():.2f}, truth {row['truth'].mean():.3f}"
    )

# %% [markdown]
# There is a trap in this. The best of many settings is in part the luckiest of them, and its number
# is too good. So choose on some scenes and report on **others**:

# %%
half = count // 2
least = float(default["edges"].mean()) - 0.02
kept = torch.stack([row["edges"][:half].mean() for row in sweep])
distance = torch.stack([row["truth"][:half].mean() for row in sweep])
chosen = sweep[to_ship(kept, distance, least)]
on_others = torch.stack([row["truth"][half:].mean() for row in sweep])
allowed = torch.stack([row["edges"][half:].mean() for row in sweep]) >= least
rank = int((on_others[allowed] < chosen["truth"][half:].mean()).sum()) + 1
print(f"chosen on {half} scenes: strength {chosen['strength']:.1f}, scale {chosen['scale']:.1f}")
lead = default["truth"] - chosen["truth"]
print(
    f"ahead of the default where it was chosen by {lead[:half].mean():+.3f}, "
    f"on the other scenes by {lead[half:].mean():+.3f}"
)
print(f"on the others, {rank - 1} of {int(allowed.sum())} settings that keep enough are nearer")

# %% [markdown]
# Is the lead smaller on the other scenes, or gone? Then that part of it was luck. If it has grown,
# that is luck as well: six scenes are few.

# %% [markdown]
# ## 8. Look again
#
# Means hide the failures. For each score, the scene on which the LoRA does best and the one on
# which it does worst:

# %%
pictures, titles = [], []
for score in ("truth", "pixels", "edges"):
    order = default[score].argsort(descending=score in more_is_better).tolist()
    for label, i in (("best", order[0]), ("worst", order[-1])):
        pictures += [scenes[i], default["pictures"][i], truths[i]]
        titles += [f"{label} by {score}", f"{default[score][i]:.2f}", "the truth"]
show.sheet(
    pictures,
    titles,
    columns=6,
    width=0.95,
    title="Best and worst scene by each score",
    alt="Three rows, by truth, pixels and edges. Each has the scene that the score likes "
    "best, what the LoRA made of it and the truth, then the same of the scene that it likes least.",
)


# %%
def ranks(values):
    """The place of each value when they are sorted, 0 is the best."""
    return values.argsort().argsort().float()


compared = ["truth", "pixels", "edges", "judge"]
better = {s: ranks(default[s] * (-1 if s in more_is_better else 1)) for s in compared}
print("do the scores agree which scenes came out well? (1: the same order, 0: unrelated)")
print(f"{'':8s}" + "".join(f"{score:>8s}" for score in compared))
for one in compared:
    agree = [float(correlation(better[one], better[other])) for other in compared]
    print(f"{one:8s}" + "".join(f"{value:8.2f}" for value in agree))

# %% [markdown]
# **What it means.** Where the numbers are small, the scores see different things, and a scene that
# is good by one need not be by another. (With a dozen scenes, trust only large differences. Where
# the judge is sure of all of them, its order means nothing.) Compare with your own count from
# section 1: which of the scores counts like you?
#
# ### Photographs
# All scenes so far were drawn by the same code. The style is a function, so the truth exists for a
# photograph as well. (Crops of these photographs were among the training pictures of the pocket
# UNet, in the styles that it knows, never in this one. The autoencoder has seen them in all
# styles.)

# %%
photos = [sample_photo(one, size) for one in ("chelsea", "coffee", "astronaut", "rocket")]
photo_truths = [apply_style(style, photo, i) for i, photo in enumerate(photos)]
name = load_lora(base, lora)
set_scale(base, name, 1.0)
drawn = redraw_photos(base, photos, seed=range(len(photos)))
set_scale(base, None)
photo_limit = encode_and_decode(base, photo_truths)

on_photos = {
    "photo": measure(photos, photos, style, truth=photo_truths),
    "LoRA": measure(drawn, photos, style, truth=photo_truths),
    "limit": measure(photo_limit, photos, style, truth=photo_truths),
}
on_scenes = {"photo": curves["photo as it is"][0], "LoRA": default, "limit": limit}
print("mean ± standard error")
for where, table in (("photographs", on_photos), ("scenes", on_scenes)):
    for label, row in table.items():
        print(
            f"{where:12s} {label:6s}"
            + "".join(
                f"  {score} {row[score].mean():.3f} ± {standard_error(row[score]):.3f}"
                for score in ("truth", "pixels", "judge")
            )
        )

show.sheet(
    [*photos, *drawn, *photo_limit, *photo_truths],
    ["photo"] * 4 + ["LoRA"] * 4 + ["limit"] * 4 + ["the truth"] * 4,
    columns=4,
    width=0.9,
    title="Photographs",
    alt="A cat, a cup of coffee, an astronaut and a rocket: as they are, redrawn by the LoRA, the "
    "truth after the autoencoder, and the truth.",
)

# %% [markdown]
# Is the LoRA's share of the way from photo to limit as large here as on the scenes? Four
# photographs are few; the ± says how few. What they can show is a kind of failure that the scenes
# do not have.
#
# With a style of your own there is no truth. Then you have content scores, a few pictures of the
# style held back, other people's eyes, and what you know now about all of these.

# %% [markdown]
# ## 9. What others claim
#
# The texts on LoRA and DreamBooth for which this course was written make claims, with numbers. Each
# of them can be asked: *what would have to be counted, and was it?* A claim gets its verdict from
# the numbers, by one rule: it **holds** if what is counted here lies in the range that it names.
#
# First the counting. Stable Diffusion v1.5 is built on the meta device, where a network has shapes
# and no numbers (lesson 03).

# %%
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from stylenb.device import kept_activations
from stylenb.dreambooth import trainable
from stylenb.lora import TARGETS
from stylenb.weights import SD15_SIZES

with torch.device("meta"):
    unet = UNet2DConditionModel(**SD15_SIZES["unet"])
    vae = AutoencoderKL(**SD15_SIZES["vae"])
    text = CLIPTextModel(CLIPTextConfig(**SD15_SIZES["text"]))


def numbers(parameters):
    return sum(p.numel() for p in parameters)


projections = [
    layer
    for where, layer in unet.named_modules()
    if where.endswith(TARGETS) and isinstance(layer, torch.nn.Linear)
]
lora_numbers = 4 * sum(sum(layer.weight.shape) for layer in projections)  # rank 4, lesson 03
whole = numbers([*unet.parameters(), *vae.parameters(), *text.parameters()])
dreambooth_numbers = {
    "the whole UNet": numbers(unet.parameters()),
    "with the text encoder": numbers([*unet.parameters(), *text.parameters()]),
    "attention only": numbers(trainable(unet, "attention").values()),
    "transformer blocks": numbers(trainable(unet, "transformer").values()),
}
print(f"LoRA, rank 4: {lora_numbers:,} in {len(projections)} projections")
for what, many_numbers in dreambooth_numbers.items():
    print(f"{what:22s} {many_numbers:,}")
print(f"the whole pipeline     {whole:,}")

# %% [markdown]
# Files: a LoRA of SD v1.5's real shapes can be written, as it is small. Of DreamBooth we wrote one
# of the base in section 6; it tells how many bytes a number takes.

# %%
from safetensors import safe_open
from safetensors.torch import save_file

lora_files = {}
for dtype in (torch.float32, torch.float16):
    tensors = {}
    for i, layer in enumerate(projections):
        outputs, inputs = layer.weight.shape
        tensors[f"{i}.lora_A"] = torch.zeros(4, inputs, dtype=dtype)
        tensors[f"{i}.lora_B"] = torch.zeros(outputs, 4, dtype=dtype)
    save_file(tensors, folder / "lora.safetensors")
    lora_files[str(dtype).removeprefix("torch.")] = (folder / "lora.safetensors").stat().st_size

with safe_open(dreambooth_file, "pt") as file:
    in_it = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())
bytes_each = dreambooth_file.stat().st_size / in_it
print("LoRA of SD v1.5, rank 4:", {kind: f"{n / 1e6:.2f} MB" for kind, n in lora_files.items()})
print(f"DreamBooth of this base: {bytes_each:.2f} bytes for each of {in_it:,} numbers")

# %% [markdown]
# Memory: for each trained number there are, in float32, the number, its gradient and two of
# AdamW's, 16 bytes; with an 8-bit AdamW 10. On top come the **activations**, what the forward pass
# keeps for the way back. Even those can be counted on the meta device, by the hook of lesson 05:
# torch calls it for every tensor that it keeps.


# %%
def run_unet(batch=1):
    """SD v1.5's UNet on the meta device, at 512 px -> its output."""
    with torch.device("meta"):
        noisy, prompt = torch.empty(batch, 4, 64, 64), torch.empty(batch, 77, 768)
        return unet(noisy, torch.ones(batch), prompt).sample


def activations(batch):
    """Bytes that one forward pass in float32 keeps for the way back."""
    with kept_activations(unet) as kept:
        run_unet(batch)
    return sum(kept.values())


unet.train()
plain = {batch: activations(batch) for batch in (1, 2)}
unet.enable_gradient_checkpointing()
frugal = activations(1)
unet.disable_gradient_checkpointing()

state = dreambooth_numbers["the whole UNet"]
memory = {
    "AdamW, batch 1": 16 * state + plain[1],
    "AdamW, batch 2": 16 * state + plain[2],
    "8-bit AdamW, checkpointing, batch 1": 10 * state + frugal,
}
for what, n in memory.items():
    print(f"full fine-tuning, {what:36s} {n / 1e9:5.1f} GB")
print(
    f"LoRA, rank 4, UNet in float16: {(2 * state + 16 * lora_numbers) / 1e9:.2f} GB + activations"
)

# %% [markdown]
# A real GPU will differ. The meta device keeps the matrices of the attention, which a fused kernel
# does not, and mixed precision halves what is kept; in return, the framework and the other parts of
# the pipeline come on top. So take these for sizes, not for the last gigabyte.

# %% [markdown]
# Speed, in two ways. Really **timed** in this run: a training step of a LoRA and one of the whole
# UNet, in turns, on the pocket base. And **counted** for SD v1.5: the work of each. The
# forward pass is the same for both. On the way back, whoever trains everything needs gradients for
# all weights too.

# %% tags=["parameters"]
import statistics
import time

from torch.utils.flop_counter import FlopCounterMode

from stylenb.lora import add_lora

pocket = stylenb.load("pocket", dtype=torch.float32)  # one that may be spoiled
side = pocket.unet.config.sample_size
noisy = torch.randn(4, 4, side, side, generator=torch.Generator().manual_seed(0))
noisy = noisy.to(pocket.device)
for_lora = add_lora(pocket, "timed", rank=4)
for_all = [p for key, p in pocket.unet.named_parameters() if ".lora_" not in key]


def seconds_of_step(parameters, scale):
    """One step of training these parameters."""
    pocket.unet.requires_grad_(False)
    set_scale(pocket, "timed" if scale else None)
    for p in parameters:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, 1e-6)
    start = time.perf_counter()
    pocket.predict_noise(noisy, 500).square().mean().backward()
    optimizer.step()
    float(parameters[0].sum())  # wait until it is done, on a GPU too
    taken = time.perf_counter() - start
    optimizer.zero_grad()
    return taken


repeats = 9
rounds = [(seconds_of_step(for_all, 0), seconds_of_step(for_lora, 1)) for _ in range(repeats)]
timed = statistics.median(full / small for full, small in rounds[1:])
print(f"pocket base: a step of everything takes {timed:.2f} times as long as one of the LoRA")


def work(word):
    """Floating-point operations of a step at 512 px that trains what has the word in its name."""
    for key, p in unet.named_parameters():
        p.requires_grad_(word in key)
    with FlopCounterMode(display=False) as counter:
        run_unet().sum().backward()
    unet.zero_grad()
    return counter.get_total_flops()


everything_trained = work("")
way_back = work("conv_in.bias")  # the very first: the way to it is that to a LoRA in all layers
counted = everything_trained / way_back
print(
    f"SD v1.5: {everything_trained / 1e12:.2f} against about {way_back / 1e12:.2f} TFLOP: ", end=""
)
print(f"{counted:.2f} times as much")

# %% [markdown]
# Now the table. What is quoted is *a claim of the reference material*, not of this course; the
# three at the end are the course's own, from sections 5 and 6.

# %%
from IPython.display import Markdown

ledger = []


def claim(text, computed, low, high, unit):
    """A claim that something lies from low to high; computed: name -> number."""
    within = [what for what, value in computed.items() if low <= value <= high]
    verdict = "**holds**" if len(within) == len(computed) else "**does not hold**"
    if 0 < len(within) < len(computed):
        verdict = f"**holds only for** {', '.join(within)}"
    listed = "; ".join(f"{what}: {value:.4g} {unit}" for what, value in computed.items())
    ledger.append((f"“{text}”", listed, verdict))


def unchecked(text, known, why):
    ledger.append((f"“{text}”", known, f"**can't be checked here**: {why}"))


MB, GB, million = 1e6, 1e9, 1e6
in_MB = {kind: n / MB for kind, n in lora_files.items()}
claim("LoRA of rank 4 trains 4-8 M parameters", {"rank 4": lora_numbers / million}, 4, 8, "M")
claim("its file is 4-8 MB", in_MB, 4, 8, "MB")
claim("its file is 10-20 MB", in_MB, 10, 20, "MB")
claim("full fine-tuning trains 860 M", {"UNet": state / million}, 855, 865, "M")
in_GB = {what: n / GB for what, n in memory.items()}
claim("full fine-tuning needs about 24 GB", in_GB, 22, 26, "GB")
in_M = {what: n / million for what, n in dreambooth_numbers.items()}
claim("DreamBooth trains 100-200 M parameters", in_M, 100, 200, "M")
checkpoints = {
    "UNet, float16": bytes_each * state,
    "pipeline, float16": bytes_each * whole,
    "UNet, float32": 2 * bytes_each * state,
    "pipeline, float32": 2 * bytes_each * whole,
}
in_GB = {what: n / GB for what, n in checkpoints.items()}
claim("a DreamBooth checkpoint is 2-3 GB", in_GB, 2, 3, "GB")
ratios = {"a step, timed on the pocket base": timed, "a step, counted for SD v1.5": counted}
claim("LoRA trains 10-20 times faster", ratios, 10, 20, "times")
slowest = 1000 * way_back / (3 * 3600) / 1e12
unchecked(
    "LoRA takes 2-3 h and DreamBooth 4-6 h on a T4",
    f"1,000 steps of the LoRA in 3 h would be {slowest:.2f} TFLOP a second; NVIDIA's data sheet "
    "(quoted) gives a T4 8.1 in float32",
    "it takes a T4 and a day, and depends on steps, size and batch, which the claim leaves out",
)
kernels = torch.cuda.get_arch_list() if torch.cuda.is_available() else []
if kernels:
    claim("it runs on a P100", {"kernels for it (sm_60)": kernels.count("sm_60")}, 1, 1, "")
else:
    unchecked("it runs on a P100", "", "no GPU here; ask `torch.cuda.get_arch_list()` for sm_60")

for which, groups in ((style, results), (second, other_results)):
    nearer = {
        f"nearer than, by {score}": len(found_groups["nearer than"])
        for score, found_groups in groups.items()
    }
    asked = sum(map(len, groups["truth"].values()))
    text = f"this course: the LoRA {which} beats all {asked} others that keep as much or more"
    claim(text, nearer, asked, asked, f"of {asked}")
unbeaten_by = [score for score, said_of_it in verdicts.items() if said_of_it == "yes"]
ledger.append(
    (
        "“this course: no other setting beats the default”",
        "; ".join(f"kept and {score}: {said_of_it}" for score, said_of_it in verdicts.items()),
        "**holds**"
        if len(unbeaten_by) == len(verdicts)
        else f"**holds only for** {', '.join(unbeaten_by)}"
        if unbeaten_by
        else "**does not hold**",
    )
)

lines = ["| claim | computed here | verdict |", "| --- | --- | --- |"]
lines += [f"| {text} | {computed} | {verdict} |" for text, computed, verdict in ledger]
Markdown("\n".join(lines))

# %% [markdown]
# **What it means.** Some claims leave something out, such as the precision of a file or the batch:
# with that filled in one way they hold, in another they do not. Others are wrong by a factor in
# every way that we could count. Even then, the question to a claim is less "is it a lie?" than "of
# *what* would it be true?": of which rank would those 4-8 million be?
#
# The speed is the most telling one. A step of LoRA is not ten times cheaper, because the forward
# pass and the way back through the network remain. What it saves is memory, and with it the size of
# the file, of the checkpoints and of the GPU that you need.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Are the activations on a real GPU the same?* Of that order, see above. More than half of those
#   counted are matrices of the attention.
# - *Can LoRA be ten times faster in the end?* If it needs fewer steps, or if the full run does not
#   fit and has to swap. Then that is the claim, and the steps belong into it.
# - *Why do our own claims stand in the table?* Because they are claims.

# %% [markdown]
# ## Recap
#
# - Every score is blind to something. Know a picture that fools it, use several, and look.
# - What was in the loss, or what you tuned by, is no judge any more.
# - Standard error: spread over the root of N. Interval: ± t of them. Half the interval takes four
#   times the scenes.
# - Intervals that overlap prove nothing. Compare in pairs, on the same scenes.
# - Content and style are bought with one another: draw the curve, drop what is beaten, and never
#   compare a method with one that gives up more of the photo.
# - Many comparisons make false wins. Choose on some scenes and report on others.
# - A claim needs its conditions. Count what can be counted, and say what cannot be checked.
#
# ## If you want more
# - Enter a fraud of your own into section 2 that beats the LoRA by as many scores as possible. Can
#   one beat it by all seven?
# - Train the same style with three seeds (lesson 04), and compare the scatter over seeds with the
#   scatter over scenes. Which of the two do papers print?
# - Put seconds in the place of what is kept, and draw the Pareto curve of time against truth, with
#   steps as the knob. Where do colours lie?
# - Ask five people which of two pictures is more like the truth, LoRA or Gatys, twelve times each,
#   without saying which is which. How often must one of them be chosen before it is no accident?
