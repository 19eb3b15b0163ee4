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
@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize("source", sources(), ids=lambda source: source.stem)
def test_notebook_runs(source, edition, tmp_path):
    copy = shutil.copy(edition_path(source, edition), tmp_path)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("--nbmake", "--nbmake-timeout=900", "--overwrite", str(copy)),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "STYLENB_QUICK": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-5000:]
    for cell in json.loads((tmp_path / f"{source.stem}.ipynb").read_text("utf-8"))["cells"]:
        if "check" in cell["metadata"].get("tags", ()):
            said = "".join("".join(output.get("text", ())) for output in cell["outputs"])
            assert re.search(rf"\w+: {re.escape(SAID[edition])}", said), said
