"""The command line: `python -m stylenb stylize | styles | doctor`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from .errors import StylenbError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if it worked, 2 after one sentence on stderr if it did not."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except StylenbError as error:
        print(f"stylenb: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "stylenb":
            raise
        print(
            f"stylenb: the package {error.name!r} is missing: run "
            "`pip install -r requirements.txt`.",
            file=sys.stderr,
        )
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stylenb", description="Draw a photo in another art style."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    stylize = commands.add_parser("stylize", help="draw a photo in a style")
    stylize.set_defaults(run=_stylize)
    stylize.add_argument("photo", metavar="PHOTO", help="a picture file of any size and kind")
    stylize.add_argument(
        "--style", required=True, metavar="NAME", help="see `styles`; or a LoRA .safetensors file"
    )
    stylize.add_argument(
        "--output", required=True, metavar="FILE", help="where the picture goes (.png, .jpg, ...)"
    )
    stylize.add_argument(
        "--strength",
        type=_number(float, 0, 1, above=True),
        help="how far the photo may change, above 0 and up to 1 (default: the base's own)",
    )
    stylize.add_argument(
        "--scale",
        type=_number(float, -2, 4),
        default=1.0,
        help="how much of the LoRA is added, -2 to 4 (default: 1)",
    )
    stylize.add_argument(
        "--steps", type=_number(int, 1, 1000), help="denoising steps (default: the base's own)"
    )
    stylize.add_argument(
        "--seed", type=_number(int, 0, 2**63 - 1), default=0, help="of the noise (default: 0)"
    )
    stylize.add_argument(
        "--base", default="pocket", help="pocket, sd15 or a model folder (default: pocket)"
    )
    stylize.add_argument(
        "--fit",
        choices=("crop", "pad"),
        default="crop",
        help="make the photo square by cropping or by padding (default: crop)",
    )

    styles = commands.add_parser("styles", help="list the styles to choose from")
    styles.set_defaults(run=_styles)
    doctor = commands.add_parser("doctor", help="what is installed, and what works here")
    doctor.set_defaults(run=_doctor)
    return parser


def _number(kind, low, high, above=False):
    """An argparse type: a number of low..high (of more than low if `above`)."""
    limits = f"above {low} and up to {high}" if above else f"from {low} to {high}"

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        # written so that NaN fails
        if value is None or not (low < value <= high or (value == low and not above)):
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} must be {noun} {limits}")
        return value

    return parse


def _stylize(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    # Everything that can be wrong is looked at before torch is loaded, which takes seconds.
    output = _check_output(options.output)
    from .photos import open_photo

    photo = open_photo(options.photo)
    from .inference import stylize

    picture = stylize(
        photo,
        style=options.style,
        strength=options.strength,
        scale=options.scale,
        steps=options.steps,
        seed=options.seed,
        base=options.base,
        fit=options.fit,
    )
    _save(picture, output)
    print(f"{output} ({time.perf_counter() - start:.1f} s)")


def _check_output(text: str) -> Path:
    from PIL import Image

    output = Path(text).expanduser()
    Image.init()
    kind = Image.registered_extensions().get(output.suffix.lower())
    if kind not in Image.SAVE or kind not in ("PNG", "JPEG", "WEBP", "TIFF", "BMP"):
        raise StylenbError(f"'{output}' must end in .png, .jpg, .webp, .tif or .bmp.")
    if output.is_dir():
        raise StylenbError(f"'{output}' is a folder: name a file inside it.")
    if not output.parent.is_dir():
        raise StylenbError(f"There is no folder '{output.parent}': make it first.")
    if not os.access(output.parent, os.W_OK):
        raise StylenbError(f"The folder '{output.parent}' is write-protected: choose another.")
    return output


def _save(picture, output: Path) -> None:
    """Write under a temporary name first, so that a full disk leaves no half picture."""
    handle, temporary = tempfile.mkstemp(dir=output.parent, prefix=".", suffix=output.suffix)
    os.close(handle)
    try:
        picture.save(temporary, **({"quality": 95} if output.suffix.lower() != ".png" else {}))
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's is for the owner alone
        os.replace(temporary, output)
    except OSError as error:
        raise StylenbError(f"'{output}' cannot be written ({error}): free disk space.") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _styles(options: argparse.Namespace) -> None:
    from .lora import available_styles

    styles = available_styles()
    if not styles:
        raise StylenbError("No style is shipped here: clone the repository with its data folder.")
    for name, path in styles.items():
        print(f"{name:<16} {path}")


def _doctor(options: argparse.Namespace) -> None:
    from .doctor import report

    print(report())


if __name__ == "__main__":
    sys.exit(main())
