"""How long training steps take, and what of it is not theirs."""

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple


class Lap(NamedTuple):
    """What happened since the lap before, pauses left out."""

    steps: int
    seconds: float
    waited: float
    """How many of these seconds went into waiting for data."""


class StepClock:
    """Counts steps and their seconds; what happens in a pause counts as neither.

    Steps run behind their dispatch: whoever pauses or ends a lap waits for the last one first.
    """

    def __init__(self) -> None:
        self._pauses = 0
        self._begin()

    def _begin(self) -> None:
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        self._since = time.perf_counter()

    def step(self, waited: float) -> None:
        """Counts a step, before which one waited so many seconds for data."""
        if not self._pauses:
            self._steps += 1
            self._waited += waited

    def pause(self) -> None:
        """Stops the clock until as many `resume` as there were pauses."""
        if not self._pauses:
            self._seconds += time.perf_counter() - self._since
        self._pauses += 1

    def resume(self) -> None:
        """Ends a pause."""
        self._pauses -= 1
        if not self._pauses:
            self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A pause that ends with the block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def lap(self) -> Lap:
        """Ends a lap and begins the next."""
        now = time.perf_counter()
        running = 0.0 if self._pauses else now - self._since
        lap = Lap(self._steps, self._seconds + running, self._waited)
        self._begin()
        return lap
