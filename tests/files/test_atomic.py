"""Files and folders appear whole or not at all, and nothing of others is replaced."""

import errno
import os

import pytest

from o3d_jax.errors import InputError
from o3d_jax.files.atomic import continued, whole_folder, written_whole


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "new" / "result"
    for text in ("one", "two"):
        with whole_folder(folder, ["file"]) as scratch:
            (scratch / "file").write_text(text)
            assert not folder.exists() or (folder / "file").read_text() == "one"
        assert (folder / "file").read_text() == text
    with pytest.raises(KeyError), whole_folder(folder, ["file"]) as scratch:
        (scratch / "file").write_text("three")
        raise KeyError
    assert (folder / "file").read_text() == "two"
    assert list(folder.parent.iterdir()) == [folder]  # No scratch is left.


@pytest.mark.parametrize(
    ("names", "theirs"),
    [
        (["weights"], "weights/thesis.txt"),
        (["vae/a.safetensors", "vae/a-[0-9].safetensors"], "vae/thesis.txt"),
        (["vae/a.safetensors", "vae/a-[0-9].safetensors"], "vae/a-x.safetensors"),
        (["vae/a.safetensors"], "deep/vae/a.safetensors"),
        (["vae/a.safetensors"], "A.safetensors"),
    ],
)
def test_what_others_put_into_a_folder_of_ours_is_never_replaced(tmp_path, names, theirs):
    path = tmp_path / "result" / theirs
    path.parent.mkdir(parents=True)
    path.write_text("keep me")
    with pytest.raises(InputError, match=f"holds {theirs}; choose another place"):
        with whole_folder(tmp_path / "result", names):
            pass
    assert path.read_text() == "keep me"


def test_what_a_link_points_to_is_no_earlier_result(tmp_path):
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "file").write_text("ours")
    (tmp_path / "result" / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="holds link; choose"):
        with whole_folder(tmp_path / "result", ["file"]):
            pass


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    folder = tmp_path / "result"
    with whole_folder(folder, ["file"]) as scratch:
        (scratch / "file").write_text("old")
    replace = os.replace

    def fails(source, target):
        if source == scratch:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="Input/output"):
        with whole_folder(folder, ["file"]) as scratch:
            (scratch / "file").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    assert (folder / "file").read_text() == "old"


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.txt"
    for text in ("one", "two"):
        with written_whole(path) as scratch:
            scratch.write_text(text)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
    with pytest.raises(KeyError), written_whole(path) as scratch:
        scratch.write_text("three")
        raise KeyError
    assert path.read_text() == "two" and list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_continued_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "file.txt"
    with pytest.raises(KeyError), continued(path) as begun:
        begun.write_text("one")
        raise KeyError
    assert not path.exists()
    with continued(path) as begun, begun.open("a") as file:
        file.write(" two")
    assert path.read_text() == "one two" and list(tmp_path.iterdir()) == [path]
