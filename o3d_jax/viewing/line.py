"""One piece of work at a time, in the order in which people came; they see who is before them."""

import collections
import logging
import threading
from typing import Protocol, runtime_checkable

from o3d_jax.errors import InputError

MOST_WAITING = 50
"""Pieces of work; who comes after them is sent away."""

logger = logging.getLogger(__name__)


@runtime_checkable
class Waiting(Protocol):
    """What someone waits for."""

    def moved(self, ahead: int) -> None:
        """Is told how many are before it, whenever that changes."""
        ...

    def run(self) -> None:
        """Does the work; what it raises is told to `failed`."""
        ...

    def failed(self, error: Exception) -> None:
        """Is told why it did not end well."""
        ...


class WaitingLine:
    """A thread that works, and those who wait for it."""

    def __init__(self) -> None:
        self._waiting: collections.deque[Waiting] = collections.deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="sampling", daemon=True).start()

    def join(self, work: Waiting) -> None:
        """Puts work at the end.

        Raises:
            InputError: too many wait already.
        """
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                raise InputError(f"{MOST_WAITING} others wait already; try again later")
            self._waiting.append(work)
            self._changed.notify()
        self._tell()

    def leave(self, work: Waiting) -> None:
        """Takes work out of the line, unless it has begun."""
        with self._changed:
            if work in self._waiting:
                self._waiting.remove(work)
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            waiting = list(enumerate(self._waiting, 1))
        for ahead, work in waiting:  # The one at work is before all of them.
            work.moved(ahead)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                work = self._waiting.popleft()
            self._tell()
            try:
                work.run()
            except Exception as error:  # Whoever comes next is to be served, too.
                if not isinstance(error, InputError):
                    logger.exception("a sampling failed")
                work.failed(error)
            del work  # Or what it holds would stay until the next one comes.
