"""The one error that is the user's to mend, and how an entry point reports it."""

import contextlib
import errno
import sys
from collections.abc import Iterator
from typing import NoReturn


class InputError(ValueError):
    """What the user gave cannot be used; the message names the value and the remedy."""


@contextlib.contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turns an InputError, a path that may not be used, or a full disk into one line and status 2.

    For entry points, as `with exit_on_input_error():` or as a decorator `@exit_on_input_error()`.
    Every other exception passes: it is ours to mend, and needs its traceback.
    """
    try:
        yield
    except InputError as error:
        _exit(str(error))
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        _exit(f"{error.filename}: {error.strerror}; choose another path, or change its permissions")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        where = f"{error.filename}: " if error.filename else ""
        _exit(f"{where}{error.strerror}; make room, or choose a place on another disk")


def _exit(message: str) -> NoReturn:
    line = " ".join(message.split())  # A file name may hold a line break.
    sys.stderr.write(f"error: {line}\n")
    raise SystemExit(2) from None
