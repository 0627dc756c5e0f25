"""Attention by kernels of others: which inputs get them on which platform, and what they return."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental.pallas import tpu as pltpu

from o3d_jax.nn import attention, fused_attention
from o3d_jax.nn.attention import attend
from support.quick import normal

HEADS = 2
KERNEL_CALL = {"tpu": "tpu_custom_call", "cuda": "__cudnn$fmhaSoftmax"}
BACKWARD_CALL = {"tpu": "tpu_custom_call", "cuda": "__cudnn$fmhaSoftmaxBackward"}


@pytest.fixture
def cuda_plugin(monkeypatch):
    """As if JAX's CUDA plugin were installed: lowering asks for no more than cuDNN's version."""
    monkeypatch.setattr(fused_attention, "_has_cudnn", lambda: True)
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)


def shapes(queries, keys, width, dtype=jnp.bfloat16):
    q, k = (jax.ShapeDtypeStruct((1, n, HEADS * width), dtype) for n in (queries, keys))
    return q, k, k


def lowered(at, platform, gradient=False):
    def total(*at):
        return attend(*at, HEADS).astype(jnp.float32).sum()

    function = jax.grad(total, (0, 1, 2)) if gradient else total
    return jax.jit(function).trace(*at).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_long_sequences_in_bfloat16_get_the_platforms_kernel_both_ways(cuda_plugin, platform):
    at = shapes(1024, 512, 64)
    assert KERNEL_CALL[platform] in lowered(at, platform)
    assert BACKWARD_CALL[platform] in lowered(at, platform, gradient=True)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(
    "at",
    [
        shapes(8, 8, 64),  # The frames of temporal attention.
        shapes(257, 257, 80),  # The image encoder.
        shapes(1024, 512, 64, jnp.float32),  # Parity with the originals.
    ],
    ids=["few", "odd", "float32"],
)
def test_all_else_is_computed_in_chunks(cuda_plugin, platform, at):
    assert KERNEL_CALL[platform] not in lowered(at, platform)


def test_each_kernel_is_given_only_what_it_takes(cuda_plugin):
    def platforms(queries, keys, width):
        q, k, v = shapes(queries, keys, width)
        split = [jnp.zeros((1, HEADS, x.shape[1], width), x.dtype) for x in (q, k, v)]
        return set(fused_attention.fused_kernels(*split))

    assert platforms(1024, 512, 64) == {"tpu", "cuda"}
    assert platforms(640, 640, 64) == {"tpu", "cuda"}  # In blocks of 128.
    assert platforms(1000, 520, 64) == {"cuda"}  # No block divides these.
    assert platforms(1024, 512, 512) == {"tpu"}  # The VAE's single head.
    assert platforms(1024, 512, 60) == {"tpu"}  # Not a multiple of 8.


def test_the_environment_turns_kernels_off(cuda_plugin, monkeypatch):
    monkeypatch.setenv("O3D_ATTENTION", "chunks")
    assert KERNEL_CALL["tpu"] not in lowered(shapes(1024, 512, 64), "tpu")


def test_flash_attention_is_the_attention_in_chunks(monkeypatch):
    """The kernel in Pallas' interpreter for TPUs, with blocks of unequal numbers."""
    monkeypatch.setattr(fused_attention, "FEWEST_KEYS", 1)
    q, k, v, d_out = (
        normal(i, 1, HEADS, n, 64).astype(jnp.bfloat16) for i, n in enumerate((256, 384, 384, 256))
    )
    flash = fused_attention.fused_kernels(q, k, v)["tpu"]

    with pltpu.force_tpu_interpret_mode():
        out, pull = jax.vjp(flash, q, k, v)
        found = out, *pull(d_out)
    out, pull = jax.vjp(attention._attend, q, k, v)
    expected = out, *pull(d_out)

    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        # Weights, their gradients and the results are rounded to 2^-9 at different places.
        assert np.linalg.norm(a - b) < 0.01 * np.linalg.norm(b)


@pytest.mark.parametrize("finds_cudnn", [True, False])
def test_a_plugin_alone_is_no_cudnn(monkeypatch, finds_cudnn):
    """As on a machine that only compiles for GPUs elsewhere: tracing must not stop there."""

    def version():
        if not finds_cudnn:
            raise RuntimeError("cuDNN not found.")
        return 91000

    monkeypatch.setattr(fused_attention.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(cudnn, "check_cudnn_version", version)
    fused_attention._has_cudnn.cache_clear()
    assert fused_attention._has_cudnn() == finds_cudnn
    fused_attention._has_cudnn.cache_clear()
