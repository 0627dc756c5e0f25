"""Softmax attention, by a fused kernel where there is one for the platform and the shape.

Else in chunks of queries; either way no scores are kept for the way back.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from o3d_jax.nn.fused_attention import fused_kernels

CPU_SCORES = 2**20
"""Scores (objects x heads x queries x keys) at a time on CPUs: 4 MB, so that they stay in cache.
Fresh memory for all of them costs as much time there as all the arithmetic."""

SCORES = 2**21
"""Scores of one head at a time elsewhere: at 64 x 64 latents an eighth of them, at 32 x 32 all."""

FEWEST = 64
"""Queries at a time, at least: products of fewer are slow."""

Heads = Float[Array, "b n _ _"]
"""A matrix for each head of each object: queries or keys, then features, unless said."""

Gradients = tuple[Heads, Heads, Heads]
"""The gradients of queries, keys and values; JAX asks for a plain tuple."""


class Output(NamedTuple):
    """What attention returns for some of its queries."""

    out: Heads
    log_sum: Float[Array, "b n _ 1"]
    """Logarithm of the sum that the softmax divides by."""


class Kept(NamedTuple):
    """What the way back needs; scores are computed again."""

    q: Heads
    k: Heads
    v: Heads
    output: Output


def attend(
    q: Float[Array, "b q d"], k: Float[Array, "b k d"], v: Float[Array, "b k d"], heads: int
) -> Float[Array, "b q d"]:
    """Returns softmax attention with `heads` heads over the feature axis.

    Scores are scaled by 1/sqrt(d/heads); they and their softmax are float32, whatever the inputs
    are. It has first derivatives only, in reverse mode. `fused_attention.py` says which inputs get
    a kernel of their own on GPUs and TPUs.
    """

    def split(x):
        return jnp.swapaxes(x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads), 1, 2)

    each = split(q), split(k), split(v)
    if kernels := fused_kernels(*each):
        out = jax.lax.platform_dependent(*each, **kernels, default=_attend)
    else:
        out = _attend(*each)
    return jnp.swapaxes(out, 1, 2).reshape(q.shape)


def queries_at_a_time(queries: int, most: int) -> int:
    """Returns the largest divisor of `queries` that is not above `most`.

    If that is below `FEWEST`, returns all queries.
    """
    sizes = range(1, min(queries, max(most, FEWEST)) + 1)
    size = max(size for size in sizes if queries % size == 0)
    return size if size >= FEWEST else queries


def _by_platform(function: Callable, q: Heads, k: Heads, *rest: Any) -> Any:
    """Calls `function` with the queries to take at a time where it runs, and with the inputs."""
    (b, n, queries, _), keys = q.shape, k.shape[2]
    on_cpu = queries_at_a_time(queries, CPU_SCORES // (b * n * keys))
    elsewhere = queries_at_a_time(queries, SCORES // keys)
    if on_cpu == elsewhere:
        return function(on_cpu, q, k, *rest)
    return jax.lax.platform_dependent(
        q,
        k,
        *rest,
        cpu=functools.partial(function, on_cpu),
        default=functools.partial(function, elsewhere),
    )


@jax.custom_vjp
def _attend(q: Heads, k: Heads, v: Heads) -> Heads:
    return _by_platform(_forward, q, k, v).out


def _attend_forward(q: Heads, k: Heads, v: Heads) -> tuple[Heads, Kept]:
    output = _by_platform(_forward, q, k, v)
    return output.out, Kept(q, k, v, output)


def _attend_backward(kept: Kept, d_out: Heads) -> Gradients:
    return _by_platform(_backward, *kept, d_out)


_attend.defvjp(_attend_forward, _attend_backward)


def _product(a: Heads, b: Heads, axes: tuple[int, int], dtype: Any = None) -> Heads:
    """Returns the product of each head's matrices, over one axis of each."""
    numbers = (((axes[0],), (axes[1],)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=dtype)


def _chunks(x: Heads, size: int, axis: int = 2) -> Float[Array, "m b n _ _"]:
    """Returns slices of `size` along the axis, stacked."""
    shape = (*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _join(chunks: Float[Array, "m b n s d"]) -> Float[Array, "b n m*s d"]:
    m, b, n, s, d = chunks.shape
    return jnp.moveaxis(chunks, 0, 2).reshape(b, n, m * s, d)


def _forward(size: int, q: Heads, k: Heads, v: Heads) -> Output:
    """Returns attention, computed for `size` queries at a time."""

    def some(q: Heads) -> Output:
        scores = _product(q, k, (3, 3), jnp.float32) * q.shape[-1] ** -0.5
        largest = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = weights.sum(-1, keepdims=True)
        out = _product(weights.astype(v.dtype), v, (3, 2), jnp.float32) / total
        return Output(out.astype(q.dtype), largest + jnp.log(total))

    if size == q.shape[2]:
        return some(q)
    return Output(*(_join(x) for x in jax.lax.map(some, _chunks(q, size))))


class _Rows(NamedTuple):
    """What the gradient reads of some queries, one row each."""

    q: Heads
    out: Heads
    log_sum: Heads
    d_out: Heads


class _Columns(NamedTuple):
    """What the gradient reads of the same queries with features first, one column each."""

    q: Heads
    d_out: Heads


def _transposed(x: Heads) -> Heads:
    """Returns the transpose, laid out so in memory.

    Left alone, XLA transposes within products, which are slow on CPUs then.
    """
    return jax.lax.optimization_barrier(jnp.swapaxes(x, -1, -2))


def _backward(size: int, q: Heads, k: Heads, v: Heads, output: Output, d_out: Heads) -> Gradients:
    """Returns the gradient, computed for `size` queries at a time."""
    scale = q.shape[-1] ** -0.5

    def some(sums: _Columns, chunk: tuple[_Rows, _Columns]) -> tuple[_Columns, Heads]:
        rows, columns = chunk

        # With P the softmax of S and O = P V: dS = P (dP - sum(P dP)), and that sum over keys is
        # sum(O dO) over features, so no second pass over the scores is needed.
        weights = jnp.exp(_product(rows.q, k, (3, 3), jnp.float32) * scale - rows.log_sum)
        mean = rows.out.astype(jnp.float32) * rows.d_out.astype(jnp.float32)
        d_weights = _product(rows.d_out, v, (3, 3), jnp.float32)
        d_scores = weights * (d_weights - mean.sum(-1, keepdims=True)) * scale

        # Keys and values are read by all queries, so their gradients are summed over chunks.
        d_scores, weights = d_scores.astype(q.dtype), weights.astype(q.dtype)
        d_k = _product(columns.q, d_scores, (3, 2), jnp.float32)
        d_v = _product(columns.d_out, weights, (3, 2), jnp.float32)
        return _Columns(sums[0] + d_k, sums[1] + d_v), _product(d_scores, k, (3, 2))

    zeros = jnp.zeros_like(jnp.swapaxes(k, -1, -2), jnp.float32)
    rows, columns = _Rows(q, *output, d_out), _Columns(_transposed(q), _transposed(d_out))
    if size == q.shape[2]:
        sums, d_q = some(_Columns(zeros, zeros), (rows, columns))
    else:
        chunks = (
            _Rows(*(_chunks(x, size) for x in rows)),
            _Columns(*(_chunks(x, size, axis=3) for x in columns)),
        )
        sums, d_q = jax.lax.scan(some, _Columns(zeros, zeros), chunks)
        d_q = _join(d_q)
    d_k, d_v = (jnp.swapaxes(x, -1, -2).astype(k.dtype) for x in sums)
    return d_q, d_k, d_v
