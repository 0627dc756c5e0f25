"""How layers ask for their parameters."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from flax.errors import ScopeParamShapeError
from jaxtyping import Array, Float


def parameter(
    layer: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]
) -> Float[Array, "..."] | Float[np.ndarray, "..."]:
    """Returns a layer's parameter of this name and shape; `init` makes it in a fresh network.

    `Module.param` does the same, but learns the shape that a given value should have by tracing
    `init`: 40 % of the time that it takes to trace a U-Net, and so of what a start waits for.

    Raises:
        ScopeParamShapeError: the value has another shape.
        ScopeParamNotFoundError: there is none, and the network is not being initialized.
    """
    if not layer.has_variable("params", name):
        return layer.param(name, init, shape, jnp.float32)
    value = meta.unbox(layer.get_variable("params", name))
    if np.shape(value) != shape:
        raise ScopeParamShapeError(name, "/".join(layer.path), np.shape(value), shape)
    return value
