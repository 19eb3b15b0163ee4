"""What the course claims of itself, measured on this machine.

`truth` puts the shipped LoRAs beside every baseline on scenes that no network was trained on and
whose true rendering is known; `pareto` asks whether the default strength and scale are a sensible
choice; `inference` puts `stylize` beside the pipeline of diffusers. `styles` trains every held-out
style afresh and scores it; `speed`, `sd15` and `memory` put the training pipeline beside the loop
that most public scripts use. `python data/bench.py NAME ...` runs some of them, without a name
all; with `--record` the tables are written into data/benchmark.md. Times are of this machine and
noisy: what to look at are the ratios, which are taken side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from transformers import CLIPTextConfig, CLIPTextModel

# As a script it finds the package, and what lies beside it, from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import pretrain
from stylenb.base import SOLVER_STEPS, Base, load
from stylenb.course.baselines import BASELINES, GATYS_STEPS, Baseline, encode_and_decode
from stylenb.device import autocast, autocast_dtype
from stylenb.errors import StylenbError, replacing
from stylenb.folders import stylize_folder
from stylenb.inference import redraw, stylize
from stylenb.lora import add_lora, remove_lora
from stylenb.losses import noise_loss
from stylenb.photos import SAMPLE_PHOTOS, open_photo, sample_photo, to_tensor
from stylenb.pocket.scenes import draw_scene
from stylenb.pocket.styles import HELD_OUT, apply_style
from stylenb.pocket.training_mix import SIZE, TEST_SEEDS
from stylenb.scores import (
    at_equal_content,
    edge_agreement,
    interval,
    judge,
    lpips_distance,
    mean_and_error,
    pareto,
    pixel_distance,
    sweep,
    truth_distance,
    with_error,
)
from stylenb.training import Settings, train_style
from stylenb.weights import DATA, SD15_SIZES, available_styles

SCENES = 32
DISTANCES = {
    "truth": "as the judge's network sees it",
    "pixels": "in pixels (1 - SSIM of Lab at three sizes)",
}


def row(*cells) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table(heads: Sequence, rows: Sequence[Sequence]) -> list[str]:
    return [row(*heads), row(*["---"] * len(heads)), *(row(*cells) for cells in rows)]


def unseen_scenes(count: int, size: int = SIZE) -> list:
    """Photo-like scenes that no network was trained on."""
    return [draw_scene(TEST_SEEDS + i, size).picture for i in range(count)]


def renderings(style: str, scenes: list) -> list:
    """How these scenes really look in a style."""
    return [apply_style(style, scene, TEST_SEEDS + i) for i, scene in enumerate(scenes)]


def style_pictures(base: Base, style: str) -> list:
    """The pictures that a style is learned from, of the base's size."""
    return [open_photo(p, base.image_size) for p in pretrain.style_pictures(style)]


def content_pictures(base: Base) -> list:
    return [open_photo(p, base.image_size) for p in pretrain.content_pictures()]


def shipped_loras() -> dict[str, Path]:
    """The LoRAs of styles that the base has never seen."""
    found = {name: file for name, file in available_styles().items() if name in HELD_OUT}
    if not found:
        raise StylenbError(
            "data/loras holds no LoRA to measure: run `python data/pretrain.py loras`."
        )
    return found


# -------------------------------------------------------------------------------------- truth


def bench_truth(
    base: str | Path = "pocket",
    loras: Mapping[str, Path] | None = None,
    count: int = SCENES,
    baselines: Mapping[str, Baseline] = BASELINES,
) -> list[str]:
    """Every LoRA at the default strength and scale against every baseline that keeps as much."""
    loras, base = loras or shipped_loras(), load(base)
    scenes = unseen_scenes(count, base.default_size)
    seconds = dict.fromkeys(["LoRA", *baselines], 0.0)

    def draw(name: str, examples: list | None) -> list:
        began, one = time.perf_counter(), baselines[name]
        drawn = [(s, one.draw(scenes, examples, s, base)) for s in one.strengths]
        seconds[name] += time.perf_counter() - began
        return drawn

    # What does not look at the style is the same for all of them.
    drawn = {name: draw(name, None) for name, one in baselines.items() if not one.sees_style}
    rows: dict[str, list] = {score: [] for score in DISTANCES}
    for style, file in loras.items():
        truth, examples = renderings(style, scenes), style_pictures(base, style)
        began = time.perf_counter()
        (lora,) = sweep(base, scenes, file, [base.default_strength], truth=truth)
        seconds["LoRA"] += time.perf_counter() - began
        limits = distances(encode_and_decode(base, truth), truth)
        curves = {
            name: [
                {"strength": s, **distances(p, truth), "edges": edge_agreement(p, scenes)}
                for s, p in drawn.get(name) or draw(name, examples)
            ]
            for name in baselines
        }
        for score, limit in limits.items():
            rows[score].append([style, *compared(lora, curves, score, limit)])
            print(row(score, *rows[score][-1]), flush=True)
    lines = [
        f"{len(loras)} styles x {count} scenes of {base.default_size} px; LoRA at "
        f"strength {base.default_strength:g}, scale 1, {base.default_num_inference_steps} steps of "
        f"{base.default_solver}. Each baseline has the setting of its knob (after *at*) that comes "
        "nearest to the truth among those that keep at least as much of the scene as the LoRA "
        "does, by the agreement of their edges (*kept*); between settings its scores are "
        f"interpolated. Gatys ran {GATYS_STEPS} steps a picture. ± is half of the 95 % interval of "
        "the mean; *apart* says that the LoRA's interval overlaps with none. *Limit* is the true "
        "rendering after the autoencoder alone.",
    ]
    for score in DISTANCES:
        lines += truth_table(score, baselines, rows[score])
    times = ", ".join(f"{name} {taken:.0f}" for name, taken in seconds.items())
    return [*lines, "", f"Seconds in all: {times}."]


def compared(lora: dict, curves: Mapping[str, list], score: str, limit) -> list[str]:
    """Cells: the LoRA beside the best of every baseline's curve that keeps as much, and whether
    the LoRA is the nearest."""
    kept = lora["edges"].mean().item()
    others = [at_equal_content(curve, kept, score=score) for curve in curves.values()]
    near = lora[score].mean() < min(point[score].mean() for point in others)
    apart = interval(lora[score])[1] < min(interval(point[score])[0] for point in others)
    return [
        f"{kept:.2f}",
        f"**{with_interval(lora[score])}**",
        *(f"{with_interval(point[score])} at {point['strength']:.2f}" for point in others),
        f"{limit.mean():.3f}",
        "yes, apart" if apart else "yes" if near else "no",
    ]


def truth_table(score: str, baselines: Mapping, rows: list) -> list[str]:
    how, nearest = DISTANCES[score], [cells[-1] for cells in rows]
    return [
        "",
        f"Distance to the truth {how}:",
        "",
        *table(["style", "kept", "LoRA", *baselines, "limit", "LoRA nearest"], rows),
        "",
        f"By distance {how}, the LoRA is nearer than every baseline in "
        f"{len(nearest) - nearest.count('no')} of {len(rows)} styles, with intervals that do not "
        f"overlap in {nearest.count('yes, apart')}.",
    ]


def distances(pictures: list, truth: list) -> dict[str, torch.Tensor]:
    return {
        "truth": truth_distance(pictures, truth),
        "pixels": pixel_distance(pictures, truth),
    }


def with_interval(values) -> str:
    """Mean ± half of its 95 % interval."""
    low, high = interval(values)
    return f"{(low + high) / 2:.3g} ± {(high - low) / 2:.2g}"


# ------------------------------------------------------------------------------------- pareto


def bench_pareto(
    base: str | Path = "pocket",
    loras: Mapping[str, Path] | None = None,
    count: int = 8,
    strengths: Sequence[float] = (0.2, 0.4, 0.6, 0.8),
    scales: Sequence[float] = (0.5, 1.0, 1.5),
) -> list[str]:
    """Strength x scale for every LoRA: is the default beaten by another setting?"""
    loras, base = loras or shipped_loras(), load(base)
    scenes, default = unseen_scenes(count, base.default_size), (base.default_strength, 1.0)
    strengths, scales = sorted({*strengths, default[0]}), sorted({*scales, default[1]})
    found = {
        style: sweep(base, scenes, file, strengths, scales, renderings(style, scenes), style)
        for style, file in loras.items()
    }
    settings = [(r["strength"], r["scale"]) for r in next(iter(found.values()))]
    found["all styles"] = [
        {key: torch.cat([rows[i][key] for rows in found.values()]) for key in (*AXES, "edges")}
        for i in range(len(settings))
    ]
    here = settings.index(default)
    cells = []
    for style, rows in found.items():
        least = min(range(len(rows)), key=lambda i: rows[i]["truth"].mean())
        cells.append(
            [
                style,
                *(f"{rows[here][key].mean():.3f}" for key in ("edges", *AXES)),
                *(standing(rows, settings, here, key, sign) for key, sign in AXES.items()),
                f"{settings[least][0]:g} x {settings[least][1]:g} "
                f"({rows[least]['truth'].mean():.3f})",
            ]
        )
        print(row(*cells[-1]), flush=True)
    best = pareto([[-r["edges"].mean(), r["truth"].mean()] for r in found["all styles"]])
    curve = ", ".join(f"{settings[i][0]:g} x {settings[i][1]:g}" for i in best)
    heads = ["style", "kept", "truth", "judge", "kept and truth", "kept and judge", "nearest"]
    return [
        f"Strengths {', '.join(f'{s:g}' for s in strengths)} x scales "
        f"{', '.join(f'{s:g}' for s in scales)} on {count} scenes of {base.default_size} px. "
        "*Kept* is the agreement of edges with the photo, *truth* the distance to the true "
        "rendering, *judge* the judge's probability of the style, "
        f"all three at the default {default[0]:g} x {default[1]:g}. Then "
        "whether the default lies on the curve of these two, or how many settings keep at least as "
        "much and are better, and the lead of the best ± the standard error of the difference; and "
        "the setting nearest to the truth.",
        "",
        *table(heads, cells),
        "",
        f"The curve of what is kept and the truth over all styles, strength x scale: {curve}.",
    ]


AXES = {"truth": 1, "judge": -1}  # what is better: less of the first, more of the second


def standing(rows: list[dict], settings: list, here: int, key: str, sign: int) -> str:
    """Whether the row `here` is on the Pareto curve of "edges" and `key`, or what beats it."""
    points = np.array([[-r["edges"].mean(), sign * r[key].mean()] for r in rows])
    if here in pareto(points):
        return "on the curve"
    better = (points <= points[here]).all(axis=1) & (points < points[here]).any(axis=1)
    leads = [sign * (rows[here][key] - rows[i][key]) for i in better.nonzero()[0]]
    most = max(range(len(leads)), key=lambda i: leads[i].mean())
    strength, scale = settings[better.nonzero()[0][most]]
    mean, error = mean_and_error(leads[most])
    return f"beaten by {len(leads)}, most by {strength:g} x {scale:g} ({mean:.3f} ± {error:.3f})"


# ---------------------------------------------------------------------------------- inference


def bench_inference(
    base: str | Path = "pocket",
    lora: Path | None = None,
    rounds: int = 9,
    photos: int = 100,
    photo_side: int = 640,
) -> list[str]:
    """`stylize` and the pipeline of diffusers with the same LoRA, steps and strength, in turns."""
    file = Path(lora or next(iter(shipped_loras().values())))
    own = load(base)
    pipe = diffusers_pipeline(own, file)
    photo = sample_photo("chelsea", own.image_size)
    steps = SOLVER_STEPS["ddim"]
    how = {"strength": own.default_strength, "num_inference_steps": steps}

    def diffusers(**guidance):
        return pipe("", photo, generator=torch.Generator().manual_seed(0), **how, **guidance)

    calls: dict[str, Callable] = {
        "stylize": lambda: stylize(photo, file, base=own, solver="ddim", size=own.image_size),
        "diffusers, default guidance": diffusers,
        "diffusers, guidance 1": lambda: diffusers(guidance_scale=1.0),
    }
    work = []
    for name, call in calls.items():
        call()  # the first one loads the LoRA, and warms up
        with counted(own.unet if name == "stylize" else pipe.unet) as batches:
            call()
        work.append(f"{len(batches)} of {'/'.join(map(str, sorted(set(batches))))}")
    taken = in_turns([partial(timed, call) for call in calls.values()], rounds)
    medians = [f"{np.median(seconds):.3f}" for seconds in taken]
    ratios = ["1", *(f"{np.median(other / taken[0]):.2f}" for other in taken[1:])]
    aims = ["under 2 s", "at least 1.8", f"at least {1 / 1.05:.2f}"]
    whole, done = folder_seconds(own, file, photos, photo_side)
    return [
        f"One photo at {own.image_size} px, strength {own.default_strength:g}, "
        f"{steps} DDIM steps, {str(own.dtype).removeprefix('torch.')}, {rounds} rounds in "
        "turns: medians, and the median of the ratios within a round.",
        "",
        *table(
            ["what", "seconds", "calls of the UNet", "times as long", "aim"],
            list(zip(calls, medians, work, ratios, aims, strict=True)),
        ),
        "",
        f"A folder of {done} JPEG photos of {photo_side} px took {whole:.1f} s with "
        f"{own.default_num_inference_steps} steps of {own.default_solver}, "
        f"{whole / done:.2f} s a photo (aim: 100 in under 240 s).",
    ]


def diffusers_pipeline(base: Base, lora: Path) -> StableDiffusionImg2ImgPipeline:
    """What diffusers makes of the base's folder and a LoRA."""
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(
        base.folder,
        variant="fp16" if list((Path(base.folder) / "unet").glob("*.fp16.*")) else None,
        safety_checker=None,
        requires_safety_checker=False,
    ).to(base.device, base.dtype)
    pipe.scheduler = DDIMScheduler.from_config(base.scheduler.config)
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def folder_seconds(base: Base, lora: Path, photos: int, side: int) -> tuple[float, int]:
    """How long a folder of photos takes, and how many came out."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "photos", Path(folder) / "out"
        source.mkdir()
        for i in range(photos):
            name = SAMPLE_PHOTOS[i % len(SAMPLE_PHOTOS)]
            sample_photo(name, side).save(source / f"{i:03d}.jpg", quality=90)
        taken = timed(lambda: stylize_folder(source, output, lora, base=base, progress=False))
        return taken, len(list(output.glob("*.png")))


@contextmanager
def counted(unet):
    """The batch size of every call of the UNet inside, as a list."""
    batches: list[int] = []
    handle = unet.register_forward_hook(lambda module, given, out: batches.append(len(given[0])))
    try:
        yield batches
    finally:
        handle.remove()


def timed(call: Callable) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_turns(measures: Sequence[Callable[[], float]], rounds: int) -> np.ndarray:
    """Rounds of each measure in turn, so that a busy machine slows all of them alike:
    (measures, rounds)."""
    return np.array([[measure() for measure in measures] for _ in range(rounds)]).T


# ------------------------------------------------------------------------------------- styles


def bench_styles(
    base: str | Path = "pocket",
    styles: Sequence[str] = HELD_OUT,
    settings: Settings | None = None,
    count: int = SCENES,
) -> list[str]:
    """Every style trained from its 16 pictures (`settings`: None as the shipped ones were), then
    put on scenes whose true rendering is known: seconds, share that the judge names rightly, and
    distance to the true rendering."""
    base = load(base)
    scenes = unseen_scenes(count, base.default_size)
    plain = redraw(base, scenes, seed=range(count))
    shares, seconds, kept, rows = [], [], [], []
    for style in styles:
        truth = renderings(style, scenes)
        pictures = style_pictures(base, style), content_pictures(base)
        how = settings or pretrain.settings_of(base, style)
        train = partial(train_style, base, *pictures, style, how, progress=False)
        seconds.append(timed(train))
        results = redraw(base, scenes, seed=range(count))
        remove_lora(base, style)
        right = [[guess == style for guess in judge(p)] for p in (results, plain)]
        shares.append(np.mean(right[0]))
        edges = edge_agreement(results, scenes)
        kept.append(edges.mean().item())
        rows.append(
            [
                style,
                how.steps,
                f"{seconds[-1]:.0f}",
                *map(percent_with_error, right),
                with_error(edges),
                *(with_error(truth_distance(p, truth)) for p in (results, scenes, plain)),
                *(with_error(lpips_distance(p, truth)) for p in (results, scenes, plain)),
            ]
        )
        print(row(*rows[-1]), flush=True)
    heads = ["style", "steps", "seconds", "judged right", "without LoRA", "kept"]
    heads += ["to the truth", "photo", "plain", "LPIPS to the truth", "photo", "plain"]
    return [
        f"Steps of {how.batch_size}, rank {how.rank}, alpha {how.final_alpha:g} when finished, "
        "otherwise as data/README.md says; *seconds* of the whole training, encoding "
        f"included; {count} scenes of {base.default_size} px redrawn at strength "
        f"{base.default_strength:g}, {base.default_num_inference_steps} steps of "
        f"{base.default_solver}. *Kept* is the agreement of edges with the scene. Distances to the "
        "true rendering: of the LoRA's picture, of the *photo* as it was, and of *plain* "
        "image-to-image without LoRA; ± is the standard error over the scenes, and 0 where the "
        "judge is right in all or none of them. The judge, through which the first three distances "
        "are taken, was in no training loss; the network behind LPIPS was.",
        "",
        *table(heads, rows),
        "",
        verdict(shares, seconds, kept),
    ]


def percent_with_error(right: Sequence[bool]) -> str:
    """The share that is right ± its standard error, in per cent."""
    mean, error = mean_and_error(right)
    return f"{mean:.0%} ± {100 * error:.0f}"


def verdict(shares: Sequence[float], seconds: Sequence[float], kept: Sequence[float]) -> str:
    """What has become of the aims: how often the judge is right, what is kept, the time."""
    right = sum(share >= 0.9 for share in shares)
    return (
        f"The judge is right in at least 90 % of the scenes in {right} of {len(shares)} styles "
        f"(aim: 6), and in at least {min(shares):.0%} in all (aim: 80 %). Of the scenes' edges "
        f"{np.mean(kept):.2f} are kept on average (aim: 0.60). A training took "
        f"{np.median(seconds):.0f} s in the median (aim: at most 120), the longest "
        f"{max(seconds):.0f} s."
    )


# -------------------------------------------------------------------------------------- speed


PROMPT = "a painting"


def load_public(base: str | Path) -> Base:
    """A base for the public loop: in float32 on every device, and with its text encoder."""
    return load(base, dtype=torch.float32)


def public_loop(base: Base, pictures: list, prompt: str, settings: Settings) -> float:
    """Seconds a step of the loop that most public scripts use: pictures through the VAE and the
    prompt through the text encoder at every step, in the precision of the base."""
    batch_size = settings.batch_size
    parameters = add_lora(base, "public", settings.rank, layers=settings.layers)
    optimizer = torch.optim.AdamW(parameters, 1e-3)
    images = to_tensor(pictures)
    random = torch.Generator().manual_seed(0)

    def step():
        chosen = torch.randint(len(images), (batch_size,), generator=random)
        with torch.no_grad():
            latents = base.encode(images[chosen], generator=random)
            condition = base.embed([prompt] * batch_size)
        noise = torch.randn(latents.shape, generator=random).to(base.device)
        t = torch.randint(1000, (batch_size,), generator=random).to(base.device)
        prediction = base.predict_noise(base.scheduler.add_noise(latents, noise, t), t, condition)
        noise_loss(prediction, noise, t, base.scheduler).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    try:
        return seconds_of(step, settings.steps - 1)  # and one to warm up, as in own_loop
    finally:
        remove_lora(base, "public")


def seconds_of(call, count: int) -> float:
    """Median seconds of a call, after one to warm up."""
    call()
    return float(np.median([timed(call) for _ in range(count)]))


def own_loop(base: Base, pictures: list, settings: Settings) -> float:
    """Seconds a step of train_style, averaged over its steps with and without picture losses."""
    history = train_style(base, pictures, content_pictures(base), "own", settings, progress=False)
    remove_lora(base, "own")
    taken: dict[bool, list[float]] = {}
    for step in history.rows[1:]:
        taken.setdefault("style" in step, []).append(step["seconds"])
    medians = [np.median(seconds) for seconds in taken.values()]
    return float(np.average(medians, weights=[len(seconds) for seconds in taken.values()]))


def bench_speed(base: str | Path = "pocket", steps: int = 24, rounds: int = 3) -> list[str]:
    """Each loop's seconds a step, and the memory that it takes."""
    settings = Settings(steps=steps)
    plain = replace(settings, lpips_weight=0.0, style_weight=0.0)
    names = ["public loop", "L2", "L2 + LPIPS + style"]
    peaks = [f"{peak_of(name, base):.0f}" for name in names]
    loaded = load(base)
    pictures = style_pictures(loaded, HELD_OUT[0])
    loops = (
        lambda: public_loop(load_public(base), pictures, PROMPT, settings),
        lambda: own_loop(loaded, pictures, plain),
        lambda: own_loop(loaded, pictures, settings),
    )
    public, l2, full = medians = np.median(in_turns(loops, rounds), axis=1)
    ratios = ["1", f"{public / l2:.2f} times faster than the public loop"]
    ratios.append(f"{full / l2:.2f} of L2 alone")
    seconds = [f"{median:.3f}" for median in medians]
    rows = list(zip(names, seconds, ratios, ["", "2", "1.5"], peaks, strict=True))
    bfloat16 = "has" if autocast_dtype(loaded.device) else "has no"
    return [
        f"{steps} steps of {settings.batch_size}, {rounds} times each in turns, rank "
        f"{settings.rank}, the same layers. The public loop puts pictures through the VAE and "
        "prompts through the text encoder at every step, in float32; this machine "
        f"{bfloat16} bfloat16 for the others. The memory is the peak of a process that runs only "
        "this loop.",
        "",
        *table(["loop", "seconds a step", "ratio", "aim", "peak memory, MB"], rows),
    ]


def bench_sd15(sizes: Mapping = SD15_SIZES, rounds: int = 2) -> list[str]:
    """One training step of LoRA, rank 4, batch 1, 512 px, with SD v1.5's sizes and random weights:
    with VAE and text encoder at every step in float32, and without them in what this CPU has."""
    device = torch.device("cpu")
    unet = UNet2DConditionModel(**sizes["unet"]).requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    )
    vae = AutoencoderKL(**sizes["vae"])
    text = CLIPTextModel(CLIPTextConfig(**sizes["text"]))
    side, random = sizes["side"], torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, side, side, generator=random).clamp(-1, 1)
    latents = torch.randn(1, 4, side // 8, side // 8, generator=random)
    states = torch.randn(1, 77, sizes["text"]["hidden_size"], generator=random)
    t = torch.tensor([500])

    def step(public: bool):
        if public:
            with torch.no_grad():
                found = vae.encode(image).latent_dist.mean
                condition = text(torch.zeros(1, 77, dtype=torch.long)).last_hidden_state
            unet(found, t, condition).sample.square().mean().backward()
        else:
            with autocast(device):
                prediction = unet(latents, t, states).sample
            prediction.float().square().mean().backward()
        for p in unet.parameters():
            p.grad = None

    loops = [partial(timed, partial(step, public)) for public in (True, False)]
    in_turns(loops, 1)  # to warm up
    public, own = in_turns(loops, rounds).mean(axis=1)
    rows = [
        ["public loop", f"{public:.3g}", "1", ""],
        ["L2", f"{own:.3g}", f"{public / own:.2f} times faster", "1.3"],
    ]
    return [
        f"A step of batch 1 at {side} px with SD v1.5's real sizes and random weights, rank 4:",
        "",
        *table(["loop", "seconds a step", "ratio", "aim"], rows),
    ]


# ------------------------------------------------------------------------------------- memory

CONFIGURATIONS = {
    "loaded, nothing trained": None,
    "public loop": {},
    "L2": {"lpips_weight": 0.0, "style_weight": 0.0},
    "L2 + LPIPS + style": {},
    "the same, gradient checkpointing": {"gradient_checkpointing": True},
    "the same, 2 x 4 accumulated": {
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "picture_batch": 1,
    },
    "rank 64": {"rank": 64},
}


def peak_memory(name: str, base: str | Path = "pocket") -> None:
    """Run one configuration for a few steps and print this process's peak resident memory in MB."""
    public, changes = name == "public loop", CONFIGURATIONS[name]
    loaded = load_public(base) if public else load(base)
    if changes is not None:
        settings = Settings(steps=4, **changes)
        pictures = style_pictures(loaded, HELD_OUT[0])
        if public:
            public_loop(loaded, pictures, PROMPT, settings)
        else:
            content = content_pictures(loaded)
            train_style(loaded, pictures, content, settings=settings, progress=False)
    print(json.dumps(peak_resident_memory()))


def peak_resident_memory() -> float:
    """The most memory that this process has had resident so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent had when it started this process
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError as error:
        raise StylenbError("The memory is measured on Linux and macOS only.") from error
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes, on macOS


def peak_of(name: str, base: str | Path) -> float:
    """The peak memory in MB of a configuration, in a process of its own, since a peak never
    falls."""
    command = [sys.executable, __file__, "peak"]
    command += ["--configuration", name, "--base", str(base)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise StylenbError(
            f"The run {name!r} failed: {(done.stderr.strip() or 'no output').splitlines()[-1]}"
        )
    return float(done.stdout.split()[-1])


def bench_memory(
    base: str | Path = "pocket", configurations: Sequence[str] = tuple(CONFIGURATIONS)
) -> list[str]:
    """Every configuration's peak memory."""
    rows = [[name, f"{peak_of(name, base):.0f}"] for name in configurations]
    return table(["configuration", "peak memory of the process, MB"], rows)


BENCHES = {
    "truth": (bench_truth, "LoRA against the baselines, by distance to the truth"),
    "pareto": (bench_pareto, "Are the default strength and scale well chosen?"),
    "inference": (bench_inference, "Stylising: time"),
    "styles": (bench_styles, "Seven styles that the base has never seen"),
    "speed": (bench_speed, "Training: speed"),
    "sd15": (bench_sd15, "Training: speed at the sizes of Stable Diffusion v1.5"),
    "memory": (bench_memory, "Training: memory"),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python data/bench.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "which", nargs="*", metavar="NAME", help=f"{', '.join(BENCHES)}; all of them without a name"
    )
    parser.add_argument("--record", action="store_true", help="write into data/benchmark.md")
    parser.add_argument("--base", default="pocket", help="pocket or a model folder")
    parser.add_argument("--configuration", choices=CONFIGURATIONS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.which == ["peak"]:
        return peak_memory(args.configuration or next(iter(CONFIGURATIONS)), args.base)
    unknown = [name for name in args.which if name not in BENCHES]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}: choose {', '.join(BENCHES)}")
    for name in args.which or BENCHES:
        bench, title = BENCHES[name]
        began = time.perf_counter()
        lines = bench(**({} if name == "sd15" else {"base": args.base}))
        lines += ["", f"This took {time.perf_counter() - began:.0f} s."]
        print(f"\n## {title}\n\n" + "\n".join(lines), flush=True)
        if args.record:
            record(DATA / "benchmark.md", name, title, lines)


def record(card: Path, name: str, title: str, lines: list[str]) -> None:
    """Put a section into the card, and on what machine it was measured."""
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__}"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    how = f"`python data/bench.py {name}` on {machine}."
    fill_in(card, name, [f"## {title}", "", how, "", *lines])


def fill_in(card: Path, name: str, lines: list[str]) -> None:
    """Put lines into the card, in place of what its marks of this name enclose if it has them."""
    section = "\n".join([f"<!-- {name} -->", *lines, f"<!-- /{name} -->\n"])
    text = card.read_text(encoding="utf-8") if card.exists() else "# Benchmark\n\n"
    marks = re.compile(rf"(?s)<!-- {name} -->\n.*<!-- /{name} -->\n")
    text = marks.sub(lambda _: section, text) if marks.search(text) else text + section + "\n"
    with replacing(card) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except StylenbError as error:
        sys.exit(f"stylenb: {error}")
