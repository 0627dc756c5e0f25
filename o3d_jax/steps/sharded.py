"""Functions of objects on many devices: each device works on its own objects, under `shard_map`.

So the collectives of the forward and backward pass are written here or in `parallel/`. Those of the
optimizer's update follow from the sharding constraints in `steps/train.py`.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Key

from o3d_jax.nn.networks import Ouroboros
from o3d_jax.nn.sharing import shared, shares
from o3d_jax.parallel.layout import AXES, Layout
from o3d_jax.parallel.shards import device_number, mean_over_devices, reduce_gradient
from o3d_jax.types import Frozen, Params

Terms = TypeVar("Terms")
Parts = TypeVar("Parts")
Objects = TypeVar("Objects")
Result = TypeVar("Result")


def mean_gradient(
    loss: Callable[[Params, Frozen, Parts], tuple[Float[Array, ""], Terms]],
    params: Params,
    frozen: Frozen,
    parts: Parts,
    accumulate: int,
    layout: Layout | None,
) -> tuple[Params, Terms]:
    """Returns gradient and terms of the mean loss over all objects, which lie on many devices.

    `loss` takes parameters, frozen networks and some of the objects, and returns the mean over
    these and its terms. Every array of `parts` has objects along its first axis. Each device works
    through its objects in `accumulate` chunks, so that only one chunk is in memory. From ZeRO stage
    2 on (`Layout.zero`), each chunk's gradient is sharded at once, and the result is sharded, too.
    Without a layout all is on one device.
    """
    if layout is None:
        return _accumulated(jax.grad(loss, has_aux=True), params, frozen, parts, accumulate)
    of_params, of_frozen = layout.axes(params, stage=3), layout.axes(frozen, stage=3)
    of_gradient = layout.axes(params, stage=2)
    early = layout.zero >= 2

    def on_device(params: Params, frozen: Frozen, parts: Parts) -> tuple[Params, Terms]:
        def gradient(params: Params, frozen: Frozen, part: Parts) -> tuple[Params, Terms]:
            found, terms = jax.grad(loss, has_aux=True)(params, frozen, part)
            found = shares(found)
            return reduce_gradient(found, of_gradient, layout) if early else found, terms

        # Networks gather shared parameters layer by layer, where they use them.
        boxes = shared(params, of_params), shared(frozen, of_frozen)
        found, terms = _accumulated(gradient, *boxes, parts, accumulate)
        found = found if early else reduce_gradient(found, of_gradient, layout)
        return found, mean_over_devices(terms)

    return jax.shard_map(
        on_device,
        mesh=layout.mesh,
        in_specs=(layout.specs(params, 3), layout.specs(frozen, 3), PartitionSpec(AXES)),
        out_specs=(layout.specs(params, 2), PartitionSpec()),
        check_vma=False,  # Sums over devices are written out above, not derived.
    )(params, frozen, parts)


def _accumulated(
    gradient: Callable[[Params, Frozen, Parts], tuple[Params, Terms]],
    params: Params,
    frozen: Frozen,
    parts: Parts,
    accumulate: int,
) -> tuple[Params, Terms]:
    """Returns the mean gradient and terms over so many parts of the objects, one after another."""
    if accumulate == 1:  # No loop: on CPUs, XLA is slower with convolutions in one.
        return gradient(params, frozen, parts)
    several = jax.tree.map(lambda a: a.reshape(accumulate, -1, *a.shape[1:]), parts)

    def add(total: tuple[Params, Terms], part: Parts) -> tuple[tuple[Params, Terms], None]:
        return jax.tree.map(jnp.add, total, gradient(params, frozen, part)), None

    first = jax.tree.map(lambda a: a[0], several)
    like = jax.eval_shape(gradient, params, frozen, first)
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    total, _ = jax.lax.scan(add, nothing, several)
    return jax.tree.map(lambda a: a / accumulate, total)


def on_own_objects(
    function: Callable[[Ouroboros, Objects, Key[Array, ""]], Result],
    model: Ouroboros,
    objects: Objects,
    key: Key[Array, ""],
    layout: Layout,
) -> Result:
    """Returns what each device makes of its own objects, with a key of its own.

    The model's parameters are sharded like a training state's average, by ZeRO stage 1.
    """
    of_params, of_frozen = layout.axes(model.params, stage=1), layout.axes(model.frozen, stage=3)

    def on_device(params: Params, frozen: Frozen, objects: Objects, key: Key[Array, ""]) -> Result:
        boxes = {"params": shared(params, of_params), "frozen": shared(frozen, of_frozen)}
        own = jax.random.fold_in(key, device_number())
        return function(dataclasses.replace(model, **boxes), objects, own)

    return jax.shard_map(
        on_device,
        mesh=layout.mesh,
        in_specs=(
            layout.specs(model.params, 1),
            layout.specs(model.frozen, 3),
            PartitionSpec(AXES),
            PartitionSpec(),
        ),
        out_specs=PartitionSpec(AXES),
        check_vma=False,
    )(model.params, model.frozen, objects, key)
