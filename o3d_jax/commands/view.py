"""Shows a result of `o3d sample` in the browser: `o3d view OUT/NAME`.

    --html FILE     writes one page instead, which opens from disk without a network

The object stands upright, among the cameras of its generated views. Where the result was made with
--keep-levels, a slider shows each noise level's object beside its views; where it has a mesh.glb,
that is shown on request. Needs viser, `pip install 'o3d_jax[view]'`.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from o3d_jax.cli import parse
from o3d_jax.viewing.library import check_viewer_packages, serve
from o3d_jax.viewing.page import write_page
from o3d_jax.viewing.shown import read_shown
from o3d_jax.viewing.viewer import start_viewer


@dataclasses.dataclass(frozen=True)
class ViewArguments:
    """A result in the browser."""

    result: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT/NAME")]
    """Folder that `o3d sample` wrote."""
    html: Path | None = None
    """Write a page to this file, and end."""
    levels: tyro.conf.FlagCreatePairsOff[bool] = False
    """The page plays all noise levels that were kept, not only the result."""
    cameras: tyro.conf.FlagCreatePairsOff[bool] = False
    """The page shows the cameras with their views, too."""
    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine can connect."""
    port: int = 8080
    """Port to listen on; where it is taken, the next free one."""


def main(arguments: list[str], program: str) -> None:
    """Reads the command line."""
    order = parse(ViewArguments, arguments, prog=program, description=__doc__)
    check_viewer_packages()  # Missing, it is said before anything is read.
    shown = read_shown(order.result)
    if order.html is not None:
        write_page(order.html, shown, order.levels, order.cameras)
        size = order.html.stat().st_size
        sys.stdout.write(f"wrote {order.html}, {size / 1e6:.1f} MB: open it in a browser\n")
        return

    server = start_viewer(shown, order.host, order.port)
    sys.stdout.write(f"{shown.name}: http://{order.host}:{server.get_port()}; Ctrl-C ends it\n")
    serve(server)
