"""The blocks of the U-Net against slow twins, and what each of their outputs depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.config import UnetConfig
from o3d_jax.nn.unet_blocks import (
    AlphaBlender,
    DownBlock,
    Downsample,
    ResBlock,
    SpatioTemporalResBlock,
    SpatioTemporalTransformer,
    TokenAttention,
    TransformerBlock,
    interleaved,
)
from support.quick import difference, jit, normal
from support.synthetic import synthetic_variables

ROUNDING = 2e-5  # Activations reach about 5, rounded to 5e-7, in some ten layers.


def test_eq14_feedback_enters_a_down_block_after_the_skip_and_before_the_halving():
    config = UnetConfig((8, 12, 16), 1, (1, 2, 2), norm_num_groups=4)
    block = DownBlock(config, 1)
    shapes = ((1, 2, 6, 4, 8), (1, 32), (1, 1, 5), (1, 2, 6, 4, 12))
    x, emb, clip, feedback = (normal(i, *shape) for i, shape in enumerate(shapes))
    variables = synthetic_variables(block, x, emb, clip)
    apply = jit(block.apply)
    out, skips = apply(variables, x, emb, clip)
    out_fed, skips_fed = apply(variables, x, emb, clip, feedback)
    np.testing.assert_allclose(skips_fed[-1], skips[-1], rtol=0, atol=ROUNDING)
    # The halving is affine, so what feedback adds is its convolution without bias.
    kernel = variables["params"]["downsamplers_0"]["conv"]["kernel"]
    expected = halve(np.asarray(feedback, np.float64), np.asarray(kernel, np.float64))
    np.testing.assert_allclose(out_fed - out, expected, rtol=0, atol=ROUNDING)


def halve(x, kernel):
    """Slow twin: output pixel (i, j) is centered on input pixel (2i, 2j), zeros outside."""
    h, w = x.shape[-3:-1]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 3) + [(1, 1), (1, 1), (0, 0)])
    return sum(
        padded[..., i : i + h : 2, j : j + w : 2, :] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )


def test_halving_is_centered_on_even_pixels_and_rounds_up():
    x = normal(0, 2, 5, 8, 3)
    variables = synthetic_variables(Downsample(), x)
    conv = variables["params"]["conv"]
    expected = halve(np.asarray(x, np.float64), np.asarray(conv["kernel"], np.float64))
    out = Downsample().apply(variables, x)
    assert out.shape == (2, 3, 4, 3)
    # One sum of 27 products of about 1.
    np.testing.assert_allclose(out - conv["bias"][None, None, None], expected, rtol=0, atol=1e-5)


def test_blend_is_convex_with_the_sigmoid_on_the_first():
    out = AlphaBlender().apply(
        {"params": {"mix_factor": jnp.log(jnp.array([3.0]))}}, jnp.ones(2), 5 * jnp.ones(2)
    )
    np.testing.assert_allclose(out, [2.0, 2.0], rtol=1e-6)  # 3/4 of 1 and 1/4 of 5.


def depends(apply, x, moved):
    """Which frames of the output move when frame `moved` of the input does."""
    shift = normal(9, *x[:, moved].shape)
    change = jnp.abs(apply(x.at[:, moved].add(shift)) - apply(x))
    return [bool(c > ROUNDING) for c in change.max(axis=(0, *range(2, x.ndim)))]


@pytest.mark.parametrize(("mix", "mixes"), [(50.0, False), (-50.0, True)])
def test_large_mix_factor_leaves_the_spatial_side(mix, mixes):
    block = SpatioTemporalResBlock(6, num_groups=2)
    x, emb = normal(0, 1, 5, 3, 2, 4), normal(1, 1, 7)
    variables = synthetic_variables(block, x, emb)
    variables["params"]["time_mixer"]["mix_factor"] = jnp.array([mix])
    apply = jit(lambda x: block.apply(variables, x, emb))
    # Two convolutions over frames reach two frames; normalization over frames reaches all.
    assert depends(apply, x, 0) == [True] + 4 * [mixes]


def test_embedding_enters_between_the_normalizations_of_both_sides():
    block = ResBlock(6, num_groups=2)
    x, emb = normal(0, 2, 3, 4, 6), normal(1, 2, 7)
    variables = synthetic_variables(block, x, emb)
    # A shift that is the same for all channels of a group is removed by norm2.
    flat = jax.tree.map(jnp.ones_like, variables["params"]["time_emb_proj"])
    unseen = {"params": variables["params"] | {"time_emb_proj": flat}}
    apply = jit(block.apply)
    without = apply(unseen, x, -emb)
    np.testing.assert_allclose(apply(unseen, x, emb), without, rtol=0, atol=ROUNDING)
    assert difference(apply(variables, x, emb), apply(variables, x, -emb)) > 100 * ROUNDING


@pytest.mark.parametrize("across_frames", [False, True])
def test_tokens_attend_within_their_frame_or_across_frames_at_their_place(across_frames):
    block = TransformerBlock(2, across_frames)
    x, context = normal(0, 2, 3, 5, 8), normal(1, 2, 1, 7)
    variables = synthetic_variables(block, x, context)
    apply = jit(block.apply)
    moved = apply(variables, x.at[0, 1, 2].add(normal(2, 8)), context)
    changed = np.abs(moved - apply(variables, x, context)).max(axis=-1) > ROUNDING
    expected = np.zeros((2, 3, 5), bool)
    expected[(0, slice(None), 2) if across_frames else (0, 1)] = True
    np.testing.assert_array_equal(changed, expected)


def test_transformer_knows_the_order_of_frames_by_their_embedding_alone():
    block = SpatioTemporalTransformer(2, num_groups=2)
    x, context = normal(0, 1, 4, 3, 2, 8), normal(1, 1, 1, 7)
    variables = synthetic_variables(block, x, context)
    none = jax.tree.map(jnp.zeros_like, variables["params"]["time_pos_embed"])
    order = np.array([2, 0, 3, 1])
    apply = jit(block.apply)

    def change(params):
        permuted = apply({"params": params}, x[:, order], context)
        return difference(permuted, apply({"params": params}, x, context)[:, order])

    assert change(variables["params"] | {"time_pos_embed": none}) < ROUNDING
    assert change(variables["params"]) > 100 * ROUNDING


def test_attention_to_one_token_is_softmax_attention_with_the_same_parameters():
    x, context = normal(0, 2, 3, 5, 8), normal(1, 2, 1, 7)
    variables = synthetic_variables(TokenAttention(), x, context)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    query = x @ p["to_q"]["kernel"]
    key, value = (np.asarray(context) @ p[name]["kernel"] for name in ("to_k", "to_v"))
    logits = np.einsum("bvsd,bkd->bvsk", query, key) / np.sqrt(8)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    attended = np.einsum("bvsk,bkd->bvsd", weights, value)
    expected = attended @ p["to_out_0"]["kernel"] + p["to_out_0"]["bias"]
    out = TokenAttention().apply(variables, x, context)
    # Two small products in float32.
    np.testing.assert_allclose(np.broadcast_to(out, x.shape), expected, rtol=0, atol=1e-5)


def test_interleaved_tokens_read_the_video_of_their_number_modulo_batch():
    """diffusers 0.25; written as it does it: contexts in order (token, video), tokens (video,
    token)."""
    x = normal(0, 2, 1, 1, 3)
    tokens = 5
    repeated = np.broadcast_to(np.asarray(x)[None, :, 0, 0], (tokens, 2, 3))
    expected = repeated.reshape(2 * tokens, 3).reshape(2, 1, tokens, 3)
    np.testing.assert_array_equal(interleaved(x, tokens), expected)
    assert not np.array_equal(expected, np.broadcast_to(x, expected.shape))
    np.testing.assert_array_equal(interleaved(x[:1], tokens), x[:1])


@pytest.mark.parametrize("context", ["per_video", "interleaved"])
def test_only_interleaved_contexts_cross_between_videos_and_only_across_frames(context):
    module = SpatioTemporalTransformer(2, 2, context)
    x, clip = normal(0, 2, 3, 2, 5, 4), normal(1, 2, 1, 6)
    variables = synthetic_variables(module, x, clip)
    apply = jit(module.apply)
    moved = apply(variables, x, clip.at[1].add(1.0)) - apply(variables, x, clip)
    seen = np.abs(moved[0]).max(axis=(0, -1)).ravel() > 1e-6  # Of the first video, each token.
    # Tokens 1, 3, ... of ten are odd, so of the second video under interleaving.
    assert seen.tolist() == [context == "interleaved" and i % 2 == 1 for i in range(10)]


def test_interleaved_contexts_stay_within_each_objects_pair():
    x = normal(0, 6, 1, 1, 3)  # Three objects: unconditional halves, then conditional ones.
    found = interleaved(x, 5)
    for i in range(3):
        pair = interleaved(x[i::3], 5)
        np.testing.assert_array_equal(found[i::3], pair)
        assert np.abs(np.diff(pair[0, 0, :, 0])).min() > 0  # Neighbors read different halves.
    with pytest.raises(ValueError, match="3 videos"):
        interleaved(x[:3], 5)
