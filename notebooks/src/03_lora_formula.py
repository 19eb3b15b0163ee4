# ---
# jupyter:
#   stylenb:
#     title: The LoRA formula
#     about: >-
#       W' = W + α A B: one line that teaches a large model something new with a small file. You
#       write it by hand, as a layer and in a whole UNet, show that it equals the library's, and
#       look into a trained style.
#     read: 25
#     do: 45
#     needs: lessons 01 and 02, the product of two matrices; no GPU
# ---

# %% [markdown]
# **After this lesson you can**
#
# - write $W' = W + \alpha A B$ for one matrix, as a layer, and for every attention layer of a UNet,
# - show that it changes nothing at the start, and that it equals the LoRA of peft, the library,
# - tell which of A and B is which in other people's code, and convert their alpha,
# - count parameters and file size for any rank, and check a claim about them,
# - see how low the rank of a trained style is,
# - merge a style, take it out again, turn it up and down, and add two, exactly.
#
# There are six exercises. One that you leave out is filled in from the reference, so *Run all*
# always works.

# %% [markdown] tags=["instructor"]
# **Plan for 70 minutes.** One matrix: 12. Layer and UNet: 8. Peft, letters, alpha: 12. Sizes and
# claims: 8. Inside a style: 10. Merging: 7. Volume and two styles: 10. Weaknesses and recap: 3.
# Short of time? Leave out *Why divide by the rank* and the speed of merging. Keep the letters:
# every mix-up that people meet later comes from there.
#
# **On the board before you start:** a tall, thin A, a flat, wide B, and the square that they make.
# Leave it there for the whole lesson.

# %%
import stylenb

base = stylenb.load("pocket")  # or "sd15"
base

# %%
import copy
import re
import time

import torch
from torch import nn

from stylenb import psnr, sample_photo, to_pictures, to_tensor
from stylenb.course import lesson_03, show
from stylenb.inference import denoise, invert
from stylenb.pocket.scenes import draw_scene

_ = torch.set_grad_enabled(False)  # nothing is trained; one cell below asks for gradients

# %% [markdown]
# ## 1. One matrix
#
# The UNet's **attention** lets places of the picture look at each other (`attn1`) and at the prompt
# (`attn2`). Each does so through four **projections**: `to_q`, `to_k`, `to_v` and `to_out.0`. A
# projection is a matrix: a row of numbers goes in, a row of numbers comes out. Some have a bias as
# well, which a LoRA leaves alone.

# %%
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def projections(unet):
    """The projections of every attention in a plain UNet: name -> nn.Linear."""
    return {
        name: layer
        for name, layer in unet.named_modules()
        if name.endswith(TARGETS) and isinstance(layer, nn.Linear)
    }


layers = projections(base.unet)
name = max(layers, key=lambda one: layers[one].weight.numel())  # one of the largest
print(len(layers), "projections, among them", name)
print("its weight, as torch stores it", tuple(layers[name].weight.shape), "(out, in)")

# %% [markdown]
# Torch stores the weight as (out, in). Our formula reads from left to right, as the data flow: a
# row $x$ comes first, $y = x W$, so $W$ is (in, out).


# %%
def matrix(name):
    """W of one layer of the base, (in, out), as the formula has it."""
    return layers[name].weight.flatten(1).T.float().cpu()


W = matrix(name)
inputs, outputs = W.shape
print("W", tuple(W.shape), "(in, out):", W.numel(), "numbers")

# %% [markdown]
# **Fine-tuning** finds a better matrix $W'$ for the pictures at hand. What has changed, the
# **update** $W' - W$, is a matrix of the same size. LoRA (*low-rank adaptation*, Hu et al. 2021,
# https://arxiv.org/abs/2106.09685) allows only updates of one kind: a thin matrix times a flat one.
#
# $$W' = W + \alpha \, A B \qquad A: (\text{in}, r) \quad B: (r, \text{out})$$
#
# $r$ is the **rank**, often 4 to 32. (This α has nothing to do with the α of the noise in lessons
# 01 and 02.) **Predict:** which share of the numbers of $W$ do A and B have together at rank 4?

# %%
rank = 4
generator = torch.Generator().manual_seed(0)
A = torch.randn(inputs, rank, generator=generator) / inputs**0.5
B = torch.randn(rank, outputs, generator=generator)
update = A @ B
print("A", tuple(A.shape), " B", tuple(B.shape), " A B", tuple(update.shape))
print(f"{A.numel() + B.numel()} numbers stand for {update.numel()}: ", end="")
print(f"{(A.numel() + B.numel()) / update.numel():.1%}")

# %% [markdown]
# So few numbers cannot say everything that a whole matrix can. What is the price?

# %%
ranks = [1, 2, 4, 24]
columns = torch.randn(24, 24, generator=generator)
rows = torch.randn(24, 24, generator=generator)
show.sheet(
    [columns[:, :r] @ rows[:r] for r in ranks],
    [f"rank {r}" for r in ranks],
    cmap="RdBu_r",
    pixels=True,
    title="A B for growing rank",
    alt="Four maps of 24 by 24 numbers. At rank 1 all rows show one pattern of stripes, lighter, "
    "darker or turned round; at rank 2 and 4 the pattern loosens; at rank 24 it looks like noise.",
)

# %% [markdown]
# **What it means.** At rank 1, every row of $AB$ is the same row, only stronger, weaker or with the
# signs turned round. Rank $r$ mixes $r$ such rows. So LoRA bets that what a style has to change in
# a layer can be said with few patterns. Section 5 looks whether a trained style needs all of its.
#
# ### Where to start
# At the start, the model should be what it was. So one of the two starts at zero. **Predict:** why
# not both?

# %%
x = torch.randn(16, inputs, generator=generator)
wanted = torch.randn(16, outputs, generator=generator)


def gradients(A, B, alpha=1.0):
    """The largest gradient of A and of B for a squared error."""
    with torch.enable_grad():
        A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
        ((x @ W + alpha * x @ A @ B - wanted) ** 2).mean().backward()
    return float(A.grad.abs().max()), float(B.grad.abs().max())


zero_A, zero_B = torch.zeros_like(A), torch.zeros_like(B)
starts = {
    "both random": (A, B),
    "A random, B zero": (A, zero_B),
    "A zero, B random": (zero_A, B),
    "both zero": (zero_A, zero_B),
}
for start, (one, other) in starts.items():
    for_A, for_B = gradients(one, other)
    moved = float((one @ other).abs().max())
    print(f"{start:17s} max |W' - W| = {moved:.2f}   gradient of A {for_A:.4f}, of B {for_B:.4f}")

# %% [markdown]
# **What it means.** The gradient of A contains B, and the gradient of B contains A. With both at
# zero there is no gradient at all, and the LoRA stays silent for ever. With one at zero, that one
# moves in the first step and the other from the second step on. The custom is: A random, **B
# zero**.
#
# ### Exercise 1: forward
# Send rows $x$ through $W' = W + \alpha A B$.


# %% tags=["exercise"]
def lora_forward(x, W, A, B, alpha):
    """x (N, in), W (in, out), A (in, r), B (r, out), alpha a number -> (N, out)."""
    return ...  # your code


# %% tags=["solution"]
def lora_forward(x, W, A, B, alpha):
    """x (N, in), W (in, out), A (in, r), B (r, out), alpha a number -> (N, out)."""
    return x @ W + alpha * (x @ A @ B)


# %% tags=["check"]
lora_forward = lesson_03.check("lora_forward", lora_forward)

# %% [markdown]
# <details><summary>Hint 1</summary>A row times a matrix is <code>x @ W</code>.</details>
# <details><summary>Hint 2</summary>Write the formula and put <code>x @</code> in front of both
# terms.</details>
# <details><summary>Hint 3</summary><code>x @ A</code> has the shape (N, r): a detour through r
# numbers. Then <code>@ B</code>, times alpha.</details>

# %% [markdown]
# There are two ways: build $W'$ first, or keep W as it is and send $x$ on a **detour** through A
# and B. The result is the same but for rounding:

# %%
detour = lora_forward(x, W, A, B, 0.5)
built = x @ (W + 0.5 * A @ B)
print(f"largest difference {float((detour - built).abs().max()):.1e}")
print(f"multiplications for one row: {inputs * outputs} for W, ", end="")
print(f"{rank * (inputs + outputs)} more for the detour")

# %% [markdown]
# In training one takes the detour: W is frozen and shared, and gradients are needed for A and B
# only. For use, building $W'$ once saves the detour; that is *merging*, section 6.

# %% [markdown]
# ## 2. As a layer, and in the whole UNet
#
# The detour, packed so that it can stand in for any `nn.Linear`:


# %%
class LoRALinear(nn.Module):
    """A frozen linear layer with alpha A B added to its matrix."""

    def __init__(self, layer, rank, alpha=1.0, generator=None):
        super().__init__()
        self.layer, self.alpha = layer.requires_grad_(False), alpha
        inputs, outputs = layer.in_features, layer.out_features
        A = torch.empty(inputs, rank).uniform_(-1, 1, generator=generator) / inputs**0.5
        self.A = nn.Parameter(A.to(layer.weight.device))
        self.B = nn.Parameter(torch.zeros(rank, outputs, device=layer.weight.device))

    def forward(self, x):
        detour = x.to(self.A.dtype) @ self.A @ self.B
        return self.layer(x) + self.alpha * detour.to(x.dtype)


def replace_projections(unet, rank, alpha=1.0, seed=0):
    """Put a LoRALinear in the place of every projection: name -> the new layer."""
    generator = torch.Generator().manual_seed(seed)
    added = {}
    for name, layer in projections(unet).items():
        parent, _, child = name.rpartition(".")
        added[name] = LoRALinear(layer, rank, alpha, generator)
        setattr(unet.get_submodule(parent), child, added[name])
    return added


# %% [markdown]
# That is all of LoRA. We put it into a copy of the UNet and compare the noise that the two predict,
# for two random latents.
#
# **Predict:** how large will the largest difference be before any training?


# %%
def with_own_unet(base):
    """The base with a copy of its UNet in float32, so that the original stays what it is."""
    own = copy.copy(base)
    own.unet, own.dtype = copy.deepcopy(base.unet).float(), torch.float32
    return own


side, channels = base.unet.config.sample_size, base.unet.config.in_channels
noisy = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))

ours = with_own_unet(base)
before = ours.predict_noise(noisy, 500)
added = replace_projections(ours.unet, rank=4, alpha=0.5)
after = ours.predict_noise(noisy, 500)

trainable = sum(p.numel() for p in ours.unet.parameters() if p.requires_grad)
everything = sum(p.numel() for p in ours.unet.parameters())
print(f"{len(added)} projections replaced")
print(f"{trainable:,} of {everything:,} parameters can be trained: {trainable / everything:.1%}")
print("largest difference:", float((after - before).abs().max()))

# %% [markdown]
# Exactly zero, not nearly: B is zero, so every detour adds 0. If a LoRA of yours makes another
# picture before it was trained, something is wrong with it.
#
# Training will move B. We have none yet, so random numbers take its place:

# %%
generator = torch.Generator().manual_seed(1)
for one in added.values():
    one.B.copy_(0.5 * torch.randn(one.B.shape, generator=generator))
changed = ours.predict_noise(noisy, 500)
print(f"largest difference: {float((changed - before).abs().max()):.3f}")

# %% [markdown]
# ## 3. The same as the library's
#
# **peft** is the library that diffusers uses for LoRA. It gets another copy of the UNet, and we
# write our A and B into it. Look at the shapes: peft's are turned round, because torch stores
# weights as (out, in). And look at `lora_alpha`, which peft divides by the rank.

# %%
from peft import LoraConfig

theirs = with_own_unet(base)
config = LoraConfig(r=4, lora_alpha=0.5 * 4, target_modules=list(TARGETS))
theirs.unet.add_adapter(config, "copied")
modules = dict(theirs.unet.named_modules())
for where, one in added.items():
    modules[where].lora_A["copied"].weight.copy_(one.A.T)
    modules[where].lora_B["copied"].weight.copy_(one.B.T)

where = next(one for one in added if one.endswith("attn2.to_k"))
print(where)
print("our A ", tuple(added[where].A.shape), " our B ", tuple(added[where].B.shape))
print("lora_A", tuple(modules[where].lora_A["copied"].weight.shape), end="  ")
print("lora_B", tuple(modules[where].lora_B["copied"].weight.shape))
print("our alpha", added[where].alpha, " peft's scaling", modules[where].scaling["copied"])

difference = float((theirs.predict_noise(noisy, 500) - changed).abs().max())
print(f"\nlargest difference {difference:.1e}, below 1e-5: {difference < 1e-5}")

# %% [markdown]
# Our twenty lines and the library compute the same; what is left is rounding, because the library
# multiplies in another order. From here on the library does it.

# %%
del ours, theirs, added, modules  # copies of a large UNet are large

# %% [markdown]
# ### Which is which
#
# | | data | shape of W | update | |
# | --- | --- | --- | --- | --- |
# | this course | a row, $x W$ | (in, out) | $\alpha \, A B$ | A (in, r), B (r, out) |
# | the paper | a column, $W x$ | (out, in) | $\frac{\alpha}{r} \, B A$ | A (r, in), B (out, r) |
# | peft | a row, W stored turned | (out, in) | `lora_alpha / r * lora_B @ lora_A` | as the paper |
# | kohya's files | as peft | (out, in) | `alpha / dim * lora_up @ lora_down` | dim is the rank |
#
# (kohya is the author of a trainer that is much used; many programs read its file format.)
#
# In all four, **A (down) is what the data meet first**: from in to r. **B (up)** comes second, from
# r to out, and starts at zero. Only the order on paper differs: rows read from left to right,
# columns from right to left, as $(AB)^\top = B^\top A^\top$.
#
# You will also meet $W' = W + \alpha A B$, or $A B^\top$, with W as torch stores it. Then A is
# (out, r), and **the letters have changed places**. So go by shapes, never by letters: the factor
# with *in* in its shape is the down one.
#
# The alphas differ as well. The course's α is the number that really multiplies $AB$. peft and
# kohya divide theirs by the rank first. A program's "LoRA weight" or "scale" (in diffusers
# `set_adapters`) multiplies on top of either.
#
# ### Exercise 2: alpha
# `value` is the alpha that `source` writes for a LoRA of this rank. Which number does `target`
# write for the same LoRA? Both are `"course"`, `"peft"` or `"kohya"`.


# %% tags=["exercise"]
def convert_alpha(value, rank, source, target):
    """A number, a whole number, two of "course", "peft" and "kohya" -> a number."""
    return ...  # your code


# %% tags=["solution"]
def convert_alpha(value, rank, source, target):
    """A number, a whole number, two of "course", "peft" and "kohya" -> a number."""
    alpha = value if source == "course" else value / rank
    return alpha if target == "course" else alpha * rank


# %% tags=["check"]
convert_alpha = lesson_03.check("convert_alpha", convert_alpha)

# %% [markdown]
# <details><summary>Hint 1</summary>Two steps: from the source to the course's alpha, from there to
# the target.</details>
# <details><summary>Hint 2</summary>peft and kohya multiply A B by alpha / rank, and that is the
# course's alpha.</details>
# <details><summary>Hint 3</summary>So divide by the rank if the source is not the course, and
# multiply by it if the target is not.</details>

# %%
for case in ((1.0, 4, "course", "peft"), (8, 4, "kohya", "course"), (16, 8, "peft", "kohya")):
    value, r, source, target = case
    print(f"rank {r}: {source}'s {value} is {target}'s {convert_alpha(*case)}")

# %% [markdown]
# **What it means.** A file without its alpha is only half a LoRA: whoever opens it has to guess. If
# the guess is alpha = rank, a LoRA that was trained with twice that plays at half its strength.
# kohya's files keep alpha beside each pair. A pipeline of diffusers keeps it in the file's
# metadata, but only if it is handed over when saving; `stylenb.save_lora` always writes it.
#
# ### Why divide by the rank?
# Let a LoRA take its first training step, on one matrix with a random gradient G. B is zero, its
# gradient is $\alpha A^\top G$, and the usual optimiser, Adam, starts with steps of one size:
# `learning_rate` times the sign. How far does the loss fall? (To first order that is the sum of
# update × G.)

# %%
G = torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(2))


def first_step(rank, alpha, learning_rate=1e-3):
    """How far the loss falls in the first step of Adam, to first order."""
    generator = torch.Generator().manual_seed(rank)
    A = (torch.rand(inputs, rank, generator=generator) * 2 - 1) / inputs**0.5
    B = -learning_rate * torch.sign(alpha * A.T @ G)
    return -float((alpha * A @ B * G).sum())


for r in (1, 4, 16, 64):
    fixed, divided = first_step(r, 1.0), first_step(r, 1.0 / r)
    print(f"rank {r:2d}: {fixed:6.2f} with alpha 1, {divided:6.2f} with alpha 1 / rank")

# %% [markdown]
# **What it means.** At a fixed α, a LoRA of 16 times the rank learns about 16 times as fast in the
# first step: more rows of B move, each as far. Dividing by the rank evens that out, so that one
# learning rate does for all ranks, in the first step at least. (For a whole training some divide by
# the root of the rank instead: `use_rslora` in peft.) Neither way is wrong. In the course, where α
# is the number that counts, **rank and learning rate belong together**: whoever compares ranks at
# one α and one learning rate compares learning rates (lesson 04).

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Which alpha should I set?* In training, α and the learning rate do nearly the same thing;
#   choose one and tune the other. The course leaves α at 1.
# - *Why did the paper write B A?* It writes data as columns, as papers mostly do.
# - *rsLoRA?* It divides by the square root of the rank (quoted: Kalajdzievski 2023,
#   https://arxiv.org/abs/2312.03732). peft has it as `use_rslora`. Same formula, another alpha.

# %% [markdown]
# ## 4. How many parameters, how large a file?
#
# ### Exercise 3: count them
# Given are the shapes of all weights that get a LoRA, as torch stores them, and a rank. How many
# numbers do all A and B have together?


# %% tags=["exercise"]
def lora_parameters(shapes, rank):
    """A list of (out, in), a whole number -> how many numbers all A and B have together."""
    return ...  # your code


# %% tags=["solution"]
def lora_parameters(shapes, rank):
    """A list of (out, in), a whole number -> how many numbers all A and B have together."""
    return sum(rank * (outputs + inputs) for outputs, inputs in shapes)


# %% tags=["check"]
lora_parameters = lesson_03.check("lora_parameters", lora_parameters)

# %% [markdown]
# <details><summary>Hint 1</summary>How many numbers has A of the shape (in, r)? And B of the shape
# (r, out)?</details>
# <details><summary>Hint 2</summary>Together r × (in + out) for one layer.</details>
# <details><summary>Hint 3</summary><code>sum(... for outputs, inputs in shapes)</code> adds them up
# over the layers.</details>

# %% [markdown]
# Does it agree with what section 2 counted in the real layers? And what about Stable Diffusion v1.5
# itself? We need no download for that: on torch's **meta device**, a network has all its layers and
# shapes but no numbers, and takes no memory.

# %%
from diffusers import UNet2DConditionModel

with torch.device("meta"):
    sd15 = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)

shapes = [layer.weight.shape for layer in layers.values()]
sd15_shapes = [layer.weight.shape for layer in projections(sd15).values()]
total = sum(p.numel() for p in sd15.parameters())
print(f"the formula says {lora_parameters(shapes, 4):,}, section 2 counted {trainable:,}")
print(f"SD v1.5's UNet: {total:,} parameters, {len(sd15_shapes)} projections")

print(f"\nrank  {base.name:>10s}  in float16    SD v1.5  in float32  in float16")
for r in (1, 2, 4, 8, 16, 32, 64):
    here, there = lora_parameters(shapes, r), lora_parameters(sd15_shapes, r)
    print(f"{r:4d}  {here:10,d}  {2 * here / 1e6:7.2f} MB {there:10,d}", end="  ")
    print(f"{4 * there / 1e6:7.2f} MB  {2 * there / 1e6:7.2f} MB")

# %% [markdown]
# A number takes 4 bytes in float32 and 2 in float16. Names and metadata come on top, some tens of
# kilobytes at most.
#
# Now some statements that go round in tutorials. Do they hold?

# %%
rank4 = lora_parameters(sd15_shapes, 4)
statements = [
    ("LoRA of rank 4 trains 4 to 8 million parameters", rank4 / 1e6, 4, 8, "million"),
    ("its file has 4 to 8 MB, if in float32", 4 * rank4 / 1e6, 4, 8, "MB"),
    ("its file has 4 to 8 MB, if in float16", 2 * rank4 / 1e6, 4, 8, "MB"),
    ("its file has 10 to 20 MB, if in float32", 4 * rank4 / 1e6, 10, 20, "MB"),
    ("full fine-tuning of the UNet trains 860 million", total / 1e6, 855, 865, "million"),
]
for text, counted, low, high, unit in statements:
    verdict = "holds" if low <= counted <= high else "does not hold"
    print(f"{text:48s} {verdict:14s} counted: {counted:6.2f} {unit}")

fitting = [r for r in range(1, 129) if 4e6 <= lora_parameters(sd15_shapes, r) <= 8e6]
print(f"\n4 to 8 million parameters are the ranks {fitting[0]} to {fitting[-1]}")

# %%
figure = show.figure(
    6,
    2.8,
    "LoRA on the attention of SD v1.5",
    alt="A straight line of parameters against rank. At rank 4 it is far below the band from 4 to "
    f"8 million, which it crosses between the ranks {fitting[0]} and {fitting[-1]}.",
)
axes = figure.subplots()
axes.axhspan(4, 8, color="#f2c14e", alpha=0.5, label="4 to 8 million")
tried = list(range(1, 49))
axes.plot(tried, [lora_parameters(sd15_shapes, r) / 1e6 for r in tried], color="#4f7cac")
axes.plot(4, rank4 / 1e6, "o", color="#b5483a", label="rank 4")
axes.set_xlabel("rank")
axes.set_ylabel("million parameters")
axes.legend(fontsize=8)
figure

# %% [markdown]
# **What it means.** The count grows in proportion to the rank and to the number of layers that get
# a LoRA. Larger numbers than these come from larger ranks or from more layers; some trainers also
# give one to convolutions, feed-forward layers or the text encoder. When somebody tells you a size,
# ask for the rank, the layers, and the precision of the file.

# %% [markdown]
# ## 5. Inside a trained style
#
# The styles that come with the course are LoRAs trained on 16 pictures each. What is in such a
# file?

# %%
from safetensors import safe_open

from stylenb.lora import set_scale
from stylenb.lora_files import find_lora, load_lora

plain = with_own_unet(base)  # a copy without LoRA, for what we do by hand

# two of the shipped styles, which all have one rank and the same layers; on "sd15" two paths
style, other = "ink", "woodcut"

with safe_open(find_lora(style), "pt") as file:
    keys = list(file.keys())
    for key in keys[:2]:
        print(key, file.get_slice(key).get_shape())
print(f"... and {len(keys) - 2} more")

# %% [markdown]
# Pairs of A and B, nothing else, in peft's shapes. We load two styles and turn the pairs into those
# of our formula. Not only the projections of the attention may have one: a transformer block also
# has **feed-forward** matrices (`ff`), and one each that leads into the block and out of it
# (`proj_in`, `proj_out`; a 1 × 1 convolution is a matrix that is used at every place). Lesson 04
# says when these are worth it. See which this style has:


# %%
def pairs(name):
    """The LoRA ``name`` in the base: layer -> (A, B, alpha) as the formula has them."""
    found = {}
    for where, module in base.unet.named_modules():
        if name in getattr(module, "lora_A", {}):
            A = module.lora_A[name].weight.flatten(1).T.float().cpu()
            B = module.lora_B[name].weight.flatten(1).T.float().cpu()
            found[where] = A, B, module.lora_alpha[name] / module.r[name]
    return found


first, second = load_lora(base, style), load_lora(base, other)
set_scale(base, None)  # both are there, neither is heard
trained, trained_too = pairs(first), pairs(second)
layers = {where: base.unet.get_submodule(where).base_layer for where in trained}
plain_layers = {where: plain.unet.get_submodule(where) for where in trained}

A, _, alpha = trained[name]
rank = A.shape[1]
counted = lora_parameters([matrix(where).T.shape for where in trained], rank)
size = find_lora(style).stat().st_size
print(f"{first}: rank {rank}, alpha {alpha}, {len(trained)} layers, of which ", end="")
print(f"{sum('.attn' in where for where in trained)} are projections of the attention")
print(f"counted {counted:,} parameters, the file has {size:,} bytes")

# %% [markdown]
# An alpha above 1? It was trained at 1 and turned up when it was finished; lesson 04 says why, and
# tries other values. (All the shipped styles have 1.5.)
#
# How much has training changed? The size of a matrix is the root of the sum of its squares. We
# print the size of the update as a share of that of $W$, the largest first. **Predict:** which kind
# of layer has moved most?

# %%
relative = {}
for where, (A, B, alpha) in trained.items():
    kind = re.sub(r".*attentions\.\d+\.(transformer_blocks\.\d+\.)?", "", where)
    relative.setdefault(kind, []).append(float((alpha * A @ B).norm() / matrix(where).norm()))
for kind, sizes in sorted(relative.items(), key=lambda item: -sum(item[1]) / len(item[1])):
    print(f"{kind:15s} update / W: {sum(sizes) / len(sizes):6.1%} on average")

# %% [markdown]
# ### How low is its rank?
# Every matrix is a sum of matrices of rank 1, the first of which is as large as possible, then the
# next, and so on. The **singular value decomposition** finds them: column, size (the **singular
# value**), row.
#
# $$M = \sum_i s_i \; u_i v_i \qquad s_1 \ge s_2 \ge \dots \ge 0$$
#
# **Predict:** how many singular values of an update $\alpha A B$ are not zero?

# %%
A, B, alpha = trained[name]
values = torch.linalg.svdvals(alpha * A @ B)
print(f"{len(values)} singular values. The first {rank + 2}:")
print("  ".join(f"{value:.2g}" for value in values[: rank + 2]))

# %% [markdown]
# At most $r$; what comes after is rounding. So much was fixed before training. What training
# decided is how much lies in the first few.
#
# ### Exercise 4: keep the first k
# The sum of the first $k$ terms is the nearest matrix of rank $k$ there is. Compute it, for a
# matrix of any shape. `U, S, Vh = torch.linalg.svd(update, full_matrices=False)` gives the columns
# `U[:, i]`, the sizes `S[i]` and the rows `Vh[i]`.


# %% tags=["exercise"]
def keep_rank(update, k):
    """A matrix, a whole number -> the nearest matrix of rank k, of the same shape."""
    return ...  # your code


# %% tags=["solution"]
def keep_rank(update, k):
    """A matrix, a whole number -> the nearest matrix of rank k, of the same shape."""
    U, S, Vh = torch.linalg.svd(update, full_matrices=False)
    return U[:, :k] * S[:k] @ Vh[:k]


# %% tags=["check"]
keep_rank = lesson_03.check("keep_rank", keep_rank)

# %% [markdown]
# <details><summary>Hint 1</summary>Take the first k columns of U, the first k of S, the first k
# rows of Vh.</details>
# <details><summary>Hint 2</summary>Multiply each column of U by its singular value: <code>U[:, :k]
# * S[:k]</code> does that.</details>
# <details><summary>Hint 3</summary>Then <code>@ Vh[:k]</code> adds up all products of a column and
# a row.</details>

# %% [markdown]
# A photograph is a matrix too. How many terms does it need?

# %%
grey = to_tensor(sample_photo("chelsea", 128))[0].mean(0)
tried = [1, 4, 16, 64, 128]
show.sheet(
    [keep_rank(grey, k) for k in tried],
    [f"rank {k}" for k in tried],
    cmap="gray",
    limits=(-1, 1),
    title="A cat, to the nearest matrix of rank k",
    alt="A cat's face in grey. At rank 1 only crossing bands, at rank 4 blurred blocks, at rank 16 "
    "a cat with streaks, at rank 64 and 128 the photograph.",
)

# %% [markdown]
# Back to the style. The **energy** of the first $k$ is their share in the sum of all squared
# singular values: 100 % means that nothing is left out.
#
# **Predict:** will the update of a trained style be flat (all $r$ equally important) or steep?


# %%
def energy(matrix, count):
    """The share of the first 0, 1, ..., count singular values in the sum of squares."""
    squares = torch.linalg.svdvals(matrix) ** 2
    return torch.cat([torch.zeros(1), (squares.cumsum(0) / squares.sum())[:count]])


energies = torch.stack([energy(A @ B, rank) for A, B, _ in trained.values()])
before = torch.stack([energy(matrix(where), rank) for where in trained]).mean(0)
noise = torch.randn(W.shape, generator=torch.Generator().manual_seed(3))

figure = show.figure(
    6.5,
    3,
    f"{first}: energy of the first k singular values",
    alt=f"Share of energy against k, up to {rank}. The updates of all layers climb to 100 % "
    f"at k = {rank}; their mean has {float(energies.mean(0)[1]):.0%} at k = 1. The curve of the W, "
    "on average, stays far below, and that of random numbers below both.",
)
axes = figure.subplots()
axes.plot(energies.T.numpy(), color="#4f7cac", alpha=0.15)
axes.plot(energies.mean(0).numpy(), color="#1d3557", linewidth=2, label="updates, mean")
axes.plot(before.numpy(), "--", color="#b5483a", label="the W, mean")
axes.plot(energy(noise, rank).numpy(), ":", color="black", label="random numbers")
axes.set_xlabel("k")
axes.set_ylabel("share of the energy")
axes.legend(fontsize=8, loc="center right", bbox_to_anchor=(1, 0.66))
figure

# %%
for k in range(1, rank + 1):
    column = energies[:, k]
    print(f"first {k}: {column.mean():6.1%} on average, from {column.min():.1%} ", end="")
    print(f"to {column.max():.1%}")

# %% [markdown]
# Energy is about numbers. What about pictures? We cut every update down to rank $k$, write $W +$
# what is left into the plain copy, and redraw two pictures with it.

# %%
pictures = [draw_scene(9, base.image_size).picture, sample_photo("chelsea", base.image_size)]
latents = base.encode(to_tensor(pictures)).float()


def redraw(one_base, strength=base.default_strength):
    """Our two pictures, turned into noise by the bare base and drawn again by one_base."""
    how = {"strength": strength, "attention": []}  # lesson 06, section 1, says what it holds
    noisy = invert(base, latents, **how)  # lesson 02, section 9
    denoised = denoise(one_base, latents, solver="inversion", noisy=noisy, **how)
    return to_pictures(base.decode(denoised))


def write(where, W_new):
    """Put a matrix (in, out) into a layer of the plain copy."""
    weight = plain_layers[where].weight
    weight.copy_(W_new.T.reshape(weight.shape))


def redraw_with_rank(k):
    """Our two pictures with every update of the style cut down to rank k."""
    for where, (A, B, alpha) in trained.items():
        write(where, matrix(where) + (keep_rank(alpha * A @ B, k) if k else 0))
    return redraw(plain)


tried = [0, *(k for k in (1, 2, 4, 8, 16, 32) if k < rank), rank]
by_rank = {k: redraw_with_rank(k) for k in tried}
show.sheet(
    [by_rank[k][row] for row in range(2) for k in tried],
    [f"rank {k}" for k in tried],
    columns=len(tried),
    width=1.4,
    title=f"{first}, cut down to rank k",
    alt="A drawn scene and a cat, redrawn with growing k: at rank 0 by the base without the style, "
    "at the last with all of the style.",
)

# %%
full = by_rank[rank]
for k in tried[:-1]:
    print(f"rank {k}: {psnr(by_rank[k], full):5.1f} dB from the picture with all of the style")
enough = next((k for k in tried[:-1] if psnr(by_rank[k], full) >= 30), rank)
print(f"above 30 dB, where it gets hard to tell them apart: from rank {enough} on, of {rank}")

# %% [markdown]
# **What it means.** Read three things off your numbers. How steep the curve is: a curve far above a
# straight line says that the style leans on its first few patterns. Where the pictures stop
# changing: so much rank does for this style *after* training. And how $W$ itself compares: it leans
# on its first patterns, too, but far less, and most of it lies in a long tail. The model is not of
# low rank; what a style changes is forced to be.
#
# What this does not show: that an update of full rank would have come out low as well. This one had
# no choice. Lesson 05 fine-tunes without LoRA, and there the question can be asked.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *So train with rank 1 or 2?* Not quite the same: training with few patterns has to find the good
#   ones at once, while cutting picks them afterwards. Let them try it in lesson 04. Cutting down
#   after training is a common way to shrink files.
# - *Is the energy the importance?* No. A small singular value can sit where the picture is
#   sensitive. That is why we look at pictures as well.
# - *Why is the curve of random numbers so low?* A random matrix has no favourite direction, so the
#   first k of n singular values hold only a few times k / n of the energy. W began as random
#   numbers; training has given it favourite directions, but not made it low.

# %% [markdown]
# ## 6. Merge and unmerge
#
# **Merging** writes $W'$ in the place of $W$. Then there is no detour, and no LoRA any more, only a
# model with other numbers.
#
# ### Exercise 5: merge
# Now with the weight **as torch stores it**, (out, in), and A and B as in the formula.


# %% tags=["exercise"]
def merge(weight, A, B, alpha):
    """weight (out, in), A (in, r), B (r, out), alpha a number -> the new weight (out, in)."""
    return ...  # your code


# %% tags=["solution"]
def merge(weight, A, B, alpha):
    """weight (out, in), A (in, r), B (r, out), alpha a number -> the new weight (out, in)."""
    return weight + alpha * (A @ B).T


# %% tags=["check"]
merge = lesson_03.check("merge", merge)

# %% [markdown]
# <details><summary>Hint 1</summary>Which shape has A @ B, and which has the weight?</details>
# <details><summary>Hint 2</summary><code>.T</code> turns (in, out) into (out, in).</details>
# <details><summary>Hint 3</summary>The formula, with A B turned: weight + alpha × (A B)
# transposed.</details>

# %% [markdown]
# In self-attention in and out are equal, so a forgotten `.T` raises no error: the LoRA is loaded,
# the shapes fit, and the pictures are wrong.
#
# The whole style, merged by hand into the plain copy, against the library's detour:

# %%
for where, (A, B, alpha) in trained.items():
    write(where, merge(matrix(where).T, A, B, alpha).T)
by_hand = plain.predict_noise(noisy, 500)

set_scale(base, first, 1.0)
detour = base.predict_noise(noisy, 500)
set_scale(base, None)
without = base.predict_noise(noisy, 500)
print(f"the style changes the predicted noise by up to {float((detour - without).abs().max()):.3f}")
print(f"merged and detour differ by up to {float((by_hand - detour).abs().max()):.1e}")

# %% [markdown]
# Equal but for rounding. And back? $W' - \alpha A B$ should be $W$.
#
# **Predict:** exactly, to the last bit?

# %%
weight = layers[name].weight.float().cpu()
A, B, alpha = trained[name]
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    start, update = weight.to(dtype), (alpha * (A @ B).T).to(dtype)
    back = (start + update) - update
    wrong = float((back != start).float().mean())
    largest = float((back - start).abs().max() / start.abs().max())
    print(
        f"{str(dtype):15s} {wrong:5.1%} of the numbers differ, by up to {largest:.0e} of the range"
    )

# %% [markdown]
# No. A sum is rounded to the precision at hand, and what was rounded away does not come back:
# little in float32, much more in half precision. `stylenb.lora` has both directions, and subtracts
# too. Whoever wants W back exactly **keeps a copy**.

# %%
from stylenb.lora import merge_lora, unmerge_lora

kept = {where: layer.weight.clone() for where, layer in layers.items()}


def intact():
    """How many layers are what they were, bit for bit."""
    return sum(torch.equal(layer.weight, kept[where]) for where, layer in layers.items())


def restore():
    """Write the copies back."""
    for where, layer in layers.items():
        layer.weight.copy_(kept[where])


merge_lora(base, first)
merged = base.predict_noise(noisy, 500)
unmerge_lora(base)
again = base.predict_noise(noisy, 500)
print(f"merged by stylenb and detour differ by up to {float((merged - detour).abs().max()):.1e}")
print(f"before merging and after unmerging, by up to {float((again - without).abs().max()):.1e}")
print(f"bit for bit the same: {intact()} of {len(kept)} layers")
restore()
print(f"and with the copies written back: {intact()} of {len(kept)}")

# %% [markdown]
# What does merging buy? A and B have few numbers beside these layers, and the rest of the UNet is
# not touched at all. **Predict:** will they add as little to the time?


# %%
def milliseconds():
    """The quicker of two noise predictions."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        base.predict_noise(noisy, 500).cpu()
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


times = []
for _ in range(7):  # in turns, so that whatever else the machine does is shared fairly
    set_scale(base, None)
    off = milliseconds()
    set_scale(base, first, 1.0)
    on = milliseconds()
    merge_lora(base, first)
    times.append((off, on, milliseconds()))
    unmerge_lora(base)
    restore()
off, on, together = torch.tensor(times).median(0).values.tolist()
more = sum(A.numel() + B.numel() for A, B, _ in trained.values())
share = more / sum(layer.weight.numel() for layer in layers.values())
print(f"no LoRA {off:.1f} ms   detour {on:.1f} ms   merged {together:.1f} ms")
print(f"the detour has {share:.0%} as many numbers as these layers, ", end="")
print(f"and takes {on / off - 1:.0%} more time in all")

# %% [markdown]
# **What it means.** Merged, the model is about as quick as without a LoRA, because it is the same
# model with other numbers. The multiplications of the detour are few beside all that the UNet does,
# but every one of these layers starts several small operations more, and starting them takes time
# too. The smaller the layers, the more that counts. In exchange, a merged LoRA cannot be turned up
# or down, and a saved merged model is a whole model: gigabytes for SD v1.5, instead of megabytes.

# %% [markdown]
# ## 7. Alpha as a volume knob
#
# $\alpha$ is fixed in the file, but nobody stops you from multiplying it by a **scale** later.
#
# **Predict:** what will −1 do? And 2?

# %%
scales = [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]
by_scale = {}
for scale in scales:
    set_scale(base, first, scale)
    by_scale[scale] = redraw(base)
set_scale(base, None)
show.sheet(
    [by_scale[scale][row] for row in range(2) for scale in scales],
    [f"{scale:+.1f}" if scale else "0" for scale in scales],
    columns=len(scales),
    width=1.15,
    title=f"{first}, scale from -1 to 2",
    alt="A drawn scene and a cat at seven scales. At 0 they are redrawn without the style. At a "
    "half the ink is boldest, at 1 the hatching is denser and the outlines are weaker, and from "
    "1.5 on colours come back. To the left the pictures get darker and dimmer.",
)

# %% [markdown]
# The weights are a straight line: at scale $s$ they are $W + s \, \alpha A B$. Is the effect one
# too? We measure how far the predicted noise has moved from that at scale 0, in units of how far it
# is at scale 1.

# %%
grid = [step / 4 for step in range(-4, 9)]
predictions = {}
for scale in grid:
    set_scale(base, first, scale)
    predictions[scale] = base.predict_noise(noisy, 500)
set_scale(base, None)
unit = (predictions[1.0] - predictions[0.0]).norm()
distances = [float((predictions[scale] - predictions[0.0]).norm() / unit) for scale in grid]

figure = show.figure(
    5.5,
    2.8,
    "How far the predicted noise moves with the scale",
    alt=f"The distance is {distances[0]:.2f} at scale -1, 0 at 0, {distances[6]:.2f} at a half, 1 "
    f"at 1 and {distances[-1]:.2f} at 2, beside a dashed V of straight lines.",
)
axes = figure.subplots()
axes.plot(grid, distances, color="#4f7cac", marker="o", markersize=3, label="measured")
axes.plot([-1, 0, 2], [1, 0, 2], "--", color="black", linewidth=1, label="if it were straight")
axes.set_xlabel("scale")
axes.set_ylabel("distance from scale 0")
axes.legend(fontsize=8)
figure

# %% [markdown]
# **What it means.** At 0 and 1 the curve meets the dashed line because of how we measure. Elsewhere
# it need not: what lies between these layers bends it, so that half the scale is not half the
# effect and may even be more than all of it. The sheet shows the same: at a half the ink is bolder
# than at 1, and at 2 colours come back. And above the α of its training a LoRA is where
# training has never been, which these are at scale 1 already. How far
# a style stays good differs from one to the next; look at yours. A negative scale is not the
# opposite of a style. It moves the weights the other way, and what pictures that makes, nobody has
# trained.
#
# Strength and scale together, with sliders. (On a page that only shows the notebook, you see the
# picture but no sliders.)


# %%
def draw(scale, strength):
    set_scale(base, first, scale)
    drawn = redraw(base, strength)
    set_scale(base, None)
    return show.sheet(
        [pictures[0], drawn[0], pictures[1], drawn[1]],
        ["", f"{first} × {scale:.2f}"] * 2,
        title=f"scale {scale:.2f}, strength {strength:.2f}",
        alt=f"A scene and a cat, each before and after, with the style {first} at scale "
        f"{scale:.2f} and strength {strength:.2f}.",
    )


show.interactive(
    draw, scale=(-1.0, 2.0, 0.1, 1.0), strength=(0.1, 1.0, 0.05, base.default_strength)
)

# %% [markdown]
# ## 8. Two at once
#
# Two styles change the same matrices. Updates can be added:
#
# $$W' = W + \alpha_1 A_1 B_1 + \alpha_2 A_2 B_2$$
#
# ### Exercise 6: add two


# %% tags=["exercise"]
def add_two(W, A1, B1, alpha1, A2, B2, alpha2):
    """W (in, out); A (in, r), B (r, out) and alpha of two LoRAs -> W' (in, out)."""
    return ...  # your code


# %% tags=["solution"]
def add_two(W, A1, B1, alpha1, A2, B2, alpha2):
    """W (in, out); A (in, r), B (r, out) and alpha of two LoRAs -> W' (in, out)."""
    return W + alpha1 * A1 @ B1 + alpha2 * A2 @ B2


# %% tags=["check"]
add_two = lesson_03.check("add_two", add_two)

# %% [markdown]
# <details><summary>Hint 1</summary>First the update of each LoRA by itself.</details>
# <details><summary>Hint 2</summary>Each update is alpha times the product of its own A and its own
# B.</details>
# <details><summary>Hint 3</summary>The formula above, with <code>@</code> between A and
# B.</details>

# %% [markdown]
# The sum is a LoRA again, of rank $2r$: put the As side by side, and the Bs, with their alphas, one
# below the other.

# %%
volume = 0.7  # of each
A1, B1, alpha1 = trained[name]
A2, B2, alpha2 = trained_too[name]
alpha1, alpha2 = volume * alpha1, volume * alpha2

exact = alpha1 * A1 @ B1 + alpha2 * A2 @ B2
long_A = torch.cat([A1, A2], dim=1)
long_B = torch.cat([alpha1 * B1, alpha2 * B2], dim=0)
print("A", tuple(A1.shape), "and", tuple(A2.shape), "->", tuple(long_A.shape))
print("B", tuple(B1.shape), "and", tuple(B2.shape), "->", tuple(long_B.shape))
print(f"largest difference {float((long_A @ long_B - exact).abs().max()):.1e}")

# %% [markdown]
# ### The wrong way
# It is tempting to add the As and to add the Bs, so that the rank stays $r$, each with the root of
# its alpha so that every product gets a whole alpha. Multiply it out:
#
# $$(\sqrt{\alpha_1} A_1 + \sqrt{\alpha_2} A_2)(\sqrt{\alpha_1} B_1 + \sqrt{\alpha_2} B_2) =
# \alpha_1 A_1 B_1 + \alpha_2 A_2 B_2 + \underbrace{\sqrt{\alpha_1 \alpha_2} \, (A_1 B_2 + A_2
# B_1)}_{\text{cross terms}}$$
#
# The cross terms belong to neither style: the way down of one, the way up of the other. This is
# what peft's `add_weighted_adapter` does with `combination_type="linear"`. Let us see it do so, on
# one layer; `"cat"` is the long LoRA from above.

# %%
from peft import get_peft_model

separately = (alpha1**0.5 * A1 + alpha2**0.5 * A2) @ (alpha1**0.5 * B1 + alpha2**0.5 * B2)
cross = (alpha1 * alpha2) ** 0.5 * (A1 @ B2 + A2 @ B1)
print(f"separately - exact - cross: {float((separately - exact - cross).abs().max()):.1e}")

config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["layer"])  # alphas come as weights
model = get_peft_model(nn.ModuleDict({"layer": nn.Linear(inputs, outputs)}), config, "one")
model.add_adapter("two", config)
module = model.base_model.model["layer"]
for one, A, B in (("one", A1, B1), ("two", A2, B2)):
    module.lora_A[one].weight.copy_(A.T)
    module.lora_B[one].weight.copy_(B.T)
for kind in ("cat", "linear"):
    model.base_model.add_weighted_adapter(
        ["one", "two"], [alpha1, alpha2], kind, combination_type=kind
    )
    update = module.get_delta_weight(kind).T
    print(f"peft's {kind:7s} from the exact sum {float((update - exact).abs().max()):.1e}", end="")
    print(f", from adding separately {float((update - separately).abs().max()):.1e}")

# %%
alike = torch.nn.functional.cosine_similarity(A1.flatten(), A2.flatten(), dim=0)
print(f"size of the cross terms: {float(cross.norm() / exact.norm()):.0%} of the exact sum")
print(f"how alike the two As are (1 is the same, 0 unrelated): {float(alike):.2f}")

# %% [markdown]
# **What it means.** Two LoRAs whose training began with the same random A, from the same seed, keep
# something of it in common: that is the second number. The more alike the As are, the nearer $A_1
# B_2$ is to $A_2 B_2$, and the nearer the cross terms come to playing both styles a second time.
# Two LoRAs from different places have unrelated As, and the cross terms are a random disturbance.
#
# Now in the whole UNet. `set_scale` with several names adds exactly. Does it agree with our sum?

# %%
for where, (A1, B1, alpha1) in trained.items():
    A2, B2, alpha2 = trained_too[where]
    write(where, add_two(matrix(where), A1, B1, volume * alpha1, A2, B2, volume * alpha2))
by_hand = plain.predict_noise(noisy, 500)

set_scale(base, {first: volume, second: volume})
by_library = base.predict_noise(noisy, 500)
print(f"largest difference {float((by_library - by_hand).abs().max()):.1e}")

# %%
drawn = {"exact sum": redraw(base)}
for where, (A1, B1, alpha1) in trained.items():
    A2, B2, alpha2 = trained_too[where]
    one, two = (volume * alpha1) ** 0.5, (volume * alpha2) ** 0.5
    write(where, matrix(where) + (one * A1 + two * A2) @ (one * B1 + two * B2))
drawn["separately"] = redraw(plain)
for which in (first, second):
    set_scale(base, which, volume)
    drawn[f"{which} × {volume}"] = redraw(base)
set_scale(base, None)

order = [f"{first} × {volume}", f"{second} × {volume}", "exact sum", "separately"]
show.sheet(
    [drawn[one][row] for row in range(2) for one in order],
    order,
    columns=4,
    title="Two styles, each alone, added exactly, and added separately",
    alt=f"A drawn scene and a cat in {first}, in {second}, in the exact sum of both, and with A "
    "and B added separately, which makes another picture than the exact sum.",
)

# %% [markdown]
# **What it means.** The exact sum is exact in the *weights*. What it looks like is another
# question: both styles pull at the same layers, neither knows of the other, and often one wins.
# Adding two whole styles at full volume overshoots as a scale of 2 does, which is why each is at
# less than 1 here. Lesson 06 mixes more of them.

# %% [markdown] tags=["instructor"]
# Likely questions:
#
# - *Why does peft offer "linear" at all?* The result keeps the rank r, so it fits where all
#   adapters must have one rank, and for related adapters it can be good enough. "svd" in peft is
#   the exact sum, cut down as in exercise 4.
# - *Is the average of two LoRAs the exact sum at 0.5 each?* Of the updates, yes. Of the files,
#   tensor by tensor, no: (A1 + A2) / 2 times (B1 + B2) / 2 is the wrong way again. Averaging two
#   checkpoints of one training run does that too, and gets away with it because As and Bs are
#   alike.

# %% [markdown]
# ## 9. Where LoRA is weak
#
# **It reaches only the layers that it was given.** Whatever happens before the first attention is
# out of its hands at any scale. So are the autoencoder and its limits (lesson 01), and here the
# text encoder too.

# %%
seen = []
block = base.unet.down_blocks[0].resnets[0]  # works before the first attention
hook = block.register_forward_hook(lambda module, inputs, output: seen.append(output))
for scale in (0.0, 2.0):
    set_scale(base, first, scale)
    base.predict_noise(noisy, 500)
set_scale(base, None)
hook.remove()
print("first block, scale 0 against 2:", float((seen[1] - seen[0]).abs().max()))

for label, unet_shapes, count in (
    (base.name, shapes, everything - trainable),
    ("SD v1.5", sd15_shapes, total),
):
    share = sum(o * i for o, i in unet_shapes) / count
    print(f"{label}: the projections hold {share:.1%} of the UNet's parameters")
reached = sum(layer.weight.numel() for layer in layers.values()) / (everything - trainable)
print(f"{base.name}: the layers that {style} reaches hold {reached:.1%}")

# %% [markdown]
# **Some changes are not of low rank.** Take a simple one: turn a layer up by a tenth, $W' = 1.1 \,
# W$. One number says it all, but the update $0.1 \, W$ has all the ranks that $W$ has.

# %%
goal = 0.1 * W
for k in (1, 4, 16, 64, min(W.shape)):
    missed = float((goal - keep_rank(goal, k)).norm() / goal.norm())
    print(f"rank {k:4d}: the best update misses {missed:6.1%} of the change")

# %% [markdown]
# **More rank is not better by itself.** It makes the file larger in proportion; it makes training
# faster or wilder unless alpha or the learning rate goes down (section 3); and what the last ranks
# of our style are worth, you have seen in section 5. With 16 pictures to learn from, more room is
# also more room to learn the pictures by heart. Lesson 04 tries it.

# %% [markdown]
# ## Recap
#
# - $W' = W + \alpha A B$: A goes down to r numbers, B up again. B starts at zero, so the model
#   starts as it was; both at zero would never move.
# - Go by shapes, not by letters. The course's α is peft's `lora_alpha / r` and kohya's `alpha /
#   dim`.
# - r × (in + out) numbers for each layer: far fewer than W has, and fewer than many people say.
# - Merged and detour are equal but for rounding. Unmerging by subtraction is not exact; a copy is.
# - Updates add exactly. As and Bs do not.
# - The scale turns a style up and down, but not evenly: more is not always louder. A negative one
#   does not give the opposite of a style.
#
# ## If you want more
# - Cut the updates in `trained` down to the rank that was enough, and save them as a LoRA of that
#   rank. By how much is the file smaller?
# - In section 5, compare the singular values of `attn1` and `attn2`. The prompt is always "" here:
#   how many different rows do `attn2.to_k` and `attn2.to_v` ever see?
# - Give `LoRALinear` a second pair, so that one layer carries two LoRAs with a volume each. How
#   does peft do it? Look at `base.unet` with two styles loaded.
# - Write a LoRA for a convolution: down with the same kernel to r channels, up with a 1 × 1 kernel.
#   How many parameters has one for the first convolution of SD v1.5?
