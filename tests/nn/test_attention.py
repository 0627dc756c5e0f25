"""Attention in chunks against softmax attention written out in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from o3d_jax.nn import attention
from o3d_jax.nn.attention import attend, queries_at_a_time
from support.quick import jit, normal

SIZES = {  # Objects, queries, keys, heads, features of a head.
    "few": (3, 5, 7, 2, 4),
    "in chunks": (2, 192, 130, 3, 5),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """64 and 96 of 192 queries at a time, on CPUs and elsewhere."""
    monkeypatch.setattr(attention, "CPU_SCORES", 2**10)
    monkeypatch.setattr(attention, "SCORES", 96 * 130)


def inputs(size):
    b, queries, keys, heads, d = SIZES[size]
    shapes = ((b, queries, heads * d), (b, keys, heads * d), (b, keys, heads * d))
    return tuple(normal(i, *shape) for i, shape in enumerate(shapes)), heads


def softmax_attention(q, k, v, heads):
    """Slow twin: one object and one head at a time."""
    out = np.zeros_like(q)
    d = q.shape[-1] // heads
    for i in range(q.shape[0]):
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            scores = np.exp(q[i][:, part] @ k[i][:, part].T / np.sqrt(d))
            out[i][:, part] = scores / scores.sum(-1, keepdims=True) @ v[i][:, part]
    return out


def gradients(heads, weights):
    """Jitted: of all three inputs."""
    return jit(jax.grad(lambda *at: (weights * attend(*at, heads)).sum(), (0, 1, 2)))


@pytest.mark.parametrize("size", SIZES)
def test_attention_is_softmax_attention(size):
    at, heads = inputs(size)
    expected = softmax_attention(*(np.asarray(x, np.float64) for x in at), heads)
    out = jit(functools.partial(attend, heads=heads))(*at)
    # Means of values of about 1 in float32, whose logits are rounded to 2^-23 of about 4.
    np.testing.assert_allclose(out, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("size", SIZES)
def test_gradient_of_attention_is_its_difference_quotient(size):
    at, heads = inputs(size)
    weights = normal(7, *at[0].shape)
    found = gradients(heads, weights)(*at)
    exact = [np.asarray(x, np.float64) for x in at]
    for i, gradient in enumerate(found):
        direction = np.asarray(normal(8 + i, *gradient.shape), np.float64)
        step = 1e-4  # Central: an error of 1e-8, and float64 leaves 1e-11.

        def total(offset, i=i, direction=direction):
            moved = [x + offset * direction if j == i else x for j, x in enumerate(exact)]
            return (np.asarray(weights) * softmax_attention(*moved, heads)).sum()

        slope = (total(step) - total(-step)) / (2 * step)
        along = float((np.asarray(gradient, np.float64) * direction).sum())
        # Sums of some thousand float32 products, rounded to 1e-7 each.
        spread = np.linalg.norm(np.asarray(gradient)) * np.linalg.norm(direction)
        assert abs(along - slope) < 3e-6 * spread, (i, along, slope)


def test_gradient_in_chunks_is_that_without(monkeypatch):
    at, heads = inputs("in chunks")
    weights = normal(7, *at[0].shape)
    chunked = gradients(heads, weights)(*at)
    monkeypatch.setattr(attention, "CPU_SCORES", 2**30)
    monkeypatch.setattr(attention, "SCORES", 2**30)
    for a, b in zip(chunked, gradients(heads, weights)(*at), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * np.abs(b).max())  # Order of sums.


def test_bfloat16_keeps_scores_in_float32():
    at, heads = inputs("in chunks")
    # Logits of about 30, which bfloat16 would round by 0.1 and more: weights off by as much.
    at = tuple(x.astype(jnp.bfloat16) for x in (8 * at[0], *at[1:]))
    weights = normal(7, *at[0].shape).astype(jnp.bfloat16)
    out = jit(functools.partial(attend, heads=heads))(*at)
    exact = [np.asarray(x, np.float64) for x in at]
    expected = softmax_attention(*exact, heads)
    assert out.dtype == jnp.bfloat16
    # Weights and the output are rounded to 2^-9; values reach 4.
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=0, atol=0.02)
    in_float32 = gradients(heads, weights.astype(jnp.float32))(*(x.astype(jnp.float32) for x in at))
    for a, b in zip(gradients(heads, weights)(*at), in_float32, strict=True):
        assert a.dtype == jnp.bfloat16
        off = np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
        assert off < 0.02  # A few roundings to 2^-9.


def test_gradient_goes_through_vmap_remat_and_shard_map():
    at, heads = inputs("in chunks")
    weights = normal(7, *at[0].shape)
    expected = gradients(heads, weights)(*at)
    mesh = Mesh(jax.devices()[:2], ("data",))
    objects = PartitionSpec("data")

    def total(weights, *at):
        def one(*at):
            return jax.vmap(lambda *x: attend(*(a[None] for a in x), heads)[0])(*at)

        attended = jax.shard_map(
            jax.checkpoint(one), mesh=mesh, in_specs=objects, out_specs=objects
        )
        return (weights * attended(*at)).sum()

    found = jit(jax.grad(total, (1, 2, 3)))(weights, *at)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * np.abs(b).max())  # Order of sums.


@pytest.mark.parametrize(
    ("queries", "most", "expected"),
    [
        (4096, 512, 512),
        (1000, 300, 250),
        (1024, 10, 64),  # Fewer would be slow.
        (257, 100, 257),  # A prime: all.
        (20, 4, 20),
        (130, 100, 65),
    ],
)
def test_queries_at_a_time_divide_all_and_are_at_least_64_or_all(queries, most, expected):
    assert queries_at_a_time(queries, most) == expected
