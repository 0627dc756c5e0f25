"""LPIPS from its two files: torchvision's network, and the published weights of its channels."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from o3d_jax.io.convert import Rule, read_file
from o3d_jax.io.names import torch_name
from o3d_jax.io.safetensors import Source, Tensor
from o3d_jax.nn.lpips import TRUNKS, Lpips

LAYERS = {
    "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "alex": (0, 3, 6, 8, 10),
}
"""Where the convolutions are among torchvision's `features`."""

LPIPS = Rule(
    dropped=tuple(f"classifier.{i}.{leaf}" for i in (0, 1, 3, 4, 6) for leaf in ("weight", "bias"))
)
"""Names classes of ImageNet, which no distance needs."""


def read_lpips(network: Literal["vgg", "alex"], trunk: Path, lins: Path) -> Source:
    """The tensors of both files, under our names.

    Raises:
        InputError: as `read_file`.
    """
    convolutions = [c.name for stage in TRUNKS[network] for c in stage.convolutions]
    layers = [f"features.{i}" for i in LAYERS[network]]
    ours = dict(zip(layers, convolutions, strict=True))
    ours |= {f"lin{i}.model.1": f"lin{i}" for i in range(len(TRUNKS[network]))}

    def renamed(tensor: Tensor) -> Tensor:
        module, _, leaf = tensor.spec.name.rpartition(".")
        name = torch_name((ours[module], leaf)) if module in ours else tensor.spec.name
        return Tensor(dataclasses.replace(tensor.spec, name=name), tensor.read)

    tensors = (*read_file(trunk).tensors, *read_file(lins).tensors)
    return Source(where=trunk, tensors=tuple(renamed(tensor) for tensor in tensors))


def lpips_shapes(network: Literal["vgg", "alex"]) -> Any:
    """The parameters of LPIPS, as a tree of shapes."""
    image = jnp.zeros((1, 64, 64, 3))
    return jax.eval_shape(Lpips(network).init, jax.random.key(0), image, image)["params"]
