"""What is installed and what really works here, and the set-up of a hosted notebook.

Only the standard library is imported at the top: this has to run where packages are missing.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from . import weights
from .errors import StylenbError

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"
# For building and testing the course; a hosted notebook brings its own Jupyter, best left alone.
_WORKSHOP = set("jupyterlab ipykernel jupytext nbconvert nbmake pytest pytest-xdist".split())
# Never moved by an installation: the kernel may hold them already, and torch fits the GPU.
_FIXED = ("torch", "torchvision", "torchaudio", "numpy")
# Distributions that another one may stand in for, by the module that they provide.
_MODULES = {"opencv-python-headless": "cv2"}
_TORCH_ADVICE = "install both anew in one command, pip install --force-reinstall torch torchvision"


def hosted() -> str | None:
    """ "Kaggle", "Colab", or None on a machine of one's own."""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "Kaggle"
    return "Colab" if os.environ.get("COLAB_RELEASE_TAG") else None


def install_missing() -> list[str]:
    """Install with pip what requirements.txt asks for and this Python lacks; return those lines.

    Never touches a torch, torchvision or numpy that is there, and leaves out the tools for
    building and testing the course on Kaggle and Colab. Nothing to do takes no time and no
    network. Raises StylenbError if pip fails.
    """
    left_alone = {name for name in _FIXED if _importable(name)} | (_WORKSHOP if hosted() else set())
    wanted = [line for name, line, state in _requirements() if state and name not in left_alone]
    if not wanted:
        return []
    with tempfile.TemporaryDirectory() as folder:
        fixed = Path(folder) / "fixed.txt"
        pins = [f"{name}=={version}" for name in _FIXED if (version := _version(name))]
        fixed.write_text("\n".join(pins) + "\n", encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(fixed)]
        done = subprocess.run([*pip, *wanted], capture_output=True, text=True)
    if "externally-managed-environment" in done.stderr:
        raise StylenbError(
            "This Python belongs to the system, and pip may not change it (PEP 668): make a "
            "virtual environment (python3 -m venv venv), and use the Python in it."
        )
    if done.returncode and "No module named pip" in done.stderr:
        raise StylenbError(
            f"This Python ({sys.executable}) has no pip: run `uv pip install -r requirements.txt` "
            "where uv made it, or `python -m ensurepip` once."
        )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line]
        raise StylenbError(
            f"pip could not install {', '.join(wanted)} "
            f"({(errors or ['no message'])[-1].removeprefix('ERROR: ')}): switch the internet on "
            "(on Kaggle: Settings, Internet) and run the cell again."
        )
    importlib.invalidate_caches()
    return wanted


def report() -> str:
    """A table of what matters when something does not work, one line each."""
    machine = f"{platform.platform(terse=True)}, {os.cpu_count()} CPU cores"
    rows = {
        "Python": f"{platform.python_version()} at {sys.executable}",
        "Platform": f"{hosted() or 'local'}, {machine}",
    }
    for name, line, state in _requirements():
        rows[name] = (_version(name) or "missing") + (f"  ({state}: {line})" if state else "")
    loras = weights.DATA / "loras"
    styles = ", ".join(sorted(path.stem for path in loras.glob("*.safetensors")))
    rows |= {
        "torch + torchvision": _torch_pair(),
        **_device(),
        "Base 'pocket'": _pocket(),
        "Base 'sd15'": _sd15(),
        "Styles": styles or f"none in {loras}",
        "Free disk here": f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _requirements() -> list[tuple[str, str, str]]:
    """(distribution, its line of requirements.txt, "" or "missing" or "too old")."""
    try:
        text = REQUIREMENTS.read_text(encoding="utf-8")
    except OSError as error:
        raise StylenbError(
            f"{REQUIREMENTS} cannot be read: use stylenb from a clone of the whole repository."
        ) from error
    lines = re.findall(r"^([\w-]+)(.*?) *(?:#.*)?$", text, re.MULTILINE)
    return [(name, name + bound, _state(name, bound)) for name, bound in lines]


def _state(name: str, bound: str) -> str:
    version = _version(name)
    if version is None:
        stands_in = name in (*_MODULES, *_FIXED) and _importable(_MODULES.get(name, name))
        return "" if stands_in else "missing"
    return "too old" if _numbers(version) < _numbers(bound.removeprefix(">=")) else ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _numbers(version: str) -> list[int]:
    """Of "2.11.0+cpu" [2, 11, 0]."""
    return [int(number) for number in re.match(r"[\d.]*", version)[0].split(".") if number]


def _torch_pair() -> str:
    try:
        import torch
        import torchvision
    except Exception as error:  # a mismatched pair raises RuntimeError, a broken one OSError
        first = str(error).strip().split("\n")[0]
        return f"FAIL ({first}): {_TORCH_ADVICE}"
    builds = [package.__version__.partition("+")[2] for package in (torch, torchvision)]
    if all(builds) and builds[0] != builds[1]:
        return f"MISMATCH (built for {builds[0]} and {builds[1]}): {_TORCH_ADVICE}"
    return "work together"


def _device() -> dict[str, str]:
    try:
        from .device import device_and_dtype

        device, dtype, why = device_and_dtype()
    except Exception as error:
        return {"Device": f"unknown, torch does not work ({type(error).__name__})"}
    return {
        "Device": f"{device} (it did a small computation)",
        "Precision": f"{str(dtype).removeprefix('torch.')}: {why}",
    }


def _pocket() -> str:
    folder = weights.DATA / "pocket-sd"
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    if not size:
        return f"missing at {folder}: clone the whole repository, its data folder included"
    return f"{folder}, {size / 1e6:.1f} MB"


def _sd15() -> str:
    found = weights.find_sd15()
    if found:
        origin, folder = found
        return f"{folder}, from {origin}{'' if folder.is_dir() else ': THERE IS NO SUCH FOLDER'}"
    try:
        from huggingface_hub import try_to_load_from_cache as cached

        index = cached(weights.SD15_HUB_ID, "model_index.json", revision=weights.SD15_REVISION)
    except ImportError:
        index = None
    if isinstance(index, str):
        return f"{Path(index).parent}, from the download cache"
    return (
        "not here (only needed for SD v1.5): it is downloaded on first use, or attach it as a "
        f"Kaggle input, or set {weights.SD15_VARIABLE} to its folder"
    )
