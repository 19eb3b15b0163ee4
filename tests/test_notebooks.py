"""Every lesson, both editions, run from top to bottom under nbmake, with short trainings."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from stylenb.authoring import EDITIONS, ROOT, edition_path, sources

SAID = {"learner": "not solved yet, going on with the reference.", "teacher": "right."}


@pytest.mark.pocket_model
@pytest.mark.parametrize("source", sources(), ids=lambda source: source.stem)
def test_notebook_runs(source, tmp_path):
    """The editions side by side, on one thread each: two cores are best used so."""
    runs = {}
    for edition in EDITIONS:
        folder = tmp_path / edition
        folder.mkdir()
        copy = shutil.copy(edition_path(source, edition), folder)
        runs[edition] = subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                *("--nbmake", "--nbmake-timeout=300", "--overwrite", str(copy)),
            ],
            cwd=folder,
            env={
                **os.environ,
                **{"PYTHONPATH": str(ROOT), "STYLENB_QUICK": "1", "OMP_NUM_THREADS": "1"},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    printed = {edition: run.communicate()[0] for edition, run in runs.items()}
    for edition, run in runs.items():
        assert run.returncode == 0, printed[edition][-5000:]
        text = (tmp_path / edition / f"{source.stem}.ipynb").read_text("utf-8")
        for cell in json.loads(text)["cells"]:
            if "check" in cell["metadata"].get("tags", ()):
                said = "".join("".join(output.get("text", ())) for output in cell["outputs"])
                assert re.search(rf"\w+: {re.escape(SAID[edition])}", said), said
