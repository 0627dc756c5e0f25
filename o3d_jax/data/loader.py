"""Training batches from synthetic and rendered orbits, and held-out ones, with grain.

Each time an orbit is drawn, another frame may come first. Batches have numpy leaves: nothing here
touches a device.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from o3d_jax.config import Config
from o3d_jax.data.rendered import open_orbits
from o3d_jax.data.synthetic_orbits import (
    HELDOUT_SEED,
    SyntheticOrbits,
    check_generator,
    seeded_orbit,
)
from o3d_jax.data.views import OrbitSource, StoredOrbit, Views, choose_views
from o3d_jax.errors import InputError
from o3d_jax.types import Batch, Cameras

AHEAD = 4
"""Batches that are made before they are asked for."""

SEED_STEP = 0x9E3779B9
"""Between the seeds of two sources: 2^32 by the golden ratio, so small seeds stay apart."""

PROCESS_STEP = 0x85EBCA6B
"""Between those of two processes, so that they do not all start orbits from the same frame."""


class HeldOut(NamedTuple):
    """Orbits that are never trained on."""

    source: Callable[[int], StoredOrbit]
    seeds: Sequence[int]
    """What the source is called with; also decides the first frame."""


def training_batches(
    config: Config, *, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """An endless iterator of `Batch`es: this process's share of each, shuffled anew every epoch.

    Its `get_state` gives a position, as plain JSON values; `set_state` goes there exactly. Of
    several sources, each has its own epochs.

    Raises:
        InputError: as `open_sources`, or the batch cannot be shared among the processes; from the
            iterator, a frame that is missing or damaged.
    """
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index {process_index} is not below {process_count} processes")
    if config.train.batch_size % process_count:
        raise InputError(
            f"train.batch_size {config.train.batch_size} must be a multiple of the {process_count} "
            "processes"
        )

    def views(orbit: StoredOrbit, rng: np.random.Generator) -> Views:
        return choose_views(config, orbit, int(rng.integers(config.data.frames_per_orbit)))

    def samples(source: OrbitSource, seed: int) -> grain.MapDataset:
        if len(source) < process_count:
            raise InputError(
                f"{len(source)} objects cannot be shared among {process_count} processes"
            )
        # Processes share out the objects, not the positions: none ever draws another's object.
        mine = grain.MapDataset.source(source)[process_index::process_count]
        own = (seed + process_index * PROCESS_STEP) % 2**32
        return mine.seed(own).shuffle().repeat().random_map(views)

    sources = open_sources(config)
    each = [samples(s, config.seed + i * SEED_STEP) for i, s in enumerate(sources)]
    shares = config.data.shares or None
    mixed = each[0] if len(each) == 1 else grain.MapDataset.mix(each, shares)
    local = config.train.batch_size // process_count
    batches = mixed.batch(local, drop_remainder=True, batch_fn=_batch)
    options = grain.ReadOptions(num_threads=config.data.workers, prefetch_buffer_size=AHEAD)
    return iter(batches.to_iter_dataset(options))


def open_sources(config: Config) -> list[OrbitSource]:
    """What a config trains on, in the order of `data.shares`.

    Raises:
        InputError: as `SyntheticOrbits` and `rendered.open_orbits`.
    """
    data = config.data
    synthetic: list[OrbitSource] = [] if data.source == "rendered" else [SyntheticOrbits(config)]
    return [*synthetic, *(open_orbits(Path(f), config, data.ids) for f in data.rendered)]


def heldout_batch(config: Config, count: int) -> Batch:
    """`count` objects that are never trained on, always the same, each from a fixed first frame.

    They are the first of `data.heldout`, by name, or synthetic ones.

    Raises:
        InputError: as `training_batches`, or `count` is not positive or more than there are.
    """
    if count < 1:
        raise InputError(f"a held-out batch needs at least one object, not {count}")
    heldout = _heldout_source(config, count)

    def sample(seed: int) -> Views:
        first = np.random.default_rng((seed, 3)).integers(config.data.frames_per_orbit)
        return choose_views(config, heldout.source(seed), int(first))

    with ThreadPoolExecutor(config.data.workers) as pool:
        return _batch(list(pool.map(sample, heldout.seeds)))


def _heldout_source(config: Config, count: int) -> HeldOut:
    if config.data.heldout is None:
        check_generator(config)
        seeds = range(HELDOUT_SEED, HELDOUT_SEED + count)
        return HeldOut(functools.partial(seeded_orbit, config), seeds)
    orbits = open_orbits(config.data.heldout, config)
    if count > len(orbits):
        raise InputError(
            f"data.heldout {config.data.heldout} has {len(orbits)} orbits, fewer than the {count} "
            "asked for; lower train.eval_objects"
        )
    return HeldOut(orbits.__getitem__, range(count))


def _batch(samples: Sequence[Views]) -> Batch:
    images, poses, intrinsics = (np.stack(leaf) for leaf in zip(*samples, strict=True))
    each_view = (*poses.shape[:2], 3, 3)
    leaves = [images, poses, np.broadcast_to(intrinsics[:, None], each_view).copy()]
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
