"""What fused attention saves on a TPU: `python benchmarks/attention.py [--topology v5e:2x2]`.

Compiles the attention layers of the full model (512 px, one object) for a machine that need not be
there, in chunks and by the platform's kernel, and prints what XLA says of their memory, and the
time that this and the arithmetic cannot beat. XLA counts the body of a loop once, so that bytes and
time of chunks are least values: times the number of chunks, most.
Needs the compiler of the topology, as `pip install -e '.[tpu]'`.
"""

import argparse
import os
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from o3d_jax.nn.attention import attend
from o3d_jax.planning.topologies import Topology, describe


class Layer(NamedTuple):
    """An attention layer of the full model."""

    name: str
    objects: int
    """Frames, or objects where all views attend to each other."""
    tokens: int
    width: int
    heads: int


LAYERS = (
    Layer("U-Net, 64 x 64", 8, 4096, 320, 5),
    Layer("U-Net, 32 x 32", 8, 1024, 640, 10),
    Layer("U-Net, 16 x 16", 8, 256, 1280, 20),
    Layer("VAE, 64 x 64", 8, 4096, 512, 1),
    Layer("LGM, 4 views of 16 x 16", 1, 1024, 1024, 16),
)


class Cost(NamedTuple):
    """What XLA says of a compiled program."""

    temporaries_mb: float
    accessed_mb: float
    at_least_us: float
    """Microseconds: of its arithmetic or of its memory, whichever takes longer."""


PRODUCTS = {False: 2, True: 7}
"""Products of queries x keys x features: scores and output; on the way back scores again and the
gradients of weights, queries, keys and values."""


def cost(layer: Layer, topology: Topology, gradient: bool) -> Cost:
    """Compiles the layer for one device of the topology, forward or with its gradient."""

    def total(q, k, v):
        return attend(q, k, v, layer.heads).astype(jnp.float32).sum()

    function = jax.grad(total, (0, 1, 2)) if gradient else total
    place = SingleDeviceSharding(topology.devices[0])
    shape = (layer.objects, layer.tokens, layer.width)
    at = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)
    platform = "tpu" if topology.name.startswith("v") else "cuda"
    lowered = jax.jit(function).trace(at, at, at).lower(lowering_platforms=(platform,))
    compiled = lowered.compile()

    # Counted by hand, since XLA sees neither into a kernel nor how often a loop runs.
    multiplied = PRODUCTS[gradient] * layer.objects * layer.tokens**2 * layer.width
    accessed = compiled.cost_analysis()["bytes accessed"]
    at_least = max(2 * multiplied / topology.chip.flops, accessed / topology.chip.memory_rate)

    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return Cost(temporaries / 1e6, accessed / 1e6, at_least * 1e6)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topology", default="v5e:2x2")
    topology = describe(parser.parse_args().topology)

    cells = ["temporaries, MB", "fused", "accessed, MB", "fused", "at least, µs", "fused"]
    sys.stdout.write(f"| {topology.chip.name} | | {' | '.join(cells)} |\n|{'---|' * 8}\n")
    for layer in LAYERS:
        for gradient in (False, True):
            found = []
            for choice in ("chunks", "fused"):
                os.environ["O3D_ATTENTION"] = choice
                found.append(cost(layer, topology, gradient))
            way = "with gradient" if gradient else "forward"
            pairs = zip(*found, strict=True)
            cells = [f"{value:,.0f}" for pair in pairs for value in pair]
            sys.stdout.write(f"| {layer.name} | {way} | {' | '.join(cells)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
