"""The training mix: a function of the seed, its splits apart, and drawn only once."""

import json

import numpy as np
import pytest
from PIL import Image

from data import pretrain
from stylenb.photos import SAMPLE_PHOTOS
from stylenb.pocket import training_mix as mix
from stylenb.pocket.styles import HELD_OUT, KNOWN, PHRASES, STYLES

SEEDS = range(mix.TRAIN_SEEDS, mix.TRAIN_SEEDS + 5)


@pytest.fixture
def undrawn(monkeypatch):
    """Examples without the drawing, which takes a tenth of a second each: (style, kind) of many."""
    blank = Image.new("RGB", (mix.SIZE, mix.SIZE))
    monkeypatch.setattr(mix, "content", lambda seed, kind: (blank, f"a {kind}"))
    monkeypatch.setattr(mix, "apply_style", lambda style, picture, seed: picture)

    def of(count, *options):
        return [mix.example(seed, *options) for seed in range(count)]

    return of


def test_an_example_says_its_style_in_its_caption():
    examples = [mix.example(seed) for seed in SEEDS]
    for e in examples:
        assert e.picture.size == (128, 128) and e.picture.mode == "RGB"
        assert e.caption.startswith(f"{PHRASES[e.style]} ")
    assert len({e.picture.tobytes() for e in examples}) == len(SEEDS)


def test_every_kind_of_content_can_be_drawn_in_a_held_out_style():
    for seed, kind in enumerate(("scene", "photo", "shapes")):
        picture, caption = mix.content(seed, kind)
        assert picture.size == (128, 128) and caption
    assert mix.example(0, ("ink",), 0.0).style == "ink"


def test_the_mix(undrawn):
    examples = undrawn(1500)
    kinds = [e.kind for e in examples]
    shares = {kind: kinds.count(kind) / len(kinds) for kind in ("scene", "photo", "shapes")}
    assert shares["scene"] == pytest.approx(0.55, abs=0.05)
    assert shares["photo"] == pytest.approx(0.32, abs=0.05)
    for style in KNOWN:
        assert sum(e.style == style for e in examples) > 100
    kept = [e.style == "photo" for e in examples if e.kind == "photo"]
    assert np.mean(kept) == pytest.approx(0.5, abs=0.07)  # photographs stay so twice as often
    assert all(e.caption == f"{PHRASES[e.style]} a {e.kind}" for e in examples)


def test_held_out_styles_stay_out(undrawn):
    assert {e.style for e in undrawn(500)} == set(KNOWN)
    assert {e.style for e in undrawn(500, HELD_OUT, 0.0)} == set(HELD_OUT)
    assert {e.style for e in undrawn(1000, tuple(STYLES), 1 / len(STYLES))} == set(STYLES)


def test_the_sets_share_no_seed_and_the_known_one_no_held_out_style(monkeypatch, tmp_path):
    asked = {}

    def ask(folder, name, count, first_seed, styles, photo_share):
        asked[name] = range(first_seed, first_seed + count), set(styles)

    monkeypatch.setattr(pretrain, "render_set", ask)
    for make in (pretrain.known_set, pretrain.held_out_set, pretrain.judge_set):
        make(tmp_path)
        make(tmp_path, 100_000)  # many more than the default
    for name, (_, styles) in asked.items():
        expected = {"known": set(KNOWN), "held": set(HELD_OUT), "judge": set(STYLES)}
        assert styles == expected[name.split("-")[0]]

    seen = []
    monkeypatch.setattr(mix, "content", lambda seed, kind: seen.append(seed) or (None, ""))
    monkeypatch.setattr(pretrain, "apply_style", lambda style, picture, seed: seen.append(seed))
    for style in HELD_OUT:
        pretrain.style_pictures(style)
    assert len(seen) == 2 * 16 * len(HELD_OUT) and len(set(seen)) == 16 * len(HELD_OUT)

    splits = [
        range(mix.TEST_SEEDS, mix.TEST_SEEDS + 10_000),
        range(min(seen), max(seen) + 1),
        *(seeds for name, (seeds, _) in asked.items() if name.endswith("-100000")),
    ]
    splits.sort(key=lambda seeds: seeds.start)
    assert len(splits) == 5
    for one, following in zip(splits, splits[1:], strict=False):
        assert one.stop <= following.start


def test_a_crop_of_a_photograph():
    crops = [mix.photo_crop(seed) for seed in range(30)]
    assert {picture.size for picture, _ in crops} == {(128, 128)}
    assert {picture.mode for picture, _ in crops} == {"RGB"}
    assert len({picture.tobytes() for picture, _ in crops}) > 25  # plain centres come again
    assert {caption for _, caption in crops} <= {*mix.PHOTO_CAPTIONS.values(), "a thing"}
    assert set(mix.PHOTO_CAPTIONS) - {"cat"} <= set(SAMPLE_PHOTOS)


def test_a_set_is_drawn_once_and_read_back(tmp_path, capsys):
    def render():
        return pretrain.render_set(tmp_path / "new", "few", 3, mix.TEST_SEEDS, KNOWN, 0.25)

    pictures, facts = render()
    assert "drawing 3 pictures for few" in capsys.readouterr().out
    assert pictures.shape == (3, 128, 128, 3) and pictures.dtype == np.uint8
    for i in range(3):
        e = mix.example(mix.TEST_SEEDS + i, KNOWN, 0.25)
        assert pictures[i].tobytes() == e.picture.tobytes()
        assert facts[i] == {"caption": e.caption, "style": e.style, "kind": e.kind}

    again, same_facts = render()
    assert not capsys.readouterr().out
    assert (again == pictures).all() and same_facts == facts

    # Cut while it was drawn: the pictures are there, the facts, written last, are not.
    (tmp_path / "new" / "few.json").unlink()
    np.save(tmp_path / "new" / "few.npy", np.zeros_like(pictures[:1]))
    whole, same_facts = render()
    assert "drawing" in capsys.readouterr().out
    assert (whole == pictures).all() and same_facts == facts
    assert json.loads((tmp_path / "new" / "few.json").read_text()) == facts
