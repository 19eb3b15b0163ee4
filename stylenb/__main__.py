"""The command line: `python -m stylenb stylize | styles | doctor`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Annotated

from .errors import StylenbError, replacing
from .limits import Guidance, Seed, Side, Strength, Timestep, Within, argument, as_path

Scale = Annotated[float, Within(-2, 4)]

_HELP = {
    "photo": "a picture file of any size and kind, or a folder of them",
    "--style": "see `styles`; or a LoRA .safetensors file; several, each with a weight, are mixed",
    "--output": "where the picture goes (.png, .jpg, ...); of a folder, the folder for PNG files",
    "--strength": "how far the photo may change, above 0 and up to 1 (default: the base's own)",
    "--scale": "how much of the LoRA is added, -2 to 4 (default: 1)",
    "--steps": "denoising steps (default: the base's own)",
    "--solver": "how to denoise (default: the base's own)",
    "--seed": "of the noise (default: 0)",
    "--base": "pocket, sd15 or a model folder (default: pocket)",
    "--size": "long side in pixels to draw at, 16 to 4096 (default: the base's own, or more where "
    "the short side needs it)",
    "--fit": "draw the whole photo, or a square: crop or pad it (default: whole)",
    "--original-size": "enlarge what was drawn to the photo's own size; this adds no detail",
    "--guidance-scale": "how far to go beyond the LoRA, from 1 up (default: as the LoRA asks)",
    "--keep-colours": "the style's strokes in the photo's colours",
    "--overwrite": "of a folder, draw anew what is there already",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if it worked, 2 after one sentence on stderr if it did not."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        return 0
    except StylenbError as error:
        problem = str(error)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "stylenb":
            raise
        problem = f"the package {error.name!r} is missing: run `pip install -r requirements.txt`."
    print(f"stylenb: {problem}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stylenb", description="Draw a photo in another art style."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    stylize = commands.add_parser("stylize", help="draw a photo, or a folder of them, in a style")
    stylize.set_defaults(run=_stylize)
    commands.add_parser("styles", help="list the styles to choose from").set_defaults(run=_styles)
    doctor = commands.add_parser("doctor", help="what is installed, and what works here")
    doctor.set_defaults(run=_doctor)

    def option(name: str, **settings) -> None:
        stylize.add_argument(name, help=_HELP[name], **settings)

    option("photo", metavar="PHOTO")
    option("--style", required=True, action="append", type=_style, metavar="NAME[=WEIGHT]")
    option("--output", required=True, metavar="FILE")
    option("--strength", type=argument(Strength))
    option("--scale", type=argument(Scale), default=1.0)
    option("--steps", type=argument(Timestep), dest="num_inference_steps")
    option("--solver", choices=("ddim", "inversion", "dpm"))
    option("--seed", type=argument(Seed), default=0)
    option("--base", default="pocket")
    option("--size", type=argument(Side), metavar="PIXELS")
    option("--fit", choices=("whole", "crop", "pad"), default="whole")
    option("--original-size", action="store_true")
    option("--guidance-scale", type=argument(Guidance))
    option("--keep-colours", action="store_true")
    option("--overwrite", action="store_true")
    return parser


def _style(text: str) -> tuple[str, float]:
    """An argparse type: a style and its weight, which is 1 unless it is told."""
    name, equals, weight = text.rpartition("=")
    if not equals or Path(text).is_file():
        return text, 1.0
    return name, argument(Scale)(weight)


def _stylize(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    # Everything that can be wrong is looked at before torch is loaded, which takes seconds.
    several = as_path(options.photo).is_dir()
    if several:
        output = as_path(options.output)
        if output.exists() and not output.is_dir():
            raise StylenbError(f"'{output}' is not a folder, and a folder of photos needs one.")
    else:
        output = _check_output(options.output)
        from .photos import open_photo

        photo = open_photo(options.photo)
        if output.exists() and output.samefile(as_path(options.photo)):
            raise StylenbError(f"'{output}' is the photo itself: give --output another name.")
    style = dict(options.style)
    if len(style) < len(options.style):
        raise StylenbError("Each --style is given once: add up the weights of one given twice.")
    others = ("run", "photo", "output", "overwrite")
    how = {k: v for k, v in vars(options).items() if k not in others} | {"style": style}

    if several:
        from .folders import stylize_folder

        done = stylize_folder(options.photo, output, overwrite=options.overwrite, **how).table()
    else:
        from .inference import stylize

        quality = {} if output.suffix.lower() == ".png" else {"quality": 95}
        picture = stylize(photo, **how)
        with replacing(output) as temporary:
            picture.save(temporary, **quality)
        done = output
    print(f"{done} ({time.perf_counter() - start:.1f} s)")


def _check_output(text: str) -> Path:
    from PIL import Image

    output = as_path(text)
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


def _styles(options: argparse.Namespace) -> None:
    from .weights import available_styles

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
