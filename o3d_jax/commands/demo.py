"""Images to 3D objects in the browser: `o3d demo`.

    --checkpoint RUN/model    another model than the bundled one
    --host 0.0.0.0            lets other machines connect; by default only this one can

Upload an image or pick an example, and see the object appear noise level by noise level. One
sampling runs at a time; others wait in line. Nothing is kept on disk. Needs viser,
`pip install 'o3d_jax[view]'`.
"""

import dataclasses
import sys
from pathlib import Path

import tyro

from o3d_jax.cli import parse, use_compilation_cache
from o3d_jax.sampling.loop import read_sampler
from o3d_jax.viewing.demo import start_demo
from o3d_jax.viewing.library import check_viewer_packages, serve
from o3d_jax.weights.checkpoint import BUNDLED
from o3d_jax.weights.fetched import find_checkpoint


@dataclasses.dataclass(frozen=True)
class DemoArguments:
    """Images to 3D objects in the browser."""

    checkpoint: Path = BUNDLED / "nano"
    """Folder with a model: RUN/model of a training run."""
    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine can connect."""
    port: int = 8080
    """Port to listen on; where it is taken, the next free one."""
    offload: tyro.conf.FlagCreatePairsOff[bool] = False
    """Bring each network to the device for as long as it runs, as `sample --offload` does."""


def main(arguments: list[str], program: str) -> None:
    """Reads the command line."""
    order = parse(DemoArguments, arguments, prog=program, description=__doc__)
    check_viewer_packages()  # Missing, it is said before a model is read.
    use_compilation_cache()
    model = read_sampler(find_checkpoint(order.checkpoint), order.offload)
    server = start_demo(model, order.host, order.port).server
    sys.stdout.write(f"open http://{order.host}:{server.get_port()}; Ctrl-C ends it\n")
    serve(server)
