"""The benchmark: every table is made once, in small, on a tiny random model."""

import re

import numpy as np
import pytest
import torch
from PIL import ImageOps

import stylenb
from stylenb import StylenbError, bench
from stylenb.baselines import BASELINES, Baseline
from stylenb.lora import add_lora, save_lora
from stylenb.training import Settings


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


def test_what_a_lora_is_nearer_than(tiny_folder, lora):
    baselines = {"negative": Baseline(negative, (1.0,))}
    lines = bench.bench_truth(tiny_folder, {"ink": lora}, 4, baselines)
    for row in cells(lines, "ink"):  # of a random model: noise, which is nearer than a negative
        assert numbers(row[2])[0] < numbers(row[3])[0] and row[-1] == "yes, apart"
    assert "in 1 of 1 styles, with intervals that do not overlap in 1." in lines[-3]


def test_no_lora_to_measure_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("stylenb.lora.DATA", tmp_path)
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


def test_styles(tiny_folder):
    settings = Settings(
        rank=2, steps=2, batch_size=2, learning_rate=1.0, lpips_weight=0, style_weight=0
    )
    lines = bench.bench_styles(tiny_folder, ["ink"], settings, count=2)
    (row,) = cells(lines, "ink")
    assert len(row) == len(cells(lines, "style")[0])
    assert all(0 < numbers(cell)[0] < 10 for cell in row[4:])
    assert row[4] != row[6]  # the LoRA was on
    assert lines[0].startswith("2 steps of 2, rank 2, alpha 1.5 when finished; 2 scenes")


def test_speed(tiny_folder):
    lines = bench.bench_speed(tiny_folder, steps=6, rounds=1)
    public, plain, full = (
        cells(lines, name)[0] for name in ("public loop", "L2", "L2 + LPIPS + style")
    )
    assert numbers(full[2])[0] == pytest.approx(float(full[1]) / float(plain[1]), rel=0.1)
    assert numbers(plain[2])[0] == pytest.approx(float(public[1]) / float(plain[1]), rel=0.1)


def test_sd15_in_small():
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
            **bench.SD15["vae"],
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
    lines = bench.bench_sd15(small, rounds=1)
    assert float(cells(lines, "L2")[0][1]) > 0 and "64 px" in lines[0]


def test_memory(tiny_folder):
    ballast = torch.ones(750_000_000)  # 3 GB here are no memory of the process that is measured
    lines = bench.bench_memory(tiny_folder, ["L2"])
    del ballast
    ((_, peak),) = cells(lines, "L2")
    assert 200 < float(peak) < 2500


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
    assert "one 2" in first and "two 3" in first and "`python -m stylenb.bench two` on" in first
    bench.main(["one", "--record"])
    second = card.read_text()
    assert "one 4" in second and "one 2" not in second and "two 3" in second
    assert re.sub(r"one \d", "", second) == re.sub(r"one \d", "", first)
    assert [p.name for p in tmp_path.iterdir()] == ["benchmark.md"]


def test_an_unknown_benchmark_names_the_others(capsys):
    with pytest.raises(SystemExit):
        bench.main(["colour"])
    assert "there is no benchmark 'colour': choose truth, pareto" in capsys.readouterr().err
