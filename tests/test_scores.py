"""Scores: equal pictures, known differences, known orders, and the curves made of them."""

import copy
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageFilter, ImageOps
from safetensors.torch import load_file

import stylenb
from stylenb import StylenbError, judge, losses, lpips_distance, psnr, sample_photo, scores
from stylenb.inference import redraw
from stylenb.lora import adapters, add_lora, set_scale
from stylenb.lora_files import save_lora
from stylenb.pocket.scenes import draw_scene
from stylenb.pocket.styles import HELD_OUT, STYLES, apply_style
from stylenb.weights import DATA

DISTANCES = (lpips_distance, scores.truth_distance, scores.pixel_distance)
LIKENESSES = (scores.ssim, scores.edge_agreement)


def grey(value, side=32):
    return Image.new("RGB", (side, side), (value,) * 3)


@pytest.fixture(scope="module")
def photos():
    return [sample_photo(name, 128) for name in ("chelsea", "coffee")]


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(i).picture for i in range(6)]


def blurred(pictures, radius):
    return [p.filter(ImageFilter.GaussianBlur(radius)) for p in pictures]


def shifted(pictures, pixels):
    return [ImageChops.offset(p, pixels, 0) for p in pictures]


def rendered(style, pictures, seed=0):
    return [apply_style(style, p, seed + i) for i, p in enumerate(pictures)]


# --- means ---


def test_a_mean_and_its_error():
    mean, error = scores.mean_and_error([1, 2, 3, 4])
    assert (mean, error) == (2.5, pytest.approx((5 / 3) ** 0.5 / 2))
    assert scores.mean_and_error(torch.tensor([1.0, 2, 3, 4])) == (mean, pytest.approx(error))
    assert scores.with_error([1, 2, 3, 4]) == "2.500 ± 0.645"
    assert math.isnan(scores.mean_and_error([3])[1])
    with pytest.raises(StylenbError, match="nothing to average"):
        scores.mean_and_error([])


def test_an_interval_is_as_wide_as_a_table_of_t_says():
    low, high = scores.interval([1, 2, 3, 4])
    assert high - 2.5 == pytest.approx(3.18245 * (5 / 3) ** 0.5 / 2, rel=1e-5)  # 3 degrees
    assert 2.5 - low == pytest.approx(high - 2.5)
    random = np.random.default_rng(0)
    intervals = [scores.interval(random.normal(size=8)) for _ in range(400)]
    assert 0.92 < np.mean([low < 0 < high for low, high in intervals]) < 0.98


# --- content ---


def test_psnr():
    assert psnr(grey(100), grey(100)) == math.inf
    expected = 10 * math.log10(255**2 / 10**2)
    assert psnr(grey(100), grey(110)) == pytest.approx(expected)
    assert psnr([grey(100), grey(0)], [grey(110), grey(255)]) == pytest.approx(expected / 2)
    with pytest.raises(ValueError):
        psnr([grey(1), grey(2)], [grey(1)])


@pytest.mark.parametrize("score", (psnr, *DISTANCES, *LIKENESSES), ids=lambda f: f.__name__)
def test_pictures_are_compared_in_pairs(score):
    with pytest.raises(StylenbError, match="in pairs of one size, and these are 2 and 1 of"):
        score([grey(1), grey(2)], [grey(1)])
    with pytest.raises(StylenbError, match=r"\(16, 16\), \(32, 32\)"):
        score(grey(1), grey(1, 16))


@pytest.mark.parametrize("score", (*DISTANCES, *LIKENESSES), ids=lambda f: f.__name__)
def test_equal_pictures_and_ever_more_blur(score, photos):
    cases = (photos, blurred(photos, 1), blurred(photos, 3), photos[::-1])
    equal, *worse = (score(photos, other) for other in cases)
    assert equal.shape == (2,) and equal.dtype == torch.float32
    best = torch.zeros(2) if score in DISTANCES else torch.ones(2)
    assert torch.allclose(equal, best, atol=1e-6)
    falling = [equal, *worse] if score in LIKENESSES else [-x for x in (equal, *worse)]
    for better, less in zip(falling, falling[1:], strict=False):
        assert (better > less).all()
    alone = score(photos[0], blurred(photos, 3)[0])  # whatever else is in the list
    assert alone.shape == (1,) and alone[0].item() == pytest.approx(worse[1][0].item(), rel=1e-3)


def test_ssim_of_flat_pictures_is_its_formula():
    a, b = 5 / 255, 15 / 255
    expected = (2 * a * b + 0.01**2) / (a**2 + b**2 + 0.01**2)
    assert scores.ssim(grey(5), grey(15)).item() == pytest.approx(expected, rel=1e-4)


def test_ssim_sees_no_colour_and_edges_see_no_tone(photos):
    greys = [p.convert("L").convert("RGB") for p in photos]
    negatives = [ImageOps.invert(p) for p in greys]
    assert (scores.ssim(photos, greys) > 0.99).all()
    assert (scores.edge_agreement(photos, greys) > 0.99).all()
    assert torch.allclose(scores.edge_agreement(greys, negatives), torch.ones(2), atol=1e-3)
    assert (scores.ssim(greys, negatives) < 0.5).all()


def test_edges_know_where_things_are(photos):
    near, far = (scores.edge_agreement(photos, shifted(photos, k)) for k in (2, 12))
    assert (near > far + 0.2).all() and (near < 0.99).all()
    assert scores.edge_agreement(grey(10), grey(200)).item() == 1  # nothing in either
    assert scores.edge_agreement(photos[0], grey(10, 128)).item() == 0


@pytest.mark.parametrize("style", HELD_OUT)
def test_edges_find_a_scene_again_in_every_style(style, scenes):
    own = scores.edge_agreement(scenes, rendered(style, scenes))
    for k in range(1, len(scenes)):
        other = rendered(style, scenes[k:] + scenes[:k])
        assert (own > scores.edge_agreement(scenes, other)).all()


@pytest.mark.parametrize("side", [64, 256])
def test_edges_are_the_same_at_any_size(side, photos):
    small = [[p.resize((side, side)) for p in q] for q in (photos, shifted(photos, 4))]
    here = scores.edge_agreement(photos, shifted(photos, 4))
    assert torch.allclose(scores.edge_agreement(*small), here, atol=0.1)


def test_a_missing_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("stylenb.weights.DATA", tmp_path)
    for load in (scores.load_judge, losses.load_features):
        with pytest.raises(StylenbError, match="is missing: clone the whole repository"):
            load.__wrapped__()  # past the cache


# --- with the shipped networks ---


def test_lpips_is_the_same_both_ways(photos):
    much = lpips_distance(photos, blurred(photos, 3))
    assert torch.allclose(lpips_distance(blurred(photos, 3), photos), much, rtol=1e-4)


def test_lpips_runs_on_the_shipped_weights():
    network = losses.load_features()
    shipped = load_file(DATA / "perceptual" / "squeezenet1_1.safetensors")
    weights = {
        name.split(".", 1)[1]: value
        for name, value in network.net.state_dict().items()  # "slice2.3.squeeze.weight"
    }
    assert weights.keys() == shipped.keys() and len(shipped) > 40
    assert all(torch.equal(weights[k], v.float()) for k, v in shipped.items())
    assert not any(p.requires_grad for p in network.parameters()) and not network.training


def test_the_judge_names_a_style_for_every_picture(photos):
    network, styles = scores.load_judge()
    assert styles == list(STYLES) and not network.training
    probabilities = scores.style_probabilities(photos)
    assert probabilities.shape == (2, len(STYLES)) and (probabilities >= 0).all()
    assert torch.allclose(probabilities.sum(1), torch.ones(2), atol=1e-5)
    names = judge(photos)
    assert len(names) == 2 and set(names) <= set(STYLES)
    assert names[0] == styles[probabilities[0].argmax()]
    assert judge(photos[0]) == names[:1]


def test_the_judge_sees_any_size():
    """With marks of one size; in pictures of Stable Diffusion's size, four times as large."""
    styles = ["charcoal", "blueprint", "neon", "pointillism"]
    for size in (128, 256):
        scene = draw_scene(0, size).picture
        pictures = [apply_style(style, scene, 0) for style in styles]
        assert judge(pictures) == styles
    large = [apply_style(style, draw_scene(0, 512).picture, 0, unit=4) for style in styles]
    assert judge(large) == styles


def test_the_probability_of_one_style(scenes):
    for style in ("blueprint", "woodcut"):
        right = scores.style_probability(rendered(style, scenes[:3]), style)
        assert right.shape == (3,) and (right > 0.5).all()
        assert (scores.style_probability(scenes[:3], style) < 0.2).all()
    with pytest.raises(StylenbError, match="has not learned the style 'cubism'.*gram_distance"):
        scores.style_probability(scenes, "cubism")


def test_the_gram_distance_knows_the_style_and_no_place(scenes):
    examples = rendered("blueprint", scenes[:3])
    same, plain = (
        scores.gram_distance(p, examples) for p in (rendered("blueprint", scenes[3:]), scenes[3:])
    )
    assert same.shape == (3,) and (same < plain / 2).all() and (plain > 0.4).all()
    assert scores.gram_distance(scenes[0], [scenes[0]] * 2).item() == pytest.approx(0, abs=1e-6)
    elsewhere = scores.gram_distance(shifted(rendered("blueprint", scenes[3:]), 40), examples)
    assert torch.allclose(elsewhere, same, rtol=0.5)


# --- truth ---


@pytest.mark.parametrize("score", DISTANCES[1:], ids=lambda f: f.__name__)
@pytest.mark.parametrize("style", ["blueprint", "stained_glass", "woodcut"])
def test_distances_to_the_truth_are_in_a_sensible_order(score, style, scenes):
    truth = rendered(style, scenes)
    cases = {
        "another seed": rendered(style, scenes, seed=777),
        "a little blurred": blurred(truth, 1),
        "blurred": blurred(truth, 2),
        "the photo": scenes,
        "another photo": scenes[1:] + scenes[:1],
    }
    found = [score(pictures, truth).mean().item() for pictures in cases.values()]
    assert 0 < found[0] and found == sorted(found), dict(zip(cases, found, strict=True))
    half = [Image.blend(p, t, 0.5) for p, t in zip(scenes, truth, strict=True)]
    assert score(half, truth).mean() < found[3]
    if score is scores.truth_distance:
        other = score(truth[1:] + truth[:1], truth).mean()  # the right style is not enough
        assert score(blurred(truth, 3), truth).mean() < other < found[4]


def test_the_two_distances_take_blur_differently(scenes):
    truth = rendered("ink", scenes)
    soft, off = blurred(truth, 3), shifted(truth, 4)
    assert scores.truth_distance(soft, truth).mean() > scores.truth_distance(off, truth).mean()
    assert scores.pixel_distance(soft, truth).mean() < scores.pixel_distance(off, truth).mean()


def test_the_truth_distance_looks_through_the_judge_alone(scenes, monkeypatch):
    def refuse(*_):
        raise AssertionError("a network of the training loss")

    monkeypatch.setattr(scores, "load_features", refuse)
    monkeypatch.setattr(scores, "PictureLosses", refuse)
    scores.truth_distance(scenes[:1], scenes[1:2])
    large = [p.resize((512, 512), Image.Resampling.BICUBIC) for p in scenes[:2]]
    same = scores.truth_distance(large[:1], large[1:])
    assert torch.allclose(same, scores.truth_distance(scenes[:1], scenes[1:2]), rtol=0.15)


def test_pixels_see_tone_and_colour_as_their_formula_says():
    # flat pictures have no variance: what is left of SSIM is its first factor
    def c(a, b):
        return (2 * a * b + 0.01**2) / (a * a + b * b + 0.01**2)

    assert scores.pixel_distance(grey(0), grey(255)).item() == pytest.approx(1 / 3, abs=0.01)
    red, green = (Image.new("RGB", (32, 32), colour) for colour in ("#f00", "#00ff00"))
    expected = 1 - (c(0.5324, 0.8774) + c(0.8009, -0.8618) + c(0.6720, 0.8318)) / 3
    assert scores.pixel_distance(red, green).item() == pytest.approx(expected, abs=0.01)


def test_pixels_are_compared_at_three_sizes():
    checks = np.kron(np.indices((32, 32)).sum(0) % 2, np.ones((2, 2)))[..., None].repeat(3, 2)
    checks = Image.fromarray((checks * 255).astype(np.uint8))
    flat = scores.pixel_distance(checks, grey(128, 64)).item()
    # structure is lost in L, one of three channels, at two sizes of three; colour is as it was
    assert flat == pytest.approx(2 / 9, abs=0.05)
    assert scores.pixel_distance(grey(9, 8), grey(9, 8)).item() == pytest.approx(0, abs=1e-6)


# --- the model itself ---


@pytest.fixture(scope="module")
def lora(tiny, tmp_path_factory):
    """The file of a LoRA whose effect is plain to see, named as a style that the judge knows."""
    base = own_unet(tiny)
    add_lora(base, "ink", rank=2)
    random = torch.Generator().manual_seed(1)
    for name, p in base.unet.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.3, generator=random)
    return save_lora(base, tmp_path_factory.mktemp("lora") / "ink.safetensors", "ink")


def own_unet(tiny):
    own = copy.copy(tiny)
    own.unet = copy.deepcopy(tiny.unet)
    return own


@pytest.fixture
def base(tiny, lora):
    own = own_unet(tiny)
    stylenb.load_lora(own, lora)
    return own


@pytest.fixture(scope="module")
def small():
    return [sample_photo(name, 64) for name in ("chelsea", "coffee", "rocket")]


def test_the_drift_is_a_ratio_of_two_errors():
    zeros, ones = torch.zeros(2, 3, 4, 8, 8), torch.ones(2, 3, 4, 8, 8)
    before = scores.NoisePredictions(zeros, 2 * ones)
    moved = torch.stack([zeros[0], ones[0]])
    drift = scores.prior_drift(before, scores.NoisePredictions(moved, 2 * ones))
    assert drift.tolist() == [0, 0.25]


def test_a_model_that_did_not_change_has_not_drifted(base, small):
    before = scores.noise_predictions(base, small)
    assert before.predicted.shape == before.noise.shape == (3, 5, 4, 8, 8)
    drifts = []
    for scale in (0.0, 0.1, 0.2, 1.0):
        set_scale(base, "ink", scale)
        drifts.append(scores.prior_drift(before, scores.noise_predictions(base, small)))
    set_scale(base, None)
    assert drifts[0].tolist() == [0, 0, 0]
    assert torch.allclose(drifts[2] / drifts[1], torch.tensor(4.0), rtol=0.3)  # a square
    assert (drifts[3] > 3 * drifts[2]).all()
    again = scores.prior_drift(before, scores.noise_predictions(base, small))
    assert torch.equal(again, torch.zeros(3))


def test_a_drift_depends_on_its_own_picture_and_on_the_prompt(base, small):
    whole, first = (scores.noise_predictions(base, part) for part in (small, small[:1]))
    assert torch.equal(whole.noise[:1], first.noise) and whole.noise.unique().numel() > 3000
    assert torch.allclose(whole.predicted[:1], first.predicted, atol=1e-5)
    prompted = scores.noise_predictions(base, small, "a painting")
    assert torch.equal(prompted.noise, whole.noise)
    assert not torch.allclose(prompted.predicted, whole.predicted, atol=1e-4)
    early = scores.noise_predictions(base, small, timesteps=(1, 2))
    assert early.noise.shape == (3, 2, 4, 8, 8)
    with pytest.raises(StylenbError, match="other pictures, timesteps or seeds"):
        scores.prior_drift(whole, early)
    with pytest.raises(StylenbError, match="other pictures, timesteps or seeds"):
        scores.prior_drift(whole, scores.noise_predictions(base, small, seed=1))
    with torch.no_grad():
        base.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(StylenbError, match="predicts NaN"):
        scores.noise_predictions(base, small[:1])


def largest_difference(pictures, others):
    pairs = zip(pictures, others, strict=True)
    return max(np.abs(np.int16(a) - np.int16(b)).max() for a, b in pairs)


def test_a_redraw_takes_the_base_as_it_is(base, small):
    def drawn(pictures, *seeds):
        return redraw(base, pictures, 0.5, 4, seeds, solver="ddim")

    plain = drawn(small, 0, 1, 2)
    assert [p.size for p in plain] == [(64, 64)] * 3
    assert largest_difference(drawn(small[1:], 1, 2), plain[1:]) <= 1  # noises go along
    assert largest_difference(drawn(small[:1], 1), plain[:1]) > 1
    assert largest_difference(redraw(base, small, 0.5, 4), plain) > 1  # by the base's own solver
    set_scale(base, "ink")
    assert drawn(small, 0, 1, 2) != plain


def test_measure_gives_what_can_be_had(small):
    pictures = blurred(small, 1)
    found = scores.measure(pictures, small)
    assert list(found) == ["lpips", "ssim", "edges"]
    whole = scores.measure(pictures, small, "ink", small, small[::-1])
    assert list(whole) == ["lpips", "ssim", "edges", "judge", "gram", "truth", "pixels"]
    assert all(v.shape == (3,) for v in whole.values())
    assert torch.equal(whole["edges"], scores.edge_agreement(pictures, small))
    assert torch.equal(whole["truth"], scores.truth_distance(pictures, small[::-1]))


def test_a_sweep(base, small, lora):
    truth = rendered("ink", small)
    rows = scores.sweep(base, small, lora, [0.25, 0.75], [0.0, 1.0], truth, num_inference_steps=4)
    settings = [(r["strength"], r["scale"]) for r in rows]
    assert settings == [(0.25, 0.0), (0.75, 0.0), (0.25, 1.0), (0.75, 1.0)]
    last = rows[-1]
    assert {"lpips", "ssim", "edges", "judge", "truth", "pixels"} < last.keys()
    set_scale(base, "ink")
    assert last["pictures"] == redraw(base, small, 0.75, 4)
    set_scale(base, None)
    assert rows[1]["pictures"] == redraw(base, small, 0.75, 4)  # scale 0 is off
    assert torch.equal(last["truth"], scores.truth_distance(last["pictures"], truth))
    assert torch.equal(last["judge"], scores.style_probability(last["pictures"], "ink"))
    assert torch.equal(last["edges"], scores.edge_agreement(last["pictures"], small))


def test_a_sweep_draws_each_photo_from_its_own_noise(base, small):
    base.image_size = 512  # as of a base of SD's size, whose solver draws noise
    photos = [small[0], small[0]]
    (row,) = scores.sweep(base, photos, None, [0.5], num_inference_steps=2, seed=3)
    assert base.default_solver == "ddim" and row["pictures"][0] != row["pictures"][1]
    assert row["pictures"] == redraw(base, photos, 0.5, 2, (3, 4))


def test_a_sweep_over_what_is_in_the_base(base, small, tmp_path):
    set_scale(base, "ink", 2.0)
    (named,) = scores.sweep(base, small, "ink", [0.5], judged_as="neon", num_inference_steps=2)
    assert torch.equal(named["judge"], scores.style_probability(named["pictures"], "neon"))
    assert "truth" not in named and adapters(base) == ["ink"]
    off = redraw(base, small, 0.5, 2)
    (bare,) = scores.sweep(base, small, None, [0.5], [0.5, 2.0], num_inference_steps=2)
    assert "judge" not in bare and bare["scale"] == 1  # there is none to sweep over
    assert bare["pictures"] != named["pictures"]
    assert bare["pictures"] == off  # the LoRA was switched off again
    for wrong, message in (
        (dict(strengths=[]), "at least one strength"),
        (dict(strengths=[1.5], truth=small[:1]), "in pairs of one size"),  # before the rest
        (dict(strengths=[1.5]), "strength is a number above 0 and up to 1, .*not 1.5"),
        (dict(strengths=[0]), "strength is a number above 0 and up to 1, .*not 0"),
    ):
        with pytest.raises(StylenbError, match=message):
            scores.sweep(base, small, "ink", **wrong)
    with pytest.raises(StylenbError, match="There is no style 'cubism'"):
        scores.sweep(base, small, "cubism", [0.5])


# --- curves ---


def test_pareto_on_points_made_by_hand():
    assert scores.pareto([[1, 5], [2, 2], [5, 1], [3, 3], [2, 6]]) == [0, 1, 2]
    assert scores.pareto([[5, 1], [1, 5]]) == [1, 0]  # by the first coordinate
    assert scores.pareto([[1, 1], [1, 1], [1, 2]]) == [0, 1]  # equals do not beat each other
    assert scores.pareto([[1, 1, 9], [2, 2, 1], [2, 2, 2]]) == [0, 1]
    assert scores.pareto([[3, 3]]) == [0]
    for wrong in ([], [1, 2], [[1, math.nan]], [[1, math.inf]]):
        with pytest.raises(StylenbError, match="pareto takes finite numbers"):
            scores.pareto(wrong)


def test_pareto_leaves_nobody_beaten_and_beats_all_others():
    points = np.random.default_rng(0).integers(0, 12, (60, 2))
    kept = scores.pareto(points)
    beaten_by = [
        [j for j, q in enumerate(points) if (q <= p).all() and (q < p).any()] for p in points
    ]
    assert set(kept) == {i for i, by in enumerate(beaten_by) if not by} and len(kept) < 20


def curve(*settings):
    """Rows of two pictures from (strength, mean edges, mean truth); the second lies off by 1."""
    return [
        {
            "strength": strength,
            "edges": torch.tensor([edges - 0.1, edges + 0.1]),
            "truth": torch.tensor([truth, truth + 1.0]),
        }
        for strength, edges, truth in settings
    ]


def test_at_equal_content_goes_along_the_curve():
    rows = curve((0.2, 1.0, 10), (0.4, 0.8, 6), (0.8, 0.4, 2))
    found = scores.at_equal_content(rows, 0.6)
    assert found["strength"] == pytest.approx(0.6)
    assert found["edges"].tolist() == pytest.approx([0.5, 0.7])
    assert found["truth"].tolist() == pytest.approx([4, 5])
    assert scores.at_equal_content(rows, 0.8)["truth"].tolist() == pytest.approx([6, 7])
    assert scores.at_equal_content(rows, 0.1)["strength"] == pytest.approx(0.8)  # its end


def test_at_equal_content_takes_the_best_that_keeps_enough():
    rows = curve((0.2, 0.9, 5), (0.4, 0.7, 1), (0.8, 0.3, 4))
    assert scores.at_equal_content(rows, 0.5)["strength"] == pytest.approx(0.4)
    assert scores.at_equal_content(rows, 0.8)["truth"].tolist() == pytest.approx([3, 4])
    keeps_less = scores.at_equal_content(rows, 0.95)
    assert keeps_less["strength"] == pytest.approx(0.2)  # none keeps as much: the one nearest
    other = [{**row, "pixels": -row["truth"]} for row in rows]
    assert scores.at_equal_content(other, 0.5, score="pixels")["strength"] == pytest.approx(0.2)
    with pytest.raises(StylenbError, match="rows is empty"):
        scores.at_equal_content([], 0.5)
