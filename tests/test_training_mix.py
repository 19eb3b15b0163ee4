"""The training mix: a function of the seed, its splits apart, and drawn only once."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data import draw, pretrain
from stylenb.errors import StylenbError
from stylenb.photos import SAMPLE_PHOTOS
from stylenb.pocket import training_mix as mix
from stylenb.pocket.styles import HELD_OUT, KNOWN, PHRASES, STYLES

SEEDS = range(mix.TRAIN_SEEDS, mix.TRAIN_SEEDS + 5)


@pytest.fixture
def undrawn(monkeypatch):
    """Examples without the drawing, which takes a tenth of a second each: (style, kind) of many."""
    blank = Image.new("RGB", (mix.SIZE, mix.SIZE))
    monkeypatch.setattr(mix, "content", lambda seed, kind, size: (blank, f"a {kind}"))
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


def planned_seeds(count):
    """Of the pictures of both sizes that a training draws, in all parts of a set together."""
    args = SimpleNamespace(pictures=count, sizes=[128, 256], photos=None, cutouts=None)
    one, many = (draw.planned(args, ("known", "held-out"), parts) for parts in (1, 5))
    for whole in one:
        like = [s for s in many if (s.styles, s.size) == (whole.styles, whole.size)]
        seeds = [seed for s in like for seed in range(s.first_seed, s.first_seed + s.count)]
        assert seeds == list(range(whole.first_seed, whole.first_seed + whole.count))
        assert set(whole.styles) == set(KNOWN if whole.name.startswith("known") else HELD_OUT)
    assert len({s.name for s in one + many}) == len(one) + len(many) == 24
    return [range(s.first_seed, s.first_seed + s.count) for s in one]


def test_the_sets_share_no_seed_and_the_known_one_no_held_out_style(monkeypatch, tmp_path):
    asked = {}

    def ask(folder, name, count, first_seed, styles, photo_share, size=128):
        asked[name] = range(first_seed, first_seed + count), set(styles)

    monkeypatch.setattr(pretrain, "render_set", ask)
    for make in (pretrain.known_set, pretrain.held_out_set):
        make(tmp_path)
        make(tmp_path, 100_000)  # many more than the default
    for size in (128, 256):
        pretrain.judge_set(tmp_path, 100_000, size)
    for name, (_, styles) in asked.items():
        expected = {"known": set(KNOWN), "held": set(HELD_OUT), "judge": set(STYLES)}
        assert styles == expected[name.split("-")[0]]

    seen = []
    monkeypatch.setattr(mix, "content", lambda seed, kind: seen.append(seed) or (None, ""))
    monkeypatch.setattr(pretrain, "apply_style", lambda style, picture, seed: seen.append(seed))
    for style in HELD_OUT:
        pretrain.style_pictures(style)
    assert len(seen) == 2 * 16 * len(HELD_OUT) and len(set(seen)) == 16 * len(HELD_OUT)

    planned = planned_seeds(100_000)
    for name, seeds in zip(("known-100000", "held-out-100000"), planned[::2], strict=True):
        assert asked[name][0].start == seeds.start  # one and the same set
    splits = [
        range(mix.TEST_SEEDS, mix.TEST_SEEDS + 10_000),
        range(min(seen), max(seen) + 1),
        *(seeds for name, (seeds, _) in asked.items() if name.startswith("judge")),
        *planned,
        range(draw.BACKGROUND_SEEDS, draw.BACKGROUND_SEEDS + (1 << 30)),
    ]
    splits.sort(key=lambda seeds: seeds.start)
    assert len(splits) == 9
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


# --- with folders, and at two sizes (data/draw.py) ---


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three photographs of one colour, and three discs cut out, with captions for some."""
    photos, cutouts = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("cutouts")
    y, x = np.mgrid[:90, :120] - np.array([45, 60])[:, None, None]
    for i in range(3):
        Image.new("RGB", (120, 90), (200, 40 * i, 10)).save(photos / f"{i}.png")
        disc = np.zeros((90, 120, 4), np.uint8)
        disc[..., i], disc[..., 3] = 255, 255 * (x**2 + y**2 < 1600)
        Image.fromarray(disc).save(cutouts / f"{i}.{('png', 'webp', 'png')[i]}", lossless=True)
    facts = {
        "0.png": "A disc.",
        "1.webp": "a disc of a colour that is hard to name",
        "2.png": "DISC",
    }
    (cutouts / "facts.json").write_text(json.dumps(facts))
    return photos, cutouts


def test_captions_of_a_folder_are_short_or_left_out(folders, tmp_path):
    photos, cutouts = folders
    assert [text for _, text in draw.listed(cutouts)] == ["a disc", "", ""]
    assert [path.name for path, _ in draw.listed(photos)] == ["0.png", "1.png", "2.png"]
    said = {draw.objects(seed, 64, None, cutouts)[1] for seed in range(40)}
    assert said == {"a disc", "a thing", "many things"}
    with pytest.raises(StylenbError, match="no pictures in"):
        draw.listed(tmp_path)


def test_photographs_of_a_folder_join_those_of_scikit_image(folders):
    crops = [draw.photo(seed, 64, folders[0]) for seed in range(60)]
    places = [picture for picture, caption in crops if caption == "a place"]
    assert 20 < len(places) < 45  # 55 %
    assert all(np.asarray(p).std((0, 1)).max() < 1 for p in places)  # of one colour, varied
    assert len({p.tobytes() for p in places}) > 10
    assert all(draw.photo(s, 64, None)[1] != "a place" for s in range(20))


def test_objects_lie_on_backgrounds(folders, tmp_path, monkeypatch):
    picture, _ = draw.objects(1, 64, *folders)
    assert picture.size == (64, 64) and picture.mode == "RGB"
    assert picture.tobytes() == draw.objects(1, 64, *folders)[0].tobytes()
    grounds = [draw.background(np.random.default_rng(seed), 64, folders[0]) for seed in range(12)]
    assert {(g.size, g.mode) for g in grounds} == {((64, 64), "RGB")}
    # On black and in their own colours: of what is clear, nothing is to be seen.
    monkeypatch.setattr(draw, "background", lambda *_: Image.new("RGB", (64, 64)))
    monkeypatch.setattr(mix, "varied_colours", lambda picture, random: picture)
    Image.new("RGBA", (40, 30), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    for seed in range(8):
        assert draw.objects(seed, 64, folders[0], tmp_path)[0].getbbox() is None
        assert draw.objects(seed, 64, *folders)[0].getbbox() is not None


def test_without_folders_a_set_is_the_training_mix_and_with_them_objects_come(folders, tmp_path):
    args = SimpleNamespace(pictures=10, sizes=[64], photos=None, cutouts=None)
    (plain,) = draw.planned(args, ("known",), 1)
    plain.draw(tmp_path)
    pictures, _ = plain.read(tmp_path)
    for i in range(10):
        e = mix.example(plain.first_seed + i, size=64)
        assert pictures[i].tobytes() == e.picture.tobytes()
    args.photos, args.cutouts = folders
    (more,) = draw.planned(args, ("known",), 1)
    assert more.name != plain.name
    more.draw(tmp_path)
    kinds = [fact["kind"] for fact in more.read(tmp_path)[1]]
    assert "objects" in kinds and {"scene", "photo"} <= set(kinds)


def test_marks_have_one_size_at_both_sizes():
    """Pointillism's dots stand 8 px apart whatever the size: in the spectrum of a picture of 256 px
    there is a peak at that distance and none at 16 px."""
    for size in (128, 256):
        one = draw.Set("dots", 1, 7, ("pointillism",), 0.0, size)
        e = mix.example(7, one.styles, 0.0, size, draw=lambda s, k, n: mix.content(11, "scene", n))
        grey = np.asarray(e.picture.convert("L"), float)
        rows = np.abs(np.fft.rfft(grey - grey.mean(1, keepdims=True), axis=1)).mean(0)
        assert rows[size // 8] > 3 * rows[size // 16 - 1 : size // 16 + 2].max(), size


def test_sets_are_drawn_beside_a_training_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "PARTS", 3)
    where = {"work": tmp_path, "photos": None, "cutouts": None}
    args = SimpleNamespace(pictures=6, sizes=[64], device="cuda", **where)
    with draw.Pictures(args, ("known",)) as pictures:
        assert pictures.ready[64] >= 2  # the first part, which it waited for
        for _, future in list(pictures.coming):
            future.result()
        new = [one for _ in range(3) for one in pictures.grow()]
    assert new == [(64, 2, 4), (64, 4, 6)] and pictures.ready == {64: 6}
    args.device = "cpu"
    with draw.Pictures(args, ("known",)) as whole:
        assert (whole.of[64] == pictures.of[64]).all() and whole.facts == pictures.facts
        assert not list(whole.grow())
