"""Shared by the tests: a tiny random model in the layout of SD v1.5, and the real pocket model."""

import copy
import json
import os

# Two tests at a time, so one thread for each; before torch counts the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

import stylenb
import stylenb.base


def pytest_collection_modifyitems(items):
    """The lessons first: they take minutes each, and whatever is left fills the other core."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


@pytest.fixture(autouse=True)
def _no_surprises(monkeypatch):
    """Whatever is set on this machine must not decide a test, and no test may use a network."""
    for name in ("STYLENB_SD15", "KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def pocket():
    """The shipped model: tests that need it fail where it is missing.

    Each file of tests gets its own, so that no LoRA which one leaves in it can decide another.
    """
    return stylenb.load("pocket", device="cpu")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A random model as StableDiffusionPipeline saves it: 4 latent channels, factor 8, width 768.

    The UNet's sample_size of 8 makes the image size 64.
    """
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("tiny") / "tiny-sd"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=64,
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            cross_attention_dim=768,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=8,
            norm_num_groups=8,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(_vocabulary()),
                hidden_size=768,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=4,
                bos_token_id=_vocabulary()["<|startoftext|>"],
                eos_token_id=_vocabulary()["<|endoftext|>"],
                pad_token_id=_vocabulary()["<|endoftext|>"],
            )
        )
    vae.save_pretrained(folder / "vae")
    unet.save_pretrained(folder / "unet")
    text_encoder.save_pretrained(folder / "text_encoder")
    # SD v1.5 ships the PNDM scheduler with these very values
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    _save_tokenizer(folder / "tokenizer")
    (folder / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "StableDiffusionPipeline",
                "_diffusers_version": "0.37.0",
                "feature_extractor": [None, None],
                "requires_safety_checker": False,
                "safety_checker": [None, None],
                "scheduler": ["diffusers", "PNDMScheduler"],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"],
                "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            }
        )
    )
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    return stylenb.load(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def lora_files(tiny, tmp_path_factory):
    """Files of LoRAs of the tiny model, of different rank, alpha and weights, whose effect is plain
    to see: "a", "b" and, of more layers, "c"."""
    folder, files = tmp_path_factory.mktemp("loras"), {}
    for seed, name in enumerate("abc", 1):
        own, layers = copy.copy(tiny), "transformer" if name == "c" else "attention"
        own.unet = copy.deepcopy(tiny.unet)
        stylenb.add_lora(own, name, seed, 0.7 * seed, seed, layers)
        generator = torch.Generator().manual_seed(seed)
        for key, p in own.unet.named_parameters():
            if "lora_B" in key:
                p.data = torch.randn(p.shape, generator=generator) * 0.5
        files[name] = stylenb.save_lora(own, folder / f"{name}.safetensors", name)
    return files


@pytest.fixture(scope="session")
def gradient():
    """A picture of 96 x 64 in which every pixel differs: red grows to the right, green down."""
    y, x = np.mgrid[0:64, 0:96]
    return Image.fromarray(np.stack([x * 2, y * 3, x + y], axis=2).astype(np.uint8))


def _vocabulary() -> dict[str, int]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    return {w: i for i, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


def _save_tokenizer(folder) -> None:
    """A CLIP tokenizer without merges: every letter is a token."""
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(_vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**special, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"})
    )
