"""Inspects rendered orbits, draws them, and says in a table what is wrong with them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float
from tqdm import tqdm

from o3d_jax.data.orbits.checks import SOLID, Expected, inspect_orbit
from o3d_jax.data.orbits.drawing import picture_of_orbit
from o3d_jax.data.orbits.folder import RenderedOrbit, find_orbits
from o3d_jax.data.orbits.names import select
from o3d_jax.files.images import save_png


@dataclasses.dataclass(frozen=True)
class Inspect:
    """What to inspect, and what it should be."""

    rendered: Annotated[Path, tyro.conf.Positional]
    """Folder of rendered orbits."""
    out: Path | None = None
    """Folder for drawings; None draws nothing."""
    pictures: int = 50
    """Sound orbits to draw at most; those with problems are all drawn, if they can be read."""
    ids: Path | None = None
    """File of objects to inspect, one id a line; None: all."""
    frames: int = 16
    """Frames that an orbit should have (Sec. 4.1)."""
    radius: float | None = None
    """Distance that cameras should have from the origin, scene units; None: any."""
    fov: float | None = None
    """Field of view that frames should have, degrees; None: any."""


class InspectedOrbit(NamedTuple):
    """One orbit, in short; without its frames, since there may be many orbits."""

    name: str
    facts: tuple[str, ...]
    """The cells below FACTS; empty if the orbit cannot be read."""
    problems: tuple[str, ...]


FACTS = ("frames", "pixels", "radius", "fov", "elevation", "coverage")
"""The table's columns; units are scene units, degrees and per cent."""


def inspect(order: Inspect) -> list[InspectedOrbit]:
    """Inspects all orbits, and draws them if so ordered.

    Raises:
        InputError: there are no orbits.
    """
    expected = Expected(order.frames, order.radius, order.fov)
    names = select(find_orbits(order.rendered), order.ids)
    left, rows = order.pictures, []
    for name in tqdm(names, "inspecting", unit="orbit"):
        found = inspect_orbit(order.rendered / name, name, expected)
        facts = () if found.orbit is None else _facts(found.orbit)
        rows.append(InspectedOrbit(name, facts, found.problems))
        if order.out is None or found.orbit is None or not (found.problems or left):
            continue
        if np.isfinite(found.orbit.camera_to_world).all():
            left -= not found.problems
            order.out.mkdir(parents=True, exist_ok=True)
            save_png(order.out / f"{name.replace('/', '__')}.png", picture_of_orbit(found.orbit))
    return rows


def _facts(orbit: RenderedOrbit) -> tuple[str, ...]:
    frames, h, w = orbit.rgba.shape[:3]
    centers = orbit.camera_to_world[:, :3, 3]
    distances = np.linalg.norm(centers, axis=-1)
    elevations = np.rad2deg(np.arcsin(np.clip(centers[:, 1] / distances, -1, 1)))
    coverage = 100 * (orbit.rgba[..., 3] >= SOLID).mean(axis=(1, 2))
    return (
        str(frames),
        f"{w} x {h}",
        _range(distances, 3),
        f"{orbit.fov:.1f}",
        _range(elevations, 1),
        _range(coverage, 0),
    )


def _range(values: Float[np.ndarray, " n"], digits: int) -> str:
    """Returns the smallest and the largest, or one of them if they are written alike."""
    ends = sorted({f"{value:.{digits}f}": value for value in (values.min(), values.max())})
    return " .. ".join(sorted(ends, key=float))


def inspection_report(rows: Sequence[InspectedOrbit]) -> str:
    """Returns a table of the orbits, a line for each problem, and a sum."""
    none = ("-",) * len(FACTS)
    cells = [
        ("orbit", *FACTS, "problems"),
        *((row.name, *(row.facts or none), str(len(row.problems))) for row in rows),
    ]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
    ]
    lines += [f"{row.name}: {problem}" for row in rows for problem in row.problems]
    bad = sum(bool(row.problems) for row in rows)
    return "\n".join([*lines, f"{len(rows)} orbits, {bad} with problems", ""])
