"""A disk that fills up while orbax writes: one error that names the folder, and nothing else said.

Orbax writes in threads of its own and of TensorStore's. Each of them reports what ended it, with a
traceback, before the caller gets to know.
"""

import contextlib
import errno
import functools
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room on the disk, none that is the user's, or none in a file (by `ulimit -f`)."""


@contextlib.contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turns orbax's error for a full disk, which is the user's to mend, into an OSError."""
    try:
        yield
    except ValueError as error:
        number = _full_disk(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(folder)) from error


@contextlib.contextmanager
def threads_quiet_about_full_disk() -> Iterator[None]:
    """Within it, threads say nothing of a full disk, of which the caller is told by an error."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook

    def quieter(found: Any) -> None:
        # TensorStore calls back to what waited for a write, and has given up for another's error.
        if str(found.exc_value) != "Event loop is closed":
            hook(found)

    news_only = functools.partial(_is_news)  # Another one in each of such blocks.
    logger.addFilter(news_only)
    sys.unraisablehook = quieter
    try:
        yield
    finally:
        logger.removeFilter(news_only)
        if sys.unraisablehook is quieter:
            sys.unraisablehook = hook


def _is_news(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return error is None or _full_disk(error) is None


def _full_disk(error: BaseException) -> int | None:
    """TensorStore's errors have the system's words in their text, and no number."""
    said = str(error)
    return next((number for number in FULL if os.strerror(number) in said), None)
