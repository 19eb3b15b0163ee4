"""Build and check the two editions of every lesson.

    python notebooks/build.py [NAME ...]           build what has changed, then check
    python notebooks/build.py [NAME ...] --again   run every cell, even where no code changed
    python notebooks/build.py [NAME ...] --check   only say what is wrong

``notebooks/src/NN_name.py`` (jupytext, py:percent) is the only file edited by hand. From it come

- ``notebooks/NN_name.ipynb``, the learner's edition: run, with its outputs recorded;
- ``notebooks/solutions/NN_name.ipynb``, the teacher's edition: no outputs, with solutions and
notes;
- ``notebooks/README.md``, the index of all lessons.

Cell tags say who sees a cell: ``exercise`` (learner only), ``solution`` and ``instructor``
(teacher only); a cell without one of these, such as one tagged ``check``, is in both. The header
of a source file carries, under ``stylenb:``, the lesson's title, what it is about, minutes and
needs. The head of a notebook, its set-up cell and the links at its end are made here.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import platform
import re
import sys
from collections import Counter
from pathlib import Path

import jupytext
import nbformat
from nbconvert.preprocessors import (
    ClearMetadataPreprocessor,
    ExecutePreprocessor,
    TagRemovePreprocessor,
)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # as a script it finds the package from any folder

from stylenb.errors import StylenbError

LIMIT = 900_000  # bytes in one learner's notebook, outputs and all
PICTURES = ("image/png", "image/jpeg")
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:root|work|home|tmp|Users)/[\w.-]+")
EDITIONS = {"learner": ("solution", "instructor"), "teacher": ("exercise",)}  # the tags left out
HEADER = ("title", "about", "read", "do", "needs")

SETUP = """\
# Set-up: does nothing where stylenb is at hand; elsewhere (Colab, Kaggle) it fetches the course.
import importlib.util, os, subprocess, sys
places = [os.path.abspath(p) for p in (".", "..", "../..", "stylenb", "/kaggle/input/stylenb")]
sys.path += [p for p in places if os.path.isfile(p + "/stylenb/doctor.py")]
if not importlib.util.find_spec("stylenb"): subprocess.run("git clone --depth=1 {repository} \
stylenb".split(), check=True); sys.path.append(places[3])
from stylenb import doctor; doctor.install_missing();"""


def repository(root: Path = ROOT) -> str:
    """The repository's address: ``Repository`` under ``[project.urls]`` in pyproject.toml."""
    found = re.search(
        r'^Repository\s*=\s*"([^"]+)"', (root / "pyproject.toml").read_text("utf-8"), re.M
    )
    if not found:
        raise StylenbError(
            'pyproject.toml has no Repository = "https://..." under [project.urls]: add it.'
        )
    return found[1].rstrip("/")


def sources(root: Path = ROOT) -> list[Path]:
    """The lessons' source files, in the order in which they are taken."""
    return sorted((root / "notebooks" / "src").glob("*.py"))


def edition_path(source: Path, edition: str) -> Path:
    folder = "." if edition == "learner" else "solutions"
    return source.parents[1] / folder / f"{source.stem}.ipynb"


def read_header(source: Path) -> dict:
    """What a source file says of its lesson; it must hold every field of ``HEADER``."""
    above = source.read_text("utf-8").split("\n# %%")[0]
    header = jupytext.reads(above, fmt="py:percent").metadata.get("stylenb", {})
    if missing := [field for field in HEADER if field not in header]:
        raise StylenbError(
            f"{source.name}: its header lacks {', '.join(missing)} under 'stylenb:'."
        )
    return header


def title(source: Path) -> str:
    """``"01 · The VAE latent space"`` for ``01_vae_latent_space.py``."""
    return f"{source.stem.split('_')[0]} · {read_header(source)['title']}"


def badges(name: str, root: Path = ROOT) -> str:
    """Markdown for the two buttons that open lesson ``name`` on Colab and on Kaggle."""
    page = f"{repository(root)}/blob/main/notebooks/{name}.ipynb"
    colab = page.replace("https://github.com/", "https://colab.research.google.com/github/")
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        "[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
        f"(https://kaggle.com/kernels/welcome?src={page})"
    )


def make_edition(source: Path, edition: str):
    """The notebook, without outputs, that ``source`` gives for ``edition``, see ``EDITIONS``."""
    root, header = source.parents[2], read_header(source)
    notebook, v4 = jupytext.read(source, fmt="py:percent"), nbformat.v4
    lessons = sources(root)
    following = lessons[lessons.index(source) + 1 :]
    index = "README.md" if edition == "learner" else "../README.md"
    ahead = f"**Next:** [{title(following[0])}]({following[0].stem}.ipynb) · " if following else ""
    head = f"# {title(source)}\n\n{badges(source.stem, root)}\n\n{header['about']}\n\n"
    head += f"*Read: {header['read']} min · do: {header['do']} min · needs: {header['needs']}*"
    notebook.cells = [
        v4.new_markdown_cell(head),
        v4.new_code_cell(SETUP.format(repository=repository(root)), metadata={"tags": ["set-up"]}),
        *notebook.cells,
        v4.new_markdown_cell(f"{ahead}[All lessons]({index})"),
    ]
    steps = (
        TagRemovePreprocessor(enabled=True, remove_cell_tags=set(EDITIONS[edition])),
        ClearMetadataPreprocessor(
            enabled=True,
            preserve_cell_metadata_mask={"tags"},
            preserve_nb_metadata_mask={"kernelspec"},
        ),
    )
    for step in steps:
        notebook, _ = step.preprocess(notebook, {})
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: Counter[tuple] = Counter()
    for cell in notebook.cells:  # ids from the source: a rebuild without a change is no diff
        key = (source.stem, cell.cell_type, cell.source)
        seen[key] += 1
        cell.id = hashlib.sha256("\n".join((*key, str(seen[key]))).encode()).hexdigest()[:12]
    return notebook


def _cells(notebook) -> list[tuple]:
    return [
        (c.id, c.cell_type, c.source, tuple(c.metadata.get("tags", ()))) for c in notebook.cells
    ]


def _code(notebook) -> list[tuple]:
    return [cell[:3] for cell in _cells(notebook) if cell[1] == "code"]


def _read_edition(path: Path):
    return nbformat.read(path, as_version=4) if path.exists() else None


def _write(path: Path, text: str) -> list[Path]:
    """The path if that changed the file."""
    if path.exists() and path.read_text("utf-8") == text:
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return [path]


def run_notebook(notebook, folder: Path, timeout: int = 900) -> None:
    """Run every cell in place, in ``folder``; keep pictures and printed text, and nothing else.

    Progress bars, warnings, widgets and timings differ from run to run, so they are left out, and
    in printed text what is of this machine only, such as its folders, gives way to names.
    """
    ExecutePreprocessor(
        timeout=timeout, kernel_name="python3", record_timing=False, store_widget_state=False
    ).preprocess(notebook, {"metadata": {"path": str(folder)}})
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [
            output
            for output in cell.outputs
            if output.get("name") != "stderr"
            and not any("widget" in m for m in output.get("data", ()))
        ]
        for output in cell.outputs:
            if "text" in output:
                output.text = _without_machine(output.text)
            for kind in set(output.get("data", ())) - set(PICTURES):
                output.data[kind] = _without_machine(output.data[kind])


def _without_machine(text: str) -> str:
    for here, name in (
        (str(ROOT), "<course>"),
        (sys.prefix, "<python>"),
        (str(Path.home()), "~"),
        (platform.platform(terse=True), platform.system()),
    ):
        text = text.replace(here, name)
    return text


def build(names: list[str] | None = None, root: Path = ROOT, again: bool = False) -> list[Path]:
    """Write both editions of the named lessons (all by default) and the index; return what changed.

    A lesson is run only if its code changed since its outputs were recorded, or with ``again``.
    """
    written = []
    for source in _chosen(names, root):
        learner, path = make_edition(source, "learner"), edition_path(source, "learner")
        recorded = _read_edition(path)
        same = recorded and _code(recorded) == _code(learner) and _complete(recorded)
        if again or not same:
            print(f"running {source.stem} ...", flush=True)
            run_notebook(learner, path.parent)
        else:
            before = {cell.id: cell for cell in recorded.cells}
            for cell in learner.cells:
                if cell.cell_type == "code":
                    cell.outputs = before[cell.id].outputs
                    cell.execution_count = before[cell.id].execution_count
        written += _write(path, nbformat.writes(learner))
        teacher = make_edition(source, "teacher")
        written += _write(edition_path(source, "teacher"), nbformat.writes(teacher))
    return written + _write(root / "notebooks" / "README.md", make_index(root))


def make_index(root: Path = ROOT) -> str:
    """The text of ``notebooks/README.md``."""
    lines = [
        "# The lessons",
        "",
        "Take them in order. Each runs from top to bottom as it stands, on a laptop without a GPU "
        "and without a network. On Colab and Kaggle the first cell fetches the course.",
        "",
        "| lesson | what it is about | read | do | needs | open |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for source in sources(root):
        h = read_header(source)
        lines.append(
            f"| [{title(source)}]({source.stem}.ipynb) | {h['about']} | {h['read']} min "
            f"| {h['do']} min | {h['needs']} | {badges(source.stem, root)} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            "For teachers: the same lessons with solutions, timing and likely questions are in "
            "[solutions](solutions).",
            "",
            "Both editions and this page are made from [src](src): change a lesson there, then run "
            "`python notebooks/build.py`.",
            "",
        ]
    )


def _complete(notebook) -> bool:
    return all(
        c.execution_count for c in notebook.cells if c.cell_type == "code" and c.source.strip()
    )


def _output_text(outputs: list) -> str:
    """All recorded text: printed, plain or HTML, without what pictures are encoded in."""
    texts = []
    for output in outputs:
        texts.append(output.get("text", ""))
        texts += [str(v) for kind, v in output.get("data", {}).items() if kind not in PICTURES]
    return re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", "\n".join(texts))


def _unseen(code: str) -> set[str]:
    """The names of what makes a picture in a cell and drops it."""
    try:
        statements = ast.parse(code).body[:-1]
    except SyntaxError:  # a magic or a shell command
        return set()
    calls = [s.value for s in statements if isinstance(s, ast.Expr)]
    names = [ast.unparse(call.func) for call in calls if isinstance(call, ast.Call)]
    return set(names) & {"show.sheet", "show.error_map", "show.figure"}


def find_faults(source: Path) -> list[str]:
    """What is wrong with the editions of one lesson, as sentences; nothing is run."""
    faults = []
    for edition in EDITIONS:
        path = edition_path(source, edition)
        label = path.relative_to(source.parents[2]).as_posix()
        notebook = _read_edition(path)
        if notebook is None:
            faults.append(f"{label}: missing")
            continue
        cells, size = notebook.cells, path.stat().st_size
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        ran = outputs or any(cell.get("execution_count") for cell in cells)
        widgets = any("widget" in kind for output in outputs for kind in output.get("data", ()))
        place = MACHINE_PATH.search(_output_text(outputs))
        dropped = {name for c in cells if c.cell_type == "code" for name in _unseen(c.source)}
        unseen = ", ".join(sorted(dropped))
        wrong = {
            f"not what {source.name} gives": _cells(notebook)
            != _cells(make_edition(source, edition)),
            "has outputs, and the teacher's edition should have none": edition == "teacher" and ran,
            "outputs are missing": edition == "learner" and not _complete(notebook),
            f"{size / 1000:.0f} kB, more than {LIMIT / 1000:.0f} kB": size > LIMIT,
            "holds widget state": widgets or "widgets" in notebook.metadata,
            "a cell ended in an error": any(o.output_type == "error" for o in outputs),
            "holds timings": any("execution" in cell.metadata for cell in cells),
            f"an output names a folder of one machine, {place and place[0]}": place,
            f"a picture is not the last value of its cell, so nobody sees it: {unseen}": unseen,
        }
        faults += [f"{label}: {fault}" for fault, found in wrong.items() if found]
    return faults


def check(names: list[str] | None = None, root: Path = ROOT) -> list[str]:
    """Everything wrong with the committed editions and the index; empty when all is well."""
    faults = [fault for source in _chosen(names, root) for fault in find_faults(source)]
    folder = root / "notebooks"
    if not names:
        known = {source.stem for source in sources(root)}
        for path in sorted([*folder.glob("*.ipynb"), *folder.glob("solutions/*.ipynb")]):
            if path.stem not in known:
                faults.append(
                    f"{path.relative_to(root).as_posix()}: has no source in notebooks/src"
                )
    index = folder / "README.md"
    if not index.exists() or index.read_text("utf-8") != make_index(root):
        faults.append("notebooks/README.md: not what the sources give")
    return faults


def _chosen(names: list[str] | None, root: Path) -> list[Path]:
    every = sources(root)
    if not names:
        return every
    chosen = [s for s in every if any(s.stem == n or s.stem.startswith(f"{n}_") for n in names)]
    if not chosen:
        raise StylenbError(
            f"no lesson is called {', '.join(names)}; there are {', '.join(s.stem for s in every)}."
        )
    return chosen


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python notebooks/build.py", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "names", nargs="*", help="lessons, such as 01 or 01_vae_latent_space; default all"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--again", action="store_true", help="run every cell even where no code changed"
    )
    how.add_argument("--check", action="store_true", help="build nothing, say what is wrong")
    options = parser.parse_args(arguments)
    try:
        if not options.check:
            for path in build(options.names, again=options.again):
                print(f"wrote {path.relative_to(ROOT).as_posix()}")
        faults = check(options.names)
    except StylenbError as error:
        print(error, file=sys.stderr)
        return 2
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
