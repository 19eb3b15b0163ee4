"""The report works on any machine, and a set-up installs what is missing without moving torch."""

import subprocess
import sys
from importlib import metadata

import pytest

from stylenb import StylenbError, doctor, weights


@pytest.fixture
def installed(monkeypatch):
    """Pretend that some distributions are absent or of another version."""

    def pretend(**versions):
        real = metadata.version

        def version(name):
            found = versions[name] if name in versions else real(name)
            if found is None:
                raise metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(doctor.metadata, "version", version)

    return pretend


@pytest.fixture
def pip(monkeypatch):
    """Records what pip is asked for, and answers for it."""
    asked = {"returncode": 0, "stderr": ""}

    def run(command, **options):
        asked["command"] = command
        asked["fixed"] = open(command[command.index("--constraint") + 1]).read().split()
        return subprocess.CompletedProcess(command, asked["returncode"], "", asked["stderr"])

    monkeypatch.setattr(doctor.subprocess, "run", run)
    return asked


def test_the_report_says_what_matters():
    text = doctor.report()
    for part in ("Python", "Platform", "diffusers", "Device", "Precision", "Base 'pocket'"):
        assert part in text
    assert metadata.version("diffusers") in text
    assert "work together" in text
    assert "GB" in text
    assert weights.SD15_VARIABLE in text  # what to do for SD v1.5
    names = [line.split("  ")[0] for line in text.splitlines()]
    assert len(set(names)) == len(names)


def test_the_report_names_missing_and_old_packages(installed):
    installed(lpips=None, peft="0.1.0")
    lines = {line.split()[0]: line for line in doctor.report().splitlines()}
    assert "missing" in lines["lpips"]
    assert "0.1.0" in lines["peft"] and "too old" in lines["peft"]
    assert "too old" not in lines["diffusers"]


def test_the_report_works_with_nothing_installed():
    """In an interpreter that sees no site-packages at all."""
    bare = [sys.executable, "-S", "-E", "-c", "from stylenb import doctor; print(doctor.report())"]
    folder = doctor.REQUIREMENTS.parent
    done = subprocess.run(bare, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "missing" in done.stdout and "torch does not work" in done.stdout


def test_where_sd15_comes_from(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("STYLENB_SD15", str(tiny_folder))
    assert str(tiny_folder) in doctor.report()
    monkeypatch.setenv("STYLENB_SD15", str(tmp_path / "gone"))
    assert "NO SUCH FOLDER" in doctor.report()


def test_a_broken_pair_of_torch_and_torchvision_is_named(monkeypatch):
    monkeypatch.setattr("torch.__version__", "2.11.0+cpu")
    monkeypatch.setattr("torchvision.__version__", "0.26.0+cu128")
    assert "MISMATCH (built for cpu and cu128)" in doctor._torch_pair()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "FAIL" in doctor._torch_pair()


def test_nothing_missing_means_nothing_done(pip):
    assert doctor.install_missing() == []
    assert "command" not in pip


def test_only_what_is_missing_or_too_old_is_installed(installed, pip):
    installed(lpips=None, diffusers="0.30.0")
    wanted = doctor.install_missing()
    assert [line.split(">")[0] for line in wanted] == ["diffusers", "lpips"]
    assert pip["command"][-2:] == wanted
    assert f"torch=={metadata.version('torch')}" in pip["fixed"]
    assert f"torchvision=={metadata.version('torchvision')}" in pip["fixed"]


def test_a_torch_that_imports_is_never_named(installed, pip):
    installed(torch=None, torchvision=None, numpy=None, lpips=None)  # as in some conda set-ups
    assert doctor.install_missing() == ["lpips>=0.1.4"]
    installed(numpy="1.0.0", lpips=None)  # too old, but moving it would break the running kernel
    assert doctor.install_missing() == ["lpips>=0.1.4"]


def test_a_hosted_notebook_keeps_its_own_jupyter_and_opencv(installed, pip, monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    workshop = "jupyterlab ipykernel jupytext nbconvert nbmake pytest pytest-xdist".split()
    installed(**dict.fromkeys([*workshop, "opencv-python-headless"]))
    assert doctor.hosted() == "Kaggle" and doctor.install_missing() == []
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    assert doctor.hosted() is None and len(doctor.install_missing()) == len(workshop)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert doctor.hosted() == "Colab" and doctor.install_missing() == []


def test_pip_without_network_is_one_sentence(installed, pip):
    installed(lpips=None)
    pip.update(returncode=1, stderr="WARNING: Retrying\nERROR: No matching distribution found\n")
    with pytest.raises(StylenbError, match="No matching distribution.*switch the internet on"):
        doctor.install_missing()


def test_a_python_that_pip_may_not_change_or_does_not_have_is_named(installed, pip):
    installed(lpips=None)
    pip.update(returncode=1, stderr="error: externally-managed-environment\n\n This environment is")
    with pytest.raises(StylenbError, match="belongs to the system.*python3 -m venv venv"):
        doctor.install_missing()
    pip.update(returncode=1, stderr=f"{sys.executable}: No module named pip\n")
    with pytest.raises(StylenbError, match="has no pip: run `uv pip install -r"):
        doctor.install_missing()


def test_requirements_hold_no_pin_and_no_folder():
    lines = [line for _, line, _ in doctor._requirements()]
    assert {"torch", "torchvision"} <= set(lines)  # with no version at all
    assert not any("==" in line or "<" in line or line.startswith((".", "-")) for line in lines)


def test_a_lone_package_folder_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "REQUIREMENTS", tmp_path / "requirements.txt")
    with pytest.raises(StylenbError, match="clone of the whole repository"):
        doctor.install_missing()
