"""The base interface on a tiny random model in SD v1.5's layout, and where "sd15" comes from."""

import copy
import json
import shutil
import socket
import time

import pytest
import torch

import stylenb
from stylenb import StylenbError, device, load, weights
from stylenb.weights import KAGGLE_DEPTH, WEIGHT_FILES, data_file

UNET, SCHEDULE = "unet/config.json", "scheduler/scheduler_config.json"
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


def edit(path, **changes):
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **changes}))


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def fresh(tiny_folder):
    return load(tiny_folder, device="cpu")


def test_what_the_base_says_of_itself(tiny, tiny_folder):
    assert tiny.name == "tiny-sd" and tiny.folder == tiny_folder
    assert (tiny.image_size, tiny.factor) == (64, 8)
    assert (tiny.multiple, tiny.default_size) == (16, 128)  # a UNet of two blocks halves once
    assert (tiny.device.type, tiny.dtype) == ("cpu", torch.float32)
    assert type(tiny.scheduler).__name__ == "DDIMScheduler"
    assert tiny.scheduler.config.clip_sample is False  # latents go beyond [-1, 1]
    assert tiny.scheduler.config.steps_offset == 1
    parts = (tiny.vae, tiny.unet, tiny.text_encoder)
    assert not any(p.requires_grad for part in parts for p in part.parameters())
    assert not any(part.training for part in parts)
    assert "64 px" in repr(tiny) and "float32" in repr(tiny)


def test_encode_and_decode(tiny):
    images = noise(2, 3, 64, 96).clamp(-1, 1)
    latents = tiny.encode(images)
    assert latents.shape == (2, 4, 8, 12)
    posterior = tiny.vae.encode(images).latent_dist
    assert torch.equal(latents, posterior.mean * tiny.vae.config.scaling_factor)
    sampled = [tiny.encode(images, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(sampled[0], sampled[1])
    assert not any(torch.equal(sampled[0], other) for other in (sampled[2], latents))
    decoded = tiny.decode(latents)
    assert decoded.shape == images.shape
    expected = tiny.vae.decode(posterior.mean).sample  # but for rounding in the scaling
    assert torch.allclose(decoded, expected, atol=1e-5)


def test_a_few_images_go_through_the_autoencoder_at_once(tiny, monkeypatch):
    images = noise(5, 3, 64, 64).clamp(-1, 1)
    whole = tiny.vae.encode(images).latent_dist.mean * tiny.vae.config.scaling_factor
    seen = []
    for name in ("encode", "decode"):
        real = getattr(tiny.vae, name)
        monkeypatch.setattr(tiny.vae, name, lambda x, real=real: seen.append(len(x)) or real(x))
    latents = tiny.encode(images)
    assert torch.allclose(latents, whole, atol=1e-5)
    assert tiny.decode(latents).shape == images.shape
    assert seen == [4, 1, 4, 1]
    monkeypatch.setattr("stylenb.base.BATCH_PIXELS", 2 * 64 * 64)
    assert torch.allclose(tiny.encode(images), whole, atol=1e-5)
    assert tiny.decode(latents).shape == images.shape
    assert seen[4:] == [2, 2, 1] * 2


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


def test_embedding_is_what_transformers_computes_and_says_what_is_cut(tiny):
    tokens = tiny.tokenizer(
        "a cat", padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    assert tokens.input_ids[0, 0] == tiny.tokenizer.bos_token_id
    assert torch.equal(tiny.embed("a cat"), tiny.text_encoder(tokens.input_ids)[0])
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


def test_dropping_the_text_encoder_keeps_no_prompt(fresh):
    latents = noise(1, 4, 8, 8)
    with torch.inference_mode():
        before = fresh.predict_noise(latents, 10)
    assert not fresh.empty.is_inference()  # so it can take part in training later
    fresh.forget_empty()
    fresh.drop_text_encoder()
    assert fresh.text_encoder is None and fresh.tokenizer is None
    for _ in range(2):
        assert torch.equal(fresh.predict_noise(latents, 10), before)
        fresh.forget_empty()  # does nothing now: it could not be embedded again
    with pytest.raises(StylenbError, match="load the base again"):
        fresh.embed("a cat")
    fresh.drop_text_encoder()  # a second time is no error


def test_replaced_weights_come_back_bit_for_bit(fresh):
    embedding = "text_encoder.embeddings.token_embedding.weight"
    names = ("unet.conv_in.weight", embedding)
    before = {name: fresh.parameters()[name].clone() for name in names}
    empty = fresh.empty
    fresh.keep_originals(names)
    assert fresh.replaced().keys() == set(names)
    for p in fresh.replaced().values():
        p.data = p.data + 1

    def are(expected):
        return all(torch.equal(p, expected[name]) for name, p in fresh.replaced().items())

    with pytest.raises(KeyError), fresh.with_originals():
        assert are(before)
        raise KeyError  # an error inside changes nothing
    assert are({name: weight + 1 for name, weight in before.items()})
    fresh.forget_empty()
    assert not torch.equal(fresh.empty, empty)
    fresh.restore_originals()
    assert all(torch.equal(fresh.parameters()[name], before[name]) for name in names)
    assert fresh.replaced() == fresh.originals == {} and torch.equal(fresh.empty, empty)


def test_half_precision(tiny_folder):
    half = load(tiny_folder, device="cpu", dtype=torch.bfloat16)
    latents = noise(1, 4, 8, 8)
    assert half.unet.dtype == half.vae.dtype == half.text_encoder.dtype == torch.bfloat16
    assert half.predict_noise(latents, 10).dtype == torch.float32
    assert half.decode(latents).dtype == torch.bfloat16


def predicting(*latents, timestep=1, states=None):
    states = None if states is None else torch.zeros(states)
    return lambda base: base.predict_noise(torch.zeros(latents), timestep, states)


BAD_CALLS = {
    "encode needs a batch": lambda b: b.encode(torch.zeros(3, 64, 64)),
    "encode needs three channels": lambda b: b.encode(torch.zeros(1, 4, 64, 64)),
    "encode needs multiples of 8": lambda b: b.encode(torch.zeros(1, 3, 64, 60)),
    "encode needs [-1, 1]": lambda b: b.encode(torch.full((1, 3, 64, 64), 255.0)),
    "encode refuses NaN": lambda b: b.encode(torch.full((1, 3, 64, 64), torch.nan)),
    "decode refuses images": lambda b: b.decode(torch.zeros(1, 3, 64, 64)),
    "predict_noise refuses images": predicting(1, 3, 64, 64),
    "timestep too late": predicting(1, 4, 8, 8, timestep=1000),
    "timestep negative": predicting(1, 4, 8, 8, timestep=-1),
    "timesteps miscounted": predicting(3, 4, 8, 8, timestep=torch.arange(2)),
    "embedding miscounted": predicting(3, 4, 8, 8, states=(2, 77, 768)),
    "embedding of another model": predicting(1, 4, 8, 8, states=(1, 77, 64)),
    "no prompts": lambda b: b.embed([]),
    "a prompt that is no string": lambda b: b.embed([1]),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_is_one_sentence(tiny, case):
    with pytest.raises(StylenbError) as caught:
        BAD_CALLS[case](tiny)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


# --- where a base comes from ---


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "KAGGLE_INPUT", tmp_path / "input")
    return tmp_path / "input"


def test_sd15_from_a_kaggle_input_or_before_that_from_the_environment(
    tiny_folder, kaggle, monkeypatch
):
    (kaggle / "a-photos/folder").mkdir(parents=True)
    (kaggle / "a-photos/folder/cat.jpg").write_bytes(b"")
    other = shutil.copytree(tiny_folder, kaggle / "b-other/model")
    edit(other / UNET, cross_attention_dim=1024)
    pickled = shutil.copytree(tiny_folder, kaggle / "c-pickled")
    (pickled / UNET_WEIGHTS).rename((pickled / UNET_WEIGHTS).with_suffix(".bin"))
    deep = "models/someone/sd15/pytorch/default/1"
    assert deep.count("/") + 1 == KAGGLE_DEPTH
    shutil.copytree(tiny_folder, kaggle / deep)
    assert load("sd15", device="cpu").folder == kaggle / deep
    monkeypatch.setenv("STYLENB_SD15", str(tiny_folder))
    loaded = load("sd15", device="cpu")
    assert loaded.name == "sd15" and loaded.folder == tiny_folder
    assert loaded.empty.shape == (1, 77, 768)


def test_sd15_without_network_names_the_three_ways_out(kaggle, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(StylenbError) as caught:
        load("sd15", device="cpu")
    assert time.perf_counter() - start < 10
    message = str(caught.value)
    for way in ("switch the internet on", "Kaggle input", "STYLENB_SD15"):
        assert way in message
    assert "\n" not in message


def test_the_hub_is_asked_for_pinned_safetensors_without_the_safety_checker(
    tiny_folder, kaggle, monkeypatch
):
    asked = {}

    def download(repository, **options):
        asked.update(options, repository=repository)
        return str(tiny_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert weights.find_folder("sd15", half=True) == tiny_folder
    assert asked["repository"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert asked["revision"] == weights.SD15_REVISION and len(weights.SD15_REVISION) == 40
    assert asked["local_files_only"] is True  # HF_HUB_OFFLINE is set
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in asked["allow_patterns"]
    assert not any("bin" in p or "safety" in p for p in asked["allow_patterns"])
    assert "safety_checker/*" in asked["ignore_patterns"]
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as hub:  # the hub within reach, and then gone
        address = f"http://127.0.0.1:{hub.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        weights.find_folder("sd15", half=False)
        assert asked["local_files_only"] is False
    weights.find_folder("sd15", half=False)
    assert asked["local_files_only"] is True
    monkeypatch.setenv("https_proxy", "http://proxy:3128")  # it alone knows who can be reached
    weights.find_folder("sd15", half=False)
    assert asked["local_files_only"] is False
    assert "unet/diffusion_pytorch_model.safetensors" in asked["allow_patterns"]


def test_fp16_files_are_read_where_they_are_the_only_ones_or_half_is_wanted(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "fp16")
    for part, stem in WEIGHT_FILES.items():
        file = folder / part / f"{stem}.safetensors"
        file.rename(file.with_suffix(".fp16.safetensors"))
    # damaged, so that only a load which does not read them succeeds
    (folder / "unet/diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"")
    loaded = load(folder, device="cpu")
    assert loaded.dtype == loaded.unet.dtype == torch.float32
    (folder / UNET_WEIGHTS).write_bytes(b"")
    assert load(folder, device="cpu", dtype=torch.bfloat16).unet.dtype == torch.bfloat16
    with pytest.raises(StylenbError, match="is empty"):
        load(folder, device="cpu")


def without(name):
    def spoil(folder):
        target = folder / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return spoil


def edited(name, **changes):
    return lambda folder: edit(folder / name, **changes)


def to_pickle(folder):
    (folder / UNET_WEIGHTS).rename((folder / UNET_WEIGHTS).with_suffix(".bin"))


def cut(folder):
    (folder / VAE_WEIGHTS).write_bytes((folder / VAE_WEIGHTS).read_bytes()[:1000])


def to_transformer(folder):
    (folder / "unet").rename(folder / "transformer")
    edit(folder / "model_index.json", _class_name="StableDiffusion3Pipeline")


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3438167540\n"
SPOILT = {
    **{
        f"no {part}": (without(part), f"has no {part}")
        for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    },
    "no index": (without("model_index.json"), "diffusers layout"),
    "git LFS": (lambda folder: (folder / UNET_WEIGHTS).write_text(LFS), "pointer of git LFS"),
    "HTML": (lambda folder: (folder / VAE_WEIGHTS).write_text("<!DOCTYPE html>"), "a web page"),
    "SD 3": (to_transformer, "another kind of model (StableDiffusion3)"),
    "OpenCLIP": (edited(UNET, cross_attention_dim=1024), "(Stable Diffusion 2)"),
    "no schedule": (without(SCHEDULE), "config"),
    "no config": (without(UNET), "config"),
    "no weights": (without(VAE_WEIGHTS), "has no diffusion"),
    "pickled": (to_pickle, "pickled weights"),
    "cut off": (cut, "cannot be loaded"),
    "other shape": (edited(UNET, block_out_channels=[32, 64]), "cannot be loaded"),
    "broken config": (lambda folder: (folder / UNET).write_text("{"), "cannot be read"),
    "SD 2": (edited(SCHEDULE, prediction_type="v_prediction"), "(Stable Diffusion 2)"),
    "SDXL": (edited(UNET, addition_embed_type="text_time"), "(Stable Diffusion XL)"),
    "inpainting": (edited(UNET, in_channels=9), "(an inpainting model)"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_folder_that_cannot_be_used_is_one_sentence(case, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    spoil, part = SPOILT[case]
    spoil(folder)
    with pytest.raises(StylenbError) as caught:
        load(folder, device="cpu")
    message = str(caught.value)
    assert part in message and "model" in message
    assert "\n" not in message and message.endswith(".")


def test_a_name_that_is_no_base_or_no_device(tmp_path, tiny_folder, monkeypatch):
    for name, on, part in (
        ("pocet", "cpu", "choose 'pocket', 'sd15'"),
        ("a/b", "cpu", "choose"),
        (7, "cpu", "not 7"),
        (tiny_folder / "model_index.json", "cpu", "not a .safetensors file: a base is a folder"),
        (tiny_folder, "cuda:99", "'cuda:99' does not work"),
        (tiny_folder, "gpu", "'cpu', 'cuda' or 'mps'"),
    ):
        with pytest.raises(StylenbError, match=part):
            load(name, device=on)
    monkeypatch.setattr(weights, "DATA", tmp_path)
    with pytest.raises(StylenbError, match="pocket-sd is missing: clone the whole repository"):
        load("pocket", device="cpu")


def test_a_bad_sd15_folder_names_the_variable(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("STYLENB_SD15", str(tmp_path / "gone"))
    with pytest.raises(StylenbError, match="gone.*STYLENB_SD15"):
        load("sd15", device="cpu")
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    edit(other / UNET, cross_attention_dim=1024)
    monkeypatch.setenv("STYLENB_SD15", str(other))
    with pytest.raises(StylenbError, match="STYLENB_SD15.*is not Stable Diffusion v1.5"):
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
        monkeypatch.setattr(device, "_probe", lambda d, dtype: failure if d.type == "cuda" else "")

    return pretend


def test_bfloat16_only_where_the_hardware_has_it(gpu):
    gpu((7, 5))
    found, dtype, why = device.device_and_dtype()
    assert (found.type, dtype) == ("cuda", torch.float16) and "7.5 < 8.0" in why
    assert device.autocast_dtype(found) is None
    for capability in ((8, 0), (9, 0)):
        gpu(capability)
        found, dtype, why = device.device_and_dtype()
        assert dtype == device.autocast_dtype(found) == torch.bfloat16


def test_a_gpu_without_kernels_is_passed_over(gpu):
    gpu((6, 0), failure="no kernel image is available for execution on the device")
    found, dtype, why = device.device_and_dtype()
    assert found.type != "cuda" and dtype == torch.float32
    assert "cuda is there but fails: no kernel image" in why
    with pytest.raises(StylenbError, match="'cuda' does not work .no kernel image"):
        device.device_and_dtype("cuda")


def test_the_probe_really_computes(monkeypatch):
    cpu = torch.device("cpu")
    assert device._probe(cpu, torch.float32) == device._probe(cpu, torch.bfloat16) == ""
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda x, w: torch.zeros(1, 4, 6, 6))
    assert device._probe(cpu, torch.float32) == "wrong results"


# --- the shipped model ---


@pytest.mark.pocket_model
def test_the_pocket_model(pocket):
    assert pocket.name == "pocket" and (pocket.image_size, pocket.factor) == (128, 8)
    assert (pocket.multiple, pocket.default_size) == (32, 256)
    assert pocket.folder == data_file("pocket-sd")
    photo = stylenb.to_tensor(stylenb.sample_photo("astronaut", pocket.image_size))
    with torch.inference_mode():
        latents = pocket.encode(photo)
        assert latents.shape == (1, 4, 16, 16)
        assert 0.5 < latents.std() < 2  # what the scaling factor is for
        assert pocket.decode(latents).shape == photo.shape
        assert pocket.empty.shape[:2] == (1, 77)
        assert pocket.predict_noise(latents, 500).shape == latents.shape


@pytest.mark.pocket_model
def test_loading_is_quiet_and_leaves_the_bars_as_they_were(capfd):
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_diffusers.enable_progress_bar()
    of_transformers.disable_progress_bar()
    try:
        load("pocket", device="cpu")  # its UNet is in two files, over which diffusers counts
        assert capfd.readouterr().err == ""
        assert of_diffusers.is_progress_bar_enabled()
        assert not of_transformers.is_progress_bar_enabled()
    finally:
        of_transformers.enable_progress_bar()


@pytest.mark.pocket_model
def test_a_large_picture_goes_through_the_autoencoder_in_tiles(pocket, monkeypatch):
    """Blended, so that it is all but what it is in one piece; up to TILE it is that to the bit."""
    seen, levels = [], 255 / 2
    parts = (pocket.vae.encoder, pocket.vae.decoder)
    hooks = [
        part.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-1]))
        for part in parts
    ]

    @torch.inference_mode()
    def there_and_back(width):
        photo = stylenb.open_photo(stylenb.sample_photo("rocket"), (width, 32))
        latents = pocket.encode(stylenb.to_tensor(photo))
        return latents, pocket.decode(latents)

    widths = (stylenb.base.TILE, 1800)
    small, large = map(there_and_back, widths)
    assert seen == [1024, 128, 1024, 1024, 264, 128, 128, 33]
    for hook in hooks:
        hook.remove()
    monkeypatch.setattr(pocket.vae, "use_tiling", False)
    for tiled, whole in zip(small, there_and_back(widths[0]), strict=True):
        assert torch.equal(tiled, whole)
    (latents, images), (whole_latents, whole_images) = large, there_and_back(widths[1])
    assert 0 < (latents - whole_latents).abs().mean() < 0.1 * whole_latents.std()
    assert (images - whole_images).abs().mean() * levels < 2


# --- the tiny decoder ---


def test_decode_quickly(tiny, tmp_path, monkeypatch):
    """With TAESD for "sd15"; without it, and for other bases, with the base's own decoder."""
    from diffusers import AutoencoderTiny

    latents = noise(2, 4, 4, 4)
    assert torch.equal(tiny.decode_quickly(latents), tiny.decode(latents))
    monkeypatch.setenv(weights.TAESD_VARIABLE, str(tmp_path))
    sd15 = copy.copy(tiny)
    sd15.name = "sd15"
    with pytest.warns(UserWarning, match="TAESD could not be loaded"):
        assert torch.equal(copy.copy(sd15).decode_quickly(latents), tiny.decode(latents))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        narrow = {f"{side}_block_out_channels": (8,) * 4 for side in ("encoder", "decoder")}
        taesd = AutoencoderTiny(**narrow, num_decoder_blocks=(1, 1, 1, 1)).eval()
    taesd.save_pretrained(tmp_path)
    latents.requires_grad_()
    images = sd15.decode_quickly(latents)
    assert torch.equal(images, taesd.decode(latents).sample)
    images.mean().backward()
    assert latents.grad.abs().sum() > 0


def test_a_precision_by_its_name(tiny_folder):
    for name, dtype in (("float16", torch.float16), ("fp16", torch.float16)):
        assert load(tiny_folder, device="cpu", dtype=name).dtype == dtype
    assert device.as_dtype("bf16") == device.as_dtype("torch.bfloat16") == torch.bfloat16
    assert load(tiny_folder, device="cpu", dtype="auto").dtype == torch.float32
    for bad in ("int8", 16, torch.int64):
        with pytest.raises(StylenbError, match="dtype is 'float32', 'float16', 'bfloat16' or 'au"):
            load(tiny_folder, device="cpu", dtype=bad)


def test_a_unet_that_does_not_tell_its_size_is_of_512_pixels(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    edit(folder / UNET, sample_size=None)
    assert load(folder, device="cpu").image_size == 64 * 8
