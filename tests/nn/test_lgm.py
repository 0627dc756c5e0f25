"""LGM with time equals the original, couples its views, and keeps objects apart."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.config import LgmConfig
from o3d_jax.nn.lgm import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ROTATIONS,
    Lgm,
    LgmResnet,
    activate,
    raw_colors,
    view_features,
)
from o3d_jax.types import Cameras
from support.quick import jit
from support.synthetic import synthetic_variables

GOLDEN = Path(__file__).parents[1] / "golden" / "lgm_gaussians_b1v8.npz"
SMALL = LgmConfig(
    input_size=48,
    down_channels=(32, 64, 128, 256, 512),
    down_attention=(False, False, False, False, True),
    up_channels=(512, 256, 128),
    up_attention=(True, False, False),
)
TOY = LgmConfig(
    input_size=8,
    num_views=2,
    down_channels=(4, 8),
    down_attention=(False, True),
    mid_attention=False,
    up_channels=(8,),
    up_attention=(False,),
    layers_per_block=1,
    num_heads=2,
    norm_num_groups=2,
    time_features=4,
)


def orbit(b, v):
    """Cameras at (0, 0, -2) and beyond, looking along z, no two alike."""
    camera_to_world = np.tile(np.eye(4, dtype=np.float32), (b, v, 1, 1))
    camera_to_world[..., :3, 3] = np.random.default_rng(0).normal(size=(b, v, 3)) - [0, 0, 3]
    intrinsics = np.tile(
        np.array([[1.1, 0, 0.5], [0, 1.3, 0.5], [0, 0, 1]], np.float32), (b, v, 1, 1)
    )
    return Cameras(camera_to_world=jnp.asarray(camera_to_world), intrinsics=jnp.asarray(intrinsics))


@pytest.fixture(scope="module")
def inputs():
    """Three objects, four views, of which the toy model reads 0 and 2; wider than high."""
    images = jax.random.uniform(jax.random.key(0), (3, 4, 10, 14, 3))
    return images, orbit(3, 4), jnp.array([-0.7, 0.0, 1.4])


@pytest.fixture(scope="module")
def variables(inputs):
    return synthetic_variables(Lgm(TOY), *inputs)


run = jax.jit(Lgm(TOY).apply)


def test_gaussians_equal_the_originals():
    with np.load(GOLDEN) as arrays:
        golden = dict(arrays)
    images = np.full((1, 8, 96, 96, 3), np.nan, np.float32)  # NaN: odd views are not read.
    images[:, ::2] = golden["images"] / np.float32(255)
    focal = 0.5 / np.tan(np.deg2rad(golden["fov"]) / 2)
    intrinsics = np.zeros((1, 8, 3, 3), np.float32)
    intrinsics[0, :, 0, 0] = intrinsics[0, :, 1, 1] = focal
    intrinsics[..., :2, 2] = 0.5
    intrinsics[..., 2, 2] = 1
    cameras = Cameras(
        camera_to_world=jnp.asarray(golden["camera_to_world"][None], jnp.float32),
        intrinsics=jnp.asarray(intrinsics),
    )
    given = jnp.asarray(images), cameras, jnp.asarray(golden["timestep"]).reshape(1)
    lgm = Lgm(SMALL)
    mine = jax.jit(lgm.apply)(synthetic_variables(lgm, *given), *given)
    packed = jnp.concatenate(
        [mine.means, mine.opacities[..., None], mine.scales, mine.quats, mine.colors], axis=-1
    )
    golden["gaussians"][:, 7:11] = golden["rotation_per_gaussian"]  # The release's norm is over n.
    # Ten times the rounding error of the original, which is 3e-6 (6e-6 for rotations).
    np.testing.assert_allclose(packed[0], golden["gaussians"], rtol=0, atol=6e-5)


def test_number_of_gaussians_is_that_of_pixels_of_read_views_at_half_size():
    images = jnp.zeros((1, 8, 512, 512, 3))
    shapes = jax.eval_shape(
        Lgm(LgmConfig()).init_with_output, jax.random.key(0), images, orbit(1, 8), jnp.zeros(1)
    )[0]
    assert shapes.means.shape == (1, 4 * 128 * 128, 3)


def test_activations_by_hand():
    raw = jnp.array([[[-2, 0.5, 2, 0, 0, 1, -100, 0, 0, 3, -4, 0, 1, -100]]], jnp.float32)
    g = activate(raw)
    assert g.means.tolist() == [[[-1, 0.5, 1]]]
    assert g.opacities.tolist() == [[0.5]]
    # float32; softplus(0) = ln 2, softplus(1) = ln(1 + e).
    np.testing.assert_allclose(g.scales[0, 0], [0.0693147, 0.1313262, 0], rtol=0, atol=1e-7)
    np.testing.assert_allclose(g.quats[0, 0], [0, 0, 0.6, -0.8], rtol=0, atol=1e-7)
    np.testing.assert_allclose(g.colors[0, 0], [0.5, 0.8807971, 0], rtol=0, atol=1e-6)


def test_positions_start_from_the_points_of_rays_nearest_to_the_origin_where_asked(
    inputs, variables
):
    free = np.asarray(run(variables, *inputs).means)
    by_rays = Lgm(LgmConfig(**{**vars(TOY), "positions": "ray"}))
    moved = np.asarray(jax.jit(by_rays.apply)(variables, *inputs).means)
    pose = np.asarray(inputs[1].camera_to_world)[:, ::2, None, None].astype(np.float64)
    # The grid of Gaussians is 4 x 4; cameras look along z with focal lengths 1.1 and 1.3.
    rows, columns = np.meshgrid((np.arange(4) + 0.5) / 4, (np.arange(4) + 0.5) / 4, indexing="ij")
    d = np.stack([(columns - 0.5) / 1.1, (rows - 0.5) / 1.3, np.ones((4, 4))], axis=-1)
    o = pose[..., :3, 3]
    along = -(o * d).sum(-1, keepdims=True) / (d * d).sum(-1, keepdims=True)
    nearest = (o + along * d).reshape(free.shape)
    inside = (np.abs(free) < 1) & (np.abs(free + nearest) < 1)
    assert inside.mean() > 0.5
    # float32 rounding of numbers of about 3.
    np.testing.assert_allclose((moved - free)[inside], nearest[inside], rtol=0, atol=2e-6)
    assert np.abs(moved).max() == 1


def test_colors_start_from_the_mean_of_the_pixels_in_a_cell_where_asked(variables):
    """The grid is 4 x 4: of 16 x 12 pixels, each cell has 4 x 3. Odd views are not read."""
    images = np.random.default_rng(1).uniform(0.1, 0.9, (3, 4, 16, 12, 3)).astype(np.float32)
    given = jnp.asarray(images), orbit(3, 4), jnp.zeros(3)
    cells = images[:, ::2].reshape(3, 2, 4, 4, 4, 3, 3).mean(axis=(3, 5)).reshape(3, 32, 3)
    freely = jit(Lgm(TOY).apply)
    by_pixels = jit(Lgm(LgmConfig(**{**vars(TOY), "colors": "pixel"})).apply)
    silent = by_pixels(jax.tree.map(jnp.zeros_like, variables), *given)
    # float32 through arctanh and tanh.
    np.testing.assert_allclose(silent.colors, cells, rtol=0, atol=2e-6)
    gray = freely(jax.tree.map(jnp.zeros_like, variables), *given)
    np.testing.assert_array_equal(gray.colors, 0.5)
    np.testing.assert_array_equal(silent.means, gray.means)

    # The network's own raw colors are added: tanh(a + b) of the two.
    free, moved = (np.arctanh(2 * f(variables, *given).colors - 1) for f in (freely, by_pixels))
    inside = np.abs(free) + np.abs(moved) < 3  # Farther out, float32 is coarse.
    assert inside.mean() > 0.9
    np.testing.assert_allclose((moved - free)[inside], np.arctanh(2 * cells - 1)[inside], atol=1e-3)


def test_raw_colors_of_a_slope_are_those_of_cell_centers_whatever_the_sizes():
    """Of 11 x 14 pixels on a grid of 4; only inside, since filters are cut off at borders."""
    rows, columns = np.meshgrid(
        (np.arange(11) + 0.5) / 11, (np.arange(14) + 0.5) / 14, indexing="ij"
    )
    slope = 0.2 + 0.3 * rows + 0.4 * columns
    images = jnp.asarray(np.broadcast_to(slope[..., None], (1, 2, 11, 14, 3)), jnp.float32)
    found = 0.5 * np.tanh(raw_colors(images, 4)) + 0.5
    centers = (np.arange(4) + 0.5) / 4
    expected = 0.2 + 0.3 * centers[:, None] + 0.4 * centers[None]
    inside = found[:, :, 1:3, 1:3]
    # The filter's weights are of whole pixels, not quite symmetric about the center.
    np.testing.assert_allclose(
        inside, np.broadcast_to(expected[1:3, 1:3, None], inside.shape), atol=0.005
    )


def test_raw_colors_of_black_and_white_are_finite_an_8_bit_step_from_the_ends():
    ends = jnp.array([[0.0, 1.0], [1.0, 0.0]])[None, None, ..., None]
    found = 0.5 * np.tanh(raw_colors(jnp.broadcast_to(ends, (1, 1, 2, 2, 3)), 2)) + 0.5
    expected = np.array([[1 / 255, 254 / 255], [254 / 255, 1 / 255]])
    np.testing.assert_allclose(found[0, 0, ..., 1], expected, atol=1e-6)


def test_quaternion_of_zero_has_a_finite_gradient():
    gradient = jax.grad(lambda raw: activate(raw).quats.sum())(jnp.zeros((1, 1, 14)))
    assert jnp.all(jnp.isfinite(gradient))


def test_attention_joins_the_views_of_one_object(inputs, variables):
    images, cameras, c_noise = inputs
    changed = images.at[1, 2].set(0.3)
    before, after = (
        run(variables, images, cameras, c_noise),
        run(variables, changed, cameras, c_noise),
    )
    moved = np.abs(np.asarray(before.means - after.means)).max(axis=(2)).reshape(3, 2, 16).max(2)
    assert (moved[1] > 1e-4).all()  # Both read views of object 1, view 0 by attention alone.
    assert (moved[[0, 2]] == 0).all()


def test_views_keep_to_themselves_without_attention(inputs):
    images, cameras, c_noise = inputs
    lgm = Lgm(LgmConfig(**{**vars(TOY), "down_attention": (False, False)}))
    apply = jax.jit(lgm.apply)
    variables = synthetic_variables(lgm, *inputs)
    before = apply(variables, images, cameras, c_noise).means
    after = apply(variables, images.at[1, 2].set(0.3), cameras, c_noise).means
    moved = np.abs(np.asarray(before - after)).max(axis=2).reshape(3, 2, 16).max(2)
    assert moved[1, 1] > 1e-4
    assert moved[1, 0] == 0  # So Gaussians are in the order of the views.


def test_a_batch_is_its_objects_one_by_one(inputs, variables):
    images, cameras, c_noise = inputs
    together = run(variables, *inputs)
    for i in range(3):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], (images, cameras, c_noise))
        alone = run(variables, *one)
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            # Another batch size may change the order of float32 sums.
            np.testing.assert_allclose(a[0], b[i], rtol=0, atol=1e-5)


def test_noise_level_matters_only_once_its_projections_leave_zero(inputs, variables):
    images, cameras, c_noise = inputs
    new = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if "emb_layers_1" in str(path) else x, variables
    )
    change = [
        jnp.abs(run(v, *inputs).means - run(v, images, cameras, c_noise + 0.5).means).max()
        for v in (new, variables)
    ]
    assert change[0] == 0
    assert change[1] > 1e-3


def test_new_block_has_a_zero_time_projection_and_torchs_spread_elsewhere():
    x, time = jnp.zeros((1, 4, 6, 4)), jnp.zeros((1, 16))
    key = jax.random.key(0, impl="rbg")  # Compiles faster.
    params = LgmResnet(8, 2, jnp.float32).lazy_init(key, x, time)["params"]
    assert not np.any(params["emb_layers_1"]["kernel"])
    bound = 1 / np.sqrt(9 * 4)  # 1 / sqrt(fan_in); uniform up to it, so nearly reached.
    assert 0.9 * bound < np.abs(params["conv1"]["kernel"]).max() <= bound


def test_images_are_sampled_bilinearly_without_antialiasing():
    rows, columns = np.meshgrid(np.arange(6.0), np.arange(12.0), indexing="ij")
    plane = jnp.asarray(10 * rows + columns**2, jnp.float32)[None, None, :, :, None]
    images = jnp.broadcast_to(plane, (1, 1, 6, 12, 3))
    x = np.asarray(view_features(images, orbit(1, 1), 4))[0, 0, :, :, :3]
    x = x * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)
    # Output i is at (i + 1/2) * factor - 1/2: rows 0.25, 1.75, ...; columns 1, 4, 7, 10.
    expected = 10 * np.array([0.25, 1.75, 3.25, 4.75])[:, None] + np.array([1, 4, 7, 10]) ** 2
    # float32 of values up to 150, after division and multiplication by the deviation.
    np.testing.assert_allclose(x, np.repeat(expected[..., None], 3, -1), rtol=1e-5)


def test_halving_images_is_the_mean_of_four_pixels():
    images = jax.random.uniform(jax.random.key(0), (2, 3, 16, 16, 3))
    fast = view_features(images, orbit(2, 3), 8)[..., :3]
    slow = jax.image.resize(images, (2, 3, 8, 8, 3), "bilinear", antialias=False)
    slow = (np.asarray(slow) - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-5)  # float32 sums, divided by 0.22.


def test_recomputing_blocks_changes_neither_output_nor_gradient(inputs, variables):
    def loss(lgm):
        return jax.jit(jax.value_and_grad(lambda v: jnp.sum(lgm.apply(v, *inputs).means ** 2)))(
            variables
        )

    stored, recomputed = loss(Lgm(TOY)), loss(Lgm(TOY, remat="nothing"))
    for a, b in zip(jax.tree.leaves(stored), jax.tree.leaves(recomputed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)  # Fusions differ: float32 rounding.


def test_bfloat16_gives_float32_gaussians_near_those_of_float32(inputs, variables):
    half = jax.jit(Lgm(TOY, dtype=jnp.bfloat16).apply)(variables, *inputs)
    full = run(variables, *inputs)
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(full), strict=True):
        assert a.dtype == jnp.float32
        assert float(jnp.sqrt(jnp.mean((a - b) ** 2))) < 0.03  # 2^-9 per rounding, ten layers.


def test_rotations_over_gaussians_share_one_length_among_all():
    raw = jax.random.normal(jax.random.key(0), (2, 6, 14))
    per_gaussian, over_gaussians = (
        activate(raw, ROTATIONS[name]).quats for name in ("per_gaussian", "over_gaussians")
    )
    np.testing.assert_allclose((per_gaussian**2).sum(-1), np.ones((2, 6)), rtol=1e-5)
    np.testing.assert_allclose((over_gaussians**2).sum(-2), np.ones((2, 4)), rtol=1e-5)
    # Both have the signs and the order of components of what the network says.
    for found in (per_gaussian, over_gaussians):
        np.testing.assert_array_equal(np.sign(found), np.sign(raw[..., 7:11]))
