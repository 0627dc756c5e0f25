"""The tiled rasterizer against its slow twin, closed forms and finite differences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.splat import RenderOptions, render
from o3d_jax.splat.tiles import depth_order, rank_by_depth
from o3d_jax.types import Cameras
from support.splats import (
    BACKGROUND,
    BALL,
    ONE_ROUND,
    QUICK,
    SIZE,
    TEN_ROUNDS,
    N,
    assert_same,
    balls,
    cases,
    draw_balls,
    orbit,
    project_views,
    pull_back,
    random_like,
    scene,
    slow_twin,
)


@pytest.mark.parametrize(("batch", "views"), [((), 3), ((2,), 1), ((1, 2), 3)])
def test_render_matches_the_slow_twin_and_so_do_gradients(batch, views):
    gaussians, cameras, weights = cases(batch, views)
    ours = pull_back(render, gaussians, cameras, BACKGROUND, weights)
    assert ours[0].rgb.shape == (*batch, views, *SIZE, 3)
    assert_same(ours, slow_twin(gaussians, cameras, weights))


def test_boxes_hold_the_visible_pixels_and_little_more():
    splats, boxes = project_views(scene(5), orbit((), 3))
    y, x = (np.mgrid[: SIZE[0], : SIZE[1]] + 0.5)[:, None, None]
    dx = np.asarray(splats.center)[:, 0, :, None, None] - x
    dy = np.asarray(splats.center)[:, 1, :, None, None] - y
    p, r, s = np.moveaxis(np.asarray(splats.whitening), 1, 0)[..., None, None]
    opacity = np.asarray(splats.opacity)[..., None, None]
    visible = opacity * np.exp(-((p * dx + r * dy) ** 2 + (s * dy) ** 2) / 2) >= 1 / 255
    first, last = (
        np.moveaxis(np.asarray(a), 1, -1)[..., None, None] for a in (boxes.first, boxes.last)
    )
    inside = (first[:, :, 0] < x) & (x < last[:, :, 0]) & (first[:, :, 1] < y) & (y < last[:, :, 1])
    assert visible.sum() > 5000 and not (visible & ~inside).any()
    # An ellipse fills at least half of its box unless it is thin (or cut off by the image).
    assert visible.sum() > 0.5 * inside.sum(), visible.sum() / inside.sum()


@pytest.mark.parametrize("length", [2.0**-90, 2.0**90])  # Their squares are not float32 numbers.
def test_length_of_a_quaternion_does_not_matter(length):
    gaussians = scene(5)
    scaled = dataclasses.replace(gaussians, quats=length * gaussians.quats)
    ours, expected = (project_views(g, orbit((), 3))[0].whitening for g in (scaled, gaussians))
    np.testing.assert_array_equal(ours, expected)  # A power of two costs no rounding.


ten_rounds = functools.partial(render, options=RenderOptions(tiling=TEN_ROUNDS))


def test_ten_rounds_draw_what_one_round_draws():
    gaussians, cameras, weights = cases((), 3)
    splats, boxes = project_views(gaussians, cameras)
    total = jax.vmap(lambda d, b: jnp.sum(rank_by_depth(d, b, TEN_ROUNDS).count))
    total = np.asarray(jax.jit(total)(splats.depth, boxes))
    assert (total > 10 * TEN_ROUNDS.capacity).all() and (total <= ONE_ROUND.capacity).all()
    ours = pull_back(ten_rounds, gaussians, cameras, BACKGROUND, weights)
    assert_same(ours, pull_back(render, gaussians, cameras, BACKGROUND, weights))


def test_repeated_runs_agree_to_the_last_bit():
    gaussians, cameras, weights = cases((), 3)
    first, second = (pull_back(render, gaussians, cameras, BACKGROUND, weights) for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_vmap_of_remat_is_the_batch_and_so_are_gradients():
    gaussians, cameras, weights = cases((2,), 1)

    def mapped(gaussians, cameras, size, background):
        one = jax.checkpoint(lambda g, c: render(g, c, size, background))
        return jax.vmap(one)(gaussians, cameras)

    ours = pull_back(mapped, gaussians, cameras, BACKGROUND, weights)
    assert_same(ours, pull_back(render, gaussians, cameras, BACKGROUND, weights))


def test_shard_map_over_objects_is_the_batch_and_takes_gradients():
    gaussians, cameras, weights = cases((2,), 1)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("data",), axis_types=auto, devices=jax.devices()[:2])
    over = jax.sharding.PartitionSpec("data")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(over, over), out_specs=over)
    def sharded(gaussians, cameras):
        return render(gaussians, cameras, SIZE, BACKGROUND)

    expected, (gradient, *_) = pull_back(render, gaussians, cameras, BACKGROUND, weights)
    ours = jax.jit(sharded, compiler_options=QUICK)(gaussians, cameras)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)  # Same sums, compiled differently.
    pull = jax.jit(lambda g: jax.vjp(sharded, g, cameras)[1](weights)[0], compiler_options=QUICK)
    assert_same((ours, pull(gaussians)), (expected, gradient))


def test_sharded_views_are_the_same_and_repeat_to_the_last_bit():
    gaussians, cameras, weights = cases((), 4)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("data",), axis_types=auto, devices=jax.devices()[:2])
    spec = jax.sharding.PartitionSpec
    over = (spec(), spec("data"), spec())

    def sharded(gaussians, cameras, size, background):
        draw = functools.partial(render, size=size)
        place = jax.shard_map(
            lambda g, c, b: draw(g, c, background=b),
            mesh=mesh,
            in_specs=over,
            out_specs=spec("data"),
        )
        return place(gaussians, cameras, background)

    expected = pull_back(render, gaussians, cameras, BACKGROUND, weights)
    first, second = (pull_back(sharded, gaussians, cameras, BACKGROUND, weights) for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    # Not to the bit: another program, whose sums and products XLA contracts elsewhere.
    assert_same(first, expected)


def test_order_of_the_gaussians_does_not_matter():
    gaussians, cameras, weights = cases((), 3)
    shuffle = np.random.default_rng(0).permutation(N)
    shuffled = jax.tree.map(lambda x: x[shuffle], gaussians)
    expected, (gradient, *others) = pull_back(render, gaussians, cameras, BACKGROUND, weights)
    ours = pull_back(render, shuffled, cameras, BACKGROUND, weights)
    gradient = jax.tree.map(lambda x: x[shuffle], gradient)
    assert_same(ours, (expected, (gradient, *others)))


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_depth_order_is_a_stable_sort(n):
    rng = np.random.default_rng(n)
    depth = rng.choice(np.exp(rng.normal(size=n // 2 + 1)), n).astype(np.float32)  # With ties.
    np.testing.assert_array_equal(depth_order(jnp.asarray(depth)), np.argsort(depth, kind="stable"))


def test_one_ball_has_its_closed_form_and_ends_at_1_255():
    ours = draw_balls(balls([0.8], [2.0]))
    y, x = np.mgrid[:9, :15] - np.array([4, 7])[:, None, None]
    variance = (20 / 2 * BALL) ** 2 + 0.3  # px^2: focal length times scale over depth, low-pass.
    alpha = 0.8 * np.exp(-(x**2 + y**2) / (2 * variance))
    assert 0.99 / 255 < alpha[alpha < 1 / 255].max()  # A pixel just outside.
    alpha = np.where(alpha < 1 / 255, 0, alpha)
    # 1e-6: a few roundings of numbers below 2.
    np.testing.assert_allclose(ours.alpha[0, :, :, 0], alpha, atol=1e-6)
    np.testing.assert_allclose(ours.depth[0, :, :, 0], 2 * alpha, atol=1e-6)
    np.testing.assert_allclose(ours.rgb[0, :, :, 0], alpha + 0.5 * (1 - alpha), atol=1e-6)


def test_equal_depths_are_drawn_in_index_order():
    ours = draw_balls(balls([0.6, 0.5], [2.0, 2.0]))
    np.testing.assert_allclose(ours.rgb[0, 4, 7], [0.6 + 0.1, 0.4 * 0.5 + 0.1, 0.1], atol=1e-6)


def test_a_pixel_ends_before_the_gaussian_that_would_leave_less_than_1e_4():
    # Red (clamped to 0.99) and green leave 2e-4. Blue would leave 2e-5, so it is not drawn, nor is
    # the last one, which by itself would leave enough.
    ours = draw_balls(balls([1.0, 0.98, 0.9, 0.3], [1.5, 2.0, 2.5, 3.0]))
    expected = np.array([0.99, 0.01 * 0.98, 0]) + 0.5 * 2e-4
    np.testing.assert_allclose(ours.rgb[0, 4, 7], expected, atol=1e-6)
    np.testing.assert_allclose(ours.alpha[0, 4, 7], 1 - 2e-4, atol=1e-6)


def test_camera_gradients_match_finite_differences(float64):
    size = (13, 18)
    gaussians, cameras = scene(2, n=12, dtype=float64), orbit((), 1, dtype=float64)
    background = jnp.asarray(BACKGROUND, float64)
    shapes = jax.eval_shape(lambda: render(gaussians, cameras, size, background))
    weights = random_like(shapes, 0)
    draw = functools.partial(pull_back, render, gaussians, size=size)
    _, (_, gradient, _) = draw(cameras, background, weights)
    rng = np.random.default_rng(7)
    step = 1e-6  # So small that no pixel crosses 1/255, where the image jumps.
    toward = jax.tree.map(lambda x: step * jnp.asarray(rng.normal(size=x.shape)), cameras)
    # The last rows of both matrices are constants of the camera model.
    toward = Cameras(
        camera_to_world=toward.camera_to_world.at[..., 3, :].set(0),
        intrinsics=toward.intrinsics.at[..., 2, :].set(0).at[..., 1, 0].set(0),
    )
    ends = []
    for sign in (1, -1):
        moved = jax.tree.map(lambda x, d, sign=sign: x + sign * d, cameras, toward)
        rendering, _ = draw(moved, background, weights)
        ends.append(sum(jax.tree.leaves(jax.tree.map(jnp.vdot, rendering, weights))))
    slope = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, toward)))
    # 1e-6: rounding 1e-15 * 100 over a step of 1e-6 * gradient 100, and step^2.
    np.testing.assert_allclose((ends[0] - ends[1]) / 2, slope, rtol=1e-6)
