"""Training batches from synthetic and rendered orbits, and held-out ones, with grain.

Each time an orbit is drawn, another frame may come first. Batches have numpy leaves: nothing here
touches a device. What is drawn depends on the config alone, not on how many processes or threads
draw it, so that a run may go on with others.
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
from o3d_jax.data.augmentation import augmented
from o3d_jax.data.orbits.names import object_of
from o3d_jax.data.sources import open_orbits, orbit_names
from o3d_jax.data.toys.cache import (
    HELDOUT_SEED,
    SyntheticOrbits,
    check_generator,
    seeded_orbit,
)
from o3d_jax.data.views import OrbitSource, StoredOrbit, Views, choose_views
from o3d_jax.errors import InputError
from o3d_jax.types import Batch, Cameras

AHEAD = 4
"""How many batches are made before they are asked for."""

SEED_STEP = 0x9E3779B9
"""Step between the seeds of two sources: 2^32 by the golden ratio, so small seeds stay apart."""


class LoadedBatch(NamedTuple):
    """A process's rows of a training batch, and the objects that they show."""

    batch: Batch
    objects: tuple[str, ...]
    """Names of the orbits, in the order of the rows."""


class _Sample(NamedTuple):
    """One row of a batch."""

    views: Views
    name: str


class _OwnRows:
    """A process's rows of every batch that all of them share, one after the other."""

    def __init__(self, samples: grain.MapDataset, batch_size: int, rows: Sequence[int]):
        self._samples, self._batch_size, self._rows = samples, batch_size, rows

    def __len__(self) -> int:
        return len(self._samples) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int) -> _Sample:
        batch, place = divmod(index, len(self._rows))
        sample = self._samples[batch * self._batch_size + self._rows[place]]
        assert sample is not None  # Nothing is filtered out.
        return sample


class HeldOut(NamedTuple):
    """Orbits that are never trained on."""

    source: Callable[[int], StoredOrbit]
    seeds: Sequence[int]
    """What the source is called with, one number an orbit, which decides the first frame, too."""


def training_batches(
    config: Config, rows: Sequence[int] | None = None
) -> grain.DatasetIterator[LoadedBatch]:
    """Returns an endless iterator of some `rows` of each batch, shuffled anew every epoch.

    By default that is all rows. Several processes have some each (`parallel.own_rows`), all as
    many. `get_state` gives a position, as plain JSON values that are the same in all processes;
    `set_state` goes there exactly, with any number of processes. Of several sources, each has its
    own epochs.

    Raises:
        InputError: as `open_sources`; from the iterator, a frame that is missing or damaged.
    """
    batch_size = config.train.batch_size
    rows = range(batch_size) if rows is None else rows
    own = _OwnRows(_all_samples(config), batch_size, rows)
    batches = grain.MapDataset.source(own).batch(len(rows), drop_remainder=True, batch_fn=_loaded)
    options = grain.ReadOptions(num_threads=config.data.workers, prefetch_buffer_size=AHEAD)
    return iter(batches.to_iter_dataset(options))


def _all_samples(config: Config) -> grain.MapDataset[_Sample]:
    """Returns the rows of all batches, one after the other; each is made when asked for."""

    def sample(orbit: StoredOrbit, rng: np.random.Generator) -> _Sample:
        first = int(rng.integers(config.data.frames_per_orbit))
        views = augmented(config.data, choose_views(config, orbit, first), rng)
        return _Sample(views, orbit.name)

    def samples(source: OrbitSource, seed: int) -> grain.MapDataset:
        return grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(sample)

    sources = open_sources(config)
    each = [samples(s, (config.seed + i * SEED_STEP) % 2**32) for i, s in enumerate(sources)]
    return each[0] if len(each) == 1 else grain.MapDataset.mix(each, config.data.shares or None)


def open_sources(config: Config) -> list[OrbitSource]:
    """Returns what a config trains on, in the order of `data.shares`.

    Raises:
        InputError: as `SyntheticOrbits` and `sources.open_orbits`, or an object of `data.heldout`
            is among those trained on.
    """
    data = config.data
    rendered = [open_orbits(Path(f), config, data.ids) for f in data.rendered]
    if data.heldout is not None and rendered:
        held = set(map(object_of, orbit_names(data.heldout)))
        for folder, orbits in zip(data.rendered, rendered, strict=True):
            _refuse_overlap(data.heldout, held, folder, orbits.names)
    synthetic: list[OrbitSource] = [] if data.source == "rendered" else [SyntheticOrbits(config)]
    return [*synthetic, *rendered]


def _refuse_overlap(heldout: Path, held: set[str], folder: str, names: Sequence[str]) -> None:
    if common := held.intersection(map(object_of, names)):
        raise InputError(
            f"data.heldout {heldout} has {min(common)}, which data.rendered {folder} has too "
            f"({len(common)} such objects); hold out others, or list in data.ids those to train on"
        )


def heldout_batch(config: Config, count: int) -> Batch:
    """Returns `count` objects that are never trained on, always the same, from fixed first frames.

    They are synthetic ones, or some of `data.heldout`, evenly spaced among its names; where
    training mixes both kinds, the first half are synthetic.

    Raises:
        InputError: as `training_batches`, or `count` is not positive or more than there are.
    """
    if count < 1:
        raise InputError(f"a held-out batch needs at least one object, not {count}")
    rendered = 0 if config.data.heldout is None else count
    if config.data.source == "mixed":
        rendered //= 2
    parts = [_synthetic_heldout(config, count - rendered), _rendered_heldout(config, rendered)]

    def sample(source: Callable[[int], StoredOrbit], seed: int) -> Views:
        first = np.random.default_rng((seed, 3)).integers(config.data.frames_per_orbit)
        return choose_views(config, source(seed), int(first))

    jobs = [(part.source, seed) for part in parts for seed in part.seeds]
    with ThreadPoolExecutor(config.data.workers) as pool:
        return _batch(list(pool.map(lambda job: sample(*job), jobs)))


def _synthetic_heldout(config: Config, count: int) -> HeldOut:
    if count:
        check_generator(config)
    return HeldOut(
        functools.partial(seeded_orbit, config), range(HELDOUT_SEED, HELDOUT_SEED + count)
    )


def _rendered_heldout(config: Config, count: int) -> HeldOut:
    if config.data.heldout is None or not count:
        return HeldOut(functools.partial(seeded_orbit, config), range(0))
    orbits = open_orbits(config.data.heldout, config)
    if count > len(orbits):
        raise InputError(
            f"data.heldout {config.data.heldout} has {len(orbits)} orbits, fewer than the {count} "
            "asked for; lower train.eval_objects"
        )
    return HeldOut(orbits.__getitem__, [i * len(orbits) // count for i in range(count)])


def _loaded(samples: Sequence[_Sample]) -> LoadedBatch:
    return LoadedBatch(_batch([s.views for s in samples]), tuple(s.name for s in samples))


def _batch(samples: Sequence[Views]) -> Batch:
    images, alpha, poses, intrinsics = (np.stack(leaf) for leaf in zip(*samples, strict=True))
    each_view = (*poses.shape[:2], 3, 3)
    leaves = [images, poses, np.broadcast_to(intrinsics[:, None], each_view).copy(), alpha]
    # Unflattening skips the check that leaves are jax arrays, which would have to be on a device.
    return jax.tree.unflatten(_structure(), leaves)


@functools.cache
def _structure() -> PyTree:
    """Returns the tree structure of a `Batch`, whose leaves are in the order of its fields."""

    def example() -> Batch:
        cameras = Cameras(
            camera_to_world=jnp.zeros((1, 1, 4, 4)), intrinsics=jnp.zeros((1, 1, 3, 3))
        )
        images, alpha = jnp.zeros((1, 1, 1, 1, 3)), jnp.zeros((1, 1, 1, 1, 1))
        return Batch(images=images, cameras=cameras, alpha=alpha)

    return jax.tree.structure(jax.eval_shape(example))
