"""For tests of networks, in which compiling takes nearly all of the time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(seed: int, *shape: int) -> jax.Array:
    """Drawn by numpy, which has nothing to compile."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def difference(a, b) -> float:
    """The largest absolute one."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())
