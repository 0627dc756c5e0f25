"""Names of orbits, and the lists of ids that select among them."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from o3d_jax.errors import InputError


def object_of(name: str) -> str:
    """Returns the name of an orbit's object, parts joined by "__" as `o3d data render` does."""
    return _without_number(name).replace("/", "__")


def select(names: Sequence[str], ids: Path | None) -> list[str]:
    """Returns the orbits of the objects that a file lists, one id a line; all if there is none.

    An id is the name of an orbit or of an object, or parts of the latter between "__", which
    `o3d data render` writes for "/": so the bare ids of Objaverse-LVIS find
    `000-023__<id>/0`. Ids of nothing are warned of.

    Raises:
        InputError: the file cannot be read, or lists none of the orbits.
    """
    if ids is None:
        return list(names)
    wanted = read_ids(ids)
    chosen = [name for name in names if wanted & ids_of(name)]
    if not chosen:
        raise InputError(
            f"{ids} lists none of the {len(names)} orbits; they are called as {names[0]}"
        )
    if absent := wanted.difference(*map(ids_of, chosen)):
        warnings.warn(
            f"{len(absent)} of {len(wanted)} ids in {ids} are of no orbit, such as {min(absent)}",
            stacklevel=2,
        )
    return chosen


def read_ids(path: Path) -> set[str]:
    """Returns the ids in a file, one a line; empty lines and those that start with # don't count.

    Raises:
        InputError: the file cannot be read as text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Without the mark that Windows puts first.
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no readable list of ids, one a line: {error}") from error
    lines = [line.strip() for line in text.splitlines()]
    return {line for line in lines if line and not line.startswith("#")}


def ids_of(name: str) -> set[str]:
    """Returns what selects an orbit: its name, its object's, and runs of the latter's parts."""
    thing = _without_number(name)
    parts = thing.replace("__", "/").split("/")
    ends = [(i, j) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)]
    runs = {joint.join(parts[i:j]) for i, j in ends for joint in ("__", "/")}
    return {name, name.replace("__", "/"), thing, *runs}


def _without_number(name: str) -> str:
    thing, _, number = name.rpartition("/")
    return thing if number.isdigit() and thing else name
