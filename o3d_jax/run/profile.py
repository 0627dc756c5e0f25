"""Records what devices and host do in some steps, for XProf."""

from pathlib import Path

import jax


class Profile:
    """Records a window of steps, given by the first and their number; each process records its own.

    A run that starts within the window records the rest of it.
    """

    def __init__(self, folder: Path, window: tuple[int, int] | None) -> None:
        alone = jax.process_count() == 1
        self.folder = folder if alone else folder / f"process_{jax.process_index()}"
        self.is_running = False
        self._first, count = window or (0, 0)
        self._end = self._first + count
        self._marker = None
        self.was_missed = window is not None

    def is_due(self, step: int) -> bool:
        """Returns whether to start before step number `step`, counted from 0."""
        return not self.is_running and self._first <= step < self._end

    def is_over(self, done: int) -> bool:
        """Returns whether to stop when `done` steps are done."""
        return self.is_running and done >= self._end

    def start(self) -> None:
        """Begins to record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        jax.profiler.start_trace(str(self.folder))
        self.is_running, self.was_missed = True, False

    def stop(self) -> None:
        """Writes the recording, `*.xplane.pb` some folders below `folder`."""
        self.end_step()
        self.is_running = False
        jax.profiler.stop_trace()

    def begin_step(self, step: int) -> None:
        """Marks where a step begins, which XProf's tables of steps are made from."""
        if self.is_running:
            self._marker = jax.profiler.StepTraceAnnotation("train", step_num=step)
            self._marker.__enter__()

    def end_step(self) -> None:
        """Marks where a step ends."""
        if self._marker is not None:
            self._marker.__exit__(None, None, None)
            self._marker = None
