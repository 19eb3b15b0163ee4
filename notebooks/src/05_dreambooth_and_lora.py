# ---
# jupyter:
#   stylenb:
#     title: DreamBooth and LoRA
#     about: >-
#       DreamBooth trains the model itself to know what a rare word means. You train it with and
#       without prior preservation, and put it beside attention alone, LoRA and textual inversion:
#       same pictures, same time, one table.
#     read: 30
#     do: 55
#     needs: lessons 03 and 04; about ten minutes of computing; no GPU
# ---

# %% [markdown]
# **After this lesson you can**
#
# - say what a rare token is, and find out whether yours is one,
# - write the prior-preservation loss, and show with pictures and a number what it prevents,
# - train a style in four ways, by the whole UNet, its attention, a LoRA and one new word, and
#   compare what each costs and what it brings,
# - work out from configs alone how much memory a training takes on Stable Diffusion v1.5,
# - check a comparison table that somebody else has written, line by line,
# - undo a DreamBooth, save it, load it, and hand it on as a whole model.
#
# There are five exercises, with checks as before.

# %% [markdown] tags=["instructor"]
# **Plan for 85 minutes.** The token: 10. The loss by halves: 15. The prior set: 5. With and
# without: 15. The four ways: 17. SD v1.5's sizes and the claims: 13. Photos: 5. Files: 3. Recap: 2.
#
# Let everybody choose *Run all* at the start, and stop at the trainings: they take most of the
# computing. Before section 4, have people write down what "a painting" will look like after a
# training that never mentioned it. Short of time? Leave out min-SNR (exercise 2) and section 9.
#
# **The thread of the lesson:** what a method may change decides what it can learn *and* what it can
# break. Come back to this sentence at each table.

# %%
import stylenb

base = stylenb.load("pocket")  # or "sd15"
base

# %%
import tempfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from stylenb import DreamBoothSettings, generate, read_folder, sample_photo, to_tensor
from stylenb.course import lesson_05, show
from stylenb.dreambooth import prior_set, set_losses, train_dreambooth, undo_dreambooth
from stylenb.loop import generator_at, order_at, spread_timesteps
from stylenb.pocket.scenes import draw_scene
from stylenb.pocket.styles import KNOWN, PHRASES
from stylenb.pocket.training_mix import TEST_SEEDS
from stylenb.scores import judge, style_probability
from stylenb.weights import DATA

size, last = base.image_size, base.scheduler.config.num_train_timesteps
folder = Path(tempfile.mkdtemp())  # for all the files of this lesson
style = "blueprint"  # or another folder in data/styles
instance = read_folder(DATA / "styles" / style, size).pictures
defaults = DreamBoothSettings.for_base(base)

show.sheet(
    instance[:8],
    columns=8,
    width=0.8,
    title=f"Half of the {len(instance)} pictures in the style {style}",
    alt=f"Eight of the pictures from which the style {style} is to be learned, of different scenes "
    "and things.",
)

# %% [markdown]
# In lesson 04 the LoRA learned the style without a word: whenever it was on, everything came out in
# the style. **DreamBooth** (Ruiz et al. 2022, https://arxiv.org/abs/2208.12242) goes another way:
# no weights are added, the ones that are there are trained on. So that the model can still draw
# everything else afterwards, the new thing is tied to a **word**: with it, the style; without it,
# what was drawn before.
#
# ## 1. A rare token
#
# The word should mean nothing yet. What a word is to the model, the **tokenizer** says: it cuts a
# prompt into pieces that are in its vocabulary, the **tokens**, and gives their numbers.

# %%
prompt, class_prompt = defaults.prompt, defaults.class_prompt
for text in (prompt, class_prompt, f"{PHRASES[style]} a house"):
    numbers = base.tokenizer(text)["input_ids"][1:-1]  # without start and end
    pieces = base.tokenizer.convert_ids_to_tokens(numbers)
    print(f"{text!r}: {len(numbers)} tokens\n   ", *pieces)

# %% [markdown]
# `</w>` marks the end of a word. A word that the vocabulary lacks falls into pieces, down to single
# letters. Such pieces are in many other words, too, and mean a little of everything. The prompt
# needs **one whole token that stands in no caption**: it is in the vocabulary, so the text encoder
# has a row for it in its table, but training never had a reason to make anything of that row.
#
# Count it, in captions as the pocket base was trained on:

# %% tags=["parameters"]
caption_count = 120
captions = [
    f"{PHRASES[KNOWN[i % len(KNOWN)]]} {draw_scene(TEST_SEEDS + i, 64).caption}"
    for i in range(caption_count)
]
print("for example:", captions[0])
counted = Counter(token for text in captions for token in base.tokenizer.tokenize(text))
for token in dict.fromkeys(base.tokenizer.tokenize(prompt)):
    print(f"{token:14s} {counted[token]:4d} times in {len(captions)} captions")

rare = [token for token in base.tokenizer.tokenize(prompt) if not counted[token]]
token = next(word for word in prompt.split() if f"{word}</w>" in rare)  # a whole word
print("the rare token:", token)

# %% [markdown]
# Pieces of words may be just as rare in these few captions; but in others they stand for something.
# So only a whole word will do.
#
# Why rare? A common word, "stained" or "blue", already means something, and training would have to
# fight that meaning and would spoil it. A made-up word, "bluprintish", falls into letters.
#
# **Predict:** what will the base draw for a prompt with a word that means nothing? Noise? The same
# as without the word?

# %% tags=["parameters"]
count = 6  # pictures for each prompt
num_inference_steps = 30


def draw(text, seed=1):
    """Pictures that the base, as it is now, draws for a prompt; always from the same noise."""
    return generate(base, text, count, num_inference_steps, seed=seed)


class_before, token_before = draw(class_prompt), draw(prompt)
for text, pictures in ((class_prompt, class_before), (prompt, token_before)):
    named = Counter(judge(pictures)).most_common()
    print(f"{text!r}: the style judge sees", ", ".join(f"{n} × {name}" for name, n in named))
show.sheet(
    class_before + token_before,
    ["the class"] + [""] * (count - 1) + ["the token"] + [""] * (count - 1),
    columns=count,
    width=0.95,
    title="Before the training, from the same noise",
    alt=f"Two rows of pictures that the untrained base draws: above for {class_prompt!r}, below "
    f"for {prompt!r}.",
)

# %% [markdown]
# **What it means.** A token without a meaning is not a token without an *effect*. Its row in the
# table is some row, and the pieces around it (those of "style", for example) have theirs; the text
# encoder makes something of it, and the UNet follows. So look before you train: what the model
# draws for your prompt now is where the training sets out from. The noise is the same in both rows,
# and whatever is different comes from the words.
#
# ## 2. A loss for each half
#
# Training is the loop of lesson 04 with L2 alone: noise on a picture, predict the noise, compare.
# Two things are new. First, the captions: the 16 pictures, the **instance** pictures, are all
# captioned with the prompt. Second, what DreamBooth is known for: half of each batch are pictures
# of the **class**, here any "painting", captioned with the class prompt. They show what the base
# *itself* draws for it, before the training: the **class images**, all together the **prior set**.
# Learn the one, and keep the other.
#
# One batch by hand, instance pictures first. (It is put together as the library does it, by
# functions of the step, so that we can compare.)

# %%
half, seed = defaults.batch_size, defaults.seed


@torch.no_grad()
def encode(pictures):
    """Pictures -> latents (N, 4, h, w), float32, in main memory."""
    return torch.cat([base.encode(to_tensor(picture)).float().cpu() for picture in pictures])


sets = [encode(instance), encode(class_before)]
random = generator_at(seed, 0)  # of batch 0
chosen = [order_at(seed + i, len(one), 0, half) for i, one in enumerate(sets)]
latents = torch.cat([one[index] for one, index in zip(sets, chosen)]).to(base.device)
t = torch.cat([spread_timesteps(half, last, random) for _ in sets]).to(base.device)
noise = torch.randn(latents.shape, generator=random).to(base.device)
noisy = base.scheduler.add_noise(latents, noise, t)

with torch.no_grad():
    embeddings = base.embed([prompt, class_prompt])
    conditions = embeddings.repeat_interleave(half, dim=0)
    prediction = base.predict_noise(noisy, t, conditions)

print("the prompts, embedded  ", tuple(embeddings.shape))
print("one for each picture   ", tuple(conditions.shape))
print("latents, noisy         ", tuple(latents.shape), tuple(noisy.shape))
print("the timesteps          ", t.tolist())
print("prediction of the noise", tuple(prediction.shape))

# %% [markdown]
# ### Exercise 1: the prior-preservation loss
# The mean squared error of the first half, plus `weight` times that of the second half.


# %% tags=["exercise"]
def preserved_loss(prediction, noise, weight):
    """Predicted and true noise (2n, 4, h, w), a number -> one number."""
    return ...  # your code


# %% tags=["solution"]
def preserved_loss(prediction, noise, weight):
    """Predicted and true noise (2n, 4, h, w), a number -> one number."""
    error = (prediction - noise) ** 2
    n = len(error) // 2
    return error[:n].mean() + weight * error[n:].mean()


# %% tags=["check"]
preserved_loss = lesson_05.check("preserved_loss", preserved_loss)

# %% [markdown]
# <details><summary>Hint 1</summary>First the squared errors of the whole batch, still (2n, 4, h,
# w).</details>
# <details><summary>Hint 2</summary>With <code>n = len(error) // 2</code>, the halves are
# <code>error[:n]</code> and <code>error[n:]</code>.</details>
# <details><summary>Hint 3</summary>Take the <code>.mean()</code> of each, and multiply the second
# one by the weight before you add.</details>

# %% [markdown]
# The library gives the two halves apart and lets its loop weigh them:

# %%
with torch.no_grad():
    parts = set_losses(base, replace(defaults, snr_gamma=None), sets, lambda: embeddings, 0)
print(f"instance pictures {parts[0]:.4f}, prior set {parts[1]:.4f}")
for weight in (0.0, 1.0, 3.0):
    ours = float(preserved_loss(prediction.float(), noise, weight))
    theirs = float(parts[0] + weight * parts[1])
    print(f"weight {weight:g}: ours {ours:.4f}, the library's {theirs:.4f}", end="")
    print(f", equal to 1e-3: {abs(ours - theirs) < 1e-3}")

# %% [markdown]
# At the start the prior set's error is what the base makes on pictures of its own; training can
# hardly better it. It is there to *object*: it grows as soon as a change, made for the style, would
# alter what the class prompt draws. A weight of 1 listens to both alike.
#
# ### By the right half
# That the batch has two halves is easily forgotten when a line is added. **min-SNR** (Hang et al.
# 2023, https://arxiv.org/abs/2303.09556) gives each picture a weight by its timestep: min(SNR, γ) /
# SNR. It can be switched on in `Settings` (`snr_gamma`). Trainers that take the batch apart first,
# and then weigh by a list of SNRs that still has the length of the whole batch, or of the other
# half, give pictures the weight of a *stranger's* timestep. Nothing stops, no shape need be wrong.
#
# ### Exercise 2: min-SNR and two halves
# `errors` are the mean squared errors of the pictures and `ratio` their SNRs; `gamma` is the γ
# above, and `weight` that of the prior set. Weigh each picture by its timestep, then proceed as in
# exercise 1.


# %% tags=["exercise"]
def min_snr_halves(errors, ratio, gamma, weight):
    """Errors (2n,), SNRs (2n,), γ, weight of the second half -> one number."""
    return ...  # your code


# %% tags=["solution"]
def min_snr_halves(errors, ratio, gamma, weight):
    """Errors (2n,), SNRs (2n,), γ, weight of the second half -> one number."""
    weighted = errors * ratio.clamp(max=gamma) / ratio
    n = len(errors) // 2
    return weighted[:n].mean() + weight * weighted[n:].mean()


# %% tags=["check"]
min_snr_halves = lesson_05.check("min_snr_halves", min_snr_halves)

# %% [markdown]
# <details><summary>Hint 1</summary>min(SNR, γ) of all pictures at once is
# <code>ratio.clamp(max=gamma)</code>.</details>
# <details><summary>Hint 2</summary>Multiply the errors by that over the ratio, while the batch is
# still whole.</details>
# <details><summary>Hint 3</summary>Only then take it apart, as in exercise 1.</details>

# %%
from diffusers.training_utils import compute_snr

errors = (prediction.float() - noise).pow(2).flatten(1).mean(1)
ratio = compute_snr(base.scheduler, t)
gamma = 5.0
print("timestep", *(f"{int(one):6d}" for one in t))
print("error   ", *(f"{float(one):6.3f}" for one in errors))
print("weight  ", *(f"{float(one):6.3f}" for one in ratio.clamp(max=gamma) / ratio))
with torch.no_grad():
    parts = set_losses(base, replace(defaults, snr_gamma=gamma), sets, lambda: embeddings, 0)
right = float(min_snr_halves(errors, ratio, gamma, 1.0))
wrong = float(min_snr_halves(errors, ratio.roll(half), gamma, 1.0))
print(
    f"ours {right:.4f}, the library's {float(sum(parts)):.4f}; the other half's weights: ", end=""
)
print(f"{wrong:.4f}, off by {abs(wrong / right - 1):.1%}")

# %% [markdown]
# The lowest timesteps lose part of their weight; how much, γ decides. With the other half's
# weights the loss is wrong in another way at every step: noise from nowhere.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Why "sks"?* The first public scripts used it, and everybody copied them. To SD v1.5 it is not
#   quite without a meaning: it is also the name of a rifle, and people have met soldiers in their
#   pictures. Look at what your base draws before the training.
# - *Could the prior set be real paintings?* Yes, `prior_pictures=` takes any. Then it teaches what
#   those look like, instead of keeping what the base drew.
# - *Why spread timesteps in each half by itself?* So that each half has low and high ones. If one
#   spread ran over the whole batch, the instance pictures would only ever be seen low, and the
#   prior set high.

# %% [markdown]
# ## 3. The prior set
#
# It has to be drawn before the training, as afterwards there is nobody to draw it. `prior_set` does
# so, `num_class_images` of them, and keeps them as files, so that the next training finds them.

# %%
usual = replace(defaults, steps=120)  # fewer than usual, so that five runs fit into minutes
prior = prior_set(base, usual, folder)
again = prior_set(base, usual, folder, progress=False)
same = all(one.tobytes() == other.tobytes() for one, other in zip(prior, again))
files = len(list((folder / "prior").glob("*.png")))
print(f"{len(prior)} pictures drawn, {files} files; a second call gives the same ones: {same}")
named = Counter(judge(prior)).most_common()
print("the style judge sees", ", ".join(f"{n} × {name}" for name, n in named))
show.sheet(
    prior[:10],
    columns=10,
    width=0.7,
    title=f"Some of the prior set: what the base draws for {class_prompt!r}",
    alt=f"Pictures that the untrained base draws for {class_prompt!r}.",
)

# %% [markdown]
# ### Exercise 3: how often is each one seen?
# A step takes `gradient_accumulation_steps` batches; in each of them are `batch_size` pictures of
# the prior set (beside as many instance pictures). In a whole run, how often is each of its `count`
# pictures seen on average?


# %% tags=["exercise"]
def times_seen(steps, gradient_accumulation_steps, batch_size, count):
    """Four whole numbers -> how often each prior picture is seen, a number."""
    return ...  # your code


# %% tags=["solution"]
def times_seen(steps, gradient_accumulation_steps, batch_size, count):
    """Four whole numbers -> how often each prior picture is seen, a number."""
    return steps * gradient_accumulation_steps * batch_size / count


# %% tags=["check"]
times_seen = lesson_05.check("times_seen", times_seen)

# %% [markdown]
# <details><summary>Hint 1</summary>How many prior pictures does one step show?</details>
# <details><summary>Hint 2</summary>Times the steps: that many showings there are in all.</details>
# <details><summary>Hint 3</summary>They are shared by <code>count</code> pictures: divide, with
# <code>/</code>.</details>

# %%
for name, n in (("instance pictures", len(instance)), ("prior set", usual.num_class_images)):
    seen = times_seen(usual.steps, usual.gradient_accumulation_steps, usual.batch_size, n)
    print(f"{name:18s} {n:4d} pictures, each seen {seen:.1f} times in {usual.steps} steps")

# %% [markdown]
# Each of the 16 is seen much more often than each of the prior set. That is as it should be: from
# the few, the model is to learn something; of the many it should only be reminded. A prior set of a
# handful would be learned by heart itself, and then the class prompt draws those few pictures for
# ever.

# %% [markdown]
# ## 4. With and without
#
# Two runs of the whole UNet, alike but for `prior_loss_weight`: 1, and 0. The second one never sees
# the prior set. It gets as many steps, and needs less time for them.
#
# **Predict:** after both runs, what will the base draw for the prompt with the token? And for the
# class prompt, which the second run has not seen once?

# %%
for name in ("train", "steps", "batch_size", "learning_rate", "prior_loss_weight", "prompt"):
    print(f"{name:18s} {getattr(usual, name)}")

# %%
from stylenb.dreambooth import save_dreambooth
from stylenb.scores import noise_predictions

tried = {  # prompts to ask, before and after
    "the token": prompt,
    "the class": class_prompt,
    "a known style": f"{PHRASES['watercolour']} {draw_scene(TEST_SEEDS, 64).caption}",
    "no prompt": "",
}
subjects = class_before[:4]  # pictures to ask them on


def ask():
    """What the base, as it is now, predicts under each prompt."""
    return {name: noise_predictions(base, subjects, text) for name, text in tried.items()}


asked = {"before": ask()}
drawn = {"before": (class_before, token_before)}
histories = {}
for name, weight in (("without", 0.0), ("with", 1.0)):
    settings = replace(usual, prior_loss_weight=weight)
    histories[name] = train_dreambooth(base, instance, settings, prior_pictures=prior)
    save_dreambooth(base, folder / f"{name}.safetensors")
    asked[name], drawn[name] = ask(), (draw(class_prompt), draw(prompt))
    print(f"{name:8s} prior preservation: {histories[name].seconds:.0f} s")

# %%
shown = min(4, count)
show.sheet(
    [picture for pair in drawn.values() for row in pair for picture in row[:shown]],
    [
        label if i == 0 else ""
        for name in drawn
        for label in (f"{name}: class", f"{name}: token")
        for i in range(shown)
    ],
    columns=2 * shown,
    width=0.85,
    title=f"{class_prompt!r} (left) and {prompt!r} (right)",
    alt=f"Three rows: before the training, after it without prior preservation, and after it with. "
    f"In each, pictures for {class_prompt!r} at the left and for {prompt!r} at the right, all from "
    "the same noise.",
)

# %% [markdown]
# Every column starts from one noise. Read down the left half: without prior preservation, did the
# class prompt keep what it drew before? And with it? Then down the right half: has the token come
# to mean the style in both? The judge's opinion, which does not depend on what we hope to see:

# %%
for name, (of_class, of_token) in drawn.items():
    found = [float(style_probability(pictures, style).mean()) for pictures in (of_class, of_token)]
    print(f"{name:8s} probability of {style}: class prompt {found[0]:.2f}, token {found[1]:.2f}")

# %% [markdown]
# The style in the class prompt's pictures is called **leaking**: the word was not needed after all.
# (The judge asks for the whole style, its lines *and* its ground. Where it says little and you see
# the lines, believe your eyes. And so few pictures cannot tell which of two tokens has more of it.)
# When every picture that the model is shown is in the style, the cheapest thing to learn is "all
# pictures look like this", not "this word means that".
#
# ### Drift
# A judge of styles sees leaking, but a model may move elsewhere, too. So ask it directly: take
# pictures, noise and timesteps, always the same, and compare the predicted noise before and after.
# How far has the prediction moved? And is that much? As much as it was *wrong* before, say: the
# **drift** is the mean squared change over the mean squared error before. At 0 nothing has changed.
#
# ### Exercise 4: drift
# For N pictures at T timesteps. Give one number for each picture: its squared differences averaged
# over all the rest, first the change, then the error, and their ratio.


# %% tags=["exercise"]
def drift_of(before, after, noise):
    """Noise predicted before and after, and the true one, (N, T, 4, h, w) -> drifts (N,)."""
    return ...  # your code


# %% tags=["solution"]
def drift_of(before, after, noise):
    """Noise predicted before and after, and the true one, (N, T, 4, h, w) -> drifts (N,)."""
    change = ((after - before) ** 2).flatten(1).mean(1)
    error = ((before - noise) ** 2).flatten(1).mean(1)
    return change / error


# %% tags=["check"]
drift_of = lesson_05.check("drift_of", drift_of)

# %% [markdown]
# <details><summary>Hint 1</summary><code>x.flatten(1)</code> makes one row of each
# picture.</details>
# <details><summary>Hint 2</summary>The change is from before to after; the error is from before to
# the true noise.</details>
# <details><summary>Hint 3</summary>Square, <code>.flatten(1).mean(1)</code>, for both; then
# divide.</details>

# %%
from stylenb.scores import mean_and_error, prior_drift

print(f"{'':15s}{'without':>18s}{'with':>18s}   drift, ± its standard error")
drifts = {}
for label in tried:
    cells = []
    for name in ("without", "with"):
        before, after = asked["before"][label], asked[name][label]
        found = drift_of(before.predicted, after.predicted, before.noise)
        assert torch.allclose(found, prior_drift(before, after))
        drifts[name, label] = mean_and_error(found)
        cells.append(f"{drifts[name, label][0]:8.3f} ± {drifts[name, label][1]:.3f}")
    print(f"{label:15s}" + "".join(f"{cell:>18s}" for cell in cells))
for label in list(tried)[1:]:
    less = drifts["with", label][0] < drifts["without", label][0]
    print(f"prior preservation has kept {label!r} nearer to the base: {'yes' if less else 'no'}")

# %% [markdown]
# **What it means.** The first row *may* move: that is the learning. The others are the price. Do
# not expect the first to be the largest: drift says how far a prediction has moved, not whether it
# moved towards the style, and all four pictures are of the class. Mind which prompts we had to ask:
# had we only looked at pictures for the token, both runs would have looked like a success. Ask the
# class prompt, which the prior set protects. Ask also for what it does **not show**: a known style
# by its name, no prompt at all. That is protected only as far as it is alike. So by what factor
# does each row shrink? (± is over four pictures.)
#
# "No prompt" matters to this course: stylising works with it (lesson 02), and so does guidance,
# which subtracts the picture without a prompt.

# %%
figure = show.figure(
    7,
    2.4,
    "The two halves of the loss over the steps",
    alt="Two panels: the L2 on the instance pictures over the steps, with and without prior "
    "preservation; and the L2 on the prior set in the run that had it. Thin lines jump from step "
    "to step, thick ones are running means.",
)


def running(values, keep=0.95):
    """Each value, averaged with those before it, older ones counting less."""
    total, number, result = 0.0, 0.0, []
    for value in values:
        total, number = keep * total + value, keep * number + 1
        result.append(total / number)
    return result


for axes, (term, label) in zip(
    figure.subplots(1, 2, sharey=True), {"noise": "instance", "prior": "prior set"}.items()
):
    for name, colour, width in (("without", "#e0a090", 5), ("with", "#1d3557", 1.5)):
        at, values = histories[name].values(term)
        axes.plot(at, values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(at, running(values), color=colour, linewidth=width, label=name)
    axes.set_title(label, fontsize=9)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    if term == "noise":
        axes.legend(fontsize=8)
figure

# %% [markdown]
# A flat curve at the right is what one hopes for: keep what there was. The loss alone would not
# have told you of leak and drift. On the instance pictures the two runs can hardly be told apart,
# and the run without has no second curve.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Why does the drift of the class not come down to zero with prior preservation?* The prior
#   set is a sample, and the loss allows any change that does not matter to it. The drift asks on
#   other pictures.
# - *A larger prior_loss_weight, then?* It keeps more and learns less. Let them try 3, and look at
#   both halves.
# - *Is the leak bad?* If all you ever want is this style: no. Then the token is a nuisance, and the
#   LoRA of lesson 04, which knows no words, does just that. It can be switched off.

# %% [markdown]
# ## 5. Four ways, one table
#
# What may be trained is a choice:
#
# - **full**: every weight of the UNet (section 4),
# - **attention**: only the matrices of its attention, `attn1` and `attn2`,
# - **LoRA**: not those, but an A and B beside each of their projections (lesson 03),
# - **textual inversion** (Gal et al. 2022, https://arxiv.org/abs/2208.01618): nothing of the model
#   at all, only *one new row* in the text encoder's table: the word itself is learned.
#
# The first three share everything else: pictures, prompt, prior set. Textual inversion needs no
# prior set, as no weight can drift; so all of its batch are instance pictures.
#
# **Predict:** which is the fastest per step, and by how much? Which of them must every method do in
# full: forwards through the UNet, or backwards?
#
# ### What does a training keep in memory?
# Four things: the weights, a gradient for each *trained* one, the two running averages that AdamW
# keeps for each trained one, and the **activations**: what the forward pass has to remember for the
# way back. The first three can be counted on paper: a number in float32 has 4 bytes.
#
# ### Exercise 5: bytes
# Each trained number: 4 bytes for itself, 4 for its gradient, `state_bytes` for the optimiser
# (AdamW 8, with 8 bits 2). Each frozen one: `frozen_bytes`.


# %% tags=["exercise"]
def training_bytes(trained, frozen, frozen_bytes, state_bytes):
    """How many numbers of each, bytes of a frozen one, of the optimiser's state -> bytes."""
    return ...  # your code


# %% tags=["solution"]
def training_bytes(trained, frozen, frozen_bytes, state_bytes):
    """How many numbers of each, bytes of a frozen one, of the optimiser's state -> bytes."""
    return trained * (4 + 4 + state_bytes) + frozen * frozen_bytes


# %% tags=["check"]
training_bytes = lesson_05.check("training_bytes", training_bytes)

# %% [markdown]
# <details><summary>Hint 1</summary>How many bytes does one trained number take, all in
# all?</details>
# <details><summary>Hint 2</summary><code>4 + 4 + state_bytes</code>; a frozen one has neither
# gradient nor optimiser.</details>
# <details><summary>Hint 3</summary>Multiply by how many there are of each, and add.</details>

# %% [markdown]
# Does an optimiser really keep 8 bytes? Let one take a step, and count what it holds:

# %%
layer = torch.nn.Linear(300, 200)
optimizer = torch.optim.AdamW(layer.parameters())
layer(torch.ones(1, 300)).sum().backward()
optimizer.step()
numbers = sum(p.numel() for p in layer.parameters())
gradients = sum(p.grad.nbytes for p in layer.parameters())
held = sum(v.nbytes for one in optimizer.state.values() for v in one.values() if v.ndim)
print(f"{numbers:,} numbers: {gradients / numbers:.0f} bytes each of gradient,", end="")
print(f" {held / numbers:.0f} of AdamW")

# %% [markdown]
# Activations depend on the layers and on what is trained. They can be counted too: torch calls a
# **hook** for everything that it saves for the way back.


# %%
@contextmanager
def kept_activations(*modules):
    """Inside, counts what is saved for the way back, but for the modules' weights: id -> bytes."""
    kept, weights = {}, set()

    def save(tensor):
        if not weights:
            weights.update(p.untyped_storage()._cdata for m in modules for p in m.parameters())
        storage = tensor.untyped_storage()  # several tensors may be views of one
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        yield kept


# %% [markdown]
# ### The same time for all
# The run *with* prior preservation took some time. Every other method gets about as much. Three
# steps tell roughly how fast each one is, and so how many steps fit; the learning rate falls along
# its cosine over just these. (`minutes=`, from lesson 04, would cut the run before the rate has
# come down.)

# %%
from stylenb.textual_inversion import EmbeddingSettings, remove_embedding, train_embedding

word = f"<{style}>"
methods = {
    "full": usual,
    "attention": DreamBoothSettings.for_base(base, train="attention"),
    "LoRA": DreamBoothSettings.for_base(base, train="lora"),
    "textual inversion": EmbeddingSettings.for_base(base, prompt=f"a {word} painting"),
}
seconds = histories["with"].seconds


def train(settings, pictures=instance, prior=prior, **how):
    """Train by any of the four ways."""
    if isinstance(settings, EmbeddingSettings):
        return train_embedding(base, pictures, word, settings, **how)
    return train_dreambooth(base, pictures, settings, "tried", prior, **how)


def undo(settings):
    """The base as it was loaded."""
    if isinstance(settings, EmbeddingSettings):
        remove_embedding(base, word)
    elif settings.train == "lora":
        remove_lora(base, "tried")
    else:
        undo_dreambooth(base)


from stylenb.lora import remove_lora
from stylenb.lora_files import save_lora

saved, pace = {}, {}
for name, settings in methods.items():
    few = replace(settings, steps=3, flip=False)
    with kept_activations(base.unet, base.text_encoder) as kept:
        one_batch = replace(few, steps=1, gradient_accumulation_steps=1)
        train(one_batch, instance[:4], prior[:4], progress=False)
    saved[name] = sum(kept.values())
    undo(settings)
    history = train(few, instance[:4], prior[:4], progress=False)
    pace[name] = min(row["seconds"] for row in history.rows)
    undo(settings)
    fit = max(3, int(seconds / pace[name]))
    methods[name] = settings if name == "full" else replace(settings, steps=fit)
    print(f"{name:18s} {pace[name]:.3f} s a step, so {methods[name].steps} steps")

# %% [markdown]
# Now the four. The full UNet is the run of section 4, loaded from its file. Each is asked the same:
#
# - **style, drawn**: the judge's probability for pictures drawn from pure noise by the prompt,
# - **style, redrawn**: the same for scenes redrawn with the prompt at the default strength,
# - **content**: do the outlines of those lie where they lay? (The agreement of edges, 1 is the
#   same. A picture that keeps everything and has no style scores 1, too: read both together.)
# - **drift** of the class prompt.

# %% tags=["parameters"]
from stylenb.dreambooth import load_dreambooth, trainable
from stylenb.inference import redraw
from stylenb.scores import edge_agreement
from stylenb.textual_inversion import save_embedding

scene_count = 8
scenes = [draw_scene(TEST_SEEDS + 40 + i, size).picture for i in range(scene_count)]
photos = [sample_photo("chelsea", size), sample_photo("coffee", size)]
seeds = range(len(scenes + photos))  # a noise of its own for each, where the solver draws any


def examine(text):
    """Scores and pictures of the base as it is now, for a prompt."""
    pictures = draw(text)
    redrawn = redraw(base.with_prompt(text), scenes + photos, seed=seeds)
    after = noise_predictions(base, subjects, class_prompt)
    return {
        "class": draw(class_prompt)[:2],
        "token": pictures[:2],
        "redrawn": redrawn,
        "style, drawn": style_probability(pictures, style),
        "style, redrawn": style_probability(redrawn[: len(scenes)], style),
        "content": edge_agreement(redrawn[: len(scenes)], scenes),
        "drift": prior_drift(asked["before"]["the class"], after),
    }


results = {"base, untrained": examine(prompt)}
trained, taken, sizes = {}, {}, {}
for name, settings in methods.items():
    path = folder / f"{name}.safetensors"
    if name == "full":
        load_dreambooth(base, folder / "with.safetensors")
        history, path = histories["with"], folder / "with.safetensors"
        trained[name] = sum(p.numel() for p in trainable(base.unet, "unet").values())
    else:
        history = train(settings)
        if name == "attention":
            save_dreambooth(base, path)
            trained[name] = sum(p.numel() for p in trainable(base.unet, "attention").values())
        elif name == "LoRA":
            save_lora(base, path, "tried")
            trained[name] = sum(p.numel() for k, p in base.unet.named_parameters() if ".lora_" in k)
        else:
            save_embedding(base, path, word)
            trained[name] = base.text_encoder.config.hidden_size
    results[name] = examine(settings.prompt)
    taken[name], sizes[name] = history.seconds / len(history.rows), path.stat().st_size
    undo(settings)

# %%
everything = sum(p.numel() for part in (base.unet, base.text_encoder) for p in part.parameters())
state = {
    name: training_bytes(
        n, everything - n * (name in ("full", "attention")), base.dtype.itemsize, 8
    )
    for name, n in trained.items()
}
print(f"{'':18s}{'trained':>11s}{'file':>14s}{'a step':>9s}{'state':>10s}{'activations':>13s}")
for name, n in trained.items():
    print(
        f"{name:18s}{n:11,d}{sizes[name] / 1e3:11,.1f} kB{taken[name]:7.2f} s"
        f"{state[name] / 1e6:7.0f} MB{saved[name] / 1e6:10.0f} MB"
    )

columns = ("style, drawn", "style, redrawn", "content", "drift")
print(f"\n{'':18s}" + "".join(f"{column:>17s}" for column in columns))
for name, result in results.items():
    cells = [mean_and_error(result[column]) for column in columns]
    print(f"{name:18s}" + "".join(f"{mean:9.2f} ± {error:.2f}".rjust(17) for mean, error in cells))

# %%
rows = ("class", "token", "redrawn")
order = ["base, untrained", *methods]
pictures = [results[name][kind][0] for kind in rows for name in order]
pictures += [results[name]["redrawn"][-2] for name in order]
show.sheet(
    pictures,
    order,
    columns=len(order),
    width=1.25,
    title=f"{class_prompt!r}; with the token; a scene and a photo redrawn with it",
    alt="Columns: the untrained base, the full UNet, attention, LoRA, textual inversion. Rows: a "
    f"picture for {class_prompt!r}, one with the token, both from the same noise; a scene and a "
    "cat redrawn with the token.",
)

# %% [markdown]
# Read the first row for drift: is it the picture that the untrained base draws? The second for the
# style. And the last two for what this course is about: is any of them in the style? If none is,
# section 8 says why.
#
# Which method is best depends on what you count. So let the code say it, one line for each. A
# method that never draws the style can still score well in content and drift; so it is left out of
# the scores. Where the best one is less than twice ± ahead, all that may be the best are named.
# That does not make them good: if "style, redrawn" is near 0 for all, that line has no winner.

# %%
mean = {name: {c: float(results[name][c].mean()) for c in columns} for name in methods}
most = max(scores["style, drawn"] for scores in mean.values())
able = [name for name in methods if mean[name]["style, drawn"] > most / 2]


def best(column, sign=1):
    """The able methods that may have the most of a score, or with sign -1 the least."""
    first = max(able, key=lambda name: sign * mean[name][column])
    behind = {name: results[first][column] - results[name][column] for name in able}
    leads = {name: mean_and_error(sign * values) for name, values in behind.items()}
    return ", ".join(name for name, (lead, error) in leads.items() if lead <= 2 * error)


verdicts = {
    "the smallest file": min(sizes, key=sizes.get),
    "the least to keep in memory": min(state, key=lambda name: state[name] + saved[name]),
    "the fastest step": min(taken, key=taken.get),
    "the most style, drawn": best("style, drawn"),
    "the most style, redrawn": best("style, redrawn"),
    "the most of the content": best("content"),
    "the least drift": best("drift", -1),
}
for what, name in verdicts.items():
    print(f"{what:28s} {name}")
for one, other in (("full", "LoRA"), ("full", "attention")):
    print(f"\na step of {one} / of {other}: {taken[one] / taken[other]:.2f} times as long", end="")
    print(f", state {state[one] / state[other]:.1f}, activations {saved[one] / saved[other]:.2f}")

# %% [markdown]
# **What it means.**
#
# - **Time.** Forwards, all methods run the whole UNet. Some do more: a LoRA has its A and B to
#   multiply by, and textual inversion runs the text encoder at every step, as its word changes. So
#   the method that trains the fewest numbers need not be the fastest. Backwards, a gradient has to
#   flow through all of it as well, to reach the first layer that is trained. What is saved is the
#   gradient of each *frozen weight*, a third of the work at most, and the optimiser's update. So
#   training a hundredth of the numbers is not a hundred times faster, nor ten times.
# - **Memory.** The state shrinks with what is trained. The activations shrink much less, for the
#   same reason as the time. So with the full UNet the state is most of it, with a LoRA the
#   activations.
# - **Style.** More that may change need not be more style: see how far the first three are apart,
#   beside their ±. Textual inversion can only ask for what the model can draw already: it searches
#   for the best word among all possible ones. Where a style is unlike everything that the base
#   knows, there may be none.
# - **Drift.** Textual inversion has none, by construction: no weight moves. Of a LoRA, what was
#   measured is *while it is on*. Switched off, it is 0 as well, and that is the difference which no
#   column of the table shows.
#
# Twice ± is what a difference should exceed before you believe it, and one run with one seed is one
# sample. Every rate is a choice of the course's, too (`for_base`): tuned for minutes on this base.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Why not train LoRA and DreamBooth with their best losses?* The question here is what is
#   trained, so all else is held equal. Lesson 04's LoRA has LPIPS and style loss; section 8
#   brings it in.
# - *Is a LoRA trained this way still DreamBooth?* Many say "DreamBooth LoRA". DreamBooth is about
#   token and prior set, LoRA about what is trained; they combine.
# - *Why is the file of the full UNet half as large as its float32 weights?* It is saved in float16.

# %% [markdown]
# ## 6. The same for Stable Diffusion v1.5
#
# On torch's meta device (lesson 03) a network has shapes and no numbers. So the real sizes can be
# counted here, without a download and without a GPU.

# %%
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from stylenb.lora import TARGETS
from stylenb.weights import SD15_SIZES


def count_of(tensors):
    return sum(p.numel() for p in tensors)


with torch.device("meta"):
    unet = UNet2DConditionModel(**SD15_SIZES["unet"])
    vae = AutoencoderKL(**SD15_SIZES["vae"])
    text_encoder = CLIPTextModel(CLIPTextConfig(**SD15_SIZES["text"]))

whole = {"unet": count_of(unet.parameters()), "vae": count_of(vae.parameters())}
whole["text encoder"] = count_of(text_encoder.parameters())
for name, n in whole.items():
    print(f"{name:14s} {n:13,d} parameters")


def lora_count(rank):
    """Numbers in A and B of a LoRA on all attention projections (lesson 03, exercise 3)."""
    layers = [
        layer
        for name, layer in unet.named_modules()
        if name.endswith(TARGETS) and isinstance(layer, torch.nn.Linear)
    ]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


# %% [markdown]
# Frozen parts lie in memory in float16. The autoencoder and, where it is not trained, the text
# encoder are needed once, before the training starts (lesson 04), so they are left out. The last
# columns are weights + gradients + optimiser, by exercise 5; activations are still missing.

# %%
choices = {  # name: (trained inside the UNet, trained elsewhere)
    "full UNet": (whole["unet"], 0),
    "full UNet + text encoder": (whole["unet"], whole["text encoder"]),
    "transformer blocks": (count_of(trainable(unet, "transformer").values()), 0),
    "attention": (count_of(trainable(unet, "attention").values()), 0),
    "LoRA, rank 16": (0, lora_count(16)),
    "LoRA, rank 4": (0, lora_count(4)),
    "textual inversion": (0, SD15_SIZES["text"]["hidden_size"]),
}
large = {}
print(f"{'':26s}{'trained':>13s}{'file, fp16':>13s}{'fp32':>12s}{'AdamW':>10s}{'8-bit':>10s}")
for name, (inside, beside) in choices.items():
    n, frozen = inside + beside, whole["unet"] - inside
    frozen += whole["text encoder"] * (name == "textual inversion")  # it is needed at every step
    large[name] = n, training_bytes(n, frozen, 2, 8), training_bytes(n, frozen, 2, 2)
    print(
        f"{name:26s}{n:13,d}{2 * n / 1e6:10,.2f} MB{4 * n / 1e6:9,.2f} MB"
        f"{large[name][1] / 1e9:7.2f} GB{large[name][2] / 1e9:7.2f} GB"
    )
saving = [1 - large[name][2] / large[name][1] for name in ("full UNet", "LoRA, rank 4")]
print(f"\n8-bit AdamW saves {saving[0]:.0%} with the full UNet, {saving[1]:.1%} with a LoRA")

# %% [markdown]
# Even the activations can be counted on the meta device: shapes are enough for our hook. And torch
# can count **multiplications** in the same way, which says something about time, where memory does
# not hold things up.

# %%
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode

latents = torch.zeros(1, 4, SD15_SIZES["side"] // 8, SD15_SIZES["side"] // 8, device="meta")
condition = torch.zeros(1, 77, SD15_SIZES["text"]["hidden_size"], device="meta")


def one_step():
    """Of one training step: bytes of activations, and operations in TFLOP, as the UNet is now."""
    with FlopCounterMode(display=False) as operations, kept_activations(unet) as kept:
        output = unet(latents, torch.zeros(1, device="meta"), condition).sample
        activations = sum(kept.values())
        output.sum().backward()
    unet.zero_grad()
    return activations / 1e9, operations.get_total_flops() / 1e12


work = {"full UNet": one_step()}
unet.requires_grad_(False)
for p in trainable(unet, "attention").values():
    p.requires_grad_(True)
work["attention"] = one_step()
unet.requires_grad_(False)
with torch.device("meta"):
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(TARGETS)))
work["LoRA, rank 4"] = one_step()

print(f"{'batch 1, 512 px, float32':26s}{'activations':>13s}{'a step':>16s}{'all, AdamW':>13s}")
for name, (activations, operations) in work.items():
    together = activations + large[name][1] / 1e9
    print(f"{name:26s}{activations:10.2f} GB{operations:10.2f} TFLOP{together:10.2f} GB")
ratio = work["full UNet"][1] / work["LoRA, rank 4"][1]
print(f"\nby its operations, a step of the full UNet is {ratio:.2f} times one of the LoRA")

# %% [markdown]
# **What it means.** For the full UNet the state is the larger part: it is why full fine-tuning
# wants a large GPU, and 8-bit AdamW a smaller one. For a LoRA it is the activations, and 8-bit
# AdamW does next to nothing. **Gradient checkpointing** is for them: throw most of them away, and
# compute them again on the way back. (The activations are those of float32, for one picture; of two
# they are twice as many, and mixed precision takes about half of them. The meta device also keeps
# the matrices of the attention, which a fused kernel on a GPU does not.)
#
# ## 7. Somebody else's table
#
# The course grew out of reference material that compares DreamBooth and LoRA. Its claims, quoted,
# beside what we have counted and measured. A claim with a range **holds** if our figure lies in it.
# Where several figures could be meant, the code says for which of them it holds.


# %%
def judged(figures, low, high):
    """Figures by name -> the verdict on the claim that they lie between low and high."""
    fitting = [name for name, value in figures.items() if low <= value <= high]
    if len(fitting) == len(figures):
        return "holds"
    return f"holds for: {', '.join(fitting)}" if fitting else "does not hold"


claims, cannot = [], "can't be checked here"


def claim(text, unit, figures, low, high):
    listed = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
    claims.append((text, judged(figures, low, high), f"{listed} {unit}"))


million = {name: n / 1e6 for name, (n, *_) in large.items()}
files = {"float32": 4 * million["LoRA, rank 4"], "float16": 2 * million["LoRA, rank 4"]}
claim("LoRA, rank 4: 4-8 million trained", "million", {"counted": million["LoRA, rank 4"]}, 4, 8)
claim("LoRA: a file of 4-8 MB", "MB", files, 4, 8)
claim("LoRA: a file of 10-20 MB (elsewhere)", "MB", files, 10, 20)
claim("Full fine-tuning: 860 million trained", "million", {"UNet": million["full UNet"]}, 855, 865)
activations = work["full UNet"][0]
needed = {
    "AdamW at batch 1": large["full UNet"][1] / 1e9 + activations,
    "8-bit AdamW": large["full UNet"][2] / 1e9 + activations,
    "AdamW with a prior picture": large["full UNet"][1] / 1e9 + 2 * activations,
}
claim("Full fine-tuning: about 24 GB needed", "GB at 512 px", needed, 21, 27)
wide = ("full UNet", "full UNet + text encoder", "transformer blocks", "attention")
figures = {name: million[name] for name in wide}
claim("DreamBooth: 100-200 million trained", "million", figures, 100, 200)
total = sum(whole.values())
figures = {
    "pipeline in float16": 2 * total / 1e9,
    "in float32": 4 * total / 1e9,
    "UNet in float16": 2 * whole["unet"] / 1e9,
    "UNet in float32": 4 * whole["unet"] / 1e9,
    "to resume from": 12 * whole["unet"] / 1e9,
}
claim("DreamBooth: a checkpoint of 2-3 GB", "GB", figures, 2, 3)
figures = {
    "a step, timed on this base": taken["full"] / taken["LoRA"],
    "a step, counted for SD v1.5": ratio,
}
claim("LoRA trains 10-20 times faster", "times", figures, 10, 20)
claims.append(
    (
        "On a T4, LoRA takes 2-3 h, DreamBooth 4-6 h",
        cannot,
        f"no T4; by itself it says {4 / 3:.1f} to {6 / 2:.1f} times faster, not 10 to 20",
    )
)
kernels = torch.cuda.get_arch_list()  # the GPUs that this torch was built for
claims.append(
    (
        "It runs on a P100 (with this torch)",
        ("holds" if "sm_60" in kernels else "does not hold") if kernels else cannot,
        f"kernels of this torch: {', '.join(kernels) or 'none for GPUs'}; a P100 needs sm_60",
    )
)
for text, verdict, found in claims:
    print(f"{text:46s} {verdict}\n{'':6s}{found}")
tally = Counter(verdict.split(":")[0] for _, verdict, _ in claims)
print("\n" + ", ".join(f"{verdict}: {n}" for verdict, n in tally.most_common()))

# %% [markdown]
# **What it means.** Such tables are written once and copied often. Three habits help. Ask of what a
# figure is: of which layers, which rank, which precision, weights or whole state. Count what can be
# counted, as shapes are public. And compare a table with itself: two of its lines may not both be
# true.
#
# *Faster* deserves a second look. Per step it is what it is. But a LoRA bears a higher learning
# rate, so it may need fewer steps; it fits a larger batch into the same memory; and it needs no
# swapping where a full UNet would. Whoever measures all of that together gets larger numbers, which
# say as much about the GPU and the settings as about LoRA.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Is 24 GB right, then?* It is about what one needs who saves nothing, and that was the custom
#   once. With 8-bit AdamW and gradient checkpointing less will do.
# - *Why count operations and not time SD v1.5?* A step of it on a CPU takes minutes. Operations are
#   exact and the same for everybody; time adds what memory and kernels do.
# - *Where would 100 to 200 million come from?* Nobody knows. None of the usual choices has as many,
#   attention alone comes nearest.

# %% [markdown]
# ## 8. Photos: the prompt, or no prompt
#
# To stylise with DreamBooth, denoise with the prompt: `base.with_prompt(prompt)` is the base with
# this prompt in the place of `""`. Beside it the LoRA of section 5, trained alike and used with the
# same prompt, and the LoRA that comes with the course. That one was trained by lesson 04's
# pipeline, LPIPS and style loss included, and for longer; it is no fair comparison, but it is the
# one that matters in the end.

# %%
from stylenb import load_lora, set_scale, stylize
from stylenb.pocket.styles import apply_style

ready = style  # on "sd15": the path of a LoRA file for it
watched = [draw_scene(TEST_SEEDS + 60, size).picture, *photos]
truth = [apply_style(style, picture) for picture in watched]


def redrawn_at(strength):
    """The watched pictures, redrawn in three ways."""
    how = {"strength": strength, "seed": range(len(watched))}
    load_dreambooth(base, folder / "with.safetensors")
    found = {"DreamBooth, prompt": redraw(base.with_prompt(prompt), watched, **how)}
    undo_dreambooth(base)
    set_scale(base, load_lora(base, folder / "LoRA.safetensors"))
    found["LoRA, prompt"] = redraw(base.with_prompt(prompt), watched, **how)
    remove_lora(base, "LoRA")
    name = load_lora(base, ready)
    found["LoRA of the course"] = stylize(watched, ready, size=size, base=base, **how)
    remove_lora(base, name)
    return found


def show_photos(strength):
    found = {"original": watched} | redrawn_at(strength) | {"the truth": truth}
    return show.sheet(
        [pictures[row] for row in range(len(watched)) for pictures in found.values()],
        list(found),
        columns=len(found),
        width=1.25,
        title=f"Redrawn at strength {strength:.2f}",
        alt="A scene, a cat and a cup of coffee in rows: the original, redrawn by DreamBooth with "
        f"its prompt, by the LoRA with the same prompt, by the course's LoRA without a prompt, and "
        f"the true rendering in the style {style}, at strength {strength:.2f}.",
    )


show.interactive(show_photos, strength=(0.2, 1.0, 0.1, base.default_strength))

# %% [markdown]
# Look for two things: is it the style, and is it still this photo? *With this prompt*, DreamBooth's
# L2 has seen noised pictures of the style only, as "L2 alone" in lesson 04: nothing has taught it
# to turn a noised *photo* into the style. And the prompt says "painting", which the photo need not
# be.

# %% [markdown]
# ## 9. Undo, save, load, hand on
#
# A LoRA is taken out, and the base is what it was. DreamBooth has overwritten weights, so the old
# ones have to be kept: `train_dreambooth` and `load_dreambooth` do, in main memory, and
# `undo_dreambooth` puts them back. Bit for bit?


# %%
def weights():
    return {name: p.detach().clone() for name, p in base.unet.named_parameters()}


def equal(one, other):
    return sum(torch.equal(one[name], other[name]) for name in one)


at_first = weights()
about = load_dreambooth(base, folder / "with.safetensors")
loaded = weights()
undo_dreambooth(base)
print(f"equal after loading: {equal(at_first, loaded)} of {len(at_first)} weights")
print(f"equal after undoing: {equal(at_first, weights())} of {len(at_first)}")
print("the file knows that it belongs to", about["base"], "with the fingerprint", end=" ")
print(about["fingerprint"])

# %% [markdown]
# `save_dreambooth` writes the weights that were replaced, and no others. Without the base the file
# is of no use; so it carries the base's **fingerprint**, and another base is refused. So is a file
# of the wrong kind:

# %%
from stylenb import StylenbError

try:
    load_lora(base, folder / "with.safetensors")
except StylenbError as error:
    print(str(error).replace(str(folder), "FOLDER"))

# %% [markdown]
# Other programs know nothing of such a file. For them there is the **whole model**, as a folder in
# the layout of diffusers: `save_pipeline` writes it, with what DreamBooth has made of it. Plain
# diffusers opens it:

# %%
from diffusers import StableDiffusionPipeline

from stylenb.text_to_image import save_pipeline

load_dreambooth(base, folder / "with.safetensors")
model = save_pipeline(base, folder / "model")
mine = generate(base, prompt, num_inference_steps=num_inference_steps, seed=5)[0]
undo_dreambooth(base)

pipe = StableDiffusionPipeline.from_pretrained(model, torch_dtype=base.dtype).to(base.device)
pipe.set_progress_bar_config(disable=True)
how = {"num_inference_steps": num_inference_steps, "guidance_scale": base.default_guidance_scale}
theirs = pipe(prompt, generator=generator_at(5, 0), **how).images[0]
print("parts:", ", ".join(sorted(one.name for one in model.iterdir())))
print(f"difference between the pictures: {stylenb.psnr(mine, theirs):.1f} dB (inf: none)")
show.sheet(
    [mine, theirs],
    ["stylenb", "diffusers"],
    width=1.3,
    title="One prompt, two programs",
    alt=f"Two pictures for {prompt!r}, drawn by stylenb and by plain diffusers from the saved "
    "folder.",
)

# %%
listed = {"whole model (folder)": sum(f.stat().st_size for f in model.rglob("*") if f.is_file())}
listed |= {f"{name} (file)": n for name, n in sizes.items()}
for name, n in listed.items():
    print(f"{name:26s} {n / 1e3:10,.1f} kB")

# %% [markdown]
# `stylenb.load(folder)` opens the folder as a base of its own. A LoRA goes out as a file
# (`export_lora`, lesson 06), and the learned word as `learned_embeds.safetensors`, which diffusers'
# `load_textual_inversion` reads.
#
# ## 10. Which one, when?
#
# Keep the list of section 5 in view.
#
# - **LoRA** when one base is to serve many styles: small files that are switched on and off, turned
#   up and down, added (lesson 03), handed on. When memory is short. When the base must stay what it
#   is for everything else. For *stylising*, it needs no word, and so no prompt.
# - **DreamBooth on the whole UNet** when a thing is unlike anything that the base knows, and a
#   whole model of its own is no burden. First see whether a LoRA does as well. Mostly the thing is
#   a *subject*, this dog, this face, which has to appear in many settings, named by its word. Then
#   prior preservation is not a detail but half of the method.
# - **Attention alone** lies between the two in what is trained, in its file and in its state. It
#   shows that "full or LoRA" is not the only choice: what is trained can be chosen layer by layer.
# - **Textual inversion** when nothing may change, or when the file has to be tiny; and for finding
#   out whether the base can draw a thing already, for want of nothing but the word.
#
# Token and prior set go with any of the first three. They are about *what is said*, and the rest is
# about *what may move*.

# %% [markdown]
# ## Recap
#
# - The rare token is whole in the vocabulary and stands in no caption. It has an effect even before
#   training: look.
# - Prior preservation: half of the batch are pictures that the base drew for the class prompt
#   before the training. Each half has its own caption, mean and weight.
# - What a training breaks does not show where it was trained. Ask other prompts, and measure the
#   drift.
# - Weights + gradients + optimiser: 4 + 4 + 8 bytes for each trained number. Activations come on
#   top. They and the time of a step shrink far less than what is trained.
# - What may be changed decides what can be learned, and what can break.
# - A table is to be checked against shapes, against a clock, and against itself.
#
# ## If you want more
# - Train with `prior_loss_weight` 0.3 and 3, and draw drift against style: where would you stop?
# - Add `train="transformer"` to the methods. Which of its scores lies between those of attention
#   and full?
# - Lesson 03 asked whether an update that was *not* forced to be of low rank comes out low. Take a
#   projection's weight with the attention file loaded, subtract the old one, and look at its
#   singular values.
# - `text_encoder=True` trains the text encoder along. What happens to the drift of other prompts?
# - Use a common word in the place of the rare one, "a blue painting". What does the base draw for
#   "blue" afterwards?
