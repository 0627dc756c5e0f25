"""Compilations that should not happen: a program made anew in the loop costs minutes each time."""

from typing import Any, NamedTuple

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's event; should a later version rename it, nothing is seen and nothing breaks."""

LEAST_SECONDS = 1.0
"""Shorter compilations are of small programs, as the pictures of an evaluation need."""


class Compilation(NamedTuple):
    """A program that XLA compiled, or that was found in the cache."""

    name: str
    seconds: float


class CompilationWatch:
    """Collects compilations between `start` and `close`: those of the step, and all long ones.

    Outside the steps, as in an evaluation, the first of each name is expected and not collected.
    """

    def __init__(self, step_name: str = "train_step") -> None:
        self.in_steps = True
        self.count = 0
        self._step_name = step_name
        self._expected: set[str] = set()
        self._new: list[Compilation] = []
        self._watches = False

    def start(self) -> None:
        """Says that everything is compiled from now on."""
        self._watches = True
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def close(self) -> None:
        """Hears nothing more; JAX before 0.10 has no way to take a listener back."""
        self._watches = False

    def take(self) -> list[Compilation]:
        """Returns what was compiled since the last call."""
        new, self._new = self._new, []
        self.count += len(new)
        return new

    def _hear(self, event: str, duration_secs: float, **about: Any) -> None:
        name = str(about.get("fun_name", "a program of unknown name"))
        if event != COMPILED or not self._watches:
            return
        if not self.in_steps and name not in self._expected:
            self._expected.add(name)
        elif duration_secs >= LEAST_SECONDS or self._step_name in name:
            self._new.append(Compilation(name, duration_secs))
