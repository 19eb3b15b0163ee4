"""Whole folders: every picture of one opened, or every photo of one stylised into another."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, PngImagePlugin
from tqdm.auto import tqdm

from .base import Base
from .errors import StylenbError, replacing
from .inference import StylizeSettings, batch_size_for, check_seeds, draw, in_style, open_base
from .limits import read
from .photos import Fit, check_size, open_photo

NOT_ITS_PICTURE = "is there and not its picture"
SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini")  # Windows puts them into folders


# ------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, repr=False)
class PictureFolder:
    """What read_folder found: `names[i]` is the file of `pictures[i]`, `skipped` (file, why)."""

    folder: Path
    pictures: list[Image.Image]
    names: list[str]
    skipped: list[tuple[str, str]]

    def __repr__(self) -> str:
        return self.table()

    def __len__(self) -> int:
        return len(self.pictures)

    def table(self, most: int = 4) -> str:
        """How many files were used, and how many were skipped for which reason; of each, the
        first `most` by name."""
        return _table(self.folder, {"used": self.names}, self.skipped, most)


def _table(folder: Path, groups: dict[str, list[str]], skipped: list, most: int) -> str:
    for name, reason in skipped:
        groups.setdefault(f"skipped, {reason}", []).append(name)
    width = max(map(len, groups))
    lines = [f"{str(folder)!r}"]
    for kind, names in groups.items():
        more = [f"and {len(names) - most} more"] if len(names) > most else []
        shown = ", ".join([_printable(name) for name in names[:most]] + more)
        lines.append(f"{len(names):5}  {kind:{width}}  {shown}".rstrip())
    return "\n".join(lines)


def read_folder(
    folder: str | os.PathLike,
    size: int | tuple[int, int] | None,
    fit: str = "crop",
    minimum: int = 4,
) -> PictureFolder:
    """Every picture of a folder in the order of their names, each as open_photo gives it.

    What is not a picture that can be used is skipped, with the reason: hidden and system files,
    folders in it (they are not entered), text, damaged, too small, too large. Nothing on the disk
    is changed. Show the result, or print its `.table()`, to see what became of each file.

    Raises StylenbError if the folder cannot be read or holds fewer than `minimum` pictures.
    """
    read("fit", fit, Fit)
    if size is not None:
        check_size(size)
    path, files = _list_folder(folder)
    found = PictureFolder(path, [], [], [])
    for file in files:
        try:
            reason = _reason_to_skip(file)
            if not reason:
                found.pictures.append(open_photo(file, size, fit))
                found.names.append(file.name)
        except StylenbError as error:
            reason = getattr(error, "reason", "cannot be read")
        if reason:
            found.skipped.append((file.name, reason))
    if len(found) < minimum:
        raise StylenbError(_too_few(found, minimum))
    return found


def _list_folder(folder) -> tuple[Path, list[Path]]:
    if not isinstance(folder, (str, os.PathLike)):
        raise StylenbError(f"A folder is given by its path, not as {type(folder).__name__}.")
    path = Path(os.fsdecode(folder)).expanduser()
    name = f"'{_printable(str(path))}'"
    try:
        return path, sorted(path.iterdir(), key=lambda file: file.name)
    except FileNotFoundError as error:
        raise StylenbError(f"There is no folder {name}: check the path.") from error
    except NotADirectoryError as error:
        raise StylenbError(
            f"{name} is not a folder: name the one that holds the pictures."
        ) from error
    except (OSError, ValueError) as error:
        raise StylenbError(f"{name} cannot be read ({error}): check the path.") from error


def _reason_to_skip(file: Path) -> str:
    """Why the file is not even opened; "" if it is worth a try."""
    if file.name.startswith("."):
        return "hidden"
    if file.name.lower() in SYSTEM_FILES:
        return "made by the system"
    try:
        return "a folder" if file.is_dir() else ""
    except OSError:
        return "cannot be read"


def _too_few(found: PictureFolder, minimum: int) -> str:
    reasons = [reason for _, reason in found.skipped]
    counts = ", ".join(f"{reasons.count(r)} {r}" for r in dict.fromkeys(reasons))
    pictures = f"{len(found) or 'no'} picture{'' if len(found) == 1 else 's'} that can be used"
    advice = f"put {minimum - len(found)} more JPEG, PNG or WebP files there"
    if not found.pictures and "a folder" in reasons:
        advice = "name the folder inside it in which the pictures lie"
    return (
        f"'{_printable(str(found.folder))}' holds {pictures}, of the {minimum} that are needed "
        f"(skipped: {counts or 'nothing'}): {advice}."
    )


def _printable(name: str) -> str:
    """A file's name, fit for one line of text on any screen."""
    return "".join(c if c.isprintable() else "?" for c in name)


# ------------------------------------------------------------------------------------ stylising


@dataclass(frozen=True, repr=False)
class StylizedFolder:
    """What stylize_folder did: the photos that were `drawn`, those whose picture was `there`
    already, and (photo, why) of those that were `skipped`. The pictures lie in `folder`."""

    folder: Path
    drawn: list[str]
    there: list[str]
    skipped: list[tuple[str, str]]

    def __repr__(self) -> str:
        return self.table()

    def table(self, most: int = 4) -> str:
        """How many photos became what, and of each the first `most` by name."""
        groups = {"drawn": self.drawn, "there already": self.there}
        return _table(self.folder, groups, self.skipped, most)


def stylize_folder(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    style: str | Path | Mapping[str | Path, float] | None = None,
    *,
    seed: int = 0,
    base: Base | str = "pocket",
    batch_size: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **settings,
) -> StylizedFolder:
    """Redraw every photo of a folder as PNG files in another, which is made if it is not there.

    a.jpg becomes a.png; where two photos share a stem, a.jpg.png and a.webp.png. How they were
    drawn is kept in each PNG as text. A picture that is there already is left as it is, so a run
    that was cut resumes when it is started again; with `overwrite` it is drawn anew. Files that
    cannot be used are skipped with the reason, as `read_folder` does.

    seed, base, batch_size and settings (strength, scale, num_inference_steps, fit, solver,
    keep_colours) are those of `stylize`, and so is every picture.

    Raises StylenbError if a folder cannot be used, if none of its files is a photo, and, unless
    `overwrite` is set, if the output holds pictures that were drawn with other settings.
    """
    how = StylizeSettings(style, **settings)
    (seed,) = check_seeds(seed, 1)
    folder, files = _list_folder(folder)
    output = _output_folder(folder, output)
    base = open_base(base)
    how = how.with_defaults(base)
    record = _record(how, seed, base)
    if not overwrite:
        _refuse_to_mix(output, record)

    done = StylizedFolder(output, [], [], [])
    targets = _targets(files, output)
    todo = [file for file in files if _is_to_draw(file, targets[file], overwrite, done)]
    at_once = batch_size_for(base.image_size**2, batch_size)
    if todo:
        with in_style(base, how), tqdm(total=len(todo), disable=not progress, desc="photos") as bar:
            for first in range(0, len(todo), at_once):
                photos = {}
                for file in todo[first : first + at_once]:
                    try:
                        photos[file] = open_photo(file, base.image_size, how.fit)
                    except StylenbError as error:
                        done.skipped.append((file.name, getattr(error, "reason", "cannot be read")))
                if photos:
                    pictures = draw(base, how, list(photos.values()), [seed] * len(photos), at_once)
                    for file, picture in zip(photos, pictures, strict=True):
                        text = PngImagePlugin.PngInfo()
                        text.add_text("stylenb", json.dumps({**record, "photo": file.name}))
                        with replacing(targets[file]) as temporary:
                            picture.save(temporary, pnginfo=text)
                        done.drawn.append(file.name)
                bar.update(min(at_once, len(todo) - first))
    done.skipped.sort()
    in_the_way = any(reason.endswith(NOT_ITS_PICTURE) for _, reason in done.skipped)
    if not (done.drawn or done.there or in_the_way):
        raise StylenbError(_too_few(PictureFolder(folder, [], [], done.skipped), 1))
    return done


def _is_to_draw(file: Path, target: Path, overwrite: bool, done: StylizedFolder) -> bool:
    """Whether a photo has to be drawn; what becomes of it otherwise is noted in `done`."""
    if reason := _reason_to_skip(file):
        done.skipped.append((file.name, reason))
    elif overwrite or not target.exists():
        return True
    elif _read_record(target).get("photo") == file.name:
        done.there.append(file.name)
    else:
        done.skipped.append((file.name, f"{target.name} {NOT_ITS_PICTURE}"))
    return False


def _output_folder(folder: Path, output) -> Path:
    output = Path(output).expanduser()
    if output.resolve() == folder.resolve():
        raise StylenbError(f"'{output}' is where the photos are: name another folder to write to.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StylenbError(f"'{output}' cannot be a folder ({error}): name another.") from error
    return output


def _targets(files: list[Path], output: Path) -> dict[Path, Path]:
    """Which file each photo's picture goes to; no two have the same, even if case is not told."""
    kinds = Image.registered_extensions()
    stems = Counter(f.stem.casefold() for f in files if f.suffix.lower() in kinds)
    targets, taken = {}, set()
    for file in files:
        alone = file.suffix.lower() in kinds and stems[file.stem.casefold()] == 1
        name = f"{file.stem if alone else file.name}.png"
        while name.casefold() in taken:
            name = f"_{name}"
        taken.add(name.casefold())
        targets[file] = output / name
    return targets


def _record(how: StylizeSettings, seed: int, base: Base) -> dict:
    """What a picture tells of how it was drawn; the style's file by a digest too, since it may be
    trained anew under its name."""
    styles = {
        file.stem: [weight, hashlib.sha256(file.read_bytes()).hexdigest()[:12]]
        for file, weight in how.files
    }
    drawn = {**asdict(how), "style": styles, "seed": seed, "base": base.name, "prompt": base.prompt}
    return json.loads(json.dumps(drawn, default=float))  # as it is read back


def _read_record(path: Path) -> dict:
    try:
        with Image.open(path) as picture:
            return dict(json.loads(picture.info["stylenb"]))
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # not a picture of ours


def _refuse_to_mix(output: Path, record: dict) -> None:
    for path in sorted(output.glob("[!.]*.png")):
        there = _read_record(path)
        different = [
            f"{key} was {there.get(key)!r} and is {value!r}"
            for key, value in record.items()
            if there and there.get(key) != value
        ]
        if different:
            raise StylenbError(
                f"'{output}' holds pictures that were drawn in another way ({path.name}: "
                f"{'; '.join(different)}): name another folder, give those settings again, or "
                "overwrite what is there."
            )
