"""Parameters that several devices share out (ZeRO stage 3), whole only while a layer uses them."""

import dataclasses
from typing import Any, TypeVar

import jax
from flax.core import meta
from jaxtyping import Array, Float

from o3d_jax.parallel.layout import WHOLE

Tree = TypeVar("Tree")


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Share(meta.AxisMetadata):
    """This device's share of a parameter, inside `shard_map`.

    Linen unboxes a parameter where a layer asks for it, which gathers it from all devices of
    "fsdp"; the gradient goes back as a sum of which each keeps its share. In a layer that is
    recomputed, the parameter is gathered once more rather than kept.
    """

    value: Float[Array, "..."]
    axis: int
    """The axis along which it is shared out."""

    def unbox(self) -> Float[Array, "..."]:
        """Returns the whole parameter, gathered from all devices that have a share."""
        return jax.lax.all_gather(self.value, "fsdp", axis=self.axis, tiled=True)

    def replace_boxed(self, val: Any) -> "Share":
        """Returns a box with another value."""
        return dataclasses.replace(self, value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Share":
        """Raises NotImplementedError: no module here is mapped over its parameters."""
        raise NotImplementedError("shared parameters under nn.scan or nn.vmap")

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Share":
        """Raises NotImplementedError, as `add_axis` does."""
        raise NotImplementedError("shared parameters under nn.scan or nn.vmap")

    def tree_flatten(self) -> tuple[tuple[Any], int]:
        """Returns what JAX asks of a pytree: its arrays, and the rest."""
        return (self.value,), self.axis

    @classmethod
    def tree_unflatten(cls, axis: int, children: tuple[Any]) -> "Share":
        """Returns the box again from what `tree_flatten` returned."""
        return cls(children[0], axis)


def shared(params: Tree, axes: Tree) -> Tree:
    """Returns the tree with boxes around the arrays that have an axis (`parallel.Layout.axes`)."""
    return jax.tree.map(lambda a, axis: a if axis == WHOLE else Share(a, axis), params, axes)


def shares(params: Tree) -> Tree:
    """Returns what `shared` put into boxes."""

    def is_share(leaf: Any) -> bool:
        return isinstance(leaf, Share)

    return jax.tree.map(lambda a: a.value if is_share(a) else a, params, is_leaf=is_share)
