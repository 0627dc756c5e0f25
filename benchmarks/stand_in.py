"""Weights that stand in for trained ones where only time, memory and finiteness count."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from o3d_jax.config import Config
from o3d_jax.nn.networks import Ouroboros, build_networks, init_networks


def stand_in_model(config: Config, dtype: DTypeLike, frozen_dtype: DTypeLike) -> Ouroboros:
    """Returns a model whose arrays were never float32, so that it needs no more room than it says.

    Kernels are normal with a variance of one over their inputs, scales 1, all else 0: activations
    stay finite at any depth. Arrays repeat the same random numbers, which costs no time to make and
    is as good for a multiplier as fresh ones.
    """
    networks = build_networks(config.model)

    def fresh(key: Array) -> tuple[Any, Any]:
        return init_networks(networks, config.model, key, config.train.train_image_encoder)

    params, frozen = jax.eval_shape(fresh, jax.random.key(0))
    largest = max(math.prod(leaf.shape) for leaf in jax.tree.leaves((params, frozen)))
    numbers = jax.random.normal(jax.random.key(0), (largest,), jnp.bfloat16)

    def stand_in(dtype: DTypeLike) -> Any:
        def one(path: tuple, leaf: jax.ShapeDtypeStruct) -> Array:
            name = str(getattr(path[-1], "key", path[-1]))
            if name == "scale":
                return jnp.ones(leaf.shape, dtype)
            if name == "bias" or len(leaf.shape) < 2:
                return jnp.zeros(leaf.shape, dtype)
            size, inputs = math.prod(leaf.shape), math.prod(leaf.shape[:-1])
            return (numbers[:size].reshape(leaf.shape) * inputs**-0.5).astype(dtype)

        return one

    return Ouroboros(
        networks=networks,
        config=config,
        params=jax.tree_util.tree_map_with_path(stand_in(dtype), params),
        frozen=jax.tree_util.tree_map_with_path(stand_in(frozen_dtype), frozen),
    )
