"""LPIPS from its two files: torchvision's network, and the published weights of its channels."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from o3d_jax.io.convert import Rule
from o3d_jax.io.names import torch_name
from o3d_jax.nn.lpips import TRUNKS, Lpips

LAYERS = {
    "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "alex": (0, 3, 6, 8, 10),
}
"""Where the convolutions are among torchvision's `features`."""


def trunk_rule(network: Literal["vgg", "alex"]) -> Rule:
    """How torchvision's file differs from our LPIPS; its classifier is left out."""
    convolutions = [c.name for stage in TRUNKS[network] for c in stage.convolutions]
    return Rule(
        filled=r"conv.+",
        names={
            torch_name((ours, leaf)): f"features.{layer}.{leaf}"
            for ours, layer in zip(convolutions, LAYERS[network], strict=True)
            for leaf in ("weight", "bias")
        },
        dropped=r"classifier\.[01346]\.(weight|bias)",  # For the classes of ImageNet.
    )


def lins_rule(network: Literal["vgg", "alex"]) -> Rule:
    """How the file of LPIPS's own weights differs from our LPIPS."""
    count = len(TRUNKS[network])
    names = {f"lin{i}.weight": f"lin{i}.model.1.weight" for i in range(count)}
    return Rule(filled=r"lin.+", names=names)


@functools.cache  # Tracing takes time.
def lpips_shapes(network: Literal["vgg", "alex"]) -> Any:
    """The parameters of LPIPS, as a tree of shapes."""
    image = jnp.zeros((1, 64, 64, 3))
    return jax.eval_shape(Lpips(network).init, jax.random.key(0), image, image)["params"]
