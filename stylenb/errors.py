"""The one exception that stylenb raises on purpose, and the one way in which it writes a file."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What can be done about an error of the operating system, by its number.
_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space, or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space, or choose another folder",
    errno.EROFS: "the disk is read-only: choose a folder on another one",
    errno.EACCES: "you have no permission to write there: choose another folder",
    errno.EPERM: "you have no permission to write there: choose another folder",
    errno.ENAMETOOLONG: "the name is too long for this disk: choose a shorter one",
    errno.ENOTDIR: "a part of its path is a file, not a folder: choose another folder",
    errno.EEXIST: "a file of that name is in the way: choose another folder",
    errno.ENOENT: "there is no such folder: make it first",
    errno.EISDIR: "it is a folder: name a file inside it",
}


class StylenbError(ValueError):
    """Something the caller can mend; its text is one sentence that says what to do."""


def not_writable(path: Path, error: Exception) -> StylenbError:
    """The sentence for an OSError, or for safetensors' own, which tells its number in words."""
    wrapped = re.search(r"os error (\d+)", str(error))
    number = int(wrapped[1]) if wrapped else getattr(error, "errno", None)
    return StylenbError(f"'{path}' cannot be written, {_ADVICE.get(number, error)}.")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file, or a folder, under a temporary name; it gets its own name when it is whole.

    Gives the temporary path, which lies beside `path` and has its suffix; folders above it are
    made. So a kill, a full disk or an error leaves what was there before.

    Raises StylenbError where the operating system refuses.
    """
    path = Path(path)
    temporary, old = (path.with_name(f".{mark}{path.name}") for mark in "~-")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)  # left over from a kill
        yield temporary
        if path.is_dir() and temporary.is_dir():  # no system renames onto a folder that holds files
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        _remove(temporary)
        if os.path.isdir(old) and not os.path.exists(path):
            old.rename(path)
        if not (isinstance(error, OSError) or type(error).__name__ == "SafetensorError"):
            raise
        raise not_writable(path, error) from error


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)  # if it is a folder
    with suppress(OSError):
        path.unlink()
