"""Checkpoints: the state of a training in a folder, from which it resumes bit for bit."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import StylenbError, replacing


def refuse_other_run(folder: str | Path | None, settings: dict) -> None:
    """Raise StylenbError if the newest checkpoint in the folder is of a run with other settings."""
    for path in _newest_first(folder):
        try:
            with safe_open(path, "pt") as file:
                kept = json.loads(file.metadata()["settings"])
        except (SafetensorError, OSError):
            continue  # damaged; the one before it will do
        different = [
            f"{key} was {kept.get(key)!r} and is {value!r}"
            for key, value in settings.items()
            if kept.get(key) != value
        ]
        if different:
            raise StylenbError(
                f"{folder} holds a run with other settings ({'; '.join(different)}): give those "
                "again to resume it, or another folder to start afresh."
            )
        return


def _newest_first(folder: str | Path | None) -> list[Path]:
    found = () if folder is None else Path(folder).glob("checkpoint-*.safetensors")
    return sorted(found, reverse=True)


class Checkpoints:
    """The last `keep` of `checkpoint-000050.safetensors`, ... in a folder.

    Each holds the trained weights, the optimiser's state and, as metadata, settings and history.
    A kill or a full disk leaves the one before it whole. Without a folder only the last good
    weights are kept, in memory.

    settings: all that has to be the same for the run to be resumed.
    """

    def __init__(self, folder, keep, settings, parameters, optimizer, scaler):
        self.folder = None if folder is None else Path(folder)
        self.keep, self.settings, self.parameters = keep, settings, parameters
        self.optimizer, self.scaler = optimizer, scaler
        self.good: tuple[int, dict] = (0, {})  # a step and its weights; at step 0 nothing has moved
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StylenbError(
                    f"{self.folder} cannot be a folder ({error}): choose another for this run."
                ) from error
            for left_over in self.folder.glob(".~checkpoint-*"):
                left_over.unlink(missing_ok=True)

    def save(self, history) -> None:
        """Keep the state after as many steps as the history has rows; weights that are not finite
        are not kept. A disk that refuses costs a warning, not the run."""
        step = len(history.rows)
        weights = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}
        if not all(w.isfinite().all() for w in weights.values()):
            return
        self.good = (step, weights)
        if self.folder is None:
            return
        tensors = {f"weights/{name}": w for name, w in weights.items()}
        numbers: dict[str, float] = {}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    # a copy: 8-bit states share tensors, which safetensors does not write
                    tensors[f"optimizer/{index}/{key}"] = value.cpu().contiguous().clone()
                else:
                    numbers[f"optimizer/{index}/{key}"] = value
        metadata = {"settings": self.settings, "rows": history.rows}
        metadata |= {"numbers": numbers, "scaler": self.scaler.state_dict()}
        try:
            with replacing(self.folder / f"checkpoint-{step:06d}.safetensors") as temporary:
                save_file(tensors, temporary, {k: json.dumps(v) for k, v in metadata.items()})
        except StylenbError as error:
            warnings.warn(
                f"Step {step} was not saved ({str(error).rstrip('.')}); the training runs on, and "
                f"what was saved before is whole. Free some disk space in {self.folder}.",
                stacklevel=2,
            )
            return
        for old in _newest_first(self.folder)[self.keep :]:
            old.unlink()
        with contextlib.suppress(StylenbError):  # for looking; the checkpoint has it too
            history.save(self.folder / "history.json")

    def resume(self) -> list[dict]:
        """Load the newest checkpoint that is whole, if there is one; return the history's rows."""
        refuse_other_run(self.folder, self.settings)
        for path in _newest_first(self.folder):
            try:
                with safe_open(path, "pt") as file:
                    metadata = {k: json.loads(v) for k, v in file.metadata().items()}
                    found = {key: file.get_tensor(key) for key in file.keys()}
            except OSError:
                continue
            except SafetensorError:  # damaged; the one before it will do
                path.unlink()  # or it would count as one of those to keep
                continue
            weights, state = {}, {}
            for key, value in {**found, **metadata["numbers"]}.items():
                kind, key = key.split("/", 1)
                if kind == "weights":
                    weights[key] = value
                else:
                    index, key = key.split("/")
                    state.setdefault(int(index), {})[key] = value
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
            self.scaler.load_state_dict(metadata["scaler"])
            self.good = len(metadata["rows"]), weights
            self.restore()
            return metadata["rows"]
        return []

    @torch.no_grad()
    def restore(self) -> int:
        """Put the last good weights back; return their step."""
        step, weights = self.good
        for name, weight in weights.items():
            self.parameters[name].copy_(weight)
        return step

    def save_pictures(self, step: int, pictures: Sequence) -> None:
        """In `validation/000100-0.png`, ...: for looking at, the run needs none of them."""
        with contextlib.suppress(StylenbError):
            for index, picture in enumerate(pictures if self.folder else ()):
                path = self.folder / "validation" / f"{step:06d}-{index}.png"
                with replacing(path) as temporary:
                    picture.save(temporary)

    def pictures(self, steps: int) -> dict[int, list]:
        """The validation pictures of the first `steps` steps: step -> pictures."""
        found: dict[int, list] = {}
        files = self.folder.glob("validation/*.png") if self.folder else ()
        for file in sorted(files, key=lambda file: (len(file.name), file.name)):  # 10 after 9
            name = re.fullmatch(r"(\d+)-\d+\.png", file.name)
            with contextlib.suppress(OSError):
                if name and int(name[1]) <= steps:
                    found.setdefault(int(name[1]), []).append(Image.open(file).convert("RGB"))
        return found
