"""Files and folders that appear whole or not at all, whatever ends the process that writes them."""

import contextlib
import fnmatch
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from o3d_jax.errors import InputError


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a path to write to; it becomes `path` when the block ends, and vanishes if it fails.

    It lies in the same folder, since a rename is only atomic within one file system, and has the
    same suffix, which some writers take the format from.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def continued(path: Path) -> Iterator[Path]:
    """Gives a hidden path to append to; it becomes `path` when the block ends.

    If the block fails it stays, so that the next attempt goes on where this one ended.
    """
    begun = path.with_name(f".{path.name}.part")
    yield begun
    os.replace(begun, path)


@contextlib.contextmanager
def whole_folder(folder: Path, names: Collection[str]) -> Iterator[Path]:
    """Gives a folder to write `names` into; it becomes `folder` only if the block ends well.

    An earlier one is replaced if all files in and below it have such names: paths relative to it,
    in which * stands for anything. What is only begun is hidden: its name starts with a dot.

    Raises:
        InputError: the parent folder cannot be made or written to, or what is there is not ours.
        PermissionError: what is there cannot be listed.
    """
    check_ours(folder, names)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = _beside(folder)
        scratch.mkdir()
    except OSError as error:
        raise InputError(
            f"cannot write to {folder.parent}: {error.strerror}; choose another folder"
        ) from error

    old = _beside(folder)
    try:
        yield scratch
        # No folder can be renamed onto one with files in it, so the old one makes room first.
        if folder.exists():
            os.replace(folder, old)
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(old, ignore_errors=True)


def check_ours(folder: Path, names: Collection[str]) -> None:
    """Raises an InputError if there is anything at `folder` but files of these names in a folder.

    Names as in `whole_folder`.
    """
    if not folder.is_dir():
        others = ["a file"] if folder.exists() else []
    else:
        paths = (path.relative_to(folder).as_posix() for path in _files(folder))
        others = [p for p in paths if not any(fnmatch.fnmatchcase(p, name) for name in names)]
    if others:
        raise InputError(
            f"{folder} exists and is no earlier result: it is or holds {others[0]}; choose "
            "another place"
        )


def _beside(folder: Path) -> Path:
    """A new name in the same folder, which `save_model` knows leftovers by."""
    return folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")


def _files(folder: Path) -> Iterator[Path]:
    """All below that is no folder; links are not followed, for they would be deleted as links."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path))
            else:
                yield Path(entry.path)
