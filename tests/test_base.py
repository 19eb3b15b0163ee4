"""The base interface on a tiny random model in SD v1.5's layout, and where "sd15" comes from."""

import json
import shutil
import time
from copy import copy as copy_of

import pytest
import torch

import stylenb
from stylenb import StylenbError, base, load


def copy(folder, target):
    return shutil.copytree(folder, target)


def edit(path, **changes):
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **changes}))


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_what_the_base_says_of_itself(tiny, tiny_folder):
    assert tiny.name == "tiny-sd" and tiny.folder == tiny_folder
    assert (tiny.image_size, tiny.factor) == (64, 8)
    assert (tiny.device.type, tiny.dtype) == ("cpu", torch.float32)
    assert type(tiny.scheduler).__name__ == "DDIMScheduler"
    assert tiny.scheduler.config.clip_sample is False  # latents go beyond [-1, 1]
    assert tiny.scheduler.config.steps_offset == 1
    assert not any(p.requires_grad for m in (tiny.vae, tiny.unet) for p in m.parameters())
    assert not tiny.unet.training
    assert "64 px" in repr(tiny)


def test_encode_and_decode(tiny):
    images = noise(2, 3, 64, 96).clamp(-1, 1)
    latents = tiny.encode(images)
    assert latents.shape == (2, 4, 8, 12)
    posterior = tiny.vae.encode(images).latent_dist
    assert torch.equal(latents, posterior.mean * tiny.vae.config.scaling_factor)
    sampled = [tiny.encode(images, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(sampled[0], sampled[1])
    assert not torch.equal(sampled[0], sampled[2])
    assert not torch.equal(sampled[0], latents)
    decoded = tiny.decode(latents)
    assert decoded.shape == images.shape
    expected = tiny.vae.decode(posterior.mean).sample  # but for rounding in the scaling
    assert torch.allclose(decoded, expected, atol=1e-5)


def test_no_prompt_is_the_empty_prompt(tiny):
    assert tiny.empty.shape == (1, 77, 768)
    assert tiny.empty is tiny.empty
    assert torch.equal(tiny.empty, tiny.embed(""))
    assert not torch.allclose(tiny.empty, tiny.embed("a cat"))
    both = tiny.embed(["", "a cat"])
    assert torch.allclose(both[0], tiny.empty[0], atol=1e-5)
    latents = noise(2, 4, 8, 8)
    without = tiny.predict_noise(latents, 500)
    assert without.shape == latents.shape
    assert torch.equal(without, tiny.predict_noise(latents, 500, tiny.empty))
    assert not torch.allclose(without, tiny.predict_noise(latents, 500, tiny.embed("a cat")))


def test_embedding_is_what_transformers_computes(tiny):
    tokens = tiny.tokenizer(
        "a cat", padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    assert tokens.input_ids[0, 0] == tiny.tokenizer.bos_token_id
    assert torch.equal(tiny.embed("a cat"), tiny.text_encoder(tokens.input_ids)[0])


def test_a_prompt_that_is_cut_says_so(tiny):
    with pytest.warns(UserWarning, match="first 75 of 100 tokens"):
        cut = tiny.embed("a " * 100)
    assert torch.equal(cut, tiny.embed("a " * 75))


def test_timesteps_as_numbers_and_tensors(tiny):
    latents = noise(2, 4, 8, 8)
    expected = tiny.predict_noise(latents, 300)
    for timestep in (torch.tensor(300), torch.tensor([300]), torch.tensor([300, 300])):
        assert torch.equal(tiny.predict_noise(latents, timestep), expected)
    mixed = tiny.predict_noise(latents, torch.tensor([300, 900]))
    assert torch.allclose(mixed[0], expected[0], atol=1e-5)
    assert not torch.allclose(mixed[1], expected[1], atol=1e-5)


def test_gradients_flow_through(tiny):
    latents = noise(1, 4, 8, 8).requires_grad_()
    tiny.decode(tiny.predict_noise(latents, 100)).square().mean().backward()
    assert latents.grad.isfinite().all() and latents.grad.abs().sum() > 0


def test_the_cached_embedding_can_train_even_if_first_used_in_inference(tiny_folder):
    fresh = load(tiny_folder, device="cpu")
    with torch.inference_mode():
        fresh.predict_noise(noise(1, 4, 8, 8), 10)
    assert not fresh.empty.is_inference()


def test_dropping_the_text_encoder_keeps_no_prompt(tiny_folder):
    fresh = load(tiny_folder, device="cpu")
    latents = noise(1, 4, 8, 8)
    before = fresh.predict_noise(latents, 10)
    fresh = load(tiny_folder, device="cpu")
    fresh.drop_text_encoder()
    assert fresh.text_encoder is None and fresh.tokenizer is None
    assert torch.equal(fresh.predict_noise(latents, 10), before)
    with pytest.raises(StylenbError, match="load the base again"):
        fresh.embed("a cat")
    fresh.drop_text_encoder()  # a second time is no error


def test_half_precision(tiny_folder):
    half = load(tiny_folder, device="cpu", dtype=torch.bfloat16)
    latents = noise(1, 4, 8, 8)
    assert half.unet.dtype == half.vae.dtype == half.text_encoder.dtype == torch.bfloat16
    assert half.predict_noise(latents, 10).dtype == torch.float32
    assert half.decode(latents).dtype == torch.bfloat16


BAD_CALLS = {
    "encode needs a batch": lambda b: b.encode(torch.zeros(3, 64, 64)),
    "encode needs three channels": lambda b: b.encode(torch.zeros(1, 4, 64, 64)),
    "encode needs multiples of 8": lambda b: b.encode(torch.zeros(1, 3, 64, 60)),
    "encode needs [-1, 1]": lambda b: b.encode(torch.full((1, 3, 64, 64), 255.0)),
    "encode refuses NaN": lambda b: b.encode(torch.full((1, 3, 64, 64), torch.nan)),
    "decode refuses images": lambda b: b.decode(torch.zeros(1, 3, 64, 64)),
    "predict_noise refuses images": lambda b: b.predict_noise(torch.zeros(1, 3, 64, 64), 1),
    "timestep too late": lambda b: b.predict_noise(torch.zeros(1, 4, 8, 8), 1000),
    "timestep negative": lambda b: b.predict_noise(torch.zeros(1, 4, 8, 8), -1),
    "timesteps miscounted": lambda b: b.predict_noise(torch.zeros(3, 4, 8, 8), torch.arange(2)),
    "embedding miscounted": lambda b: b.predict_noise(
        torch.zeros(3, 4, 8, 8), 1, torch.zeros(2, 77, 768)
    ),
    "embedding of another model": lambda b: b.predict_noise(
        torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, 64)
    ),
    "no prompts": lambda b: b.embed([]),
    "a prompt that is no string": lambda b: b.embed([1]),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_is_one_sentence(tiny, case):
    with pytest.raises(StylenbError) as caught:
        BAD_CALLS[case](tiny)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


# --- where a base comes from ---


def test_sd15_from_the_environment(tiny_folder, monkeypatch):
    monkeypatch.setenv("STYLENB_SD15", str(tiny_folder))
    loaded = load("sd15", device="cpu")
    assert loaded.name == "sd15" and loaded.folder == tiny_folder
    assert loaded.empty.shape == (1, 77, 768)


def test_sd15_from_a_kaggle_input(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "KAGGLE_INPUT", tmp_path)
    photos = tmp_path / "a-photos" / "folder"
    photos.mkdir(parents=True)
    (photos / "cat.jpg").write_bytes(b"")
    other = copy(tiny_folder, tmp_path / "b-other" / "model")
    edit(other / "unet" / "config.json", cross_attention_dim=1024)
    pickled = copy(tiny_folder, tmp_path / "c-pickled")
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    deep = copy(tiny_folder, tmp_path / "models/someone/sd15/pytorch/default/1")
    loaded = load("sd15", device="cpu")
    assert loaded.folder == deep


def test_the_environment_goes_before_kaggle(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "KAGGLE_INPUT", tmp_path)
    copy(tiny_folder, tmp_path / "sd15")
    monkeypatch.setenv("STYLENB_SD15", str(tiny_folder))
    assert load("sd15", device="cpu").folder == tiny_folder


def test_sd15_without_network_names_the_three_ways_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(base, "KAGGLE_INPUT", tmp_path / "none")
    start = time.perf_counter()
    with pytest.raises(StylenbError) as caught:
        load("sd15", device="cpu")
    assert time.perf_counter() - start < 10
    message = str(caught.value)
    for way in ("switch the internet on", "Kaggle input", "STYLENB_SD15"):
        assert way in message
    assert "\n" not in message


def test_the_hub_is_asked_for_pinned_safetensors_without_the_safety_checker(
    tiny_folder, monkeypatch
):
    asked = {}

    def download(repository, **options):
        asked.update(options, repository=repository)
        return str(tiny_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert base._download_sd15(half=True) == tiny_folder
    assert asked["repository"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert asked["revision"] == base.SD15_REVISION and len(base.SD15_REVISION) == 40
    assert asked["local_files_only"] is True  # HF_HUB_OFFLINE is set
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in asked["allow_patterns"]
    assert not any("bin" in p or "safety" in p for p in asked["allow_patterns"])
    assert "safety_checker/*" in asked["ignore_patterns"]
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    base._download_sd15(half=False)
    assert asked["local_files_only"] is False
    assert "unet/diffusion_pytorch_model.safetensors" in asked["allow_patterns"]


def test_fp16_files_are_read_where_they_are_the_only_ones_or_half_is_wanted(tiny_folder, tmp_path):
    folder = copy(tiny_folder, tmp_path / "fp16")
    for part, stem in base._WEIGHTS.items():
        file = folder / part / f"{stem}.safetensors"
        file.rename(folder / part / f"{stem}.fp16.safetensors")
    loaded = load(folder, device="cpu")
    assert loaded.dtype == loaded.unet.dtype == torch.float32
    shutil.copy(
        tiny_folder / "unet" / "diffusion_pytorch_model.safetensors",
        folder / "unet" / "diffusion_pytorch_model.safetensors",
    )
    assert base._weights_variant(folder, "unet", half=True) == "fp16"
    assert base._weights_variant(folder, "unet", half=False) is None


def without(part, *names):
    def spoil(folder):
        for name in names or [""]:
            target = folder / part / name
            shutil.rmtree(target) if target.is_dir() else target.unlink()

    return spoil


def to_pickle(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def cut(folder):
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def other_shape(folder):
    edit(folder / "unet" / "config.json", block_out_channels=[32, 64])


UNET = "unet/config.json"
SCHEDULE = "scheduler/scheduler_config.json"
SPOILT = {
    "no index": (without("model_index.json"), "diffusers layout"),
    "no unet": (without("unet"), "has no unet"),
    "no vae": (without("vae"), "has no vae"),
    "no text encoder": (without("text_encoder"), "has no text_encoder"),
    "no tokenizer": (without("tokenizer"), "has no tokenizer"),
    "no scheduler": (without("scheduler"), "has no scheduler"),
    "no config": (without("unet", "config.json"), "config"),
    "no weights": (without("vae", "diffusion_pytorch_model.safetensors"), "has no diffusion"),
    "pickled": (to_pickle, "pickled weights"),
    "cut off": (cut, "cannot be loaded"),
    "other shape": (other_shape, "cannot be loaded"),
    "broken config": (lambda f: (f / UNET).write_text("{"), "cannot be read"),
    "SD 2": (lambda f: edit(f / SCHEDULE, prediction_type="v_prediction"), "another kind"),
    "SDXL": (lambda f: edit(f / UNET, addition_embed_type="text_time"), "another kind"),
    "inpainting": (lambda f: edit(f / UNET, in_channels=9), "another kind"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_folder_that_cannot_be_used_is_one_sentence(case, tiny_folder, tmp_path):
    folder = copy(tiny_folder, tmp_path / "model")
    spoil, part = SPOILT[case]
    spoil(folder)
    with pytest.raises(StylenbError) as caught:
        load(folder, device="cpu")
    message = str(caught.value)
    assert part in message and "model" in message
    assert "\n" not in message and message.endswith(".")


def test_a_name_that_is_no_base(tmp_path, tiny_folder, monkeypatch):
    for name, part in (("pocet", "choose 'pocket', 'sd15'"), ("a/b", "choose"), (7, "not 7")):
        with pytest.raises(StylenbError, match=part):
            load(name, device="cpu")
    with pytest.raises(StylenbError, match="from_single_file"):
        load(tiny_folder / "model_index.json", device="cpu")
    with pytest.raises(StylenbError, match="does not work"):
        load(tiny_folder, device="cuda:99")
    with pytest.raises(StylenbError, match="'cpu', 'cuda' or 'mps'"):
        load(tiny_folder, device="gpu")
    monkeypatch.setattr(base, "DATA", tmp_path)
    with pytest.raises(StylenbError, match="clone the whole repository"):
        load("pocket", device="cpu")


def test_a_bad_sd15_folder_names_the_variable(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("STYLENB_SD15", str(tmp_path / "gone"))
    with pytest.raises(StylenbError, match="STYLENB_SD15.*gone"):
        load("sd15", device="cpu")
    other = copy(tiny_folder, tmp_path / "other")
    edit(other / "unet" / "config.json", cross_attention_dim=1024)
    monkeypatch.setenv("STYLENB_SD15", str(other))
    with pytest.raises(StylenbError, match="is not Stable Diffusion v1.5"):
        load("sd15", device="cpu")


# --- device and precision ---


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of a given compute capability that passes, or fails, the probe."""

    def pretend(capability, failure=""):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Pretended GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)
        monkeypatch.setattr(
            base, "_probe", lambda device, dtype: failure if device.type == "cuda" else ""
        )

    return pretend


def test_bfloat16_only_where_the_hardware_has_it(gpu):
    gpu((7, 5))
    device, dtype, why = base.device_and_dtype()
    assert (device.type, dtype) == ("cuda", torch.float16) and "7.5 < 8.0" in why
    gpu((8, 0))
    assert base.device_and_dtype()[1] == torch.bfloat16
    gpu((9, 0))
    assert base.device_and_dtype()[1] == torch.bfloat16


def test_a_gpu_without_kernels_is_passed_over(gpu):
    gpu((6, 0), failure="no kernel image is available for execution on the device")
    device, dtype, why = base.device_and_dtype()
    assert device.type != "cuda" and dtype == torch.float32
    assert "no kernel image" in why
    with pytest.raises(StylenbError, match="no kernel image"):
        base.device_and_dtype("cuda")


def test_the_probe_really_computes(monkeypatch):
    cpu = torch.device("cpu")
    assert base._probe(cpu, torch.float32) == base._probe(cpu, torch.bfloat16) == ""
    assert base._probe(torch.device("cuda:99"), torch.float32)
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda x, w: torch.zeros(1, 4, 6, 6))
    assert base._probe(cpu, torch.float32) == "wrong results"


# --- the shipped model ---


@pytest.mark.pocket_model
def test_the_pocket_model(pocket):
    assert pocket.name == "pocket" and (pocket.image_size, pocket.factor) == (128, 8)
    photo = stylenb.to_tensor(stylenb.sample_photo("astronaut", pocket.image_size))
    with torch.inference_mode():
        latents = pocket.encode(photo)
        assert latents.shape == (1, 4, 16, 16)
        assert 0.5 < latents.std() < 2  # what the scaling factor is for
        again = pocket.decode(latents)
        assert again.shape == photo.shape
        assert pocket.empty.shape[:2] == (1, 77)
        assert pocket.predict_noise(latents, 500).shape == latents.shape


# --- the tiny decoder ---


def test_other_bases_decode_quickly_with_their_own_decoder(tiny):
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tiny.decode_quickly(latents), tiny.decode(latents))


def test_sd15_decodes_quickly_with_taesd(tiny, tmp_path, monkeypatch):
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng():
        torch.manual_seed(0)
        taesd = AutoencoderTiny(
            encoder_block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            num_decoder_blocks=(1, 1, 1, 1),
        )
    taesd.save_pretrained(tmp_path)
    monkeypatch.setenv(base.TAESD_VARIABLE, str(tmp_path))
    own = copy_of(tiny)
    own.name = "sd15"
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    latents.requires_grad_()
    images = own.decode_quickly(latents)
    assert torch.equal(images, taesd.eval().decode(latents).sample)
    images.mean().backward()
    assert latents.grad.abs().sum() > 0


def test_without_taesd_there_is_a_warning_and_the_own_decoder(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv(base.TAESD_VARIABLE, str(tmp_path / "nothing"))
    own = copy_of(tiny)
    own.name = "sd15"
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="TAESD could not be loaded"):
        images = own.decode_quickly(latents)
    assert torch.equal(images, own.decode(latents))


@pytest.mark.pocket_model
def test_loading_is_quiet_and_leaves_the_bars_as_they_were(capfd):
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_diffusers.enable_progress_bar()
    of_transformers.disable_progress_bar()
    try:
        stylenb.load(
            "pocket", device="cpu"
        )  # its UNet is in two files, over which diffusers counts
        assert capfd.readouterr().err == ""
        assert of_diffusers.is_progress_bar_enabled()
        assert not of_transformers.is_progress_bar_enabled()
    finally:
        of_transformers.enable_progress_bar()
