"""Every lesson, both editions, run from top to bottom under nbmake, in a hurry (see there)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from notebooks.build import EDITIONS, ROOT, edition_path, sources

SAID = {"learner": "not solved yet, going on with the reference.", "teacher": "right."}
NUMBER = re.compile(r"^(\w+ = (?:\w+\()?)(\d[\d_]*)(?=\)?\s*(?:#.*)?$)", re.M)
MOST = 3
HURRY = f"""\
def hurry():
    from stylenb import DreamBoothSettings, base, loop

    base.SOLVER_STEPS.update(dict.fromkeys(base.SOLVER_STEPS, {MOST}))
    validate = loop.LoopSettings.__post_init__

    def cap(settings):
        validate(settings)
        for name in {{"steps", "num_class_images"}} & vars(settings).keys():
            object.__setattr__(settings, name, min({MOST}, getattr(settings, name)))

    loop.LoopSettings.__post_init__ = cap
    settings = DreamBoothSettings(steps=400)
    assert settings.steps == settings.num_class_images == {MOST}, settings


hurry()
"""


def has(cell, tag: str) -> bool:
    return tag in cell.metadata.get("tags", ())


def in_a_hurry(notebook):
    """The notebook with 3 steps of everything, and 3 of each thing of which a cell tagged
    ``parameters`` says the number. Nobody looks at the pictures, and every line is still run."""
    for cell in notebook.cells:
        if has(cell, "parameters"):
            cell.source, numbers = NUMBER.subn(
                lambda found: found[1] + str(min(MOST, int(found[2]))), cell.source
            )
            assert numbers, f"no line 'name = number' to shorten in:\n{cell.source}"
    (first,) = (i for i, cell in enumerate(notebook.cells) if has(cell, "set-up"))
    notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(HURRY))
    return notebook


def run_under_nbmake(notebook, path: Path):
    """Run a copy in its folder; the notebook with what it gave."""
    nbformat.write(notebook, path)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("--nbmake", "--nbmake-timeout=900", "--overwrite", str(path)),
        ],
        cwd=path.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-5000:]
    return nbformat.read(path, as_version=4)


@pytest.mark.pocket_model
@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize("source", sources(), ids=lambda source: source.stem)
def test_notebook_runs(source, edition, tmp_path):
    notebook = in_a_hurry(nbformat.read(edition_path(source, edition), as_version=4))
    for cell in run_under_nbmake(notebook, tmp_path / f"{source.stem}.ipynb").cells:
        if has(cell, "check"):
            said = "".join(output.get("text", "") for output in cell.outputs)
            assert re.search(rf"\w+: {re.escape(SAID[edition])}", said), said
