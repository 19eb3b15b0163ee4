"""The shipped model, judge, perceptual network and LoRAs, each on a small sample.

`python data/quality.py` measures the same on larger ones and records it in the model
card; the floors below are the model card's aims less what a small sample may miss them by.
"""

import hashlib
import json
import re

import cv2
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from data import quality
from data.bench import unseen_scenes
from data.pretrain import RARE_TOKEN
from stylenb import available_styles, judge, lpips_distance, sample_photo, stylize, to_tensor
from stylenb.lora_files import about_lora
from stylenb.photos import SAMPLE_PHOTOS
from stylenb.pocket.scenes import draw_scene
from stylenb.pocket.styles import HELD_OUT, KNOWN, STYLES
from stylenb.pocket.training_mix import TEST_SEEDS
from stylenb.scores import load_judge, psnr, style_probabilities
from stylenb.training import Settings, digest
from stylenb.weights import DATA

SCENES = 6  # test scenes in each style
PSNR_PHOTO_SCENES = 29.0  # dB
PSNR_ALL_STYLES = 23.5
PSNR_WORST_STYLE = 18.5
PSNR_PHOTOGRAPHS = 23.5
JUDGED, JUDGE_RIGHT = 5, 0.95  # true renderings of each style, and the share named rightly
PROMPTED, PROMPTED_RIGHT = 14, 0.75
STYLISED, STYLISED_RIGHT = 6, 0.3
PHOTOS = ("chelsea", "coffee", "astronaut", "rocket")
LAYOUT_KEPT = 3  # of these photos
MODEL_BYTES = 30_000_000
LORA_BYTES = 1_000_000

FOLDER = DATA / "pocket-sd"


@pytest.fixture(scope="module")
def renderings():
    """Test scenes in their true style: style -> pictures."""
    return {style: quality.styled_scenes(style, SCENES) for style in STYLES}


@pytest.fixture(scope="module")
def stylised(pocket):
    """Test scenes as the model redraws them, in every shipped style and (None) in no style."""
    scenes, seeds = unseen_scenes(STYLISED, pocket.default_size), range(STYLISED)
    styles = (None, *available_styles())
    return {style: stylize(scenes, style, seed=seeds, base=pocket) for style in styles}


# --- the folder ---


@pytest.mark.pocket_model
def test_the_folder_is_small_and_holds_half_precision_safetensors():
    files = [p for p in FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= MODEL_BYTES
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".txt"}
    weights = [p for p in files if p.suffix == ".safetensors"]
    assert {p.parent.name for p in weights} == {"text_encoder", "unet", "vae"}
    for path in weights:
        state = load_file(path)
        assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float16}
        assert all(v.isfinite().all() for v in state.values())


@pytest.mark.pocket_model
def test_the_schedule_is_that_of_sd15():
    config = json.loads((FOLDER / "scheduler" / "scheduler_config.json").read_text())
    expected = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "clip_sample": False,
        "steps_offset": 1,
    }
    assert {key: config.get(key) for key in expected} == expected
    betas = DDPMScheduler.from_pretrained(FOLDER, subfolder="scheduler").betas
    assert torch.allclose(betas, torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


@pytest.mark.pocket_model
def test_the_parts_are_those_of_sd15_but_smaller(pocket):
    assert (pocket.image_size, pocket.factor) == (128, 8)
    assert pocket.vae.config.latent_channels == pocket.unet.config.in_channels == 4
    assert pocket.unet.config.cross_attention_dim == pocket.text_encoder.config.hidden_size
    assert pocket.empty.shape[1] == 77


@pytest.mark.pocket_model
def test_the_rare_token_is_one_token_of_no_caption(pocket):
    start, rare, end = pocket.tokenizer(RARE_TOKEN).input_ids
    assert (start, end) == (pocket.tokenizer.bos_token_id, pocket.tokenizer.eos_token_id)
    assert pocket.tokenizer.convert_ids_to_tokens(rare) == "sks</w>"
    captions = [draw_scene(TEST_SEEDS + i).caption for i in range(SCENES)]
    assert not any(rare in ids for ids in pocket.tokenizer(captions).input_ids)
    embedding = pocket.embed([RARE_TOKEN, ""])
    assert not torch.allclose(embedding[0], embedding[1], atol=1e-2)


@pytest.mark.pocket_model
@pytest.mark.parametrize("prompt", ["a watercolour of a red house by a lake", ""])
def test_plain_diffusers_draws_from_the_folder(prompt):
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER)
    pipe.set_progress_bar_config(disable=True)
    pictures = [
        pipe(prompt, num_inference_steps=6, generator=torch.Generator().manual_seed(seed)).images[0]
        for seed in (0, 1)
    ]
    assert all(p.size == (128, 128) and np.asarray(p).std() > 10 for p in pictures)
    assert pictures[0].tobytes() != pictures[1].tobytes()


@pytest.mark.pocket_model
@pytest.mark.parametrize("prompt", ["an oil painting of hills at sunset", ""])
def test_plain_diffusers_redraws_a_picture(prompt):
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(FOLDER)
    pipe.set_progress_bar_config(disable=True)
    scene = draw_scene(TEST_SEEDS).picture
    options = {"num_inference_steps": 8, "strength": 0.5}
    seeded = torch.Generator().manual_seed(0)
    picture = pipe(prompt, image=scene, generator=seeded, **options).images[0]
    assert picture.size == (128, 128) and np.asarray(picture).std() > 10
    assert picture.tobytes() != scene.tobytes()
    assert psnr(picture, scene) > 12  # still the same picture


@pytest.mark.pocket_model
def test_scaled_latents_are_of_unit_size(pocket, renderings):
    pictures = [p for style in KNOWN for p in renderings[style]]
    with torch.no_grad():
        latents = pocket.encode(to_tensor(pictures))
    assert 0.8 < float(latents.std()) < 1.25
    assert latents.std((0, 2, 3)).min() > 0.2  # no channel is idle


# --- quality ---


def test_autoencoder_on_every_style(renderings):
    scores = {
        style: psnr(quality.reconstruct(quality.load_vae(), pictures), pictures)
        for style, pictures in renderings.items()
    }
    assert scores["photo"] >= PSNR_PHOTO_SCENES
    assert np.mean(list(scores.values())) >= PSNR_ALL_STYLES
    assert min(scores.values()) >= PSNR_WORST_STYLE, scores


def test_autoencoder_on_photographs():
    photos = [sample_photo(name, 128) for name in SAMPLE_PHOTOS]
    assert np.mean(quality.photo_psnr(quality.load_vae(), photos)) >= PSNR_PHOTOGRAPHS


def test_the_judge_knows_the_true_styles(renderings):
    named = {style: judge(pictures[:JUDGED]) for style, pictures in renderings.items()}
    right = [name == style for style, names in named.items() for name in names]
    assert len(right) == JUDGED * len(STYLES)
    assert np.mean(right) >= JUDGE_RIGHT, named


@pytest.mark.pocket_model
def test_prompted_samples_are_of_the_style_asked_for():
    pictures, asked = quality.prompted_samples(PROMPTED)
    assert len(pictures) == PROMPTED and set(asked) == set(KNOWN)
    named = judge(pictures)
    assert np.mean(np.equal(named, asked)) >= PROMPTED_RIGHT, list(zip(asked, named, strict=True))


# --- the shipped LoRAs ---


@pytest.mark.pocket_model
def test_the_shipped_loras_are_of_held_out_styles_and_small():
    styles = available_styles()
    assert len(styles) >= 4 and not set(styles) & set(KNOWN) and set(styles) <= set(HELD_OUT)
    assert all(path.stat().st_size < LORA_BYTES for path in styles.values())


@pytest.mark.pocket_model
@pytest.mark.parametrize("style", available_styles())
def test_a_shipped_lora_says_how_it_was_made_and_its_pictures_are_there(style):
    about = about_lora(available_styles()[style])
    assert about["base"] == "pocket" and about["seconds"] > 0
    settings = Settings(**about["settings"])
    assert settings.looks_at_pictures and settings.steps >= 100
    files = sorted((DATA / "styles" / style).iterdir())
    assert [p.name for p in files] == [f"{i:02d}.png" for i in range(16)]
    pictures = [Image.open(p) for p in files]
    assert {(p.size, p.mode) for p in pictures} == {((128, 128), "RGB")}
    assert len({p.tobytes() for p in pictures}) == 16
    assert digest(pictures) == about["style pictures"]  # from these, and no others
    assert judge(pictures).count(style) >= 13


@pytest.mark.pocket_model
@pytest.mark.parametrize("style", available_styles())
def test_stylising_gives_the_style(stylised, style):
    named, without = judge(stylised[style]), judge(stylised[None])
    assert np.mean([name == style for name in named]) >= STYLISED_RIGHT, named
    assert np.mean([name == style for name in without]) < STYLISED_RIGHT, without
    column = load_judge()[1].index(style)
    probability = {s: style_probabilities(stylised[s])[:, column].mean() for s in (style, None)}
    assert probability[style] > probability[None]


@pytest.mark.pocket_model
def test_the_styles_differ(stylised):
    for i in range(STYLISED):
        arrays = {style: np.asarray(p[i], float) for style, p in stylised.items()}
        for a in arrays:
            for b in arrays:
                assert a == b or np.abs(arrays[a] - arrays[b]).mean() > 4, (a, b)


def blurred_luminance(picture):
    """Large shapes, without their brightness and contrast."""
    grey = cv2.GaussianBlur(np.asarray(picture.convert("L"), np.float32), (0, 0), 4)
    return (grey - grey.mean()) / (grey.std() + 1e-6)


@pytest.mark.pocket_model
@pytest.mark.parametrize("style", available_styles())
def test_stylising_keeps_the_layout(pocket, style):
    photos = [sample_photo(name, 128) for name in PHOTOS]
    pictures = stylize(photos, style, base=pocket, size=128)
    assert all(psnr(a, b) < 30 for a, b in zip(photos, pictures, strict=True))  # and it changed
    shapes = [blurred_luminance(p) for p in photos]
    nearest = {"luminance": [], "lpips": []}
    for picture in pictures:
        own = blurred_luminance(picture)
        nearest["luminance"].append(np.argmin([np.square(own - s).mean() for s in shapes]))
        nearest["lpips"].append(lpips_distance([picture] * len(photos), photos).argmin())
    kept = {by: sum(int(n) == i for i, n in enumerate(found)) for by, found in nearest.items()}
    assert max(kept.values()) >= LAYOUT_KEPT, kept


# --- the papers ---


def test_no_file_names_a_folder_of_the_machine_that_made_it():
    for path in [*FOLDER.rglob("*config.json"), DATA / "training.json", DATA / "README.md"]:
        assert not re.search(r'"/|/root/|/home/', path.read_text("utf-8")), path


def test_check_sums():
    path = DATA / "SHA256SUMS"
    if not path.is_file():
        pytest.skip("data/SHA256SUMS is not there")
    sums = dict(line.split(maxsplit=1)[::-1] for line in path.read_text().splitlines())
    sums = {name.strip().removeprefix("*").removeprefix("./"): s for name, s in sums.items()}
    for name, expected in sums.items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == expected, name
    weights = {p.relative_to(DATA).as_posix() for p in DATA.rglob("*.safetensors")}
    assert weights and weights <= set(sums)


@pytest.mark.pocket_model
def test_the_model_card_is_filled_in():
    card = (DATA / "README.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- quality -->\n(.+)<!-- /quality -->", card, re.S)
    assert table and "30 dB" in table[1]
    for picture in re.findall(r"\]\(([^)]+\.png)\)", card):
        assert (DATA / picture).is_file(), picture
    story = json.loads((DATA / "training.json").read_text())
    assert {"vae", "text-unet", "perceptual", "judge"} <= set(story)
    assert all(stage["steps"] > 0 and stage["commit"] for stage in story.values())
