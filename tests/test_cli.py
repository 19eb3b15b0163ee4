"""The command line: what it does, and the one sentence it says when it cannot."""

import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stylenb
from stylenb.__main__ import main

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

    module = types.ModuleType("stylenb.inference")
    module.stylize = stylize
    monkeypatch.setitem(sys.modules, "stylenb.inference", module)
    return calls


def arguments(photo, output, *more):
    return ["stylize", str(photo), "--style", "ink", "--output", str(output), *more]


def test_stylize_passes_everything_on(photo, tmp_path, stylize_calls, capsys):
    output = tmp_path / "out.png"
    more = "--strength 0.4 --scale -1 --steps 7 --seed 3 --base sd15 --fit pad".split()
    assert main(arguments(photo, output, *more)) == 0
    assert stylize_calls == [
        dict(style="ink", strength=0.4, scale=-1.0, steps=7, seed=3, base="sd15", fit="pad")
    ]
    said = capsys.readouterr()
    assert said.out.startswith(str(output)) and said.out.endswith(" s)\n") and not said.err
    assert Image.open(output).size == (96, 64)


def test_defaults_are_left_to_the_base(photo, tmp_path, stylize_calls):
    assert main(arguments(photo, tmp_path / "out.jpg")) == 0
    assert stylize_calls == [
        dict(style="ink", strength=None, scale=1.0, steps=None, seed=0, base="pocket", fit="crop")
    ]


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
    assert "free disk space" in capsys.readouterr().err
    assert output.read_text() == "older"
    assert len(list(tmp_path.iterdir())) == 2


BAD_VALUES = [
    *("--strength 0", "--strength 1.01", "--strength nan", "--strength high"),
    *("--scale 5", "--scale -3", "--scale inf", "--steps 0", "--steps 1001", "--steps 1.5"),
    *("--seed -1", "--seed x", f"--seed {2**64}", "--fit stretch", "--colour red"),
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


def test_a_bad_photo_is_one_line(tmp_path, stylize_calls, capsys):
    letter = tmp_path / "letter.jpg"
    letter.write_text("Dear reader")
    for path, part in ((letter, "not a picture"), (tmp_path / "gone.png", "no file")):
        assert main(arguments(path, tmp_path / "out.png")) == 2
        error = capsys.readouterr().err
        assert part in error and path.name in error and error.count("\n") == 1


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

    module = types.ModuleType("stylenb.inference")
    module.stylize = stylize
    monkeypatch.setitem(sys.modules, "stylenb.inference", module)
    assert main(arguments(photo, tmp_path / "out.png")) == 2
    assert "'peft' is missing" in capsys.readouterr().err


def test_public_names_are_found_on_first_use():
    for name in stylenb.__all__:
        assert getattr(stylenb, name) is not None and name in dir(stylenb)
    assert callable(stylenb.stylize)
    with pytest.raises(AttributeError, match="no_such_name"):
        stylenb.no_such_name  # noqa: B018


def test_a_lora_file_on_a_model_folder(photo, tmp_path, tiny_folder, gradient):
    model = stylenb.load(tiny_folder, device="cpu")
    pictures = [gradient.resize((64, 64)).rotate(90 * i) for i in range(4)]
    settings = stylenb.Settings(rank=2, steps=2, batch_size=2, lpips_weight=0.0, style_weight=0.0)
    stylenb.train_style(model, pictures, None, "mine", settings, progress=False)
    lora = stylenb.save_lora(model, tmp_path / "mine.safetensors", "mine")
    output = tmp_path / "out.png"
    command = ["stylize", photo, "--style", lora, "--output", output, "--base", tiny_folder]
    command = [str(part) for part in [*command, "--steps", 3, "--strength", 0.7]]
    assert main(command) == 0
    first = output.read_bytes()
    assert Image.open(output).size == (64, 64)
    assert main(command) == 0
    assert output.read_bytes() == first  # the same seed gives the same bytes
    assert main([*command, "--seed", "1"]) == 0
    assert output.read_bytes() != first


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
    assert str(output) in run(*command, "--steps", 4).stdout
    picture = Image.open(output)
    assert picture.size == (128, 128)
    assert np.asarray(picture).std() > 10


@pytest.mark.pocket_model
def test_an_unknown_style_names_the_choices(photo, tmp_path, capsys):
    arguments = ["stylize", str(photo), "--style", "nope", "--output", str(tmp_path / "o.png")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "nope" in error and next(iter(stylenb.available_styles())) in error
