"""What a lesson writes out and what stylenb has are the same: to the same numbers, not by word.

The definitions are taken from the lessons' sources as they stand (the solutions, where there are
exercises) and are given the tiny model. A lesson that says "stylenb does just this" is held to it.
Where the reference of an exercise is the library's own function, its check is all that it takes.
"""

import ast
import contextlib
import copy
import random
from functools import lru_cache, partial
from importlib import import_module
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from safetensors.torch import load_file

import stylenb
from notebooks.build import sources
from stylenb import device, inference, loop, losses, scores
from stylenb.lora import GROUPS, add_lora, merge_lora, set_scale, switched
from stylenb.lora_files import export_lora
from stylenb.training import Settings, train_style
from stylenb.weights import SD15_SIZES

SEED = 0  # of all shapes and numbers here: what fails once fails again


@lru_cache
def parsed(number: str):
    (source,) = (path for path in sources() if path.name.startswith(number))
    return source.name, ast.parse(source.read_text("utf-8")).body


def lesson(number: str, *values: str, **given):
    """What lesson `number` defines: its imports, functions and classes.

    values: names that the lesson computes at top level, from `given` and from what it defines; the
    statements that set them are run too, in their order.
    """
    source, statements = parsed(number)

    def sets(statement) -> set[str]:
        stored = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
        return {node.id for node in stored if isinstance(node.ctx, ast.Store)}

    names = dict(given)

    def run(statement):
        exec(compile(ast.Module([statement], []), source, "exec"), names)

    for statement in statements:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            run(statement)
    names |= given
    for statement in statements:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            with contextlib.suppress(NameError):  # a default that the lesson computes: left out
                run(statement)
    for statement in statements:
        if isinstance(statement, (ast.Assign, ast.With)) and sets(statement) & {*values}:
            run(statement)
    return SimpleNamespace(**names)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(SEED + seed))


def pictures(count, side=64, seed=0):
    """Random patches of colour."""
    patches = np.random.default_rng(SEED + seed).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return [Image.fromarray(p).resize((side, side), Image.Resampling.BILINEAR) for p in patches]


def near(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(
        torch.as_tensor(ours, dtype=torch.float64),
        torch.as_tensor(theirs, dtype=torch.float64),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.fixture
def base(tiny):
    """The tiny model with a UNet of its own."""
    own = copy.copy(tiny)
    own.unet = copy.deepcopy(tiny.unet)
    return own


@pytest.fixture
def with_loras(base):
    """The same with two LoRAs, "one" and "two", that both do something."""
    for seed, name in enumerate(("one", "two")):
        add_lora(base, name, rank=2 + seed, alpha=0.5 + seed)
    with torch.no_grad():
        for i, (key, p) in enumerate(base.unet.named_parameters()):
            if "lora_" in key:
                p.copy_(0.1 * randn(*p.shape, seed=i))
    set_scale(base, None)
    return base


def in_formula(layer, name):
    """A (in, r), B (r, out) and alpha of W' = W + alpha A B."""
    A, B = layer.lora_A[name].weight.T.detach(), layer.lora_B[name].weight.T.detach()
    return A, B, layer.lora_alpha[name] / layer.r[name]


@pytest.mark.parametrize("number", ["00", "01", "02", "03", "04", "05", "06", "07", "A1"])
def test_every_solution_is_right(number):
    its, course = lesson(number), import_module(f"stylenb.course.lesson_{number}")
    for name in course.EXERCISES:
        solution = getattr(its, name)
        assert course.check(name, solution) is solution


# --- 01 and A1 ---


@pytest.mark.parametrize("number", ["01", "A1"])
def test_psnr(number):
    (a,), (b,) = pictures(1), pictures(1, seed=1)
    tensors = (stylenb.to_tensor(picture) for picture in (a, b))
    near(lesson(number).psnr(*tensors), scores.psnr(a, b))


# --- 02: the schedule and the loop ---


def test_the_schedule(tiny):
    appendix, scheduler = lesson("A1"), tiny.scheduler
    t = torch.tensor([0, 7, 250, 500, 999])
    kept = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    x, noise = randn(5, 4, 8, 8), randn(5, 4, 8, 8, seed=1)
    noisy = scheduler.add_noise(x, noise, t)
    near(lesson("02", base=tiny).add_noise(scheduler, x, noise, t), noisy)
    near(appendix.add_noise_at(x, noise, kept), noisy)
    clean = losses.estimate_x0(scheduler, noisy, noise, t)
    near(appendix.clean_estimate(noisy, noise, kept), clean)


def test_a_step_is_diffusers_own(tiny):
    its, scheduler = lesson("02", base=tiny), DDIMScheduler.from_config(tiny.scheduler.config)
    scheduler.set_timesteps(10)
    timesteps = its.timesteps_for(10)
    assert timesteps == scheduler.timesteps.tolist()
    noisy, noise = randn(2, 4, 8, 8), randn(2, 4, 8, 8, seed=1)
    for t, previous in pairwise(timesteps):
        near(
            its.ddim_step(scheduler, noisy, noise, t, previous),
            scheduler.step(noise, t, noisy).prev_sample,
        )


@torch.no_grad()
@pytest.mark.parametrize("strength", [0.04, 0.62, 1])
def test_the_loop_up_and_down(strength, tiny):
    its, steps = lesson("02", base=tiny), 10
    its.redraw.__globals__["timesteps"] = its.timesteps_for(steps)  # fewer than in the lesson
    latents = randn(2, 4, 8, 8)
    near(
        its.redraw(latents, strength, seed=5)[1],
        inference.denoise(tiny, latents, strength, steps, seed=5, solver="ddim"),
        tolerance=1e-4,
    )
    inverted = inference.invert(tiny, latents, strength, steps)
    near(its.invert(latents, strength), inverted, tolerance=1e-4)


# --- 03: LoRA ---


@torch.no_grad()
def test_the_layer_is_pefts(base):
    rank, alpha = 3, -0.7
    ours, plain = copy.copy(base), copy.deepcopy(base.unet)
    ours.unet = copy.deepcopy(base.unet)
    added = lesson("03", "TARGETS").replace_projections(ours.unet, rank, alpha, seed=1)
    parameters = add_lora(base, "mine", rank, alpha)
    layers = {key: m for key, m in base.unet.named_modules() if hasattr(m, "lora_A")}
    assert set(layers) == set(added)
    for i, (key, layer) in enumerate(added.items()):
        layer.B.copy_(0.2 * randn(*layer.B.shape, seed=i))
        layers[key].lora_A["mine"].weight.copy_(layer.A.T)
        layers[key].lora_B["mine"].weight.copy_(layer.B.T)
    noisy = randn(2, 4, 8, 8)
    prediction = ours.predict_noise(noisy, 500)
    near(prediction, base.predict_noise(noisy, 500))
    with switched(base, None):  # and both do something
        assert not torch.allclose(prediction, base.predict_noise(noisy, 500), atol=1e-3)

    shapes = [layers[key].base_layer.weight.shape for key in layers]
    its = lesson("03")
    assert its.lora_parameters(shapes, rank) == sum(p.numel() for p in parameters)
    assert lesson("05", unet=plain).lora_count(rank) == sum(p.numel() for p in parameters)
    config = base.unet.peft_config["mine"]
    near(its.convert_alpha(alpha, rank, "course", "peft"), config.lora_alpha)


@torch.no_grad()
def test_formula_layer_and_peft_over_random_shapes():
    its, draw = lesson("03"), random.Random(SEED)
    for _ in range(20):
        inputs, outputs, rank = (draw.randrange(1, 40) for _ in range(3))
        alpha = draw.choice((-1, 1)) * draw.uniform(0.1, 3)
        model = torch.nn.Sequential(torch.nn.Linear(inputs, outputs))
        ours = its.LoRALinear(copy.deepcopy(model[0]), rank, alpha)
        ours.B.copy_(randn(rank, outputs))
        config = LoraConfig(r=rank, lora_alpha=alpha * rank, target_modules=["0"])
        model = inject_adapter_in_model(config, model)
        model[0].lora_A["default"].weight.copy_(ours.A.T)
        model[0].lora_B["default"].weight.copy_(ours.B.T)
        x = randn(3, inputs)
        near(ours(x), model(x))
        formula = its.lora_forward(x, ours.layer.weight.T, ours.A, ours.B, alpha)
        near(formula + ours.layer.bias, model(x))


def test_the_lora_of_stable_diffusion_has_797184_numbers_at_rank_4():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15_SIZES["unet"])
    assert lesson("05", unet=unet).lora_count(4) == 797_184
    layers = lesson("03", "TARGETS").projections(unet).values()
    assert lesson("03").lora_parameters([layer.weight.shape for layer in layers], 4) == 797_184


@torch.no_grad()
def test_one_and_two_in_the_weights(with_loras):
    its = lesson("03", base=with_loras)
    layers = {key: m for key, m in with_loras.unet.named_modules() if hasattr(m, "lora_A")}
    before = {key: layer.base_layer.weight.clone() for key, layer in layers.items()}
    x = randn(3, 5)
    found = its.pairs("one")
    merge_lora(with_loras, "one", 0.7)
    for key, layer in layers.items():
        A, B, alpha = in_formula(layer, "one")
        near(found[key][0], A)
        near(found[key][1], B)
        near(found[key][2], alpha)
        near(its.merge(before[key], A, B, 0.7 * alpha), layer.base_layer.weight)
        x = randn(3, len(A))
        near(
            its.lora_forward(x, before[key].T, A, B, 0.7 * alpha),
            torch.nn.functional.linear(x, layer.base_layer.weight),
        )
    stylenb.lora.unmerge_lora(with_loras)
    merge_lora(with_loras, {"one": 1.0, "two": -0.5})
    for key, layer in layers.items():
        (A1, B1, alpha1), (A2, B2, alpha2) = (in_formula(layer, name) for name in ("one", "two"))
        both = its.add_two(before[key].T, A1, B1, alpha1, A2, B2, -0.5 * alpha2)
        near(both.T, layer.base_layer.weight)


# --- 04: losses and the loop ---


@torch.no_grad()
def test_the_three_losses(tiny):
    style = stylenb.to_tensor(pictures(5))
    images, content = stylenb.to_tensor(pictures(6, seed=1)).split(3)
    its = lesson(
        *("04", "net", "targets", "of_style", "variance", "lengths", "scatter"),
        base=tiny,
        style_images=style,
    )
    library = losses.PictureLosses(style)
    lpips, distance = library(images, content)
    near(its.lpips(its.tones(images), its.tones(content)), lpips, tolerance=1e-4)
    near(its.style_loss(images), distance, tolerance=1e-4)
    a, b = randn(3, 4, 8, 8), randn(3, 4, 8, 8, seed=1)
    near(its.l2(a, b), losses.noise_loss(a, b, None, tiny.scheduler).mean())


def test_the_order():
    its = lesson("04")
    row = torch.cat([its.order_at(step, 3, 5) for step in range(10)]).view(6, 5)  # six epochs
    theirs = loop.order_at(0, 5, 0, 30).view(6, 5)
    for epoch in (*row, *theirs):
        assert sorted(epoch.tolist()) == list(range(5))


def test_the_loop_is_the_librarys(base, monkeypatch):
    """With the library's order of the pictures, which comes from another seed."""
    # Adam divides a gradient by its size, and so makes a rounding error of what is nearly zero as
    # large as any other; with this term beside the size, it stays small.
    monkeypatch.setattr(torch.optim, "AdamW", partial(torch.optim.AdamW, eps=1e-3))
    settings = Settings(
        **dict(rank=2, steps=4, batch_size=2, picture_batch=1, warmup=2, learning_rate=0.001),
        **dict(picture_from=0.0, picture_timesteps=600, lpips_weight=0.3, style_weight=0.2),
        **dict(flip=False, final_alpha=1.0, picture_noise="random"),
    )
    style, content = pictures(5), pictures(4, seed=1)
    ours = copy.copy(base)
    ours.unet = copy.deepcopy(base.unet)
    history = train_style(base, style, content, "mine", settings, progress=False)

    style_images, content_images = map(stylenb.to_tensor, (style, content))
    its = lesson(
        *("04", "net", "targets", "of_style", "variance", "lengths", "scatter"),
        base=ours,
        style_images=style_images,
        content_images=content_images,
        style_latents=torch.cat([base.encode(one[None]) for one in style_images]),
        content_latents=torch.cat([base.encode(one[None]) for one in content_images]),
        weights={"noise": 1.0, "lpips": 0.3, "style": 0.2},
        **dict(batch=2, extra=1),
    )
    names = its.train.__globals__
    names["order_at"] = lambda step, size, count: loop.order_at(
        settings.seed + (count == len(content)), count, step * size, size
    )
    # As there: another order would round otherwise, and Adam magnifies what is nearly zero.
    ours.unet.to(memory_format=torch.channels_last)
    rows = its.train(settings, "mine")
    for term in ("noise", "lpips", "style"):
        near([row[term] for row in rows], [row[term] for row in history.rows], tolerance=5e-3)
    weights = (  # of B, which began at zero
        torch.cat([p.flatten() for k, p in one.unet.named_parameters() if "lora_B.mine." in k])
        for one in (ours, base)
    )
    mine, theirs = (w.detach() for w in weights)
    assert (mine - theirs).norm() < 0.01 * theirs.norm()


def test_parts_of_a_batch(tiny):
    whole = losses.noise_loss(randn(5, 4, 8, 8), randn(5, 4, 8, 8, seed=1), None, tiny.scheduler)
    means = torch.stack([part.mean() for part in whole.split([3, 2])])
    near(lesson("04").accumulated(means, torch.tensor([3, 2])).sum(), whole.mean())


# --- 05: DreamBooth ---


def test_prior_preservation(tiny):
    noise, predicted = randn(6, 4, 8, 8), randn(6, 4, 8, 8, seed=1)
    t = torch.tensor([1, 50, 200, 400, 600, 990])
    first, second = losses.noise_loss(predicted, noise, t, tiny.scheduler, 5.0).split(3)
    errors, ratio = ((predicted - noise) ** 2).mean((1, 2, 3)), compute_snr(tiny.scheduler, t)
    near(lesson("05").min_snr_halves(errors, ratio, 5.0, 0.4), first.mean() + 0.4 * second.mean())


def test_the_activations(base):
    def kept(count):
        with count(base.unet) as found:
            prediction = base.predict_noise(randn(1, 4, 8, 8), 500)
        assert prediction.requires_grad
        return sum(found.values())

    add_lora(base, "mine", 2)
    assert kept(lesson("05").kept_activations) == kept(device.kept_activations) > 0


# --- 06: using it ---


@torch.no_grad()
def test_the_noise_that_draws_the_photo(with_loras):
    latents = randn(2, 4, 8, 8)
    scheduler = DDIMScheduler.from_config(with_loras.scheduler.config)
    scheduler.set_timesteps(20)
    its = lesson("06", base=with_loras)
    set_scale(with_loras, "one")  # which has no say in it
    near(
        its.inverted_noise(latents, scheduler.timesteps[-16:].tolist()),
        inference.invert(with_loras, latents, 0.8, 20),
        tolerance=1e-4,
    )


@torch.no_grad()
@pytest.mark.parametrize("solver", ["ddim", "inversion"])
@pytest.mark.parametrize(("steps", "strength"), [(20, 0.8), (10, 0.04), (7, 0.5)])
def test_what_a_picture_costs(solver, steps, strength, tiny):
    its, calls = lesson("06"), []
    hook = tiny.unet.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    inference.denoise(tiny, randn(1, 4, 8, 8), strength, steps, solver=solver)
    hook.remove()
    assert its.unet_predictions(steps, strength, solver == "inversion", False) == len(calls)


def test_groups_of_layers(with_loras):
    its, scales = lesson("06", base=with_loras), {"self": 0.5, "up": 2.0, "cross": -1.0}
    set_scale(with_loras, "one", scales)
    layers = its.lora_layers("one")
    factors = {key: its.layer_scale(key, GROUPS, scales) for key in layers}
    assert {0.5, 1.0, -1.0, -2.0} <= {*factors.values()}
    for key, layer in layers.items():
        near(layer.scaling["one"], factors[key] * in_formula(layer, "one")[2])


def test_kept_colours_and_names_for_others(with_loras, tmp_path):
    its = lesson("06")
    (photo,), (picture,) = pictures(1), pictures(1, seed=1)
    ours, theirs = its.keep_colours(photo, picture), inference.with_colours_of(photo, picture)
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1
    named, kohya = (load_file(path) for path in export_lora(with_loras, "one", tmp_path))
    assert {its.kohya_key(key) for key in named} == {k for k in kohya if not k.endswith(".alpha")}


# --- 07: scores ---


def test_scores_and_their_errors():
    its = lesson("07", size=64)
    (a,), (b,) = pictures(1), pictures(1, seed=1)
    agreement = its.correlation(its.outlines(np.asarray(a)), its.outlines(np.asarray(b)))
    near(agreement, scores.edge_agreement(a, b)[0])
    values = randn(9)
    near(its.ends(values), scores.interval(values))
    low, high = its.paired_interval(values, values - randn(9, seed=1), its.reach(9))
    near((low, high), scores.interval(randn(9, seed=1)))


def test_what_lies_on_a_curve():
    rows = [
        {"strength": s, "edges": torch.full((4,), e), "truth": randn(4, seed=i) - 9 * i}
        for i, (s, e) in enumerate([(0.2, 0.9), (0.8, 0.4)])
    ]
    kept, score = ([row[name] for row in rows] for name in ("edges", "truth"))
    near(
        lesson("07").at_content(float(kept[0].mean()), float(kept[1].mean()), *score, content=0.6),
        scores.at_equal_content(rows, 0.6)["truth"],
    )
