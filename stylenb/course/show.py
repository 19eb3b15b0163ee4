"""Figures for the lessons: small files, a title, and a text alternative that stays in the notebook.

A ``Picture`` is a matplotlib figure outside pyplot, so a cell shows it once, as its last value.
What it leaves in a notebook is a PNG for lines and a JPEG for photographs; GitHub, Jupyter and
nbconvert draw both. The text alternative is stored twice: as ``alt`` in the picture's metadata, and
as the output's plain text, which readers that draw no pictures show instead.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

DPI = 72


class Picture(Figure):
    """A matplotlib ``Figure`` with a text alternative, ``alt``."""

    def __init__(self, *args, alt: str = "", **kwargs):
        super().__init__(*args, **kwargs)
        FigureCanvasAgg(self)
        self.alt = alt

    def _repr_mimebundle_(self, include=None, exclude=None):
        kind, data = _encode(self)
        shown = {kind: base64.b64encode(data).decode(), "text/plain": self.alt}
        return shown, {kind: {"alt": self.alt}}


def _encode(figure: Figure) -> tuple[str, bytes]:
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, facecolor="white")
    picture = Image.open(drawn).convert("RGB")
    if picture.getcolors(4096):  # lines and text; photographs would turn blotchy with 256 colours
        picture.quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
        return "image/png", small.getvalue()
    picture.save(small, format="jpeg", quality=72)
    return "image/jpeg", small.getvalue()


def figure(width: float = 7, height: float = 3, title: str = "", alt: str = "") -> Picture:
    """An empty figure, ``width`` x ``height`` inches, to draw on with ``.subplots()``.

    ``alt`` says in words what the picture shows; without it the title stands in.
    """
    made = Picture(figsize=(width, height), layout="constrained", alt=alt or title)
    if title:
        made.suptitle(title, fontsize=11)
    return made


def as_array(picture) -> np.ndarray:
    """A picture as an array that matplotlib can show.

    Takes a PIL image, an array, or a tensor: (3,H,W) or (1,3,H,W) in [-1,1] becomes (H,W,3) in
    [0,1]; a flat map (H,W) is passed on with its own values.
    """
    if isinstance(picture, Image.Image):
        return np.asarray(picture)
    if hasattr(picture, "detach"):
        picture = picture.detach().float().cpu().numpy()
        picture = picture[0] if picture.ndim == 4 else picture
        if picture.ndim == 3:
            picture = np.clip(picture.transpose(1, 2, 0) / 2 + 0.5, 0, 1)
    return np.asarray(picture)


def sheet(
    pictures: Sequence,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    title: str = "",
    alt: str = "",
    width: float = 1.6,
    cmap: str = "magma",
    limits: tuple[float, float] | None = None,
    pixels: bool = False,
) -> Picture:
    """Pictures side by side, in rows of ``columns``, each ``width`` inches wide.

    Each is a PIL image, an array, or a tensor (3,H,W) in [-1,1]; flat maps (H,W) are drawn with
    the colour map ``cmap`` over ``limits`` (by default each map's own range). ``pixels`` keeps the
    edges of the pixels sharp.
    """
    pictures = [as_array(picture) for picture in pictures]
    columns = min(columns or 6, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    tall = max(p.shape[0] / p.shape[1] for p in pictures)
    titled = sum(any((titles or [])[row * columns : (row + 1) * columns]) for row in range(rows))
    height = rows * (width * tall + 0.06) + 0.2 * titled + (0.3 if title else 0)
    alt = alt or f"{title or 'Pictures side by side'}: {'; '.join(titles or ())}".strip(": ")
    made = figure(columns * (width + 0.06), height, title, alt)
    (low, high), drawn = limits or (None, None), "nearest" if pixels else None
    for index, axes in enumerate(np.ravel(made.subplots(rows, columns))):
        axes.axis("off")
        if index >= len(pictures):
            continue
        axes.imshow(pictures[index], cmap=cmap, vmin=low, vmax=high, interpolation=drawn)
        if titles and index < len(titles):
            axes.set_title(titles[index], fontsize=9, pad=3)
    return made


def error_map(
    original, result, title: str = "", alt: str = "", top: float | None = None
) -> Picture:
    """An original, what became of it, and where the two differ.

    Both as for ``sheet``, of one size. The map is the absolute difference on a scale of 0 to 1,
    averaged over the colours; black is none and ``top`` (by default the largest) is white.
    """
    a, b = (as_array(picture) for picture in (original, result))
    a, b = (array / 255.0 if array.dtype == np.uint8 else array for array in (a, b))
    difference = np.abs(a - b).mean(axis=-1)
    top = top or float(difference.max()) or 1.0
    made = figure(6.6, 2.4, title, alt or f"{title}: original, result and their difference")
    axes = made.subplots(1, 3)
    for one, picture, name in zip(
        axes, (a, b, difference), ("original", "result", "difference"), strict=True
    ):
        shown = one.imshow(picture, cmap="magma", vmin=0, vmax=top)
        one.set_title(name, fontsize=9)
        one.axis("off")
    made.colorbar(shown, ax=axes[2], shrink=0.8).ax.tick_params(labelsize=7)
    return made


def interactive(draw: Callable[..., Figure], **sliders) -> None:
    """Show ``draw`` at its defaults as a plain picture, then again as the sliders move.

    Each slider is ``(low, high, step, default)``, or a list of choices of which the first is the
    default. Without ipywidgets, or where nothing runs behind the page, the first picture is all
    there is.
    """
    from IPython.display import clear_output, display

    chosen = {name: s[0] if isinstance(s, list) else s[3] for name, s in sliders.items()}
    display(draw(**chosen))
    try:
        import ipywidgets
    except ImportError:
        return
    controls, output = {}, ipywidgets.Output()
    for name, s in sliders.items():
        choices = s if isinstance(s, list) else s[:3]
        control = ipywidgets.interactive.widget_from_abbrev(choices, default=chosen[name])
        control.description, control.continuous_update = name.replace("_", " "), False
        control.style.description_width = "initial"
        controls[name] = control

    def redraw(_change) -> None:
        with output:
            made = draw(**{name: control.value for name, control in controls.items()})
            clear_output(wait=True)
            display(made)

    for control in controls.values():
        control.observe(redraw, names="value")
    display(ipywidgets.VBox([*controls.values(), output]))
