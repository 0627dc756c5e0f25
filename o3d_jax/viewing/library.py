"""viser, which draws in the browser: an extra of this package, so perhaps not there."""

import contextlib
import importlib.util
import io
import sys
import threading
from typing import Any

from o3d_jax.errors import InputError
from o3d_jax.viewing.origins import only_own_pages


def check_viewer_packages() -> None:
    """Raises an InputError, which names the extra, unless viser is installed."""
    if importlib.util.find_spec("viser") is None:
        raise InputError("the viewer needs viser; pip install 'o3d_jax[view]'")


def start_server(host: str, port: int, label: str) -> Any:
    """Returns a viser server, which runs in threads, says nothing, and needs no network.

    Where the port is taken, the next free one is; 0 is any. `label` heads the panel. Web pages of
    other sites are refused.

    Raises:
        InputError: viser is not installed.
    """
    check_viewer_packages()
    import viser  # pyright: ignore[reportMissingImports]  # optional, and slow to import

    # It would announce itself in a box.
    with contextlib.redirect_stdout(io.StringIO()), only_own_pages(host):
        return viser.ViserServer(host=host, port=port, label=label, verbose=False)


def serve(server: Any) -> None:
    """Waits until Ctrl-C, and ends a viser server then."""
    sys.stdout.flush()  # The address, which a script may read through a pipe.
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        stop_server(server)


def stop_server(server: Any) -> None:
    """Ends a viser server, and says nothing."""
    with contextlib.redirect_stdout(io.StringIO()):
        server.stop()
