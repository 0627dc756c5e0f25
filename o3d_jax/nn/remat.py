"""Layers that are computed again in the backward pass rather than kept (rematerialization)."""

from typing import TypeVar

import flax.linen as nn
import jax

REMAT_POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""The choices of `ModelConfig.remat_keeps`."""

Layer = TypeVar("Layer", bound=type[nn.Module])


def recomputed(layer: Layer, keeps: str | None) -> Layer:
    """Returns the layer so that the backward pass computes it again, but for what it `keeps`.

    That is a key of REMAT_POLICIES, or None for the layer as it is, which keeps all.
    """
    return layer if keeps is None else nn.remat(layer, policy=REMAT_POLICIES[keeps])
