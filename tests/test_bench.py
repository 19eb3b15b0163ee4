"""The benchmark: every table is made once, in small, on a tiny random model."""

import re
from contextlib import ExitStack
from functools import cache
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import ImageOps

import stylenb
from data import bench, pretrain
from stylenb import StylenbError, inference, loop, training
from stylenb.course.baselines import BASELINES, Baseline, encode_and_decode
from stylenb.lora import adapters, add_lora
from stylenb.lora_files import save_lora
from stylenb.pocket.scenes import draw_scene
from stylenb.pocket.training_mix import TEST_SEEDS
from stylenb.training import Settings
from stylenb.weights import SD15_SIZES


@pytest.fixture(scope="module")
def lora(tiny_folder, tmp_path_factory):
    """A LoRA of the tiny model, named as a style."""
    base = stylenb.load(tiny_folder, device="cpu")
    add_lora(base, "ink", rank=2)
    random = torch.Generator().manual_seed(1)
    for name, p in base.unet.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.1, generator=random)
    return save_lora(base, tmp_path_factory.mktemp("lora") / "ink.safetensors", "ink")


@pytest.fixture(scope="module", autouse=True)
def _drawn_once():
    """The pictures that a style is learned from take seconds to draw."""
    with pytest.MonkeyPatch.context() as patch:
        for draw in (pretrain.style_pictures, pretrain.content_pictures):
            patch.setattr(pretrain, draw.__name__, cache(draw))
        yield


@pytest.fixture(autouse=True)
def _fewer_steps(monkeypatch):
    monkeypatch.setitem(stylenb.base.SOLVER_STEPS, "inversion", 4)
    monkeypatch.setitem(stylenb.base.SOLVER_STEPS, "ddim", 4)


def cells(lines, first):
    """The cells of the rows whose first cell is `first`."""
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    return [r for r in rows if r[0] == first]


def numbers(text):
    return [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def truth_itself(photos, style_pictures, strength, base, seed=0):
    return bench.renderings("ink", photos)


def negative(photos, style_pictures, strength, base, seed=0):
    return [ImageOps.invert(p) for p in truth_itself(photos, None, 1.0, base)]


# --- truth ---


def test_truth_on_every_baseline(tiny_folder, lora):
    lines = bench.bench_truth(
        tiny_folder,
        {"ink": lora},
        count=2,
        baselines={
            **{name: one._replace(strengths=one.strengths[-1:]) for name, one in BASELINES.items()},
            "Gatys": Baseline(lambda *given: BASELINES["Gatys"].draw(*given, steps=2), (0.5, 1.0)),
        },
    )
    heads = cells(lines, "style")
    assert len(heads) == 2 and heads[0][3:-2] == list(BASELINES)
    for row in cells(lines, "ink"):
        assert len(row) == len(heads[0]) and row[-1] in ("yes", "yes, apart", "no")
        assert all(np.isfinite(numbers(cell)).all() and numbers(cell) for cell in row[1:-1])
    assert any("in 0 of 1" in line or "in 1 of 1" in line for line in lines)
    assert re.search(r"LoRA \d+, photo as it is 0,", lines[-1])


def test_the_truth_cannot_be_beaten(tiny_folder, lora):
    lines = bench.bench_truth(
        tiny_folder, {"ink": lora}, 2, {"oracle": Baseline(truth_itself, (1.0,))}
    )
    for row in cells(lines, "ink"):
        assert row[3].startswith("0 ± 0") and row[-1] == "no"
    assert "nearer than every baseline in 0 of 1" in "".join(lines)


def test_what_a_lora_is_nearer_than(tiny, tiny_folder, lora, monkeypatch):
    """Of a random model, whose pictures are noise: with such ones for the truth."""
    monkeypatch.setattr(bench, "renderings", lambda _, scenes: encode_and_decode(tiny, scenes))
    baselines = {"negative": Baseline(negative, (1.0,))}
    lines = bench.bench_truth(tiny_folder, {"ink": lora}, 4, baselines)
    seen, pixels = cells(lines, "ink")
    assert numbers(seen[2])[0] < numbers(seen[3])[0] and seen[-1] == "yes, apart"
    assert numbers(pixels[2])[0] > numbers(pixels[3])[0] and pixels[-1] == "no"
    said = [line for line in lines if "with intervals that do not overlap" in line]
    assert "in 1 of 1 styles, with intervals that do not overlap in 1." in said[0]
    assert "in 0 of 1 styles, with intervals that do not overlap in 0." in said[1]


def test_no_lora_to_measure_is_one_sentence(monkeypatch):
    monkeypatch.setattr(bench, "available_styles", dict)
    with pytest.raises(StylenbError, match="data/loras holds no LoRA to measure: run `python"):
        bench.bench_truth()


def test_a_mean_with_half_its_interval():
    assert bench.with_interval([1, 2, 3, 4]) == "2.5 ± 2.1"  # 3.18 standard errors of 0.645


# --- pareto ---


def test_pareto(tiny_folder, lora):
    lines = bench.bench_pareto(tiny_folder, {"ink": lora}, count=2, strengths=(0.3,), scales=(2.0,))
    (one,), (whole,) = cells(lines, "ink"), cells(lines, "all styles")
    assert one[1:] == whole[1:]  # of a single style
    assert lines[0].startswith("Strengths 0.3, 0.8 x scales 1, 2 on 2 scenes")
    assert all("curve" in cell or "beaten by" in cell for cell in one[4:6])
    assert re.fullmatch(r"0\.\d+ x \d \(\d\.\d+\)", one[6])
    assert "0." in lines[-1]


def test_where_a_setting_stands():
    rows = [
        {"edges": torch.tensor(e), "truth": torch.tensor(t), "judge": torch.tensor(j)}
        for e, t, j in (
            ([0.9, 0.9], [3.0, 3.0], [0.1, 0.1]),
            ([0.8, 0.8], [2.0, 2.2], [0.2, 0.4]),
            ([0.7, 0.7], [2.5, 2.5], [0.7, 0.9]),
            ([0.7, 0.7], [2.4, 2.4], [0.6, 0.7]),
        )
    ]
    settings = [(0.2, 1.0), (0.4, 1.5), (0.6, 1.0), (0.6, 1.5)]
    found = [bench.standing(rows, settings, i, "truth", 1) for i in range(4)]
    assert found[:2] == ["on the curve"] * 2
    assert found[2] == "beaten by 2, most by 0.4 x 1.5 (0.400 ± 0.100)"
    assert found[3] == "beaten by 1, most by 0.4 x 1.5 (0.300 ± 0.100)"
    found = [bench.standing(rows, settings, i, "judge", -1) for i in range(4)]
    assert found[:3] == ["on the curve"] * 3
    assert found[3] == "beaten by 1, most by 0.6 x 1 (0.150 ± 0.050)"


# --- inference and training ---


def test_inference(tiny_folder, lora):
    lines = bench.bench_inference(tiny_folder, lora, rounds=1, photos=3, photo_side=64)
    (own,) = cells(lines, "stylize")
    (guided,) = cells(lines, "diffusers, default guidance")
    (plain,) = cells(lines, "diffusers, guidance 1")
    assert [row[2] for row in (own, guided, plain)] == ["3 of 1", "3 of 2", "3 of 1"]
    for row in (guided, plain):
        assert float(row[3]) == pytest.approx(float(row[1]) / float(own[1]), rel=0.2)
    assert lines[-1].startswith("A folder of 3 JPEG photos of 64 px took")


def test_every_column_of_the_styles_has_its_own_number(tiny, tiny_folder, monkeypatch):
    """With a judge and distances that are known, and a clock that only what is called moves on."""
    settings = Settings(
        rank=2, steps=2, batch_size=2, learning_rate=1.0, lpips_weight=0, style_weight=0
    )
    now, drawn, trained = [0.0], [], []
    scenes = [draw_scene(TEST_SEEDS + i, 128).picture for i in range(4)]

    def redraw(base, photos, seed):
        now[0] += 1000
        drawn.append(inference.redraw(base, photos, seed=seed))
        return drawn[-1]

    def train_style(base, *given, **how):
        now[0] += 100 + 21 * len(trained)
        trained.append((given, how))
        return training.train_style(base, *given, **how)

    def judge(pictures):
        return ["ink", "ink", "neon", "neon"] if pictures is drawn[0] else ["ink"] * 4

    def known(result, photo, plain):
        def distance(pictures, truth):
            assert truth == bench.renderings(trained[-1][0][2], scenes)
            if pictures is drawn[0]:
                mean = plain
            elif pictures is drawn[-1]:
                mean = result
            else:
                assert pictures == scenes
                mean = photo
            return torch.tensor([mean - 0.3, mean - 0.3, mean + 0.3, mean + 0.3])

        return distance

    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    for own in (redraw, train_style, judge):
        monkeypatch.setattr(bench, own.__name__, own)
    monkeypatch.setattr(bench, "truth_distance", known(1, 2, 3))
    monkeypatch.setattr(bench, "lpips_distance", known(4, 5, 6))
    kept = {"ink": 0.75, "neon": 0.25}
    monkeypatch.setattr(
        bench, "edge_agreement", lambda *pair: torch.full((4,), kept[trained[-1][0][2]])
    )
    lines = bench.bench_styles(tiny_folder, ["ink", "neon"], settings, count=4)
    distances = [f"{mean}.000 ± 0.173" for mean in range(1, 7)]
    row = ["100% ± 0", "50% ± 29", "0.750 ± 0.000"]
    assert cells(lines, "ink") == [["ink", "2", "100", *row, *distances]]
    row = ["0% ± 0", "50% ± 29", "0.250 ± 0.000"]
    assert cells(lines, "neon") == [["neon", "2", "121", *row, *distances]]
    assert cells(lines, "style")[0][1:6] == [
        "steps",
        "seconds",
        "judged right",
        "without LoRA",
        "kept",
    ]
    assert lines[0].startswith("Steps of 2, rank 2, alpha 1.5 when finished, otherwise as")
    assert "; 4 scenes of 128 px redrawn at strength 0.8" in lines[0]
    assert lines[-1] == bench.verdict([1.0, 0.0], [100, 121], [0.75, 0.25])
    assert len(drawn) == 3 and drawn[0] != drawn[1] != drawn[2]  # each with a LoRA of its own
    for (style_pictures, content_pictures, style, given), how in trained:
        assert style_pictures == bench.style_pictures(tiny, style) and given is settings
        assert content_pictures == bench.content_pictures(tiny) and how == {"progress": False}


def test_the_verdict_on_the_styles():
    assert bench.verdict([0.9, 1.0, 0.89], [90, 122.6, 110.4], [0.5, 0.6, 0.91]) == (
        "The judge is right in at least 90 % of the scenes in 2 of 3 styles (aim: 6), and in at "
        "least 89% in all (aim: 80 %). Of the scenes' edges 0.67 are kept on average (aim: 0.60). "
        "A training took 110 s in the median (aim: at most 120), the longest 123 s."
    )


def test_speed(tiny_folder, monkeypatch):
    seconds = {"public": iter([3.0, 9.0, 4.0]), "L2": iter([1.0, 9.0, 2.0]), "all": iter([5.0] * 3)}
    steps = []

    def public_loop(base, pictures, prompt, settings):
        assert base.dtype == torch.float32 and base.text_encoder is not None
        steps.append(settings.steps)
        return next(seconds["public"])

    def own_loop(base, pictures, settings):
        steps.append(settings.steps)
        return next(seconds["all" if settings.looks_at_pictures else "L2"])

    peaks = {"public loop": 1000, "L2": 800, "L2 + LPIPS + style": 900.4}
    monkeypatch.setattr(bench, "public_loop", public_loop)
    monkeypatch.setattr(bench, "own_loop", own_loop)
    monkeypatch.setattr(bench, "peak_of", lambda name, base: peaks[name])
    lines = bench.bench_speed(tiny_folder, steps=6, rounds=3)
    assert steps == [6] * 9
    assert cells(lines, "public loop") == [["public loop", "4.000", "1", "", "1000"]]
    faster = "2.00 times faster than the public loop"
    assert cells(lines, "L2") == [["L2", "2.000", faster, "2", "800"]]
    full = ["L2 + LPIPS + style", "5.000", "2.50 of L2 alone", "1.5", "900"]
    assert cells(lines, full[0]) == [full]
    assert lines[0].startswith("6 steps of 8, 3 times each in turns, rank 8, the same layers.")


def test_the_public_loop_puts_all_through_all_at_every_step(tiny_folder):
    base = stylenb.load(tiny_folder, device="cpu")
    pictures = bench.style_pictures(base, "ink")
    parts = base.vae.encoder, base.text_encoder, base.unet
    with ExitStack() as stack:
        batches = [stack.enter_context(bench.counted(part)) for part in parts]
        assert bench.public_loop(base, pictures, "ink", Settings(steps=5, batch_size=3)) > 0
    assert batches == [[3] * 5] * 3
    assert adapters(base) == []


def test_the_public_loop_leaves_nothing_on_the_cpu(tiny_folder):
    base = stylenb.load(tiny_folder, device="cpu")
    pictures = bench.style_pictures(base, "ink")
    base.device = torch.device("meta")  # any device but the CPU, on every machine
    for part in (base.vae, base.unet, base.text_encoder):
        part.to(base.device)
    assert bench.public_loop(base, pictures, "ink", Settings(steps=2, batch_size=2)) > 0


def test_the_own_loop_counts_the_steps_with_pictures_by_their_number(tiny, monkeypatch):
    plain, looking = {"loss": 1.0}, {"loss": 1.0, "style": 1.0}
    rows = [
        {**looking, "seconds": 1000.0},  # warms up
        *({**plain, "seconds": s} for s in (1.0, 1.0, 100.0)),
        {**looking, "seconds": 5.0},
    ]
    monkeypatch.setattr(bench, "train_style", lambda *given, **how: loop.History(rows))
    assert bench.own_loop(tiny, [], Settings()) == (3 * 1.0 + 1 * 5.0) / 4


def test_the_own_loop_trains_with_its_settings(tiny_folder):
    base = stylenb.load(tiny_folder, device="cpu")
    settings = Settings(steps=4, batch_size=3, picture_batch=1)
    with bench.counted(base.unet) as batches:
        assert bench.own_loop(base, bench.style_pictures(base, "ink"), settings) > 0
    assert batches == [3, 3, 3 + 1, 3 + 1]
    assert adapters(base) == []


def test_sd15_in_small(monkeypatch):
    """With a clock that only the parts move on, each by its own number of seconds."""
    now = [0.0]

    def counting(whole, seconds):
        def call(*given, **how):
            now[0] += seconds
            return whole(*given, **how)

        return call

    for part, name, seconds in (
        (diffusers.AutoencoderKL, "encode", 4),
        (transformers.CLIPTextModel, "forward", 2),
        (diffusers.UNet2DConditionModel, "forward", 1),
    ):
        monkeypatch.setattr(part, name, counting(getattr(part, name), seconds))
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    small = {
        "side": 64,
        "unet": {
            "sample_size": 8,
            "cross_attention_dim": 32,
            "block_out_channels": (16, 32),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "attention_head_dim": 8,
            "norm_num_groups": 8,
        },
        "vae": {
            **SD15_SIZES["vae"],
            "block_out_channels": (8, 8, 8, 8),
            "norm_num_groups": 8,
        },
        "text": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
    }
    lines = bench.bench_sd15(small, rounds=2)
    assert cells(lines, "public loop") == [["public loop", "7", "1", ""]]
    assert cells(lines, "L2") == [["L2", "1", "7.00 times faster", "1.3"]]
    assert now == [3 * (7 + 1)] and "64 px" in lines[0]


def test_memory(tiny_folder):
    ballast = torch.ones(312_500_000)  # 1250 MB here are no memory of the one that is measured
    names = ["loaded, nothing trained", "L2 + LPIPS + style"]
    lines = bench.bench_memory(tiny_folder, names)
    del ballast
    loaded, trained = (float(cells(lines, name)[0][1]) for name in names)
    assert 200 < loaded < 1250 and loaded + 100 < trained < 2500


def test_every_configuration_of_the_memory_runs_what_it_is_called(tiny, monkeypatch, capsys):
    ran = []

    def load(folder, dtype=None):
        ran.append((folder, dtype))
        return tiny

    def train_style(base, style_pictures, content_pictures, settings, progress):
        ran.append(("train_style", settings))

    def public_loop(base, pictures, prompt, settings):
        ran.append(("public_loop", settings))

    for own in (load, train_style, public_loop):
        monkeypatch.setattr(bench, own.__name__, own)
    monkeypatch.setattr(bench, "peak_resident_memory", lambda: 7.5)
    for name in bench.CONFIGURATIONS:
        bench.main(["peak", "--configuration", name, "--base", name])
    assert capsys.readouterr().out == "7.5\n" * len(bench.CONFIGURATIONS)
    assert ran == [
        ("loaded, nothing trained", None),
        ("public loop", torch.float32),
        ("public_loop", Settings(steps=4)),
        ("L2", None),
        ("train_style", Settings(steps=4, lpips_weight=0, style_weight=0)),
        ("L2 + LPIPS + style", None),
        ("train_style", Settings(steps=4)),
        ("the same, gradient checkpointing", None),
        ("train_style", Settings(steps=4, gradient_checkpointing=True)),
        ("the same, 2 x 4 accumulated", None),
        (
            "train_style",
            Settings(steps=4, batch_size=4, gradient_accumulation_steps=2, picture_batch=1),
        ),
        ("rank 64", None),
        ("train_style", Settings(steps=4, rank=64)),
    ]


# --- the command line ---


def test_tables_are_recorded_in_their_places(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "DATA", tmp_path)
    told = []
    benches = {
        name: (
            lambda base, name=name: told.append(base) or [f"{name} {len(told)}"],
            f"Title {name}",
        )
        for name in ("one", "two")
    }
    monkeypatch.setattr(bench, "BENCHES", benches)
    card = tmp_path / "benchmark.md"
    bench.main(["one", "--base", "folder"])
    assert told == ["folder"] and "one 1" in capsys.readouterr().out and not card.exists()
    bench.main(["--record"])  # all of them
    first = card.read_text()
    assert first.startswith("# Benchmark\n") and first.count("\n## Title") == 2
    assert "one 2" in first and "two 3" in first and "`python data/bench.py two` on" in first
    bench.main(["one", "--record"])
    second = card.read_text()
    assert "one 4" in second and "one 2" not in second and "two 3" in second
    assert re.sub(r"one \d", "", second) == re.sub(r"one \d", "", first)
    assert [p.name for p in tmp_path.iterdir()] == ["benchmark.md"]


def test_an_unknown_benchmark_names_the_others(capsys):
    with pytest.raises(SystemExit):
        bench.main(["colour"])
    assert "there is no benchmark 'colour': choose truth, pareto" in capsys.readouterr().err
