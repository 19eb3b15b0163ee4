"""The drawn world: same seed, same bytes; and captions that say what is there."""

import json
import re
import time

import numpy as np
import pytest

from stylenb.pocket.scenes import TINTS, WALLS, draw_scene
from stylenb.pocket.shapes import dead_leaves

SEEDS = range(500, 620)


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(seed) for seed in SEEDS]


def words(caption):
    return re.findall(r"[a-z]+", caption)


def test_same_seed_gives_the_same_bytes(scenes):
    for seed in (500, 507, 533):
        again = draw_scene(seed)
        first = scenes[seed - SEEDS.start]
        assert again.picture.tobytes() == first.picture.tobytes()
        assert (again.caption, again.facts) == (first.caption, first.facts)
        assert dead_leaves(seed).tobytes() == dead_leaves(seed).tobytes()


def test_different_seeds_give_different_pictures(scenes):
    assert len({scene.picture.tobytes() for scene in scenes}) == len(scenes)
    assert len({scene.caption for scene in scenes}) > 0.9 * len(scenes)
    assert len({dead_leaves(seed).tobytes() for seed in range(40)}) == 40


@pytest.mark.parametrize("draw", [lambda s, n: draw_scene(s, n).picture, dead_leaves])
def test_size_and_mode(draw):
    for size in (64, 128, 256):
        picture = draw(3, size)
        assert picture.size == (size, size) and picture.mode == "RGB"
    assert draw(3, 128).tobytes() == draw(3, 128).tobytes()


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
    for thing in (
        "sun",
        "clouds",
        "mist",
        "mountains",
        "snow_caps",
        "hills",
        "path",
        "houses",
        "lit_windows",
        "sailing_boats",
        "rowing_boats",
        "conifers",
        "broadleaves",
        "forest",
        "overcast",
        "stars",
        "northern_lights",
        "lighthouse",
    ):
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
