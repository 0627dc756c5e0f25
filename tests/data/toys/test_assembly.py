import numpy as np
import pytest
from numba import njit

from o3d_jax.data.toys.assembly import assemble, reach
from o3d_jax.data.toys.palette import draw_kit
from o3d_jax.data.toys.parts import Coat, Part, ball, box, cone, ellipsoid, limb, pillow, ring, slab
from o3d_jax.data.toys.seeded import TEMPLATES
from o3d_jax.data.toys.shapes import Solid, Vec
from o3d_jax.data.toys.tracing import distance

GRAY = Coat(first=(0.5, 0.5, 0.5))
TRIANGLE = ((-0.5, -0.4), (0.6, -0.4), (0.1, 0.7))


@njit
def distances(solid, points):
    found = np.zeros(len(points))
    for i in range(len(points)):
        found[i] = distance(solid, Vec(points[i, 0], points[i, 1], points[i, 2]))
    return found


def in_object_units(part: Part, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Random points in the object's own units, and their signed distances in the same."""
    toy = assemble([part], 0.6)
    scale = toy.solid.parts["reach"][0] / reach(part)
    points = np.random.default_rng(1).uniform(-1.3, 1.3, (count, 3))
    return points, distances(toy.solid, points * scale + toy.solid.origin) / scale


def radial(p: np.ndarray) -> np.ndarray:
    return np.hypot(p[:, 0], p[:, 2])


def in_triangle(p: np.ndarray) -> np.ndarray:
    corners = np.array(TRIANGLE)
    edges = np.roll(corners, -1, axis=0) - corners
    w = p[:, None, :2] - corners
    return np.all(edges[:, 0] * w[:, :, 1] - edges[:, 1] * w[:, :, 0] > 0, axis=1)


def in_limb(p: np.ndarray) -> np.ndarray:
    """The hull of two balls is the union of the balls between them."""
    s = np.linspace(0, 1, 2001)
    gaps = np.hypot(radial(p)[:, None], p[:, 1, None] - (s - 0.5) * 0.9) - (0.4 - 0.25 * s)
    return gaps.min(axis=1) < 0


@pytest.mark.parametrize(
    ("part", "inside"),
    [
        (box(GRAY, (1.0, 0.6, 1.6), 0.0), lambda p: np.all(np.abs(p) < [0.5, 0.3, 0.8], axis=1)),
        (ellipsoid(GRAY, (0.4, 0.9, 0.6)), lambda p: np.sum((p / [0.4, 0.9, 0.6]) ** 2, 1) < 1),
        (pillow(GRAY, (0.4, 0.9, 0.6)), lambda p: np.sum((p / [0.4, 0.9, 0.6]) ** 4, 1) < 1),
        (limb(GRAY, 0.4, 0.15, 0.9), in_limb),
        (ring(GRAY, 0.7, 0.3), lambda p: (radial(p) - 0.7) ** 2 + p[:, 1] ** 2 < 0.09),
        (
            cone(GRAY, 0.8, 0.2, 1.2, 0.0),
            lambda p: (np.abs(p[:, 1]) < 0.6) & (radial(p) < 0.5 - 0.5 * p[:, 1]),
        ),
        (
            slab(GRAY, TRIANGLE, 0.8, 0.0),
            lambda p: in_triangle(p) & (np.abs(p[:, 2]) < 0.4),
        ),
        (
            ball(GRAY, 0.2, at=(0.8 * np.sin(0.5), 0.3, 0.8 * np.cos(0.5)), copies=5),
            lambda p: np.any(
                [
                    np.linalg.norm(p - [0.8 * np.sin(a), 0.3, 0.8 * np.cos(a)], axis=1) < 0.2
                    for a in 0.5 + 2 * np.pi / 5 * np.arange(5)
                ],
                axis=0,
            ),
        ),
        (
            ball(GRAY, 0.25, at=(0.6, -0.2, 0.7), mirror="xz"),
            lambda p: (
                np.linalg.norm(np.abs(p) * [1, 0, 1] - [0.6, 0, 0.7], axis=1) ** 2
                + (p[:, 1] + 0.2) ** 2
                < 0.0625
            ),
        ),
        (
            # By 90 degrees about z, the part's y becomes the object's -x.
            box(GRAY, (0.4, 1.6, 0.6), 0.0, turn=(0, 0, 90), at=(0.1, 0.0, 0.0)),
            lambda p: np.all(np.abs(p - [0.1, 0, 0]) < [0.8, 0.2, 0.3], axis=1),
        ),
        (
            # By 40 degrees about x, y leans toward z.
            cone(GRAY, 0.2, 0.2, 1.6, 0.0, turn=(40, 0, 0)),
            lambda p: (
                (np.abs(p @ np.array([0, 0.76604444, 0.64278761])) < 0.8)
                & (np.hypot(p[:, 0], p @ np.array([0, -0.64278761, 0.76604444])) < 0.2)
            ),
        ),
    ],
    ids=str.split("box ellipsoid pillow limb ring cone slab copies mirror turned leaning"),
)
def test_the_distance_is_negative_exactly_inside(part, inside):
    points, found = in_object_units(part)
    expected = inside(points)
    assert 0.002 < expected.mean() < 0.5
    # Within 2e-3 of the surface, the walls of `cone` (1e-3 wide at least) and rounding may decide.
    clear = np.abs(found) > 2e-3
    np.testing.assert_array_equal(found[clear] < 0, expected[clear])


@pytest.mark.parametrize("template", dict.fromkeys(TEMPLATES), ids=lambda t: t.__name__)
def test_objects_stay_in_their_ball_and_touch_it(template):
    u = np.random.default_rng(0).normal(size=(2000, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    for seed in range(6):
        toy = assemble(template(draw_kit(np.random.default_rng(seed))), 0.55)
        assert distances(toy.solid, 0.55 * u).min() > 0
        # Some part comes within 8 % of it: 2 % margin, joints, and gaps between directions.
        assert distances(toy.solid, 0.55 * u).min() < 0.08 * 0.55


def test_smooth_joints_fill_the_gap_by_the_quadratic_blend():
    # Two balls of radius 0.3 whose gap at the origin is 0.1 on both sides; width 0.4 fills
    # (0.4 - 0)^2 / (4 * 0.4) = 0.1 there: the surface passes through the origin.
    one, other = ball(GRAY, 0.3, at=(0.4, 0, 0)), ball(GRAY, 0.3, at=(-0.4, 0, 0), blend=0.4)
    toy = assemble([one, other], 0.5)
    scale = toy.solid.parts["size"][0, 0] / 0.3
    at_origin = distances(Solid(np.zeros(3), toy.solid.parts), np.zeros((1, 3)))[0] / scale
    np.testing.assert_allclose(at_origin, 0, atol=1e-12)
