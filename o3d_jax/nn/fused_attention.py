"""Attention by the field's own kernels, which keep the scores on the chip: cuDNN's on NVIDIA GPUs,
JAX's flash attention in Pallas on TPUs.

At 64 x 64 latents the scores of one layer of SVD's U-Net are 1.3 GB in float32. `attention.py`
computes them in chunks, each of which is written to memory and read again some times; these kernels
never write them. Both take products of bfloat16 and sum in float32, as the chunks do.

`O3D_ATTENTION=chunks` in the environment turns them off, to compare or to look for a fault.
"""

import functools
import importlib.util
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FEWEST_KEYS = 512
"""The fewest keys that are worth a kernel.

Fewer make so few scores that a plain product is as good: the eight frames of temporal attention,
the innermost level of the U-Net, the image encoder's 257 tokens.
"""

TPU_BLOCK = 512
"""Queries and keys at a time on a TPU; the kernel's default of 128 leaves its matrix unit waiting.
Divides the numbers of tokens that the kernel is given, or else 256 or 128 does."""

WIDEST_ON_GPU = 128
"""Features of a head that cuDNN takes on all GPUs since Ampere, in both directions."""

_Heads = Float[Array, "b n _ _"]
_Kernel = Callable[[_Heads, _Heads, _Heads], _Heads]


def fused_kernels(q: _Heads, k: _Heads, v: _Heads) -> dict[str, _Kernel]:
    """Returns the kernels that take these inputs, by the platform they run on: "cuda", "tpu".

    Which of them is compiled, `jax.lax.platform_dependent` decides when the platform is known,
    which may be that of an absent machine. Both are differentiable once, in reverse mode.
    """
    is_half = all(x.dtype == jnp.bfloat16 for x in (q, k, v))
    if os.environ.get("O3D_ATTENTION") == "chunks" or not is_half or k.shape[2] < FEWEST_KEYS:
        return {}

    kernels: dict[str, _Kernel] = {}
    if q.shape[-1] % 8 == 0 and q.shape[-1] <= WIDEST_ON_GPU and _has_cudnn():
        kernels["cuda"] = _cudnn
    if (block := _tpu_block(q.shape[2], k.shape[2])) is not None:
        kernels["tpu"] = functools.partial(_flash, block)
    return kernels


@functools.cache
def _has_cudnn() -> bool:
    """Returns whether JAX's CUDA plugin is there and finds cuDNN, or its attention isn't traced.

    Where programs are compiled for machines elsewhere, the plugin may be alone.
    """
    if not any(importlib.util.find_spec(f"jax_cuda{major}_plugin") for major in (12, 13)):
        return False
    x = jax.ShapeDtypeStruct((1, FEWEST_KEYS, 1, WIDEST_ON_GPU), jnp.bfloat16)
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    try:
        jax.eval_shape(attend, x, x, x)
    except RuntimeError:  # "cuDNN not found."
        return False
    return True


def _cudnn(q: _Heads, k: _Heads, v: _Heads) -> _Heads:
    """Returns attention by cuDNN, which needs an Ampere GPU. JAX puts heads after tokens there."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, implementation="cudnn"), 1, 2)


def _tpu_block(queries: int, keys: int) -> int | None:
    for block in (TPU_BLOCK, TPU_BLOCK // 2, TPU_BLOCK // 4):
        if queries % block == 0 and keys % block == 0:
            return block
    return None


def _flash(block: int, q: _Heads, k: _Heads, v: _Heads) -> _Heads:
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    forward = {"block_b": 1, "block_q": block, "block_k_major": block, "block_k": block}
    for_k_and_v = {f"block_{name}_dkv": block for name in ("q_major", "k_major", "k", "q")}
    for_q = {f"block_{name}_dq": block for name in ("k_major", "k", "q")}
    sizes = flash.BlockSizes(**forward, **for_k_and_v, **for_q)
    scale = q.shape[-1] ** -0.5
    return flash.flash_attention(q, k, v, sm_scale=scale, block_sizes=sizes)
