"""Where caches go. Each is optional: in a container neither the package nor a home may be writable.

So there is a next place, among temporary files, or no cache, and a line that says so.
"""

import functools
import logging
import multiprocessing
import os
import shutil
import stat
import tempfile
from pathlib import Path

LEAST_ROOM = 64 * 2**20
"""Bytes that must be free where a cache goes: a disk that becomes full by it ends a run."""


def cache_folder(name: str, chosen: Path | None = None) -> Path | None:
    """Returns a folder that can be written to, for a cache that is called so, or None.

    It is `chosen`, or else in the user's cache, or else among temporary files. Which of the last
    two it became, or that it is none, is logged in one line, once.
    """
    return _cache_folder(name, chosen)


@functools.cache
def _cache_folder(name: str, chosen: Path | None) -> Path | None:
    first = user_folder(name) if chosen is None else chosen
    if first is not None and is_usable(first):
        return first
    where = (
        "there is no home for it" if first is None else f"{first} is full or cannot be written to"
    )
    for place in (user_folder(name), _temporary(name)):
        if place is not None and is_usable(place):
            _say(f"the cache {name!r} is in {place}, since {where}")
            return place
    _say(
        f"there is no cache {name!r}, since {where}: all is compiled anew each time; set "
        "XDG_CACHE_HOME to a folder that can be written to"
    )
    return None


def is_usable(folder: Path) -> bool:
    """Returns whether files can be written there; makes the folder if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return shutil.disk_usage(folder).free >= LEAST_ROOM
    except OSError:
        return False


def user_folder(name: str) -> Path | None:
    """Returns where in the user's cache something is, or None if there is no home for it."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # An unknown user without HOME has no home: the tilde is still there.
    return Path(home) / "o3d_jax" / name if os.path.isabs(home) else None


def _temporary(name: str) -> Path | None:
    """Returns a folder of the user's own among temporary files, or None.

    What is read from a cache is executed, so nobody else may write there.
    """
    try:
        own = Path(tempfile.gettempdir()) / f"o3d_jax-{os.getuid()}"
        own.mkdir(mode=0o700, exist_ok=True)
        there = own.lstat()
    except OSError:  # Among them that there is no folder at all for temporary files.
        return None
    is_own = there.st_uid == os.getuid() and stat.S_IMODE(there.st_mode) & 0o022 == 0
    return own / name if is_own and stat.S_ISDIR(there.st_mode) else None


def _say(line: str) -> None:
    if multiprocessing.parent_process() is None:  # Workers would say the same.
        logging.getLogger(__name__).warning(line)
