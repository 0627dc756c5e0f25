"""A run that is asked to end saves and ends: SIGTERM, SIGUSR1 (SLURM's `--signal`), Ctrl-C.

Python handles a signal between two of its instructions, but a compilation keeps the main thread
in C++ for minutes, longer than any grace period. So a second thread watches: the interpreter
writes each signal's number to a pipe as it arrives (`signal.set_wakeup_fd`).
"""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax

from o3d_jax.errors import exit_on_input_error

STATUS = {signal.SIGTERM: 0, signal.SIGUSR1: 0, signal.SIGINT: 130}
"""The exit status of a run that each signal ended.

To a scheduler the run has done as it was asked, which is success; a shell script should know that
somebody pressed Ctrl-C.
"""

Save = Callable[[], None]
"""A function that saves what there is to save; all is on disk when it returns."""


class Interruption:
    """While entered, signals ask the training loop to end instead of killing it.

    The loop looks at `requested` after each step, saves and ends with `status`. Where it cannot
    look for long, it says so by `unattended`. A second Ctrl-C raises KeyboardInterrupt.

    `say` prints a line. In any but the main thread, which is the only one to get signals, nothing
    is ever requested.
    """

    def __init__(self, say: Callable[[str], None]):
        self.patience: float | None = None
        """Seconds that a process in a run with others waits for the loop to end, before it ends by
        itself: an end needs all of them. None for a process alone."""
        self.linger = 0.0
        """Seconds that this process waits longer than the others do."""
        self.farewell: Callable[[str], None] | None = None
        """A function that is told the signal's name before an unattended block ends the process."""
        self._say = say
        self._signal: signal.Signals | None = None
        self._interrupts = 0
        self._is_unattended = False
        self._save: Save | None = None
        self._block = 0  # Counts the changes of these two.
        self._waiting_since: float | None = None  # In this block, for the loop.
        self._changing = threading.Lock()  # Held by who ends the process, and never given back.
        self._restore = contextlib.ExitStack()

    @property
    def requested(self) -> bool:
        """Whether the run is to end."""
        return self._signal is not None

    @property
    def name(self) -> str:
        """The signal that came, as "SIGTERM"; empty if none did."""
        return self._signal.name if self._signal is not None else ""

    @property
    def status(self) -> int:
        """The exit status that the process is to end with; 0 if no signal came."""
        return STATUS[self._signal] if self._signal is not None else 0

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is not threading.main_thread():
            return self
        reader, writer = os.pipe()
        os.set_blocking(writer, False)

        # The interpreter writes each signal's number there at once; the watcher reads it.
        watcher = threading.Thread(target=self._watch, args=(reader,), daemon=True)
        watcher.start()
        self._restore.callback(os.close, writer)  # Which ends the watcher.
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._restore.callback(signal.set_wakeup_fd, before)

        for number in STATUS:
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN:  # As `nohup` and shells have it for what they start.
                signal.signal(number, self._handle)
                self._restore.callback(signal.signal, number, handler or signal.SIG_DFL)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._restore.close()

    @contextlib.contextmanager
    def unattended(self, save: Save | None) -> Iterator[None]:
        """Lets a signal, while the block runs, call `save` in another thread and end the process.

        One that came before does so at once. Nothing that `save` reads may be changed or given away
        in the block; None means that there is nothing to lose. Files half written must not matter.

        With other processes a signal only makes `requested` true, as it does outside, unless the
        block outlasts the patience, or fails because others have gone: then the process ends.
        `save` is not called, for it needs all of them: everything must be on disk before.

        Raises:
            KeyboardInterrupt: on leaving, Ctrl-C while the process was about to end.
        """
        before = (self._is_unattended, self._save)
        self._declare(True, save)
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            with self._changing:
                if self._waiting_since is not None:
                    self._say(f"another process has gone ({str(error).splitlines()[0]})")
                    self._end()
            raise
        finally:
            self._declare(*before)

    def _declare(self, is_unattended: bool, save: Save | None) -> None:
        with self._changing:
            since, patience = self._waiting_since, self.patience
            if since is not None and patience is not None and time.monotonic() >= since + patience:
                self._end()  # As others did in the meantime.
            self._is_unattended, self._save = is_unattended, save
            self._block, self._waiting_since = self._block + 1, None
            self._end_if_asked()

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        """Notes a signal, in the main thread, when that is back in Python."""
        self._note(number)
        self._interrupts += number == signal.SIGINT
        if number == signal.SIGINT and self._interrupts > 1:
            raise KeyboardInterrupt

    def _note(self, number: int) -> None:
        if self._signal is None:
            self._signal = signal.Signals(number)

    def _watch(self, reader: int) -> None:
        """Notes signals in a thread of its own, until the pipe is closed."""
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number in STATUS:
                    self._note(number)
            with self._changing:
                self._end_if_asked()
        os.close(reader)

    def _end_if_asked(self) -> None:
        if not (self.requested and self._is_unattended):
            return
        if self.patience is None:
            self._end()
        if self._waiting_since is not None:
            return
        self._waiting_since = time.monotonic()
        seconds = self.patience + self.linger
        timer = threading.Timer(seconds, self._end_if_still_in, [self._block])
        timer.daemon = True
        timer.start()

    def _end_if_still_in(self, block: int) -> None:
        with self._changing:
            if self._block == block:
                self._end()

    def _end(self) -> NoReturn:
        """Ends the process as it is: whatever the main thread does cannot be called off."""
        status = 1
        try:
            if self._save is not None and self.patience is None:
                with exit_on_input_error():
                    self._save()

            done = "nothing to save" if self._save is None else "saved"
            self._say(f"{self.name}: {done}; the same command goes on")
            if self.farewell is not None:
                self.farewell(self.name)
            status = self.status
        except SystemExit:  # It has said why.
            status = 2
        finally:
            # Not sys.exit: that would raise in this thread only, and wait for the main one.
            if status == 1:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
