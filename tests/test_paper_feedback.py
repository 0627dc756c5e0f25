"""Sec. 3.3 and App. A: what is fed back, and where it enters the denoiser (see `test_paper.py`)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.config import UnetConfig
from o3d_jax.geometry.ccm import coordinate_map
from o3d_jax.geometry.orbits import orbit
from o3d_jax.nn.feedback import FeedbackBlock, FeedbackEncoder
from o3d_jax.nn.unet import MultiViewUnet, SpatioTemporalUnet
from o3d_jax.nn.unet_blocks import Downsample, SpatioTemporalTransformer
from o3d_jax.types import Condition, Maps
from support.toy_networks import filled

pytestmark = pytest.mark.usefixtures("quick_compilation")


def without_unet(kept):
    """Intercepts the U-Net, which is slow, and keeps the feedback it is given."""

    def skip(call, args, kwargs, context):
        if isinstance(context.module, SpatioTemporalUnet) and context.method_name == "__call__":
            kept.append(args[5])
            return args[0][..., : context.module.out_channels]
        return call(*args, **kwargs)

    return nn.intercept_methods(skip)


def denoiser_inputs(size, downscale, views=2, clip=1024):
    """Zeros for the denoiser, `size` latents wide and high."""
    condition = Condition(
        clip=jnp.zeros((1, 1, clip)),
        latents=jnp.zeros((1, size, size, 4)),
        added_ids=jnp.zeros((1, 3)),
    )
    cameras = orbit(0.0, np.arange(views) * 50.0, 1.5, 49.1)
    cameras = jax.tree.map(lambda a: a[None], cameras)
    return jnp.zeros((1, views, size, size, 4)), jnp.zeros(1), condition, cameras


def test_table3_at_full_size():
    blocks, kept = [], []

    def count(call, args, kwargs, context):
        if isinstance(context.module, FeedbackBlock):
            blocks.append(context.module)
        return call(*args, **kwargs)

    maps = jax.eval_shape(lambda: Maps.nothing(1, 2, 512, 512))
    model, inputs = MultiViewUnet(UnetConfig()), denoiser_inputs(64, 8)
    with nn.intercept_methods(count), without_unet(kept):
        params = jax.eval_shape(model.init, jax.random.key(0), *inputs, maps)["params"]
    assert [f.shape[2:] for f in kept[0]] == [
        (64, 64, 320), (32, 32, 640), (16, 16, 1280), (8, 8, 1280)
    ]  # fmt: skip
    for encoder in ("cond_encoder_0", "cond_encoder_1"):
        assert params[encoder]["conv_in"]["kernel"].shape == (3, 3, 192, 320)
    per_encoder = [(block.features, block.downsample) for block in blocks]
    expected = [(320, False)] * 3
    for channels in (640, 1280, 1280):
        expected += [(channels, True), (channels, False), (channels, False)]
    assert per_encoder == 2 * expected


def test_eq12_eq13_each_map_has_its_encoder_and_features_add_up(tiny):
    model = MultiViewUnet(tiny.model.unet)
    keys = jax.random.split(jax.random.key(0))
    maps = Maps(
        rgb=jax.random.uniform(keys[0], (1, 2, 16, 16, 3)),
        ccm=jax.random.uniform(keys[1], (1, 2, 16, 16, 3)),
    )
    inputs = denoiser_inputs(8, 2)

    @jax.jit
    def feedback(variables):
        kept = []
        with without_unet(kept):
            model.apply(variables, *inputs, maps)
        return kept[0]

    with without_unet([]):
        variables = filled(jax.eval_shape(model.init, jax.random.key(0), *inputs, maps))

    @partial(jax.jit, static_argnums=0)
    def alone(name, image):
        encoder = FeedbackEncoder((8, 8, 16, 16), blocks=1, downscale=2)
        return encoder.apply({"params": variables["params"][name]}, image)

    rgb, ccm = alone("cond_encoder_0", maps.rgb), alone("cond_encoder_1", maps.ccm)
    silent = jax.tree.map(jnp.copy, variables)
    silent["params"]["cond_encoder_1"] = jax.tree.map(
        jnp.zeros_like, silent["params"]["cond_encoder_1"]
    )
    for both, one, f_t, f_p in zip(feedback(variables), feedback(silent), rgb, ccm, strict=True):
        # The same operations, compiled apart.
        np.testing.assert_allclose(both, f_t + f_p, atol=1e-5)
        np.testing.assert_allclose(one, f_t, atol=1e-5)
        assert np.abs(f_p).max() > 0.1


def test_eq14_features_are_added_at_each_of_four_scales(tiny):
    model = SpatioTemporalUnet(tiny.model.unet, cross_attention_dim=12)
    keys = jax.random.split(jax.random.key(0), 6)
    x = jax.random.normal(keys[0], (1, 2, 8, 16, 8))
    inputs = (x, jnp.ones(1), jnp.ones((1, 1, 12)), jnp.ones((1, 3)), None)
    sizes = [(8, 16, 8), (4, 8, 8), (2, 4, 16), (1, 2, 16)]
    given = [jax.random.normal(k, (1, 2, *s)) for k, s in zip(keys[1:5], sizes, strict=True)]

    @jax.jit
    def run(variables, feedback):
        seen = []

        def watch(call, args, kwargs, context):
            module, called = context.module, context.method_name == "__call__"
            if called and (isinstance(module, Downsample) or module.name == "up_blocks_0"):
                seen.append(args[0])
            if called and isinstance(module, SpatioTemporalTransformer):
                return args[0]  # Left out: slow to compile, and not about this.
            return call(*args, **kwargs)

        with nn.intercept_methods(watch):
            out = model.apply(variables, *inputs, feedback)
        return seen, out

    variables = filled(jax.eval_shape(model.init, keys[5], *inputs))
    zeros = [jnp.zeros_like(f) for f in given]
    before, out = run(variables, tuple(zeros))
    assert len(before) == 4
    for i in range(4):
        after, moved = run(variables, tuple(given[j] if j == i else zeros[j] for j in range(4)))
        for j in range(i):
            np.testing.assert_array_equal(after[j], before[j])
        # A sum of numbers up to 10, in float32.
        np.testing.assert_allclose(after[i] - before[i], given[i], atol=1e-5)
        assert np.abs(np.asarray(moved - out)).max() > 1e-3


def test_a2_map_is_the_papers_formula_with_extrinsics():
    cameras = orbit(25.0, np.array([15.0, 200.0]), 1.5, 49.1)
    depth = np.random.default_rng(0).uniform(1.0, 2.0, (2, 3, 5, 1)).astype(np.float32)
    found = coordinate_map(jnp.asarray(depth), cameras)
    for view, row, column in [(0, 0, 4), (1, 2, 1)]:
        k = np.diag([5, 3, 1]) @ np.asarray(cameras.intrinsics[view], np.float64)  # In pixels.
        xyz = np.linalg.inv(k) @ [column + 0.5, row + 0.5, 1] * depth[view, row, column]
        pose = np.asarray(cameras.camera_to_world[view], np.float64)
        world = pose[:3, :3] @ xyz + pose[:3, 3]
        # float32 rounding.
        np.testing.assert_allclose(found[view, row, column], (world + 1) / 2, atol=1e-6)
