"""Sorting and counting of intersections where numbers are large."""

import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.splat import Tiling, tiles


@pytest.mark.parametrize("bits", [32, 8])  # A word for both; a word each.
def test_slots_come_by_tile_and_then_in_order(monkeypatch, bits):
    monkeypatch.setattr(tiles, "KEY_BITS", bits)
    tiling = Tiling(height=9, width=14, tile=2, capacity=64, group=1)
    tile = np.random.default_rng(0).integers(0, tiling.tiles + 1, 64)
    slots = jnp.arange(64, dtype=jnp.int32)
    slot, bound = tiles._by_tile(jnp.asarray(tile, jnp.int32), slots, tiling)
    np.testing.assert_array_equal(slot, np.argsort(tile, kind="stable"))
    np.testing.assert_array_equal(bound, np.searchsorted(np.sort(tile), range(tiling.tiles + 1)))


@pytest.mark.parametrize("side", [4, 2048])  # The latter has 2^22 tiles.
def test_running_totals_are_right_up_to_the_capacity(side):
    tiling = Tiling(height=side, width=side, tile=1, capacity=2**20, group=1)
    count = np.random.default_rng(1).integers(0, 2**22, 3000)  # More than 2^32 altogether.
    count[5:40] = 7
    count[:5] = 0
    if side == 4:  # 16 tiles: counts and totals stay small.
        count = np.minimum(count, 16)
    ours = np.asarray(tiles._running_total(jnp.asarray(count, jnp.int32), tiling))
    total = np.cumsum(count)
    within = total <= tiling.capacity
    assert 40 <= within.sum() and (side == 4) == within.all()
    np.testing.assert_array_equal(ours[within], total[within])
    assert (ours[~within] > tiling.capacity).all()


def test_large_images_get_rounds_that_are_not_small_against_their_tiles():
    tiling = Tiling.choose(65536, (4096, 4096))
    assert tiling.tiles == 65536 and tiling.capacity == 2**19
    assert Tiling.choose(65536, (512, 512)).capacity == 2**17
