"""The two editions: what goes where, quiet rebuilds, and everything that ``check`` must catch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from notebooks import build
from stylenb.errors import StylenbError

SOURCE = """# ---
# jupyter:
#   stylenb:
#     title: A lesson
#     about: What it is about.
#     read: 3
#     do: 4
#     needs: nothing
# ---

# %% [markdown]
# Some text.

# %%
from stylenb.course import show

print("Hello from 2 + 2 =", 2 + 2)

# %%
print("again")

# %%
print("again")

# %% tags=["exercise"]
answer = ...

# %% tags=["solution"]
answer = 42

# %% tags=["check"]
answer

# %% [markdown] tags=["instructor"]
# Five minutes.

# %%
show.figure(2, 1, "A figure", "an empty figure")
"""


def lay_out(folder: Path) -> Path:
    """A repository with one lesson."""
    (folder / "notebooks" / "src").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        '[project.urls]\nRepository = "https://github.com/someone/course"\n'
    )
    (folder / "notebooks" / "src" / "07_lesson.py").write_text(SOURCE)
    return folder


@pytest.fixture(scope="module", autouse=True)
def importable():
    """Kernels started in a temporary folder find this package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(build.ROOT))
        yield


@pytest.fixture(scope="module")
def built_once(importable, tmp_path_factory):
    root = lay_out(tmp_path_factory.mktemp("course"))
    build.build(root=root)
    return root


@pytest.fixture
def root(tmp_path):
    return lay_out(tmp_path)


@pytest.fixture
def built(built_once, tmp_path):
    return shutil.copytree(built_once, tmp_path / "course")


def edition(root, name="07_lesson", teacher=False):
    path = root / "notebooks" / ("solutions" if teacher else "") / f"{name}.ipynb"
    return path, json.loads(path.read_text())


def text(notebook):
    return "\n".join("".join(cell["source"]) for cell in notebook["cells"])


def test_each_edition_has_its_own_cells(built):
    _, learner = edition(built)
    _, teacher = edition(built, teacher=True)
    assert "answer = ..." in text(learner) and "answer = ..." not in text(teacher)
    assert "answer = 42" in text(teacher) and "answer = 42" not in text(learner)
    assert "Five minutes" in text(teacher) and "Five minutes" not in text(learner)
    assert not any(cell.get("outputs") for cell in teacher["cells"])
    outputs = [o for cell in learner["cells"] for o in cell.get("outputs", ())]
    assert "Hello from 2 + 2 = 4\n" in [line for o in outputs for line in o.get("text", ())]
    picture = next(o for o in outputs if "image/png" in o.get("data", ()))
    assert picture["metadata"]["image/png"]["alt"] == "an empty figure"
    assert set(learner["metadata"]) == {"kernelspec", "language_info"}


def test_head_setup_and_index_come_from_one_address(built):
    _, learner = edition(built)
    head, setup = ("".join(cell["source"]) for cell in learner["cells"][:2])
    assert head.startswith("# 07 · A lesson") and "Read: 3 min" in head
    page = "someone/course/blob/main/notebooks/07_lesson.ipynb"
    assert f"colab.research.google.com/github/{page}" in head
    assert f"kaggle.com/kernels/welcome?src=https://github.com/{page}" in head
    assert "git clone --depth=1 https://github.com/someone/course stylenb" in setup
    assert len(setup.splitlines()) <= 6
    index = (built / "notebooks" / "README.md").read_text()
    assert "| [07 · A lesson](07_lesson.ipynb) | What it is about. | 3 min | 4 min |" in index


def test_rebuild_without_change_is_no_diff_and_ids_are_unique(built):
    before = {p: p.read_bytes() for p in built.rglob("*.ipynb")}
    assert build.build(root=built) == []
    build.build(root=built, again=True)
    assert before == {p: p.read_bytes() for p in built.rglob("*.ipynb")}
    ids = [cell["id"] for cell in edition(built)[1]["cells"]]
    assert len(ids) == len(set(ids))
    assert build.check(root=built) == []


def test_changed_text_keeps_outputs_and_changed_code_runs_again(built, monkeypatch):
    source = built / "notebooks" / "src" / "07_lesson.py"
    ran = []
    run = build.run_notebook
    monkeypatch.setattr(build, "run_notebook", lambda *a: (ran.append(a), run(*a)))
    source.write_text(SOURCE.replace("Some text.", "Other text."))
    assert any("not what 07_lesson.py gives" in fault for fault in build.check(root=built))
    build.build(root=built)
    assert not ran and "Other text." in text(edition(built)[1])
    source.write_text(SOURCE.replace("2 + 2", "3 + 3"))
    build.build(root=built)
    assert ran and "= 6" in json.dumps(edition(built)[1])


def test_next_lesson_is_linked(root):
    (root / "notebooks" / "src" / "08_more.py").write_text(SOURCE.replace("A lesson", "More"))
    source = root / "notebooks" / "src" / "07_lesson.py"
    cell = build.make_edition(source, "learner").cells[-1]
    assert cell.source == "**Next:** [08 · More](08_more.ipynb) · [All lessons](README.md)"
    cell = build.make_edition(source.with_name("08_more.py"), "teacher").cells[-1]
    assert cell.source == "[All lessons](../README.md)"


def spoil(change, cell=3, teacher=False):
    """Edit a cell of the committed notebook, by default the first that prints."""

    def apply(root):
        path, notebook = edition(root, teacher=teacher)
        change(notebook["cells"][cell] if cell else notebook)
        path.write_text(json.dumps(notebook))

    return apply


def printed(text):
    stream = {"output_type": "stream", "name": "stdout", "text": text}
    return spoil(lambda cell: cell.update(outputs=[stream]))


WIDGET = {
    "output_type": "display_data",
    "metadata": {},
    "data": {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}},
}
ERROR = {"output_type": "error", "ename": "E", "evalue": "", "traceback": []}
OTHER = "not what 07_lesson.py gives"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (spoil(lambda cell: cell.update(source="edited = 1")), OTHER),
        (spoil(lambda cell: cell.update(id="other")), OTHER),
        (spoil(lambda cell: cell["metadata"].update(tags=["x"])), OTHER),
        (spoil(lambda notebook: notebook["cells"].pop(), cell=None), OTHER),
        (spoil(lambda cell: cell.update(execution_count=None)), "outputs are missing"),
        (spoil(lambda n: n["metadata"].update(widgets={}), cell=None), "holds widget state"),
        (spoil(lambda cell: cell["outputs"].append(WIDGET)), "holds widget state"),
        (spoil(lambda cell: cell.update(outputs=[ERROR])), "ended in an error"),
        (spoil(lambda cell: cell["metadata"].update(execution={})), "holds timings"),
        (printed("wrote /root/out.png"), "names a folder of one machine, /root/out.png"),
        (printed("'/tmp/abc'"), "names a folder of one machine"),
        (printed("x" * 1_000_000), "more than 900 kB"),
        (
            spoil(lambda cell: cell.update(source="show.sheet([one])\nprint(1)")),
            "nobody sees it: show.sheet",
        ),
        (
            spoil(lambda cell: cell.update(execution_count=1), teacher=True),
            "the teacher's edition should have none",
        ),
        (lambda root: edition(root)[0].unlink(), "missing"),
        (lambda root: edition(root)[0].rename(root / "notebooks" / "09_x.ipynb"), "has no source"),
        (lambda root: (root / "notebooks" / "README.md").write_text("old"), "README.md"),
    ],
)
def test_check_names_what_is_wrong(built, change, said):
    change(built)
    faults = build.check(root=built)
    assert any(said in fault for fault in faults), faults
    assert all(fault.startswith("notebooks/") for fault in faults)


def test_a_failing_cell_fails_the_build(root):
    source = root / "notebooks" / "src" / "07_lesson.py"
    source.write_text(SOURCE + "\n# %%\n1 / 0\n")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        build.build(root=root)
    assert not (root / "notebooks" / "07_lesson.ipynb").exists()


def test_header_and_names_are_checked(root):
    with pytest.raises(StylenbError, match="there are 07_lesson"):
        build.build(["12"], root=root)
    (root / "notebooks" / "src" / "07_lesson.py").write_text("# %%\n1\n")
    with pytest.raises(StylenbError, match="header lacks title"):
        build.build(root=root)


@pytest.mark.parametrize("where", [".", "notebooks", "notebooks/solutions"])
def test_setup_cell_finds_the_repository(tmp_path, where):
    """From the root, from both folders of notebooks, and never by cloning."""
    folder = tmp_path / where
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("stylenb", "data"):
        (tmp_path / name).symlink_to(build.ROOT / name)
    done = run(folder, "-c", build.SETUP.format(repository="no://where"))
    assert done.returncode == 0, done.stderr


def test_setup_cell_clones_elsewhere_and_finds_the_clone_again(tmp_path):
    setup = build.SETUP.format(repository=f"file://{build.ROOT}")
    for _ in range(2):
        done = run(tmp_path, "-c", setup)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "stylenb" / "stylenb" / "doctor.py").exists()


def run(folder: Path, *command):
    """Python in a folder from which nothing of this repository can be imported."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, env=env
    )


@pytest.mark.pocket_model
def test_committed_editions_are_what_their_sources_give(tmp_path):
    done = run(tmp_path, build.__file__, "--check")
    assert done.returncode == 0, done.stderr
