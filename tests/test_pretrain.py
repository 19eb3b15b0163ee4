"""Every stage of the training for two steps on a few pictures, a cut run, and the tokenizer."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import nn

from data import pretrain
from stylenb import load, losses, scores
from stylenb.photos import to_tensor
from stylenb.pocket import training_mix
from stylenb.pocket.shapes import dead_leaves
from stylenb.pocket.styles import KNOWN, STYLES

STAGES = ("vae", "text-unet", "perceptual", "judge")


def run(stage, work, steps=2):
    few = ["--pictures", "24", "--batch-size", "2", "--device", "cpu"]
    pretrain.main([stage, "--steps", str(steps), "--work", str(work), *few])


def keep_in(folder, monkeypatch):
    monkeypatch.setattr(pretrain, "DATA", folder)
    monkeypatch.setattr(pretrain, "POCKET", folder / "pocket-sd")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with data/ and work/ as two steps of every stage leave them."""
    folder = tmp_path_factory.mktemp("pretrain")
    (folder / "data").mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        keep_in(folder / "data", monkeypatch)
        for stage in STAGES:
            run(stage, folder / "work")
    return folder


@pytest.fixture(scope="module")
def captions(trained):
    return [f["caption"] for f in json.loads((trained / "work/known-24.json").read_text())]


def test_the_folder_opens_in_diffusers_and_as_a_base(trained):
    folder = trained / "data/pocket-sd"
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a photo of a lake", num_inference_steps=1).images[0].size == (128, 128)
    base = load(folder, device="cpu")
    assert base.image_size == 128 and base.empty.shape == (1, 77, 128)
    weights = sorted(folder.rglob("*.safetensors"))
    assert len(weights) == 4 and not list(folder.rglob("*.bin"))  # the UNet in two parts
    for path in weights:
        assert path.stat().st_size < 20e6
        kinds = {v.dtype for v in load_file(path).values() if v.is_floating_point()}
        assert kinds == {torch.float16}, path


def test_the_scaling_factor_makes_the_latents_unit_size(trained):
    args = SimpleNamespace(work=trained / "work", device="cpu")
    base = load(trained / "data/pocket-sd", device="cpu")
    pictures, _ = pretrain.known_set(trained / "work", 24)
    latents = pretrain.known_latents(base.vae, pictures, args)
    assert latents.shape == (2, 24, 4, 16, 16)
    # fp16 weights and the rounding of the factor move it a little
    assert float(latents[0].std()) == pytest.approx(1, abs=0.02)
    mirrored = pretrain.encode_all(base.vae, pictures[:1, :, ::-1], args)[0]
    assert torch.allclose(latents[1, 0], mirrored * base.vae.config.scaling_factor, atol=1e-3)


def test_scores_open_the_perceptual_network_and_the_judge(trained, monkeypatch):
    monkeypatch.setattr("stylenb.weights.DATA", trained / "data")
    network = losses.load_features.__wrapped__()
    x = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    assert network(x, x).item() == 0 < network(x, -x).item()
    judge, styles = scores.load_judge.__wrapped__()
    assert styles == list(STYLES) and judge(x).shape == (1, len(STYLES))


def test_a_step_moves_every_weight():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1))
    network.append(nn.Flatten()).append(nn.Linear(4 * 6 * 6, 2))
    before = [p.detach().clone() for p in network.parameters()]
    optimizers = pretrain.Optimizers(network, 0.02, 0.001)
    network(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))).sum().backward()
    optimizers.step(1.0)
    assert not any(map(torch.equal, before, network.parameters()))


def test_kernels_that_would_be_trained_as_copies_are_refused():
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="view"):
        pretrain.Optimizers(network, 0.02, 0.001)


def test_the_story_of_each_stage_is_kept(trained):
    story = json.loads((trained / "data/training.json").read_text())
    assert set(story) == set(STAGES)
    for stage, told in story.items():
        assert told["command"] == f"python data/pretrain.py {stage} --steps 2"
        assert (told["steps"], told["batch_size"]) == (2, 2)
        assert told["hardware"] and isinstance(told["log"], list)


def unet_weights(folder) -> dict:
    parts = sorted((folder / "data/pocket-sd/unet").glob("*.safetensors"))
    return {key: value for part in parts for key, value in load_file(part).items()}


def test_a_stage_goes_on_from_its_checkpoint(trained, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(trained, tmp_path / "copy")
    keep_in(folder / "data", monkeypatch)
    before = unet_weights(folder)
    words = load(folder / "data/pocket-sd", device="cpu").tokenizer.get_vocab()
    run("text-unet", folder / "work", steps=4)
    said = capsys.readouterr().out
    assert "text-unet: resuming from step 2" in said
    assert "drawing" not in said and "encoding" not in said  # both were kept
    assert json.loads((folder / "data/training.json").read_text())["text-unet"]["steps"] == 4
    after = unet_weights(folder)
    assert any(not torch.equal(after[key], value) for key, value in before.items())
    # The embeddings that were learned are of these numbers: others would scramble them.
    assert load(folder / "data/pocket-sd", device="cpu").tokenizer.get_vocab() == words
    run("text-unet", folder / "work", steps=4)  # what is finished is only written again
    assert "resuming from step 4" in capsys.readouterr().out
    again = unet_weights(folder)
    assert all(torch.equal(again[key], value) for key, value in after.items())


# --- the loop, on a network of one layer ---


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """train(folder, steps, cut) of a linear layer; a checkpoint is kept after every step."""
    keep_in(tmp_path, monkeypatch)
    clock = iter(range(0, 10**9, 200))  # seconds: a step seems to take minutes
    monkeypatch.setattr(pretrain, "time", SimpleNamespace(time=lambda: next(clock)))

    def train(folder, cut=None, wrong=None):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        folder.mkdir(exist_ok=True)
        args = SimpleNamespace(device="cpu", work=folder, steps=6, minutes=None, batch_size=2)

        def loss_of(step, progress):
            assert progress == step / 6
            if step == cut:
                raise KeyboardInterrupt
            x = torch.randn(2, 4, generator=torch.Generator().manual_seed(step))
            loss = (network(x) - x.flip(1)).square().mean()
            return (loss * torch.nan if step == wrong else loss), {"size": x.abs().mean()}

        return pretrain.train("toy", network, loss_of, args).state_dict()

    return train


def test_a_cut_run_ends_where_an_uncut_one_does(loop, tmp_path, capsys):
    whole = loop(tmp_path / "whole")
    for cut in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            loop(tmp_path / "cut", cut=cut)
    resumed = loop(tmp_path / "cut")
    said = capsys.readouterr().out
    assert "toy: resuming from step 2" in said and "toy: resuming from step 5" in said
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    log = json.loads((tmp_path / "training.json").read_text())["toy"]["log"]
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    assert all(row["loss"] > 0 and row["size"] > 0 for row in log)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(loop, tmp_path):
    with pytest.raises(SystemExit, match="toy: the loss is not finite at step 3"):
        loop(tmp_path / "run", wrong=3)
    saved = torch.load(tmp_path / "run/toy.ckpt", weights_only=True)
    assert saved["state"]["step"] == 3
    assert all(value.isfinite().all() for value in saved["network"].values())
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["toy.ckpt"]


# --- training further, at two sizes ---

SHIPPED = pretrain.POCKET


def further(stage, work, steps, *options):
    few = ["--pictures", "6", "--batch-size", "2", "--sizes", "64", "128", "--device", "cpu"]
    given = ["--steps", str(steps), "--work", str(work), *few, *map(str, options)]
    pretrain.main([stage, "--from", str(SHIPPED), *given])


def steady(step, progress, fall):
    """A rate that does not depend on how long the run is to be."""
    return 0.1


@pytest.fixture(scope="module")
def trained_further(tmp_path_factory):
    """A folder with data/ and work/ as two steps of both stages from the shipped weights leave
    them."""
    folder = tmp_path_factory.mktemp("further")
    (folder / "data").mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        keep_in(folder / "data", monkeypatch)
        monkeypatch.setattr(pretrain, "share_of_rate", steady)
        for stage in ("vae", "text-unet"):
            further(stage, folder / "work", 2)
    return folder


def test_training_further_begins_with_the_weights_of_a_folder(trained_further):
    before, after = load(SHIPPED, device="cpu"), load(trained_further / "data/pocket-sd", "cpu")
    for part in ("vae", "text_encoder", "unet"):
        old, new = (getattr(base, part).state_dict() for base in (before, after))
        assert any(not torch.equal(old[key], new[key]) for key in new), part
        assert all(torch.allclose(old[key], new[key], atol=0.01) for key in new), part
    assert before.tokenizer.get_vocab() == after.tokenizer.get_vocab()
    story = json.loads((trained_further / "data/training.json").read_text())
    assert set(story) == {"vae-further", "text-unet-further"}
    assert story["vae-further"]["command"] == "python data/pretrain.py vae --from FOLDER --steps 2"
    for config in (trained_further / "data/pocket-sd").rglob("config.json"):
        assert "_name_or_path" not in config.read_text()


def weights_in(folder, *parts):
    files = [f for part in parts for f in (folder / "data/pocket-sd" / part).glob("*.safetensors")]
    return {(f.name, key): value for f in files for key, value in load_file(f).items()}


def test_training_further_resumes_to_the_bit(trained_further, tmp_path, monkeypatch, capsys):
    cut, whole = shutil.copytree(trained_further, tmp_path / "cut"), tmp_path / "whole"
    (whole / "data").mkdir(parents=True)
    monkeypatch.setattr(pretrain, "share_of_rate", steady)
    ends = {}
    for folder in (whole, cut):
        keep_in(folder / "data", monkeypatch)
        if folder == whole:
            shutil.copytree(trained_further / "data/pocket-sd/vae", whole / "data/pocket-sd/vae")
        further("text-unet", folder / "work", 3)  # on the latents of the same autoencoder
        further("vae", folder / "work", 3)
        ends[folder] = weights_in(folder, "vae", "unet", "text_encoder")
    assert capsys.readouterr().out.count("further: resuming from step 2") == 2
    assert all(torch.equal(ends[cut][key], value) for key, value in ends[whole].items())


def test_folders_of_pictures_go_into_a_training(tmp_path, monkeypatch):
    keep_in(tmp_path / "data", monkeypatch)
    photos, cutouts = tmp_path / "photos", tmp_path / "cutouts"
    for folder in (photos, cutouts):
        folder.mkdir()
        for i in range(3):
            dead_leaves(i, 64).convert("RGBA").save(folder / f"{i}.png")
    further("vae", tmp_path / "work", 1, "--photos", photos, "--cutouts", cutouts)
    facts = [json.loads(f.read_text()) for f in (tmp_path / "work").glob("*.json")]
    assert "objects" in {fact["kind"] for one in facts for fact in one}
    told = json.loads((tmp_path / "data/training.json").read_text())["vae-further"]["command"]
    assert "--photos FOLDER --cutouts FOLDER" in told and str(tmp_path) not in told


def test_the_unet_sees_both_sizes_and_parts_of_the_larger_one():
    cuts = pretrain.cuts_of([128, 256])
    assert [cut[:3] for cut in cuts] == [
        (16, 16, 128), (32, 32, 256), (24, 24, 256), (24, 32, 256), (32, 24, 256),
    ]  # fmt: skip
    assert sum(cut[3] for cut in cuts) == pytest.approx(1)
    pictures = SimpleNamespace(
        of={n: torch.zeros(3, n, n, 3, dtype=torch.uint8).numpy() for n in (128, 256)},
        ready={128: 3, 256: 2},
        facts={n: [{"caption": "a"}] * 3 for n in (128, 256)},
    )
    args = SimpleNamespace(sizes=[128, 256], device="cpu", batch_size=64)
    latents = object.__new__(pretrain.Latents)  # without an autoencoder
    latents.pictures, latents.args, latents.cuts = pictures, args, cuts
    # every latent says where in the picture it lies, and which of the pictures it is of
    latents.latents = {
        n: torch.stack(torch.meshgrid(
            torch.arange(2.0), torch.arange(3.0), torch.arange(n // 8.0),
            torch.arange(n // 8.0), indexing="ij",
        ), 2) for n in (128, 256)
    }  # fmt: skip
    latents.ids = {n: torch.arange(3)[:, None].expand(3, 77) for n in (128, 256)}
    seen = {}
    for step in range(60):
        x, ids, dropped = latents.batch(torch.Generator().manual_seed(step))
        n, _, height, width = x.shape
        seen[height, width] = n
        assert dropped == (0.18 if height == width and height in (16, 32) else 0.5)
        assert torch.equal(x[:, 1, 0, 0], ids[:, 0].float())  # a picture with its own caption
        assert ids.max() < (3 if height == 16 else 2)  # only pictures that are there
        assert (x[:, 2].diff(dim=1) == 1).all() and (x[:, 3].diff(dim=2) == 1).all()
    assert seen == {(16, 16): 64, (32, 32): 16, (24, 24): 28, (24, 32): 21, (32, 24): 21}


@pytest.mark.parametrize("sizes", [["100"], ["64", "128", "256"], ["32"]])
def test_sizes_that_do_not_fit_are_refused(sizes, tmp_path, capsys):
    few = ["--steps", "1", "--pictures", "2", "--work", str(tmp_path)]
    with pytest.raises(SystemExit):
        pretrain.main(["vae", *few, "--sizes", *sizes])
    assert "one or two multiples of 64" in capsys.readouterr().err


# --- float16 ---


def blown_up(vae, by=256.0):
    """Its streams `by` times as large, which GroupNorm does not see."""
    with torch.no_grad():
        for name, p in vae.named_parameters():
            layer, kind = name.rsplit(".", 1)
            linear = kind == "bias" and layer.endswith(("conv_shortcut", "samplers.0.conv"))
            if linear or layer.endswith(("conv_in", "conv2")):
                p.mul_(by)


def test_an_autoencoder_is_made_safe_for_float16(capsys):
    vae = load(SHIPPED, device="cpu").vae.float()
    x = to_tensor([training_mix.content(seed, "scene", 64)[0] for seed in range(2)])
    with torch.no_grad():
        latents = vae.encode(x).latent_dist.mean
        wanted = vae.decode(latents).sample
        blown_up(vae)
        assert pretrain.stream_peak(vae.encoder, x) > 65_504
        assert not vae.half().encode(x.half()).latent_dist.mean.isfinite().all()
        vae = load(SHIPPED, device="cpu").vae.float()
        blown_up(vae)
        pretrain.make_float16_safe(vae, x)
        assert "divided by" in capsys.readouterr().out
        assert 700 < pretrain.stream_peak(vae.encoder, x) < 2_200
        assert 700 < pretrain.stream_peak(vae.decoder, vae.post_quant_conv(latents)) < 2_200
        assert (vae.decode(vae.encode(x).latent_dist.mean).sample - wanted).abs().max() < 0.01
        half = vae.half()
        moved = half.decode(half.encode(x.half()).latent_dist.mean).sample.float() - wanted
        assert moved.abs().mean() < 0.01


def test_a_rescale_that_would_move_pictures_is_refused(monkeypatch):
    vae = load(SHIPPED, device="cpu").vae.float()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    monkeypatch.setattr(pretrain, "STREAM_PEAK", 1e-3)  # GroupNorm's epsilon is felt
    with pytest.raises(SystemExit, match="raise STREAM_PEAK"):
        pretrain.make_float16_safe(vae, x)


# --- the tokenizer ---


@pytest.fixture(scope="module")
def tokenizer(captions, tmp_path_factory):
    return pretrain.new_tokenizer(captions, tmp_path_factory.mktemp("tokenizer"))


def test_the_rare_token_is_one_token_and_in_no_caption(tokenizer, captions):
    assert tokenizer.tokenize("sks") == ["sks</w>"]
    start, rare, end = tokenizer("sks").input_ids
    assert (start, end) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert not any("sks" in caption for caption in captions)
    assert not any(rare in tokenizer(caption).input_ids for caption in captions)


def test_captions_survive_the_round_trip(tokenizer, captions):
    for caption in captions:
        ids = tokenizer(caption).input_ids
        assert len(ids) <= 77 and max(ids) < len(tokenizer)
        assert tokenizer.eos_token_id not in ids[:-1]  # which is what unknown text becomes
        back = tokenizer.decode(ids, skip_special_tokens=True)
        assert back.replace(" ", "") == caption.replace(" ", "")
    # Words that no caption has are spelt out, not lost.
    ids = tokenizer("a zebra, quixotic 7").input_ids
    assert tokenizer.eos_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "azebra,quixotic7"


def test_a_vocabulary_that_is_there_is_kept(captions, tmp_path):
    pretrain.new_tokenizer(captions, tmp_path)
    first = (tmp_path / "vocab.json").read_bytes(), (tmp_path / "merges.txt").read_bytes()
    for _ in range(3):  # the trainer breaks ties by chance, so a new one would differ
        again = pretrain.new_tokenizer(captions, tmp_path)
    assert first == tuple((tmp_path / n).read_bytes() for n in ("vocab.json", "merges.txt"))
    assert again.get_vocab() == json.loads(first[0])


# --- the command line ---


def test_help_says_how_long_each_stage_takes(capsys):
    with pytest.raises(SystemExit) as caught:
        pretrain.main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for stage in (*STAGES, "loras"):
        assert f"{stage} {pretrain.STAGES[stage][2]}" in said


@pytest.mark.parametrize("arguments", [["paint"], ["loras", "--styles", KNOWN[0]], []])
def test_a_bad_command_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        pretrain.main(arguments)
    assert caught.value.code == 2
