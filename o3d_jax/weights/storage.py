"""The type that each parameter lies in while a model samples: half a float32 where that is enough.

Layers turn their kernels into the type that they compute in, so kernels may be kept in it from the
start: every result is the same bit for bit, and full-size networks take 5.9 GB rather than 11.7.
Vectors (biases, the scales of norms, the weights of blends) are few, and stay float32, because
norms and blends read them so.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike

FLOAT32_LAYERS = {
    "unet": ("unet/conv_out",),
    "lgm": ("unet/conv_out", "conv"),
}
"""Layers that compute in float32 whatever their network computes in, by network."""


def kept_dtype(
    keys: tuple[str, ...], shape: tuple[int, ...], stored: DTypeLike, computed: DTypeLike
) -> jnp.dtype:
    """Returns the type to keep a parameter in, so that nothing computed from it changes.

    `keys` is its place in a checkpoint: network, "params", then its flax path. `stored` is its type
    there, and `computed` the type in which its network computes. What is stored in fewer bits than
    it is used in stays as it is stored.
    """
    network, _, *path = keys
    layer = "/".join(path[:-1])
    used = jnp.dtype(computed)
    if len(shape) < 2:
        return jnp.dtype(jnp.float32)
    if layer in FLOAT32_LAYERS.get(network, ()):
        used = jnp.dtype(jnp.float32)
    return min(jnp.dtype(stored), used, key=lambda dtype: (dtype.itemsize, dtype != used))
