"""Weights that are a pure function of their torch name, so that none is zero and goldens are small.

The torch originals behind `tests/golden` were filled by the same rule: whoever agrees on names,
shapes and layouts computes the same outputs.
"""

import functools
import math
import zlib
from typing import Any

import jax
import numpy as np

from o3d_jax.weights.pytorch.names import from_torch, torch_name, torch_shape


def synthetic_tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """N(0, 1/fan_in) for kernels, 1 + N(0, 0.01) for norm scales, N(0, 0.0004) for the rest."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) ^ seed))
    x = rng.standard_normal(shape, dtype=np.float32)
    if name.split(".")[-1] == "mix_factor":
        return x
    if len(shape) >= 2:
        return x * np.float32(1 / math.sqrt(math.prod(shape[1:])))
    if name.endswith("weight"):
        return x * np.float32(0.1) + np.float32(1)
    return x * np.float32(0.02)


def synthetic_variables(module, *inputs, seed: int = 0, method: str | None = None) -> Any:
    """Variables of a module, every weight filled from its torch name."""
    # numpy promises no stable streams; a new one must not look like a wrong network.
    drawn = synthetic_tensor("conv.bias", (7,))[-1]
    assert abs(drawn - 0.0037634677719324827) < 1e-7, "numpy draws other numbers than the goldens'"

    def fill(keys, leaf):
        path = tuple(key.key for key in keys)[1:]  # Without "params".
        name = torch_name(path)
        return jax.numpy.asarray(
            from_torch(name, synthetic_tensor(name, torch_shape(path, leaf.shape), seed))
        )

    init = functools.partial(module.init, method=method) if method else module.init
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)
    return jax.tree_util.tree_map_with_path(fill, shapes)
