"""The image tower equals transformers' CLIP, its preprocessing SVD's."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.config import ClipConfig
from o3d_jax.nn.clip import (
    ClipVision,
    bicubic_matrix,
    blur_matrix,
    normalize,
    resize_antialiased,
    resize_matrix,
)
from support.synthetic import synthetic_variables

GOLDEN = Path(__file__).parents[1] / "golden"
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # CLIP's preprocessor_config.json
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
SMALL = ClipConfig(
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    projection_dim=40,
    patch_size=14,
    image_size=56,
)


@pytest.fixture(scope="module")
def golden():
    """Transformers' output for weights filled by name; its float32 is within 1.3e-6 of float64."""
    with np.load(GOLDEN / "clip_vision_b2.npz") as arrays:
        pixels = np.moveaxis(arrays["pixel_values"], 1, -1)
        return pixels * STD + MEAN, arrays["image_embeds"]


def test_embedding_equals_that_of_transformers(golden):
    images, embeddings = golden
    tower = ClipVision(SMALL)
    variables = synthetic_variables(tower, images)
    mine = jax.jit(tower.apply)(variables, images)
    assert mine.shape == (2, 1, 40)
    # Ten times the original's own rounding error.
    np.testing.assert_allclose(mine[:, 0], embeddings, rtol=0, atol=1.3e-5)
    half = jax.jit(ClipVision(SMALL, dtype=jnp.bfloat16).apply)(variables, images)
    assert half.dtype == jnp.float32
    # 2^-9 relative per rounding, three layers, embeddings of size 1.
    np.testing.assert_allclose(half, mine, rtol=0, atol=0.1)


def test_resize_equals_that_of_svd():
    with np.load(GOLDEN / "clip_resize_96x128_to_56.npz") as arrays:
        image, resized = arrays["image"], arrays["resized"]  # uint8; on the scale [-1, 1]
    mine = resize_antialiased(jnp.asarray(image)[..., None] / jnp.float32(255), 56)
    # The original computes positions in float32: 1e-7 relative of 128 pixels, slopes of about 1.
    np.testing.assert_allclose(2 * mine[..., 0] - 1, resized, rtol=0, atol=2e-5)


def test_blur_for_512_to_224_has_three_known_taps():
    sigma = (512 / 224 - 1) / 2
    side = math.exp(-0.5 / sigma**2)
    side, center = side / (1 + 2 * side), 1 / (1 + 2 * side)
    matrix = blur_matrix(512, 512 / 224)
    np.testing.assert_allclose(matrix[100, 98:103], [0, side, center, side, 0], atol=1e-15)
    np.testing.assert_allclose(matrix[0, :3], [center, 2 * side, 0], atol=1e-15)  # Reflected.
    np.testing.assert_allclose(matrix[511, 509:], [0, 2 * side, center], atol=1e-15)


def test_bicubic_interpolates_between_aligned_corners():
    matrix = bicubic_matrix(9, 5)  # Every second pixel, exactly.
    np.testing.assert_allclose(matrix, np.eye(9)[::2], atol=1e-15)
    # Half way between pixels 1 and 2 (a = -3/4): -3/32, 19/32, 19/32, -3/32.
    np.testing.assert_allclose(
        bicubic_matrix(4, 3)[1], [-3 / 32, 19 / 32, 19 / 32, -3 / 32], atol=1e-15
    )


@pytest.mark.parametrize(("before", "after"), [(512, 224), (37, 8), (8, 13)])
def test_resize_keeps_constants(before, after):
    # Sums of up to 20 float64 weights.
    np.testing.assert_allclose(resize_matrix(before, after).sum(axis=1), 1, rtol=0, atol=1e-14)


def test_image_of_the_right_size_is_left_alone():
    image = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    np.testing.assert_array_equal(resize_antialiased(image, 8), image)
    # And that is what the general formula says: no blur, no shift.
    np.testing.assert_allclose(resize_matrix(8, 8), np.eye(8), atol=1e-15)


def test_normalized_image_has_clips_zero_and_unit():
    image = jnp.asarray([[MEAN, MEAN + STD]])
    # float32 rounding of a difference, divided by 0.26.
    np.testing.assert_allclose(normalize(image)[0], [[0] * 3, [1] * 3], rtol=0, atol=1e-6)


def test_non_square_image_is_squeezed_not_cropped():
    rows = jnp.linspace(0.0, 1.0, 12)[:, None, None]
    ramp = jnp.broadcast_to(rows, (12, 30, 3))
    small = resize_antialiased(ramp, 6)
    assert small.shape == (6, 6, 3)
    # Corners stay at the ends of the ramp up to the reflected blur (0.106 of a pixel's 1/11).
    np.testing.assert_allclose(small[:, 2, 0], np.linspace(0, 1, 6), rtol=0, atol=0.025)
    np.testing.assert_allclose(small[2], jnp.broadcast_to(small[2, :1], (6, 3)), atol=1e-6)
