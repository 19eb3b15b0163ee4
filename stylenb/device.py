"""The device that really works, the precision that suits it, and what training keeps there."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from .errors import StylenbError


def device_and_dtype(device=None) -> tuple[torch.device, torch.dtype, str]:
    """The device that really works, the precision that suits it, and the reason in words.

    `torch.cuda.is_available()` is True on a GPU that this build of torch has no kernels for, so
    each candidate has to do a small convolution and matrix product first. bfloat16 needs compute
    capability 8.0: on a T4 (7.5) it is emulated, whatever `is_bf16_supported()` says.

    Raises StylenbError if a device is named and does not work.
    """
    gpus = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    there = [kind for kind, is_available in gpus.items() if is_available()] + ["cpu"]
    failures = ""
    for candidate in there if device is None else [device]:
        try:
            found = torch.device(candidate)
        except (RuntimeError, TypeError) as error:
            raise StylenbError(f"device must be 'cpu', 'cuda' or 'mps', not {device!r}.") from error
        dtype, why = _precision(found)
        failure = _probe(found, dtype)
        if not failure:
            return found, dtype, why + failures
        failures += f"; {found} is there but fails: {failure}"
    raise StylenbError(
        f"The device {str(found)!r} does not work ({failure}): leave device out to use the one "
        "that does."
    )


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A precision by its name, "float16" or "fp16" for one; of "auto" and None, None.

    Raises StylenbError for what is no precision that a base can have.
    """
    text = str(dtype).removeprefix("torch.").replace("fp", "float").replace("bfloat", "bf")
    known = {"float32": torch.float32, "float16": torch.float16, "bf16": torch.bfloat16}
    if dtype is None or dtype == "auto" or text in known:
        return known.get(text)
    raise StylenbError(f"dtype is 'float32', 'float16', 'bfloat16' or 'auto', not {dtype!r}.")


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the hardware really multiplies in it, else None: train in float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else None
    if device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)():
        return torch.bfloat16
    return None


def autocast(device: torch.device) -> torch.autocast:
    """The context to train in: the precision of autocast_dtype, or nothing where that is None."""
    dtype = autocast_dtype(device)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def _precision(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type != "cuda":
        return torch.float32, f"float32 is what {device.type} does best"
    try:
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
    except (RuntimeError, AssertionError):  # no such GPU: the probe says so
        return torch.float32, ""
    number = f"compute capability {major}.{minor}"
    if major >= 8:
        return torch.bfloat16, f"{name} has bfloat16 in hardware ({number})"
    return torch.float16, f"{name} has no bfloat16 in hardware ({number} < 8.0)"


def _probe(device: torch.device, dtype: torch.dtype) -> str:
    """Empty if the device does a small convolution and matrix product, else why it does not."""
    try:
        ones = torch.ones(1, 4, 8, 8, device=device, dtype=dtype)
        kernel = torch.ones(4, 4, 3, 3, device=device, dtype=dtype)
        out = torch.nn.functional.conv2d(ones, kernel).flatten(1)
        result = (out @ out.T).float().cpu().item()
    except Exception as error:
        return str(error).strip().split("\n")[0] or type(error).__name__
    # 144 outputs of 4 * 3 * 3 ones each; bfloat16 keeps 8 bits
    return "" if abs(result / (144 * 36**2) - 1) < 0.02 else "wrong results"


@contextmanager
def kept_activations(*modules: torch.nn.Module):
    """Inside, count what autograd saves for the way back, but for the modules' own weights.

    Gives a dictionary that fills while the context is open: a number for each storage -> its bytes.
    Shapes are enough: it works on the meta device too. Taught in lesson 05.
    https://docs.pytorch.org/docs/stable/autograd.html#saved-tensors-hooks
    """
    kept: dict[int, int] = {}
    weights: set[int] = set()

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if not weights:  # late, since a LoRA may be added inside
            weights.update(p.untyped_storage()._cdata for m in modules for p in m.parameters())
        storage = tensor.untyped_storage()  # several tensors may be views of one
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        yield kept
