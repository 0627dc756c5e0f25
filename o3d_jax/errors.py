"""The one error that is the user's to mend, and how an entry point reports it."""

import contextlib
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """What the user gave cannot be used; the message names the value and the remedy."""


@contextlib.contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turns an InputError into one line on stderr and exit status 2.

    For entry points, as `with exit_on_input_error():` or as a decorator `@exit_on_input_error()`.
    Every other exception passes: it is ours to mend, and needs its traceback.
    """
    try:
        yield
    except InputError as error:
        line = " ".join(str(error).split())  # A file name may hold a line break.
        sys.stderr.write(f"error: {line}\n")
        raise SystemExit(2) from None
