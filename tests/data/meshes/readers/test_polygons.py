"""Polygons cut into triangles: areas, sides, and what they cover."""

import numpy as np
import pytest

from o3d_jax.data.meshes.readers.polygons import cut_polygons
from o3d_jax.errors import InputError

U = [[0, 0], [3, 0], [3, 3], [2, 3], [2, 1], [1, 1], [1, 3], [0, 3]]
DART = [[0, 2], [-2, -1], [0, 0], [2, -1]]
HOUSE = [[0, 0], [2, 0], [2, 1], [1, 2], [0, 1]]  # Without a notch.
TURNS = np.arange(10) * np.pi / 5
STAR = np.stack([np.sin(TURNS), np.cos(TURNS)], -1) * np.where(np.arange(10) % 2, 1, 3)[:, None]
SHAPES = {"u": U, "dart": DART, "house": HOUSE, "star": STAR}


def area(flat):
    x, y = np.asarray(flat, float).T
    return 0.5 * (np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))


def turned(flat, seed=0):
    """A flat polygon in some plane of space, far away; returns its points and its normal."""
    axes, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    axes *= np.linalg.det(axes)
    flat = np.asarray(flat, float)
    return flat @ axes[:2] + [4e5, -5e6, 3e2], axes[2] * np.sign(area(flat))


def inside(point, flat):
    """Whether a ray to the right leaves the polygon once more often than it enters (odd count)."""
    x, y = np.asarray(flat, float).T
    other_x, other_y = np.roll(x, -1), np.roll(y, -1)
    crosses = (y > point[1]) != (other_y > point[1])
    at = x + (point[1] - y) / np.where(crosses, other_y - y, 1) * (other_x - x)
    return (crosses & (at > point[0])).sum() % 2 == 1


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_triangles_cover_the_polygon_once_whatever_corner_is_first(name, backwards):
    for start in range(len(SHAPES[name])):
        flat = np.roll(SHAPES[name], start, axis=0)[:: -1 if backwards else 1]
        points, normal = turned(flat, start)
        cut = cut_polygons(points, np.arange(len(flat)), np.array([len(flat)])).corners
        a, b, c = np.moveaxis(points[cut], 1, 0)
        across = np.cross(b - a, c - a) / 2
        # At 5,000,000 from the origin, float64 has steps of 1e-9, here of lengths of up to 3.
        np.testing.assert_allclose(across.sum(axis=0), abs(area(flat)) * normal, atol=1e-7)
        assert (across @ normal > 0).all()  # None is turned over: the areas add up to it once.
        middles = np.mean(np.asarray(flat)[cut], axis=1)
        assert all(inside(middle, flat) for middle in middles)


def test_polygons_of_all_sizes_keep_their_order_and_corners():
    shapes = [U, HOUSE[:3], DART, HOUSE[:2], STAR, HOUSE, U[::-1]]
    points = np.concatenate(
        [np.c_[shape, np.full(len(shape), i)] for i, shape in enumerate(shapes)]
    )
    corners = np.random.default_rng(1).permutation(len(points))
    place = np.argsort(corners)  # Where each point is among the shuffled ones.
    sizes = np.array([len(shape) for shape in shapes])
    cut = cut_polygons(points[corners], place, sizes)
    assert (np.diff(cut.polygons) >= 0).all()
    at = points[corners][place[cut.corners]]
    np.testing.assert_array_equal(at[..., 2], np.repeat(cut.polygons[:, None], 3, axis=1))
    across = np.cross(at[:, 1] - at[:, 0], at[:, 2] - at[:, 0])[:, 2] / 2
    found = np.bincount(cut.polygons, across, len(shapes))
    expected = [area(shape) if len(shape) > 2 else 0 for shape in shapes]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_polygon_with_a_slit_to_its_hole_is_cut_around_the_hole():
    outer, hole = [[0, 0], [4, 0], [4, 4], [0, 4]], [[1, 1], [1, 3], [3, 3], [3, 1]]
    flat = np.array([*outer, outer[0], hole[0], *hole[1:], hole[0]], float)
    points = np.c_[flat, np.zeros(len(flat))]
    cut = cut_polygons(points, np.arange(len(flat)), np.array([len(flat)])).corners
    a, b, c = np.moveaxis(flat[cut], 1, 0)
    areas = np.cross(np.c_[b - a, np.zeros(len(a))], np.c_[c - a, np.zeros(len(a))])[:, 2] / 2
    assert areas.min() >= 0 and areas.sum() == pytest.approx(16 - 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_polygons_without_a_plane_are_cut_somehow(bad):
    points = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, bad, 0], [0, 0, 0], [2, 2, 0]], float)
    sizes = np.array([4, 4, 4])
    corners = np.array([0, 1, 2, 3, 0, 0, 0, 0, 0, 5, 0, 5])
    cut = cut_polygons(points, corners, sizes)
    assert np.bincount(cut.polygons).tolist() == [2, 2, 2]


def test_no_polygon_takes_longer_than_seconds():
    generator = np.random.default_rng(0)
    points = np.c_[generator.normal(size=(20_001, 2)), np.zeros(20_001)]  # Crosses itself.
    with pytest.raises(InputError, match="20001 corners and notches"):
        cut_polygons(points, np.arange(20_001), np.array([20_001]))
    turns = np.linspace(0, 2 * np.pi, 10**5, endpoint=False)
    circle = np.stack([np.cos(turns), np.sin(turns), 0 * turns], -1)
    assert len(cut_polygons(circle, np.arange(10**5), np.array([10**5])).corners) == 10**5 - 2
