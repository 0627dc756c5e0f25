"""The feedback encoder is Table 3."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.nn.feedback import FeedbackEncoder
from o3d_jax.nn.layers import pixel_unshuffle
from o3d_jax.nn.unet import RayEmbedding
from support.synthetic import synthetic_variables

TOY = FeedbackEncoder(channels=(4, 6, 6), blocks=2, downscale=2)
encode = jax.jit(TOY.apply)


@pytest.fixture(scope="module")
def maps():
    return jax.random.uniform(jax.random.key(0), (2, 3, 16, 8, 3))


@pytest.fixture(scope="module")
def variables(maps):
    return synthetic_variables(TOY, maps)


def convolve(params, x):
    """Slow twin of a zero-padded convolution, tap by tap, in float64."""
    kernel = np.asarray(params["kernel"], np.float64)
    size, (h, w) = kernel.shape[0], x.shape[2:4]
    pad = size // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0)))
    taps = [(i, j) for i in range(size) for j in range(size)]
    out = sum(padded[:, :, i : i + h, j : j + w] @ kernel[i, j] for i, j in taps)
    return out + np.asarray(params["bias"], np.float64)


def pool(x):
    return sum(x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4


def encode_slowly(params, maps):
    """Table 3 and Fig. 10 in numpy, for the toy encoder."""
    blocks = [np.asarray(maps, np.float64)[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    x = np.stack(blocks, axis=-1).reshape(*blocks[0].shape[:-1], -1)  # channel, then row, column
    x = convolve(params["conv_in"], x)
    features = []
    for k in range(6):
        block = params[f"body_{k}"]
        x = pool(x) if k in (2, 4) else x
        x = convolve(block["in_conv"], x) if k == 2 else x
        x = x + convolve(block["block2"], np.maximum(convolve(block["block1"], x), 0))
        features += [x] if k % 2 else []
    return features


def test_table_3_at_full_size():
    encoder = FeedbackEncoder((320, 640, 1280, 1280))
    maps = jax.ShapeDtypeStruct((1, 8, 512, 512, 3), jnp.float32)
    features, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), maps)
    assert [f.shape[2:] for f in features] == [
        (64, 64, 320),
        (32, 32, 640),
        (16, 16, 1280),
        (8, 8, 1280),
    ]


def test_pixel_unshuffle_orders_channel_then_row_then_column():
    row, column, channel = np.ogrid[:2.0, :4.0, :3.0]
    pixels = jnp.asarray(100 * channel + 10 * row + column)
    blocks = pixel_unshuffle(pixels, 2)
    assert blocks.shape == (1, 2, 12)
    assert blocks[0, 0].tolist() == [0, 1, 10, 11, 100, 101, 110, 111, 200, 201, 210, 211]
    assert blocks[0, 1].tolist()[:4] == [2, 3, 12, 13]


def test_encoder_matches_its_slow_twin_with_every_weight_filled(maps, variables):
    features = encode(variables, maps)
    slow = encode_slowly(variables["params"], maps)
    for mine, twin in zip(features, slow, strict=True):
        # float32 against float64, sums of up to 108 terms of about 1: measured below 2e-6.
        np.testing.assert_allclose(mine, twin, rtol=0, atol=2e-5)


def test_new_encoder_passes_on_its_projected_and_pooled_input(maps):
    new = TOY.lazy_init(jax.random.key(0, impl="rbg"), maps)  # rbg compiles faster.
    features = encode(new, maps)
    blocks = [np.asarray(maps)[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    first = convolve(new["params"]["conv_in"], np.stack(blocks, -1).reshape(2, 3, 8, 4, 12))
    second = convolve(new["params"]["body_2"]["in_conv"], pool(first))
    for mine, twin in zip(features, (first, second, pool(second)), strict=True):
        # float32 against float64, sums of up to 108 terms; body_4 keeps its channels.
        np.testing.assert_allclose(mine, twin, rtol=0, atol=1e-5)


def test_zero_map_still_gives_features_because_of_biases(maps, variables):
    for feature in encode(variables, jnp.zeros_like(maps)):
        assert float(jnp.abs(feature).mean()) > 1e-3  # Biases are 0.02 N(0, 1).


def test_views_do_not_mix(maps, variables):
    changed = maps.at[1, 2].set(0.5)
    before, after = (encode(variables, x)[2] for x in (maps, changed))
    same = np.all(np.asarray(before) == np.asarray(after), axis=(2, 3, 4))
    assert same.tolist() == [[True, True, True], [True, True, False]]


def test_bfloat16_stays_near_float32(maps, variables):
    half = FeedbackEncoder(channels=(4, 6, 6), blocks=2, downscale=2, dtype=jnp.bfloat16)
    for mine, twin in zip(
        jax.jit(half.apply)(variables, maps), encode(variables, maps), strict=True
    ):
        assert mine.dtype == jnp.bfloat16
        # 2^-9 relative per rounding, about ten roundings of values up to 3.
        np.testing.assert_allclose(np.asarray(mine, np.float32), twin, rtol=0, atol=0.06)


def test_ray_embedding_is_linear_silu_linear():
    rays = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 6))
    mlp = RayEmbedding(7)
    params = synthetic_variables(mlp, rays)
    first, last = jax.tree.map(np.asarray, tuple(params["params"].values()))
    x = np.asarray(rays, np.float64) @ first["kernel"] + first["bias"]
    x = (x / (1 + np.exp(-x))) @ last["kernel"] + last["bias"]
    # float32 against float64, sums of 7 terms of about 1.
    np.testing.assert_allclose(mlp.apply(params, rays), x, rtol=0, atol=1e-5)
