"""The one error that is the user's to mend, and how an entry point reports it."""

import contextlib
import errno
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn


class InputError(ValueError):
    """What the user gave cannot be used; the message names the value and the remedy."""


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of the system that another place for the files mends."""


@contextlib.contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turns an InputError, a path that may not be used, or a full disk into one line and status 2.

    It is for entry points, as `with exit_on_input_error():` or as a decorator
    `@exit_on_input_error()`. Where nobody reads what is printed any more, as behind `| head`, it
    ends without a word. Every other exception passes: it is ours to mend, and needs its traceback.
    """
    with _exit_when_nobody_reads():
        try:
            yield
        except InputError as error:
            _exit(str(error))
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            remedy = "choose another path, or change its permissions"
            _exit(f"{error.filename}: {error.strerror}; {remedy}")
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            where = f"{error.filename}: " if error.filename else ""
            _exit(f"{where}{error.strerror}; make room, or choose a place on another disk")


@contextlib.contextmanager
def _exit_when_nobody_reads() -> Iterator[None]:
    """Ends with the status that a shell has for SIGPIPE, by which other programs end there."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # Python itself would do so later, and complain.
    except BrokenPipeError:
        if not _nobody_reads():
            raise  # Another pipe or socket broke, and that is a fault.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # What is still in Python's buffer goes there.
        raise SystemExit(128 + signal.SIGPIPE) from None


def _nobody_reads() -> bool:
    """Returns whether standard output is a pipe that its reader has closed."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _exit(message: str) -> NoReturn:
    line = " ".join(message.split())  # A file name may hold a line break.
    sys.stderr.write(f"error: {line}\n")
    raise SystemExit(2) from None
