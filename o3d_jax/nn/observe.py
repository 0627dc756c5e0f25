"""Looks at what every module of a network returns while it runs."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Shaped

Observer = Callable[[tuple[str, ...], Shaped[Array, "..."]], None]
"""A function that is given a module's path, () for the network, and the first array it returned."""


def apply_observed(
    network: nn.Module,
    variables: Any,
    inputs: tuple[Any, ...],
    observe: Observer,
    method: str | None = None,
) -> Any:
    """Returns a network's output; on the way `observe` is given each module's, inner ones first.

    It does not run under `jax.jit`: op by op, values are real, and those of one module need not
    outlive it.
    """

    def intercept(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext):
        output = call(*args, **kwargs)
        arrays = jax.tree.leaves(output)
        if context.method_name == "__call__" and arrays:
            observe(context.module.path, arrays[0])
        return output

    with nn.intercept_methods(intercept):
        return network.apply(variables, *inputs, method=method)
