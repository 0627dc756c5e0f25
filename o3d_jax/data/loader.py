"""Training batches of synthetic orbits, and held-out ones, with grain.

An orbit is rendered once and kept as bytes; each time it is drawn, another frame may come first.
Batches have numpy leaves: nothing here touches a device.
"""

import functools
import hashlib
import inspect
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree, UInt8
from tqdm import tqdm

from o3d_jax.config import Config
from o3d_jax.data.synthetic import check_orbit, orbit_azimuths, orbit_elevation, render_orbit
from o3d_jax.errors import InputError
from o3d_jax.geometry.orbits import orbit_poses, pinhole, relative_poses
from o3d_jax.geometry.released import FRAME_CHOICES
from o3d_jax.types import Batch, Cameras

HELDOUT_SEED = 2**30
"""The first seed that is never trained on."""

SHARD = 256
"""Orbits in one cache file: what a broken-off run loses at most."""


class SeededOrbit(NamedTuple):
    """The frames of one object."""

    seed: int
    rgba: UInt8[np.ndarray, "frames h w 4"]


class Views(NamedTuple):
    """One training sample, the input view first."""

    images: Float[np.ndarray, "v h w 3"]
    """On white, in [0, 1]."""
    camera_to_world: Float[np.ndarray, "v 4 4"]
    """Relative to view 0."""


class SyntheticOrbits:
    """The orbits of the training set, by index; each is rendered once.

    With `data.cache`, all of them lie in memory-mapped files in that folder, rendered now unless
    they are there already. Without it, an orbit is rendered when first drawn, and stays in memory.

    Raises:
        InputError: the config asks for what cannot be rendered or kept, or for held-out seeds.
    """

    def __init__(self, config: Config):
        _check(config)
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
            return SeededOrbit(seed, self._shards[index // SHARD][index % SHARD])
        if index not in self._kept:
            # Two threads may both render it; they get the same bytes.
            self._kept[index] = _render(self._config, seed)
        return SeededOrbit(seed, self._kept[index])


def training_batches(
    config: Config, *, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """An endless iterator of `Batch`es: this process's share of each, shuffled anew every epoch.

    Its `get_state` gives a position, as plain JSON values; `set_state` goes there exactly.

    Raises:
        InputError: as `SyntheticOrbits`, or the batch cannot be shared among the processes.
    """
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index {process_index} is not below {process_count} processes")
    if config.train.batch_size % process_count or config.data.objects < process_count:
        raise InputError(
            f"train.batch_size {config.train.batch_size} must be a multiple of the {process_count} "
            f"processes, and data.objects {config.data.objects} at least as many"
        )

    def views(orbit: SeededOrbit, rng: np.random.Generator) -> Views:
        return choose_views(config, orbit, int(rng.integers(config.data.frames_per_orbit)))

    def stack(samples: Sequence[Views]) -> Batch:
        return _batch(config, samples)

    # Processes share out the objects, not the positions: none ever draws another's object.
    source = grain.MapDataset.source(SyntheticOrbits(config))[process_index::process_count]
    shuffled = source.seed(config.seed).shuffle().repeat().random_map(views)
    local = config.train.batch_size // process_count
    batches = shuffled.batch(local, drop_remainder=True, batch_fn=stack)
    options = grain.ReadOptions(num_threads=config.data.workers, prefetch_buffer_size=4)
    return iter(batches.to_iter_dataset(options))


def heldout_batch(config: Config, count: int) -> Batch:
    """`count` objects that are never trained on, always the same; the seed fixes the first frame.

    Raises:
        InputError: as `SyntheticOrbits`, or `count` is not positive.
    """
    _check(config)
    if count < 1:
        raise InputError(f"a held-out batch needs at least one object, not {count}")
    seeds = range(HELDOUT_SEED, HELDOUT_SEED + count)
    with ThreadPoolExecutor(config.data.workers) as pool:
        orbits = pool.map(lambda seed: SeededOrbit(seed, _render(config, seed)), seeds)
        samples = [
            choose_views(config, orbit, _fixed_first(config, orbit.seed)) for orbit in orbits
        ]
    return _batch(config, samples)


def choose_views(config: Config, orbit: SeededOrbit, first: int) -> Views:
    """The frames of a sample that starts with `first`, the cameras relative to that one's."""
    data, frames = config.data, len(orbit.rgba)
    chosen = FRAME_CHOICES[data.orbit_frames](first, config.model.num_views, frames)
    elevation = orbit_elevation(orbit.seed, data.elevation)
    azimuths = orbit_azimuths(orbit.seed, frames)[chosen]
    poses = relative_poses(orbit_poses(elevation, azimuths, config.camera.radius))
    return Views(on_white(orbit.rgba[chosen]), poses.astype(np.float32))


def on_white(rgba: UInt8[np.ndarray, "*b h w 4"]) -> Float[np.ndarray, "*b h w 3"]:
    """Straight-alpha images over white, in [0, 1]."""
    image = rgba.astype(np.float32) / 255
    alpha = image[..., 3:]
    return image[..., :3] * alpha + (1 - alpha)


def _fixed_first(config: Config, seed: int) -> int:
    return int(np.random.default_rng((seed, 3)).integers(config.data.frames_per_orbit))


def _batch(config: Config, samples: Sequence[Views]) -> Batch:
    poses = np.stack([sample.camera_to_world for sample in samples])
    intrinsics = np.zeros((*poses.shape[:2], 3, 3), np.float32)
    intrinsics[...] = pinhole(config.camera.fov)
    leaves = [np.stack([sample.images for sample in samples]), poses, intrinsics]
    # Unflattening skips the check that leaves are jax arrays, which would have to be on a device.
    return jax.tree.unflatten(_structure(), leaves)


@functools.cache
def _structure() -> PyTree:
    """Of a `Batch`, whose leaves are in the order of its fields."""

    def example() -> Batch:
        cameras = Cameras(
            camera_to_world=jnp.zeros((1, 1, 4, 4)), intrinsics=jnp.zeros((1, 1, 3, 3))
        )
        return Batch(images=jnp.zeros((1, 1, 1, 1, 3)), cameras=cameras)

    return jax.tree.structure(jax.eval_shape(example))


def _render(config: Config, seed: int) -> UInt8[np.ndarray, "frames h w 4"]:
    return render_orbit(
        seed,
        config.model.image_size,
        frames=config.data.frames_per_orbit,
        camera=config.camera,
        elevation_range=config.data.elevation,
    ).rgba


def _check(config: Config) -> None:
    """Raises an InputError for a training set that cannot be."""
    data, size = config.data, config.model.image_size
    try:
        check_orbit(size, data.frames_per_orbit, config.camera, data.elevation)
    except ValueError as error:
        raise InputError(str(error)) from error
    if data.seed + data.objects > HELDOUT_SEED:
        raise InputError(
            f"data.seed {data.seed} and data.objects {data.objects} go beyond 2^30; seeds from "
            "there on are held out"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = data.objects * _orbit_bytes(config)
    if data.cache is None and needed > memory / 2:
        raise InputError(
            f"data.objects {data.objects} of {size} px take {needed / 1e9:.0f} GB, over half of "
            f"this machine's {memory / 1e9:.0f} GB of memory; give data.cache, a folder to keep "
            "them in, or lower data.objects"
        )


def _orbit_bytes(config: Config) -> int:
    return config.data.frames_per_orbit * config.model.image_size**2 * 4


def _cached(config: Config) -> list[Path]:
    """The cache files of the training set, in order; those that are missing are rendered now."""
    data, folder = config.data, config.data.cache
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    end = data.seed + data.objects
    ranges = [range(s, min(s + SHARD, end)) for s in range(data.seed, end, SHARD)]
    stem = f"orbits-{config.model.image_size}px-{_fingerprint(config)}"
    paths = [folder / f"{stem}-{seeds[0]}-{seeds[-1]}.npy" for seeds in ranges]
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
    partial = path.with_suffix(f".{os.getpid()}.part")
    shape = (len(seeds), frames, size, size, 4)
    try:
        rows = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        with ThreadPoolExecutor(config.data.workers) as pool:
            rendered: Iterable = pool.map(functools.partial(_render, config), seeds)
            for i, rgba in enumerate(rendered):
                rows[i] = rgba
                bar.update()
        rows.flush()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _fingerprint(config: Config) -> str:
    """Names what rendered bytes depend on besides size and seed: settings, and the generator."""
    data, camera = config.data, config.camera
    digest = hashlib.sha256(
        repr((data.frames_per_orbit, tuple(data.elevation), camera.radius, camera.fov)).encode()
    )
    here = Path(__file__)
    for source in (*sorted(here.parent.glob("*.py")), Path(inspect.getfile(orbit_poses))):
        if source != here:
            digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
