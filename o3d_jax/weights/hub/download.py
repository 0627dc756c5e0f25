"""Files of the hub to disk: whole and verified, or for the next attempt to go on with.

`hf_hub_download` throws away what it has of a file if it is stopped, which may be 7 GB here. So
its parts are used: `http_get` appends to what is there, and tries again if the way breaks off.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from o3d_jax.errors import InputError
from o3d_jax.files.atomic import continued
from o3d_jax.weights.hub.faults import hub_faults
from o3d_jax.weights.hub.listing import Listing, RemoteFile


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Makes a folder, and keeps other processes out that ask for it here, too.

    Raises:
        InputError: one of them was first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.lock")
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another process is at work in {folder}; wait for it, or end it"
            ) from error
        yield


def bytes_to_come(file: RemoteFile, target: Path) -> int:
    """Returns how much of a file is not on disk yet."""
    if target.is_file():
        return 0
    begun = target.with_name(f".{target.name}.part")
    return file.size - min(file.size, begun.stat().st_size if begun.is_file() else 0)


def download(listing: Listing, file: RemoteFile, target: Path) -> None:
    """Brings a file, unless it is there; goes on with what an attempt before has left.

    Raises:
        InputError: as `hub_faults`; the transfer broke off, or what came has another hash.
        OSError: the disk is full.
    """
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with continued(target) as begun:
        with hub_faults(listing.repository, listing.commit), _transfer_faults(file, begun):
            _append(listing, file, begun)
        _verify(listing, file, begun)


def _append(listing: Listing, file: RemoteFile, begun: Path) -> None:
    """Fetches what is missing."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, logging

    logging.set_verbosity_error()  # It says of each attempt what we say of the last.
    url = hf_hub_url(listing.repository.name, file.path, revision=listing.commit)
    with begun.open("ab") as out:
        if out.tell() > file.size:
            out.seek(0)
            out.truncate()
        http_get(
            url,
            out,
            resume_size=out.tell(),
            headers=build_hf_headers(library_name="o3d-jax"),
            expected_size=file.size,
            displayed_filename=file.path,
        )


@contextlib.contextmanager
def _transfer_faults(file: RemoteFile, begun: Path) -> Iterator[None]:
    """Tells how far a transfer came that broke off, and names the file of a disk that is full."""
    from huggingface_hub import errors

    cut_off = (errors.HTTPError, OSError)  # pyright: ignore[reportPrivateImportUsage]
    try:
        yield
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled):
        raise  # The hub has answered, or has not been asked.
    except cut_off as error:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(number, os.strerror(number), str(begun)) from error
        if number is not None:
            raise
        have = begun.stat().st_size
        raise InputError(
            f"{file.path} broke off after {have:,} of {file.size:,} bytes: {error}; run the "
            "command again, and it goes on from there"
        ) from error


def _verify(listing: Listing, file: RemoteFile, begun: Path) -> None:
    """Removes what is not the file that the hub has listed."""
    if file.sha256 is not None:
        with begun.open("rb") as stream:
            kind, listed = "SHA-256", file.sha256
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    else:
        content = begun.read_bytes()
        kind, listed = "git blob", file.blob
        found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if found != listed:
        begun.unlink()
        raise InputError(
            f"{file.path} of {listing.repository.name} came with {kind} {found}, and the hub lists "
            f"{listed}; it was thrown away: run the command again"
        )
