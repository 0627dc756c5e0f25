"""Files that people send to the demo: how much is taken, and what is made of it.

viser keeps all parts of a file in memory until it is whole, however large. So its two handlers of
uploads are replaced by ones that count first, and are called only with what may be kept.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from o3d_jax.errors import InputError
from o3d_jax.media.foreground import Foreground, read_foreground

MOST_UPLOADED = 20 * 10**6
"""Bytes of a file that is taken."""

MOST_NAME = 40
"""Characters of a file's name that are shown."""


def guard_uploads(gui: Any, refused: Callable[[str], None]) -> None:
    """Limits what a tab sends: one file at a time, of MOST_UPLOADED, no longer than announced.

    `gui` is viser's, of one client; `refused` is told why something is not taken.
    """
    from viser import _messages  # pyright: ignore[reportMissingImports]  # optional

    started, parts = _messages.FileTransferStartUpload, _messages.FileTransferPart
    transfers, connection = gui._current_file_upload_states, gui._websock_interface
    connection.unregister_handler(started)
    connection.unregister_handler(parts)

    def received(message: Any) -> Any:
        """What viser says of a whole file; without it, the browser's button would stay disabled."""
        return _messages.FileTransferPartAck(
            source_component_uuid=message.source_component_uuid,
            transfer_uuid=message.transfer_uuid,
            transferred_bytes=message.size_bytes,
            total_bytes=message.size_bytes,
        )

    def start(client: int, message: Any) -> None:
        if message.size_bytes > MOST_UPLOADED:
            size = f"{message.size_bytes / 1e6:.0f} MB"
            refused(f"the file has {size}; at most {MOST_UPLOADED // 10**6} MB are taken")
            connection.queue_message(received(message))
        else:
            transfers.clear()  # A new file takes the place of one that is still on its way.
            gui._handle_file_transfer_start(client, message)

    def take(client: int, message: Any) -> None:
        transfer = transfers.get(message.transfer_uuid)
        if transfer is None:
            return
        if transfer["transferred_bytes"] + len(message.content) > transfer["total_bytes"]:
            del transfers[message.transfer_uuid]
            refused("the file is longer than the browser said; send it again")
        else:
            gui._handle_file_transfer_part(client, message)

    connection.register_handler(started, start)
    connection.register_handler(parts, take)


def cut_out_upload(content: bytes, name: str) -> Foreground:
    """Returns the object in an uploaded picture, as `read_foreground` does in a file.

    The name is only for messages, and never part of a path.

    Raises:
        InputError: as `read_foreground`.
    """
    with tempfile.TemporaryDirectory(prefix="o3d-demo-") as folder:
        path = Path(folder) / "upload"
        path.write_bytes(content)
        try:
            return read_foreground(path)
        except InputError as error:
            raise InputError(str(error).replace(str(path), shown_name(name))) from error


def shown_name(name: str) -> str:
    """Returns a file's name as it may be shown and downloaded: letters, digits, and . - _ only."""
    last = name.replace("\\", "/").rpartition("/")[2]
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in last)
    return plain.strip(".")[:MOST_NAME] or "image"
