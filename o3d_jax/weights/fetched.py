"""Where published weights lie that `o3d weights fetch` brought, and how their names find them."""

from pathlib import Path

from o3d_jax.caches import user_folder
from o3d_jax.errors import InputError

FETCHABLE = ("released", "svd-lgm")
"""What `o3d weights fetch` takes."""


def kept(what: str) -> Path:
    """Returns where in the user's cache "weights" or "downloads" are; it need not be there.

    Unlike other caches these have no other place: gigabytes are no temporary files.

    Raises:
        InputError: the user has no home.
    """
    folder = user_folder(what)
    if folder is None:
        raise InputError(
            "there is no home folder to keep weights in; set XDG_CACHE_HOME to a folder on a disk "
            "with room for them"
        )
    return folder


def fetched(name: str) -> Path:
    """Returns the folder of such weights; the checkpoint is `model` in it. It need not be there."""
    return kept("weights") / name


def find_checkpoint(path: Path) -> Path:
    """Returns the path itself, or, if it is only the name of published weights, where they are.

    Raises:
        InputError: nothing is at the path, and the weights of this name have not been fetched.
    """
    if path.exists() or str(path) not in FETCHABLE:
        return path
    folder = fetched(str(path)) / "model"
    if not folder.is_dir():
        raise InputError(
            f"no folder {path} here, and the published weights of this name are not in {folder}; "
            f"fetch them by `o3d weights fetch {path}`"
        )
    return folder
