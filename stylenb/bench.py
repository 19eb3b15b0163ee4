"""What the training pipeline reaches and what it costs, on this machine.

`python -m stylenb.bench styles` trains every held-out style afresh and scores it on scenes that no
network was trained on; `speed` and `memory` put the pipeline beside the loop that most public
scripts use. With `--record` the tables are written into data/benchmark.md. Times are of this
machine and noisy: what to look at are the ratios, which are taken side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from .base import DATA, Base, autocast, load
from .inference import denoise
from .lora import add_lora, remove_lora, set_scale
from .losses import noise_loss
from .photos import to_pictures, to_tensor
from .pocket.data import TEST_SEEDS
from .pocket.pretrain import content_pictures, style_pictures
from .pocket.scenes import draw_scene
from .pocket.styles import HELD_OUT, apply_style
from .scores import judge, lpips_distance
from .training import Settings, train_style

SCENES = 32


def row(*cells) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def with_error(values) -> str:
    """Mean and standard error of the mean."""
    values = np.asarray(values, float)
    return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"


@torch.no_grad()
def redraw(base: Base, pictures: list) -> list:
    """Pictures through the base as it is now, each with a noise of its own."""
    found = []
    for seed, picture in enumerate(pictures):
        latents = base.encode(to_tensor(picture))
        latents = denoise(base, latents, base.default_strength, base.default_steps, seed)
        found += to_pictures(base.decode(latents))
    return found


# ------------------------------------------------------------------------------------- styles


def bench_styles(styles=HELD_OUT, settings: Settings | None = None) -> list[str]:
    """Every style trained from its 16 pictures, then put on 32 scenes whose true rendering is
    known: seconds, share that the judge names rightly, and distance to the true rendering."""
    settings = settings or Settings()
    base = load("pocket")
    scenes = [draw_scene(TEST_SEEDS + i).picture for i in range(SCENES)]
    plain = redraw(base, scenes)
    rows = [
        row("style", "seconds", "judged right", "without LoRA", "LPIPS to truth", "photo", "plain"),
        row(*["---"] * 7),
    ]
    for style in styles:
        truth = [apply_style(style, scene, TEST_SEEDS + i) for i, scene in enumerate(scenes)]
        history = train_style(
            base, style_pictures(style), content_pictures(), style, settings, progress=False
        )
        results = redraw(base, scenes)
        remove_lora(base, style)
        shares = [np.mean([g == style for g in judge(p)]) for p in (results, plain)]
        distances = [with_error(lpips_distance(p, truth)) for p in (results, scenes, plain)]
        rows.append(
            row(style, f"{history.seconds:.0f}", *(f"{share:.0%}" for share in shares), *distances)
        )
        print(rows[-1], flush=True)
    return [
        f"{settings.steps} steps of {settings.batch_size}, rank {settings.rank}; {SCENES} scenes "
        f"redrawn at strength {base.default_strength}, {base.default_steps} steps. *Photo* is the "
        "scene as it was, *plain* is image-to-image without LoRA; ± is the standard error. LPIPS "
        "looks through the network that was in the training loss, the judge was in none.",
        "",
        *rows,
    ]


# -------------------------------------------------------------------------------------- speed


def public_loop(base: Base, pictures: list, prompt: str, steps: int, batch_size: int) -> float:
    """Seconds a step of the loop that most public scripts use: pictures through the VAE and the
    prompt through the text encoder at every step, in float32."""
    parameters = add_lora(base, "public", 8)
    optimizer = torch.optim.AdamW(parameters, 1e-3)
    images = to_tensor(pictures)
    random = torch.Generator().manual_seed(0)

    def step():
        chosen = torch.randint(len(images), (batch_size,), generator=random)
        with torch.no_grad():
            latents = base.encode(images[chosen], generator=random)
            condition = base.embed([prompt] * batch_size)
        noise = torch.randn(latents.shape, generator=random)
        t = torch.randint(1000, (batch_size,), generator=random)
        prediction = base.predict_noise(base.scheduler.add_noise(latents, noise, t), t, condition)
        noise_loss(prediction, noise, t, base.scheduler).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    try:
        return seconds_of(step, steps)
    finally:
        remove_lora(base, "public")


def seconds_of(call, count: int) -> float:
    """Median seconds of a call, after one to warm up."""
    call()
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


def own_loop(base: Base, pictures: list, settings: Settings) -> float:
    """Seconds a step of train_style, averaged over its steps with and without picture losses."""
    history = train_style(base, pictures, content_pictures(), "own", settings, progress=False)
    remove_lora(base, "own")
    seconds = [row["seconds"] for row in history.rows]
    cycle = settings.picture_every
    by_phase = [np.median(seconds[cycle:][phase::cycle]) for phase in range(cycle)]
    return float(np.mean(by_phase))


def bench_speed(steps: int = 24) -> list[str]:
    """Rounds of each loop in turn, so that a busy machine slows all of them alike."""
    pictures = style_pictures(HELD_OUT[0])
    settings = Settings(steps=steps)
    plain = replace(settings, lpips_weight=0.0, style_weight=0.0)
    taken: dict[str, list[float]] = {"public loop": [], "L2": [], "L2 + LPIPS + style": []}
    for _ in range(3):
        base = load("pocket")
        taken["public loop"].append(
            public_loop(base, pictures, "a painting", steps // 3, settings.batch_size)
        )
        taken["L2"].append(own_loop(base, pictures, plain))
        taken["L2 + LPIPS + style"].append(own_loop(base, pictures, settings))
    public, l2, full = (np.median(values) for values in taken.values())
    return [
        f"Steps of {settings.batch_size} on the pocket base, rank {settings.rank}. The public loop "
        "puts pictures through the VAE and prompts through the text encoder at every step, in "
        "float32.",
        "",
        row("loop", "seconds a step", "ratio", "aim"),
        row(*["---"] * 4),
        row("public loop", f"{public:.3f}", "1", ""),
        row("L2", f"{l2:.3f}", f"{public / l2:.2f} times faster than the public loop", "2"),
        row("L2 + LPIPS + style", f"{full:.3f}", f"{full / l2:.2f} of L2 alone", "1.5"),
    ]


SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}


def bench_sd15() -> list[str]:
    """One training step of LoRA, rank 4, batch 1, 512 px, with SD v1.5's sizes and random weights:
    with VAE and text encoder at every step in float32, and without them in what this CPU has."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from peft import LoraConfig
    from transformers import CLIPTextConfig, CLIPTextModel

    device = torch.device("cpu")
    unet = UNet2DConditionModel(**SD15).requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
        )
    )
    random = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 512, 512, generator=random).clamp(-1, 1)
    latents = torch.randn(1, 4, 64, 64, generator=random)
    states = torch.randn(1, 77, 768, generator=random)
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

    taken = {public: [] for public in (True, False)}
    for public in (True, False, True, False):
        taken[public].append(seconds_of(lambda public=public: step(public), 1))
    public, own = (float(np.mean(taken[public])) for public in (True, False))
    return [
        "A step of batch 1 at 512 px with SD v1.5's real sizes and random weights, rank 4:",
        "",
        row("loop", "seconds a step", "ratio", "aim"),
        row(*["---"] * 4),
        row("public loop", f"{public:.1f}", "1", ""),
        row("L2", f"{own:.1f}", f"{public / own:.2f} times faster", "1.3"),
    ]


# ------------------------------------------------------------------------------------- memory

CONFIGURATIONS = {
    "loaded, nothing trained": None,
    "L2": {"lpips_weight": 0.0, "style_weight": 0.0},
    "L2 + LPIPS + style": {},
    "the same, gradient checkpointing": {"gradient_checkpointing": True},
    "the same, 2 x 4 accumulated": {"batch_size": 4, "accumulate": 2, "picture_batch": 1},
    "rank 64": {"rank": 64},
}


def peak_memory(name: str) -> None:
    """Run one configuration for a few steps and print this process's peak resident memory in MB."""
    base = load("pocket")
    if CONFIGURATIONS[name] is not None:
        settings = Settings(steps=4, **CONFIGURATIONS[name])
        train_style(
            base, style_pictures(HELD_OUT[0]), content_pictures(), settings=settings, progress=False
        )
        set_scale(base, None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(peak / (1e6 if sys.platform == "darwin" else 1e3)))


def bench_memory() -> list[str]:
    rows = [row("configuration", "peak memory of the process, MB"), row("---", "---")]
    for name in CONFIGURATIONS:
        command = [sys.executable, "-m", "stylenb.bench", "peak", "--configuration", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=DATA.parent)
        rows.append(row(name, f"{float(done.stdout.split()[-1]):.0f}"))
    return rows


BENCHES = {
    "styles": (bench_styles, "Seven styles that the base has never seen"),
    "speed": (bench_speed, "Speed"),
    "sd15": (bench_sd15, "Speed at the sizes of Stable Diffusion v1.5"),
    "memory": (bench_memory, "Memory"),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m stylenb.bench", description=__doc__)
    parser.add_argument("which", nargs="*", choices=[*BENCHES, "peak"], help="all of them")
    parser.add_argument("--record", action="store_true", help="write into data/benchmark.md")
    parser.add_argument("--configuration", choices=CONFIGURATIONS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.which == ["peak"]:
        return peak_memory(args.configuration)
    card = DATA / "benchmark.md"
    for name in args.which or BENCHES:
        bench, title = BENCHES[name]
        lines = bench()
        print(f"\n## {title}\n\n" + "\n".join(lines), flush=True)
        if args.record:
            record(card, name, title, lines)


def record(card: Path, name: str, title: str, lines: list[str]) -> None:
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__}"
    section = (
        f"<!-- {name} -->\n## {title}\n\n`python -m stylenb.bench {name}` on {machine}.\n\n"
        + "\n".join(lines)
        + f"\n<!-- /{name} -->\n"
    )
    text = card.read_text(encoding="utf-8") if card.exists() else "# Benchmark\n\n"
    marks = re.compile(rf"(?s)<!-- {name} -->\n.*<!-- /{name} -->\n")
    text = marks.sub(lambda _: section, text) if marks.search(text) else text + section + "\n"
    card.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
