"""Measure the pocket model on seeds that no network was trained on.

`python data/quality.py` prints the table; with `--record` it is also written into the
model card, data/README.md, and sheets of pictures are put beside it.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import make_image_grid
from PIL import Image

# As a script it finds the package, and what lies beside it, from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.bench import fill_in, renderings, table, unseen_scenes
from stylenb.base import Base, load
from stylenb.errors import replacing
from stylenb.inference import stylize
from stylenb.photos import SAMPLE_PHOTOS, open_photo, sample_photo, to_pictures, to_tensor
from stylenb.pocket.scenes import draw_scene
from stylenb.pocket.styles import KNOWN, PHRASES, STYLES, apply_style
from stylenb.pocket.training_mix import SIZE, TEST_SEEDS
from stylenb.scores import judge, psnr
from stylenb.weights import DATA, available_styles

AIMS = {SIZE: ("30 dB", "22 dB"), 2 * SIZE: ("30.5 dB", "24.5 dB")}  # photo-like, unseen photos
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


def styled_scenes(style: str, count: int, size: int = SIZE) -> list:
    """Test scenes in their true style."""
    return renderings(style, unseen_scenes(count, size))


def reconstruction_psnr(vae: AutoencoderKL, true: dict[str, list]) -> dict[str, float]:
    """PSNR in dB of the true renderings of every style."""
    return {style: psnr(reconstruct(vae, pictures), pictures) for style, pictures in true.items()}


def photo_psnr(vae: AutoencoderKL, photos: list) -> list[float]:
    """PSNR in dB of each photograph."""
    return [psnr(*pair) for pair in zip(reconstruct(vae, photos), photos, strict=True)]


def judge_accuracy(true: dict[str, list]) -> dict[str, float]:
    """Share of the true renderings of every style that the judge names rightly."""
    return {style: judge(pictures).count(style) / len(pictures) for style, pictures in true.items()}


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
        how = {"num_inference_steps": STEPS, "guidance_scale": guidance, "generator": seeds}
        pictures += to_pictures(2 * pipe(part, output_type="pt", **how).images - 1)
    return pictures, styles


def lora_accuracy(base: Base, count: int) -> dict[str, tuple[float, float]]:
    """For every shipped LoRA: the share of `count` stylised test scenes judged to be its style, and
    that of the true renderings after the autoencoder, which no LoRA can be expected to pass."""
    size, vae = base.default_size, load_vae()
    scenes = unseen_scenes(count, size)

    def share(style: str, pictures: list) -> float:
        return float(np.mean([guess == style for guess in judge(pictures)]))

    return {
        style: (
            share(style, stylize(scenes, style, seed=range(count), base=base)),
            share(style, reconstruct(vae, renderings(style, scenes))),
        )
        for style in available_styles()
    }


def stylised_sheet(base: Base) -> Image.Image:
    """Two photographs, two test scenes and a close-up, and each of them in every shipped style."""
    size, styles = base.default_size, available_styles()
    inputs = [sample_photo(name, size) for name in ("coffee", "astronaut", "chelsea")]
    inputs[2:2] = [draw_scene(TEST_SEEDS + i, size).picture for i in (2, 4)]
    rows = [[photo, *(stylize(photo, style, base=base) for style in styles)] for photo in inputs]
    return make_image_grid(sum(rows, []), rows=len(inputs), cols=1 + len(styles))


def by_name(scores: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in scores.items()) + "."


def autoencoder_rows(
    true: dict[str, list], size: int, unseen: Path | None
) -> tuple[list[list], list[str]]:
    """Table rows and notes on the autoencoder; `unseen` is a folder of photographs of one's own."""
    vae, of = load_vae(), f"autoencoder at {size} px, "
    styles = reconstruction_psnr(vae, true)
    worst = min(styles, key=styles.get)
    found = photo_psnr(vae, [sample_photo(name, size) for name in SAMPLE_PHOTOS])
    photos = dict(zip(SAMPLE_PHOTOS, found, strict=True))
    mean, mean_photo = np.mean(list(styles.values())), np.mean(list(photos.values()))
    rows = [
        [f"{of}{len(true['photo'])} photo-like scenes", f"{styles['photo']:.1f} dB", AIMS[size][0]],
        [of + "mean of all styles", f"{mean:.1f} dB", "24 dB"],
        [of + f"worst style ({worst})", f"{styles[worst]:.1f} dB", "19 dB"],
        [of + "scikit-image photographs", f"{mean_photo:.1f} dB", "24 dB"],
    ]
    if unseen:
        files = sorted(p for p in unseen.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        others = photo_psnr(vae, [open_photo(p, size) for p in files])
        measured = f"{len(files)} photographs that it has never seen"
        rows.append([of + measured, f"{np.mean(others):.1f} dB", AIMS[size][1]])
    return rows, [
        f"Autoencoder at {size} px by style, dB: {by_name(styles, '.1f')}",
        f"Autoencoder at {size} px by photograph, dB: {by_name(photos, '.1f')}",
    ]


def judge_rows(true: dict[str, list], size: int) -> tuple[list[list], list[str]]:
    shares = judge_accuracy(true)
    measured = f"judge at {size} px, true renderings ({len(true['photo'])} a style)"
    rows = [[measured, f"{100 * np.mean(list(shares.values())):.1f} %", "97 %"]]
    return rows, [f"True renderings at {size} px judged right: {by_name(shares, '.0%')}"]


def sample_rows(count: int = 200, guidance: float = GUIDANCE):
    """Table rows and notes on prompted samples, and the samples."""
    pictures, asked = prompted_samples(count, guidance)
    right = np.array([a == b for a, b in zip(judge(pictures), asked, strict=True)])
    of_style = {s: right[[a == s for a in asked]].mean() for s in dict.fromkeys(asked)}
    measured = (
        f"{count} prompted samples judged to be of the style asked for "
        f"({STEPS} DDIM steps, guidance {guidance:g})"
    )
    rows = [[measured, f"{100 * right.mean():.1f} %", "90 %"]]
    return rows, [f"Samples judged right, by style: {by_name(of_style, '.0%')}"], pictures


def lora_rows(count: int = 32) -> list[list]:
    return [
        [
            f"LoRA {style}: share of {count} stylised scenes judged to be it "
            f"(true renderings after the autoencoder: {limit:.0%})",
            f"{share:.0%}",
            "",
        ]
        for style, (share, limit) in lora_accuracy(load("pocket"), count).items()
    ]


def reconstruction_sheet() -> Image.Image:
    """Scenes in every style and six photographs, and below each its reconstruction."""
    pictures = [styled_scenes(style, i + 1)[i] for i, style in enumerate(STYLES)]
    pictures += [sample_photo(name, SIZE) for name in SAMPLE_PHOTOS[:6]]
    again = reconstruct(load_vae(), pictures)
    rows = [part[i : i + 10] for i in range(0, len(pictures), 10) for part in (pictures, again)]
    return make_image_grid(sum(rows, []), rows=len(rows), cols=10)


def world_sheet() -> Image.Image:
    """Five test scenes in rows, every style in a column."""
    scenes = [draw_scene(TEST_SEEDS + i).picture for i in (4, 6, 2, 23, 9)]
    styled = [apply_style(style, scene, 0) for scene in scenes for style in STYLES]
    return make_image_grid(styled, rows=len(scenes), cols=len(STYLES))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python data/quality.py",
        description="Measure the pocket model on pictures that it was not trained on.",
    )
    parser.add_argument(
        "--record", action="store_true", help="write table, sheets and check sums into data/"
    )
    parser.add_argument("--unseen", type=Path, help="folder of photographs never trained on")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    args = parser.parse_args(argv)
    rows, notes, samples = [], [], None
    for size, count in ((SIZE, 48), (2 * SIZE, 16)):
        true = {style: styled_scenes(style, count, size) for style in STYLES}
        for found in (autoencoder_rows(true, size, args.unseen), judge_rows(true, size)):
            rows, notes = rows + found[0], notes + found[1]
    if (DATA / "pocket-sd" / "unet").is_dir():
        more_rows, more_notes, samples = sample_rows(guidance=args.guidance)
        rows, notes = rows + more_rows + lora_rows(), notes + more_notes
    else:
        notes.append("Samples and LoRAs: not measured, `pocket-sd` has no UNet yet.")
    lines = [*table(["measured", "value", "aim"], rows), "", "\n\n".join(notes)]
    print("\n".join(lines))
    if args.record:
        fill_in(DATA / "README.md", "quality", lines)
        record_sheets(samples)
        record_sums()


def record_sheets(samples: list | None) -> None:
    sheets = {"world": world_sheet(), "reconstructions": reconstruction_sheet()}
    if samples:
        sheets["samples"] = make_image_grid(samples[:56], rows=8, cols=7)
        sheets["stylised"] = stylised_sheet(load("pocket"))
    for name, sheet in sheets.items():
        with replacing(DATA / f"{name}.jpg") as temporary:
            sheet.save(temporary, quality=80, progressive=True)


def record_sums() -> None:
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(DATA).as_posix()}"
        for path in sorted(DATA.rglob("*.safetensors"))
    ]
    with replacing(DATA / "SHA256SUMS") as temporary:
        temporary.write_text("\n".join(sums) + "\n")


if __name__ == "__main__":
    main()
