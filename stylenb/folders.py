"""Whole folders: every picture of one opened, or every photo of one stylised into another."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image, PngImagePlugin
from tqdm.auto import tqdm

from .base import Base
from .errors import StylenbError, not_writable, replacing
from .inference import StylizeSettings, batch_size_for, check_seeds, in_style, open_base, redraw
from .limits import as_path, read
from .photos import Fit, check_size, open_photo

SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini")  # Windows puts them into folders


class _Table:
    """A folder whose files were put into groups: `skipped` (file, why), and those named here."""

    _groups: ClassVar[dict[str, str]]  # field of names: what the table calls it

    def __repr__(self) -> str:
        return self.table()

    def table(self, most: int = 4) -> str:
        """How many files became what; of each group, the first `most` by name."""
        groups = {kind: getattr(self, field) for field, kind in self._groups.items()}
        for name, reason in self.skipped:
            groups.setdefault(f"skipped, {reason}", []).append(name)
        lines = [f"{str(self.folder)!r}"]
        for kind, names in groups.items():
            more = [f"and {len(names) - most} more"] if len(names) > most else []
            shown = ", ".join([*map(_printable, names[:most]), *more])
            lines.append(f"{len(names):5}  {kind:{max(map(len, groups))}}  {shown}".rstrip())
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class PictureFolder(_Table):
    """What read_folder found: `names[i]` is the file of `pictures[i]`, `skipped` (file, why)."""

    folder: Path
    pictures: list[Image.Image]
    names: list[str]
    skipped: list[tuple[str, str]]
    _groups = {"names": "used"}

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True, repr=False)
class StylizedFolder(_Table):
    """What stylize_folder did: the photos that were `drawn`, those whose picture was `there`
    already, and (photo, why) of those that were `skipped`. The pictures lie in `folder`."""

    folder: Path
    drawn: list[str]
    there: list[str]
    skipped: list[tuple[str, str]]
    _groups = {"drawn": "drawn", "there": "there already"}


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
    path, files, skipped = _list_folder(folder)
    found = dict(_opened(files, lambda file: open_photo(file, size, fit), skipped))
    skipped.sort()
    if len(found) < minimum:
        raise _too_few(path, len(found), minimum, skipped)
    return PictureFolder(path, list(found.values()), [file.name for file in found], skipped)


def _list_folder(folder) -> tuple[Path, list[Path], list[tuple[str, str]]]:
    """The folder, its files in the order of their names, and (file, why) of those of no use."""
    if not isinstance(folder, (str, os.PathLike)):
        raise StylenbError(f"A folder is given by its path, not as {type(folder).__name__}.")
    path = as_path(folder)
    name = f"'{_printable(str(path))}'"
    try:
        files = sorted(path.iterdir(), key=lambda file: file.name)
    except FileNotFoundError as error:
        raise StylenbError(f"There is no folder {name}: check the path.") from error
    except NotADirectoryError as error:
        raise StylenbError(f"{name} is not a folder: name the one it is in.") from error
    except (OSError, ValueError) as error:
        raise StylenbError(f"{name} cannot be read ({error}): check the path.") from error
    reasons = {file: reason for file in files if (reason := _reason_to_skip(file))}
    files = [file for file in files if file not in reasons]
    return path, files, [(file.name, reason) for file, reason in reasons.items()]


def _reason_to_skip(file: Path) -> str:
    if file.name.startswith("."):
        return "hidden"
    if file.name.lower() in SYSTEM_FILES:
        return "made by the system"
    # not by Path.is_dir, which raises in a folder whose files may not be looked at
    return "a folder" if os.path.isdir(file) else ""


def _opened(files: list[Path], opener: Callable, skipped: list) -> Iterator[tuple[Path, Any]]:
    """Each file that is a picture, and what `opener` makes of it; of the others, `skipped` gets
    (file, why)."""
    for file in files:
        try:
            yield file, opener(file)
        except StylenbError as error:
            skipped.append((file.name, getattr(error, "reason", "cannot be read")))


def _too_few(folder: Path, count: int, minimum: int, skipped: list) -> StylenbError:
    reasons = Counter(reason for _, reason in skipped)
    advice = f"put {minimum - count} more JPEG, PNG or WebP files there"
    if not count and "a folder" in reasons:
        advice = "name the folder inside it in which the pictures lie"
    counts = ", ".join(f"{number} {reason}" for reason, number in reasons.items()) or "nothing"
    pictures = f"{count or 'no'} picture{'s' * (count != 1)}"
    return StylenbError(
        f"'{_printable(str(folder))}' holds {pictures} that can be used, of the {minimum} that are "
        f"needed (skipped: {counts}): {advice}."
    )


def _printable(name: str) -> str:
    """A file's name, fit for one line of text on any screen."""
    return "".join(c if c.isprintable() else "?" for c in name)


Pictures = str | os.PathLike | PictureFolder | Iterable  # whatever open_pictures takes


def open_pictures(base: Base, *several: Pictures) -> list[list[Image.Image]]:
    """What a training is given, as lists of PIL pictures in RGB, all of one size.

    Each of `several` is the path of a folder, what read_folder gives, or any number of what
    `open_photo` takes. Pictures that share a size which suits the base keep it; all others are
    cropped and resized to that of the base. Raises StylenbError for what is none of these.
    """
    lists = []
    for given in several:
        if isinstance(given, (str, os.PathLike)):
            given = read_folder(given, base.image_size, minimum=1)
        if isinstance(given, PictureFolder):
            given = given.pictures
        if not isinstance(given, Iterable) or isinstance(given, (bytes, Image.Image)):
            raise StylenbError(
                "The pictures of a training are a folder's path or a list of pictures, not "
                f"{type(given).__name__}."
            )
        lists.append(list(given))
    every = [picture for pictures in lists for picture in pictures]
    if all(isinstance(one, Image.Image) and one.mode == "RGB" for one in every):
        sizes = {one.size for one in every}
        if len(sizes) == 1 and not any(side % base.multiple for side in min(sizes)):
            return lists
    return [[open_photo(one, base.image_size) for one in pictures] for pictures in lists]


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

    a.jpg becomes a.png; where two photos share a stem, a.jpg.png and a.webp.png. Each PNG says as
    text how it was drawn. A picture that is there already is left as it is, so that a run which was
    cut resumes, unless its photo was replaced since; with `overwrite` it is drawn anew. Files are
    skipped as `read_folder` does. seed, base, batch_size and settings (strength, scale, ...) are
    those of `stylize`, and so is every picture.

    Raises StylenbError if a folder cannot be used, if none of its files is a photo, and, unless
    `overwrite` is set, if the output holds pictures that were drawn with other settings.
    """
    how = StylizeSettings(style, **settings)
    (seed,) = check_seeds(seed, 1)
    folder, files, skipped = _list_folder(folder)
    output = _output_folder(folder, output)
    base = open_base(base)
    how = how.with_defaults(base)
    record = _record(how, seed, base)
    if not overwrite:
        _refuse_to_mix(output, record)
    at_once = batch_size_for((how.size or base.default_size) ** 2, batch_size)

    targets, digests = _targets(files, output), {file: _digest(file) for file in files}
    todo, there = _plan(targets, digests, overwrite, skipped)
    done = StylizedFolder(output, [], there, skipped)
    in_the_way = len(targets) > len(todo) + len(done.there)
    if todo:
        with in_style(base, how), tqdm(total=len(todo), disable=not progress, desc="photos") as bar:
            for first in range(0, len(todo), at_once):
                part = todo[first : first + at_once]
                photos = dict(_opened(part, lambda file: how.open(file, base), skipped))
                options = {"seed": seed, "batch_size": batch_size, **how.of_redraw}
                pictures = redraw(base, [photo for photo, _ in photos.values()], **options)
                for (file, (_, own)), picture in zip(photos.items(), pictures, strict=True):
                    picture = how.finished(picture, own)
                    told = {**record, "photo": file.name, "digest": digests[file]}
                    _save(picture, targets[file], told)
                    done.drawn.append(file.name)
                bar.update(len(part))
    skipped.sort()
    if not (done.drawn or done.there or in_the_way):
        raise _too_few(folder, 0, 1, skipped)
    return done


def _plan(
    targets: dict[Path, Path], digests: dict[Path, str], overwrite: bool, skipped: list
) -> tuple[list[Path], list[str]]:
    """The photos to draw, and the names of those whose picture is there."""
    todo, done = [], []
    for file, target in targets.items():
        there = _read_record(target)
        if overwrite or not target.exists():
            todo.append(file)
        elif there.get("photo") != file.name:
            skipped.append((file.name, f"{target.name} is there and not its picture"))
        elif there.get("digest", digests[file]) != digests[file]:  # another photo of that name
            todo.append(file)
        else:
            done.append(file.name)
    return todo, done


def _output_folder(folder: Path, output) -> Path:
    output = as_path(output)
    if output.resolve() == folder.resolve():
        raise StylenbError(f"'{output}' is where the photos are: name another folder to write to.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(output, error) from error
    return output


def _targets(files: list[Path], output: Path) -> dict[Path, Path]:
    """Which file each photo's picture goes to; no two have the same, even on a disk that takes
    a.png and A.png for one."""
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
    styles = {file.stem: [weight, _digest(file)] for file, weight in how.files}
    drawn = {**asdict(how), "style": styles, "seed": seed, "base": base.name, "prompt": base.prompt}
    drawn["size"] = how.size or f"{base.default_size} or more"  # which size_for says of each photo
    return json.loads(json.dumps(drawn, default=float))  # as it is read back


def _digest(file: Path) -> str:
    with suppress(OSError):  # gone, or no longer readable: opening it says so
        return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return ""


def _save(picture: Image.Image, path: Path, record: dict) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("stylenb", json.dumps(record))
    with replacing(path) as temporary:
        picture.save(temporary, pnginfo=text)


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
            f"{key} was {there[key]!r} and is {value!r}"
            for key, value in record.items()
            if there.get(key, value) != value
        ]
        if different:
            raise StylenbError(
                f"'{output}' holds pictures that were drawn in another way ({path.name}: "
                f"{'; '.join(different)}): name another folder, give those settings, or overwrite."
            )
