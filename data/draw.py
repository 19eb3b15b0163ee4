"""Pictures to train the pocket model on: what stylenb/pocket draws, and what lies in folders.

Without folders a picture is `training_mix.example`, at any size. A folder of photographs joins
scikit-image's; one of objects cut out of photographs (pictures with alpha) adds a kind of its own.
Either folder may hold a facts.json, {file name: caption}. The marks of a style have one size
whatever the picture's: a larger picture shows more.

Every picture is a function of its seed (and of the files in the folders).
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageFilter

from stylenb.errors import StylenbError, replacing
from stylenb.photos import open_photo
from stylenb.pocket import training_mix
from stylenb.pocket.scenes import draw_scene
from stylenb.pocket.shapes import dead_leaves
from stylenb.pocket.styles import HELD_OUT, KNOWN

KINDS = {"scene": 0.42, "photo": 0.26, "objects": 0.22, "shapes": 0.10}  # where there are cut-outs
BACKGROUND_SEEDS = 10_000_000  # scenes behind objects, beyond every split of training_mix
PARTS = 40  # sets that each kind of picture is drawn in beside a training

# first seed, styles, share of the "photo" style, share of the training pictures in number
SETS = {
    "known": (training_mix.TRAIN_SEEDS, KNOWN, 0.25, 1.0),
    "held-out": (training_mix.TRAIN_SEEDS + 1_000_000, HELD_OUT, 0.0, 0.4),
}


# ------------------------------------------------------------------------------------- the folders


@cache
def listed(folder: Path) -> list[tuple[Path, str]]:
    """The pictures of a folder in the order of their names, each with the caption that its
    facts.json gives it, or "". Captions are those of the pocket world: a few words in lower case
    with an article; a longer one would teach a vocabulary and no picture."""
    facts = folder / "facts.json"
    captions = json.loads(facts.read_text()) if facts.is_file() else {}
    kinds = (".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
    if not (files := [p for p in sorted(folder.glob("*")) if p.suffix.lower() in kinds]):
        raise StylenbError(f"There are no pictures in '{folder}': name a folder of PNG or WebP.")

    def short(caption):
        words = caption.lower().rstrip(".").split()
        article = words and words[0] in ("a", "an", "the", "some")
        return " ".join(words) if article and len(words) <= 5 else ""

    return [(path, short(captions.get(path.name, ""))) for path in files]


def fingerprint(*folders: Path | None) -> str:
    """A name for what lies in folders; it changes with their files."""
    known = [(p.name, p.stat().st_size, text) for f in folders if f for p, text in listed(f)]
    return hashlib.sha256(repr((list(map(bool, folders)), known)).encode()).hexdigest()[:8]


@lru_cache(64)
def photograph(path: Path) -> Image.Image:
    return open_photo(path)


@lru_cache(512)
def cut_out(path: Path) -> Image.Image:
    """RGBA; a picture without alpha is an object that fills it."""
    with Image.open(path) as picture:
        return picture.convert("RGBA")


def photo(seed: int, size: int, folder: Path | None) -> tuple[Image.Image, str]:
    """A crop of a photograph and a caption: of scikit-image's in 45 % where there is a folder."""
    random = np.random.default_rng([seed, 2])
    if folder is None or random.random() < 0.45:
        return training_mix.photo_crop(seed, size)
    path, caption = listed(folder)[random.integers(len(listed(folder)))]
    return training_mix.varied_crop(photograph(path), random, size), caption or "a place"


def background(random: np.random.Generator, size: int, folder: Path | None) -> Image.Image:
    """What objects are pasted on: a photograph, a scene, shapes or a gradient, half of them
    blurred."""
    kind = random.choice(4, p=(0.45, 0.15, 0.15, 0.25))
    seed = BACKGROUND_SEEDS + int(random.integers(1 << 30))
    if kind == 0:
        picture = photo(seed, size, folder)[0]
    elif kind == 1:
        picture = draw_scene(seed, size).picture
    elif kind == 2:
        picture = dead_leaves(seed, size)
    else:
        top, bottom = random.integers(0, 256, (2, 3))
        down = np.linspace(0, 1, size)[:, None, None]
        rows = (top * (1 - down) + bottom * down).astype(np.uint8)
        picture = Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows, (size, size, 3))))
    if random.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(float(random.uniform(0.5, 3))))
    return picture


def objects(seed: int, size: int, photos: Path | None, cutouts: Path) -> tuple[Image.Image, str]:
    """One to five cut-outs on a background, size x size RGB, and a caption: the last one's name, as
    it lies on top, or "many things" from three on."""
    random = np.random.default_rng([seed, 3])
    picture = background(random, size, photos)
    count, found = int(random.choice([1, 1, 2, 3, 5])), listed(cutouts)
    for _ in range(count):
        path, caption = found[random.integers(len(found))]
        thing = cut_out(path)
        scale = size * float(random.uniform(0.3, 1.15)) / max(thing.size)
        thing = thing.resize([max(8, int(n * scale)) for n in thing.size], Image.LANCZOS)
        if random.random() < 0.5:
            thing = thing.transpose(Image.FLIP_LEFT_RIGHT)
        if random.random() < 0.3:
            thing = thing.rotate(float(random.uniform(-40, 40)), Image.BICUBIC, expand=True)
        place = [int(random.uniform(-0.2 * n, size - 0.8 * n)) for n in thing.size]
        picture.paste(thing, place, thing)
    caption = "many things" if count >= 3 else caption or "a thing"
    return training_mix.varied_colours(picture, random), caption


def content(seed: int, kind: str, size: int, photos: Path | None, cutouts: Path | None):
    """An unstyled picture of one of KINDS, size x size RGB, and a caption without style."""
    if kind == "photo":
        return photo(seed, size, photos)
    if kind == "objects":
        return objects(seed, size, photos, cutouts)
    return training_mix.content(seed, kind, size)


# ----------------------------------------------------------------------------------------- the sets


@dataclass(frozen=True)
class Set:
    """Pictures of one kind and size in the making: `count` examples from `first_seed` on, in files
    called `name`."""

    name: str
    count: int
    first_seed: int
    styles: tuple[str, ...]
    photo_share: float
    size: int = training_mix.SIZE
    photos: Path | None = None
    cutouts: Path | None = None

    def draw(self, folder: Path, workers: int = 0) -> None:
        """Write NAME.npy, uint8 (count, size, size, 3), and NAME.json, a caption, style and kind
        for each, into `folder`, if they are not there. Without workers, in this process."""
        if (folder / f"{self.name}.json").exists():  # written last, so it stands for a complete set
            return
        print(f"drawing {self.count} pictures for {self.name} ...", flush=True)
        one = partial(
            training_mix.example,
            styles=self.styles,
            photo_share=self.photo_share,
            size=self.size,
            kinds=KINDS if self.cutouts else training_mix.KINDS,
            draw=partial(content, photos=self.photos, cutouts=self.cutouts),
        )
        seeds = range(self.first_seed, self.first_seed + self.count)
        pictures, facts = np.empty((self.count, self.size, self.size, 3), np.uint8), []
        with ProcessPoolExecutor(workers) if workers else nullcontext() as pool:
            examples = pool.map(one, seeds, chunksize=64) if pool else map(one, seeds)
            for i, e in enumerate(examples):
                pictures[i] = np.asarray(e.picture)
                facts.append({"caption": e.caption, "style": e.style, "kind": e.kind})
        with replacing(folder / f"{self.name}.npy") as temporary:
            np.save(temporary, pictures)
        with replacing(folder / f"{self.name}.json") as temporary:
            temporary.write_text(json.dumps(facts))

    def read(self, folder: Path) -> tuple[np.ndarray, list[dict]]:
        facts = json.loads((folder / f"{self.name}.json").read_text())
        return np.load(folder / f"{self.name}.npy"), facts


def planned(args, kinds: tuple[str, ...], parts: int) -> list[Set]:
    """The sets of pictures of a training, in the order in which they are drawn: of every kind in
    SETS that is wanted, at every size of `args.sizes` (at most two; half as many of the larger), in
    so many parts. A set that is drawn once is found again by its name."""
    sets, folders = [], (args.photos, args.cutouts)
    for part in range(parts):
        for kind in kinds:
            first, styles, photo_share, share = SETS[kind]
            for i, size in enumerate(args.sizes):
                count = max(1, int(args.pictures * share / (1 + i)) // parts)
                marks = [kind, *([size] if size != training_mix.SIZE else []), count]
                marks += [fingerprint(*folders)] if any(folders) else []
                marks += [f"part{part}"] if parts > 1 else []
                seed = first + 2_000_000 * i + count * part
                name = "-".join(map(str, marks))
                sets.append(Set(name, count, seed, styles, photo_share, size, *folders))
    return sets


class Pictures:
    """The pictures of a training, by size: `of[size]` is uint8 (total, size, size, 3), of which the
    first `ready[size]` are there, and `facts[size]` has a caption, style and kind for each of them.

    On a CPU all are drawn first. Beside a GPU the cores are free, so there a pool of one process
    less than there are cores draws on while the training runs: it begins when an eighth is there,
    and `grow` takes what has come. What a step sees then depends on the time it took, so only a
    training on a CPU repeats to the bit.
    """

    def __init__(self, args, kinds: tuple[str, ...]):
        beside = args.device != "cpu"
        sets = planned(args, kinds, PARTS if beside else 1)
        total = {size: sum(s.count for s in sets if s.size == size) for size in args.sizes}
        self.of = {n: np.empty((total[n], n, n, 3), np.uint8) for n in args.sizes}
        self.ready = dict.fromkeys(args.sizes, 0)
        self.facts = {size: [] for size in args.sizes}
        self.folder, self.pool, self.coming = args.work, None, []
        if not beside:
            for one in sets:
                one.draw(args.work, os.cpu_count())
                self._take(one)
            return
        how = {"mp_context": get_context("spawn"), "initializer": cv2.setNumThreads}
        self.pool = ProcessPoolExecutor(max(1, os.cpu_count() - 1), initargs=(1,), **how)
        self.coming = [(one, self.pool.submit(one.draw, args.work)) for one in sets]
        for _ in range(-(-len(sets) // 8)):
            one, future = self.coming.pop(0)
            future.result()
            self._take(one)

    def _take(self, one: Set) -> tuple[int, int, int]:
        pictures, facts = one.read(self.folder)
        first = self.ready[one.size]
        last = self.ready[one.size] = first + len(pictures)
        self.of[one.size][first:last] = pictures
        self.facts[one.size] += facts
        return one.size, first, last

    def grow(self) -> Iterator[tuple[int, int, int]]:
        """Take the next set, if it is drawn: (size, first, last) of what is new. Always in the
        order of the plan, so the number of pictures says which they are."""
        if self.coming and self.coming[0][1].done():
            one, future = self.coming.pop(0)
            future.result()  # raises what went wrong in its process
            yield self._take(one)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.pool:
            self.pool.shutdown(wait=False, cancel_futures=True)
