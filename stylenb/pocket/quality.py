"""Measure the pocket model on seeds that no network was trained on.

`python -m stylenb.pocket.quality` prints the table; with `--record` it is also written into the
model card, data/README.md, together with the sheets data/samples.png, data/reconstructions.png
and data/stylised.png.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from stylenb.base import DATA, Base, load
from stylenb.inference import stylize
from stylenb.lora import available_styles
from stylenb.photos import SAMPLE_PHOTOS, open_photo, sample_photo, to_pictures, to_tensor
from stylenb.pocket.data import TEST_SEEDS
from stylenb.pocket.scenes import draw_scene
from stylenb.pocket.styles import KNOWN, PHRASES, STYLES, apply_style
from stylenb.scores import judge, psnr

GUIDANCE = 3.0
STEPS = 30


def load_vae() -> AutoencoderKL:
    """The pocket model's autoencoder alone."""
    return AutoencoderKL.from_pretrained(DATA / "pocket-sd" / "vae", torch_dtype=torch.float32)


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, pictures: list) -> list:
    """Encode and decode PIL pictures."""
    images = [to_tensor(pictures[i : i + 16]) for i in range(0, len(pictures), 16)]
    return [
        picture
        for x in images
        for picture in to_pictures(vae.decode(vae.encode(x).latent_dist.mode()).sample)
    ]


def styled_scenes(style: str, count: int) -> list:
    """Test scenes in their true style."""
    seeds = range(TEST_SEEDS, TEST_SEEDS + count)
    return [apply_style(style, draw_scene(seed).picture, seed) for seed in seeds]


def reconstruction_psnr(vae: AutoencoderKL, count: int) -> dict[str, float]:
    """PSNR in dB of every style over `count` test scenes."""
    scores = {}
    for style in STYLES:
        pictures = styled_scenes(style, count)
        scores[style] = psnr(reconstruct(vae, pictures), pictures)
    return scores


def photo_psnr(vae: AutoencoderKL, photos: list) -> list[float]:
    """PSNR in dB of each photograph at the base's size."""
    return [
        psnr(again, photo) for again, photo in zip(reconstruct(vae, photos), photos, strict=True)
    ]


def judge_accuracy(count: int) -> float:
    """Share of true renderings, `count` a style, that the judge names rightly."""
    right = [guess == style for style in STYLES for guess in judge(styled_scenes(style, count))]
    return float(np.mean(right))


def prompted_samples(count: int, guidance: float = GUIDANCE, batch: int = 25):
    """`count` samples of test captions, the known styles in turn: pictures and styles asked for."""
    pipe = StableDiffusionPipeline.from_pretrained(DATA / "pocket-sd")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    styles = [KNOWN[i % len(KNOWN)] for i in range(count)]
    prompts = [
        f"{PHRASES[style]} {draw_scene(TEST_SEEDS + i).caption}" for i, style in enumerate(styles)
    ]
    pictures = []
    for i in range(0, count, batch):
        part = prompts[i : i + batch]
        seeds = [torch.Generator().manual_seed(i + j) for j in range(len(part))]
        pictures += pipe(
            part, num_inference_steps=STEPS, guidance_scale=guidance, generator=seeds
        ).images
    return pictures, styles


def lora_accuracy(base: Base, count: int) -> dict[str, float]:
    """For every shipped LoRA: the share of `count` stylised test scenes judged to be its style."""
    scenes = [draw_scene(TEST_SEEDS + i).picture for i in range(count)]
    return {
        style: float(
            np.mean(
                [
                    guess == style
                    for guess in judge(
                        [stylize(scene, style, seed=i, base=base) for i, scene in enumerate(scenes)]
                    )
                ]
            )
        )
        for style in available_styles()
    }


def stylised_sheet(base: Base) -> Image.Image:
    """Three photographs and two test scenes, and each of them in every shipped style."""
    inputs = [sample_photo(name, base.image_size) for name in ("chelsea", "coffee", "astronaut")]
    inputs += [draw_scene(TEST_SEEDS + i).picture for i in (2, 4)]
    return tile(
        [
            picture
            for photo in inputs
            for picture in (photo, *(stylize(photo, s, base=base) for s in available_styles()))
        ],
        1 + len(available_styles()),
    )


def tile(pictures: list, columns: int) -> Image.Image:
    """One picture of many."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet


def measure(
    count: int = 48,
    samples: int = 200,
    judged: int = 40,
    guidance: float = GUIDANCE,
    unseen: Path | None = None,
    sheets: Path | None = None,
) -> str:
    """The quality table as Markdown; `sheets` is the folder that the sample sheets are put in."""
    base, vae = load("pocket"), load_vae()
    rows = []
    styles = reconstruction_psnr(vae, count)
    rows.append(("autoencoder, photo-like scenes", f"{styles['photo']:.1f} dB", "30 dB"))
    mean = np.mean(list(styles.values()))
    rows.append(("autoencoder, mean of all styles", f"{mean:.1f} dB", "24 dB"))
    worst = min(styles, key=styles.get)
    rows.append((f"autoencoder, worst style ({worst})", f"{styles[worst]:.1f} dB", "19 dB"))
    photos = [sample_photo(name, base.image_size) for name in SAMPLE_PHOTOS]
    of_photos = dict(zip(SAMPLE_PHOTOS, photo_psnr(vae, photos), strict=True))
    rows.append(
        (
            "autoencoder, scikit-image photographs",
            f"{np.mean(list(of_photos.values())):.1f} dB",
            "24 dB",
        )
    )
    if unseen:
        files = sorted(p for p in unseen.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        others = photo_psnr(vae, [open_photo(p, base.image_size) for p in files])
        rows.append(
            (
                f"autoencoder, {len(files)} photographs never seen",
                f"{np.mean(others):.1f} dB",
                "22 dB",
            )
        )
    rows.append(
        (
            f"judge, true renderings ({judged} a style)",
            f"{100 * judge_accuracy(judged):.1f} %",
            "95 %",
        )
    )
    pictures, asked = prompted_samples(samples, guidance)
    right = np.array([a == b for a, b in zip(judge(pictures), asked, strict=True)])
    rows.append(
        (
            f"{samples} prompted samples of the style asked for "
            f"({STEPS} DDIM steps, guidance {guidance:g})",
            f"{100 * right.mean():.1f} %",
            "90 %",
        )
    )
    loras = lora_accuracy(base, 16)
    if sheets:
        stylised_sheet(base).save(sheets / "stylised.png")
        tile(pictures[:56], 7).save(sheets / "samples.png")
        both = [p for style in STYLES for p in styled_scenes(style, 1)] + photos[:6]
        again = reconstruct(vae, both)
        tile(
            [x for i in range(0, len(both), 10) for x in both[i : i + 10] + again[i : i + 10]], 10
        ).save(sheets / "reconstructions.png")
    rows += [
        (f"LoRA {style}: stylised scenes judged to be it", f"{100 * share:.0f} %", "")
        for style, share in loras.items()
    ]
    lines = ["| measured | value | aim |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += [
        "",
        "Autoencoder by style, dB: "
        + ", ".join(f"{style} {value:.1f}" for style, value in styles.items())
        + ".",
        "",
        "Autoencoder by photograph, dB: "
        + ", ".join(f"{name} {value:.1f}" for name, value in of_photos.items())
        + ".",
        "",
        "Samples judged right, by style: "
        + ", ".join(
            f"{style} {np.mean([r for r, a in zip(right, asked, strict=True) if a == style]):.0%}"
            for style in dict.fromkeys(asked)
        )
        + ".",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stylenb.pocket.quality", description=measure.__doc__
    )
    parser.add_argument("--record", action="store_true", help="write it into data/README.md")
    parser.add_argument("--unseen", type=Path, help="folder of photographs never trained on")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    args = parser.parse_args(argv)
    table = measure(
        guidance=args.guidance, unseen=args.unseen, sheets=DATA if args.record else None
    )
    print(table)
    if args.record:
        card = DATA / "README.md"
        text = card.read_text(encoding="utf-8")
        text, found = re.subn(
            r"(?s)(<!-- quality -->\n).*(<!-- /quality -->)",
            lambda m: f"{m[1]}{table}\n{m[2]}",
            text,
        )
        if not found:
            raise SystemExit(f"{card} has no <!-- quality --> ... <!-- /quality --> to fill in.")
        card.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
