import dataclasses
import json

import jax
import numpy as np
import pytest
from small_sets import FRAMES, OBJECTS, VIEWS, small_config, white, white_orbits

from o3d_jax.data.loader import heldout_batch, training_batches
from o3d_jax.data.synthetic import orbit_elevation
from o3d_jax.data.synthetic_orbits import HELDOUT_SEED, seeded_orbit
from o3d_jax.geometry.orbits import orbit, relative_to_first


def drawn(batch, whites: np.ndarray) -> list[tuple[int, int]]:
    """Index and first frame of each object of a batch, recognised by its input view."""
    gaps = np.abs(batch.images[:, 0, None, None] - whites[None]).max(axis=(-3, -2, -1))
    assert np.all(gaps.min(axis=(1, 2)) < 1e-6)  # float32 rounding.
    return [tuple(int(i) for i in np.unravel_index(g.argmin(), g.shape)) for g in gaps]


def assert_equal(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_resuming_gives_the_identical_next_batches():
    config = small_config()
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


def test_a_batch_has_every_second_frame_on_white_and_cameras_relative_to_the_first():
    config = small_config()
    whites = white_orbits(config)
    batch = next(training_batches(config))
    assert batch.images.dtype == batch.cameras.camera_to_world.dtype == np.float32
    for k, (index, first) in enumerate(drawn(batch, whites)):
        frames = [(first + 2 * i) % FRAMES for i in range(VIEWS)]
        np.testing.assert_allclose(batch.images[k], whites[index, frames], atol=1e-6)
        elevation = orbit_elevation(5 + index, (-5.0, 30.0))
        # Relative cameras don't depend on where the orbit starts.
        expected = relative_to_first(orbit(elevation, np.array(frames) * 360 / FRAMES, 1.5, 49.1))
        np.testing.assert_allclose(
            batch.cameras.camera_to_world[k], expected.camera_to_world, atol=1e-6
        )
        np.testing.assert_allclose(batch.cameras.intrinsics[k], expected.intrinsics, atol=1e-6)


def test_two_processes_share_out_all_objects_and_every_epoch_differs():
    config = small_config(batch_size=4)
    whites = white_orbits(config)
    epochs = []
    for process in range(2):
        batches = training_batches(config, process_index=process, process_count=2)
        seen = [drawn(next(batches), whites) for _ in range(6)]
        assert all(len(objects) == 2 for objects in seen)
        epochs.append([sum(seen[:3], []), sum(seen[3:], [])])
    for epoch in range(2):
        mine, other = ({index for index, _ in epochs[p][epoch]} for p in range(2))
        assert not mine & other
        assert mine | other == set(range(OBJECTS))
    assert epochs[0][0] != epochs[0][1]
    firsts = {first for process in epochs for epoch in process for _, first in epoch}
    assert len(firsts) > 3  # Of 7, in 24 draws.


def test_the_config_seed_decides_the_order():
    config = small_config()
    other = dataclasses.replace(config, seed=1)
    one, same, changed = (next(training_batches(c)) for c in (config, config, other))
    assert_equal(one, same)
    assert np.abs(one.images - changed.images).max() > 0.1


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


def test_processes_start_orbits_from_frames_of_their_own():
    config = small_config(batch_size=4)
    whites = white_orbits(config)
    firsts = []
    for process in range(2):
        batches = training_batches(config, process_index=process, process_count=2)
        firsts.append([first for _ in range(4) for _, first in drawn(next(batches), whites)])
    assert len(firsts[0]) == 8 and firsts[0] != firsts[1]


def test_batches_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="batch_size 3 must be a multiple of the 2 processes"):
        training_batches(small_config(), process_count=2)
    with pytest.raises(ValueError, match="process_index 2"):
        training_batches(small_config(), process_index=2, process_count=2)
    with pytest.raises(ValueError, match="at least one object"):
        heldout_batch(small_config(), 0)
