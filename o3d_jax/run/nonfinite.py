"""Steps that were skipped because their loss or gradient was not finite, and what is known of them.

Such a step changes nothing, so one now and then does no harm; many in a row never end.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from o3d_jax.errors import InputError
from o3d_jax.files.atomic import written_whole
from o3d_jax.steps.train import StepReport


class NonFiniteError(InputError):
    """Too many steps in a row were skipped."""


class ReadStep(NamedTuple):
    """A step's report, on the host."""

    number: int
    """Counted from 1."""
    report: StepReport
    objects: tuple[str, ...]
    """Ids of the objects that this process trained on."""

    def values(self) -> dict[str, float]:
        """Returns loss terms and the gradient's norm, by name."""
        terms = self.report.terms
        named = ((f.name, getattr(terms, f.name)) for f in dataclasses.fields(terms))
        values = {name: float(value) for name, value in named if value is not None}
        return values | {"gradient_norm": float(self.report.gradient_norm)}


class SkippedSteps:
    """Counts skipped steps, and ends the run after `most` in a row.

    All processes see the same reports, so all of them end.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.total = 0
        self._folder = folder
        self._most = most
        self._in_a_row: list[ReadStep] = []

    def add(self, step: ReadStep) -> None:
        """Takes note of a step.

        Raises:
            NonFiniteError: it is the last of too many; they are in the file that it names.
        """
        if step.report.is_finite:
            self._in_a_row = []
            return

        self.total += 1
        self._in_a_row.append(step)
        if len(self._in_a_row) >= self._most:
            path = self._write()
            first, last = self._in_a_row[0].number, step.number
            raise NonFiniteError(
                f"loss or gradient was not finite in all of the steps {first} to {last}; {path} "
                "has their loss terms and objects. Start again under another --name with a lower "
                "--optim.learning-rate, or without these objects"
            )

    def _write(self) -> Path:
        alone = jax.process_count() == 1
        name = "nonfinite.json" if alone else f"nonfinite.{jax.process_index()}.json"
        steps = self._in_a_row
        what = {
            "first_step": steps[0].number,
            "last_step": steps[-1].number,
            "steps": [_plain(step) for step in steps],
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        with written_whole(self._folder / name) as scratch:
            scratch.write_text(json.dumps(what, indent=1, allow_nan=False))
        return self._folder / name


def _plain(step: ReadStep) -> dict[str, Any]:
    values = {name: str(value) for name, value in step.values().items()}  # JSON has no NaN.
    drawn = [] if step.report.sigma is None else np.asarray(step.report.sigma).tolist()
    sigma = [s if math.isfinite(s) else str(s) for s in drawn]
    return {"step": step.number, **values, "sigma": sigma, "objects": list(step.objects)}
