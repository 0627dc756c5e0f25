"""Layers whose gradients are written out, against Linen's and formulas that XLA differentiates."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from o3d_jax.nn.convolutions import Conv3x3, TemporalConv, UpsampledConv3x3
from o3d_jax.nn.layers import Dense, PointwiseConv, pixel_shuffle, pixel_unshuffle
from o3d_jax.nn.norms import GroupNorm, LayerNorm, sum_rows
from support.quick import jit, normal
from support.synthetic import synthetic_variables


class PlainGroupNorm(nn.Module):
    """By definition: one mean and one variance of all that a group holds."""

    num_groups: int
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        scale, bias = (
            self.param(name, nn.initializers.ones, x.shape[-1:]) for name in ("scale", "bias")
        )
        groups = x.astype(jnp.float32).reshape(
            x.shape[0], -1, self.num_groups, x.shape[-1] // self.num_groups
        )
        mean, variance = (f(groups, axis=(1, 3), keepdims=True) for f in (jnp.mean, jnp.var))
        y = ((groups - mean) / jnp.sqrt(variance + self.epsilon)).reshape(-1, x.shape[-1])
        return (y * scale[None] + bias[None]).reshape(x.shape).astype(self.dtype)


class PlainTemporalConv(nn.Module):
    """By definition: a sum over frames, with zeros beyond the ends."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        ones = nn.initializers.ones
        kernel = self.param("kernel", ones, (3, 1, 1, x.shape[-1], self.features))
        bias = self.param("bias", ones, (self.features,))
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        kernel = kernel.astype(self.dtype)
        frames = (padded[:, i : i + x.shape[1]] @ kernel[i, 0, 0] for i in range(3))
        return sum(frames) + bias.astype(self.dtype)[None, None, None, None]


class PlainUpsampledConv(nn.Module):
    """By definition: each pixel four times, then Linen's convolution."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = jnp.repeat(jnp.repeat(x, 2, axis=-3), 2, axis=-2)
        conv = linen_conv(1, self.dtype)
        nn.share_scope(self, conv)
        return conv(x)


class Case(NamedTuple):
    """Ours and what it should be, by dtype, and an input's shape."""

    ours: nn.Module
    plain: nn.Module
    shape: tuple[int, ...]


VIDEO = (2, 3, 5, 4, 6)


def case(name: str, dtype) -> Case:
    found = {
        "GroupNorm": (GroupNorm(3, 1e-3, dtype), PlainGroupNorm(3, 1e-3, dtype), VIDEO),
        "LayerNorm": (
            LayerNorm(1e-3, dtype),
            nn.LayerNorm(1e-3, dtype=dtype, use_fast_variance=False),
            (2, 3, 5, 7),
        ),
        "Dense": (Dense(5, dtype=dtype), nn.Dense(5, dtype=dtype), (2, 3, 4, 7)),
        "Dense without bias": (
            Dense(5, use_bias=False, dtype=dtype),
            nn.Dense(5, use_bias=False, dtype=dtype),
            (11, 7),
        ),
        "PointwiseConv": (PointwiseConv(5, dtype), nn.Conv(5, (1, 1), dtype=dtype), VIDEO),
        "TemporalConv": (TemporalConv(5, dtype), PlainTemporalConv(5, dtype), VIDEO),
        "Conv3x3": (Conv3x3(5, 2, dtype), linen_conv(2, dtype), VIDEO),
        "few pixels": (Conv3x3(5, 1, dtype), linen_conv(1, dtype), (2, 3, 2, 3, 6)),
        "in pairs": (Conv3x3(5, 1, dtype), linen_conv(1, dtype), VIDEO),
        "odd width": (Conv3x3(5, 1, dtype), linen_conv(1, dtype), (2, 4, 5, 6)),
        "many channels": (Conv3x3(5, 1, dtype), linen_conv(1, dtype), (2, 5, 4, 13)),
        "odd pixels": (TemporalConv(5, dtype), PlainTemporalConv(5, dtype), (2, 3, 5, 3, 6)),
        "upsampled": (UpsampledConv3x3(5, dtype), PlainUpsampledConv(dtype), (2, 9, 8, 6)),
        "few upsampled": (UpsampledConv3x3(5, dtype), PlainUpsampledConv(dtype), VIDEO),
        "one upsampled": (UpsampledConv3x3(5, dtype), PlainUpsampledConv(dtype), (2, 1, 1, 6)),
        "too small for pairs": (Conv3x3(5, 1, dtype), linen_conv(1, dtype), (2, 3, 4, 6)),
        "one frame": (TemporalConv(5, dtype), PlainTemporalConv(5, dtype), (3, 1, 2, 4, 6)),
    }
    return Case(*found[name])


NAMES = (
    "GroupNorm",
    "LayerNorm",
    "Dense",
    "Dense without bias",
    "PointwiseConv",
    "TemporalConv",
    "Conv3x3",
    "few pixels",
    "in pairs",
    "upsampled",
)


def linen_conv(stride, dtype=jnp.float32):
    return nn.Conv(5, (3, 3), stride, padding=1, dtype=dtype)


def data(shape):
    """Not centered, so that means matter; and not so small that variances are all epsilon."""
    return 2 * normal(0, *shape) + 1.5


def all_of(module, variables, x, weights):
    """The output, and the gradients of the input and of all parameters."""

    def total(variables, x):
        y = module.apply(variables, x)
        return (weights * y.astype(jnp.float32)).sum(), y

    gradients, y = jit(jax.grad(total, (0, 1), has_aux=True))(variables, x)
    return {"output": y, "input": gradients[1], **gradients[0]["params"]}


def compare(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        a, b = (np.asarray(x[name], np.float64) for x in (found, expected))
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=name)


OTHERS = (
    "one frame",
    "odd width",
    "many channels",
    "odd pixels",
    "few upsampled",
    "one upsampled",
    "too small for pairs",
)


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_outputs_and_gradients_are_those_of_the_plain_layer(name):
    ours, plain, shape = case(name, jnp.float32)
    x = data(shape)
    variables = synthetic_variables(ours, x)
    weights = normal(1, *jax.eval_shape(ours.apply, variables, x).shape)
    # Sums of some hundred float32 terms.
    compare(all_of(ours, variables, x, weights), all_of(plain, variables, x, weights), 2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_in_bfloat16_only_inputs_and_outputs_are_rounded(name):
    ours, rounded, shape = case(name, jnp.bfloat16)
    plain = case(name, jnp.float32).plain
    # A large mean: statistics in bfloat16 would be off by a third of the deviation.
    x = (data(shape) + (100 if "Norm" in name else 0)).astype(jnp.bfloat16)
    variables = synthetic_variables(ours, x)
    weights = normal(1, *jax.eval_shape(ours.apply, variables, x).shape)
    weights = weights.astype(jnp.bfloat16).astype(jnp.float32)
    found = all_of(ours, variables, x, weights)
    assert (found["output"].dtype, found["input"].dtype) == (jnp.bfloat16, jnp.bfloat16)
    exact = all_of(plain, variables, x.astype(jnp.float32), weights)
    theirs = all_of(rounded, variables, x, weights)

    def off(values, part):
        largest = np.abs(exact[part]).max()
        return np.abs(np.asarray(values[part], np.float64) - exact[part]).max() / largest

    for part in exact:
        # Roundings to 2^-9: of the output, for products those of the kernel and the gradients,
        # too. Biases of products are summed in bfloat16, by Linen as by us.
        assert off(found, part) < max(0.01, 1.5 * off(theirs, part)), part


@pytest.mark.parametrize("name", NAMES)
def test_gradients_go_through_vmap_remat_and_shard_map(name):
    ours, _, shape = case(name, jnp.float32)
    x = jnp.stack([data(shape), normal(3, *shape)])
    variables = synthetic_variables(ours, x[0])
    weights = normal(1, *jax.eval_shape(jax.vmap(lambda x: ours.apply(variables, x)), x).shape)
    parts = [all_of(ours, variables, a, b) for a, b in zip(x, weights, strict=True)]
    mesh = Mesh(jax.devices()[:2], ("data",))
    sharded, everywhere = PartitionSpec("data"), PartitionSpec()

    def total(variables, x):
        apply = jax.checkpoint(jax.vmap(ours.apply, (None, 0)))
        specs = {"in_specs": (everywhere, sharded), "out_specs": sharded}
        return (weights * jax.shard_map(apply, mesh=mesh, **specs)(variables, x)).sum()

    of_variables, of_x = jit(jax.grad(total, (0, 1)))(variables, x)
    expected = {key: parts[0][key] + parts[1][key] for key in variables["params"]}
    expected["input"] = jnp.stack([part["input"] for part in parts])
    compare({"input": of_x, **of_variables["params"]}, expected, 2e-6)  # Order of sums.


def test_blocks_of_pixels_become_channels_and_pixels_again():
    x = normal(0, 2, 6, 9, 5)
    blocks = pixel_unshuffle(x, 3)
    assert blocks.shape == (2, 2, 3, 45)
    np.testing.assert_array_equal(pixel_shuffle(blocks, 3), x)
    np.testing.assert_array_equal(pixel_shuffle(x, 1), x)


IMAGES = ((1, 1), (2, 2), (2, 3), (1, 5), (3, 3), (5, 4))
"""Sizes on both sides of 9 pixels, below which Conv3x3 is a product of patches."""


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_of_few_pixels_is_linens_and_so_are_its_gradients(stride):
    ours, plain = Conv3x3(5, stride), linen_conv(stride)
    images = [data((2, *size, 6)) for size in IMAGES]
    variables = synthetic_variables(ours, images[0])
    weights = [normal(1, *jax.eval_shape(plain.apply, variables, x).shape) for x in images]

    def all_sizes(module):
        return jit(lambda: [total(module, *each) for each in zip(images, weights, strict=True)])()

    def total(module, x, w):
        def sums(variables, x):
            y = module.apply(variables, x)
            return (w * y).sum(), y

        gradients, y = jax.grad(sums, (0, 1), has_aux=True)(variables, x)
        return {"output": y, "input": gradients[1], **gradients[0]["params"]}

    for found, expected in zip(all_sizes(ours), all_sizes(plain), strict=True):
        compare(found, expected, 2e-6)  # Sums of some hundred float32 terms.


def test_a_new_convolution_has_linens_parameters():
    key = jax.random.key(3, impl="rbg")  # Compiles faster.
    x = jnp.zeros((1, 4, 3, 6))
    plain = linen_conv(1).init(key, x)
    for module in (Conv3x3(5), UpsampledConv3x3(5)):
        ours = module.init(key, x)
        jax.tree.map(np.testing.assert_array_equal, ours, plain)
        assert np.std(ours["params"]["kernel"]) > 0.05


def test_norm_of_a_large_mean_is_as_exact_as_its_input():
    x = normal(0, 2, 40, 6) + 1000
    for module in (GroupNorm(3, 1e-5), LayerNorm(1e-5)):
        variables = module.init(jax.random.key(0), x)
        exact = np.asarray(x, np.float64)
        if isinstance(module, GroupNorm):
            exact = exact.reshape(2, 40, 3, 2).swapaxes(1, 2).reshape(6, -1)
        flat = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
        if isinstance(module, GroupNorm):
            flat = flat.reshape(2, 3, 40, 2).swapaxes(1, 2).reshape(x.shape)
        # The mean is rounded to 6e-5 of deviations of about 1, of two values of which some are
        # close: epsilon is 1e-5 of the variance's 1.
        off = np.abs(np.asarray(module.apply(variables, x)) - flat).max()
        assert off < 2e-3, off


@pytest.mark.parametrize("rows", [1, 13, 8192, 36])
def test_rows_are_summed(rows):
    x = data((2, rows, 3))
    expected = np.asarray(x, np.float64).sum(1)
    # In two stages, each rounds as often as it has terms: at most 91 of 8192, or all of a prime.
    np.testing.assert_allclose(jit(sum_rows)(x), expected, rtol=1e-6, atol=0)
