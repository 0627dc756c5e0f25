"""How many batches the loader makes a second: `python benchmarks/loader.py [RENDERED]`.

RENDERED is a folder of orbits of 512 px (`o3d data render`); without it, twelve synthetic
ones are drawn, with grain, so that their PNGs are as large as those of textured objects. One
thread of the loader ("data.workers 1"); files are in the system's cache. Each case is timed after
two batches; a batch is 4 objects of 8 views.
"""

import argparse
import dataclasses
import itertools
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from o3d_jax.config import CameraConfig, Config  # noqa: E402
from o3d_jax.data.loader import training_batches  # noqa: E402
from o3d_jax.data.orbits.build import Build, build  # noqa: E402
from o3d_jax.data.orbits.folder import (  # noqa: E402
    RenderedOrbit,
    find_orbits,
    read_orbit,
    write_orbit,
)
from o3d_jax.data.toys.seeded import orbit_azimuths, orbit_elevation, render_orbit  # noqa: E402
from o3d_jax.geometry.orbits import orbit_poses  # noqa: E402

OBJECTS, SIZE, GRAIN = 12, 512, 3
BATCH = 4
STEP_SECONDS = 2.0
"""Of nano's joint training step at batch 4, on the machine of results/loader.md."""


def draw_orbits(root: Path) -> None:
    rng = np.random.default_rng(0)
    for seed in range(OBJECTS):
        made = render_orbit(seed, SIZE, camera=CameraConfig())
        poses = orbit_poses(orbit_elevation(seed, (-5.0, 30.0)), orbit_azimuths(seed, 16), 1.5)
        noise = rng.integers(-GRAIN, GRAIN + 1, (*made.rgba.shape[:3], 3))
        noise *= made.rgba[..., 3:] > 0
        rgba = made.rgba.copy()
        rgba[..., :3] = np.clip(rgba[..., :3] + noise, 0, 255)
        write_orbit(
            root / f"toy{seed:02d}" / "0", RenderedOrbit(f"toy{seed:02d}/0", rgba, poses, 49.1)
        )


def reduce_orbits(root: Path, target: Path, size: int) -> None:
    for name in find_orbits(root):
        orbit = read_orbit(root / name)
        frames = [Image.fromarray(f).resize((size, size), Image.Resampling.BOX) for f in orbit.rgba]
        rgba = np.stack([np.asarray(frame) for frame in frames])
        write_orbit(target / name, RenderedOrbit(name, rgba, orbit.camera_to_world, orbit.fov))


def configured(folder: Path | None, size: int) -> Config:
    config = runpy.run_path(str(ROOT / "configs" / "nano.py"))["config"]
    model = dataclasses.replace(config.model, image_size=size)
    data = dataclasses.replace(config.data, workers=1, cache=None, objects=64)
    if folder is not None:
        data = dataclasses.replace(data, source="rendered", rendered=(str(folder),))
    train = dataclasses.replace(config.train, batch_size=BATCH)
    return dataclasses.replace(config, model=model, data=data, train=train)


def measure(config: Config, seconds: float) -> tuple[float, float]:
    """Batches a second, and processor seconds an object."""
    batches: Iterator = training_batches(config)
    epoch = config.data.objects // BATCH if config.data.source == "synthetic" else 2
    for _ in itertools.islice(batches, epoch):  # Synthetic ones are drawn in the first epoch.
        pass
    started, used, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < seconds:
        next(batches)
        count += 1
    elapsed = time.perf_counter() - started
    return count / elapsed, (time.process_time() - used) / (count * BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rendered", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        large = arguments.rendered
        if large is None:
            large = scratch / "512"
            draw_orbits(large)
        reduce_orbits(large, scratch / "64", 64)
        build(Build(large, scratch / "packed512"))
        build(Build(scratch / "64", scratch / "packed64"))
        orbits = find_orbits(large)
        bytes_read = sum(p.stat().st_size for o in orbits for p in (large / o).glob("render_*"))
        cases: list[tuple[str, Path | None, int]] = [
            ("synthetic 64 px, in memory", None, 64),
            ("folder of 64 px", scratch / "64", 64),
            ("TFDS of 64 px", scratch / "packed64", 64),
            ("folder of 512 px, reduced", large, 64),
            ("TFDS of 512 px, reduced", scratch / "packed512", 64),
            ("folder of 512 px", large, 512),
            ("TFDS of 512 px", scratch / "packed512", 512),
        ]
        sys.stdout.write(
            f"{len(orbits)} orbits of {bytes_read / len(orbits) / 1e6:.2f} MB; load "
            f"{os.getloadavg()[0]:.1f}\n\n"
            "| source | model | batches/s | times nano's need | processor s an object |\n"
            "|---|---|---|---|---|\n"
        )
        for label, folder, size in cases:
            rate, cost = measure(configured(folder, size), arguments.seconds)
            sys.stdout.write(
                f"| {label} | {size} px | {rate:.2f} | {rate * STEP_SECONDS:.1f} | {cost:.3f} |\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
