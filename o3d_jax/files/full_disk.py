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
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room on the disk, none that is the user's, or none in a file (by `ulimit -f`)."""

LOGGERS = ("absl", "asyncio")
"""Where the threads report; asyncio speaks for errors that nobody has fetched."""


@contextlib.contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turns orbax's error for a full disk, which is the user's to mend, into an OSError."""
    try:
        yield
    except ValueError as error:
        number = _full_disk(error)
        if number is None:
            raise
        _keep_quiet()
        raise OSError(number, os.strerror(number), str(folder)) from error


@contextlib.contextmanager
def threads_quiet_about_full_disk() -> Iterator[None]:
    """Within it, threads say nothing of a full disk, of which the caller is told by an error.

    If `full_disk_named` met one, they say nothing of it afterwards either: what they were to fetch
    is given back at some time, maybe at the very end of the process, and complains then.
    """
    hook, quieter = sys.unraisablehook, _quieter(sys.unraisablehook)
    news_only = functools.partial(_is_news)  # Another one in each of such blocks.

    for name in LOGGERS:
        logging.getLogger(name).addFilter(news_only)
    sys.unraisablehook = quieter
    try:
        yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(news_only)
        if sys.unraisablehook is quieter:
            sys.unraisablehook = hook


def _keep_quiet() -> None:
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_is_news)
    sys.unraisablehook = _quieter(sys.unraisablehook)
    # What orbax had begun for other arrays when the first could not be written.
    warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)


def _quieter(hook: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Returns a hook without what TensorStore says that calls back to what has given up."""

    def report(found: Any) -> None:
        if str(found.exc_value) != "Event loop is closed":
            hook(found)

    return report


def _is_news(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return error is None or _full_disk(error) is None


def _full_disk(error: BaseException) -> int | None:
    """TensorStore's errors have the system's words in their text, and no number."""
    said = str(error)
    return next((number for number in FULL if os.strerror(number) in said), None)
