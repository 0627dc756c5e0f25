import dataclasses
import itertools
import json

import chex
import jax
import numpy as np
import pytest

from o3d_jax.data import loader
from o3d_jax.data.loader import LoadedBatch, heldout_batch, training_batches
from o3d_jax.data.toys.cache import HELDOUT_SEED, SyntheticOrbits, seeded_orbit
from o3d_jax.data.toys.seeded import orbit_elevation
from o3d_jax.geometry.orbits import orbit, relative_to_first
from support.small_sets import FRAMES, OBJECTS, VIEWS, small_config, white, white_orbits


def drawn(batch, whites: np.ndarray) -> list[tuple[int, int]]:
    """Index and first frame of each object of a batch, recognized by its input view."""
    gaps = np.abs(batch.images[:, 0, None, None] - whites[None]).max(axis=(-3, -2, -1))
    assert np.all(gaps.min(axis=(1, 2)) < 1e-6)  # float32 rounding.
    return [tuple(int(i) for i in np.unravel_index(g.argmin(), g.shape)) for g in gaps]


def assert_equal(one, other) -> None:
    chex.assert_trees_all_equal(one, other)


def test_resuming_gives_the_identical_next_batches():
    config = small_config(frames_per_orbit=6, mirror=True, recolor=True)
    straight = training_batches(config)
    for _ in range(3):
        next(straight)
    state = json.loads(json.dumps(straight.get_state()))
    expected = [next(straight) for _ in range(4)]
    resumed = training_batches(config)
    next(resumed)
    resumed.set_state(state)
    for batch in expected:
        assert_equal(next(resumed), batch)


def test_a_batch_has_every_second_frame_its_silhouette_and_cameras_relative_to_the_first():
    config = small_config()
    whites = white_orbits(config)
    batch = next(training_batches(config)).batch
    assert batch.images.dtype == batch.cameras.camera_to_world.dtype == np.float32
    orbits = SyntheticOrbits(config)
    for k, (index, first) in enumerate(drawn(batch, whites)):
        frames = [(first + 2 * i) % FRAMES for i in range(VIEWS)]
        np.testing.assert_allclose(batch.images[k], whites[index, frames], atol=1e-6)
        covered = orbits[index].rgba[frames, ..., 3:] / 255
        np.testing.assert_allclose(batch.alpha[k], covered, atol=1e-6)
        assert 0.05 < covered.mean() < 0.95
        elevation = orbit_elevation(5 + index, (-5.0, 30.0))
        # Relative cameras don't depend on where the orbit starts.
        expected = relative_to_first(orbit(elevation, np.array(frames) * 360 / FRAMES, 1.5, 49.1))
        np.testing.assert_allclose(
            batch.cameras.camera_to_world[k], expected.camera_to_world, atol=1e-6
        )
        np.testing.assert_allclose(batch.cameras.intrinsics[k], expected.intrinsics, atol=1e-6)


def joined(parts) -> LoadedBatch:
    """The batch whose rows several processes have."""
    batch = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part.batch for part in parts))
    return LoadedBatch(batch, sum((part.objects for part in parts), ()))


def opened(config, processes, position=None):
    """The iterators of all processes, at a position."""
    parts = np.array_split(range(config.train.batch_size), processes)
    iterators = [training_batches(config, [int(row) for row in rows]) for rows in parts]
    for iterator in iterators if position is not None else []:
        iterator.set_state(position)
    return iterators


def take_joined(iterators, count):
    return [joined([next(iterator) for iterator in iterators]) for _ in range(count)]


@pytest.mark.parametrize("processes", [2, 4])
def test_the_rows_of_processes_are_those_of_one_process_in_order(processes):
    config = small_config(batch_size=8)  # Epochs of 12 end within batches.
    alone = take_joined(opened(config, 1), 6)
    assert_equal(take_joined(opened(config, processes), 6), alone)
    assert len({objects for _, objects in alone}) == 6


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 1)])
def test_a_run_goes_on_exactly_with_another_number_of_processes(before, after):
    config = small_config(batch_size=8)
    expected = take_joined(opened(config, 1), 6)
    first = opened(config, before)
    take_joined(first, 2)
    states = [json.dumps(iterator.get_state()) for iterator in first]
    assert len(set(states)) == 1  # The first process's, which is saved, is that of all.
    assert_equal(take_joined(opened(config, after, json.loads(states[0])), 4), expected[2:])


def test_the_order_does_not_depend_on_the_number_of_threads():
    one, three = (opened(small_config(batch_size=4, workers=n), 2) for n in (1, 3))
    assert_equal(take_joined(one, 9), take_joined(three, 9))


class Watched(SyntheticOrbits):
    """Remembers what was drawn of it."""

    def __init__(self, config):
        super().__init__(config)
        self.read = []

    def __getitem__(self, index):
        orbit = super().__getitem__(index)
        self.read.append(orbit.name)
        return orbit


def test_a_process_draws_its_own_rows_only(monkeypatch):
    config = small_config(batch_size=4)
    named = [loaded.objects for loaded in take_joined(opened(config, 1), 3)]
    source = Watched(config)
    monkeypatch.setattr(loader, "open_sources", lambda config: [source])
    monkeypatch.setattr(loader, "AHEAD", 0)
    batches = training_batches(config, (2, 3))
    for _ in range(3):
        next(batches)
    assert source.read == [name for objects in named for name in objects[2:]]


def test_every_object_is_drawn_once_an_epoch_and_epochs_differ():
    config = small_config(batch_size=4)
    whites = white_orbits(config)
    seen = [drawn(loaded.batch, whites) for loaded in take_joined(opened(config, 2), 6)]
    epochs = [sum(seen[:3], []), sum(seen[3:], [])]
    for epoch in epochs:
        assert sorted(index for index, _ in epoch) == list(range(OBJECTS))
    assert [index for index, _ in epochs[0]] != [index for index, _ in epochs[1]]
    firsts = {first for epoch in epochs for _, first in epoch}
    assert len(firsts) > 3  # Of 7, in 24 draws.
    one, other = ([f for batch in seen for _, f in batch[rows]] for rows in (np.s_[:2], np.s_[2:]))
    assert one != other  # Processes have first frames of their own.


def test_a_batch_comes_with_the_names_of_its_objects():
    config = small_config()
    whites = white_orbits(config)
    for loaded in itertools.islice(training_batches(config), 3):
        seeds = [config.data.seed + index for index, _ in drawn(loaded.batch, whites)]
        assert loaded.objects == tuple(f"synthetic object {seed}" for seed in seeds)


def test_the_config_seed_decides_the_order():
    config = small_config()
    other = dataclasses.replace(config, seed=1)
    one, same, changed = (next(training_batches(c)) for c in (config, config, other))
    assert_equal(one, same)
    assert np.abs(one.batch.images - changed.batch.images).max() > 0.1


def test_heldout_objects_are_fixed_and_none_is_trained_on():
    config = small_config()
    batch = heldout_batch(config, 4)
    assert_equal(heldout_batch(dataclasses.replace(config, seed=9), 4), batch)
    assert_equal(heldout_batch(config, 2).images, batch.images[:2])
    whites = white_orbits(config).reshape(-1, 16, 16, 3)
    gaps = np.abs(batch.images[:, 0, None] - whites[None]).max(axis=(-3, -2, -1))
    assert gaps.min() > 0.1
    orbits = [seeded_orbit(config, HELDOUT_SEED + i) for i in range(4)]
    render = white(np.stack([each.rgba for each in orbits]))
    assert [first for _, first in drawn(batch, render)] != [0, 0, 0, 0]
    assert [index for index, _ in drawn(batch, render)] == [0, 1, 2, 3]


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one object"):
        heldout_batch(small_config(), 0)


def test_rows_may_be_any_of_the_batch():
    config = small_config(batch_size=4)
    whole, some = training_batches(config), training_batches(config, rows=(1, 3))
    for _ in range(3):
        expected, found = next(whole), next(some)
        assert_equal(found.batch, jax.tree.map(lambda a: a[[1, 3]], expected.batch))
        assert found.objects == (expected.objects[1], expected.objects[3])
