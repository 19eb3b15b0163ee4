"""The drawn world: same seed, same bytes; and captions that say what is there."""

import ast
import hashlib
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from stylenb import pocket
from stylenb.pocket import training_mix
from stylenb.pocket.palettes import TINTS, WALLS
from stylenb.pocket.scenes import draw_scene
from stylenb.pocket.shapes import dead_leaves
from stylenb.pocket.styles import STYLES, apply_style

SEEDS = range(500, 620)

# The beginnings of the sha256 of pictures, captions and facts. Seeds 0 to 239 with 246, 605 and
# 1014 take every one of the 475 branches of the drawing code that 1,200 seeds take (9 of its 242
# branch points have a side that no seed takes). Seen with OpenCV 5.0.0, NumPy 2.4.6, Pillow 13.0.0
# and scikit-image 0.26.0 on x86-64; another version may round a pixel otherwise.
DIGESTS = {
    "scenes from 0": "6284a0713383fc39",
    "scenes from 20": "0ac454a6ed4d81df",
    "scenes from 40": "07425a8e1e875eee",
    "scenes from 60": "0247f52d8533cc5b",
    "scenes from 80": "94f504d74dc98f29",
    "scenes from 100": "b3f4c3237f5d0635",
    "scenes from 120": "c126cfb8c223a36c",
    "scenes from 140": "16adb1aad228c048",
    "scenes from 160": "5d9af0a290307ecb",
    "scenes from 180": "9e2baeaa288d74fc",
    "scenes from 200": "da6bf2aa8f55d84a",
    "scenes from 220": "5695a621cdca33cd",
    "rare branches": "f2a3a43a795f3ded",
    "64 px": "44a032e940ecbbc8",
    "256 px": "92184a908fcfb4e1",
    "dead leaves": "edeba4e9c26edd4f",
    "photographs": "11af3fb5ebd918fd",
    "training mix": "2384b6e0c885270d",
    "photo": "546e4e7e9e30cab6",
    "oil": "c4c75efdc1aad887",
    "watercolour": "bb44b89b65db9c23",
    "poster": "b490b567fd825c97",
    "charcoal": "c35f26ef3e131b5c",
    "pastel": "b8282234f73e52d7",
    "comic": "ae0b33bc0c281ad6",
    "stained_glass": "80569b0ca96486c6",
    "ink": "ae04c5026d9b8c28",
    "blueprint": "0d374a6f2b74d96f",
    "pointillism": "0f0a38439feac1ad",
    "cross_stitch": "9f31ee38b156880c",
    "woodcut": "3cce04f6791e607d",
    "neon": "8e0439ea249f392c",
}


def in_bytes(picture, *facts):
    return picture.tobytes() + (json.dumps(facts).encode() if facts else b"")


def scene(seed, size=128):
    drawn = draw_scene(seed, size)
    return in_bytes(drawn.picture, drawn.caption, drawn.facts)


def example(seed):
    e = training_mix.example(training_mix.TRAIN_SEEDS + seed, tuple(STYLES))
    return in_bytes(e.picture, e.caption, e.style, e.kind)


def styled(seed, name):
    unit = 2 if seed == 2 else 1
    return in_bytes(apply_style(name, draw_scene(seed, 128 * unit).picture, seed, unit))


BLOCKS = {
    **{f"scenes from {first}": (scene, range(first, first + 20)) for first in range(0, 240, 20)},
    "rare branches": (scene, (246, 605, 1014)),
    "64 px": (scene, range(20), 64),
    "256 px": (scene, range(10), 256),
    "dead leaves": (lambda seed: in_bytes(dead_leaves(seed)), range(40)),
    "photographs": (lambda seed: in_bytes(*training_mix.photo_crop(seed)), range(80)),
    "training mix": (example, range(40)),
    **{name: (styled, range(4), name) for name in STYLES},
}


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(seed) for seed in SEEDS]


@pytest.mark.parametrize("block", BLOCKS)
def test_every_seed_draws_the_bytes_it_always_drew(block):
    draw, seeds, *options = BLOCKS[block]
    digest = hashlib.sha256(b"".join(draw(seed, *options) for seed in seeds))
    assert digest.hexdigest()[:16] == DIGESTS[block]


def test_the_pocket_world_stands_below_the_rest_of_the_package():
    allowed = ("stylenb.pocket", "stylenb.photos", "stylenb.errors")
    for path in Path(pocket.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path.name}: imports say where from in full"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                assert not name.startswith("stylenb") or name.startswith(allowed), (path, name)


def words(caption):
    return re.findall(r"[a-z]+", caption)


def test_different_seeds_give_different_pictures(scenes):
    assert len({scene.picture.tobytes() for scene in scenes}) == len(scenes)
    assert len({scene.caption for scene in scenes}) > 0.9 * len(scenes)
    assert len({dead_leaves(seed).tobytes() for seed in range(40)}) == 40


@pytest.mark.parametrize("draw", [lambda s, n: draw_scene(s, n).picture, dead_leaves])
def test_size_and_mode(draw):
    for size in (64, 128, 256):
        picture = draw(3, size)
        assert picture.size == (size, size) and picture.mode == "RGB"


def test_a_scene_is_the_same_at_every_size():
    for seed in (4, 11):
        small = np.asarray(draw_scene(seed, 128).picture, float)
        large = np.asarray(draw_scene(seed, 256).picture.resize((128, 128)), float)
        assert np.abs(small - large).mean() < 4


def test_pictures_are_not_flat(scenes):
    assert all(np.asarray(scene.picture).std() > 8 for scene in scenes)


def test_smooth_enough_for_a_factor_eight_autoencoder(scenes):
    """Little may be lost when a picture is halved and enlarged again: no one-pixel marks."""
    losses = []
    for scene in scenes[:40]:
        half = scene.picture.resize((64, 64), 4).resize((128, 128), 2)
        error = np.asarray(scene.picture, float) - np.asarray(half, float)
        losses.append(10 * np.log10(255**2 / (error**2).mean()))
    assert np.mean(losses) > 30


def test_captions_are_short_lower_case_and_of_few_words(scenes):
    vocabulary = set()
    for scene in scenes:
        assert json.loads(json.dumps(scene.facts)) == scene.facts
        assert scene.caption == scene.caption.lower().strip()
        assert len(scene.caption.split()) <= 30
        assert not re.search(r"\ba [aeiou]|, ,|  |_|none", scene.caption)
        vocabulary |= set(words(scene.caption))
    assert "sks" not in vocabulary
    assert len(vocabulary) <= 120


def test_captions_name_only_what_the_facts_hold(scenes):
    for scene in scenes:
        said, facts = set(words(scene.caption)), scene.facts
        if "moon" in said:
            assert facts["moon"] and facts["time"] == "night"
        if "stars" in said:
            assert facts["stars"] and facts["time"] == "night"
        if "night" in said:
            assert facts["time"] == "night"
        if said & {"house", "houses"}:
            assert facts["houses"]
            named = re.findall(r"(\w+) house\b", scene.caption)
            assert all(name in WALLS and name in facts["houses"] for name in named)
        for thing in ("lake", "sea", "river"):
            assert (thing not in said) or facts["water"] == thing
        if said & {"boat", "boats"}:
            assert facts["sailing_boats"] or facts["rowing_boats"]
        assert "mountains" not in said or facts["mountains"]
        assert "path" not in said or facts["path"]
        assert "sun" not in said or facts["sun"]


def test_every_part_of_the_world_turns_up(scenes):
    facts = [scene.facts for scene in scenes]
    assert {f["time"] for f in facts} == set(TINTS)
    assert {"lake", "sea", "river", None} == {f["water"] for f in facts}
    assert {"full", "crescent", None} == {f["moon"] for f in facts}
    assert len({f["ground"] for f in facts} - {None}) == 6
    things = """sun clouds mist mountains snow_caps hills path houses lit_windows sailing_boats
    rowing_boats conifers broadleaves forest overcast stars northern_lights lighthouse"""
    for thing in things.split():
        assert any(f[thing] for f in facts), thing


def test_the_picture_bears_out_the_facts(scenes):
    """Nights are darker than days, and a sun or full moon is the brightest thing in the sky."""

    def light(scene):
        return np.asarray(scene.picture.convert("L"), float)

    by_time = {
        when: [light(s).mean() for s in scenes if s.facts["time"] == when]
        for when in ("day", "night")
    }
    assert np.mean(by_time["night"]) < 0.6 * np.mean(by_time["day"])
    for scene in scenes:
        if scene.facts["moon"] == "full":
            assert light(scene)[:80].max() > 190
    red = [s for s in scenes if s.facts["houses"] == ["red"] and s.facts["time"] == "day"]
    for scene in red:
        r, g, b = np.asarray(scene.picture, int).transpose(2, 0, 1)
        assert ((r > g + 50) & (r > b + 50)).sum() > 60


@pytest.mark.parametrize("draw", [draw_scene, dead_leaves])
def test_fast_enough(draw):
    """15 ms or so on one core; the bound leaves room for a slow, busy machine."""
    draw(0)
    start = time.process_time()
    for seed in range(20):
        draw(seed)
    assert (time.process_time() - start) / 20 < 0.06
