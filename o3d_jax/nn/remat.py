"""Layers that are computed again in the backward pass rather than kept (rematerialisation)."""

from typing import TypeVar

import flax.linen as nn
import jax

REMAT_POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""By `ModelConfig.remat_keeps`."""

Layer = TypeVar("Layer", bound=type[nn.Module])


def recomputed(layer: Layer, keeps: str | None) -> Layer:
    """The layer, computed again but for what is kept of it (a key of REMAT_POLICIES).

    None: as it is, all kept.
    """
    return layer if keeps is None else nn.remat(layer, policy=REMAT_POLICIES[keeps])
