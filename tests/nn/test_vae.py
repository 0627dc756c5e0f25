"""The autoencoder's ranges, sizes, paddings, and what its decoder sees of other frames."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.config import VaeConfig
from o3d_jax.nn.vae import DecoderMidBlock, DecoderResBlock, HalvingConv, PixelAttention, Vae
from support.quick import jit, normal
from support.synthetic import synthetic_variables

CONFIG = VaeConfig(
    block_out_channels=(4, 8, 12), layers_per_block=1, latent_channels=3, norm_num_groups=2
)
MODEL = Vae(CONFIG)
ROUNDING = 2e-5  # Activations reach about 5; float32 rounds them to 5e-7, over some 30 layers.

encode = jit(functools.partial(MODEL.apply, method="encode"))
decode = jit(functools.partial(MODEL.apply, method="decode"))


@pytest.fixture(scope="module")
def images():
    return 0.5 + 0.2 * normal(0, 2, 3, 19, 26, 3)


@pytest.fixture(scope="module")
def latents():
    return normal(1, 2, 4, 3, 5, 3)


@pytest.fixture(scope="module")
def variables(images):
    return synthetic_variables(MODEL, images)


def test_each_halving_rounds_down_and_decoding_doubles(variables, images, latents):
    moments = encode(variables, images)
    assert moments.mean.shape == moments.logvar.shape == (2, 3, 19 // 2 // 2, 26 // 2 // 2, 3)
    assert decode(variables, latents).shape == (2, 4, 12, 20, 3)


def test_images_are_encoded_each_on_its_own(variables, images):
    moments = encode(variables, images)
    other = encode(variables, images.at[1, 2].set(normal(2, 19, 26, 3)))
    for ours, theirs in ((moments.mean, other.mean), (moments.logvar, other.logvar)):
        moved = np.abs(ours - theirs).max(axis=(-3, -2, -1)) > ROUNDING
        assert moved.tolist() == [[False, False, False], [False, False, True]]


def test_decoder_mixes_the_frames_of_a_video_but_not_videos(variables, latents):
    out = decode(variables, latents)
    other = decode(variables, latents.at[1, 3].set(normal(2, 3, 5, 3)))
    moved = np.abs(out - other).max(axis=(-3, -2, -1)) > ROUNDING
    assert moved.tolist() == [4 * [False], 4 * [True]]


def test_networks_work_in_minus_one_to_one_and_callers_in_zero_to_one(variables, images, latents):
    met = {}

    def keep(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.module.path in (("encoder",), ("decoder",)):
            met[context.module.name] = (*args, out)
        return out

    def run(images, latents):
        with nn.intercept_methods(keep):
            MODEL.apply(variables, images, method="encode")
            out = MODEL.apply(variables, latents, method="decode")
        return met, out

    met, out = jit(run)(images, latents)
    # One rounding of numbers of about 2.
    inside = 2 * images.reshape(-1, 19, 26, 3) - 1
    np.testing.assert_allclose(met["encoder"][0], inside, rtol=0, atol=1e-6)
    np.testing.assert_allclose(out, met["decoder"][1] / 2 + 0.5, rtol=0, atol=1e-6)


def test_moments_are_mean_then_logvar_and_only_logvar_is_clamped(variables, images):
    def shifted(bias):
        conv = variables["params"]["quant_conv"] | {"bias": jnp.array(bias, jnp.float32)}
        return encode({"params": variables["params"] | {"quant_conv": conv}}, images)

    plain, moved = shifted([0.0] * 6), shifted([100.0, 0, -100, 50, 0, -50])
    by = np.array([100.0, 0, -100]).reshape(1, 1, 1, 1, 3)
    # Rounding of numbers of about 100.
    np.testing.assert_allclose(
        moved.mean - plain.mean, np.broadcast_to(by, plain.mean.shape), atol=1e-4
    )
    assert (moved.logvar[..., 0] == 20).all()
    np.testing.assert_array_equal(moved.logvar[..., 1], plain.logvar[..., 1])
    assert (moved.logvar[..., 2] == -30).all()


def test_halving_pads_at_the_bottom_and_right_only():
    x = normal(0, 2, 5, 8, 3)
    variables = synthetic_variables(HalvingConv(), x)
    conv = {k: np.asarray(a, np.float64) for k, a in variables["params"]["conv"].items()}
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (0, 1), (0, 1), (0, 0)))
    expected = sum(
        padded[:, i : i + 4 : 2, j : j + 8 : 2] @ conv["kernel"][i, j]
        for i in range(3)
        for j in range(3)
    )
    out = HalvingConv().apply(variables, x)
    assert out.shape == (2, 2, 4, 3)
    # One sum of 27 products of about 1.
    np.testing.assert_allclose(out, expected + conv["bias"], rtol=0, atol=1e-5)


def test_pixel_attention_is_softmax_attention_with_one_head():
    module = PixelAttention(num_groups=2)
    x = normal(0, 2, 3, 5, 4)
    variables = synthetic_variables(module, x)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    tokens = np.asarray(x, np.float64).reshape(2, 15, 4)
    groups = tokens.reshape(2, 15, 2, 2)  # Two groups of two channels.
    groups = groups - groups.mean(axis=(1, 3), keepdims=True)
    groups = groups / np.sqrt((groups**2).mean(axis=(1, 3), keepdims=True) + 1e-6)
    y = groups.reshape(2, 15, 4) * p["group_norm"]["scale"] + p["group_norm"]["bias"]
    q, k, v = (y @ p[name]["kernel"] + p[name]["bias"] for name in ("to_q", "to_k", "to_v"))
    weights = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(4))
    attended = weights / weights.sum(-1, keepdims=True) @ v
    expected = tokens + attended @ p["to_out_0"]["kernel"] + p["to_out_0"]["bias"]
    out = jit(module.apply)(variables, x)
    # Three small products in float32.
    np.testing.assert_allclose(out.reshape(2, 15, 4), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("mix", "mixes"), [(50.0, True), (-50.0, False)])
def test_large_mix_factor_leaves_the_temporal_side(mix, mixes):
    """The other way round than in the U-Net."""
    block = DecoderResBlock(6, num_groups=2)
    x = normal(0, 1, 5, 3, 2, 4)
    variables = synthetic_variables(block, x)
    variables["params"]["time_mixer"]["mix_factor"] = jnp.array([mix])
    apply = jit(block.apply)
    other = apply(variables, x.at[:, 0].add(normal(1, 1, 3, 2, 4)))
    moved = np.abs(apply(variables, x) - other).max(axis=(0, 2, 3, 4)) > ROUNDING
    assert moved.tolist() == [True] + 4 * [mixes]


def test_normalization_epsilons_are_those_of_the_release(images):
    found = {}

    def keep(call, args, kwargs, context):
        if hasattr(context.module, "epsilon"):
            found["/".join(context.module.path)] = context.module.epsilon
        return call(*args, **kwargs)

    with nn.intercept_methods(keep):
        jax.eval_shape(MODEL.init, jax.random.key(0), images)
    assert len(found) > 30
    for path, epsilon in found.items():
        assert epsilon == (1e-5 if re.search("temporal_res_block", path) else 1e-6), path


def test_bfloat16_network_returns_float32_near_that_of_float32(variables, latents, images):
    half = Vae(CONFIG, dtype=jnp.bfloat16)
    moments = jit(functools.partial(half.apply, method="encode"))(variables, images)
    assert moments.mean.dtype == moments.logvar.dtype == jnp.float32
    expected = encode(variables, images).mean
    # 2^-9 relative per rounding, some 15 layers, latents of about 1.
    np.testing.assert_allclose(moments.mean, expected, rtol=0, atol=0.1)
    out = jax.eval_shape(functools.partial(half.apply, method="decode"), variables, latents)
    assert out.dtype == jnp.float32


@pytest.mark.parametrize(
    ("layers", "where", "attends", "last_block_runs"),
    [
        (1, "between", False, True),
        (1, "always", True, True),
        (2, "between", True, True),
        (3, "between", True, False),
        (3, "always", True, True),
    ],
)
def test_decoders_middle_runs_what_diffusers_does_or_all(layers, where, attends, last_block_runs):
    config = VaeConfig((4, 4), layers, norm_num_groups=2, mid_attention=where)
    module = DecoderMidBlock(config)
    x = normal(0, 1, 2, 3, 5, 4)
    variables = synthetic_variables(module, x)
    assert len(variables["params"]) == layers + 1

    def total(params):
        return (module.apply({"params": params}, x) ** 2).sum()

    slopes = jit(jax.grad(total))(variables["params"])

    def used(name):
        return any(np.any(leaf) for leaf in jax.tree.leaves(slopes[name]))

    assert used("resnets_0")
    assert used("attentions_0") == attends
    assert used(f"resnets_{layers - 1}") == last_block_runs
