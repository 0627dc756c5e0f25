"""What a repository holds: the files that are wanted of it, their sizes and hashes."""

import contextlib
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from o3d_jax.errors import InputError
from o3d_jax.weights.hub.faults import FROM_DISK, hub_faults
from o3d_jax.weights.hub.repositories import Repository, Wanted

PAPERS = ("license*", "notice*", "readme.md")
"""What is kept beside weights: what they may be used for, and what they are; in small letters."""

PATIENCE = 60.0
"""Seconds to wait for the hub's list of files."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub, at one commit."""

    path: str
    """In its repository."""
    size: int
    sha256: str | None
    """The hash of a large file; None for one that git itself keeps."""
    blob: str
    """Git's name for what is in a file that it keeps itself: a SHA-1 of size and content."""

    @property
    def has_weights(self) -> bool:
        """Whether there are tensors in it."""
        return self.path.endswith((".safetensors", ".pth"))


@dataclass(frozen=True)
class Listing:
    """What is fetched of a repository."""

    repository: Repository
    revision: str
    """As it was asked for."""
    commit: str
    """What that was when it was asked for."""
    license: str
    files: tuple[RemoteFile, ...]


def list_files(wanted: Wanted) -> Listing:
    """Returns the commit that a revision is, and those of its files that are wanted, by the hub.

    Raises:
        InputError: the hub cannot be reached, the repository or revision is not there or not to be
            read, a file is not in it, or has another hash than it is known by.
    """
    from huggingface_hub import HfApi

    repository, revision = wanted.repository, wanted.revision
    with hub_faults(repository, revision), _only_hubs():
        info: Any = HfApi().model_info(
            repository.name, revision=revision, files_metadata=True, timeout=PATIENCE
        )
        there = {sibling.rfilename: _file(sibling) for sibling in info.siblings}
    listing = Listing(
        repository,
        revision,
        info.sha,
        _license(repository, info.card_data),
        tuple(_chosen(wanted, info.sha, there) + _papers(there)),
    )
    _check_known(listing)
    return listing


@contextlib.contextmanager
def _only_hubs() -> Iterator[None]:
    """Raises an InputError if a page comes instead, as from networks that want a login first."""
    from huggingface_hub import constants

    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, OSError):  # One of the hub's own errors, of a status.
            raise
        raise InputError(
            f"{constants.ENDPOINT} answered something else than a hub does; open it in a browser, "
            f"or check HF_ENDPOINT, {FROM_DISK}"
        ) from error


def _file(sibling: Any) -> RemoteFile:
    """Returns a file as we have it; raises a TypeError if its size is not told."""
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    return RemoteFile(sibling.rfilename, int(sibling.size), sha256, sibling.blob_id)


def _chosen(wanted: Wanted, commit: str, there: dict[str, RemoteFile]) -> list[RemoteFile]:
    """Returns the first that is there of each group; raises an InputError if none is."""
    found = [next((n for n in names if n in there), None) for names in wanted.choices]
    missing = [" or ".join(c) for c, n in zip(wanted.choices, found, strict=True) if n is None]
    if missing:
        others = [name for name, file in there.items() if file.has_weights]
        raise InputError(
            f"{wanted.repository.name} at {commit[:12]} has no {', no '.join(missing)}, but "
            f"{', '.join(others) or 'no weights at all'}; give the revision of a commit that has, "
            f"{FROM_DISK}"
        )
    return [there[name] for name in found if name is not None]


def _papers(there: dict[str, RemoteFile]) -> list[RemoteFile]:
    return [file for name, file in there.items() if is_paper(name)]


def is_paper(path: str) -> bool:
    """Returns whether a path is at the top, and of a license or of what the weights are."""
    return "/" not in path and any(fnmatch.fnmatchcase(path.lower(), p) for p in PAPERS)


def _license(repository: Repository, card: Any) -> str:
    """Returns what we know of the license, and what the model card calls it."""
    named = getattr(card, "license_name", None) or getattr(card, "license", None)
    return f"{repository.license} (its card says: {named})" if named else repository.license


def _check_known(listing: Listing) -> None:
    """Raises an InputError if a file is another than is known, and nobody asked for its commit."""
    repository = listing.repository
    if listing.revision != repository.revision:
        return
    for file in listing.files:
        known = repository.known.get(file.path, file.sha256)
        if file.sha256 != known:
            raise InputError(
                f"{file.path} of {repository.name} is another file than it was, of SHA-256 "
                f"{file.sha256} instead of {known}; if you want it, ask for its commit: "
                f"{listing.commit}"
            )
