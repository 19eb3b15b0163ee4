"""Folders: what is used of one, and whole ones stylised without losing or mixing a picture."""

import copy
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from stylenb import (
    Settings,
    StylenbError,
    load,
    open_photo,
    read_folder,
    remove_lora,
    sample_photo,
    stylize,
    stylize_folder,
    train_style,
)
from stylenb.folders import open_pictures


def encoded(picture, kind, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


PNG = encoded(sample_photo("brick", 64), "PNG")
JPEG = encoded(sample_photo("brick", 64), "JPEG")

# --- reading ---


def as_stored(folder):
    """Everything that lies under a folder: name, time of change and content."""
    return {
        str(file): (file.lstat().st_mtime_ns, file.read_bytes() if file.is_file() else None)
        for file in [folder, *folder.rglob("*")]
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory, gradient):
    """Seven pictures of every kind, and all that lies beside pictures in real folders."""
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue")]
    deep = Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16))
    files = {
        "a_turned.jpg": encoded(gradient.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=turned),
        "b_cmyk.jpg": encoded(gradient.convert("CMYK"), "JPEG"),
        "c_moving.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "d_sixteen_bits.png": encoded(deep, "PNG"),
        "e_clear.png": encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "PNG"),
        "f_no_suffix": PNG,
        "G é upper case.PNG": PNG,
        ".hidden.png": PNG,
        "._a_turned.jpg": b"\0\5\x16\7 resource fork",
        ".ipynb_checkpoints/a_turned-checkpoint.png": PNG,
        "Thumbs.db": b"\xd0\xcf\x11\xe0",
        "Desktop.ini": b"[.ShellClassInfo]",
        "caption 1.txt": b"a house by the sea",
        "caption 2.txt": b"a boat",
        "cut.jpg": JPEG[: len(JPEG) // 2],
        "empty.png": b"",
        "huge.png": encoded(Image.new("1", (10_001, 10_000)), "PNG"),
        "icon.png": encoded(Image.new("RGB", (15, 15)), "PNG"),
        "letter.jpg": b"Dear reader",
        "more/inside.png": PNG,
        "strip.png": encoded(Image.new("L", (20 * 17 * 2, 17)), "PNG"),
    }
    folder = tmp_path_factory.mktemp("read") / "photos"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "z_gone.png").symlink_to(folder.parent / "gone.png")
    return folder


USED = ["G é upper case.PNG", "a_turned.jpg", "b_cmyk.jpg", "c_moving.gif"]
USED += ["d_sixteen_bits.png", "e_clear.png", "f_no_suffix"]
SKIPPED = {
    "hidden": ["._a_turned.jpg", ".hidden.png", ".ipynb_checkpoints"],
    "made by the system": ["Desktop.ini", "Thumbs.db"],
    "not a picture that can be read here": ["caption 1.txt", "caption 2.txt", "letter.jpg"],
    "damaged or cut off": ["cut.jpg"],
    "empty": ["empty.png"],
    "too large (over 100 megapixels)": ["huge.png"],
    "too small (under 16 pixels)": ["icon.png"],
    "a folder": ["more"],
    "too long (over 20:1)": ["strip.png"],
    "cannot be read": ["z_gone.png"],
}


def test_a_folder_gives_its_pictures_in_order_and_says_what_it_skipped(folder):
    before = as_stored(folder)
    found = read_folder(folder, 32)
    assert found.names == USED and len(found) == len(found.pictures) == 7
    assert found.skipped == sorted((f, why) for why in SKIPPED for f in SKIPPED[why])
    assert as_stored(folder) == before
    title, *rows = found.table(most=2).splitlines()
    assert str(folder) in title and repr(found) == found.table()
    assert sum(int(row.split()[0]) for row in rows) == len(list(folder.iterdir()))
    assert rows[0].split() == "7 used G é upper case.PNG, a_turned.jpg, and 5 more".split()
    for reason, names in SKIPPED.items():
        (row,) = [row for row in rows if f"skipped, {reason} " in row]
        assert int(row.split()[0]) == len(names) and names[0] in row


@pytest.mark.parametrize("options", [(32,), ((40, 24), "pad"), (None,)], ids=str)
def test_the_pictures_of_a_folder_are_as_open_photo_gives_them(folder, options):
    found = read_folder(str(folder), *options)
    for name, picture in zip(found.names, found.pictures, strict=True):
        expected = open_photo(folder / name, *options)
        assert picture.mode == "RGB" and picture.tobytes() == expected.tobytes(), name
    assert options != (None,) or found.pictures[1].size == (96, 64)  # the turned one


def test_names_that_no_screen_can_show_are_no_error(tmp_path):
    for name in ("a\nb.png", b"\xff\xfe.png".decode("utf-8", "surrogateescape")):
        (tmp_path / name).write_bytes(PNG)
    table = read_folder(tmp_path, 32, minimum=2).table()
    assert "a?b.png" in table and len(table.splitlines()) == 2
    table.encode()


def filled(folder, count, *others):
    folder.mkdir()
    for i in range(count):
        (folder / f"{i}.png").write_bytes(PNG)
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(PNG if name.endswith(".png") else b"Dear reader")
    return folder


def told(call) -> str:
    """The one sentence that a call raises."""
    with pytest.raises(StylenbError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


BAD_READS = {
    "missing": (lambda p: read_folder(p / "gone", 32), "There is no folder '"),
    "a file": (lambda p: read_folder(filled(p / "x", 1) / "0.png", 32), "is not a folder"),
    "null byte": (lambda p: read_folder("a\0b", 32), "'a?b' cannot be read"),
    "none": (lambda p: read_folder(None, 32), "not as NoneType"),
    "empty": (
        lambda p: read_folder(filled(p / "x", 0), 32),
        "no pictures that can be used, of the 4 that are needed (skipped: nothing): put 4 more",
    ),
    "three": (
        lambda p: read_folder(filled(p / "x", 3, "a.txt", "b.txt", ".c"), 32),
        "3 pictures that can be used, of the 4 that are needed (skipped: 1 hidden, "
        "2 not a picture that can be read here): put 1 more JPEG, PNG or WebP",
    ),
    "one of two": (
        lambda p: read_folder(filled(p / "x", 1), 32, minimum=2),
        "holds 1 picture that can be used, of the 2",
    ),
    "a folder too deep": (
        lambda p: read_folder(filled(p / "x", 0, "inside/a.png"), 32),
        "name the folder inside it in which the pictures lie",
    ),
    "size": (lambda p: read_folder(filled(p / "x", 4), 7), "size must be"),
    "fit": (lambda p: read_folder(filled(p / "x", 4), 32, "stretch"), "'crop', 'pad'"),
}


@pytest.mark.parametrize("case", BAD_READS)
def test_a_bad_folder_is_one_sentence(case, tmp_path):
    call, part = BAD_READS[case]
    assert part in told(lambda: call(tmp_path))


def test_enough_pictures_are_enough(tmp_path):
    assert len(read_folder(filled(tmp_path / "four", 4), 32)) == 4
    assert read_folder(filled(tmp_path / "none", 0), 32, minimum=0).pictures == []


# --- stylising ---


@pytest.fixture(scope="module")
def base(tiny):
    own = copy.copy(tiny)
    own.unet = copy.deepcopy(tiny.unet)
    return own


def fill(path):
    """Three photos, two of one stem, and what else lies about in folders."""
    path.mkdir()
    for photo, name in (("chelsea", "cat.png"), ("coffee", "cup.jpg"), ("rocket", "cup.webp")):
        sample_photo(photo, 64).save(path / name)
    (path / "cat.txt").write_text("Dear reader")
    (path / ".hidden").write_text("")
    (path / "Thumbs.db").write_text("")
    (path / "broken.jpg").write_bytes((path / "cup.jpg").read_bytes()[:300])
    (path / "more").mkdir()
    return path


@pytest.fixture
def photos(tmp_path):
    return fill(tmp_path / "photos")


@pytest.fixture(scope="module")
def drawn(base, lora_files, tmp_path_factory):
    """Photos, their pictures and their style, for tests that change none of them."""
    path = tmp_path_factory.mktemp("drawn")
    (path / "own.safetensors").write_bytes(lora_files["a"].read_bytes())
    done = fill(path / "photos"), path / "new" / "pictures", path / "own.safetensors"
    run(*done, base, seed=5)
    return done


NAMES = ["cat.png", "cup.jpg.png", "cup.webp.png"]


def run(folder, output, style, base, **how):
    how = {"num_inference_steps": 2, "progress": False, "size": 64, **how}
    return stylize_folder(folder, output, style, base=base, **how)


def listed(output):
    return sorted(path.name for path in output.iterdir())


def contents(output):
    return {name: (output / name).read_bytes() for name in listed(output)}


def stamps(output):
    return {path.name: path.stat().st_mtime_ns for path in output.iterdir()}


def test_a_folder_of_photos(base, photos, lora_files, tmp_path, capsys):
    output = tmp_path / "new" / "pictures"
    before = as_stored(photos)
    done = run(photos, output, lora_files["a"], base, seed=5, solver="ddim", progress=True)
    assert listed(output) == NAMES
    assert done.drawn == ["cat.png", "cup.jpg", "cup.webp"] and not done.there
    assert done.skipped == [
        (".hidden", "hidden"),
        ("Thumbs.db", "made by the system"),
        ("broken.jpg", "damaged or cut off"),
        ("cat.txt", "not a picture that can be read here"),
        ("more", "a folder"),
    ]
    how = {"num_inference_steps": 2, "seed": 5, "solver": "ddim", "base": base, "size": 64}
    for name, target in zip(done.drawn, NAMES, strict=True):
        alone = np.int16(stylize(photos / name, lora_files["a"], **how))
        assert np.abs(alone - np.asarray(Image.open(output / target))).max() <= 1
    assert "photos: 100%" in capsys.readouterr().err
    for line in ("    3  drawn", "    0  there already", "    1  skipped, a folder"):
        assert line in str(done)
    assert as_stored(photos) == before


def test_what_is_there_is_not_drawn_again(base, photos, tmp_path):
    output = tmp_path / "pictures"
    assert len(run(photos, output, None, base, batch_size=1).drawn) == 3
    for name in ("cat.txt", "broken.jpg"):
        (photos / name).unlink()
    (output / "cup.jpg.png").unlink()
    first = stamps(output)
    again = run(photos, output, None, base)
    assert (again.drawn, again.there) == (["cup.jpg"], ["cat.png", "cup.webp"])
    assert {k: v for k, v in stamps(output).items() if k != "cup.jpg.png"} == first
    third = run(photos, output, None, base)
    assert (third.drawn, len(third.there)) == ([], 3)


OTHER = {
    "strength": {"strength": 0.3},
    "num_inference_steps": {"num_inference_steps": 3},
    "scale": {"scale": {"up": 0.5}},
    "seed": {"seed": 1},
    "solver": {"solver": "dpm"},
    "fit": {"fit": "pad"},
    "keep_colours": {"keep_colours": True},
    "size": {"size": 48},
    "original_size": {"original_size": True},
}


@pytest.mark.parametrize("case", [*OTHER, "style", "trained anew", "base"])
def test_two_looks_are_not_mixed_in_a_folder(case, base, drawn, lora_files):
    folder, output, style = drawn
    before, learned = stamps(output), style.read_bytes()
    how = {"style": style, "base": base, "seed": 5, **OTHER.get(case, {})}
    if case == "style":
        how["style"] = {style: 1.0, lora_files["b"]: 0.1}
    elif case == "trained anew":
        style.write_bytes(lora_files["b"].read_bytes())
    elif case == "base":
        how["base"] = copy.copy(base)
        how["base"].name = "another"
    key = "style" if case == "trained anew" else case
    try:
        assert f"in another way (cat.png: {key} was " in told(lambda: run(folder, output, **how))
    finally:
        style.write_bytes(learned)
    assert stamps(output) == before
    assert len(run(folder, output, style, base, seed=5).there) == 3  # as it was drawn, it is kept


@pytest.fixture
def shapes(tmp_path, gradient):
    """Photos of four shapes, one after the other."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    for i, size in enumerate([(96, 64), (64, 96), (64, 64), (90, 60), (200, 20), (64, 96)]):
        gradient.resize(size).rotate(180 * (i % 2)).save(folder / f"{i}.png")
    return folder


def test_a_folder_of_all_shapes_resumes(base, shapes, tmp_path):
    output, how = tmp_path / "pictures", {"solver": "ddim", "num_inference_steps": 1, "seed": 2}
    run(shapes, output, None, base, **how)
    opened = {name: Image.open(output / name) for name in listed(output)}
    sizes = [picture.size for picture in opened.values()]
    assert sizes == [(64, 43), (43, 64), (64, 64), (64, 43), (64, 16), (43, 64)]
    for name, picture in opened.items():
        alone = np.int16(stylize(shapes / name, base=base, size=64, **how))
        assert np.abs(alone - np.asarray(picture)).max() <= 1
    before = stamps(output)
    for name in ("1.png", "3.png"):
        (output / name).unlink()
    again = run(shapes, output, None, base, batch_size=1, **how)
    assert (again.drawn, len(again.there)) == (["1.png", "3.png"], 4)
    assert {
        k: v for k, v in stamps(output).items() if k not in again.drawn
    }.items() <= before.items()
    for name in again.drawn:
        new = np.int16(Image.open(output / name))
        assert np.abs(new - np.asarray(opened[name])).max() <= 1


def test_a_folder_at_the_size_of_the_photos(base, shapes, tmp_path):
    output, how = tmp_path / "pictures", {"solver": "ddim", "num_inference_steps": 1}
    run(shapes, output, None, base, original_size=True, **how)
    for name in listed(output):
        assert Image.open(output / name).size == Image.open(shapes / name).size
    told = json.loads(Image.open(output / "0.png").info["stylenb"])
    assert (told["size"], told["fit"], told["original_size"]) == (64, "whole", True)


def test_the_default_size_is_told_too(base, tmp_path, gradient):
    folder, output = tmp_path / "photos", tmp_path / "pictures"
    folder.mkdir()
    gradient.save(folder / "a.png")
    how = {"solver": "ddim", "num_inference_steps": 1, "fit": "crop"}
    run(folder, output, None, base, size=None, **how)
    assert Image.open(output / "a.png").size == (128, 128)
    assert run(folder, output, None, base, size=128, **how).there  # of squares it is the same
    how["fit"] = "whole"
    run(folder, output, None, base, size=None, overwrite=True, **how)
    assert Image.open(output / "a.png").size == (128, 85)
    assert run(folder, output, None, base, size=None, **how).there
    said = told(lambda: run(folder, output, None, base, size=128, **how))
    assert "size was '128 or more' and is 128" in said


def test_overwriting_draws_all_anew(base, photos, lora_files, tmp_path):
    output, how = tmp_path / "pictures", {"solver": "ddim", "num_inference_steps": 1}
    run(photos, output, lora_files["a"], base, **how)
    before = contents(output)
    done = run(photos, output, lora_files["a"], base, seed=1, overwrite=True, **how)
    assert len(done.drawn) == 3 and not done.there and listed(output) == NAMES
    assert all(data != before[name] for name, data in contents(output).items())
    assert len(run(photos, output, lora_files["a"], base, seed=1, **how).there) == 3


def test_a_file_that_is_no_picture_of_ours_is_never_overwritten(base, photos, tmp_path):
    output = tmp_path / "pictures"
    output.mkdir()
    sample_photo("moon", 64).save(output / "cat.png")
    mine = contents(output)
    done = run(photos, output, None, base)
    assert dict(done.skipped)["cat.png"] == "cat.png is there and not its picture"
    assert (output / "cat.png").read_bytes() == mine["cat.png"]
    assert done.drawn == ["cup.jpg", "cup.webp"]
    for name in done.drawn:
        (photos / name).unlink()
    assert not run(photos, output, None, base).drawn  # which is no error: the folder holds a photo
    run(photos, output, None, base, overwrite=True)
    assert (output / "cat.png").read_bytes() != mine["cat.png"]


def test_no_two_photos_share_a_picture(base, tmp_path):
    folder, output = tmp_path / "photos", tmp_path / "pictures"
    folder.mkdir()
    photo = sample_photo("coffee", 64)
    for name in ("a.jpg", "a.png", "A.webp", "a.png.bmp", "b.tif"):
        photo.save(folder / name)
    photo.save(folder / "b", format="PNG")
    done = run(folder, output, None, base, num_inference_steps=1)
    assert len(done.drawn) == len({name.casefold() for name in listed(output)}) == 6
    assert {"b.png", "a.jpg.png"} <= set(listed(output))
    told = [json.loads(Image.open(output / name).info["stylenb"]) for name in listed(output)]
    assert sorted(one["photo"] for one in told) == sorted(done.drawn)
    assert len(run(folder, output, None, base, num_inference_steps=1).there) == 6


def test_a_picture_that_cannot_be_written_leaves_what_was_there(
    base, photos, tmp_path, monkeypatch
):
    output, save = tmp_path / "pictures", Image.Image.save
    run(photos, output, None, base, num_inference_steps=1)
    before = contents(output)

    def full(self, path, **options):
        save(self, path, **options)
        if "cup.jpg" in str(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    how = {"num_inference_steps": 1, "solver": "ddim", "overwrite": True}
    with pytest.raises(StylenbError, match="cup.jpg.png' cannot be written, the disk is full: "):
        run(photos, output, None, base, **how)
    assert listed(output) == NAMES
    changed = [data != before[name] for name, data in contents(output).items()]
    assert changed == [True, False, False]


BAD_RUNS = {
    "gone, out": "There is no folder '",
    "a.txt, out": "is not a folder",
    "empty, out": "no pictures that can be used",
    "., out": "1 not a picture that can be read here, 1 a folder",
    "., empty/..": "where the photos are",
    "., a.txt": "is in the way",
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_a_bad_folder_to_stylise_is_one_sentence(case, base, tmp_path):
    (tmp_path / "a.txt").write_text("Dear reader")
    (tmp_path / "empty").mkdir()
    folder, output = (tmp_path / name for name in case.split(", "))
    assert BAD_RUNS[case] in told(lambda: run(folder, output, None, base))


def test_a_folder_takes_no_unknown_option(base, photos, tmp_path):
    with pytest.raises(TypeError, match="colour"):
        run(photos, tmp_path / "out", None, base, colour="red")
    with pytest.raises(StylenbError, match="seed is a whole number"):
        run(photos, tmp_path / "out", None, base, seed=[1, 2])


def test_a_training_takes_whatever_holds_pictures(tiny_folder, tmp_path, gradient):
    """A folder, what was read from it, paths, arrays, pictures: all come to the same."""
    base, folder = load(tiny_folder, device="cpu"), tmp_path / "style"
    folder.mkdir()
    for i in range(4):
        gradient.rotate(40 * i).resize((100 + i, 80)).save(folder / f"{i}.png")
    paths = sorted(folder.iterdir())
    expected = [open_photo(path, 64) for path in paths]
    ways = {
        "text": str(folder),
        "path": folder,
        "read": read_folder(folder, 64, minimum=1),
        "paths": paths,
        "texts": iter(map(str, paths)),
        "arrays": [np.asarray(open_photo(path)) for path in paths],
        "mixed sizes": tuple(open_photo(path) for path in paths),
        "transparent": [one.convert("RGBA") for one in expected],
    }
    for way, given in ways.items():
        assert open_pictures(base, given) == [expected], way
    large = [one.resize((128, 128)) for one in expected]
    assert open_pictures(base, large, large[:1]) == [large, large[:1]]  # a size that suits is kept
    halves = open_pictures(base, large, expected)
    assert {one.size for several in halves for one in several} == {(64, 64)}
    odd = [one.resize((100, 100)) for one in expected]
    assert [one.size for one in open_pictures(base, odd)[0]] == [(64, 64)] * 4
    settings = Settings(steps=1, batch_size=1, lpips_weight=0, style_weight=0, rank=1)
    found = []
    for given in (folder, expected):
        assert train_style(base, given, settings=settings, progress=False).finished
        weights = base.unet.state_dict()
        found.append({k: v.clone() for k, v in weights.items() if ".lora_" in k})
        remove_lora(base, "style")
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_a_photo_that_was_replaced_is_drawn_again(tmp_path, tiny, gradient):
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in "ab":
        gradient.save(photos / f"{name}.png")
    how = {"base": tiny, "num_inference_steps": 1, "progress": False}
    assert stylize_folder(photos, output, **how).drawn == ["a.png", "b.png"]
    assert stylize_folder(photos, output, **how).there == ["a.png", "b.png"]
    before = (output / "a.png").read_bytes()
    gradient.rotate(180).save(photos / "a.png")
    again = stylize_folder(photos, output, **how)
    assert (again.drawn, again.there) == (["a.png"], ["b.png"])
    assert (output / "a.png").read_bytes() != before
