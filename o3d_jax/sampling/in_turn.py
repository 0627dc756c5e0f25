"""The networks of a model one after another, each a program of its own, with its parameters alone.

So a device need hold no more than one network at a time, where the others wait in the host's memory
(`Networks.offload`); and a level that reconstructs no object runs the denoiser only. The results
are those of `steps/sample.py`'s whole programs, but for the rounding of operations that the
compiler fuses otherwise.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
from jaxtyping import Array, Float, Key

from o3d_jax.nn.networks import Ouroboros
from o3d_jax.steps.condition import embed_image
from o3d_jax.steps.reconstruct import decode_views
from o3d_jax.steps.sample import (
    Denoised,
    Estimate,
    LoopState,
    begin_run,
    denoise_level,
    handed_on,
    rebuild_object,
)
from o3d_jax.types import Cameras, Condition, Frozen, Params

Name = Literal["clip", "vae", "unet", "lgm"]

embed_program = jax.jit(embed_image)
begin_program = jax.jit(begin_run)
denoise_program = jax.jit(denoise_level)
decode_program = jax.jit(decode_views)
object_program = jax.jit(rebuild_object)


def with_network(model: Ouroboros, name: Name) -> Ouroboros:
    """Returns the model with the parameters of one network, and none of the others."""

    def only(group: Params | Frozen, *fields: str) -> dict[str, Any]:
        return {field: getattr(group, field) if field == name else None for field in fields}

    params = Params(**only(model.params, "unet", "lgm", "clip"))
    frozen = Frozen(**only(model.frozen, "vae", "clip"))
    return dataclasses.replace(model, params=params, frozen=frozen)


def prepare_in_turn(
    model: Ouroboros, image: Float[Array, "b h w 3"], key: Key[Array, ""]
) -> tuple[Condition, LoopState]:
    """Returns what `steps.sample.prepare` does."""
    embedding = _run(embed_program, model, "clip", image)
    return _run(begin_program, model, "vae", embedding, image, key)


def denoise_in_turn(
    model: Ouroboros,
    condition: Condition,
    cameras: Cameras,
    state: LoopState,
    sigma: Float[Array, ""],
    sigma_next: Float[Array, ""],
) -> Denoised:
    """Returns what `steps.sample.denoise_level` does."""
    return _run(denoise_program, model, "unet", condition, cameras, state, sigma, sigma_next)


def level_in_turn(
    model: Ouroboros,
    condition: Condition,
    cameras: Cameras,
    state: LoopState,
    sigma: Float[Array, ""],
    sigma_next: Float[Array, ""],
) -> tuple[LoopState, Estimate]:
    """Returns what `steps.sample.level` does."""
    denoised = denoise_in_turn(model, condition, cameras, state, sigma, sigma_next)
    views = _run(decode_program, model, "vae", denoised.latents)
    rebuilt = _run(object_program, model, "lgm", views, cameras, sigma)
    return handed_on(state, denoised, views, rebuilt, model.config.sample)


def _run(program: Callable[..., Any], model: Ouroboros, name: Name, *inputs: Any) -> Any:
    """Returns what a program makes of its inputs and one network, which comes to the device for it.

    It waits until the network has run: the next one would come while this one is still there.
    """
    alone = jax.device_put(with_network(model, name))
    result = program(alone, *inputs)
    return jax.block_until_ready(result) if model.networks.offload else result
