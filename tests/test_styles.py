import itertools
import time

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from stylenb.errors import StylenbError
from stylenb.pocket.styles import HELD_OUT, KNOWN, PHRASES, STYLES, apply_style

# Line drawings in the dark say where things are, not how bright they are.
LINES_ON_DARK = ("blueprint", "neon")


def photograph(width=128, height=128):
    return Image.fromarray(data.astronaut()).crop((60, 0, 380, 320)).resize((width, height))


def luma(picture):
    return np.asarray(picture.convert("L"), np.float32)


def outlines(picture, sigma=2.0):
    soft = cv2.GaussianBlur(luma(picture), (0, 0), sigma)
    size = np.hypot(cv2.Sobel(soft, -1, 1, 0), cv2.Sobel(soft, -1, 0, 1))
    return cv2.GaussianBlur(size, (0, 0), 2)


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def test_names_and_phrases():
    assert tuple(STYLES) == KNOWN + HELD_OUT == tuple(PHRASES)
    assert len(KNOWN) >= 6 and len(HELD_OUT) >= 6 and not set(KNOWN) & set(HELD_OUT)
    assert len(set(PHRASES.values())) == len(PHRASES)


@pytest.mark.parametrize("name", STYLES)
def test_same_seed_same_bytes_and_nothing_else_is_touched(name):
    picture, before = photograph(), photograph().tobytes()
    np.random.seed(1)
    first = apply_style(name, picture, 7).tobytes()
    np.random.seed(2)
    state = np.random.get_state()[1].copy()
    assert apply_style(name, picture, 7).tobytes() == first
    assert (np.random.get_state()[1] == state).all()
    assert apply_style(name, picture, 8).tobytes() != first
    assert picture.tobytes() == before


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("size", [(97, 131), (40, 64), (300, 200), (512, 512)])
def test_any_size_comes_back_as_it_was(name, size):
    styled = apply_style(name, photograph(*size), 0)
    assert styled.size == size and styled.mode == "RGB"


@pytest.mark.parametrize("name", STYLES)
def test_any_mode_and_a_flat_picture(name):
    for mode in ("L", "RGBA", "P", "CMYK"):
        assert apply_style(name, photograph().convert(mode), 0).mode == "RGB"
    for grey in (0, 128, 255):
        flat = apply_style(name, Image.new("RGB", (64, 64), (grey,) * 3), 0)
        assert flat.size == (64, 64)


@pytest.mark.parametrize("name", STYLES)
def test_quick(name):
    apply_style(name, photograph(), 0)
    fastest = np.inf
    for seed in range(4):
        start = time.process_time()
        apply_style(name, photograph(), seed)
        fastest = min(fastest, time.process_time() - start)
    assert fastest < 0.15


def test_no_two_styles_look_alike():
    styled = {n: np.asarray(apply_style(n, photograph(), 0), np.float32) for n in STYLES}
    for a, b in itertools.combinations(STYLES, 2):
        assert np.abs(styled[a] - styled[b]).mean() > 8, (a, b)


def test_photo_stays_near_its_source():
    difference = luma(apply_style("photo", photograph(), 0)) - luma(photograph())
    assert np.abs(difference).mean() < 12


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("size", [128, 384])
def test_the_scene_is_still_readable(name, size):
    source, styled = photograph(size, size), apply_style(name, photograph(size, size), 0)
    if name in LINES_ON_DARK:
        assert correlation(outlines(source), outlines(styled)) > 0.3
    else:
        soft = [cv2.GaussianBlur(luma(p), (0, 0), size / 32) for p in (source, styled)]
        assert correlation(*soft) > 0.7


def test_marks_have_one_size_unless_told(name="cross_stitch"):
    """A lattice of 8 px repeats every 8 px in a picture of any size, or `unit` times that."""
    for size, unit in ((128, 1), (256, 1), (256, 2)):
        flat = Image.new("RGB", (size, size), "brown")
        array = np.asarray(apply_style(name, flat, 0, unit), float)[..., 0]
        period = 8 * unit
        assert np.abs(array[period:] - array[:-period]).mean() < 1
        assert np.abs(array[period // 2 :] - array[: -period // 2]).mean() > 3
    for wrong in (0, 1.5, "2"):
        with pytest.raises(StylenbError, match="unit is a whole number"):
            apply_style(name, photograph(), 0, wrong)


def test_unknown_name_is_one_sentence_with_the_choices():
    with pytest.raises(StylenbError) as error:
        apply_style("cubism", photograph(), 0)
    text = str(error.value)
    assert "cubism" in text and all(name in text for name in STYLES) and "\n" not in text
