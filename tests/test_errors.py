"""A file or a folder is replaced when the new one is whole, or stays what it was."""

import errno
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from stylenb import StylenbError
from stylenb.errors import replacing


def write(path, text):
    """A file, or a folder with a file in it if the name has no suffix."""
    if not path.suffix:
        path.mkdir()
        path = path / "part.txt"
    path.write_text(text)


def read(path):
    return (path if path.suffix else path / "part.txt").read_text()


@pytest.mark.parametrize("name", ["file.txt", "folder"])
def test_what_is_whole_replaces_what_was_there(tmp_path, name):
    path = tmp_path / "new" / "folders" / name
    for text in ("first", "second"):
        with replacing(path) as temporary:
            assert temporary.parent == path.parent and temporary.suffix == path.suffix
            assert not temporary.exists()
            write(temporary, text)
        assert read(path) == text
        assert os.listdir(path.parent) == [name]
        temporary.mkdir()  # as a kill leaves it
        (temporary / "part.txt").write_text("half")


@pytest.mark.parametrize("name", ["file.txt", "folder"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, StylenbError])
def test_an_interruption_leaves_what_was_there(tmp_path, name, error):
    path = tmp_path / name
    write(path, "old")
    with pytest.raises(error), replacing(path) as temporary:
        write(temporary, "half")
        raise error
    assert read(path) == "old" and os.listdir(tmp_path) == [name]


def test_a_folder_that_cannot_take_its_place_gives_it_back(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    write(path, "old")

    def refuse(source, target):
        raise OSError(errno.EACCES, "refused")

    monkeypatch.setattr("stylenb.errors.os.replace", refuse)
    with pytest.raises(StylenbError, match="no permission"), replacing(path) as temporary:
        write(temporary, "new")
    assert read(path) == "old" and os.listdir(tmp_path) == ["folder"]


SENTENCES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "you have no permission to write there",
    errno.EPERM: "you have no permission to write there",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EIO: "Input/output error: choose another folder",
}


@pytest.mark.parametrize("number, sentence", SENTENCES.items())
def test_each_error_of_the_system_has_its_own_sentence(tmp_path, number, sentence):
    from safetensors import SafetensorError

    words = os.strerror(number)
    wrapped = SafetensorError(f"Error while serializing: I/O error: {words} (os error {number})")
    for error in (OSError(number, words), wrapped):
        with pytest.raises(StylenbError) as caught, replacing(tmp_path / "a.txt") as temporary:
            write(temporary, "half")
            raise error
        message = str(caught.value)
        assert message.startswith(f"'{tmp_path / 'a.txt'}' cannot be written, ")
        assert sentence.split(": ")[0] in message and message.endswith(".") and "\n" not in message
        assert os.listdir(tmp_path) == []


def test_what_the_system_really_says(tmp_path):
    def save(path):
        with replacing(path) as temporary:
            save_file({"x": torch.ones(2)}, temporary)

    (tmp_path / "file").write_text("")
    (tmp_path / "taken.txt").mkdir()
    for name, sentence in (
        ("x" * 300 + ".txt", "the name is too long"),
        ("file/a.txt", "a file of that name is in the way"),
        ("file/deeper/a.txt", "a part of its path is a file"),
        ("taken.txt", "it is a folder: name a file inside it"),
    ):
        with pytest.raises(StylenbError, match=sentence):
            save(tmp_path / name)
    with pytest.raises(StylenbError, match="there is no such folder"), replacing(tmp_path / "a"):
        pass  # nothing was written
    save(tmp_path / "good.safetensors")
    assert load_file(tmp_path / "good.safetensors")["x"].tolist() == [1, 1]
    assert sorted(os.listdir(tmp_path)) == ["file", "good.safetensors", "taken.txt"]
