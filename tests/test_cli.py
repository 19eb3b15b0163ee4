"""The command line: what it does, and the one sentence it says when it cannot."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stylenb
from stylenb.__main__ import main
from stylenb.folders import StylizedFolder

ROOT = Path(stylenb.__file__).parent.parent


@pytest.fixture
def photo(gradient, tmp_path):
    path = tmp_path / "photo.jpg"
    gradient.save(path)
    return path


@pytest.fixture
def stylize_calls(monkeypatch):
    """Stands in for the model: records the arguments and turns the photo's colours around."""
    calls = []

    def stylize(image, **options):
        calls.append(options)
        return Image.fromarray(255 - np.asarray(image))

    def stylize_folder(folder, output, **options):
        calls.append({"folder": str(folder), "output": output, **options})
        return StylizedFolder(output, ["a.jpg"], [], [])

    monkeypatch.setattr("stylenb.inference.stylize", stylize)
    monkeypatch.setattr("stylenb.folders.stylize_folder", stylize_folder)
    return calls


def arguments(photo, output, *more):
    return ["stylize", str(photo), "--style", "ink", "--output", str(output), *more]


DEFAULTS = {
    "style": {"ink": 1.0},
    "strength": None,
    "scale": 1.0,
    "num_inference_steps": None,
    "seed": 0,
    "base": "pocket",
    "fit": "whole",
    "solver": None,
    "keep_colours": False,
    "size": None,
    "original_size": False,
    "guidance_scale": None,
}
MORE = "--strength 0.4 --scale -1 --steps 7 --seed 3 --base sd15 --fit pad --solver dpm --size 100"
MORE = [*MORE.split(), "--keep-colours", "--original-size", "--guidance-scale", "2"]
GIVEN = ({"ink": 1.0}, 0.4, -1.0, 7, 3, "sd15", "pad", "dpm", True, 100, True, 2.0)
GIVEN = dict(zip(DEFAULTS, GIVEN, strict=True))


def test_stylize_passes_everything_on_and_leaves_defaults_to_the_base(
    photo, tmp_path, stylize_calls, capsys
):
    output = tmp_path / "out.png"
    assert main(arguments(photo, output, *MORE)) == 0
    said = capsys.readouterr()
    assert said.out.startswith(str(output)) and said.out.endswith(" s)\n") and not said.err
    assert Image.open(output).size == (96, 64)
    assert main(arguments(photo, tmp_path / "out.jpg")) == 0
    assert stylize_calls == [GIVEN, DEFAULTS]


def test_a_folder_passes_everything_on(photo, tmp_path, stylize_calls, capsys):
    given = [tmp_path, tmp_path / "out"]
    assert main(arguments(*given)) == 0
    assert main(arguments(*given, *MORE, "--overwrite")) == 0
    folders = {"folder": str(tmp_path), "output": tmp_path / "out"}
    assert stylize_calls == [
        {**folders, **DEFAULTS, "overwrite": False},
        {**folders, **GIVEN, "overwrite": True},
    ]
    said = capsys.readouterr()
    assert "1  drawn" in said.out and said.out.endswith(" s)\n") and not said.err


def test_several_styles_have_weights(photo, tmp_path, stylize_calls, capsys):
    equal = tmp_path / "a=0.5"  # a file whose name looks like a style with a weight
    equal.write_text("")
    output = ["--output", str(tmp_path / "out.png")]
    for styles in (["ink=0.5", "neon=-1.5"], ["ink", "neon=2"], ["ink=0.5"], ["ink=1"], [equal]):
        options = [part for style in styles for part in ("--style", str(style))]
        assert main(["stylize", str(photo), *options, *output]) == 0
    assert [call["style"] for call in stylize_calls] == [
        {"ink": 0.5, "neon": -1.5},
        {"ink": 1.0, "neon": 2.0},
        {"ink": 0.5},
        {"ink": 1.0},
        {str(equal): 1.0},
    ]
    twice = ["--style", "ink=0.5", "--style", "ink=0.1"]
    assert main(["stylize", str(photo), *twice, *output]) == 2
    assert "Each --style is given once" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".webp", ".tif", ".bmp"])
def test_every_common_kind_is_written(photo, tmp_path, stylize_calls, suffix):
    output = tmp_path / f"out{suffix}"
    output.write_text("an older file is replaced")
    assert main(arguments(photo, output)) == 0
    assert Image.open(output).size == (96, 64)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["photo.jpg", output.name])


def test_a_failed_write_keeps_the_older_picture(
    photo, tmp_path, stylize_calls, monkeypatch, capsys
):
    output = tmp_path / "out.png"
    output.write_text("older")

    def full(self, path, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert main(arguments(photo, output)) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert output.read_text() == "older"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_photo_itself_is_never_written_over(
    photo, tmp_path, stylize_calls, capsys, monkeypatch
):
    before, link = photo.read_bytes(), tmp_path / "link.jpg"
    link.symlink_to(photo)
    monkeypatch.setenv("HOME", str(tmp_path))
    for output in (photo, tmp_path / "." / photo.name, link, f"~/{photo.name}"):
        assert main(arguments(photo, output)) == 2
        assert "is the photo itself: give --output another name" in capsys.readouterr().err
        assert photo.read_bytes() == before and link.is_symlink()
    assert not stylize_calls


BAD_VALUES = [
    *("--strength 0", "--strength 1.01", "--strength nan", "--strength high"),
    *("--scale 5", "--scale -3", "--scale inf", "--steps 0", "--steps 1001", "--steps 1.5"),
    *("--seed -1", "--seed x", f"--seed {2**64}", "--fit stretch", "--colour red"),
    "--guidance-scale 0.5",
    *("--size 0", "--size -5", "--size 15", "--size 3.5", "--size big", f"--size {10**9}"),
    *("--solver euler", "--style ink=much", "--style ink=5", "--style ink=nan", "--style ink="),
]


@pytest.mark.parametrize("more", BAD_VALUES)
def test_a_bad_value_names_the_option(photo, tmp_path, stylize_calls, more, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments(photo, tmp_path / "out.png", *more.split()))
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert more.split()[0] in last
    assert not stylize_calls


BAD_OUTPUTS = {
    "out": "must end in",
    "out.xyz": "must end in",
    "out.pdf": "must end in",
    "gone/out.png": "make it first",
    "folder.png": "is a folder",
}


@pytest.mark.parametrize("name", BAD_OUTPUTS)
def test_a_bad_output_is_found_before_the_work(photo, tmp_path, stylize_calls, name, capsys):
    (tmp_path / "folder.png").mkdir()
    assert main(arguments(photo, tmp_path / name)) == 2
    error = capsys.readouterr().err
    assert BAD_OUTPUTS[name] in error and error.count("\n") == 1
    assert not stylize_calls


@pytest.mark.parametrize(
    "source, output, part",
    [
        ("letter.jpg", "out.png", "letter.jpg' is not a picture"),
        ("gone.png", "out.png", "no file"),
        (".", "photo.jpg", "photo.jpg' is not a folder"),
    ],
)
def test_a_bad_photo_is_one_line(photo, tmp_path, stylize_calls, capsys, source, output, part):
    (tmp_path / "letter.jpg").write_text("Dear reader")
    assert main(arguments(tmp_path / source, tmp_path / output)) == 2
    error = capsys.readouterr().err
    assert part in error and source.strip(".") in error and error.count("\n") == 1
    assert not stylize_calls


# Two pictures at once, so that the kill finds some drawn and some not
KILLED = """if True:
    import sys
    from stylenb import inference
    from stylenb.__main__ import main
    inference.BATCH_PIXELS = 2 * 64 * 64
    main(sys.argv[1:])
    """


def run(*command, code=0):
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_mistakes_are_found_before_torch_is_loaded(photo, tmp_path):
    code = """if True:
        import sys
        import stylenb
        from stylenb.__main__ import main
        photo, folder = sys.argv[1:]
        for path, output in (("gone.png", "o.png"), (photo, "o.xyz"), (photo, "no/o.png")):
            stop = ["stylize", path, "--style", "ink", "--output", folder + "/" + output]
            assert main(stop) == 2
        assert "torch" not in sys.modules
        """
    assert run("-c", code, photo, tmp_path).stderr.count("stylenb: ") == 3


def test_help_and_no_command():
    assert "stylize" in run("-m", "stylenb", "--help").stdout
    assert "COMMAND" in run("-m", "stylenb", code=2).stderr


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    assert "Base 'pocket'" in capsys.readouterr().out


def test_a_missing_package_is_one_line(photo, tmp_path, monkeypatch, capsys):
    def stylize(*args, **options):
        raise ModuleNotFoundError("No module named 'peft'", name="peft")

    monkeypatch.setattr("stylenb.inference.stylize", stylize)
    assert main(arguments(photo, tmp_path / "out.png")) == 2
    assert "'peft' is missing" in capsys.readouterr().err


def test_public_names_are_found_on_first_use():
    for name in stylenb.__all__:
        assert getattr(stylenb, name) is not None and name in dir(stylenb)
    assert callable(stylenb.stylize)
    with pytest.raises(AttributeError, match="no_such_name"):
        stylenb.no_such_name  # noqa: B018


def test_a_lora_file_on_a_model_folder(photo, tmp_path, tiny_folder, lora_files, capsys):
    output = tmp_path / "out.png"
    more = f"--base {tiny_folder} --steps 3 --strength 0.7 --solver ddim --size 64"
    command = [
        "stylize",
        str(photo),
        "--style",
        str(lora_files["a"]),
        "--output",
        str(output),
        *more.split(),
    ]
    assert main(command) == 0
    first = output.read_bytes()
    assert Image.open(output).size == (64, 43)
    assert main(command) == 0
    assert output.read_bytes() == first  # the same seed gives the same bytes
    assert main([*command, "--seed", "1"]) == 0
    assert output.read_bytes() != first
    for more, size in (("--fit crop", (64, 64)), ("--original-size", (96, 64))):
        assert main([*command, *more.split()]) == 0
        assert Image.open(output).size == size
    capsys.readouterr()
    assert main([*command, "--fit", "pad", "--original-size"]) == 2
    error = capsys.readouterr().err
    assert "original_size needs the whole photo" in error and error.count("\n") == 1


def test_a_folder_resumes_where_it_was_killed(tmp_path, tiny_folder, lora_files, gradient, capsys):
    """A real SIGKILL, in the middle of a folder: what is there is whole, and is not drawn again."""
    folder, output = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for i in range(8):
        gradient.rotate(20 * i).save(folder / f"{i:02d}.png")

    def command(target):
        parts = ["stylize", folder, "--style", lora_files["a"], "--output", target, "--size", 64]
        return [
            str(part) for part in [*parts, "--base", tiny_folder, "--steps", 40, "--strength", 1]
        ]

    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *command(output)], cwd=ROOT, stderr=subprocess.PIPE
    )
    try:
        while not (output.is_dir() and list(output.glob("[!.]*.png"))):
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    there = {path: path.stat().st_mtime_ns for path in sorted(output.glob("[!.]*.png"))}
    assert 0 < len(there) < 8
    for path in there:
        assert Image.open(path).convert("RGB").size == (64, 43)  # decoded to its end
    assert main(command(output)) == 0
    drawn = 8 - len(there)
    assert f"{drawn:5}  drawn" in (said := capsys.readouterr().out)
    assert f"{len(there):5}  there already" in said
    assert sorted(p.name for p in output.iterdir()) == sorted(p.name for p in folder.iterdir())
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert main([*command(output), "--seed", "1"]) == 2
    assert "seed was 0 and is 1" in capsys.readouterr().err


# --- with the shipped model and styles ---


@pytest.mark.pocket_model
def test_styles_lists_what_is_shipped(capsys):
    assert main(["styles"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert len(listed) >= 4


@pytest.mark.pocket_model
def test_a_photo_in_a_shipped_style(tmp_path):
    photo, output = tmp_path / "chelsea.png", tmp_path / "out.png"
    stylenb.sample_photo("chelsea").save(photo)
    style = next(iter(stylenb.available_styles()))
    command = ["-m", "stylenb", "stylize", photo, "--style", style, "--output", output]
    assert str(output) in run(*command, "--steps", 4, "--size", 128).stdout
    picture = Image.open(output)
    assert picture.size == (128, 85)
    assert np.asarray(picture).std() > 10


@pytest.mark.pocket_model
def test_an_unknown_style_names_the_choices(photo, tmp_path, capsys):
    arguments = ["stylize", str(photo), "--style", "nope", "--output", str(tmp_path / "o.png")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "nope" in error and next(iter(stylenb.available_styles())) in error


@pytest.mark.parametrize("command", ["styles", "--help", "stylize --help", "stylize --colour red"])
def test_what_needs_no_model_loads_no_torch(command):
    """Which takes ten seconds on two cores."""
    code = (
        "import sys\nfrom stylenb.__main__ import main\n"
        f"try:\n    main({command.split()!r})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'diffusers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
