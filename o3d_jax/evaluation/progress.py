"""An evaluation that broke off goes on: until the end, each finished orbit is a file beside OUT."""

import hashlib
import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from o3d_jax.evaluation.data import OrbitName
from o3d_jax.evaluation.scores import METRICS, OrbitScore, PerMetric, PerView, ShapeScore
from o3d_jax.evaluation.sheet import Shown
from o3d_jax.files.atomic import written_whole

SCORES_VERSION = 1
"""A number that whoever changes what a model scores raises: how it samples, what is measured.

What is left of an evaluation by another version is not gone on with. The images and scores that
this one stands for are in tests/evaluation, where a test compares them.
"""

PARTS = ("views", "renders", "copied")
"""The fields of an `OrbitScore` that hold scores."""

PICTURES = ("image", "truth", "views", "renders")
"""The fields of a `Shown` that hold pictures."""

# What numpy raises on a file that is not there, cut short, or another's.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error)


class Finished(NamedTuple):
    """What came of one orbit and one model."""

    score: OrbitScore
    frames: tuple[int, ...]
    """The orbit's frames that were used, the input first."""
    seconds: float
    """How long sampling alone took."""
    compiled: bool
    """Whether the seconds include compiling."""
    shown: Shown | None
    """What the sheet shows of it; None for orbits that are not on the sheet."""


class Unfinished:
    """The finished orbits of an evaluation that has no result yet, in OUT.unfinished."""

    def __init__(self, out: Path):
        self._folder = out.with_name(f"{out.name}.unfinished")

    def read(self, key: str, orbit: OrbitName, label: str) -> Finished | None:
        """Returns what came of an orbit; None if that is not known, or the file is damaged.

        Args:
            key: what `key_of` returns.
            label: the model's, on the sheet.
        """
        try:
            with np.load(self._path(key, orbit), allow_pickle=False) as file:
                values = dict(file)
            shown = [values[f"shown_{name}"] for name in PICTURES if f"shown_{name}" in values]
            views, renders, copied = (_part(values, part) for part in PARTS)
            return Finished(
                OrbitScore(*orbit, views, renders, copied, _shape(values)),
                tuple(values["frames"].tolist()),
                float(values["seconds"]),
                bool(values["compiled"]),
                Shown(orbit.orbit_name, label, *shown) if shown else None,
            )
        except _DAMAGED:
            return None

    def write(self, key: str, orbit: OrbitName, finished: Finished) -> None:
        """Keeps what came of an orbit, whole or not at all."""
        values = {name: getattr(finished, name) for name in ("frames", "seconds", "compiled")}
        for part in PARTS:
            scores: PerView = getattr(finished.score, part)
            values |= {f"{part}_{name}": getattr(scores, name) for name in scores.measured()}
        if finished.score.shape is not None:
            values["shape"] = finished.score.shape.values()
        if finished.shown is not None:
            values |= {f"shown_{name}": getattr(finished.shown, name) for name in PICTURES}
        self._folder.mkdir(parents=True, exist_ok=True)
        with written_whole(self._path(key, orbit)) as temporary:
            np.savez(temporary, **values)

    def remove(self) -> None:
        """Deletes what is kept, when there is a result."""
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            if re.fullmatch(r"[0-9a-f]{32}-[0-9a-f]{32}\.npz", path.name):
                path.unlink()
        if not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _path(self, key: str, orbit: OrbitName) -> Path:
        name = hashlib.sha256(orbit.orbit_name.encode()).hexdigest()
        return self._folder / f"{key[:32]}-{name[:32]}.npz"


def key_of(facts: Any) -> str:
    """Returns a digest of what a model's numbers depend on: `facts`, plain values, and our code."""
    return hashlib.sha256(json.dumps([SCORES_VERSION, facts], sort_keys=True).encode()).hexdigest()


def _part(values: dict[str, np.ndarray], part: str) -> PerView:
    return PerMetric(*(values.get(f"{part}_{name}") for name in METRICS))  # pyright: ignore


def _shape(values: dict[str, np.ndarray]) -> ShapeScore[float] | None:
    return ShapeScore(*values["shape"].tolist()) if "shape" in values else None
