"""The synthetic training set: each orbit is rendered once and kept as bytes."""

import functools
import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from o3d_jax.config import Config
from o3d_jax.data.toys.seeded import (
    TOYS_VERSION,
    check_orbit,
    orbit_azimuths,
    orbit_elevation,
    render_orbit,
)
from o3d_jax.errors import InputError
from o3d_jax.files.atomic import written_whole
from o3d_jax.geometry.orbits import orbit_poses

HELDOUT_SEED = 2**30
"""The first seed that is never trained on."""

SHARD = 256
"""Orbits in one cache file: what a broken-off run loses at most."""


class SeededOrbit(NamedTuple):
    """All frames of one object; a `views.StoredOrbit`."""

    seed: int
    rgba: UInt8[np.ndarray, "frames h w 4"]
    camera_to_world: Float[np.ndarray, "frames 4 4"]
    fov: float

    @property
    def name(self) -> str:
        """The name by which messages tell which object it is."""
        return f"synthetic object {self.seed}"

    def read(self, chosen: Int[np.ndarray, " v"]) -> UInt8[np.ndarray, "v h w 4"]:
        """Returns some of the frames."""
        return self.rgba[chosen]


def seeded_orbit(
    config: Config, seed: int, rgba: UInt8[np.ndarray, "frames h w 4"] | None = None
) -> SeededOrbit:
    """Returns the orbit of a seed, rendered now unless its frames are given."""
    elevation = orbit_elevation(seed, config.data.elevation)
    azimuths = orbit_azimuths(seed, config.data.frames_per_orbit)
    poses = orbit_poses(elevation, azimuths, config.camera.radius)
    rgba = _render(config, seed) if rgba is None else rgba
    return SeededOrbit(seed, rgba, poses, config.camera.fov)


class SyntheticOrbits:
    """The orbits of the training set, by index; each is rendered once.

    With `data.cache`, all of them lie in memory-mapped files in that folder, rendered now unless
    they are there already. Without it, an orbit is rendered when first drawn, and stays in memory.

    Raises:
        InputError: the config asks for what cannot be rendered or kept, or for held-out seeds.
    """

    def __init__(self, config: Config):
        _check_set(config)
        self._config = config
        self._kept: dict[int, UInt8[np.ndarray, "frames h w 4"]] = {}
        self._shards: list[UInt8[np.ndarray, "n frames h w 4"]] = []
        if config.data.cache is not None:
            self._shards = [np.load(path, mmap_mode="r") for path in _cached(config)]

    def __len__(self) -> int:
        return self._config.data.objects

    def __getitem__(self, index: int) -> SeededOrbit:
        seed = self._config.data.seed + index
        if self._shards:
            rgba = self._shards[index // SHARD][index % SHARD]
            return seeded_orbit(self._config, seed, rgba)
        if index not in self._kept:
            # Two threads may both render it; they get the same bytes.
            self._kept[index] = _render(self._config, seed)
        return seeded_orbit(self._config, seed, self._kept[index])


def _render(config: Config, seed: int) -> UInt8[np.ndarray, "frames h w 4"]:
    return render_orbit(
        seed,
        config.model.image_size,
        frames=config.data.frames_per_orbit,
        camera=config.camera,
        elevation_range=config.data.elevation,
    ).rgba


def check_generator(config: Config) -> None:
    """Raises an InputError for orbits that cannot be rendered."""
    data = config.data
    try:
        check_orbit(config.model.image_size, data.frames_per_orbit, config.camera, data.elevation)
    except ValueError as error:
        raise InputError(str(error)) from error


def _check_set(config: Config) -> None:
    """Raises an InputError for a training set that cannot be."""
    data = config.data
    check_generator(config)
    if data.seed + data.objects > HELDOUT_SEED:
        raise InputError(
            f"data.seed {data.seed} and data.objects {data.objects} go beyond 2^30; seeds from "
            "there on are held out"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = data.objects * _orbit_bytes(config)
    if data.cache is None and needed > memory / 2:
        raise InputError(
            f"data.objects {data.objects} of {config.model.image_size} px take "
            f"{needed / 1e9:.0f} GB, over half of this machine's {memory / 1e9:.0f} GB of memory; "
            "give data.cache, a folder to keep them in, or lower data.objects"
        )


def _orbit_bytes(config: Config) -> int:
    return config.data.frames_per_orbit * config.model.image_size**2 * 4


def _cached(config: Config) -> list[Path]:
    """Returns the cache files of the training set, in order; missing ones are rendered now."""
    data, folder = config.data, config.data.cache
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    end = data.seed + data.objects
    ranges = [range(s, min(s + SHARD, end)) for s in range(data.seed, end, SHARD)]
    stem = f"orbits-{config.model.image_size}px-{_fingerprint(config)}"
    paths = [folder / f"{stem}-{seeds[0]}-{seeds[-1]}.npy" for seeds in ranges]

    # What is missing must fit on the disk, or hours later it would turn out not to.
    missing = [(p, s) for p, s in zip(paths, ranges, strict=True) if not p.is_file()]
    objects = sum(len(seeds) for _, seeds in missing)
    free = shutil.disk_usage(folder).free
    if objects * _orbit_bytes(config) > free:
        raise InputError(
            f"data.cache {folder} has {free / 1e9:.0f} GB left, but {objects} orbits take "
            f"{objects * _orbit_bytes(config) / 1e9:.0f} GB; lower data.objects"
        )
    with tqdm(total=objects, desc="rendering objects", unit="object", disable=not missing) as bar:
        for path, seeds in missing:
            _write(config, path, seeds, bar)
    return paths


def _write(config: Config, path: Path, seeds: Sequence[int], bar: tqdm) -> None:
    """Renders one cache file; it appears under its name only when complete."""
    size, frames = config.model.image_size, config.data.frames_per_orbit
    shape = (len(seeds), frames, size, size, 4)
    with written_whole(path) as scratch, ThreadPoolExecutor(config.data.workers) as pool:
        rows = np.lib.format.open_memmap(scratch, "w+", np.uint8, shape)
        rendered: Iterable = pool.map(functools.partial(_render, config), seeds)
        for i, rgba in enumerate(rendered):
            rows[i] = rgba
            bar.update()
        rows.flush()


def _fingerprint(config: Config) -> str:
    """Returns a name for what rendered bytes depend on besides size and seed."""
    data, camera = config.data, config.camera
    facts = (TOYS_VERSION, data.frames_per_orbit, tuple(data.elevation), camera.radius, camera.fov)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
