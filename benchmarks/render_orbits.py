"""What drawing models costs: `python benchmarks/render_orbits.py MODELS [--sizes 128 512]`.

Draws some frames of every model below a folder with depth and position, and prints a row for
each size: processor seconds of one thread, without writing files. See results/render_orbits.md.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from tqdm import tqdm

from o3d_jax.data.meshes.drawing import draw_orbit, prepare_scene
from o3d_jax.data.meshes.jobs import find_models
from o3d_jax.data.meshes.reading import SAFE_FILL, fit, read_mesh, visible_radius
from o3d_jax.geometry.orbits import orbit_poses

RADIUS, FOV, ELEVATION = 1.5, 49.1, 12.5


@dataclass(frozen=True)
class Benchmark:
    models: tyro.conf.Positional[Path]
    """Folder with models below it."""
    sizes: tuple[int, ...] = (128, 512)
    """Pixels."""
    frames: int = 2
    """Of each model, evenly around it."""


class Cost(NamedTuple):
    reading: float
    preparing: float
    drawing: float
    """Of a frame."""


def measure(path: Path, size: int, frames: int) -> Cost:
    times = [time.process_time()]
    mesh = read_mesh(path, 2**31)
    mesh = fit(mesh, 1.0, SAFE_FILL * visible_radius(RADIUS, FOV))
    times.append(time.process_time())
    scene = prepare_scene(mesh)
    times.append(time.process_time())
    azimuths = 17.0 + np.arange(frames) * 360 / frames
    draw_orbit(scene, orbit_poses(ELEVATION, azimuths, RADIUS), FOV, size)
    times.append(time.process_time())
    reading, preparing, drawing = np.diff(times)
    return Cost(float(reading), float(preparing), float(drawing / frames))


def main() -> None:
    order = tyro.cli(Benchmark, description=__doc__)
    models = find_models(order.models).paths
    print("| size | models | reading | preparing | drawing: mean | median | 95 % | most | |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size in order.sizes:
        measure(next(iter(models.values())), size, 1)  # Compiles, or loads what was compiled.
        costs = {name: measure(path, size, order.frames) for name, path in tqdm(models.items())}
        reading, preparing, drawing = np.array(list(costs.values())).T
        worst = max(costs, key=lambda name: costs[name].drawing)
        print(
            f"| {size} | {len(costs)} | {reading.mean():.4f} | {preparing.mean():.4f} | "
            f"{drawing.mean():.4f} | {np.median(drawing):.4f} | {np.quantile(drawing, 0.95):.4f} | "
            f"{drawing.max():.4f} | {worst} |"
        )


if __name__ == "__main__":
    main()
